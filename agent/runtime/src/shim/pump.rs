//! From a container's stdout, stderr or terminal to its log and to who is attached.
//!
//! Every attached client has a pipe of its own. While one of them is full the container's output is not read, so that
//! a client that keeps up in the long run misses nothing; but a client has [`STALL`] to take a chunk (64 KiB at most),
//! then it is cut off and told why. A client can so slow a container down for a moment, and never stop it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::unistd::write;

use crate::log::{Stream, Writer};
use crate::sys::shim_io::read_into;
use crate::sys::shim_process::set_nonblocking;

/// How long an attached client may take for one chunk of output.
const STALL: Duration = Duration::from_secs(2);

/// What may wait for a client when a container has ended and its last output is collected at once, in bytes.
const MAX_PENDING: usize = 1 << 20;

/// What a client is told that was cut off.
const TOO_SLOW: &[u8] = b"this client read too slowly and was cut off; the container goes on\n";

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    Data,
    Nothing,
    Ended,
}

/// One who is attached to one stream.
#[derive(Debug)]
pub(super) struct Tap {
    /// The writing end of the client's pipe.
    pipe: OwnedFd,
    /// Where the client is told why its output ended early.
    end: OwnedFd,
    /// What did not fit into the pipe yet.
    pending: Vec<u8>,
    deadline: Option<Instant>,
}

impl Tap {
    pub fn new(pipe: OwnedFd, end: OwnedFd) -> Tap {
        Tap { pipe, end, pending: Vec::new(), deadline: None }
    }

    pub fn pipe(&self) -> &OwnedFd {
        &self.pipe
    }

    pub fn waits(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Hands a chunk over. False when the client is gone.
    fn offer(&mut self, chunk: &[u8]) -> bool {
        let taken = if self.waits() { Some(0) } else { self.push(chunk) };
        let Some(taken) = taken else { return false };
        if taken < chunk.len() {
            self.pending.extend_from_slice(&chunk[taken..]);
            self.deadline.get_or_insert_with(|| Instant::now() + STALL);
        }
        if self.pending.len() > MAX_PENDING {
            self.cut_off();
            return false;
        }
        true
    }

    /// Hands over what waits. False when the client is gone.
    fn flush(&mut self) -> bool {
        let pending = std::mem::take(&mut self.pending);
        match self.push(&pending) {
            None => false,
            Some(taken) if taken == pending.len() => {
                self.deadline = None;
                true
            }
            Some(taken) => {
                self.pending = pending;
                self.pending.drain(..taken);
                true
            }
        }
    }

    fn push(&self, chunk: &[u8]) -> Option<usize> {
        let mut taken = 0;
        while taken < chunk.len() {
            match write(self.pipe.as_fd(), &chunk[taken..]) {
                Ok(count) => taken += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return None,
            }
        }
        Some(taken)
    }

    fn cut_off(&self) {
        // A client that has gone does not need to hear it.
        let _ = write(self.end.as_fd(), TOO_SLOW);
    }
}

/// The reading end of one output stream.
#[derive(Debug)]
pub(super) struct Source {
    pub fd: OwnedFd,
    pub stream: Stream,
    pub taps: Vec<Tap>,
    /// Nothing more comes; it is kept for clients that have not taken everything yet.
    pub ended: bool,
}

impl Source {
    pub fn new(fd: OwnedFd, stream: Stream) -> io::Result<Source> {
        set_nonblocking(&fd)?;
        Ok(Source { fd, stream, taps: Vec::new(), ended: false })
    }

    /// A client has not taken all of the last chunk: nothing more is read for now.
    pub fn is_held_up(&self) -> bool {
        self.taps.iter().any(Tap::waits)
    }

    /// When the first client that holds it up loses its place.
    pub fn deadline(&self) -> Option<Instant> {
        self.taps.iter().filter_map(|tap| tap.deadline).min()
    }

    /// Moves what one read gives.
    pub fn pump(&mut self, log: Option<&mut Writer>, scratch: &mut Vec<u8>) -> Pumped {
        if self.ended {
            return Pumped::Nothing;
        }
        match read_into(&self.fd, scratch) {
            Ok(0) => self.end(log),
            Ok(_) => {
                self.taps.retain_mut(|tap| tap.offer(scratch));
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

    /// A client's pipe has room again, or its reader is gone.
    pub fn tap_ready(&mut self, tap: usize, gone: bool) {
        // The list may have shrunk by a write that failed for the same reason.
        if let Some(found) = self.taps.get_mut(tap)
            && (gone || !found.flush())
        {
            self.taps.remove(tap);
        }
    }

    /// Cuts off the clients whose time is over; says how many.
    pub fn expire(&mut self, now: Instant) -> usize {
        let before = self.taps.len();
        self.taps.retain(|tap| {
            let late = tap.deadline.is_some_and(|deadline| deadline <= now);
            if late {
                tap.cut_off();
            }
            !late
        });
        before - self.taps.len()
    }

    fn end(&mut self, log: Option<&mut Writer>) -> Pumped {
        if let Some(log) = log {
            log.end(self.stream, Timestamp::now());
        }
        self.ended = true;
        Pumped::Ended
    }
}
