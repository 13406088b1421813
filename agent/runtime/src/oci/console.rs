//! Handing descriptors to whoever wants them: the master of a terminal, a process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::Error;
use crate::container::hand;

/// Sends the master of a terminal over the socket at `path`. With a name, as those who receive descriptors expect one.
pub fn send(path: &Path, master: OwnedFd) -> Result<(), Error> {
    hand(path, &master.as_fd(), b"/dev/ptmx").map_err(Error::path("send the terminal to", path))
}

/// Sends the pidfd of a new process over the socket at `path`: unlike a number it always means that process.
pub fn send_pidfd(path: &Path, process: BorrowedFd<'_>) -> Result<(), Error> {
    hand(path, &process, b"pidfd").map_err(Error::path("send the pidfd to", path))
}
