//! Every option of a mount, by what the container's mount table then says.

use std::fs;
use std::os::unix::fs::symlink;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop};

pub const TESTS: &[Test] = &[
    ("attributes_of_binds_and_file_systems", attributes),
    ("recursive_attributes_reach_the_mounts_below", recursive),
    ("plain_attributes_stay_on_the_top", plain),
    ("the_last_of_two_opposites_wins", opposites),
    ("flags_of_file_systems", file_system_flags),
    ("propagation_types", propagation),
    ("propagation_of_the_root", root_propagation),
    ("nothing_mounted_in_a_bind_comes_to_the_host", no_way_back),
    ("missing_targets_are_made_by_the_kind_of_the_source", targets),
    ("wrong_options_are_refused", wrong),
    ("a_joined_mount_namespace", joined),
];

/// A folder with a mount at `m` in it, gone at the end.
struct Tree(std::path::PathBuf);

impl Tree {
    fn new(sandbox: &Sandbox) -> Tree {
        let path = sandbox.host("tree");
        fs::create_dir_all(&path).unwrap();
        tmpfs(&path);
        fs::create_dir(path.join("m")).unwrap();
        tmpfs(&path.join("m"));
        Tree(path)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn tmpfs(path: &std::path::Path) {
    mount(Some("t"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// Attributes, and optional fields, of the mounts at and below /t, in the order of their places.
fn seen(options: &[&str]) -> Vec<(String, String)> {
    let mut sandbox = Sandbox::script("grep ' /t' /proc/self/mountinfo");
    let tree = Tree::new(&sandbox);
    sandbox
        .push("/mounts", json!({"destination": "/t", "type": "bind", "source": tree.0, "options": options}));
    parse(sandbox.run().ok())
}

fn parse(table: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let end = fields.iter().position(|f| *f == "-").unwrap();
        let kinds = fields[6..end].iter().map(|f| f.split(':').next().unwrap());
        (fields[5].to_owned(), kinds.collect::<Vec<_>>().join(" "))
    };
    table.lines().map(line).collect()
}

fn attributes() {
    for (option, expected) in [
        ("ro", "ro,relatime"),
        ("rw", "rw,relatime"),
        ("nosuid", "rw,nosuid,relatime"),
        ("nodev", "rw,nodev,relatime"),
        ("noexec", "rw,noexec,relatime"),
        ("noatime", "rw,noatime"),
        ("nodiratime", "rw,nodiratime,relatime"),
        ("strictatime", "rw"),
        ("norelatime", "rw"),
        ("nostrictatime", "rw,relatime"),
        ("atime", "rw,relatime"),
        ("nosymfollow", "rw,relatime,nosymfollow"),
        ("suid", "rw,relatime"),
        ("defaults", "rw,relatime"),
    ] {
        assert_eq!(seen(&["bind", option])[0].0, expected, "{option} of a bind");
        let mut sandbox = Sandbox::script("grep ' /t' /proc/self/mountinfo");
        sandbox.push(
            "/mounts",
            json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": [option]}),
        );
        assert_eq!(parse(sandbox.run().ok())[0].0, expected, "{option} of a tmpfs");
    }
}

fn recursive() {
    for (option, expected) in [
        ("rro", "ro,relatime"),
        ("rnosuid", "rw,nosuid,relatime"),
        ("rnodev", "rw,nodev,relatime"),
        ("rnoexec", "rw,noexec,relatime"),
        ("rnoatime", "rw,noatime"),
        ("rnodiratime", "rw,nodiratime,relatime"),
        ("rstrictatime", "rw"),
        ("rnorelatime", "rw"),
        ("rnosymfollow", "rw,relatime,nosymfollow"),
        ("rrelatime", "rw,relatime"),
        ("ratime", "rw,relatime"),
    ] {
        let seen = seen(&["rbind", option]);
        assert_eq!([&*seen[0].0, &*seen[1].0], [expected; 2], "{option}");
    }
}

fn plain() {
    let found = seen(&["rbind", "ro", "nosuid", "noatime"]);
    assert_eq!([&*found[0].0, &*found[1].0], ["ro,nosuid,noatime", "rw,relatime"]);
    assert_eq!(seen(&["bind", "ro"]).len(), 1, "a plain bind has nothing below");
}

fn opposites() {
    for (options, expected) in [
        (["rbind", "ro", "rw"], ["rw,relatime", "rw,relatime"]),
        (["rbind", "rro", "rrw"], ["rw,relatime", "rw,relatime"]),
        (["rbind", "noatime", "strictatime"], ["rw", "rw,relatime"]),
        (["rbind", "nodev", "dev"], ["rw,relatime", "rw,relatime"]),
    ] {
        let seen = seen(&options);
        assert_eq!([&*seen[0].0, &*seen[1].0], expected, "{options:?}");
    }
}

fn file_system_flags() {
    let options =
        ["sync", "dirsync", "lazytime", "silent", "mand", "size=64k", "nr_inodes=7", "uid=33", "mode=0711"];
    let mut sandbox =
        Sandbox::script("grep ' /t' /proc/self/mountinfo | sed 's/.* - //'; stat -c '%u %a' /t");
    sandbox
        .push("/mounts", json!({"destination": "/t", "type": "tmpfs", "source": "name", "options": options}));
    let output = sandbox.run();
    for part in ["tmpfs name ", "sync", "dirsync", "lazytime", "size=64k", "nr_inodes=7", "33 711"] {
        assert!(output.ok().contains(part), "{part}: {output:?}");
    }
}

fn propagation() {
    for (option, expected) in [
        ("private", ["", "master"]),
        ("rprivate", ["", ""]),
        ("slave", ["master", "master"]),
        ("rslave", ["master", "master"]),
        ("shared", ["shared master", "master"]),
        ("rshared", ["shared master", "shared master"]),
        ("unbindable", ["unbindable", "master"]),
        ("runbindable", ["unbindable", "unbindable"]),
    ] {
        let mut sandbox = Sandbox::script("grep ' /t' /proc/self/mountinfo");
        let tree = Tree::new(&sandbox);
        let none = None::<&str>;
        mount(none, &tree.0, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).unwrap();
        sandbox.push("/mounts", json!({"destination": "/t", "source": tree.0, "options": ["rbind", option]}));
        let seen = parse(sandbox.run().ok());
        assert_eq!([&*seen[0].1, &*seen[1].1], expected, "{option}");
    }
}

fn root_propagation() {
    for (wanted, expected) in
        [("private", ""), ("rprivate", ""), ("slave", ""), ("shared", "shared"), ("unbindable", "unbindable")]
    {
        let mut sandbox = Sandbox::script("grep ' / / ' /proc/self/mountinfo");
        sandbox.spec["linux"]["rootfsPropagation"] = json!(wanted);
        assert_eq!(parse(sandbox.run().ok())[0].1, expected, "{wanted}");
    }
    let mut sandbox = Sandbox::script("true");
    sandbox.spec["linux"]["rootfsPropagation"] = json!("sideways");
    assert_eq!(sandbox.error(), "linux.rootfsPropagation: unknown: \"sideways\"");
}

/// Also with the trees that the parent prepares for a user namespace.
fn no_way_back() {
    for user in [false, true] {
        let mut sandbox = Sandbox::script("mount -t tmpfs t /t/m/in && sleep 100");
        let tree = Tree::new(&sandbox);
        fs::create_dir(tree.0.join("m/in")).unwrap();
        let none = None::<&str>;
        mount(none, &tree.0, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).unwrap();
        sandbox.push("/mounts", json!({"destination": "/t", "source": tree.0, "options": ["rbind"]}));
        let all = json!(["CAP_SYS_ADMIN"]);
        sandbox.spec["process"]["capabilities"] =
            json!({"bounding": all, "effective": all, "permitted": all});
        if user {
            let map: Value = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
            sandbox.push("/linux/namespaces", json!({"type": "user"}));
            sandbox.spec["linux"]["uidMappings"] = map.clone();
            sandbox.spec["linux"]["gidMappings"] = map;
        }
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let container = sandbox.start().unwrap();
        let inside = || fs::read_to_string(format!("/proc/{}/mountinfo", container.pid)).unwrap();
        crate::sandbox::until("the mount inside", || inside().contains(" /t/m/in "));
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        stop(&container);
    }
}

fn targets() {
    let mut sandbox = Sandbox::script(
        "cat /new/sub/file /to/file; test -d /other/folder; test -S /sock; test -p /pipe && echo all",
    );
    fs::write(sandbox.host("file"), "x").unwrap();
    fs::create_dir(sandbox.host("folder")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(sandbox.host("socket")).unwrap();
    nix::unistd::mkfifo(&sandbox.host("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/made/by/link", sandbox.image("to")).unwrap();
    for (destination, source) in [
        ("/new/sub/file", "file"),
        ("/to/file", "file"),
        ("/other/folder", "folder"),
        ("/sock", "socket"),
        ("/pipe", "pipe"),
    ] {
        sandbox.push("/mounts", json!({"destination": destination, "source": source, "options": ["bind"]}));
    }
    assert_eq!(sandbox.run().ok(), "xxall");
    drop(socket);
}

fn wrong() {
    let error = |value| {
        let mut sandbox = Sandbox::script("true");
        fs::create_dir(sandbox.host("folder")).unwrap();
        sandbox.push("/mounts", value);
        sandbox.error()
    };
    let found = error(json!({"destination": "/t", "type": "ramfs", "source": "r", "options": ["tmpcopyup"]}));
    assert_eq!(found, "mounts[/t]: only a tmpfs can have tmpcopyup");
    let found = error(json!({"destination": "/t", "options": ["bind"]}));
    assert_eq!(found, "mounts[/t]: a bind needs a source");
    let found = error(json!({"destination": "/t"}));
    assert!(found.starts_with("mounts[/t]: it has neither a type nor bind"), "{found}");
}

fn joined() {
    // A mount namespace that still has the host's files.
    let child = std::process::Command::new("unshare").args(["--mount", "sleep", "100"]).spawn();
    let mut child = child.unwrap();
    let link = format!("/proc/{}/ns/mnt", child.id());
    let host = fs::read_link("/proc/self/ns/mnt").unwrap();
    crate::sandbox::until("the new mount namespace", || {
        fs::read_link(&link).unwrap() != host
            && fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap().starts_with("sleep")
    });
    let wanted = fs::read_link(&link).unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut sandbox = Sandbox::script("readlink /proc/self/ns/mnt; ls /proc/1/ns >/dev/null && echo $$");
    sandbox.spec["linux"]["namespaces"][1]["path"] = json!(link);
    let output = sandbox.run();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(output.ok(), format!("{}\n1", wanted.display()));
}
