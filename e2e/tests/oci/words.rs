//! The commands that are not in the specification but in every runtime.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use berth_e2e::bundle::Bundle;
use berth_e2e::poll::until_true;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::checks::checks;

checks! {
    run_gives_the_exit_code_and_deletes
    run_gives_128_and_the_signal
    run_detached
    the_pid_file
    exec_with_flags
    exec_with_another_capability
    exec_of_a_file
    exec_of_a_file_without_a_user
    exec_detached
    exec_where_it_cannot_be
    an_event_begins_with_its_type
    ps_and_list
    the_features;
    alone
    a_pidfd_is_sent_to_who_asks
}

const SLEEP: &str = "sleep 1000";

fn run_gives_the_exit_code_and_deletes(bundle: &mut Bundle) {
    bundle.shell("echo out; echo err >&2; exit 9").save().unwrap();
    let ran = bundle.call(&["run", &bundle.id]).unwrap().code(9).unwrap();
    assert_eq!((&*ran.stdout, &*ran.stderr), ("out\n", "err\n"));
    assert!(bundle.state().unwrap().is_none());
}

fn run_gives_128_and_the_signal(bundle: &mut Bundle) {
    // Its own PID 1 it could not kill.
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid");
    bundle.shell("kill -9 $$").save().unwrap();
    bundle.call(&["run", &bundle.id]).unwrap().code(137).unwrap();
}

fn run_detached(bundle: &mut Bundle) {
    bundle.shell(SLEEP);
    assert!(bundle.call_apart(&["run", "--detach", &bundle.id]).unwrap(), "{}", bundle.output().unwrap());
    assert_eq!(bundle.status().unwrap(), "running");
}

fn the_pid_file(bundle: &mut Bundle) {
    bundle.shell(SLEEP);
    let words = ["create", "--pid-file", "pid", &bundle.id];
    assert!(bundle.call_apart(&words).unwrap(), "{}", bundle.output().unwrap());
    assert_eq!(bundle.read("pid").unwrap(), bundle.pid().unwrap().to_string());
}

fn exec_with_flags(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let script = "echo \"$A $(pwd) $(id -u) $(id -g)\"; exit 7";
    let flags = ["exec", "--env", "A=b", "--cwd", "/tmp", "--user", "5:6", &bundle.id, "sh", "-c", script];
    let ran = bundle.call(&flags).unwrap().code(7).unwrap();
    assert_eq!(ran.stdout, "b /tmp 5 6\n");
}

fn exec_with_another_capability(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let effective = |words: &[&str]| {
        let words = [words, &[&bundle.id, "sed", "-n", "s/^CapEff:\t//p", "/proc/self/status"]].concat();
        let found = bundle.call(&words).unwrap().ok().unwrap();
        u64::from_str_radix(found.trim(), 16).unwrap()
    };
    // CAP_SYSLOG, which no usual container has, is number 34.
    let added = effective(&["exec", "--cap", "CAP_SYSLOG"]) & !effective(&["exec"]);
    assert_eq!(added, 1 << 34);
}

fn exec_of_a_file(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let args = ["sh", "-c", "echo hi; cat; exit 3"];
    let process = json!({"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]});
    fs::write(bundle.path("process"), process.to_string()).unwrap();
    let ran =
        berth_e2e::tools::run_with(bundle.command(&["exec", "--process", "process", &bundle.id]), b"in");
    assert_eq!(ran.unwrap().code(3).unwrap().stdout, "hi\nin");
}

fn exec_of_a_file_without_a_user(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    fs::write(bundle.path("process"), json!({"args": ["/bin/id", "-u"], "cwd": "/"}).to_string()).unwrap();
    let ran = bundle.call(&["exec", "--process", "process", &bundle.id]).unwrap();
    assert_eq!(ran.ok().unwrap(), "0\n");
}

fn exec_detached(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let words = ["exec", "--detach", "--pid-file", "pid", &bundle.id, "sleep", "2000"];
    assert!(bundle.call_apart(&words).unwrap(), "{}", bundle.output().unwrap());
    let file = format!("/proc/{}/cmdline", bundle.read("pid").unwrap());
    // Other runtimes return before the program runs.
    let runs = || fs::read_to_string(&file).is_ok_and(|command| command.contains("sleep\x002000"));
    until_true("the program runs", Duration::from_secs(30), runs).unwrap();
}

fn exec_where_it_cannot_be(bundle: &mut Bundle) {
    bundle.shell("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done").launch().unwrap();
    bundle.wait_output("up").unwrap();
    let fails = |program: &str| {
        let ran = bundle.call(&["exec", &bundle.id, program]).unwrap();
        assert!(ran.code != 0 && !ran.stderr.is_empty(), "{ran}");
    };
    fails("no-such-program");
    bundle.call(&["kill", &bundle.id, "TERM"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
    fails("true");
}

fn an_event_begins_with_its_type(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let event = bundle.call(&["events", "--stats", &bundle.id]).unwrap().ok().unwrap();
    let expected = format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{", bundle.id);
    assert!(event.starts_with(&expected), "{event}");
}

fn ps_and_list(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let pid = bundle.pid().unwrap();
    let pids = bundle.call(&["ps", "--format", "json", &bundle.id]).unwrap().ok().unwrap();
    assert!(serde_json::from_str::<Vec<i64>>(&pids).unwrap().contains(&pid), "{pids}");
    let list = bundle.call(&["list", "--format", "json"]).unwrap().ok().unwrap();
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let own = list.iter().find(|c| c["id"] == json!(bundle.id)).unwrap();
    assert_eq!((&own["status"], &own["pid"]), (&json!("running"), &json!(pid)));
}

fn the_features(bundle: &mut Bundle) {
    let text = bundle.call(&["features"]).unwrap().ok().unwrap();
    let features: Value = serde_json::from_str(&text).unwrap();
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(), "{features}");
    for field in ["namespaces", "capabilities", "cgroup", "seccomp"] {
        assert!(!features["linux"][field].is_null(), "{field}: {features}");
    }
}

/// As with runc from 1.2 on.
fn a_pidfd_is_sent_to_who_asks(bundle: &mut Bundle) {
    let socket = UnixListener::bind(bundle.path("socket")).unwrap();
    let sent = || {
        let (stream, _) = socket.accept().unwrap();
        let mut name = [0; 64];
        let mut parts = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let fd = message.cmsgs().unwrap().find_map(|part| match part {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.unwrap())).unwrap();
        nix::unistd::close(fd.unwrap()).unwrap();
        about.lines().find_map(|line| line.strip_prefix("Pid:\t")).unwrap().parse::<i64>().unwrap()
    };
    bundle.shell(SLEEP);
    let words = ["run", "--detach", "--pidfd-socket", "socket", &bundle.id];
    assert!(bundle.call_apart(&words).unwrap(), "{}", bundle.output().unwrap());
    assert_eq!(sent(), bundle.pid().unwrap());
    let flags = ["--detach", "--pid-file", "pid", "--pidfd-socket", "socket"];
    let words = [&["exec"], &flags[..], &[&bundle.id, "sleep", "2000"]].concat();
    assert!(bundle.call_apart(&words).unwrap(), "{}", bundle.output().unwrap());
    assert_eq!(sent().to_string(), bundle.read("pid").unwrap());
}
