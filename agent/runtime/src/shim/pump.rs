//! From a container's stdout, stderr or terminal to its log and to who is attached.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use jiff::Timestamp;

use crate::log::{Stream, Writer};
use crate::sys::shim_io::read_into;
use crate::sys::shim_process::set_nonblocking;

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    Data,
    Nothing,
    Ended,
}

/// The reading end of one output stream.
#[derive(Debug)]
pub(super) struct Source {
    pub fd: OwnedFd,
    pub stream: Stream,
    /// The writing ends of the pipes of who is attached.
    pub taps: Vec<OwnedFd>,
}

impl Source {
    pub fn new(fd: OwnedFd, stream: Stream) -> io::Result<Source> {
        set_nonblocking(&fd)?;
        Ok(Source { fd, stream, taps: Vec::new() })
    }

    /// Moves what one read gives.
    pub fn pump(&mut self, log: Option<&mut Writer>, scratch: &mut Vec<u8>) -> Pumped {
        match read_into(&self.fd, scratch) {
            Ok(0) => self.end(log),
            Ok(_) => {
                self.taps.retain(|tap| tell(tap, scratch));
                if let Some(log) = log {
                    log.write(self.stream, scratch, Timestamp::now());
                }
                Pumped::Data
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Pumped::Nothing,
                // EIO of a pty master: nobody has the terminal open any more.
                _ => self.end(log),
            },
        }
    }

    fn end(&mut self, log: Option<&mut Writer>) -> Pumped {
        if let Some(log) = log {
            log.end(self.stream, Timestamp::now());
        }
        Pumped::Ended
    }
}

/// Hands a chunk to who is attached; a reader that lags misses it, because the container must not wait for it.
fn tell(tap: &OwnedFd, chunk: &[u8]) -> bool {
    match nix::unistd::write(tap.as_fd(), chunk) {
        Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => true,
        Err(_) => false,
    }
}
