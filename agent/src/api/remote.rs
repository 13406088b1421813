//! The protocol of `exec` and `attach`: a command's streams over a WebSocket.
//!
//! It is Kubernetes' remote command, `v5.channel.k8s.io` and `v4.channel.k8s.io`: the first byte of each binary
//! message is the channel, 0 input, 1 output, 2 errors, 3 the result as a `metav1.Status`, 4 the terminal's size;
//! v5 adds 255, whose payload is the channel that the sender closes. What is older is in [`dialect`]. Callers that speak SPDY
//! have a stream for each channel, see [`super::spdy::command`].

mod dialect;

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, close_code};
use axum::extract::{FromRequestParts, WebSocketUpgrade};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{Sink, SinkExt, Stream, StreamExt};
use http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::stdio::Stdio;
use super::{ApiError, ExecStreams, spdy};

/// Channel of the command's input.
pub const STDIN: u8 = 0;
/// Channel of its output.
pub const STDOUT: u8 = 1;
/// Channel of its errors.
pub const STDERR: u8 = 2;
/// Channel of the result.
pub const STATUS: u8 = 3;
/// Channel of the terminal's size.
pub const RESIZE: u8 = 4;
/// Channel that closes others.
pub const CLOSE: u8 = 255;

/// Bytes read at once from the command.
const CHUNK: usize = 16 * 1024;
/// Bytes of a message that is accepted.
const MAX_MESSAGE: usize = 1 << 20;
/// What is read of a connection at once; as much is set to zero for each connection.
const READ_BUFFER: usize = 32 * 1024;
/// How long output may be silent after the command's end before it is given up: a child that the command left behind can
/// hold the pipe for ever.
const DRAIN: Duration = Duration::from_secs(1);

/// Bytes of a complaint that are passed on.
const MAX_COMPLAINT: u64 = 1024;

/// What the caller sends.
pub type Input = Pin<Box<dyn Stream<Item = Result<Message, axum::Error>> + Send>>;
/// The way to the caller.
pub type Output = Pin<Box<dyn Sink<Message, Error = axum::Error> + Send>>;

/// Which streams a caller has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// It sends input.
    pub stdin: bool,
    /// It wants output.
    pub stdout: bool,
    /// It wants errors.
    pub stderr: bool,
    /// It has a terminal.
    pub tty: bool,
}

impl Wanted {
    /// How many streams these are, with that for the result.
    pub fn streams(self) -> usize {
        1 + [self.stdin, self.stdout, self.stderr, self.tty].into_iter().filter(|wanted| *wanted).count()
    }
}

/// Goes on as a WebSocket, or in SPDY where the caller asks for that, and hands both directions to `then`.
///
/// # Errors
/// When the request is for neither, or there is no common protocol.
pub async fn upgrade<F, R>(
    parts: &mut Parts,
    what: &str,
    wanted: Wanted,
    then: F,
) -> Result<Response, ApiError>
where
    F: FnOnce(Output, Input) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    if spdy::is_asked_for(&parts.headers) {
        return spdy::upgrade(parts, &[spdy::command::PROTOCOL], async move |connection| {
            if let Some((output, input)) = spdy::command::channels(connection, wanted).await {
                then(output, input).await;
            }
        });
    }
    let upgrade = websocket(parts, what).await?;
    let (upgrade, dialect) = dialect::negotiate(parts, upgrade)?;
    Ok(upgrade.on_upgrade(async move |socket| {
        let (sink, stream) = socket.split();
        let (output, input) = dialect.translate(Box::pin(sink), Box::pin(stream));
        then(output, input).await;
    }))
}

/// The request as one for a WebSocket.
///
/// # Errors
/// When it is none; `what` is the verb of the command line that would have made one.
pub async fn websocket(parts: &mut Parts, what: &str) -> Result<WebSocketUpgrade, ApiError> {
    WebSocketUpgrade::from_request_parts(parts, &()).await.map_err(|_| {
        ApiError::bad_request(format!(
            "{what} needs an upgrade to a WebSocket or to SPDY/3.1 (kubectl, or berth {what})"
        ))
    })
}

/// Settles the protocol of an upgrade.
pub fn negotiate(upgrade: WebSocketUpgrade) -> Result<WebSocketUpgrade, ApiError> {
    let upgrade = upgrade
        .protocols(["v5.channel.k8s.io", "v4.channel.k8s.io"])
        .max_message_size(MAX_MESSAGE)
        .read_buffer_size(READ_BUFFER)
        .max_frame_size(MAX_MESSAGE);
    if upgrade.selected_protocol().is_none() {
        return Err(ApiError::bad_request(
            "unable to upgrade: no common protocol, want v5.channel.k8s.io or v4.channel.k8s.io",
        ));
    }
    Ok(upgrade)
}

/// Sends the result and says goodbye. A caller that has gone misses nothing.
pub async fn finish(sink: &mut Output, status: &Value) {
    let _ = sink.send(frame(STATUS, status.to_string().as_bytes())).await;
    // kubectl takes a close without this code for a broken connection.
    let close = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
    let _ = sink.send(Message::Close(Some(close))).await;
}

/// A message of one channel.
pub fn frame(channel: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// The end of the command, or of the streams before it.
fn ending(
    exit: BoxFuture<'static, Result<i32, String>>,
    complaint: Option<OwnedFd>,
) -> BoxFuture<'static, Result<i32, String>> {
    let Some(pipe) = complaint.and_then(|fd| Receiver::from_owned_fd(fd).ok()) else { return exit };
    Box::pin(async move {
        let complaint = async {
            let mut text = String::new();
            let _ = pipe.take(MAX_COMPLAINT).read_to_string(&mut text).await;
            if text.is_empty() { std::future::pending().await } else { text }
        };
        tokio::select! {
            biased;
            text = complaint => Err(text.trim_end().to_owned()),
            exit = exit => exit,
        }
    })
}

/// The terminal's size, if the message is one.
pub fn size_of(message: &Message) -> Option<(u16, u16)> {
    let Message::Binary(bytes) = message else { return None };
    let (&RESIZE, data) = bytes.split_first()? else { return None };
    serde_json::from_slice::<Size>(data).ok().map(|size| (size.width, size.height))
}

/// Both directions until the command has ended or the caller has gone.
pub async fn run(sink: &mut Output, stream: Input, streams: ExecStreams) {
    let exit = ending(streams.exit, streams.complaint);
    let ends = match Ends::new(streams.stdin, streams.stdout, streams.stderr, streams.console, streams.window)
    {
        Ok(ends) => ends,
        Err(error) => {
            let error = ApiError::internal(format!("open the command's streams: {error}"));
            return finish(sink, &error.status()).await;
        }
    };
    let (sender, mut output) = mpsc::channel::<(u8, Bytes)>(4);
    let mut readers = JoinSet::new();
    for (channel, from) in ends.outputs {
        readers.spawn(pump(channel, from, sender.clone()));
    }
    drop(sender);
    let (ended, ending) = oneshot::channel();
    let mut input = tokio::spawn(receive(stream, ends.input, ends.console, ending));
    if let Some(exit) = pass_on(sink, &mut output, &mut input, exit).await {
        drop(ended);
        finish(sink, &outcome(exit)).await;
        // What the caller still sends is read, or it would see a broken connection instead of the result.
        let _ = tokio::time::timeout(DRAIN, &mut input).await;
    }
    input.abort();
}

/// Sends output until the command's end; gives its exit, none when the caller has gone.
async fn pass_on(
    sink: &mut Output,
    output: &mut mpsc::Receiver<(u8, Bytes)>,
    input: &mut JoinHandle<()>,
    mut exit: BoxFuture<'static, Result<i32, String>>,
) -> Option<Result<i32, String>> {
    let mut result = None;
    loop {
        tokio::select! {
            biased;
            chunk = output.recv() => match (chunk, result.take()) {
                (Some((channel, bytes)), known) => {
                    result = known;
                    sink.send(frame(channel, &bytes)).await.ok()?;
                }
                // Every output has ended; only the result may be missing.
                (None, Some(known)) => return Some(known),
                (None, None) => return tokio::select! { code = &mut exit => Some(code), _ = &mut *input => None },
            },
            code = &mut exit, if result.is_none() => result = Some(code),
            _ = &mut *input => return None,
            () = tokio::time::sleep(DRAIN), if result.is_some() => return result,
        }
    }
}

/// The command's ends, by what is done with them.
struct Ends {
    input: Option<Arc<Stdio>>,
    outputs: Vec<(u8, Arc<Stdio>)>,
    console: Option<Arc<Stdio>>,
}

impl Ends {
    fn new(
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
        console: Option<OwnedFd>,
        window: Option<OwnedFd>,
    ) -> io::Result<Ends> {
        let open = |fd, interest| Stdio::new(fd, interest).map(Arc::new);
        let console = console.map(|fd| open(fd, Interest::READABLE | Interest::WRITABLE)).transpose()?;
        let input = stdin.map(|fd| open(fd, Interest::WRITABLE)).transpose()?;
        let mut outputs = Vec::new();
        for (channel, fd) in [(STDOUT, stdout), (STDERR, stderr)] {
            if let Some(fd) = fd {
                outputs.push((channel, open(fd, Interest::READABLE)?));
            }
        }
        outputs.extend(console.iter().map(|console| (STDOUT, console.clone())));
        let window = window.map(|fd| open(fd, Interest::WRITABLE)).transpose()?;
        Ok(Ends { input: input.or_else(|| console.clone()), outputs, console: console.or(window) })
    }
}

/// Reads one output until its end.
async fn pump(channel: u8, from: Arc<Stdio>, to: mpsc::Sender<(u8, Bytes)>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..count) else { return };
        if to.send((channel, Bytes::copy_from_slice(bytes))).await.is_err() {
            return;
        }
    }
}

/// The terminal's size as client-go sends it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Handles what the caller sends, until it goes; once the command has ended its input is thrown away. What the caller sends
/// wrongly disturbs nothing else.
async fn receive(
    mut stream: Input,
    mut input: Option<Arc<Stdio>>,
    console: Option<Arc<Stdio>>,
    mut ended: oneshot::Receiver<()>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return,
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) => continue,
        };
        match (bytes.first().copied(), bytes.get(1..).unwrap_or_default()) {
            (Some(STDIN), data) => {
                let failed = match &input {
                    Some(input) => tokio::select! {
                        result = input.write_all(data) => result.is_err(),
                        _ = &mut ended => true,
                    },
                    None => false,
                };
                // The command does not read any more; it may still write.
                if failed {
                    input = None;
                }
            }
            (Some(CLOSE), [STDIN]) => input = None,
            (Some(RESIZE), data) => {
                if let (Some(console), Ok(size)) = (&console, serde_json::from_slice::<Size>(data)) {
                    let _ = console.resize(size.height, size.width);
                }
            }
            _ => {}
        }
    }
}

/// The `Status` for a command's end.
fn outcome(exit: Result<i32, String>) -> Value {
    match exit {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(why) => ApiError::internal(why).status(),
    }
}
