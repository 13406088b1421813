//! Limits on containers.

use std::fs;
use std::path::PathBuf;

use berth_runtime::cgroup::{Cgroups, CpuWeight, Version};
use nix::sys::wait::WaitStatus;
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, until};

pub const TESTS: &[Test] = &[
    ("the_process_is_in_the_cgroup_everywhere", placed),
    ("it_sees_its_cgroup_as_the_root", sees_root),
    ("the_oci_runtime_shows_every_controller", shows_all),
    ("limits_are_written", limits),
    ("limits_can_be_changed", update),
    ("too_much_memory_is_killed_and_counted", memory),
    ("too_many_processes_are_refused", pids),
    ("figures_grow", figures),
    ("processor_time_is_throttled", throttled),
    ("kill_takes_everything", kill),
    ("remove_takes_everything_and_can_be_repeated", remove),
    ("remove_takes_what_is_frozen_below", remove_frozen),
    ("weights_by_both_formulas", weights),
    ("cpusets_come_from_the_parent", cpuset),
    ("block_devices_are_throttled", block_io),
    ("bad_limits_are_errors", bad),
];

fn file(sandbox: &Sandbox, controller: &str, v1: &str, v2: &str) -> String {
    let path: PathBuf = match Cgroups::detect().unwrap().version() {
        Version::V1 => PathBuf::from(format!("/sys/fs/cgroup/{controller}{}/{v1}", sandbox.cgroup)),
        Version::V2 => PathBuf::from(format!("/sys/fs/cgroup{}/{v2}", sandbox.cgroup)),
    };
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

fn v2() -> bool {
    Cgroups::detect().unwrap().version() == Version::V2
}

fn placed() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let text = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
    let controllers: &[&str] = if v2() {
        &["0:"]
    } else {
        &["cpu:", "cpuacct:", "memory:", "pids:", "devices:", "freezer:", "blkio:"]
    };
    for controller in controllers {
        let line =
            text.lines().find(|l| l.contains(controller)).unwrap_or_else(|| panic!("{controller}: {text}"));
        assert!(line.ends_with(&sandbox.cgroup), "{line}");
    }
    assert_eq!(Cgroups::detect().unwrap().pids(&sandbox.cgroup).unwrap(), [container.pid]);
    stop(&container);
}

fn sees_root() {
    let sandbox = Sandbox::script(
        "cat /proc/self/cgroup; ls /sys/fs/cgroup; touch /sys/fs/cgroup/x 2>/dev/null || echo ro",
    );
    let output = sandbox.run();
    assert!(!output.ok().contains("berth-test"), "{}", output.stdout);
    let expected = if v2() { "cgroup.procs" } else { "memory" };
    assert!(output.ok().contains(expected) && output.ok().ends_with("ro"), "{}", output.stdout);
    let inside = Sandbox::script(if v2() {
        "cat /sys/fs/cgroup/cgroup.procs"
    } else {
        "cat /sys/fs/cgroup/pids/cgroup.procs"
    });
    assert!(inside.run().ok().lines().any(|l| l == "1"));
}

/// podman changes limits of all controllers and reads them inside.
fn shows_all() {
    let mut sandbox = Sandbox::script("cat /sys/fs/cgroup/cpuset/cpuset.cpus; sleep 100");
    sandbox.everywhere = true;
    let container = sandbox.start().unwrap();
    let text = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
    for line in text.lines().filter(|l| ["cpuset:", "name=systemd:"].iter().any(|name| l.contains(name))) {
        assert!(line.ends_with(&sandbox.cgroup), "{line}");
    }
    if !v2() {
        until("the cpus", || fs::read_to_string(sandbox.host("out")).unwrap().contains('0'));
    }
    stop(&container);
}

fn limits() {
    let mut sandbox = Sandbox::script("sleep 100");
    sandbox.spec["linux"]["resources"] = json!({
        "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000},
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "pids": {"limit": 20},
    });
    let container = sandbox.start().unwrap();
    assert_eq!(file(&sandbox, "cpu", "cpu.shares", "cpu.weight"), if v2() { "100" } else { "1024" });
    assert_eq!(
        file(&sandbox, "cpu", "cpu.cfs_quota_us", "cpu.max"),
        if v2() { "50000 100000" } else { "50000" }
    );
    assert_eq!(file(&sandbox, "memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(file(&sandbox, "memory", "memory.soft_limit_in_bytes", "memory.low"), (32 << 20).to_string());
    assert_eq!(file(&sandbox, "pids", "pids.max", "pids.max"), "20");
    if v2() {
        assert_eq!(file(&sandbox, "", "", "memory.oom.group"), "1");
    }
    let stats = Cgroups::detect().unwrap().stats(&sandbox.cgroup).unwrap();
    assert_eq!((stats.memory.limit, stats.pids.limit), (Some(64 << 20), Some(20)));
    stop(&container);
}

fn update() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let cgroups = Cgroups::detect().unwrap();
    let set = |value| cgroups.update(&sandbox.cgroup, &serde_json::from_value(value).unwrap()).unwrap();
    set(json!({"memory": {"limit": 100 << 20}}));
    set(json!({"pids": {"limit": 5}, "cpu": {"quota": 20_000, "period": 50_000}}));
    assert_eq!(file(&sandbox, "memory", "memory.limit_in_bytes", "memory.max"), (100 << 20).to_string());
    assert_eq!(file(&sandbox, "pids", "pids.max", "pids.max"), "5");
    assert_eq!(
        file(&sandbox, "cpu", "cpu.cfs_period_us", "cpu.max"),
        if v2() { "20000 50000" } else { "50000" }
    );
    set(json!({"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}));
    assert_eq!(file(&sandbox, "pids", "pids.max", "pids.max"), "max");
    assert_eq!(cgroups.stats(&sandbox.cgroup).unwrap().memory.limit, None);
    // On v1 this hierarchy was not used so far.
    set(json!({"cpu": {"cpus": "0"}}));
    assert_eq!(file(&sandbox, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert!(file(&sandbox, "cpuset", "cgroup.procs", "cgroup.procs").contains(&container.pid.to_string()));
    stop(&container);
}

fn memory() {
    let mut sandbox = Sandbox::script("tail /dev/zero");
    sandbox.spec["linux"]["resources"]["memory"] = json!({"limit": 20 << 20, "swap": 20 << 20});
    let output = sandbox.run();
    assert_eq!(output.code(), 137, "{output:?}");
    let cgroups = Cgroups::detect().unwrap();
    assert!(cgroups.oom_kills(&sandbox.cgroup).unwrap() >= 1);
    let parent = sandbox.cgroup.rsplit_once('/').unwrap().0;
    assert!(cgroups.oom_kills(parent).unwrap() >= 1, "the parent counts it, too");
    assert!(cgroups.stats(&sandbox.cgroup).unwrap().memory.oom_kills >= 1);
}

fn pids() {
    let mut sandbox = Sandbox::script("for i in 1 2 3 4 5 6 7 8; do sleep 50 & done; echo all");
    sandbox.spec["linux"]["resources"]["pids"] = json!({"limit": 4});
    let output = sandbox.run();
    assert!(!output.stdout.contains("all"), "{output:?}");
    assert!(output.stderr.contains("can't fork"), "{output:?}");
}

fn figures() {
    let sandbox = Sandbox::script(
        "dd if=/dev/zero of=/tmp/x bs=1M count=8 2>/dev/null; i=0; while test $i -lt 20000; do i=$((i+1)); done; echo > /dev/shm/done; sleep 100",
    );
    let container = sandbox.start().unwrap();
    until("the work", || sandbox.exec(&container, "test -e /dev/shm/done").code() == 0);
    let stats = Cgroups::detect().unwrap().stats(&sandbox.cgroup).unwrap();
    assert!(stats.cpu.usage_ns > 0, "{stats:?}");
    assert!(stats.memory.usage > 0 && stats.memory.working_set <= stats.memory.usage, "{stats:?}");
    assert!(stats.memory.pgfault > 0 && stats.memory.rss > 0, "{stats:?}");
    assert!(stats.pids.current >= 1, "{stats:?}");
    stop(&container);
    assert!(Cgroups::detect().unwrap().stats("/berth-test-none").unwrap_err().is_not_found());
}

fn throttled() {
    let mut sandbox = Sandbox::script("while :; do :; done");
    sandbox.spec["linux"]["resources"]["cpu"] = json!({"quota": 5_000, "period": 50_000});
    let container = sandbox.start().unwrap();
    let cgroups = Cgroups::detect().unwrap();
    // A period counts when it is over, its time when the processes go on: one after the other.
    until("throttling", || {
        let cpu = cgroups.stats(&sandbox.cgroup).unwrap().cpu;
        cpu.throttled_periods > 1 && cpu.throttled_ns > 0
    });
    stop(&container);
}

fn kill() {
    let sandbox = Sandbox::script("sleep 100 & sleep 100 & sleep 100 & wait");
    let container = sandbox.start().unwrap();
    let cgroups = Cgroups::detect().unwrap();
    until("all of them", || cgroups.pids(&sandbox.cgroup).unwrap().len() == 4);
    cgroups.kill(&sandbox.cgroup).unwrap();
    assert!(matches!(
        crate::sandbox::wait(std::os::fd::AsFd::as_fd(&container.pidfd)),
        WaitStatus::Signaled(..)
    ));
    until("an empty cgroup", || cgroups.pids(&sandbox.cgroup).unwrap().is_empty());
    cgroups.kill("/berth-test-none").unwrap();
}

fn remove() {
    let mut sandbox = Sandbox::script("sleep 100 & sleep 100 & wait");
    sandbox.spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let container = sandbox.start().unwrap();
    let cgroups = Cgroups::detect().unwrap();
    let (parent, _) = sandbox.cgroup.rsplit_once('/').unwrap();
    cgroups.create(&format!("{parent}/other/deep"), &Default::default()).unwrap();
    assert_eq!(cgroups.list(parent), ["c", "other"]);
    cgroups.remove(parent).unwrap();
    assert!(cgroups.list(parent).is_empty());
    assert!(!cgroups.list("/").contains(&parent[1..].to_owned()));
    crate::sandbox::wait(std::os::fd::AsFd::as_fd(&container.pidfd));
    cgroups.remove(parent).unwrap();
}

/// As a pod goes whose shim was killed while it was paused: what is frozen lies below what is removed.
fn remove_frozen() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let cgroups = Cgroups::detect().unwrap();
    let (parent, _) = sandbox.cgroup.rsplit_once('/').unwrap();
    cgroups.freeze(&sandbox.cgroup).unwrap();
    cgroups.remove(parent).unwrap();
    assert!(!cgroups.list("/").contains(&parent[1..].to_owned()));
    crate::sandbox::wait(std::os::fd::AsFd::as_fd(&container.pidfd));
}

fn weights() {
    let sandbox = Sandbox::new();
    let cgroups = Cgroups::detect().unwrap().with_cpu_weight(CpuWeight::Linear);
    let resources = serde_json::from_value(json!({"cpu": {"shares": 1024}})).unwrap();
    cgroups.create(&sandbox.cgroup, &resources).unwrap();
    cgroups.create(&sandbox.cgroup, &resources).unwrap();
    assert_eq!(file(&sandbox, "cpu", "cpu.shares", "cpu.weight"), if v2() { "39" } else { "1024" });
}

fn cpuset() {
    let mut sandbox = Sandbox::script("grep Cpus_allowed_list /proc/self/status");
    sandbox.spec["linux"]["resources"]["cpu"] = json!({"cpus": "0"});
    assert_eq!(sandbox.run().ok(), "Cpus_allowed_list:\t0");
    if !v2() {
        assert_eq!(file(&sandbox, "cpuset", "cpuset.mems", ""), "0");
    }
}

/// Any block device will do; a machine without one has nothing to throttle.
fn block_io() {
    let Some(device) = fs::read_dir("/sys/block").unwrap().filter_map(Result::ok).next() else { return };
    let numbers = fs::read_to_string(device.path().join("dev")).unwrap();
    let (major, minor) = numbers.trim().split_once(':').unwrap();
    let (major, minor): (i64, i64) = (major.parse().unwrap(), minor.parse().unwrap());
    let mut sandbox = Sandbox::script("sleep 100");
    let throttle = json!([{"major": major, "minor": minor, "rate": 1 << 20}]);
    sandbox.spec["linux"]["resources"]["blockIO"] = json!({"throttleReadBpsDevice": throttle});
    let container = sandbox.start().unwrap();
    let text = file(&sandbox, "blkio", "blkio.throttle.read_bps_device", "io.max");
    let expected =
        if v2() { format!("{major}:{minor} rbps=1048576") } else { format!("{major}:{minor} 1048576") };
    assert!(text.starts_with(&expected), "{text}");
    stop(&container);
}

fn bad() {
    let sandbox = Sandbox::new();
    let cgroups = Cgroups::detect().unwrap();
    let error = |value| {
        let resources = serde_json::from_value(value).unwrap();
        cgroups.create(&sandbox.cgroup, &resources).unwrap_err().to_string()
    };
    let text = error(json!({"cpu": {"cpus": "9999"}}));
    assert!(text.contains("cpu.cpus") && text.contains(&sandbox.cgroup), "{text}");
    let text = error(json!({"memory": {"limit": 100 << 20, "swap": 50 << 20}}));
    assert!(text.contains("memory"), "{text}");
    let text = error(json!({"unified": {"../escape": "1"}}));
    assert!(text.contains("unified"), "{text}");
}
