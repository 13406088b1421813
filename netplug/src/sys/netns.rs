//! Network namespaces, entered by threads that were made for it and end there.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// Proof of running on a thread of [`on_thread`], the only place where changing namespace harms nobody.
pub(crate) struct Traveller(());

impl Traveller {
    /// Moves this thread into `namespace`, for good.
    pub(crate) fn enter(&self, namespace: &OwnedFd) -> io::Result<()> {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }
}

/// Runs `work` on a thread of its own, which starts in the namespace of the caller. When the future is dropped, the
/// work goes on to its end.
pub(crate) async fn on_thread<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(&Traveller) -> Result<T> + Send + 'static,
{
    let (answer, question) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .stack_size(256 << 10)
        .spawn(move || {
            // Nobody listens any more if the caller gave up; the work is done all the same.
            let _ = answer.send(work(&Traveller(())));
        })
        .map_err(Error::Thread)?;
    question
        .await
        .unwrap_or_else(|_| Err(Error::Thread(io::Error::other("the thread ended without an answer"))))
}

/// A new namespace, which lasts for as long as somebody is in it or holds on to it.
pub(crate) async fn new() -> Result<OwnedFd> {
    on_thread(|_| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::Namespace { path: "of a new pod".into(), source: e.into() })?;
        current()
    })
    .await
}

/// The namespace of the calling thread.
pub(crate) fn current() -> Result<OwnedFd> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// Opens a namespace file.
pub(crate) fn open(path: &Path) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).map_err(|source| Error::Namespace { path: path.into(), source })
}
