//! Descriptors that the agent's runtime watches.

use std::io;
use std::os::unix::net::UnixStream;

use inotify::Inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the tokio runtime of the caller say when there are events.
pub fn watch(inotify: Inotify) -> io::Result<AsyncFd<Inotify>> {
    // SAFETY: an `Inotify` owns one descriptor, always the same, and closes it only when it is dropped.
    Ok(unsafe { AsyncFd::register(inotify) }?)
}

/// Lets the tokio runtime of the caller say when a non-blocking socket can be read, or written to, as `interest` says; of the
/// other it does not hear.
pub fn watch_socket(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a `UnixStream` owns one descriptor, always the same, and closes it only when it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}
