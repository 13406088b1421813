//! What the agent's end of a log needs.

use std::io;

use inotify::Inotify;
use tokio::io::unix::AsyncFd;

/// Lets the tokio runtime of the caller say when there are events.
pub fn watch(inotify: Inotify) -> io::Result<AsyncFd<Inotify>> {
    // SAFETY: an `Inotify` owns one descriptor, always the same, and closes it only when it is dropped.
    Ok(unsafe { AsyncFd::register(inotify) }?)
}
