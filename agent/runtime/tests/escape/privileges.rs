//! What a process of a container may do, and what other processes may do to it before it has given its rights away.

use std::fs;
use std::process::Command;

use nix::unistd::{Gid, getgroups, setgroups};
use serde_json::json;

use crate::attacker;
use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, until};

pub const TESTS: &[Test] = &[
    ("cve_2022_29162_no_capability_is_inheritable", inheritable),
    ("cve_2022_2995_groups_of_the_caller_are_not_kept", groups),
    ("cve_2016_9962_a_visitor_cannot_be_looked_into", visitor),
    ("cve_2016_9962_a_neighbour_cannot_be_looked_into_while_it_is_made", neighbour),
];

/// Programs with file capabilities would get what is inheritable (CVE-2022-24769 is the same in containerd). Defence:
/// `Capabilities::apply` sets all sets, whatever the caller has.
fn inheritable() {
    // This program once more, with such capabilities.
    let status = Command::new("setpriv")
        .args(["--inh-caps", "+chown,+kill,+net_raw", "--ambient-caps", "+chown,+kill"])
        .arg(std::env::current_exe().unwrap())
        .args([attacker::WORD, "inherit"])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// What runs in that process.
pub fn with_inheritable() {
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let inherited = own.lines().find(|l| l.starts_with("CapInh")).unwrap();
    assert!(!inherited.ends_with("0000000000000000"), "the attack has no target: {inherited}");
    for uid in [0, 33] {
        let mut sandbox = Sandbox::script("grep -E 'CapInh|CapAmb' /proc/self/status; sleep 100");
        sandbox.spec["process"]["user"] = json!({"uid": uid, "gid": uid});
        let container = sandbox.start().unwrap();
        until("its sets", || fs::read_to_string(sandbox.host("out")).unwrap().lines().count() == 2);
        let first = fs::read_to_string(sandbox.host("out")).unwrap();
        let args = ["grep", "-E", "CapInh|CapAmb", "/proc/self/status"];
        let second =
            sandbox.exec_process(&container, json!({"args": args, "user": {"uid": uid, "gid": uid}}));
        stop(&container);
        for sets in [&*first, second.ok()] {
            let numbers: Vec<&str> = sets.split_whitespace().skip(1).step_by(2).collect();
            assert_eq!(numbers, ["0000000000000000"; 2], "{sets}");
        }
    }
}

/// Files that a group of the caller may read would be in reach. Defence: the groups are set even when there are none.
fn groups() {
    let before = getgroups().unwrap();
    setgroups(&[Gid::from_raw(4), Gid::from_raw(42)]).unwrap();
    let mut sandbox = Sandbox::script("id -G; sleep 100");
    sandbox.spec["process"]["user"] = json!({"uid": 33, "gid": 34});
    let container = sandbox.start().unwrap();
    until("its groups", || fs::read_to_string(sandbox.host("out")).unwrap().ends_with('\n'));
    let process = json!({"args": ["id", "-G"], "user": {"uid": 33, "gid": 34}});
    let visitor = sandbox.exec_process(&container, process);
    stop(&container);
    setgroups(&before).unwrap();
    assert_eq!(fs::read_to_string(sandbox.host("out")).unwrap(), "34\n");
    assert_eq!(visitor.ok(), "34");
}

/// A container whose processes look through everything in sight for a file of the host. `capability` is what they have
/// beyond the usual.
fn peeking(capability: Option<&str>) -> (Sandbox, String) {
    let mut sandbox = Sandbox::new();
    attacker::bring_into(&mut sandbox);
    let mark = format!("berth-mark-{}", std::process::id());
    let mark_path = sandbox.host(&mark);
    attacker::put(&mark_path, "");
    for set in ["bounding", "effective", "permitted"] {
        sandbox.push(&format!("/process/capabilities/{set}"), json!("CAP_DAC_READ_SEARCH"));
        if let Some(capability) = capability {
            sandbox.push(&format!("/process/capabilities/{set}"), json!(capability));
        }
    }
    let mark = mark_path.strip_prefix("/").unwrap().to_str().unwrap().to_owned();
    sandbox.spec["process"]["args"] =
        json!(["/bin/sh", "-c", format!("{} {} peek {mark}; sleep 100", attacker::PATH, attacker::WORD)]);
    (sandbox, mark)
}

const VISITS: usize = 100;

/// Defence: a visitor cannot be looked into (PR_SET_DUMPABLE), from its first instruction on, because its maker cannot;
/// and it has left the host behind before it becomes visible in the container's PID namespace, which also keeps those
/// out that have CAP_SYS_PTRACE.
fn visitor() {
    for capability in [None, Some("CAP_SYS_PTRACE")] {
        let (sandbox, _) = peeking(capability);
        let container = sandbox.start().unwrap();
        let said = || fs::read_to_string(sandbox.host("out")).unwrap();
        until("the attacker", || said().starts_with("peeking"));
        for _ in 0..VISITS {
            sandbox.exec_process(&container, json!({"args": ["true"]})).ok();
        }
        sandbox.exec(&container, "touch /tmp/enough");
        until("the attacker's report", || said().lines().count() == 2);
        stop(&container);
        let report = said();
        let report = report.lines().nth(1).unwrap();
        assert!(report.starts_with("nothing, in "), "{capability:?}: {report}");
        let looks: u64 = report.split_whitespace().nth(2).unwrap().parse().unwrap();
        assert!(looks > 0, "the attacker saw nobody: {report}");
    }
}

/// In a pod with one PID namespace a container is made in sight of the others. Defence: as before, without the last
/// part: who may trace any process in sight (CAP_SYS_PTRACE) is trusted with the pod.
fn neighbour() {
    let (sandbox, _) = peeking(None);
    let container = sandbox.start().unwrap();
    let said = || fs::read_to_string(sandbox.host("out")).unwrap();
    until("the attacker", || said().starts_with("peeking"));
    let mut next = Sandbox::new();
    let path = format!("/proc/{}/ns/pid", container.pid);
    next.spec["linux"]["namespaces"][0] = json!({"type": "pid", "path": path});
    for _ in 0..VISITS {
        next.run().ok();
    }
    sandbox.exec(&container, "touch /tmp/enough");
    until("the attacker's report", || said().lines().count() == 2);
    stop(&container);
    assert!(said().lines().nth(1).unwrap().starts_with("nothing, in "), "{}", said());
}
