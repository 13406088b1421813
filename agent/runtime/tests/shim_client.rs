//! The client against a shim that is slow, strange or dies.
#![allow(clippy::unwrap_used)]

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use berth_runtime::shim::client::{Client, Error};
use berth_runtime::shim::proto::{Event, FailureKind};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

struct Fake {
    stream: UnixStream,
}

impl Fake {
    /// Listens, and plays the shim's part in a thread.
    fn listen(play: impl FnOnce(Fake) + Send + 'static) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let sock = dir.path().join("shim.sock");
        let listener = UnixListener::bind(&sock).unwrap();
        let thread = std::thread::spawn(move || play(Fake { stream: listener.accept().unwrap().0 }));
        (dir, sock, thread)
    }

    fn receive(&mut self) -> Value {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).unwrap();
        let mut text = vec![0; u32::from_le_bytes(length) as usize];
        self.stream.read_exact(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        self.stream.write_all(&(text.len() as u32).to_le_bytes()).unwrap();
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn send_with_fd(&mut self, message: &Value, fd: i32) {
        let text = message.to_string();
        let mut frame = (text.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(text.as_bytes());
        let slices = [IoSlice::new(&frame)];
        let rights = [ControlMessage::ScmRights(&[fd])];
        sendmsg::<()>(self.stream.as_raw_fd(), &slices, &rights, MsgFlags::empty(), None).unwrap();
    }

    fn welcome(&mut self) {
        let hello = self.receive();
        let result = json!({"welcome": {"version": 1, "pid": 4711, "mood": "good"}});
        self.send(&json!({"reply": {"id": hello["id"], "result": result, "since": "then"}}));
    }
}

#[tokio::test]
async fn a_lost_connection_fails_what_waits() {
    let (_dir, sock, thread) = Fake::listen(|mut fake| {
        fake.welcome();
        fake.receive();
        fake.receive();
    });
    let (client, mut events) = Client::connect(&sock).await.unwrap();
    assert_eq!(client.welcome().pid, 4711);
    let other = client.clone();
    let waiting = tokio::spawn(async move { other.wait_exec(1).await });
    assert!(matches!(client.list().await, Err(Error::Lost { what: "list" })));
    assert!(matches!(waiting.await.unwrap(), Err(Error::Lost { what: "wait_exec" })));
    assert!(events.recv().await.is_none());
    assert!(matches!(client.list().await, Err(Error::Lost { .. })));
    thread.join().unwrap();
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_dropped_with_its_descriptors() {
    let (_dir, sock, thread) = Fake::listen(|mut fake| {
        fake.welcome();
        let late = fake.receive();
        let next = fake.receive();
        let (kept, given) = std::io::pipe().unwrap();
        let mut kept = kept;
        fake.send_with_fd(
            &json!({"reply": {"id": late["id"], "fds": 1, "result": {"done": {}}}}),
            given.as_raw_fd(),
        );
        drop(given);
        let null = std::fs::File::open("/dev/zero").unwrap();
        fake.send_with_fd(
            &json!({"reply": {"id": next["id"], "fds": 1, "result": {"done": {}}}}),
            null.as_raw_fd(),
        );
        // Its end is seen when the client has closed the descriptor that nobody wanted.
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
    });
    let (client, _events) = Client::connect(&sock).await.unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(50), client.connect_tcp(1)).await;
    assert!(asked.is_err());
    let socket = client.connect_tcp(2).await.unwrap();
    let name = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    assert_eq!(name.to_str(), Some("/dev/zero"));
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn what_a_newer_shim_says_is_passed_over() {
    let (_dir, sock, thread) = Fake::listen(|mut fake| {
        fake.welcome();
        fake.send(&json!({"event": {"levitated": {"height": 3}}}));
        fake.send(&json!({"gossip": true}));
        let exit = json!({"code": 3, "finished_at": "2026-01-02T03:04:05Z", "new": []});
        fake.send(&json!({"event": {"exited": {"id": "one", "exit": exit}}}));
        let list = fake.receive();
        fake.send(&json!({"reply": {"id": list["id"], "result": {"scroll": []}}}));
        let list = fake.receive();
        fake.send(
            &json!({"reply": {"id": list["id"], "result": {"error": {"kind": "boredom", "message": "no"}}}}),
        );
        let list = fake.receive();
        fake.send(&json!({"reply": {"id": list["id"], "result": {"done": {}}}}));
        let list = fake.receive();
        fake.send(&json!({"reply": {"id": list["id"], "result": {"list": []}}}));
    });
    let (client, mut events) = Client::connect(&sock).await.unwrap();
    let Event::Exited { id, exit } = events.recv().await.unwrap() else { panic!("another event") };
    assert_eq!((id.as_str(), exit.code, exit.oom_killed), ("one", 3, false));
    assert_eq!(client.list().await.unwrap_err().kind(), Some(FailureKind::Unsupported));
    let strange = client.list().await.unwrap_err();
    assert_eq!((strange.kind(), strange.to_string()), (Some(FailureKind::Internal), "no".to_owned()));
    assert!(matches!(client.list().await, Err(Error::Unexpected { what: "list" })));
    assert_eq!(client.list().await.unwrap(), []);
    thread.join().unwrap();
}

#[tokio::test]
async fn no_common_protocol() {
    let (_dir, sock, thread) = Fake::listen(|mut fake| {
        let hello = fake.receive();
        let error =
            json!({"kind": "unsupported", "message": "the shim speaks protocol 7 to 9, the client 1 to 1"});
        fake.send(&json!({"reply": {"id": hello["id"], "result": {"error": error}}}));
    });
    let error = Client::connect(&sock).await.unwrap_err();
    assert_eq!(error.to_string(), "the shim speaks protocol 7 to 9, the client 1 to 1");
    thread.join().unwrap();
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let (_dir, sock, thread) = Fake::listen(|mut fake| {
        fake.welcome();
        fake.stream.write_all(&[0xff; 16]).unwrap();
        // Until the client hangs up.
        let _ = fake.stream.read_to_end(&mut Vec::new());
    });
    let (client, mut events) = Client::connect(&sock).await.unwrap();
    assert!(events.recv().await.is_none());
    assert!(matches!(client.list().await, Err(Error::Lost { .. })));
    thread.join().unwrap();
}

#[tokio::test]
async fn a_shim_that_never_answers() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (_dir, sock, thread) = Fake::listen(move |mut fake| {
        fake.welcome();
        let _ = held.recv();
    });
    let (client, _events) = Client::connect(&sock).await.unwrap();
    // From here on only the client's own limit passes.
    tokio::time::pause();
    let error = client.list().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { what: "list", .. }), "{error}");
    drop(release);
    thread.join().unwrap();
}
