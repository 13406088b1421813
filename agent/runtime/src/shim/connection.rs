//! One client of the shim.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::frame::{self, Frames, TooLong};
use super::proto::{Event, FailureKind, Message, Outcome, Reply};
use crate::sys::shim_io;

/// What may wait for a client that does not read, in bytes; it is dropped beyond and can ask anew when it comes back.
const MAX_QUEUED: usize = 8 << 20;

/// So much is received at a time.
const CHUNK: usize = 16 << 10;

/// Who asked something: the answer goes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub connection: u64,
    pub request: u64,
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub id: u64,
    /// It has said hello, so that both sides know what they speak.
    pub greeted: bool,
    /// It is to be closed.
    pub broken: bool,
    socket: UnixStream,
    frames: Frames,
    output: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// Of the first frame of `output`.
    sent: usize,
    queued: usize,
}

impl Connection {
    pub fn new(id: u64, socket: UnixStream) -> Connection {
        Connection {
            id,
            greeted: false,
            broken: false,
            socket,
            frames: Frames::default(),
            output: VecDeque::new(),
            sent: 0,
            queued: 0,
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Receives once. Descriptors that a client sends are discarded by the kernel: none are asked for.
    pub fn receive(&mut self) {
        let mut buffer = Vec::with_capacity(CHUNK);
        match shim_io::read_into(&self.socket, &mut buffer) {
            Ok(0) => self.broken = true,
            Ok(_) => self.frames.push(&buffer),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.broken = true,
        }
    }

    /// The next complete frame.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, TooLong> {
        self.frames.next()
    }

    /// Queues an answer and sends what goes out at once.
    pub fn reply(&mut self, request: u64, result: Outcome, fds: Vec<OwnedFd>) {
        let message = Message::Reply(Reply { id: request, fds: fds.len(), result });
        match frame::encode(&message) {
            Ok(bytes) if !frame::too_long(&bytes) => self.queue(bytes, fds),
            _ => {
                let failure = super::failure(FailureKind::Internal, "the answer is too long");
                let message = Message::Reply(Reply { id: request, fds: 0, result: Outcome::Error(failure) });
                if let Ok(bytes) = frame::encode(&message) {
                    self.queue(bytes, Vec::new());
                }
            }
        }
    }

    /// Queues news and sends what goes out at once.
    pub fn tell(&mut self, event: &Event) {
        if let Ok(bytes) = frame::encode(&Message::Event(event.clone())) {
            self.queue(bytes, Vec::new());
        }
    }

    fn queue(&mut self, bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        self.queued += bytes.len();
        self.output.push_back((bytes, fds));
        self.flush();
        self.broken |= self.queued > MAX_QUEUED;
    }

    /// Sends what goes out without waiting.
    pub fn flush(&mut self) {
        while let Some((bytes, fds)) = self.output.front() {
            let with: &[OwnedFd] = if self.sent == 0 { fds } else { &[] };
            match shim_io::send(&self.socket, &bytes[self.sent..], with) {
                Ok(sent) => {
                    self.sent += sent;
                    if self.sent == bytes.len() {
                        self.queued -= bytes.len();
                        self.sent = 0;
                        self.output.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
        self.output = VecDeque::new();
    }
}
