//! SPDY inside of a WebSocket: each binary message carries some of its bytes (KEP-4006, "WebSocket tunneling").

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Bytes under way in each direction.
const ROOM: usize = 64 * 1024;
/// Bytes put into one message.
const CHUNK: usize = 32 * 1024;

/// The bytes of a WebSocket's messages as one stream. The socket is closed when that is dropped.
pub fn open(socket: WebSocket) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(ROOM);
    let (mut from, mut to) = tokio::io::split(theirs);
    let (mut sink, mut messages) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            let sent = match message {
                Message::Binary(bytes) => to.write_all(&bytes).await,
                Message::Close(_) => break,
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) => Ok(()),
            };
            if sent.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
            if sink.send(Message::Binary(bytes)).await.is_err() {
                return;
            }
        }
        let close = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
        // A caller that has gone misses nothing.
        let _ = sink.send(Message::Close(Some(close))).await;
    });
    ours
}
