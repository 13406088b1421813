//! The command's streams over the WebSocket (see `api::exec` for the protocol).
//!
//! This goes round the kube crate's `AttachedProcess`: that one sends input and takes output in one loop, so that a command which
//! writes while it reads (`cat < big-file`) comes to a standstill once both directions are full.

use std::io::{self, Write as _};

use anyhow::{Context as _, anyhow};
use futures::stream::SplitSink;
use futures::{SinkExt as _, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::client::Connection;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::terminal;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Bytes of input read at once.
const CHUNK: usize = 32 * 1024;

/// Our ends of the command's streams.
pub struct Streams {
    /// Where its input comes from, if it gets any.
    pub stdin: Option<Box<dyn io::Read + Send>>,
    /// Where its output goes.
    pub stdout: Box<dyn io::Write + Send>,
    /// It is on a terminal, whose size is that of ours.
    pub tty: bool,
}

impl Streams {
    /// Those of this process.
    pub fn own(stdin: bool, tty: bool) -> Streams {
        let stdin = stdin.then(|| Box::new(io::stdin()) as Box<dyn io::Read + Send>);
        Streams { stdin, stdout: Box::new(io::stdout()), tty }
    }
}

/// Passes input and output on until the command has ended; gives its result.
pub async fn run(connection: Connection, streams: Streams) -> anyhow::Result<Status> {
    let can_close = connection.supports_stream_close();
    let (sink, mut stream) = connection.into_stream().split();
    let (sender, outgoing) = mpsc::channel(2);
    let sending = tokio::spawn(send_all(sink, outgoing));
    if streams.tty {
        tokio::spawn(send_sizes(sender.clone()));
    }
    if let Some(input) = streams.stdin {
        // Reading a terminal cannot be interrupted, so it has a thread that may be left behind.
        let sender = sender.clone();
        std::thread::spawn(move || send_input(input, &sender, can_close));
    }
    // Without input the connection must not be taken for ended, so a sender is kept.
    let _keep = sender;
    let result = receive(&mut stream, streams.stdout).await;
    sending.abort();
    result
}

async fn receive<S>(stream: &mut S, mut out: Box<dyn io::Write + Send>) -> anyhow::Result<Status>
where
    S: futures::Stream<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
{
    while let Some(message) = stream.next().await {
        let Message::Binary(bytes) = message.context("the connection to the agent broke")? else { continue };
        if let Passed::Ended(status) = pass(&bytes, &mut out)? {
            return Ok(*status);
        }
    }
    Err(anyhow!("the connection to the agent ended before the command did"))
}

/// What became of a message.
pub enum Passed {
    /// It was output, or nothing that concerns us.
    On,
    /// The command has ended like this.
    Ended(Box<Status>),
}

/// Writes the output that is in a message to where it belongs.
pub fn pass(message: &[u8], out: &mut dyn io::Write) -> anyhow::Result<Passed> {
    let Some((channel, data)) = message.split_first() else { return Ok(Passed::On) };
    match *channel {
        STDOUT => {
            out.write_all(data)?;
            out.flush()?;
        }
        STDERR => io::stderr().lock().write_all(data)?,
        STATUS => return Ok(Passed::Ended(serde_json::from_slice(data)?)),
        _ => {}
    }
    Ok(Passed::On)
}

/// Sends what is to be sent; a connection that breaks shows on the receiving side.
async fn send_all<T>(mut sink: SplitSink<WebSocketStream<T>, Message>, mut outgoing: mpsc::Receiver<Vec<u8>>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(bytes) = outgoing.recv().await {
        if sink.send(Message::Binary(bytes.into())).await.is_err() {
            return;
        }
    }
}

/// Sends our input, and its end if the protocol can say so.
fn send_input(mut input: Box<dyn io::Read + Send>, sender: &mpsc::Sender<Vec<u8>>, can_close: bool) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = input.read(&mut buffer) {
        let mut bytes = vec![STDIN];
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if sender.blocking_send(bytes).is_err() {
            return;
        }
    }
    if can_close {
        // When nobody takes it any more, the command has ended.
        let _ = sender.blocking_send(vec![CLOSE, STDIN]);
    }
}

/// Tells the command our terminal's size, now and whenever it changes.
async fn send_sizes(sender: mpsc::Sender<Vec<u8>>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Some((columns, rows)) = terminal::size() {
            let mut bytes = vec![RESIZE];
            bytes.extend_from_slice(json!({"Width": columns, "Height": rows}).to_string().as_bytes());
            if sender.send(bytes).await.is_err() {
                return;
            }
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}
