//! The output of a command that is run to its end within a time.
//!
//! Most such commands are probes: they end within milliseconds and write next to nothing. So their output is read once, when
//! they have ended; only that of a command that lives on is read as it comes, and what is beyond the limit is thrown away, so
//! that the command never waits for a reader.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::connection::Asker;
use super::proto::{MAX_OUTPUT, Ran};
use crate::container::Stdio;
use crate::sys::shim_io::read_into;
use crate::sys::shim_process::set_nonblocking;

/// After this time the output is read as it comes.
const SOON: Duration = Duration::from_millis(20);

/// Longer than this no command runs, or waits to be run; it keeps a time that can be added to the clock.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// See the module.
#[derive(Debug)]
pub(super) struct Capture {
    /// Who gets the answer.
    pub asker: Asker,
    pipe: Option<OwnedFd>,
    text: Vec<u8>,
    most: usize,
    watched_from: Instant,
    deadline: Instant,
    late: bool,
}

impl Capture {
    /// A pipe for both outputs; gives the command's streams, too. The time begins now.
    pub fn new(asker: Asker, timeout: Duration, most: usize) -> io::Result<(Capture, Stdio)> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&reader)?;
        let stdio = Stdio { stdin: None, stdout: Some(writer.try_clone()?), stderr: Some(writer) };
        let now = Instant::now();
        let capture = Capture {
            asker,
            pipe: Some(reader),
            text: Vec::new(),
            most: most.min(MAX_OUTPUT),
            watched_from: now + SOON,
            deadline: now + timeout.min(LONGEST),
            late: false,
        };
        Ok((capture, stdio))
    }

    /// What to poll now.
    pub fn watch(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().filter(|_| now >= self.watched_from).map(AsFd::as_fd)
    }

    /// When something is due by the clock.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let look = (self.pipe.is_some() && now < self.watched_from).then_some(self.watched_from);
        let end = (!self.late).then_some(self.deadline);
        look.into_iter().chain(end).min()
    }

    /// True once, when its time is over.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let over = !self.late && now >= self.deadline;
        self.late |= over;
        over
    }

    /// Reads once. False when nothing more is there now, or will ever be.
    pub fn read(&mut self, scratch: &mut Vec<u8>) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        match read_into(pipe, scratch) {
            Ok(1..) => {
                let room = self.most - self.text.len();
                self.text.extend_from_slice(&scratch[..scratch.len().min(room)]);
                true
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                false
            }
            Ok(_) | Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    /// The command has ended: everything that it wrote itself is in the pipe by now.
    pub fn finish(mut self, code: i32, scratch: &mut Vec<u8>) -> (Asker, Ran) {
        while self.text.len() < self.most && self.read(scratch) {}
        let output = String::from_utf8_lossy(&self.text).into_owned();
        (self.asker, Ran { code: (!self.late).then_some(code), output })
    }
}
