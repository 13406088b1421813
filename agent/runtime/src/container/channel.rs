//! What a new process and its parent say to each other until the program runs.
//!
//! Both hold one end of a socket pair that keeps message borders and that execve closes: the end of file is how the
//! parent learns that the program runs.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, send,
    sendmsg, setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use super::Error;
use super::Timings;
use super::seccomp::Filter;
use crate::sys::process::adopt_fd;

/// Longer messages are cut by the sender; errors carry paths, which end at 4 KiB.
const MAX_MESSAGE: usize = 32 * 1024;

/// Most descriptors that come with an order: one for each hierarchy of cgroup v1, of which there are fourteen.
const MAX_FDS: usize = 32;

/// From the new process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// Something was not possible but does not matter enough to give up.
    Warning(String),
    /// The master of the new terminal comes with this message.
    Console,
    /// Everything is there but the new root has not been entered: hooks of the host may run.
    Hooks,
    /// The process has this number. Only a helper says it, see [`super::birth`], and the guide of an exec, whose
    /// message has a pidfd with it.
    Born(i32),
    /// Set up; [`Order::Start`] is awaited.
    Ready(Timings),
    /// The seccomp filter is in force, and its listener has this number. [`Order::ListenerTaken`] is awaited.
    Listener(RawFd),
    /// Its environment named no home; this is what the container's `/etc/passwd` says.
    Home(String),
    /// Given up.
    Failed(Failure),
}

/// An error in a form that survives the way to the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Failure {
    /// See [`Error::Sys`].
    Sys {
        /// What was tried.
        operation: String,
        /// On what.
        object: String,
        /// The error number, if there is one.
        errno: Option<i32>,
        /// The text of the reason otherwise.
        text: String,
    },
    /// See [`Error::Spec`].
    Spec {
        /// The field.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// See [`Error::Exec`].
    Exec {
        /// The message.
        message: String,
        /// No such program.
        not_found: bool,
    },
}

/// From the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The cgroup is there and may be shown.
    CgroupReady = 1,
    /// Run the program.
    Start = 2,
    /// The hooks of the host have run.
    HooksDone = 3,
    /// The seccomp filter, which follows in the same message.
    Filter = 4,
    /// What the cgroup limits from the beginning is set: it may be entered, on v1 by the files that come with this.
    LimitsSet = 5,
    /// Who is asked by the seccomp filter has its listener.
    ListenerTaken = 6,
}

/// One end of the pair.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Makes both ends.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel(a), Channel(b)))
    }

    /// An end that has been moved to this descriptor, or is a connection to a gate.
    pub fn connected(socket: OwnedFd) -> Channel {
        Channel(socket)
    }

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// From now on it is an error (`TimedOut`) when [`Channel::next_report`] has nothing to tell for so long.
    pub fn be_patient_for(&self, silence: Duration) -> io::Result<()> {
        let silence = TimeVal::milliseconds(i64::try_from(silence.as_millis()).unwrap_or(i64::MAX));
        Ok(setsockopt(&self.0, sockopt::ReceiveTimeout, &silence)?)
    }

    /// Tells the parent something, with a descriptor if there is one.
    pub fn report(&self, report: &Report, fd: Option<RawFd>) -> io::Result<()> {
        let bytes = serde_json::to_vec(report)?;
        let bytes = &bytes[..bytes.len().min(MAX_MESSAGE)];
        let fds = fd.as_slice();
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        sendmsg::<()>(self.raw(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Tells the parent the number of a seccomp listener and waits until it has been handed on. The filter is in force by now:
    /// only write(2), which it may not ask about, and read(2), which the one that is asked can answer, are called.
    pub fn report_listener(&self, listener: RawFd) -> Result<(), Error> {
        let failed = |e: io::Error| Error::sys("hand over", "the seccomp listener", e);
        let report = serde_json::to_vec(&Report::Listener(listener)).map_err(|e| failed(e.into()))?;
        nix::unistd::write(&self.0, &report).map_err(|e| failed(e.into()))?;
        let mut answer = [0];
        loop {
            match nix::unistd::read(&self.0, &mut answer) {
                Ok(1) if answer[0] == Order::ListenerTaken as u8 => return Ok(()),
                Err(Errno::EINTR) => {}
                // The parent did not come to it, and tells why.
                Ok(_) => return Err(failed(Errno::EPIPE.into())),
                Err(e) => return Err(failed(e.into())),
            }
        }
    }

    /// What the new process has to say; nothing when it runs its program or is gone.
    pub fn next_report(&self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        // As much as there is: most messages are a few bytes, and memory that is touched has to be given back.
        let mut buffer = vec![0; self.next_length()?];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let (length, fd) = loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            match recvmsg::<()>(self.raw(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Ok(message) => {
                    let fd = message.cmsgs()?.find_map(|c| match c {
                        ControlMessageOwned::ScmRights(fds) => fds.first().copied().map(adopt_fd),
                        _ => None,
                    });
                    break (message.bytes, fd);
                }
                // The process ended with an order unread; what it said before is still to come.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(e) => return Err(e.into()),
            }
        };
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&buffer[..length])?, fd)))
    }

    /// The same for one that must come before a time. Later it is an error.
    pub fn next_report_by(&self, deadline: Instant) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return self.next_report(),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits for a message and gives its length; 0 for the end.
    fn next_length(&self) -> io::Result<usize> {
        loop {
            match recv(self.raw(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => {
                    let silent = "it is silent; somebody may have stopped it";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, silent));
                }
                other => return Ok(other?),
            }
        }
    }

    /// Gives the new process an order. It may be gone, which the next report will tell.
    pub fn order(&self, order: Order) -> io::Result<()> {
        self.order_with(order, &[])
    }

    /// The same with descriptors, at most [`MAX_FDS`].
    pub fn order_with(&self, order: Order, fds: &[RawFd]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        match sendmsg::<()>(
            self.raw(),
            &[IoSlice::new(&[order as u8])],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for an order that comes with descriptors.
    pub fn await_order_with(&self, order: Order) -> Result<Vec<OwnedFd>, Error> {
        let failed = |e: Errno| Error::sys("wait for", format!("{order:?}"), e.into());
        let mut byte = [0];
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        loop {
            let mut parts = [IoSliceMut::new(&mut byte)];
            match recvmsg::<()>(self.raw(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => {}
                Err(e) => return Err(failed(e)),
                Ok(message) => {
                    let fds = message.cmsgs().map_err(failed)?.flat_map(|c| match c {
                        ControlMessageOwned::ScmRights(fds) => fds,
                        _ => Vec::new(),
                    });
                    let fds: Vec<OwnedFd> = fds.map(adopt_fd).collect();
                    let whole = message.bytes == 1;
                    return if whole && byte[0] == order as u8 { Ok(fds) } else { Err(failed(Errno::EPIPE)) };
                }
            }
        }
    }

    /// Sends the seccomp filter. The new process may be gone, which the next report will tell.
    pub fn send_filter(&self, filter: &Filter) -> io::Result<()> {
        let mut message = vec![Order::Filter as u8];
        message.extend(filter.to_bytes());
        match send(self.raw(), &message, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the seccomp filter.
    pub fn await_filter(&self) -> Result<Filter, Error> {
        let failed = |e| Error::sys("wait for", "the seccomp filter", e);
        let mut message = vec![0; 1 + Filter::MAX_BYTES];
        let length = loop {
            match recv(self.raw(), &mut message, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(|e| failed(e.into()))?,
            }
        };
        match message[..length].split_first() {
            Some((order, bytes)) if *order == Order::Filter as u8 => Filter::from_bytes(bytes),
            _ => None,
        }
        .ok_or_else(|| failed(Errno::EPIPE.into()))
    }

    /// Waits for an order; anything else, such as the end of the parent, is an error.
    pub fn await_order(&self, order: Order) -> Result<(), Error> {
        self.await_order_with(order).map(drop)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Hands a descriptor to whoever listens at `path`, with a message.
pub fn hand(path: &Path, fd: &impl AsRawFd, message: &[u8]) -> io::Result<()> {
    let socket = UnixStream::connect(path)?;
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent =
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    // The descriptor has gone with the first bytes.
    (&socket).write_all(&message[sent..])
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Sys { operation, object, source } => {
                Failure::Sys { operation, object, errno: source.raw_os_error(), text: source.to_string() }
            }
            Error::Spec { field, reason } => Failure::Spec { field, reason },
            Error::Exec { message, not_found } => Failure::Exec { message, not_found },
            other => Failure::Sys {
                operation: "set up".to_owned(),
                object: "container".to_owned(),
                errno: None,
                text: other.to_string(),
            },
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Sys { operation, object, errno, text } => {
                let source = errno.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error);
                Error::Sys { operation, object, source }
            }
            Failure::Spec { field, reason } => Error::Spec { field, reason },
            Failure::Exec { message, not_found } => Error::Exec { message, not_found },
        }
    }
}
