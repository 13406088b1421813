//! The work of one pull, load or import: what it touches stays, and what it made counts all at once.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::blob::{self, Blob, BlobWriter, Unnamed};
use super::index::{Index, Record};
use super::keys::Pins;
use super::layout::Layout;
use super::sweep::Piece;
use super::{Inner, layer};
use crate::error::Context;
use crate::{Error, Result};

/// An image whose parts are all in the store.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    /// The configuration's digest.
    pub id: String,
    pub manifest: String,
    pub blobs: Vec<String>,
    /// Chain ids, bottom first.
    pub chain: Vec<String>,
    /// Canonical names to give it.
    pub names: Vec<String>,
    pub repo_digests: Vec<String>,
}

pub(crate) struct Session {
    store: Arc<Inner>,
    work: Mutex<Work>,
}

struct Work {
    /// Ends with the session at the latest.
    pins: Option<Pins>,
    made: Vec<Piece>,
}

impl Session {
    pub(crate) fn new(store: &Arc<Inner>) -> Session {
        let work = Work { pins: Some(store.keys.pin()), made: Vec::new() };
        Session { store: Arc::clone(store), work: Mutex::new(work) }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.store.layout
    }

    fn work<T>(&self, act: impl FnOnce(&mut Work) -> T) -> T {
        act(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a digest or chain id from being removed while this session lasts. To be called before looking for it.
    pub(crate) fn pin(&self, key: &str) {
        self.work(|w| {
            if let Some(pins) = &mut w.pins {
                pins.add(key);
            }
        });
    }

    /// Notes what is new, so that it can be taken back.
    pub(crate) fn made(&self, piece: Piece) {
        self.work(|w| w.made.push(piece));
    }

    /// Gives a whole blob its place in the store.
    pub(crate) fn keep(&self, blob: Unnamed) -> Result<Blob> {
        let digest = blob.blob.digest.clone();
        self.pin(&digest);
        let new = blob::size(self.layout(), &digest)?.is_none();
        let blob = blob.name(self.layout())?;
        if new {
            self.made(Piece::Blob(digest));
        }
        Ok(blob)
    }

    /// Puts a small document into the store.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Blob> {
        let mut writer = BlobWriter::new(self.layout())?;
        writer.write(bytes)?;
        self.keep(writer.finish())
    }

    /// Makes the images count, all or none.
    pub(crate) fn commit(&self, images: &[Ready]) -> Result<()> {
        if self.work(|w| !w.made.is_empty()) {
            // The index must not reach the disk before what it names.
            let root = self.layout().root();
            let dir = File::open(root).context("open", root)?;
            rustix::fs::syncfs(&dir).context("sync", root)?;
        }
        self.store.index.change(self.layout(), |index| {
            for image in images {
                add(self.layout(), index, image)?;
            }
            Ok(())
        })?;
        // A second manifest of a known image (another compression) brings blobs that nobody needs.
        self.take_back();
        Ok(())
    }

    /// Removes what this session made and no image needs.
    pub(crate) fn take_back(&self) {
        let (pins, made) = self.work(|w| (w.pins.take(), std::mem::take(&mut w.made)));
        drop(pins);
        if let Err(e) = self.store.discard(made) {
            // It is no harm but space; the next open or prune tries again.
            tracing::warn!(error = %e, "cannot remove leftovers of an image");
        }
    }
}

/// Whether everything that a record names is there.
pub(crate) fn complete(layout: &Layout, blobs: &BTreeSet<String>, chain: &[String]) -> Result<bool> {
    for digest in blobs {
        if blob::size(layout, digest)?.is_none() {
            return Ok(false);
        }
    }
    for id in chain {
        if layer::size(layout, id)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn add(layout: &Layout, index: &mut Index, image: &Ready) -> Result<()> {
    let known = match index.images.get(&image.id) {
        Some(record) => complete(layout, &record.blobs, &record.layers)?,
        None => false,
    };
    if !known {
        let blobs: BTreeSet<String> = image.blobs.iter().cloned().collect();
        let mut size = 0;
        let gone = |what: &str| {
            Error::corrupt(format!("image {}", image.id), format!("{what} was removed meanwhile"))
        };
        for digest in &blobs {
            size += blob::size(layout, digest)?.ok_or_else(|| gone(digest))?;
        }
        for id in &image.chain {
            size += layer::size(layout, id)?.ok_or_else(|| gone(id))?;
        }
        let record = Record {
            manifest: image.manifest.clone(),
            blobs,
            layers: image.chain.clone(),
            repo_digests: index.images.get(&image.id).map(|r| r.repo_digests.clone()).unwrap_or_default(),
            added: Timestamp::now(),
            size,
        };
        index.images.insert(image.id.clone(), record);
    }
    if let Some(record) = index.images.get_mut(&image.id) {
        record.repo_digests.extend(image.repo_digests.iter().cloned());
    }
    for name in &image.names {
        index.names.insert(name.clone(), image.id.clone());
    }
    Ok(())
}
