//! `pods/NAME/portforward`: in SPDY (see [`super::spdy::ports`]), directly or inside of a WebSocket as kubectl has it, or
//! over a WebSocket alone.
//!
//! The protocol of the latter is kubelet's: the query names the ports; the port at place N has channel 2N for data and 2N+1 for errors,
//! and the first message that the server sends on each is the port's number, two bytes, little-endian. One connection is
//! made to each port. With `v5.channel.k8s.io` either side closes a direction of one with channel 255, as in exec.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::request::Parts;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::params::Params;
use super::remote::frame;
use super::write::Target;
use super::{Api, ApiError, Backend, remote, spdy};

const CLOSE: u8 = 255;
/// The WebSocket protocol that carries SPDY, which kubectl asks for.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Bytes read at once from a pod's socket.
const CHUNK: usize = 32 * 1024;
/// Channels are numbered by a byte, two for each port, and 255 is taken.
const MAX_PORTS: usize = 127;

/// Upgrades the connection and connects it to the ports.
pub async fn respond(
    api: &Api,
    target: &Target,
    params: &Params,
    parts: &mut Parts,
) -> Result<Response, ApiError> {
    target.find(api)?;
    let (backend, target) = (api.backend.clone(), target.clone());
    if spdy::is_asked_for(&parts.headers) {
        return spdy::upgrade(parts, &[spdy::ports::PROTOCOL], |connection| {
            spdy::ports::serve(connection, backend, target)
        });
    }
    let upgrade = remote::websocket(parts, "port-forward").await?.protocols([TUNNEL]);
    if upgrade.selected_protocol().is_some() {
        return Ok(upgrade.on_upgrade(async move |socket| {
            let connection = spdy::Connection::new(spdy::tunnel::open(socket));
            spdy::ports::serve(connection, backend, target).await;
        }));
    }
    let ports = ports(params)?;
    let upgrade = remote::negotiate(upgrade)?;
    let can_close = upgrade.selected_protocol().is_some_and(|p| p.as_bytes().starts_with(b"v5"));
    Ok(upgrade.on_upgrade(async move |socket| forward(backend, target, ports, can_close, socket).await))
}

/// The ports of the query: `ports=80&ports=81` or `ports=80,81`.
fn ports(params: &Params) -> Result<Vec<u16>, ApiError> {
    let bad = |word: &str| ApiError::bad_request(format!("invalid port {word:?}, want 1 to 65535"));
    let words = params.all("ports").flat_map(|list| list.split(','));
    let ports = words
        .map(|word| word.parse().ok().filter(|port| *port != 0).ok_or_else(|| bad(word)))
        .collect::<Result<Vec<u16>, _>>()?;
    match ports.len() {
        0 => Err(ApiError::bad_request("query parameter \"ports\" is required")),
        1..=MAX_PORTS => Ok(ports),
        many => Err(ApiError::bad_request(format!("{many} ports are more than {MAX_PORTS}"))),
    }
}

/// A socket of the pod for tokio.
fn stream_of(fd: OwnedFd) -> std::io::Result<TcpStream> {
    let stream = std::net::TcpStream::from(fd);
    stream.set_nonblocking(true)?;
    // What a person types should not wait for more of it.
    stream.set_nodelay(true)?;
    TcpStream::from_std(stream)
}

/// A connection to a port of the pod, or what to tell the client of why there is none.
pub async fn connect(backend: &dyn Backend, target: &Target, port: u16) -> Result<TcpStream, String> {
    let dialed = backend.dial(&target.namespace, &target.name, port).await;
    let connected = dialed.and_then(|fd| stream_of(fd).map_err(|e| e.to_string()));
    connected.map_err(|why| format!("error forwarding port {port} to pod {}: {why}", target.name))
}

/// What is to be sent: bytes of a channel, or the end of one.
enum Piece {
    Data(u8, Bytes),
    End(u8),
}

async fn forward(
    backend: Arc<dyn Backend>,
    target: Target,
    ports: Vec<u16>,
    can_close: bool,
    socket: WebSocket,
) {
    let (mut sink, stream) = socket.split();
    let (sender, mut pieces) = mpsc::channel(4);
    let mut writers = HashMap::new();
    for (at, port) in (0u8..).step_by(2).zip(&ports) {
        for channel in [at, at + 1] {
            if sink.send(frame(channel, &port.to_le_bytes())).await.is_err() {
                return;
            }
        }
        match connect(backend.as_ref(), &target, *port).await {
            Ok(socket) => {
                let (reader, writer) = socket.into_split();
                tokio::spawn(read(at, reader, sender.clone()));
                writers.insert(at, writer);
            }
            Err(text) => drop(sink.send(frame(at + 1, text.as_bytes())).await),
        }
    }
    drop(sender);
    let mut input = tokio::spawn(write(stream, writers));
    loop {
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            _ = &mut input => return,
        };
        let sent = match piece {
            Some(Piece::Data(channel, bytes)) => sink.send(frame(channel, &bytes)).await,
            Some(Piece::End(channel)) if can_close => sink.send(frame(CLOSE, &[channel])).await,
            Some(Piece::End(_)) => Ok(()),
            // Every port has said its last.
            None => break,
        };
        if sent.is_err() {
            break;
        }
    }
    goodbye(&mut sink).await;
    input.abort();
}

async fn goodbye(sink: &mut SplitSink<WebSocket, Message>) {
    let close = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
    // A caller that has gone misses nothing.
    let _ = sink.send(Message::Close(Some(close))).await;
}

async fn read(channel: u8, mut from: OwnedReadHalf, to: mpsc::Sender<Piece>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..count) else { return };
        if to.send(Piece::Data(channel, Bytes::copy_from_slice(bytes))).await.is_err() {
            return;
        }
    }
    let _ = to.send(Piece::End(channel)).await;
}

/// Hands on what the caller sends, until it goes. A port that does not take it holds up the others of this connection.
async fn write(mut stream: SplitStream<WebSocket>, mut writers: HashMap<u8, OwnedWriteHalf>) {
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return,
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) => continue,
        };
        match bytes.split_first() {
            // Dropping the half closes the direction.
            Some((&CLOSE, &[channel])) => drop(writers.remove(&channel)),
            Some((channel, data)) => {
                if let Some(writer) = writers.get_mut(channel)
                    && writer.write_all(data).await.is_err()
                {
                    writers.remove(channel);
                }
            }
            None => {}
        }
    }
}
