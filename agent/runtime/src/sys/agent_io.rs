//! What the agent's end of a connection and of a log needs.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use inotify::Inotify;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::unix::AsyncFd;

/// Receives into `buffer` without waiting; descriptors that come along are appended to `fds`, closed by execve. 0 is the
/// end. `most` is how many descriptors one message may bring.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    most: usize,
) -> io::Result<usize> {
    let mut control = vec![0; most * size_of::<RawFd>() + 64];
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = item {
            // SAFETY: the kernel has just made these descriptors for this message, nobody else owns them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(message.bytes)
}

/// Lets the tokio runtime of the caller say when there are events.
pub fn watch(inotify: Inotify) -> io::Result<AsyncFd<Inotify>> {
    // SAFETY: an `Inotify` owns one descriptor, always the same, and closes it only when it is dropped.
    Ok(unsafe { AsyncFd::register(inotify) }?)
}
