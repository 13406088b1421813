//! Attacks on what the runtime itself reads and writes in procfs.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::attacker::put;
use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, until, wait};

pub const TESTS: &[Test] = &[
    ("cve_2019_16884_volumes_over_procfs", over_proc),
    ("cve_2019_16884_something_else_in_the_place_of_proc", instead_of_proc),
    ("cve_2025_52881_writes_go_to_procfs_whatever_is_mounted_over_it", redirected),
    ("cve_2025_52881_an_exec_does_not_use_the_containers_proc", redirected_exec),
    ("cve_2022_0811_kernel_parameters_are_not_injected", injected),
    ("kernel_parameters_of_the_host_are_refused", host_parameters),
];

/// A volume over a file of procfs swallows what the runtime writes there (the security label), or shows a container
/// what was masked. Defence: `Mounter::guard_proc` asks the file system of the place, however it was reached.
fn over_proc() {
    let targets = [
        "/proc/self/attr/exec",
        "/proc/self",
        "/proc/1/attr",
        "/proc/sys",
        "/proc/../proc/sys/kernel",
        "//proc/./sysrq-trigger",
        "/proc/self/../../proc/acpi",
        "/link/sys",
        "/link/self/attr/exec",
        "/deep/link/sys",
    ];
    for target in targets {
        for kind in ["bind", "tmpfs"] {
            let mut sandbox = Sandbox::new();
            fs::create_dir_all(sandbox.host("volume")).unwrap();
            fs::create_dir(sandbox.image("deep")).unwrap();
            symlink("proc", sandbox.image("link")).unwrap();
            symlink("../proc/self/root/proc", sandbox.image("deep/link")).unwrap();
            sandbox.push("/mounts", json!({"destination": target, "source": "volume", "type": kind}));
            let error = sandbox.error();
            assert!(error.contains("proc") || error.contains("link"), "{kind} on {target}: {error}");
        }
    }
}

/// A volume where procfs belongs. Defence: as before, for the place itself.
fn instead_of_proc() {
    for (kind, target) in [("bind", "/proc"), ("tmpfs", "/proc"), ("bind", "/proc/"), ("bind", "//proc/.")] {
        for with_proc in [true, false] {
            let mut sandbox = Sandbox::new();
            fs::create_dir(sandbox.host("volume")).unwrap();
            let mounts = sandbox.spec["mounts"].as_array_mut().unwrap();
            mounts.retain(|m| with_proc || m["destination"] != "/proc");
            sandbox.push("/mounts", json!({"destination": target, "source": "volume", "type": kind}));
            let error = sandbox.error();
            assert!(error.contains("proc"), "{kind} on {target}: {error}");
        }
    }
}

/// A file mounted somewhere while this lives.
struct Over(&'static str);

impl Over {
    fn mount(source: &Path, target: &'static str) -> Over {
        mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Over(target)
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Whatever won the race to mount something over procfs, the runtime's writes do not go there. Defence: `container::procfs` opens without crossing mounts.
fn redirected() {
    let mut sandbox = Sandbox::script(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced
        cat /proc/sys/kernel/domainname /proc/self/oom_score_adj",
    );
    sandbox.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"});
    sandbox.spec["process"]["oomScoreAdj"] = json!(777);
    sandbox.spec["domainname"] = json!("berth.example");
    // All of /proc/sys: below it the kernel has other entries for every namespace, which a mount does not cover.
    let fake = sandbox.host("fake");
    let files = ["net/ipv4/ip_forward", "kernel/shm_rmid_forced", "kernel/domainname"].map(|f| fake.join(f));
    for file in &files {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        put(file, "");
    }
    // The container inherits this in its copy of the mount namespace; its own procfs is new.
    let covered = Over::mount(&fake, "/proc/sys");
    let output = sandbox.run();
    drop(covered);
    assert_eq!(output.ok(), "1\n1\nberth.example\n777");
    for file in &files {
        assert_eq!(fs::read_to_string(file).unwrap(), "", "a write was redirected");
    }
    // And a whole /proc that is none is not used at all.
    let folder = sandbox.host("proc/self");
    fs::create_dir_all(&folder).unwrap();
    put(&folder.join("oom_score_adj"), "");
    let covered = Over::mount(&sandbox.host("proc"), "/proc");
    let error = sandbox.start().map(|container| stop(&container)).unwrap_err().to_string();
    drop(covered);
    assert_eq!(fs::read_to_string(folder.join("oom_score_adj")).unwrap(), "", "{error}");
}

/// The container has replaced its /proc before it is visited. Defence: an exec writes to the host's procfs before it
/// enters the container, and to none after that.
fn redirected_exec() {
    let mut sandbox = Sandbox::script(
        "mkdir -p /fake/self/attr /fake/thread-self && touch /fake/self/oom_score_adj /fake/self/attr/exec
         ln -s /proc/sys/kernel /fake/self/fd && mount -o bind /fake /proc && touch /ready; sleep 100",
    );
    for set in ["bounding", "effective", "permitted"] {
        sandbox.push(&format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"));
    }
    let container = sandbox.start().unwrap();
    until("the fake", || sandbox.host("upper/ready").exists());
    let process =
        json!({"args": ["sh", "-c", "touch /visited; sleep 100"], "oomScoreAdj": 555, "terminal": true});
    let visitor = sandbox.try_exec(&container, process).unwrap();
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", visitor.pid)).unwrap();
    let fake = fs::read_to_string(sandbox.host("upper/fake/self/oom_score_adj")).unwrap();
    // A container is not gone before its visitors are, and those are the caller's children.
    kill(Pid::from_raw(visitor.pid), Signal::SIGKILL).unwrap();
    wait(visitor.pidfd.as_fd());
    stop(&container);
    assert_eq!((score.trim(), &*fake), ("555", ""));
}

/// A value or name that another program would split at `+`, a line or a space sets a second parameter, such as the
/// program that the kernel runs for core dumps. Defence: `protect::set_sysctls` takes names whole, from a list, and
/// values without control characters.
fn injected() {
    let pattern = || fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = pattern();
    let evil = "|/bin/evil %P";
    for (key, value) in [
        ("kernel.shm_rmid_forced+kernel.core_pattern", evil.to_owned()),
        ("kernel.shm_rmid_forced", format!("1+kernel.core_pattern={evil}")),
        ("kernel.shm_rmid_forced", format!("1\nkernel.core_pattern={evil}")),
        ("kernel.shm_rmid_forced=1\nkernel.core_pattern", evil.to_owned()),
        ("net.ipv4.ip_forward", "1\n".to_owned()),
        ("net/../kernel/core_pattern", evil.to_owned()),
        ("net/ipv4/../../kernel/core_pattern", evil.to_owned()),
        ("net/./ipv4/ip_forward\0", "1".to_owned()),
        ("fs.mqueue./../../kernel/core_pattern", evil.to_owned()),
        ("/proc/sys/kernel/core_pattern", evil.to_owned()),
    ] {
        let mut sandbox = Sandbox::new();
        sandbox.spec["linux"]["sysctl"] = json!({key: value});
        let error = sandbox.error();
        assert!(error.contains("sysctl") || error.contains("kernel parameter"), "{key}={value}: {error}");
        assert_eq!(pattern(), before, "by {key}={value}");
    }
}

/// Parameters of the machine, and those of a namespace that the container shares with it. Defence: the list in
/// `protect::sysctl_namespace`, and the look at the namespaces' numbers.
fn host_parameters() {
    for (key, missing) in [
        ("kernel.core_pattern", "none"),
        ("kernel.modprobe", "none"),
        ("vm.overcommit_memory", "none"),
        ("fs.file-max", "none"),
        ("kernel.shm_rmid_forced", "ipc"),
        ("net.ipv4.ip_forward", "network"),
    ] {
        let mut sandbox = Sandbox::new();
        let namespaces = sandbox.spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != missing);
        sandbox.spec["linux"]["sysctl"] = json!({key: "1"});
        let error = sandbox.error();
        assert!(error.contains(&format!("linux.sysctl[{key}]")), "{error}");
    }
}
