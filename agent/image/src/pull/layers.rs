//! All layers of an image: fetched and unpacked side by side, put in place from the bottom up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;

use super::registry::Registry;
use super::{Pull, blocking, download};
use crate::manifest::Descriptor;
use crate::progress::{Reporter, Status};
use crate::store::{Piece, blob_size, layer_size, open_blob, unpack_layer};
use crate::stream::Watched;
use crate::{Error, Result};

/// Layers in work at a time, as Docker does it.
const PARALLEL: usize = 3;

/// Stops the blocking work that a dropped pull has begun.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One layer of the image.
struct Layer {
    blob: Descriptor,
    diff_id: String,
    /// Its chain id last, those below before it.
    chain: Vec<String>,
    reporter: Reporter,
    /// Says that the layer below is in its place.
    below: oneshot::Receiver<()>,
    /// To the layer above.
    placed: oneshot::Sender<()>,
}

/// Gets all layers into the store, unpacked.
pub(super) async fn fetch(
    pull: &Pull,
    registry: &Registry,
    blobs: &[Descriptor],
    diff_ids: &[String],
    chain: &[String],
) -> Result<()> {
    let stop = StopOnDrop(Arc::default());
    let (first, mut below) = oneshot::channel();
    // The receiver is alive in this function.
    let _ = first.send(());
    let mut layers = Vec::with_capacity(blobs.len());
    for (at, blob) in blobs.iter().enumerate() {
        let (placed, next) = oneshot::channel();
        let reporter = Reporter::new(pull.options.progress.clone(), &blob.digest);
        reporter.tell(Status::PullingFsLayer, 0, blob.size);
        let below = std::mem::replace(&mut below, next);
        layers.push(Layer {
            blob: blob.clone(),
            diff_id: diff_ids[at].clone(),
            chain: chain[..=at].to_vec(),
            reporter,
            below,
            placed,
        });
    }
    // In order: a layer waits for the one below, which has always been started before it.
    futures::stream::iter(layers.into_iter().map(|layer| layer.get(pull, registry, &stop.0)))
        .buffered(PARALLEL)
        .try_collect::<()>()
        .await
}

impl Layer {
    async fn get(mut self, pull: &Pull, registry: &Registry, stop: &Arc<AtomicBool>) -> Result<()> {
        let chain = std::mem::take(&mut self.chain);
        let Some((id, below)) = chain.split_last() else { return Ok(()) };
        let layout = pull.session.layout();
        pull.session.pin(id);
        pull.session.pin(&self.blob.digest);
        let _lock = pull.store.inner.keys.lock(id).await;
        if layer_size(layout, id)?.is_some() && blob_size(layout, &self.blob.digest)?.is_some() {
            self.reporter.tell(Status::AlreadyExists, self.blob.size, self.blob.size);
        } else {
            let blob = download::fetch(pull, registry, &self.blob, &self.reporter).await?;
            if layer_size(layout, id)?.is_none() {
                self.unpack(pull, stop, id, below, blob.size).await?;
            }
            self.reporter.tell(Status::PullComplete, blob.size, blob.size);
        }
        // Nobody waits for the topmost one.
        let _ = self.placed.send(());
        Ok(())
    }
}

impl Layer {
    async fn unpack(
        &mut self,
        pull: &Pull,
        stop: &Arc<AtomicBool>,
        id: &str,
        below: &[String],
        size: u64,
    ) -> Result<()> {
        let (layout, digest) = (pull.session.layout().clone(), self.blob.digest.clone());
        let (diff_id, stop) = (self.diff_id.clone(), Arc::clone(stop));
        let told = self.reporter.counter(Status::Extracting, size);
        let pending = blocking(move || {
            let watched = Watched::new(open_blob(&layout, &digest)?, stop, Box::new(told));
            unpack_layer(&layout, watched, Some(&diff_id), &format!("layer {digest}"))
        })
        .await?;
        // Without an answer the layer below has failed, which is what the caller hears of.
        if (&mut self.below).await.is_err() {
            return Err(Error::corrupt(
                format!("layer {}", self.blob.digest),
                "the layer below it is missing",
            ));
        }
        let (session, id, below) = (Arc::clone(&pull.session), id.to_owned(), below.to_vec());
        blocking(move || {
            if pending.place(session.layout(), &id, &below)? {
                session.made(Piece::Layer(id));
            }
            Ok(())
        })
        .await
    }
}
