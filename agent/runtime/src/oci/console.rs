//! Handing the master of a terminal to whoever wants to serve it.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::Error;

/// Sends it over the socket at `path`, with a name as those who receive it expect one.
pub fn send(path: &Path, master: OwnedFd) -> Result<(), Error> {
    let failed = |e: io::Error| Error::path("send the terminal to", path)(e);
    let socket = UnixStream::connect(path).map_err(failed)?;
    let fds = [master.as_raw_fd()];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"/dev/ptmx")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    sent.map(drop).map_err(|e| failed(e.into()))
}
