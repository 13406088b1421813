//! Forwarding ports over SPDY, `portforward.k8s.io`: for each of its connections the client opens two streams, one for
//! errors and one for data, with the headers `streamtype`, `port` and `requestid`.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{Connection, Incoming, Reader, Writer};
use crate::api::Backend;
use crate::api::portforward::connect;
use crate::api::write::Target;

/// The protocol's name.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// Bytes read at once from a pod's socket.
const CHUNK: usize = 32 * 1024;
/// Streams that may wait for the other of their pair; a client opens both one right after the other.
const MAX_SINGLE: usize = 256;

/// Connects what the client opens to ports of the pod until it leaves.
pub async fn serve(mut connection: Connection, backend: Arc<dyn Backend>, target: Target) {
    let mut single: HashMap<String, Incoming> = HashMap::new();
    let mut connections = tokio::task::JoinSet::new();
    while let Some(stream) = connection.accept().await {
        while connections.try_join_next().is_some() {}
        let request = match Request::of(&stream) {
            Ok(request) => request,
            Err(why) => {
                tracing::debug!(why, "a stream to forward a port with was refused");
                refuse(stream.writer, &why).await;
                continue;
            }
        };
        match single.remove(&request.pair) {
            Some(other) if other.headers.get("streamtype") != stream.headers.get("streamtype") => {
                let (errors, data) = if request.is_data { (other, stream) } else { (stream, other) };
                let port = request.port;
                let (backend, target) = (backend.clone(), target.clone());
                connections.spawn(async move { forward(backend, target, port, errors.writer, data).await });
            }
            _ if single.len() < MAX_SINGLE => drop(single.insert(request.pair, stream)),
            _ => refuse(stream.writer, "too many streams without their other half").await,
        }
    }
}

/// What a stream is for.
struct Request {
    /// What both streams of one connection have in common.
    pair: String,
    port: u16,
    is_data: bool,
}

impl Request {
    fn of(stream: &Incoming) -> Result<Request, String> {
        let header = |name| stream.headers.get(name).filter(|value| !value.is_empty());
        let is_data = match header("streamtype") {
            Some("data") => true,
            Some("error") => false,
            Some(other) => return Err(format!("invalid stream type {other:?}")),
            None => return Err("\"streamType\" header is required".to_owned()),
        };
        let text = header("port").ok_or("\"port\" header is required")?;
        let port = text.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| format!("unable to parse {text:?} as a port"))?;
        // The first clients sent no number, but opened the stream for errors right before that for data.
        let pair = header("requestid").map_or_else(
            || format!("stream {}", if is_data { stream.id.saturating_sub(2) } else { stream.id }),
            |id| format!("request {id}"),
        );
        Ok(Request { pair, port, is_data })
    }
}

async fn refuse(mut errors: Writer, why: &str) {
    // Whoever has left misses nothing.
    let _ = errors.write(why.as_bytes()).await;
    errors.close().await;
}

/// One connection, until both directions have ended or the client wants no more of it.
async fn forward(backend: Arc<dyn Backend>, target: Target, port: u16, errors: Writer, data: Incoming) {
    let socket = match connect(backend.as_ref(), &target, port).await {
        Ok(socket) => socket,
        Err(text) => return refuse(errors, &text).await,
    };
    let (from, to) = socket.into_split();
    tokio::join!(send(data.reader, to), receive(from, data.writer));
    errors.close().await;
}

/// What the client sends. Dropping the half closes the direction.
async fn send(mut reader: Reader, mut to: OwnedWriteHalf) {
    while let Some(bytes) = reader.read().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What the pod sends.
async fn receive(mut from: OwnedReadHalf, mut writer: Writer) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = tokio::select! {
            count = from.read(&mut buffer) => count,
            () = writer.unwanted() => return,
        };
        match count.ok().and_then(|count| buffer.get(..count)).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) if writer.write(bytes).await.is_ok() => {}
            _ => return writer.close().await,
        }
    }
}
