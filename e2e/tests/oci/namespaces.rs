//! Namespaces by path, inherited ones and new ones: runtime-spec, "Namespaces".

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use berth_e2e::bundle::Bundle;
use serde_json::json;

use crate::checks::checks;

checks! {
    namespaces_can_be_joined
    a_pid_namespace_can_be_joined
    one_of_another_kind_or_none_is_refused
    what_is_not_listed_is_inherited
    all_listed_ones_are_new
    a_user_namespace;
    alone
    a_kind_may_be_listed_once
    a_time_namespace
    a_mount_namespace_can_be_inherited
    a_container_with_users_has_mounts_of_its_own
}

/// The names in the specification and in /proc, of those that a container can be without.
const KINDS: [(&str, &str); 3] = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

/// A process in a namespace of its own.
struct Other(Child);

impl Other {
    fn new(flags: &[&str]) -> Other {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sh", "-c", "echo; exec sleep 1000"]);
        Other::announced(command)
    }

    /// One that writes a line when it is ready.
    fn announced(mut command: Command) -> Other {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        Other(child)
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.0.id())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn link(path: &str) -> String {
    fs::read_link(path).unwrap().display().to_string()
}

/// Replaces the entry of this kind in the list.
fn with_path(bundle: &mut Bundle, kind: &str, path: &str) {
    let list = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != kind);
    list.push(json!({"type": kind, "path": path}));
}

fn remove(bundle: &mut Bundle, kind: &str) {
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
}

fn namespaces_can_be_joined(bundle: &mut Bundle) {
    let other = Other::new(&["--net", "--ipc", "--uts"]);
    for (kind, name) in KINDS {
        with_path(bundle, kind, &other.path(name));
    }
    bundle.config.as_object_mut().unwrap().remove("hostname");
    let script = KINDS.map(|(_, name)| format!("readlink /proc/self/ns/{name};")).concat();
    let seen = bundle.shell(&script).finish().unwrap();
    let expected: String = KINDS.iter().map(|(_, name)| link(&other.path(name)) + "\n").collect();
    assert_eq!(seen, expected);
}

fn a_pid_namespace_can_be_joined(bundle: &mut Bundle) {
    let other = Other::new(&["--pid", "--fork", "--kill-child"]);
    let path = other.path("pid_for_children");
    with_path(bundle, "pid", &path);
    assert_eq!(bundle.shell("readlink /proc/self/ns/pid").finish().unwrap().trim(), link(&path));
}

fn one_of_another_kind_or_none_is_refused(bundle: &mut Bundle) {
    let good = bundle.config.clone();
    for (kind, path) in [
        ("network", "/proc/self/ns/ipc"),
        ("ipc", "/proc/self/ns/uts"),
        ("pid", "/proc/self/ns/ipc"),
        ("network", "/no/such/file"),
        ("network", "/proc/self/status"),
    ] {
        with_path(bundle, kind, path);
        assert!(!bundle.created().unwrap(), "{kind} {path}");
        bundle.config = good.clone();
    }
}

fn what_is_not_listed_is_inherited(bundle: &mut Bundle) {
    for (kind, _) in KINDS {
        remove(bundle, kind);
    }
    bundle.config.as_object_mut().unwrap().remove("hostname");
    // A sysfs needs a network namespace of its own.
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "sysfs");
    let kinds = ["net", "ipc", "uts", "cgroup"];
    let script = kinds.map(|name| format!("readlink /proc/self/ns/{name};")).concat();
    let expected = kinds.map(|name| link(&format!("/proc/self/ns/{name}")) + "\n").concat();
    assert_eq!(bundle.shell(&script).finish().unwrap(), expected);
}

fn all_listed_ones_are_new(bundle: &mut Bundle) {
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    let kinds = ["net", "ipc", "uts", "mnt", "pid", "cgroup"];
    let seen = bundle.shell(&kinds.map(|name| format!("readlink /proc/self/ns/{name};")).concat());
    let seen = seen.finish().unwrap();
    assert_eq!(seen.lines().count(), kinds.len());
    for (name, seen) in kinds.iter().zip(seen.lines()) {
        assert_ne!(seen, link(&format!("/proc/self/ns/{name}")));
    }
}

/// Makes a user namespace with these maps, whose first user owns the files.
fn with_user(bundle: &mut Bundle) {
    let linux = &mut bundle.config["linux"];
    linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let maps = json!([{"containerID": 0, "hostID": 200_000, "size": 1000}, {"containerID": 5000, "hostID": 300_000, "size": 10}]);
    linux["uidMappings"] = maps.clone();
    linux["gidMappings"] = maps;
    let rootfs = bundle.path("rootfs");
    let status = Command::new("chown").args(["-hR", "200000:200000"]).arg(rootfs).status().unwrap();
    assert!(status.success());
}

fn a_user_namespace(bundle: &mut Bundle) {
    with_user(bundle);
    let output =
        bundle.shell("cat /proc/self/uid_map /proc/self/gid_map; id -u; touch /x && stat -c %u /x").finish();
    let output = output.unwrap();
    let words: Vec<&str> = output.split_whitespace().collect();
    let map = ["0", "200000", "1000", "5000", "300000", "10"];
    assert_eq!(words, [&map[..], &map, &["0", "0"]].concat());
}

/// "The runtime MUST generate an error if a namespaces field contains duplicated namespaces with same type."
fn a_kind_may_be_listed_once(bundle: &mut Bundle) {
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"}));
    assert!(!bundle.created().unwrap());
}

fn a_time_namespace(bundle: &mut Bundle) {
    bundle.config["ociVersion"] = json!("1.2.0");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 0}});
    let output = bundle.shell("cut -d. -f1 /proc/uptime").finish().unwrap();
    assert!(output.trim().parse::<u64>().unwrap() > 1_000_000_000, "{output}");
}

/// The mounts below a folder that processes of a namespace see.
fn mounts_below(other: &Other, folder: &str) -> Vec<String> {
    let list = fs::read_to_string(format!("/proc/{}/mountinfo", other.0.id())).unwrap();
    list.lines().filter(|line| line.contains(folder)).map(str::to_owned).collect()
}

/// "If a namespace type is not specified in the namespaces array, the container MUST inherit the runtime namespace of that type."
/// What it mounts is seen by all then, and gone with it.
fn a_mount_namespace_can_be_inherited(bundle: &mut Bundle) {
    // Shared, as systemd has it: what is mounted in one is mounted in the other.
    let script = "mount --make-rshared / && exec unshare --mount --propagation unchanged sh -c 'echo; exec sleep 1000'";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]);
    let other = Other::announced(command);
    let namespace = other.path("mnt");
    bundle.mounts_in(&namespace);
    remove(bundle, "mount");
    bundle.config["root"]["readonly"] = json!(true);
    let rootfs = bundle.path("rootfs").display().to_string();
    let before = fs::read_to_string(format!("/proc/{}/mountinfo", other.0.id())).unwrap();
    bundle
        .shell("readlink /proc/self/ns/mnt; echo /*; touch /x 2>/dev/null || echo read-only; exec sleep 1000")
        .launch()
        .unwrap();
    bundle.wait_output("read-only").unwrap();
    let inside = link(&namespace) + "\n/bin /dev /etc /proc /sys /tmp\nread-only\n";
    assert_eq!(bundle.output().unwrap(), inside);
    let below = mounts_below(&other, &rootfs);
    assert!(below.len() > 3, "{below:?}");
    assert!(!below.iter().any(|line| line.contains(" shared:")), "{below:?}");
    // Who joins it has the same root.
    let id = bundle.id.clone();
    let said = bundle.call(&[
        "exec",
        &id,
        "sh",
        "-c",
        "readlink /proc/self/ns/mnt; echo /*; touch /x 2>/dev/null || echo read-only",
    ]);
    assert_eq!(said.unwrap().ok().unwrap(), inside);
    bundle.call(&["kill", &id, "KILL"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
    bundle.delete().unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{}/mountinfo", other.0.id())).unwrap(), before);
    // Neither does one that cannot be made leave anything.
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/tmp", "type": "nonsense", "source": "x"}));
    assert!(!bundle.created().unwrap());
    assert_eq!(fs::read_to_string(format!("/proc/{}/mountinfo", other.0.id())).unwrap(), before);
}

fn a_container_with_users_has_mounts_of_its_own(bundle: &mut Bundle) {
    with_user(bundle);
    remove(bundle, "mount");
    assert!(!bundle.created().unwrap());
    assert!(bundle.output().unwrap().contains("a container with a user namespace needs a mount namespace"));
}
