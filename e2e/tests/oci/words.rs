//! The commands that are not in the specification but in every runtime.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use berth_e2e::bundle::{Bundle, is_v2};
use berth_e2e::poll::until_true;
use berth_e2e::tools::run;
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
    exec_with_an_ambient_capability
    exec_with_an_unknown_capability
    exec_of_a_file
    exec_of_a_file_without_a_user
    exec_detached
    exec_where_it_cannot_be
    an_event_begins_with_its_type
    ps_and_list
    the_features
    descriptors_that_are_closed_are_not_handed_on
    sockets_of_a_service_are_handed_on
    without_pivot_root;
    alone
    exec_in_cgroups_below
    lines_of_a_terminal_end_plainly_in_a_file
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

/// The value of a line of `/proc/self/status` in an exec with flags.
fn status_of(bundle: &Bundle, flags: &[&str], field: &str) -> u64 {
    let script = format!("s/^{field}:\t//p");
    let words = [&["exec"], flags, &[&bundle.id, "sed", "-n", &script, "/proc/self/status"]].concat();
    let found = bundle.call(&words).unwrap().ok().unwrap();
    u64::from_str_radix(found.trim(), 16).unwrap()
}

fn exec_with_an_ambient_capability(bundle: &mut Bundle) {
    let flags = ["--cap", "CAP_SYSLOG"];
    bundle.shell(SLEEP).launch().unwrap();
    assert_eq!(status_of(bundle, &flags, "CapAmb"), 0, "nothing is inheritable");
    bundle.call(&["delete", "--force", &bundle.id]).unwrap().ok().unwrap();
    bundle.config["process"]["capabilities"]["bounding"].as_array_mut().unwrap().push(json!("CAP_SYSLOG"));
    bundle.config["process"]["capabilities"]["inheritable"] = json!(["CAP_CHOWN", "CAP_SYSLOG"]);
    bundle.config["process"]["capabilities"]["ambient"] = json!(["CAP_CHOWN"]);
    bundle.launch().unwrap();
    assert_eq!(status_of(bundle, &flags, "CapAmb"), 1 << 34 | 1);
}

fn exec_with_an_unknown_capability(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let usual = status_of(bundle, &[], "CapEff");
    assert_eq!(status_of(bundle, &["--cap", "CAP_FUTURE"], "CapEff"), usual);
}

/// As with runc; one path for all controllers is not possible with it on cgroup v1 if a hierarchy lacks the folder.
fn exec_in_cgroups_below(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let cgroups = |flags: &[&str]| {
        let words = [&["exec"], flags, &[&bundle.id, "cat", "/proc/self/cgroup"]].concat();
        bundle.call(&words).unwrap()
    };
    let fails = |flags: &[&str], reason: &str| {
        let ran = cgroups(flags);
        assert!(ran.code != 0 && ran.stderr.contains(reason), "{flags:?}: {ran}");
    };
    fails(&["--cgroup", ".."], ".. is not a sub cgroup path");
    fails(&["--cgroup", "nonexistent"], "nonexistent");
    fails(&["--cgroup", "whatever:/"], "unknown controller whatever");
    let own = cgroups(&[]).ok().unwrap();
    assert_eq!(cgroups(&["--cgroup", "/"]).ok().unwrap(), own);
    if is_v2() {
        return;
    }
    fails(&["--cgroup", "memory:nonexistent"], "nonexistent");
    for (controller, name) in [("memory", "m"), ("cpu", "c"), ("cpuacct", "c")] {
        fs::create_dir_all(format!("/sys/fs/cgroup/{controller}{}/{name}", bundle.cgroup())).unwrap();
    }
    let inner = cgroups(&["--cgroup", "memory:m", "--cgroup", "cpu,cpuacct:/c"]).ok().unwrap();
    let of = |controller: &str| {
        let has = |line: &&str| line.split(':').nth(1).is_some_and(|l| l.split(',').any(|c| c == controller));
        inner.lines().find(has).unwrap().rsplit('/').next().unwrap().to_owned()
    };
    assert_eq!([of("memory"), of("cpu"), of("pids")], ["m", "c", &*bundle.id]);
}

/// As with runc, which asks for a terminal of its own besides.
fn lines_of_a_terminal_end_plainly_in_a_file(bundle: &mut Bundle) {
    bundle.config["process"]["terminal"] = json!(true);
    bundle.shell("echo one; echo two").save().unwrap();
    assert_eq!(bundle.call(&["run", &bundle.id]).unwrap().ok().unwrap(), "one\ntwo\n");
    bundle.config["process"]["terminal"] = json!(false);
    bundle.shell(SLEEP).launch().unwrap();
    let ran = bundle.call(&["exec", "--tty", &bundle.id, "echo", "three"]).unwrap();
    assert_eq!(ran.ok().unwrap(), "three\n");
}

/// A command of the runtime with these descriptors of its own, each of /dev/null.
fn with_descriptors(bundle: &Bundle, open: &str, words: &[&str]) -> std::process::Command {
    let command = bundle.command(words);
    let redirect = open.split(' ').map(|fd| format!("{fd}</dev/null")).collect::<Vec<_>>().join(" ");
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", &format!("exec \"$@\" {redirect}"), "bash"]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(bundle.path(""));
    shell
}

fn descriptors_that_are_closed_are_not_handed_on(bundle: &mut Bundle) {
    // The shell has none but what it was given.
    bundle.shell("cd /proc/$$/fd; for n in 3 4 5 6 7 8 9 10 11 12 13; do [ -e $n ] && echo $n; done; true");
    bundle.save().unwrap();
    let words = ["run", "--preserve-fds", "9", &bundle.id];
    let ran = run(with_descriptors(bundle, "4 7 11 13", &words)).unwrap().ok().unwrap();
    // The tenth of bash's own.
    assert_eq!(ran.split_whitespace().filter(|n| *n != "10").collect::<Vec<_>>(), ["4", "7", "11"]);
}

fn sockets_of_a_service_are_handed_on(bundle: &mut Bundle) {
    bundle.shell("echo $LISTEN_PID; cd /proc/$$/fd; [ -e 3 ] && [ -e 4 ] && ! [ -e 5 ] && echo two");
    bundle.config["process"]["env"].as_array_mut().unwrap().push(json!("A=b"));
    bundle.save().unwrap();
    let mut command = with_descriptors(bundle, "3 4 5", &["run", &bundle.id]);
    command.env("LISTEN_FDS", "2");
    let ran = run(command).unwrap().ok().unwrap();
    assert_eq!(ran, "1\ntwo\n");
}

fn without_pivot_root(bundle: &mut Bundle) {
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "sysfs");
    bundle.shell("ls -d /bin/busybox; grep -c ' / ' /proc/self/mounts; ls /sys | wc -l").save().unwrap();
    let ran = bundle.call(&["run", "--no-pivot", &bundle.id]).unwrap().ok().unwrap();
    assert_eq!(ran, "/bin/busybox\n1\n0\n");
    bundle.shell(SLEEP);
    assert!(bundle.call_apart(&["run", "--detach", "--no-pivot", &bundle.id]).unwrap());
    let ran = bundle.call(&["exec", &bundle.id, "cat", "/proc/1/comm"]).unwrap();
    assert_eq!(ran.ok().unwrap(), "sleep\n");
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
