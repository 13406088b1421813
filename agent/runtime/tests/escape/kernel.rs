//! Doors that the kernel has for whoever is privileged enough.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use berth_runtime::cgroup::{Cgroups, Version};
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::{Sandbox, wait};

pub const TESTS: &[Test] = &[
    ("cve_2022_0492_release_agent_without_capabilities", release_agent),
    ("cve_2022_0492_release_agent_with_cap_sys_admin", release_agent_admin),
    ("cve_2023_25809_the_cgroup_mount_is_read_only", cgroup_readonly),
    ("devices_of_the_host_cannot_be_opened", devices),
    ("processes_of_the_host_cannot_be_killed", kill_all),
    ("a_fork_bomb_ends_at_its_limit_and_with_its_container", fork_bomb),
];

/// Every release_agent of this machine with its content; none on cgroup v2.
fn agents() -> Vec<(PathBuf, String)> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    hierarchies
        .filter_map(|h| Some((h.path(), fs::read_to_string(h.path().join("release_agent")).ok()?)))
        .collect()
}

/// Mounts every hierarchy that there may be and writes a program's name to where the kernel takes it from.
const ATTACK: &str = "mkdir -p /tmp/m
    for c in memory cpu,cpuacct cpu cpuacct pids rdma cpuset devices freezer blkio net_cls,net_prio perf_event hugetlb none,name=systemd none,name=x; do
        mount -t cgroup -o $c cgroup /tmp/m 2>/dev/null && echo mounted >> /tmp/log || continue
        for d in /tmp/m /tmp/m/*; do [ -e $d/release_agent ] && echo \"agent in $c\"; echo /tmp/evil > $d/release_agent; done 2>/dev/null
        umount /tmp/m
    done
    mount -t cgroup -o none,name=y,release_agent=/tmp/evil cgroup /tmp/m 2>/dev/null && echo 'a hierarchy with an agent'
    for c in /sys/fs/cgroup /sys/fs/cgroup/*; do
        mount -o remount,bind,rw $c 2>/dev/null
        [ -e $c/release_agent ] && echo \"agent in $c\"
        mount -t cgroup2 cgroup2 /tmp/m 2>/dev/null && [ ! -e /tmp/m/cgroup.events ] && echo 'the root of v2'
    done; echo done";

fn attack(sandbox: Sandbox) {
    let before = agents();
    let v1 = Cgroups::detect().unwrap().version() == Version::V1;
    assert_eq!(!before.is_empty(), v1, "the attack has a target where there is cgroup v1");
    // The attack writes files of that name when none is there.
    let output = sandbox.run();
    let after = agents();
    // An attack that succeeds must not outlive the test.
    for (hierarchy, content) in &before {
        if !after.iter().any(|(h, c)| (h, c) == (hierarchy, content)) {
            fs::write(hierarchy.join("release_agent"), content).unwrap();
        }
    }
    assert_eq!(after, before);
    assert_eq!(output.stdout, "done\n", "{output:?}");
}

/// A new user namespace gives every capability in it, and with that a mount of cgroup v1. Defence: the default seccomp
/// profile lets no process without CAP_SYS_ADMIN make namespaces or mounts.
fn release_agent() {
    let mut sandbox = Sandbox::script(&format!(
        "unshare -Urm true 2>/dev/null && echo 'a user namespace'; unshare -UrmC sh -c '{}' 2>/dev/null; {ATTACK}",
        "mount -t cgroup -o memory cgroup /tmp && echo mounted by namespace"
    ));
    std::os::unix::fs::symlink("busybox", sandbox.image("bin/unshare")).unwrap();
    let capabilities = serde_json::from_value(sandbox.spec["process"]["capabilities"].clone()).unwrap();
    let profile = berth_runtime::container::seccomp::default_profile(&capabilities);
    sandbox.spec["linux"]["seccomp"] = json!(profile);
    attack(sandbox);
}

/// Even who may mount sees only the container's part of each hierarchy, where the file is not. Defence: the container
/// is in its own cgroup namespace, made after it entered its cgroup (`Init::set_up`).
fn release_agent_admin() {
    let mut sandbox = Sandbox::script(ATTACK);
    for set in ["bounding", "effective", "permitted"] {
        sandbox.push(&format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"));
    }
    attack(sandbox);
}

/// Without a cgroup namespace, too, nothing below the mount can be written. Defence: each of the mounts that make up
/// /sys/fs/cgroup is read-only by itself (`Mounter::cgroup_bind`).
fn cgroup_readonly() {
    for own in [true, false] {
        let mut sandbox = Sandbox::script(
            "find /sys/fs/cgroup -type d | while read d; do mkdir $d/x 2>/dev/null && echo made in $d; done
             find /sys/fs/cgroup -type f | while read f; do : 2>/dev/null >> $f && echo open: $f; done; echo done",
        );
        std::os::unix::fs::symlink("busybox", sandbox.image("bin/find")).unwrap();
        let namespaces = sandbox.spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| own || n["type"] != "cgroup");
        let output = sandbox.run();
        assert_eq!(output.ok(), "done", "with a namespace: {own}");
    }
}

/// A device file for the host's disk can be made but not opened. Defence: the devices cgroup (v1) or program (v2).
fn devices() {
    let disks: Vec<String> = fs::read_dir("/sys/dev/block")
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().replace(':', " "))
        .collect();
    assert!(!disks.is_empty(), "the attack has no target");
    let make = |(n, numbers): (usize, &String)| {
        format!("mknod /tmp/d{n} b {numbers} && head -c 1 /tmp/d{n} && echo read {numbers};")
    };
    let all: String = disks.iter().enumerate().map(make).collect();
    let output = Sandbox::script(&format!("{all} for d in 1:1 1:2 10:229 10:237; do mknod /tmp/$d c ${{d%:*}} ${{d#*:}} && (: < /tmp/$d) && echo opened $d; done; echo done")).run();
    assert_eq!(output.ok(), "done");
    assert!(output.stderr.contains("not permitted"), "the files were not even made: {output:?}");
}

/// Defence: the PID namespace, in which the host's processes have no number.
fn kill_all() {
    let mut victim = std::process::Command::new("/bin/sleep").arg("100").spawn().unwrap();
    let script = format!(
        "kill -9 -1; kill -9 {}; kill -9 {}; ls /proc | grep -c '^[0-9]'",
        victim.id(),
        std::process::id()
    );
    let output = Sandbox::script(&script).run();
    let alive = victim.try_wait().unwrap().is_none();
    let _ = victim.kill();
    let _ = victim.wait();
    assert!(alive, "the host's process was killed");
    // The shell, ls and, if it is there already, grep.
    assert!(matches!(output.ok(), "2" | "3"), "{output:?}");
}

/// Defence: pids.max, and that a PID namespace ends with its first process.
fn fork_bomb() {
    let mut sandbox = Sandbox::script("f() { sleep 100 & f; }; f 2>/dev/null; echo bombed; sleep 100");
    sandbox.spec["linux"]["resources"]["pids"] = json!({"limit": 20});
    let container = sandbox.start().unwrap();
    let procs = |file: &Path| fs::read_to_string(file).unwrap_or_default();
    let events = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .map(|root| PathBuf::from(format!("{root}{}/pids.events", sandbox.cgroup)));
    crate::sandbox::until("the limit", || {
        events.iter().any(|e| procs(e).lines().any(|l| l.starts_with("max ") && l != "max 0"))
    });
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(container.pid), nix::sys::signal::SIGKILL);
    wait(container.pidfd.as_fd());
    let left: String = events.iter().map(|e| procs(&e.with_file_name("cgroup.procs"))).collect();
    assert_eq!(left, "");
}
