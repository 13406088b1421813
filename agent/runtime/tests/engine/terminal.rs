//! Terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use berth_runtime::container::Tie;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, wait};

pub const TESTS: &[Test] = &[
    ("a_container_with_a_terminal", of_container),
    ("an_exec_with_a_terminal", of_exec),
    ("what_is_typed_arrives", typing),
    ("lines_end_as_they_were_written_where_nobody_looks", bare_lines),
];

/// Everything until the other side is closed, which a terminal reports as an error.
fn read_all(master: OwnedFd) -> String {
    let mut file = File::from(master);
    let mut text = String::new();
    loop {
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&file), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap(), 1, "no output: {text:?}");
        let mut buffer = [0; 4096];
        match file.read(&mut buffer) {
            Ok(0) | Err(_) => return text,
            Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
        }
    }
}

fn of_container() {
    let mut sandbox = Sandbox::script(
        "tty; stty size; test -t 0 -a -t 1 -a -t 2 && stat -c %t:%T /dev/console; echo > /dev/tty",
    );
    sandbox.spec["process"]["terminal"] = json!(true);
    sandbox.spec["process"]["consoleSize"] = json!({"height": 33, "width": 99});
    let mut container = sandbox.start().unwrap();
    let text = read_all(container.console.take().expect("a master"));
    wait(std::os::fd::AsFd::as_fd(&container.pidfd));
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[..3], ["/dev/pts/0", "33 99", "88:0"], "{text:?}");
}

fn of_exec() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let process = json!({"args": ["sh", "-c", "tty; stty size; id -u"], "terminal": true,
        "consoleSize": {"height": 5, "width": 6}, "user": {"uid": 33, "gid": 34}});
    let mut started = sandbox.try_exec(&container, process).unwrap();
    let text = read_all(started.console.take().expect("a master"));
    wait(std::os::fd::AsFd::as_fd(&started.pidfd));
    assert_eq!(text.lines().map(str::trim).collect::<Vec<_>>(), ["/dev/pts/0", "5 6", "33"]);
    stop(&container);
}

fn typing() {
    let mut sandbox = Sandbox::script("stty -echo; echo ready; head -1; exit 3");
    sandbox.spec["process"]["terminal"] = json!(true);
    let mut container = sandbox.start().unwrap();
    let master = container.console.take().unwrap();
    let mut writer = File::from(master.try_clone().unwrap());
    writer.write_all(b"typed\n").unwrap();
    let text = read_all(master);
    assert!(text.contains("typed"), "{text:?}");
    let status = wait(std::os::fd::AsFd::as_fd(&container.pidfd));
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 3)), "{status:?}");
}

fn bare_lines() {
    let mut sandbox = Sandbox::script("echo one; echo two");
    sandbox.spec["process"]["terminal"] = json!(true);
    for (bare, expected) in [(false, "one\r\ntwo\r\n"), (true, "one\ntwo\n")] {
        let tie = Tie { bare_lines: bare, ..Tie::default() };
        let mut container = sandbox.create_tied(tie).unwrap();
        let master = container.console.take().unwrap();
        container.start().unwrap();
        assert_eq!(read_all(master), expected);
        wait(std::os::fd::AsFd::as_fd(&container.pidfd));
    }
}
