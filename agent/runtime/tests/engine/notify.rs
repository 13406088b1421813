//! System calls that a filter leaves to somebody else: a listener of our own answers them.
#![allow(unsafe_code)] // No crate that is in use has the listener's side.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, wait};

pub const TESTS: &[Test] = &[
    ("a_listener_answers_for_the_kernel", first_process),
    ("further_processes_have_listeners_of_their_own", further_processes),
    ("hooks_in_the_container_are_asked_about_too", with_hook),
    ("a_listener_that_is_not_there_fails_the_start", nobody_listens),
    ("what_a_listener_needs_is_checked", refused),
];

/// What the listener answers with; no call fails so by itself.
const ANSWER: Errno = Errno::EL2HLT;

fn asking(script: &str) -> (Sandbox, UnixListener) {
    let mut sandbox = Sandbox::script(script);
    let path = sandbox.host("listener");
    let listener = UnixListener::bind(&path).unwrap();
    sandbox.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "listenerMetadata": "some text",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    (sandbox, listener)
}

/// The descriptor and the message of whoever comes.
fn accept(listener: &UnixListener) -> (OwnedFd, Value) {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap(), 1, "nobody came");
    let (stream, _) = listener.accept().unwrap();
    let mut text = [0; 8192];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let (length, fds) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let fds = message.cmsgs().unwrap().find_map(|part| match part {
            ControlMessageOwned::ScmRights(fds) => Some(fds),
            _ => None,
        });
        (message.bytes, fds.unwrap())
    };
    assert_eq!(fds.len(), 1);
    // SAFETY: it has just come.
    let fd = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    (fd, serde_json::from_slice(&text[..length]).unwrap())
}

/// Answers one question; tells who asked.
fn answer(fd: &OwnedFd) -> u32 {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap(), 1, "nobody asked");
    // SAFETY: the kernel reads and writes one structure of its own size, which is live.
    unsafe {
        let mut question: libc::seccomp_notif = std::mem::zeroed();
        assert_eq!(libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut question), 0);
        let mut answer: libc::seccomp_notif_resp = std::mem::zeroed();
        answer.id = question.id;
        answer.error = -(ANSWER as i32);
        assert_eq!(libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer), 0);
        question.pid
    }
}

fn first_process() {
    for no_new_privileges in [true, false] {
        let (mut sandbox, listener) = asking("mkdir /made; test -d /made || echo none");
        sandbox.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        sandbox.spec["annotations"] = json!({"a": "b"});
        let container = sandbox.start().unwrap();
        let (fd, message) = accept(&listener);
        assert_eq!(message["fds"], json!(["seccompFd"]));
        assert_eq!(message["metadata"], "some text");
        assert_eq!(message["pid"], container.pid);
        assert_eq!(message["ociVersion"], sandbox.spec["ociVersion"]);
        let state = &message["state"];
        assert_eq!((&state["id"], &state["pid"]), (&json!("c"), &json!(container.pid)));
        assert_eq!((&state["status"], &state["annotations"]), (&json!("creating"), &json!({"a": "b"})));
        answer(&fd);
        let output = sandbox.finish(container);
        assert_eq!(output.ok(), "none");
        assert!(output.stderr.contains("Level 2 halted"), "{output:?}");
    }
}

fn further_processes() {
    let (sandbox, listener) = asking("sleep 100");
    let container = sandbox.start().unwrap();
    let (first, _) = accept(&listener);
    let args = json!({"args": ["sh", "-c", "mkdir /made; test -d /made || echo none"]});
    let started = sandbox.try_exec(&container, args).unwrap();
    let (fd, message) = accept(&listener);
    assert_eq!((&message["pid"], &message["state"]["pid"]), (&json!(started.pid), &json!(container.pid)));
    assert_eq!(message["state"]["status"], "running");
    answer(&fd);
    wait(started.pidfd.as_fd());
    assert_eq!(fs::read_to_string(sandbox.host("exec-out")).unwrap(), "none\n");
    drop((first, listener));
    let refused = sandbox.try_exec(&container, json!({"args": ["true"]})).unwrap_err().to_string();
    assert!(refused.contains("seccomp listener"), "{refused}");
    stop(&container);
}

fn with_hook() {
    let (mut sandbox, listener) = asking("mkdir /program; test -d /program -o -d /hook || echo none");
    let script = "mkdir /hook; ls /proc/self/fd | wc -l > /tmp/open";
    let hook = json!({"path": "/bin/busybox", "args": ["sh", "-c", script]});
    sandbox.spec["hooks"] = json!({"startContainer": [hook]});
    let mut container = sandbox.create().unwrap();
    // The hook is waited for within the start.
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| {
            let (fd, _) = accept(&listener);
            [answer(&fd), answer(&fd)]
        });
        container.start().unwrap();
        let [hook, program] = listening.join().unwrap();
        assert_ne!(hook, program);
    });
    assert_eq!(sandbox.finish(container).ok(), "none");
    // Its three streams, and the folder that ls reads.
    let open = fs::read_to_string(sandbox.host("upper/tmp/open")).unwrap();
    assert_eq!(open.trim(), "4", "a descriptor has come through");
}

fn nobody_listens() {
    let (sandbox, listener) = asking("true");
    drop(listener);
    let error = sandbox.error();
    assert!(error.starts_with("send the seccomp listener to"), "{error}");
}

fn refused() {
    let (mut sandbox, _listener) = asking("true");
    sandbox.spec["linux"]["seccomp"].as_object_mut().unwrap().remove("listenerPath");
    assert!(sandbox.error().starts_with("linux.seccomp.listenerPath"), "{}", sandbox.error());
    let (mut sandbox, _listener) = asking("true");
    sandbox.spec["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["write"]);
    assert_eq!(
        sandbox.error(),
        "linux.seccomp.syscalls: SCMP_ACT_NOTIFY cannot be used for the write syscall"
    );
}
