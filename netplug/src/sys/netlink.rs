//! A blocking netlink socket that sends several messages at once.
//!
//! The kernel works through everything inside the send call. When it returns, the answers of requests that are not
//! dumps are all queued, so reading until the queue is empty needs no time limit.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use rtnetlink::sys::{Socket as SysSocket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Protocol number of route netlink (links, addresses, routes).
pub(crate) const ROUTE: isize = 0;
/// Protocol number of netfilter netlink (nf_tables, conntrack).
pub(crate) const NETFILTER: isize = 12;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;

const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;
const HEADER: usize = 16;
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
const EXT_ACK_TEXT: u16 = 1;

/// Room for one answer; the kernel makes dump chunks of at most 32 KiB.
const ANSWER: usize = 64 << 10;
/// Room for one batch; a table of several ten thousand host ports fits.
const BATCH: usize = 8 << 20;

/// One message as received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// Message type.
    pub kind: u16,
    /// Message flags.
    pub flags: u16,
    /// Sequence number.
    pub seq: u32,
    /// Port of the socket whose request caused the message.
    pub port: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// A message that the kernel refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Sequence number of the message.
    pub seq: u32,
    /// Why.
    pub error: io::Error,
}

/// A netlink socket bound in the namespace where it was opened, for its whole life.
pub(crate) struct Socket {
    inner: SysSocket,
    port: u32,
    answer: Vec<u8>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("port", &self.port).finish_non_exhaustive()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl Socket {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut inner = SysSocket::new(protocol)?;
        let port = inner.bind_auto()?.port_number();
        inner.connect(&SocketAddr::new(0, 0))?;
        // Shorter refusals with a reason in words: nice to have, missing in kernels before 4.12.
        let _ = inner.set_cap_ack(true);
        let _ = inner.set_ext_ack(true);
        Ok(Self { inner, port, answer: vec![0; ANSWER] })
    }

    /// Lets a batch be large.
    pub(crate) fn widen(self) -> io::Result<Self> {
        setsockopt(&self.inner, sockopt::SndBufForce, &BATCH)?;
        Ok(self)
    }

    /// Makes room for that many bytes of messages that nobody has read yet. Memory is taken only as they come.
    pub(crate) fn room(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.inner, sockopt::RcvBufForce, &bytes)?)
    }

    /// Also receives what is told to a multicast group.
    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        self.inner.add_membership(group)
    }

    /// Lets a task wait until something can be read.
    pub(crate) fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: `inner` owns the file descriptor, is never replaced, and closes it only when it is dropped, so it
        // stays open and the same for as long as the AsyncFd owns `self`.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }.map_err(io::Error::from)
    }

    /// The kernel's number for this socket.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sends `batch` and hands every answer to `visit`. Returns what was refused, in order.
    pub(crate) fn exchange(
        &mut self,
        batch: &[u8],
        mut visit: impl FnMut(Frame<'_>),
    ) -> io::Result<Vec<Refusal>> {
        self.drain();
        self.send(batch)?;
        let mut refused = Vec::new();
        loop {
            let size = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(size) => size,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(refused),
                Err(e) => return Err(e),
            };
            for frame in frames(&self.answer[..size]) {
                match frame.kind {
                    MSG_ERROR => refused.extend(refusal(&frame)),
                    MSG_DONE => {}
                    _ => visit(frame),
                }
            }
        }
    }

    /// Sends `batch` and turns the first refusal into the error.
    pub(crate) fn execute(&mut self, batch: &[u8]) -> io::Result<()> {
        match self.exchange(batch, |_| {})?.into_iter().next() {
            Some(refusal) => Err(refusal.error),
            None => Ok(()),
        }
    }

    /// Sends a dump request and hands every answer to `visit`.
    pub(crate) fn dump(&mut self, request: &[u8], mut visit: impl FnMut(Frame<'_>)) -> io::Result<()> {
        self.drain();
        self.send(request)?;
        loop {
            let size = self.receive(MsgFlags::empty())?;
            for frame in frames(&self.answer[..size]) {
                match frame.kind {
                    MSG_DONE => return Ok(()),
                    MSG_ERROR => return refusal(&frame).map_or(Ok(()), |refusal| Err(refusal.error)),
                    _ => visit(frame),
                }
            }
        }
    }

    /// Hands what is queued to `visit` without waiting.
    pub(crate) fn queued(&mut self, mut visit: impl FnMut(Frame<'_>)) -> io::Result<()> {
        loop {
            let size = self.receive(MsgFlags::MSG_DONTWAIT)?;
            frames(&self.answer[..size]).for_each(&mut visit);
        }
    }

    /// Answers left over from an exchange that broke off must not be taken for those of the next one.
    fn drain(&mut self) {
        while self.receive(MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    fn send(&self, batch: &[u8]) -> io::Result<()> {
        loop {
            match self.inner.send(batch, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> io::Result<usize> {
        loop {
            match self.inner.recv(&mut &mut self.answer[..], flags.bits()) {
                Ok(size) => return Ok(size.min(ANSWER)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Splits what was received into messages; stops at the first one that is cut off.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(bytes.first_chunk().copied()?)).ok()?;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let (message, rest) = bytes.split_at(length);
        bytes = &rest[(length.next_multiple_of(4) - length).min(rest.len())..];
        Some(Frame {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            seq: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
            port: u32::from_ne_bytes([message[12], message[13], message[14], message[15]]),
            body: &message[HEADER..],
        })
    })
}

/// Splits attributes; the flag bits of the type are masked off.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: [u8; 4] = bytes.first_chunk().copied()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        if length < 4 || length > bytes.len() {
            return None;
        }
        let (attribute, rest) = bytes.split_at(length);
        bytes = &rest[(length.next_multiple_of(4) - length).min(rest.len())..];
        Some((u16::from_ne_bytes([header[2], header[3]]) & 0x3fff, &attribute[4..]))
    })
}

/// The attribute of type `wanted`.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A string attribute's text, without the closing zero.
pub(crate) fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).unwrap_or_default()
}

/// What an NLMSG_ERROR says; `None` if it is an acknowledgement.
fn refusal(frame: &Frame<'_>) -> Option<Refusal> {
    let code = i32::from_ne_bytes(frame.body.first_chunk().copied()?);
    if code == 0 {
        return None;
    }
    let error = io::Error::from_raw_os_error(code.wrapping_neg());
    if let Some(reason) = reason(frame) {
        tracing::debug!(%error, reason, "netlink request refused");
    }
    Some(Refusal { seq: frame.seq, error })
}

/// The kernel's reason in words, if it gave one (Documentation/userspace-api/netlink/intro.rst, "Ext ACK").
fn reason<'a>(frame: &Frame<'a>) -> Option<&'a str> {
    if frame.flags & ACK_TLVS == 0 {
        return None;
    }
    let echoed = frame.body.get(4..)?;
    let length = match frame.flags & CAPPED {
        0 => usize::try_from(u32::from_ne_bytes(echoed.first_chunk().copied()?)).ok()?,
        _ => HEADER,
    };
    attribute(echoed.get(length.next_multiple_of(4)..)?, EXT_ACK_TEXT).map(text)
}

/// Whether `error` is `errno`.
pub(crate) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
