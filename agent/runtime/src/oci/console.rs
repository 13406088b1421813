//! Handing descriptors to whoever wants them: the master of a terminal, a process.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::Error;

/// Sends the master of a terminal over the socket at `path`.
pub fn send(path: &Path, master: OwnedFd) -> Result<(), Error> {
    use std::os::fd::AsFd;
    hand(path, master.as_fd(), b"/dev/ptmx", "send the terminal to")
}

/// Sends the pidfd of a new process over the socket at `path`: unlike a number it always means that process.
pub fn send_pidfd(path: &Path, process: BorrowedFd<'_>) -> Result<(), Error> {
    hand(path, process, b"pidfd", "send the pidfd to")
}

/// With a name, as those who receive descriptors expect one.
fn hand(path: &Path, fd: BorrowedFd<'_>, name: &[u8], operation: &'static str) -> Result<(), Error> {
    let failed = |e: io::Error| Error::path(operation, path)(e);
    let socket = UnixStream::connect(path).map_err(failed)?;
    let fds = [fd.as_raw_fd()];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(name)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    sent.map(drop).map_err(|e| failed(e.into()))
}
