//! Blobs from the registry to the disk, with a fixed small amount of memory each.

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::failure::Failure;
use super::registry::{Registry, pause};
use super::{Pull, blocking};
use crate::manifest::Descriptor;
use crate::progress::{Reporter, Status};
use crate::store::{Blob, BlobWriter, Layout, Unnamed, blob_size};
use crate::{Error, Result};

/// Tries without a byte of progress before a download is given up.
const ATTEMPTS: u32 = 5;
/// Chunks on the way to the disk; one is what a TLS record or a socket read gives, 16 KiB or a little more.
const QUEUE: usize = 8;

/// Fetches a blob, unless it is here. Whoever else wants the same one waits, and finds it.
pub(super) async fn fetch(
    pull: &Pull,
    registry: &Registry,
    blob: &Descriptor,
    reporter: &Reporter,
) -> Result<Blob> {
    pull.session.pin(&blob.digest);
    let layout = pull.session.layout().clone();
    let _lock = pull.store.inner.keys.lock(&blob.digest).await;
    if let Some(size) = blob_size(&layout, &blob.digest)? {
        return Ok(Blob { digest: blob.digest.clone(), size });
    }
    let mut again = true;
    loop {
        match download(&layout, registry, blob, reporter).await {
            // One bad transfer is not yet a bad blob.
            Err(Error::Corrupt { reason, .. }) if again => {
                again = false;
                tracing::debug!(digest = %blob.digest, reason, "blob arrived damaged, fetching it again");
                reporter.tell(Status::Retrying, 0, blob.size);
            }
            Err(e) => return Err(e),
            Ok(unnamed) => {
                reporter.tell(Status::DownloadComplete, blob.size, blob.size);
                let session = std::sync::Arc::clone(&pull.session);
                return blocking(move || session.keep(unnamed)).await;
            }
        }
    }
}

async fn download(
    layout: &Layout,
    registry: &Registry,
    blob: &Descriptor,
    reporter: &Reporter,
) -> Result<Unnamed> {
    let mut disk = Disk::new(layout);
    let (mut attempt, mut furthest) = (0, 0);
    while disk.written < blob.size || blob.size == 0 {
        let failure = match transfer(registry, blob, reporter, &mut disk).await {
            Ok(()) => break,
            Err(Stop::Disk) => return Err(disk.failure().await),
            Err(Stop::Registry(failure)) => failure,
        };
        // Only what was never reached before is progress: a registry may begin at the start each time.
        attempt = if disk.written > furthest { 0 } else { attempt + 1 };
        furthest = furthest.max(disk.written);
        if !failure.transient || attempt >= ATTEMPTS || blob.size == 0 {
            return Err(failure.error);
        }
        tracing::debug!(digest = %blob.digest, at = disk.written, error = %failure.error, "download broke, going on");
        reporter.tell(Status::Retrying, disk.written, blob.size);
        tokio::time::sleep(pause(attempt)).await;
    }
    disk.finish().await?.verify(&blob.digest)
}

enum Stop {
    Registry(Failure),
    /// The disk's task has ended and knows why.
    Disk,
}

async fn transfer(
    registry: &Registry,
    blob: &Descriptor,
    reporter: &Reporter,
    disk: &mut Disk,
) -> Result<(), Stop> {
    let (mut stream, from_start) = registry.blob(blob, disk.written).await.map_err(Stop::Registry)?;
    if from_start && disk.written > 0 {
        disk.send(Step::Restart).await?;
        disk.written = 0;
    }
    let mut told = reporter.counter(Status::Downloading, blob.size);
    while let Some(chunk) = stream.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(e) => {
                let mut failure = Failure::broken(registry.name(), &e);
                // A wrong digest of something cut short only says that it was cut short.
                failure.transient |= disk.written < blob.size;
                return Err(Stop::Registry(failure));
            }
        };
        disk.written += chunk.len() as u64;
        if disk.written > blob.size {
            let reason = format!("longer than the {} bytes that the manifest names", blob.size);
            return Err(Stop::Registry(Failure::lasting(Error::corrupt(
                format!("blob {}", blob.digest),
                reason,
            ))));
        }
        told(disk.written);
        disk.send(Step::Write(chunk)).await?;
    }
    if disk.written < blob.size {
        let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        return Err(Stop::Registry(Failure::broken(registry.name(), &ended)));
    }
    Ok(())
}

enum Step {
    Write(Bytes),
    Restart,
    Finish,
}

/// A blocking task that hashes and writes. It ends with the sender, and leaves nothing unless told to finish.
struct Disk {
    steps: mpsc::Sender<Step>,
    task: JoinHandle<Result<Option<Unnamed>>>,
    /// Bytes handed over.
    written: u64,
}

impl Disk {
    fn new(layout: &Layout) -> Disk {
        let (steps, mut queue) = mpsc::channel(QUEUE);
        let layout = layout.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut writer = BlobWriter::new(&layout)?;
            while let Some(step) = queue.blocking_recv() {
                match step {
                    Step::Write(bytes) => writer.write(&bytes)?,
                    Step::Restart => writer.restart()?,
                    Step::Finish => return Ok(Some(writer.finish())),
                }
            }
            Ok(None)
        });
        Disk { steps, task, written: 0 }
    }

    async fn send(&self, step: Step) -> Result<(), Stop> {
        self.steps.send(step).await.map_err(|_| Stop::Disk)
    }

    async fn end(self) -> Result<Option<Unnamed>> {
        drop(self.steps);
        self.task.await.map_err(|e| Error::io("run", "a download's writer", std::io::Error::other(e)))?
    }

    async fn finish(self) -> Result<Unnamed> {
        // A failed send shows in the task's own result.
        let _ = self.send(Step::Finish).await;
        self.end().await?.ok_or_else(cut_off)
    }

    async fn failure(self) -> Error {
        self.end().await.err().unwrap_or_else(cut_off)
    }
}

fn cut_off() -> Error {
    Error::io("write", "a download", std::io::ErrorKind::BrokenPipe.into())
}
