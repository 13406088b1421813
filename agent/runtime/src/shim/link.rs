//! The task behind a client: one connection that carries many requests at once.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;

use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::frame::Frames;
use super::proto::{Event, Failure, FailureKind, MAX_FDS, Message, Outcome, Reply};
use crate::sys::agent_io::watch_socket;
use crate::sys::shim_io;

/// So much is read at a time, in bytes. Answers are mostly shorter.
const CHUNK: usize = 4 << 10;

/// What came back: the outcome and the descriptors with it.
pub(super) type Answer = (Outcome, Vec<OwnedFd>);

/// What the clients of a connection want of its task.
#[derive(Debug)]
pub(super) enum Order {
    /// Send a frame and hand the reply to `answer`.
    Ask { id: u64, frame: Vec<u8>, answer: oneshot::Sender<Answer> },
    /// Nobody waits for that reply any more.
    Forget(u64),
    /// Send a frame whose reply nobody wants.
    Tell(Vec<u8>),
}

/// A connection.
pub(super) struct Link {
    /// Watched for what comes only: the kernel tells of room to write each time the shim has read, which would wake the agent for
    /// nothing.
    socket: AsyncFd<Socket>,
    /// The same while something could not be sent for want of room.
    room: Option<AsyncFd<Socket>>,
    frames: Frames,
    /// Received descriptors whose reply is not complete yet. Replies and descriptors come in the same order.
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    events: mpsc::UnboundedSender<Event>,
}

impl Link {
    /// # Errors
    /// When the runtime cannot watch the connection.
    pub fn new(stream: UnixStream, events: mpsc::UnboundedSender<Event>) -> io::Result<Link> {
        Ok(Link {
            socket: watch_socket(stream.into_std()?, Interest::READABLE)?,
            room: None,
            frames: Frames::default(),
            fds: Vec::new(),
            output: Vec::new(),
            waiting: HashMap::new(),
            events,
        })
    }

    /// Runs until the connection ends or nobody is interested in it. Who waits then is told by the end of its channel.
    pub async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut clients = true;
        loop {
            let result = tokio::select! {
                order = orders.recv(), if clients => {
                    match order {
                        Some(order) => self.obey(order),
                        None => clients = false,
                    }
                    Ok(())
                }
                () = self.events.closed(), if !clients => return,
                // All there is will be read, so that what comes after this is news.
                ready = self.socket.readable() => match ready.map(|mut ready| ready.clear_ready()) {
                    Ok(()) => self.receive(),
                    Err(error) => Err(error),
                },
                ready = until_writable(self.room.as_ref()) => ready,
            };
            if let Err(error) = result.and_then(|()| self.send()) {
                tracing::debug!("connection to a shim ended: {error}");
                return;
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Ask { id, frame, answer } => {
                self.output.extend_from_slice(&frame);
                self.waiting.insert(id, answer);
            }
            Order::Forget(id) => {
                self.waiting.remove(&id);
            }
            Order::Tell(frame) => self.output.extend_from_slice(&frame),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match shim_io::send(self.socket.get_ref(), &self.output, &[]) {
                Ok(sent) => {
                    self.output.drain(..sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.room.is_none() {
                        let copy = self.socket.get_ref().try_clone()?;
                        self.room = Some(watch_socket(copy, Interest::WRITABLE)?);
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output = Vec::new();
        self.room = None;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; CHUNK];
        loop {
            let fds = self.fds.len();
            match shim_io::receive(self.socket.get_ref(), &mut buffer, &mut self.fds, MAX_FDS) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    // What is read with descriptors ends where those were sent; otherwise all was read that fits.
                    let all = length < CHUNK && self.fds.len() == fds;
                    self.frames.push(&buffer[..length]);
                    self.dispatch()?;
                    if all {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn dispatch(&mut self) -> io::Result<()> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        loop {
            let frame = match self.frames.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(long) => return Err(invalid(format!("a frame of {} bytes", long.0))),
            };
            match serde_json::from_slice(frame) {
                // Nobody listening is fine.
                Ok(Message::Event(event)) => drop(self.events.send(event)),
                Ok(Message::Reply(Reply { id, fds, result })) => {
                    answer(&mut self.waiting, &mut self.fds, id, fds, result)
                }
                Err(error) => match serde_json::from_slice::<Strange>(frame) {
                    // A reply of a newer shim that this side cannot read fails its request only.
                    Ok(Strange { reply: Some(reply) }) => {
                        let message = format!("cannot understand the shim's answer: {error}");
                        let failure = Failure { kind: FailureKind::Unsupported, message };
                        answer(
                            &mut self.waiting,
                            &mut self.fds,
                            reply.id,
                            reply.fds,
                            Outcome::Error(failure),
                        );
                    }
                    // An event of a newer shim.
                    Ok(Strange { reply: None }) => {}
                    Err(_) => return Err(invalid(format!("not a message: {error}"))),
                },
            }
        }
    }
}

/// Waits for room to write; for ever when nobody wants any.
async fn until_writable(room: Option<&AsyncFd<Socket>>) -> io::Result<()> {
    match room {
        Some(room) => room.writable().await.map(|mut ready| ready.clear_ready()),
        None => std::future::pending().await,
    }
}

/// A message that is not understood but for its frame.
#[derive(Deserialize)]
struct Strange {
    #[serde(default)]
    reply: Option<StrangeReply>,
}

#[derive(Deserialize)]
struct StrangeReply {
    id: u64,
    #[serde(default)]
    fds: usize,
}

fn answer(
    waiting: &mut HashMap<u64, oneshot::Sender<Answer>>,
    received: &mut Vec<OwnedFd>,
    id: u64,
    fds: usize,
    outcome: Outcome,
) {
    let fds: Vec<OwnedFd> = received.drain(..fds.min(received.len())).collect();
    if let Some(answer) = waiting.remove(&id) {
        // Who asked may have given up; its descriptors are closed then.
        let _ = answer.send((outcome, fds));
    }
}
