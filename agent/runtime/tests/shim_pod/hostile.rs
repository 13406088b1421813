//! Clients that do not keep to the protocol.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::harness::{PATIENCE, Pod};

fn raw(pod: &Pod) -> UnixStream {
    let stream = UnixStream::connect(pod.dir.join("shim.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn send(stream: &mut UnixStream, text: &str) {
    stream.write_all(&(text.len() as u32).to_le_bytes()).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
}

fn receive(stream: &mut UnixStream) -> Value {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut text = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn closed(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn hello(stream: &mut UnixStream) {
    send(stream, &json!({"id": 1, "call": {"hello": {"min_version": 1, "max_version": 1}}}).to_string());
    assert_eq!(receive(stream)["reply"]["result"]["welcome"]["version"], 1);
}

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let pod = Pod::new().await;
    for garbage in
        [&b"\xff\xff\xff\xff"[..], b"\x01\0\0\0x", b"\x02\0\0\0{}", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0"]
    {
        let mut stream = raw(&pod);
        stream.write_all(garbage).unwrap();
        assert!(closed(&mut stream), "{garbage:?}");
    }
    pod.client.list().await.unwrap();
}

#[tokio::test]
async fn versions_are_negotiated() {
    let pod = Pod::new().await;
    let mut stream = raw(&pod);
    send(&mut stream, &json!({"id": 5, "call": {"list": {}}}).to_string());
    assert_eq!(receive(&mut stream)["reply"]["result"]["error"]["kind"], "invalid");
    send(&mut stream, &json!({"id": 6, "call": {"hello": {"min_version": 7, "max_version": 9}}}).to_string());
    let reply = receive(&mut stream);
    assert_eq!(reply["reply"]["result"]["error"]["kind"], "unsupported");
    let message = reply["reply"]["result"]["error"]["message"].as_str().unwrap();
    assert_eq!(message, "the shim speaks protocol 1 to 1, the client 7 to 9");
    // A newer client that still speaks ours, and knows fields and requests that we do not.
    let newer =
        json!({"id": 7, "new": 1, "call": {"hello": {"min_version": 1, "max_version": 9, "also": []}}});
    send(&mut stream, &newer.to_string());
    assert_eq!(receive(&mut stream)["reply"]["result"]["welcome"]["version"], 1);
    send(&mut stream, &json!({"id": 8, "call": {"levitate": {"height": 1}}}).to_string());
    let reply = receive(&mut stream);
    assert_eq!(reply["reply"]["id"], 8);
    assert_eq!(reply["reply"]["result"]["error"]["kind"], "unsupported");
    send(&mut stream, &json!({"id": 9, "call": {"list": {"filter": "x"}}}).to_string());
    assert_eq!(receive(&mut stream)["reply"]["result"]["list"], json!([]));
}

#[tokio::test]
async fn byte_by_byte_and_all_at_once() {
    let pod = Pod::new().await;
    let mut stream = raw(&pod);
    hello(&mut stream);
    let text = json!({"id": 2, "call": {"list": {}}}).to_string();
    let mut frame = (text.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    for byte in &frame {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(receive(&mut stream)["reply"]["id"], 2);
    stream.write_all(&frame.repeat(100)).unwrap();
    for _ in 0..100 {
        assert_eq!(receive(&mut stream)["reply"]["id"], 2);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_and_disturbs_nobody() {
    let pod = Pod::new().await;
    for name in 0..30 {
        pod.create(&pod.container(&format!("c{name}"), "true")).await;
    }
    let mut deaf = raw(&pod);
    hello(&mut deaf);
    deaf.set_write_timeout(Some(PATIENCE)).unwrap();
    let text = json!({"id": 2, "call": {"list": {}}}).to_string();
    let mut frame = (text.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    // Each answer is some kilobytes long.
    let mut broken = false;
    for _ in 0..20_000 {
        if deaf.write_all(&frame).is_err() {
            broken = true;
            break;
        }
    }
    assert!(broken, "it was never dropped");
    assert_eq!(pod.client.list().await.unwrap().len(), 30);
}

#[tokio::test]
async fn too_many_clients() {
    let pod = Pod::new().await;
    let crowd: Vec<_> = (0..100).map(|_| raw(&pod)).collect();
    pod.client.list().await.unwrap();
    drop(crowd);
    let (client, _events) = pod.connect().await;
    client.list().await.unwrap();
}
