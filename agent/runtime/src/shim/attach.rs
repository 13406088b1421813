//! Clients that are attached to a container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::failure;
use super::proto::{Attach, Attached, Failure, FailureKind, Status};
use super::pump::Tap;
use super::slot::Slot;
use crate::log::Stream;
use crate::sys::terminal;

impl Slot {
    /// Sets the size of its terminal.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), Failure> {
        let console = self.sources.first().filter(|_| self.tty);
        let console =
            console.ok_or_else(|| failure(FailureKind::Invalid, format!("{} has no terminal", self.id)))?;
        terminal::resize(console.fd.as_fd(), height, width)
            .map_err(|error| failure(FailureKind::Internal, format!("cannot resize the terminal: {error}")))
    }

    /// The descriptors for a client that attaches.
    pub fn attach(&mut self, wanted: &Attach) -> Result<(Attached, Vec<OwnedFd>), Failure> {
        if self.status == Status::Stopped {
            return Err(failure(FailureKind::Invalid, format!("{} has exited", self.id)));
        }
        self.try_attach(wanted)
            .map_err(|error| failure(FailureKind::Internal, format!("cannot attach to {}: {error}", self.id)))
    }

    fn try_attach(&mut self, wanted: &Attach) -> io::Result<(Attached, Vec<OwnedFd>)> {
        let mut attached = Attached { tty: self.tty, ..Attached::default() };
        let mut fds = Vec::new();
        if wanted.stdin {
            let stdin = match (self.tty, self.stdin_once) {
                (true, _) => self.sources.first().map(|console| console.fd.try_clone()).transpose()?,
                // Given away for good: when the client closes it, the container reads the end.
                (false, true) => self.stdin.take(),
                (false, false) => self.stdin.as_ref().map(OwnedFd::try_clone).transpose()?,
            };
            attached.stdin = stdin.is_some();
            fds.extend(stdin);
        }
        let mut end = None;
        for source in self.sources.iter_mut().filter(|source| !source.ended) {
            let (asked, given) = match source.stream {
                Stream::Stdout => (wanted.stdout, &mut attached.stdout),
                Stream::Stderr => (wanted.stderr, &mut attached.stderr),
            };
            if asked {
                let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
                let (_, news) = match &end {
                    Some(end) => end,
                    None => &*end.insert(pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?),
                };
                source.taps.push(Tap::new(writer, news.try_clone()?));
                fds.push(reader);
                *given = true;
            }
        }
        if let Some((reader, _)) = end {
            fds.push(reader);
            attached.end = true;
        }
        Ok((attached, fds))
    }
}
