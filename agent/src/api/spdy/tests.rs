//! Frames and header blocks, and a client of our own against the connection. kubectl itself is tested in e2e.
#![allow(clippy::unwrap_used)]

use bytes::{Buf, Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::frame::{self, Frame, HEAD, Head, Malformed};
use super::header::{Deflater, Inflater};
use super::{Connection, Incoming};

#[test]
fn header_blocks_share_one_compression() {
    let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
    for n in 0..50 {
        let id = n.to_string();
        let block = deflater.write(&[("streamtype", "data"), ("port", "80"), ("requestid", &id)]);
        let headers = inflater.read(&block).unwrap();
        assert_eq!((headers.get("port"), headers.get("requestid")), (Some("80"), Some(id.as_str())));
        assert_eq!(headers.get("other"), None);
    }
    let long = "x".repeat(40_000);
    let block = deflater.write(&[("Long", &long)]);
    assert_eq!(inflater.read(&block).unwrap().get("long"), Some(long.as_str()));
    assert_eq!(inflater.read(&deflater.write(&[])).unwrap().get("long"), None);
}

#[test]
fn blocks_without_the_dictionary_or_too_large_are_refused() {
    let mut plain = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut plain, &0u32.to_be_bytes()).unwrap();
    let block = plain.finish().unwrap();
    assert!(Inflater::new().read(&block).is_err(), "a stream that ends");
    let bomb = Deflater::new().write(&[("a", &"y".repeat(100_000))]);
    assert_eq!(Inflater::new().read(&bomb), Err(Malformed::Headers("too large")));
    let mut cut = Deflater::new().write(&[("streamtype", "data")]);
    cut.truncate(cut.len() / 2);
    assert!(Inflater::new().read(&cut).is_err());
}

proptest! {
    #[test]
    fn nothing_that_is_received_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0u16..12) {
        let head = [0x80, 3, 0, kind as u8, 1, 0, 0, bytes.len() as u8];
        let _ = frame::parse(Head::parse(&head).unwrap(), Bytes::from(bytes.clone()));
        let _ = Inflater::new().read(&bytes);
    }
}

/// The client's side of a connection.
struct Client {
    io: DuplexStream,
    deflater: Deflater,
}

impl Client {
    fn new() -> (Client, Connection) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        (Client { io: ours, deflater: Deflater::new() }, Connection::new(theirs))
    }

    async fn control(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
        let mut out = vec![0x80, 3, 0, kind, flags];
        out.extend(length);
        out.extend(payload);
        self.io.write_all(&out).await.unwrap();
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend([0; 6]);
        payload.extend(self.deflater.write(headers));
        self.control(1, 0, &payload).await;
    }

    async fn data(&mut self, id: u32, last: bool, bytes: &[u8]) {
        let mut out = BytesMut::new();
        frame::data(&mut out, id, last, bytes);
        self.io.write_all(&out).await.unwrap();
    }

    /// The next frame: its type (0 for data), its flags, its payload with the stream's number before data.
    async fn next(&mut self) -> (u8, u8, Vec<u8>) {
        let mut head = [0; HEAD];
        self.io.read_exact(&mut head).await.unwrap();
        let length = (&head[4..]).get_u32() & 0xff_ffff;
        let mut payload = vec![0; length as usize];
        self.io.read_exact(&mut payload).await.unwrap();
        if head[0] & 0x80 != 0 {
            (head[3], head[4], payload)
        } else {
            (0, head[4], [&head[..4], &payload].concat())
        }
    }
}

async fn pair() -> (Client, Connection, Incoming) {
    let (mut client, mut connection) = Client::new();
    client.open(1, &[("streamType", "data")]).await;
    let stream = connection.accept().await.unwrap();
    assert_eq!(client.next().await.0, 2, "the stream is accepted");
    assert_eq!(stream.headers.get("streamtype"), Some("data"));
    (client, connection, stream)
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_half_ends_alone() {
    let (mut client, _connection, mut stream) = pair().await;
    client.data(1, false, b"hello").await;
    client.data(1, true, b"").await;
    assert_eq!(stream.reader.read().await.as_deref(), Some(b"hello".as_slice()));
    assert_eq!(stream.reader.read().await, None);
    stream.writer.write(b"world").await.unwrap();
    assert_eq!(client.next().await, (0, 0, [&1u32.to_be_bytes()[..], b"world"].concat()));
    stream.writer.close().await;
    assert_eq!(client.next().await, (0, 1, 1u32.to_be_bytes().to_vec()));
}

#[tokio::test]
async fn a_stream_that_is_reset_is_over_in_both_directions() {
    let (mut client, _connection, mut stream) = pair().await;
    client.control(3, 0, &[0, 0, 0, 1, 0, 0, 0, 5]).await;
    assert_eq!(stream.reader.read().await, None);
    stream.writer.unwanted().await;
    stream.writer.write(b"x").await.unwrap_err();
    drop(stream);
    client.control(6, 0, &7u32.to_be_bytes()).await;
    assert_eq!(
        client.next().await,
        (6, 0, 7u32.to_be_bytes().to_vec()),
        "nothing but the ping's answer came"
    );
}

#[tokio::test]
async fn everybody_sees_that_the_client_has_left() {
    let (client, mut connection, mut stream) = pair().await;
    drop(client);
    assert_eq!(stream.reader.read().await, None);
    stream.writer.unwanted().await;
    assert!(connection.accept().await.is_none());
}

#[tokio::test]
async fn a_half_that_is_dropped_is_closed() {
    let (mut client, _connection, stream) = pair().await;
    drop(stream);
    assert_eq!(client.next().await, (0, 1, 1u32.to_be_bytes().to_vec()));
}

#[tokio::test]
async fn data_for_no_stream_is_answered_with_a_reset() {
    let (mut client, _connection) = Client::new();
    client.data(9, false, b"?").await;
    assert_eq!(client.next().await, (3, 0, [9u32.to_be_bytes(), 2u32.to_be_bytes()].concat()));
}

#[tokio::test]
async fn who_breaks_the_protocol_is_told_goodbye() {
    for (kind, payload) in [(1, vec![0, 0, 0, 2, 0, 0, 0, 0, 0, 0]), (1, vec![1]), (3, vec![])] {
        let (mut client, mut connection) = Client::new();
        client.control(kind, 0, &payload).await;
        assert!(connection.accept().await.is_none());
        assert_eq!(client.next().await.0, 7, "GOAWAY");
    }
    let frame = parse_version(2);
    assert_eq!(frame, Err(Malformed::Version(2)));
}

fn parse_version(version: u8) -> Result<Frame, Malformed> {
    frame::parse(Head::parse(&[0x80, version, 0, 6, 0, 0, 0, 4])?, Bytes::from_static(&[0; 4]))
}
