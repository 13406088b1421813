//! Processes inside running containers, terminals and attached clients.

use std::os::fd::OwnedFd;
use std::time::Duration;

use berth_runtime::shim::client::{self, ExecSession};
use berth_runtime::shim::proto::{ExecRequest, FailureKind};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, unix::AsyncFd};
use tokio::net::unix::pipe;

use crate::harness::{PATIENCE, Pod, exists, until};

fn request(args: &[&str]) -> ExecRequest {
    let process =
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": ["PATH=/bin", "TERM=xterm"]});
    let process = serde_json::from_value(process).unwrap();
    ExecRequest { container_id: "one".to_owned(), process, tty: false, stdin: false }
}

async fn sleeping() -> Pod {
    let pod = Pod::new().await;
    pod.start(&pod.container("one", "sleep 1000")).await;
    pod
}

async fn read_all(fd: Option<OwnedFd>) -> String {
    let mut text = String::new();
    let mut pipe = pipe::Receiver::from_owned_fd(fd.expect("a pipe")).unwrap();
    tokio::time::timeout(PATIENCE, pipe.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

/// Reads from a terminal until it has said `wanted`.
async fn read_until(console: &AsyncFd<OwnedFd>, wanted: &str) -> String {
    let mut said = String::new();
    let reading = async {
        while !said.contains(wanted) {
            let mut ready = console.readable().await.unwrap();
            let mut buffer = [0; 256];
            match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?)) {
                Ok(Ok(length)) => said.push_str(&String::from_utf8_lossy(&buffer[..length])),
                Ok(Err(error)) => panic!("{error} after {said:?}"),
                Err(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("no {wanted:?} in time"));
    said
}

#[allow(deprecated)]
fn terminal(session: &mut ExecSession) -> AsyncFd<OwnedFd> {
    AsyncFd::new(session.console.take().expect("a terminal")).unwrap()
}

#[tokio::test]
async fn output_and_code() {
    let pod = sleeping().await;
    let session = pod
        .client
        .exec(request(&["/bin/sh", "-c", "echo out; echo err >&2; hostname; exit 9"]))
        .await
        .unwrap();
    assert!(session.stdin.is_none() && session.console.is_none());
    assert_eq!(read_all(session.stdout).await, "out\ntest-pod\n");
    assert_eq!(read_all(session.stderr).await, "err\n");
    assert_eq!(pod.client.wait_exec(session.exec_id).await.unwrap(), 9);
    // Once fetched it is forgotten.
    let again = pod.client.wait_exec(session.exec_id).await.unwrap_err();
    assert_eq!(again.kind(), Some(FailureKind::NotFound));
}

#[tokio::test]
async fn stdin_until_it_is_closed() {
    let pod = sleeping().await;
    let session = pod.client.exec(ExecRequest { stdin: true, ..request(&["cat"]) }).await.unwrap();
    let mut stdin = pipe::Sender::from_owned_fd(session.stdin.unwrap()).unwrap();
    let client = pod.client.clone();
    let waiting = tokio::spawn(async move { client.wait_exec(session.exec_id).await });
    let text = "hello\n".repeat(50_000);
    let writing = text.clone();
    let written = tokio::spawn(async move { stdin.write_all(writing.as_bytes()).await });
    assert_eq!(read_all(session.stdout).await, text);
    written.await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_terminal_that_changes_its_size() {
    let pod = sleeping().await;
    let shell = ExecRequest { tty: true, ..request(&["/bin/sh"]) };
    let mut session = pod.client.exec(shell).await.unwrap();
    let console = terminal(&mut session);
    client::resize(console.get_ref(), 101, 37).unwrap();
    nix::unistd::write(console.get_ref(), b"stty size; readlink /proc/self/fd/0\n").unwrap();
    let said = read_until(&console, "/dev/pts/").await;
    assert!(said.contains("37 101\r\n"), "{said:?}");
    nix::unistd::write(console.get_ref(), b"exit 5\n").unwrap();
    assert_eq!(pod.client.wait_exec(session.exec_id).await.unwrap(), 5);
}

#[tokio::test]
async fn failures_and_signals() {
    let pod = sleeping().await;
    let none = pod.client.exec(request(&["nonsense"])).await.unwrap_err();
    assert_eq!(none.kind(), Some(FailureKind::StartFailed), "{none}");
    assert!(none.to_string().contains("nonsense"), "{none}");
    let session = pod.client.exec(request(&["sleep", "1000"])).await.unwrap();
    pod.client.kill_exec(session.exec_id, libc::SIGKILL).await.unwrap();
    assert_eq!(pod.client.wait_exec(session.exec_id).await.unwrap(), 137);
    let elsewhere = ExecRequest { container_id: "two".to_owned(), ..request(&["true"]) };
    assert_eq!(pod.client.exec(elsewhere).await.unwrap_err().kind(), Some(FailureKind::NotFound));
    // The container's end is the process's end.
    let session = pod.client.exec(request(&["sleep", "1000"])).await.unwrap();
    pod.client.delete("one").await.unwrap();
    assert_eq!(pod.client.wait_exec(session.exec_id).await.unwrap(), 137);
}

#[tokio::test]
async fn many_at_once() {
    let pod = sleeping().await;
    let runs = (0..20).map(|n| {
        let client = pod.client.clone();
        tokio::spawn(async move {
            let script = format!("echo {n}; exit {n}");
            let session = client.exec(request(&["/bin/sh", "-c", &script])).await.unwrap();
            assert_eq!(read_all(session.stdout).await, format!("{n}\n"));
            assert_eq!(client.wait_exec(session.exec_id).await.unwrap(), n);
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
}

#[tokio::test]
async fn a_container_with_a_terminal() {
    let pod = Pod::new().await;
    let mut container =
        pod.container("one", "stty size; read line; echo got $line; stty size; echo err >&2; sleep 1000");
    container.spec["process"]["terminal"] = json!(true);
    container.request.tty = true;
    container.request.stdin = true;
    pod.create(&container).await;
    pod.client.resize("one", 120, 40).await.unwrap();
    pod.client.start("one").await.unwrap();
    pod.logged("one", "40 120\r").await;
    let attached = pod.client.attach("one", true, true, true).await.unwrap();
    assert!(attached.tty && attached.stderr.is_none());
    pod.client.resize("one", 99, 33).await.unwrap();
    nix::unistd::write(attached.stdin.as_ref().unwrap(), b"something\n").unwrap();
    pod.logged("one", "33 99\r").await;
    pod.logged("one", "err\r").await;
    let log = pod.log("one");
    assert!(log.contains("got something\r\n"), "{log:?}");
    // All of it is stdout, as a terminal has no other stream.
    let raw = std::fs::read_to_string(pod.dir.join("containers/one/0.log")).unwrap();
    assert!(raw.lines().all(|line| line.contains(" stdout F ")), "{raw}");
    pod.client.delete("one").await.unwrap();
    let seen = read_all(attached.stdout).await;
    assert!(seen.contains("got something\r\n"), "{seen:?}");
}

#[tokio::test]
async fn attached_to_a_container() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("one", "echo before; cat; echo done >&2");
    container.request.stdin = true;
    container.request.stdin_once = true;
    pod.start(&container).await;
    pod.logged("one", "before").await;
    let attached = pod.client.attach("one", true, true, true).await.unwrap();
    let mut stdin = pipe::Sender::from_owned_fd(attached.stdin.unwrap()).unwrap();
    stdin.write_all(b"line\n").await.unwrap();
    pod.logged("one", "line").await;
    assert!(pod.exit_of_none(Duration::from_millis(50)).await);
    // The first client that closes stdin closes it for good.
    drop(stdin);
    assert_eq!(pod.exit_of("one").await.code, 0);
    assert_eq!(read_all(attached.stdout).await, "line\n");
    assert_eq!(read_all(attached.stderr).await, "done\n");
    assert_eq!(pod.log("one"), "before\nline\ndone\n");
    assert_eq!(
        pod.client.attach("one", true, true, true).await.unwrap_err().kind(),
        Some(FailureKind::Invalid)
    );
}

impl Pod {
    /// True when nothing happens for a while.
    async fn exit_of_none(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.events.recv()).await.is_err()
    }
}

#[tokio::test]
async fn stdin_stays_open_without_a_client() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("one", "echo up; cat; exit 4");
    container.request.stdin = true;
    pod.start(&container).await;
    pod.logged("one", "up").await;
    for text in ["first\n", "second\n"] {
        let attached = pod.client.attach("one", true, false, false).await.unwrap();
        nix::unistd::write(attached.stdin.as_ref().unwrap(), text.as_bytes()).unwrap();
        drop(attached);
        pod.logged("one", text).await;
    }
    assert!(pod.exit_of_none(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn an_exit_code_outlives_the_client_that_asked_for_it() {
    let pod = sleeping().await;
    let (first, _) = pod.connect().await;
    let before = first.exec(request(&["/bin/sh", "-c", "exit 21"])).await.unwrap();
    let after =
        first.exec(ExecRequest { stdin: true, ..request(&["/bin/sh", "-c", "read x; exit 22"]) }).await;
    let after = after.unwrap();
    // The first one ends before its client goes, the second one when it has gone.
    let gone = before.pid;
    until("the first process ends", || !exists(gone)).await;
    drop(first);
    nix::unistd::write(after.stdin.as_ref().unwrap(), b"x\n").unwrap();
    assert_eq!(pod.client.wait_exec(after.exec_id).await.unwrap(), 22);
    assert_eq!(pod.client.wait_exec(before.exec_id).await.unwrap(), 21);
}

#[tokio::test]
async fn a_terminal_has_its_size_before_the_program_starts() {
    let pod = sleeping().await;
    let mut request = request(&["stty", "size"]);
    request.tty = true;
    let size = json!({"width": 91, "height": 17});
    request.process.set_console_size(Some(serde_json::from_value(size).unwrap()));
    let mut session = pod.client.exec(request).await.unwrap();
    let said = read_until(&terminal(&mut session), "\n").await;
    assert_eq!(said, "17 91\r\n");
}
