//! Streams over one connection.

use std::collections::HashMap;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::frame::{self, Frame, HEAD, Head, Malformed};
use super::header::{Deflater, Headers, Inflater};

/// Bytes of a frame that is accepted; clients send at most 32 KiB at once.
const MAX_FRAME: usize = 1 << 20;
/// Bytes of data sent in one frame.
const CHUNK: usize = 32 * 1024;
/// Frames that a stream may have waiting to be read before the connection waits for it.
const AHEAD: usize = 16;
/// Frames that may wait to be sent.
const OUTGOING: usize = 16;
/// Streams that may be open at once in a connection: a forwarded port has two for each of its own connections.
const MAX_STREAMS: usize = 4096;

/// The server's side of a connection. Dropping it ends the connection.
pub struct Connection {
    opened: mpsc::Receiver<Incoming>,
    reading: JoinHandle<()>,
    // The writer's task ends when nobody can write any more.
    _out: Out,
}

/// A stream that the client has opened.
pub struct Incoming {
    /// Its number; the client's are odd and grow.
    pub id: u32,
    /// What it was opened with.
    pub headers: Headers,
    /// What the client sends.
    pub reader: Reader,
    /// What it is sent.
    pub writer: Writer,
}

/// The client's half of a stream.
pub struct Reader(mpsc::Receiver<Bytes>);

/// The server's half of a stream. Dropping it closes that half.
pub struct Writer {
    id: u32,
    out: Out,
    /// Its sender is gone once the client wants nothing more of the stream.
    wanted: watch::Receiver<()>,
    closed: bool,
}

/// What is to be sent, in order.
type Out = mpsc::Sender<Command>;

enum Command {
    Reply(u32),
    Data { id: u32, last: bool, bytes: Bytes },
    Reset(u32, u32),
    Pong(u32),
    GoAway(u32),
}

/// A stream as the one who reads the connection knows it. Dropping it tells both halves that it is over.
struct Stream {
    /// The way to its reader, until the client has said its last.
    input: Option<mpsc::Sender<Bytes>>,
    /// Tells its writer that somebody wants to hear it.
    wanted: watch::Sender<()>,
}

impl Stream {
    /// Whether anybody still has one of its halves.
    fn is_in_use(&self) -> bool {
        self.input.as_ref().is_some_and(|input| !input.is_closed()) || !self.wanted.is_closed()
    }
}

impl Connection {
    /// Serves a connection, inside of a tokio runtime.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (from, to) = tokio::io::split(io);
        let (out, commands) = mpsc::channel(OUTGOING);
        let (opened, incoming) = mpsc::channel(AHEAD);
        tokio::spawn(write(to, commands));
        let receiving = Receiving {
            opened,
            out: out.clone(),
            streams: HashMap::new(),
            inflater: Inflater::new(),
            newest: 0,
        };
        let reading = tokio::spawn(async move {
            if let Err(error) = receiving.run(from).await {
                tracing::debug!(%error, "a SPDY connection broke");
            }
        });
        Self { opened: incoming, reading, _out: out }
    }

    /// The next stream that the client opens; none when it has left.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.opened.recv().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Reader {
    /// The next bytes; none when the client has closed its half, or left.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

impl Writer {
    /// Resolves once the client wants nothing more of the stream, or has left.
    pub async fn unwanted(&mut self) {
        while self.wanted.changed().await.is_ok() {}
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the client wants nothing more of the stream, or has left.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            if self.wanted.has_changed().is_err() {
                self.closed = true;
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let data = Command::Data { id: self.id, last: false, bytes: Bytes::copy_from_slice(chunk) };
            self.out.send(data).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }

    /// Says that nothing more will be sent, after all that was.
    pub async fn close(mut self) {
        self.closed = true;
        if self.wanted.has_changed().is_err() {
            return;
        }
        let end = Command::Data { id: self.id, last: true, bytes: Bytes::new() };
        // Whoever has left misses nothing.
        let _ = self.out.send(end).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.closed && self.wanted.has_changed().is_ok() {
            let (id, out) = (self.id, self.out.clone());
            // Where there is no room at once, it is sent as soon as there is.
            if let Err(mpsc::error::TrySendError::Full(end)) =
                out.try_send(Command::Data { id, last: true, bytes: Bytes::new() })
                && let Ok(runtime) = tokio::runtime::Handle::try_current()
            {
                runtime.spawn(async move { out.send(end).await });
            }
        }
    }
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What reads a connection.
struct Receiving {
    opened: mpsc::Sender<Incoming>,
    out: Out,
    streams: HashMap<u32, Stream>,
    inflater: Inflater,
    /// The highest identifier so far.
    newest: u32,
}

impl Receiving {
    async fn run<R: AsyncRead>(mut self, from: tokio::io::ReadHalf<R>) -> Result<(), Broken> {
        let result = self.frames(tokio::io::BufReader::with_capacity(CHUNK, from)).await;
        // Everybody sees the end.
        self.streams.clear();
        if result.is_err() {
            let _ = self.out.send(Command::GoAway(self.newest)).await;
        }
        result
    }

    async fn frames(&mut self, mut from: impl AsyncRead + Unpin) -> Result<(), Broken> {
        loop {
            let mut head = [0; HEAD];
            match from.read_exact(&mut head).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            };
            let head = Head::parse(&head)?;
            if head.length > MAX_FRAME {
                return Err(Malformed::Long(head.length).into());
            }
            let mut payload = BytesMut::zeroed(head.length);
            from.read_exact(&mut payload).await?;
            self.frame(frame::parse(head, payload.freeze())?).await?;
        }
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), Malformed> {
        match frame {
            Frame::Open { id, last, block } => {
                let headers = self.inflater.read(&block)?;
                self.open(id, last, headers).await?;
            }
            Frame::Data { id, last, bytes } => self.data(id, last, bytes).await,
            Frame::Reset(id) => drop(self.streams.remove(&id)),
            // Odd numbers are the client's; an even one would be an answer to a ping that was never sent.
            Frame::Ping(id) if id % 2 == 1 => self.send(Command::Pong(id)).await,
            Frame::Headers(block) => drop(self.inflater.read(&block)?),
            Frame::Ping(_) | Frame::GoAway | Frame::Other => {}
        }
        Ok(())
    }

    async fn data(&mut self, id: u32, last: bool, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else {
            // One that is over may have been sent to before the other side knew.
            if id > self.newest {
                self.send(Command::Reset(id, frame::INVALID_STREAM)).await;
            }
            return;
        };
        let input = if last { stream.input.take() } else { stream.input.clone() };
        if let Some(input) = input.filter(|_| !bytes.is_empty()) {
            // What nobody reads is thrown away.
            let _ = input.send(bytes).await;
        }
    }

    async fn open(&mut self, id: u32, last: bool, headers: Headers) -> Result<(), Malformed> {
        if id.is_multiple_of(2) || id <= self.newest {
            return Err(Malformed::Order(id));
        }
        self.newest = id;
        self.streams.retain(|_, stream| stream.is_in_use());
        if self.streams.len() >= MAX_STREAMS {
            self.send(Command::Reset(id, frame::CANCEL)).await;
            return Ok(());
        }
        let (input, reader) = mpsc::channel(AHEAD);
        let (wanted, is_wanted) = watch::channel(());
        self.streams.insert(id, Stream { input: Some(input).filter(|_| !last), wanted });
        self.send(Command::Reply(id)).await;
        let writer = Writer { id, out: self.out.clone(), wanted: is_wanted, closed: false };
        let stream = Incoming { id, headers, reader: Reader(reader), writer };
        // With nobody there to take it, it is closed by being dropped.
        let _ = self.opened.send(stream).await;
        Ok(())
    }

    async fn send(&self, command: Command) {
        // When the writer has ended, the next read will fail too.
        let _ = self.out.send(command).await;
    }
}

/// Sends what is to be sent until nobody is left who could, then closes the connection.
async fn write<W: AsyncWrite>(mut to: tokio::io::WriteHalf<W>, mut commands: mpsc::Receiver<Command>) {
    let mut deflater = Deflater::new();
    let mut out = BytesMut::new();
    while let Some(command) = commands.recv().await {
        encode(&mut out, &mut deflater, command);
        // What has gathered meanwhile goes along.
        while out.len() < CHUNK
            && let Ok(command) = commands.try_recv()
        {
            encode(&mut out, &mut deflater, command);
        }
        if to.write_all(&out).await.is_err() || to.flush().await.is_err() {
            return;
        }
        out.clear();
    }
    let _ = to.shutdown().await;
}

fn encode(out: &mut BytesMut, deflater: &mut Deflater, command: Command) {
    match command {
        Command::Reply(id) => frame::reply(out, id, &deflater.write(&[])),
        Command::Data { id, last, bytes } => frame::data(out, id, last, &bytes),
        Command::Reset(id, status) => frame::reset(out, id, status),
        Command::Pong(id) => frame::pong(out, id),
        Command::GoAway(last) => frame::go_away(out, last),
    }
}
