//! `exec` and `attach` over SPDY, `v4.channel.k8s.io`: the client opens a stream for each direction, which its header
//! `streamtype` names. To [`remote`] they look like the channels of a WebSocket.

use std::time::Duration;

use axum::extract::ws::Message;
use futures::{Stream, StreamExt, stream};

use super::{Connection, Reader, Writer};
use crate::api::remote::{self, Input, Output, Wanted};

/// The protocol's name.
pub const PROTOCOL: &str = "v4.channel.k8s.io";
/// How long the client may take to open all its streams.
const OPENING: Duration = Duration::from_secs(30);

/// The streams of one command, as soon as the client has opened them; none if it does not.
pub async fn channels(mut connection: Connection, wanted: Wanted) -> Option<(Output, Input)> {
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    let opened = async {
        while writers.len() < wanted.streams() {
            let stream = connection.accept().await?;
            let channel = match stream.headers.get("streamtype") {
                Some("error") => remote::STATUS,
                Some("stdin") => remote::STDIN,
                Some("stdout") => remote::STDOUT,
                Some("stderr") => remote::STDERR,
                Some("resize") => remote::RESIZE,
                // Dropping it closes it.
                _ => continue,
            };
            readers.push((channel, stream.reader));
            writers.push((channel, stream.writer));
        }
        Some(())
    };
    tokio::time::timeout(OPENING, opened).await.ok()??;
    Some((output(writers), input(connection, readers)))
}

fn input(mut connection: Connection, readers: Vec<(u8, Reader)>) -> Input {
    let incoming = readers.into_iter().map(|(channel, reader)| messages(channel, reader).boxed());
    // The client's leaving ends all of them, and this one after them: until then there might be more.
    let over = stream::once(async move { while connection.accept().await.is_some() {} });
    let over = over.filter_map(|()| std::future::ready(None)).boxed();
    Box::pin(stream::select_all(incoming.chain([over])))
}

fn messages(channel: u8, reader: Reader) -> impl Stream<Item = Result<Message, axum::Error>> + Send {
    let data = stream::unfold(reader, |mut reader| async move { Some((reader.read().await?, reader)) });
    let data = data.map(move |bytes| Ok(remote::frame(channel, &bytes)));
    data.chain(stream::once(async move { Ok(remote::frame(remote::CLOSE, &[channel])) }))
}

fn output(writers: Vec<(u8, Writer)>) -> Output {
    let writers = futures::sink::unfold(writers, |mut writers, message: Message| async move {
        match message {
            Message::Binary(bytes) => {
                if let Some((channel, data)) = bytes.split_first()
                    && let Some((_, writer)) = writers.iter_mut().find(|(has, _)| has == channel)
                {
                    // A client that wants no more of one stream may want the others.
                    let _ = writer.write(data).await;
                }
            }
            Message::Close(_) => {
                for (_, writer) in writers.drain(..) {
                    writer.close().await;
                }
            }
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) => {}
        }
        Ok(writers)
    });
    Box::pin(writers)
}
