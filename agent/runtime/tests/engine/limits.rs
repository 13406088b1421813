//! All kinds of limits, and figures, in the kernel's own files.

use std::fs;
use std::path::PathBuf;

use berth_runtime::cgroup::{Cgroups, Version};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, until};

pub const TESTS: &[Test] = &[
    ("cpu_bandwidth_changes_in_any_order", bandwidth),
    ("idle_cgroups_have_no_weight", idle),
    ("swap_is_counted_as_the_version_does", swap),
    ("memory_knobs", memory_knobs),
    ("memory_below_its_use_is_refused", check_before_update),
    ("pids_zero_changes_nothing", pids),
    ("cpusets_fill_their_parents", cpuset_parents),
    ("what_a_machine_lacks_is_named", refused),
    ("what_is_not_asked_for_needs_no_controller", nothing_asked),
    ("unified_files", unified),
    ("device_rules_are_replaced", devices),
    ("details_have_the_form_of_runc", details),
];

fn v2() -> bool {
    cgroups().version() == Version::V2
}

fn cgroups() -> Cgroups {
    Cgroups::detect().unwrap()
}

/// Where a file of the sandbox's cgroup is.
fn place(sandbox: &Sandbox, controller: &str, v1: &str, v2_name: &str) -> PathBuf {
    if v2() {
        PathBuf::from(format!("/sys/fs/cgroup{}/{v2_name}", sandbox.cgroup))
    } else {
        PathBuf::from(format!("/sys/fs/cgroup/{controller}{}/{v1}", sandbox.cgroup))
    }
}

fn file(sandbox: &Sandbox, controller: &str, v1: &str, v2_name: &str) -> String {
    let path = place(sandbox, controller, v1, v2_name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

/// A sandbox with an empty cgroup that has these limits.
fn made(resources: Value) -> Sandbox {
    let sandbox = Sandbox::new();
    cgroups().create(&sandbox.cgroup, &serde_json::from_value(resources).unwrap()).unwrap();
    sandbox
}

fn set(sandbox: &Sandbox, resources: Value) {
    let text = resources.to_string();
    cgroups()
        .update(&sandbox.cgroup, &serde_json::from_value(resources).unwrap())
        .unwrap_or_else(|e| panic!("{text}: {e}"));
}

fn error(sandbox: &Sandbox, resources: Value) -> String {
    let text = resources.to_string();
    match cgroups().update(&sandbox.cgroup, &serde_json::from_value(resources).unwrap()) {
        Ok(()) => panic!("{text} was taken"),
        Err(error) => error.to_string(),
    }
}

fn bandwidth() {
    let sandbox = made(json!({"cpu": {"quota": 100_000, "period": 100_000, "burst": 50_000}}));
    let bandwidth = || {
        let max = if v2() {
            file(&sandbox, "", "", "cpu.max")
        } else {
            let part = |name| file(&sandbox, "cpu", name, "");
            format!("{} {}", part("cpu.cfs_quota_us"), part("cpu.cfs_period_us"))
        };
        (max.replace("-1 ", "max "), file(&sandbox, "cpu", "cpu.cfs_burst_us", "cpu.max.burst"))
    };
    let expect = |max: &str, burst: &str| assert_eq!(bandwidth(), (max.to_owned(), burst.to_owned()));
    expect("100000 100000", "50000");
    // The old burst does not fit the new quota, so it must go first.
    set(&sandbox, json!({"cpu": {"quota": 20_000, "burst": 1000}}));
    expect("20000 100000", "1000");
    // And the new burst does not fit the old quota.
    set(&sandbox, json!({"cpu": {"quota": 90_000, "burst": 80_000}}));
    expect("90000 100000", "80000");
    set(&sandbox, json!({"cpu": {"burst": 0}}));
    set(&sandbox, json!({"cpu": {"period": 50_000}}));
    expect("90000 50000", "0");
    set(&sandbox, json!({"cpu": {"quota": 0, "period": 0, "shares": 0}}));
    expect("90000 50000", "0");
    set(&sandbox, json!({"cpu": {"quota": -1}}));
    expect("max 50000", "0");
    let parent = sandbox.cgroup.rsplit_once('/').unwrap().0.to_owned();
    cgroups().update(&parent, &serde_json::from_value(json!({"cpu": {"quota": 50_000}})).unwrap()).unwrap();
    if !v2() {
        // v1 refuses a child's share above its parent's; in the old period the new quota would be that.
        set(&sandbox, json!({"cpu": {"quota": 5_000, "period": 10_000}}));
        set(&sandbox, json!({"cpu": {"quota": 40_000, "period": 100_000}}));
        expect("40000 100000", "0");
    }
}

fn idle() {
    let sandbox = made(json!({"cpu": {"shares": 2048}}));
    let weight = || file(&sandbox, "cpu", "cpu.shares", "cpu.weight");
    assert_eq!(weight(), if v2() { "174" } else { "2048" });
    set(&sandbox, json!({"cpu": {"idle": 1, "shares": 512}}));
    assert_eq!(file(&sandbox, "cpu", "cpu.idle", "cpu.idle"), "1");
    set(&sandbox, json!({"cpu": {"idle": 0, "shares": 512}}));
    assert_eq!(file(&sandbox, "cpu", "cpu.idle", "cpu.idle"), "0");
    assert_eq!(weight(), if v2() { "59" } else { "512" });
}

fn swap() {
    let mib = |n: i64| n << 20;
    let sandbox = made(json!({"memory": {"limit": mib(64), "swap": mib(96)}}));
    let limits = || {
        let swap = place(&sandbox, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
        (
            file(&sandbox, "memory", "memory.limit_in_bytes", "memory.max"),
            fs::read_to_string(swap).unwrap().trim().to_owned(),
        )
    };
    let expect = |limit: i64, both: i64| {
        let second = if v2() { both - limit } else { both };
        assert_eq!(limits(), (limit.to_string(), second.to_string()));
    };
    expect(mib(64), mib(96));
    // Both go up, then both go down: v1 wants another order each time.
    set(&sandbox, json!({"memory": {"limit": mib(128), "swap": mib(256)}}));
    expect(mib(128), mib(256));
    set(&sandbox, json!({"memory": {"limit": mib(32), "swap": mib(32)}}));
    expect(mib(32), mib(32));
    // The limit in force is what the new one of both is counted from.
    set(&sandbox, json!({"memory": {"swap": mib(48)}}));
    expect(mib(32), mib(48));
    assert!(error(&sandbox, json!({"memory": {"limit": mib(32), "swap": mib(16)}})).contains("memory"));
    set(&sandbox, json!({"memory": {"limit": -1}}));
    let unlimited = if v2() { "max".to_owned() } else { "9223372036854771712".to_owned() };
    assert_eq!(limits(), (unlimited.clone(), unlimited));
}

fn memory_knobs() {
    let sandbox = made(json!({"memory": {"reservation": 32 << 20, "kernel": 1 << 30, "useHierarchy": true}}));
    assert_eq!(file(&sandbox, "memory", "memory.soft_limit_in_bytes", "memory.low"), (32 << 20).to_string());
    if v2() {
        let text = error(&sandbox, json!({"memory": {"swappiness": 10}}));
        assert!(text.contains("memory.swappiness"), "{text}");
        let text = error(&sandbox, json!({"memory": {"disableOOMKiller": true}}));
        assert!(text.contains("memory.disableOOMKiller"), "{text}");
        set(&sandbox, json!({"memory": {"disableOOMKiller": false}}));
        return;
    }
    set(&sandbox, json!({"memory": {"swappiness": 10, "disableOOMKiller": true, "kernelTCP": 8 << 20}}));
    let v1 = |name| file(&sandbox, "memory", name, "");
    assert_eq!(v1("memory.swappiness"), "10");
    assert!(v1("memory.oom_control").contains("oom_kill_disable 1"));
    assert_eq!(v1("memory.kmem.tcp.limit_in_bytes"), (8 << 20).to_string());
    set(&sandbox, json!({"memory": {"disableOOMKiller": false}}));
    assert!(v1("memory.oom_control").contains("oom_kill_disable 0"));
}

fn check_before_update() {
    let sandbox = Sandbox::script("head -c 8388608 /dev/zero > /dev/shm/x; echo > /dev/shm/done; sleep 100");
    let container = sandbox.start().unwrap();
    until("the file", || sandbox.exec(&container, "test -e /dev/shm/done").code() == 0);
    let text = error(&sandbox, json!({"memory": {"limit": 1 << 20, "checkBeforeUpdate": true}}));
    assert!(text.contains("memory.limit") && text.contains("below the current use"), "{text}");
    assert!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(container.pid), None).is_ok());
    stop(&container);
}

fn pids() {
    let sandbox = made(json!({"pids": {"limit": 7}}));
    set(&sandbox, json!({"pids": {"limit": 0}}));
    assert_eq!(file(&sandbox, "pids", "pids.max", "pids.max"), "7");
    set(&sandbox, json!({"pids": {"limit": -1}}));
    assert_eq!(file(&sandbox, "pids", "pids.max", "pids.max"), "max");
}

fn cpuset_parents() {
    let sandbox = made(json!({"cpu": {"cpus": "0", "mems": "0"}}));
    assert_eq!(file(&sandbox, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(file(&sandbox, "cpuset", "cpuset.mems", "cpuset.mems"), "0");
    if !v2() {
        let parent = sandbox.cgroup.rsplit_once('/').unwrap().0;
        let read = |path: &str| fs::read_to_string(format!("/sys/fs/cgroup/cpuset{path}")).unwrap();
        for name in ["cpuset.cpus", "cpuset.mems"] {
            assert_eq!(read(&format!("{parent}/{name}")), read(&format!("/{name}")), "{name}");
        }
    }
}

fn refused() {
    let sandbox = made(json!({}));
    let mut cases = vec![
        (json!({"blockIO": {"leafWeight": 300}}), "blockIO.leafWeight"),
        (json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}), "hugepageLimits"),
        (json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 4096}]}), "hugepageLimits.3MB"),
        (json!({"rdma": {"mlx4_0": {"hcaHandles": 2}}}), "rdma.mlx4_0"),
    ];
    if v2() {
        cases.push((json!({"network": {"classID": 1}}), "network"));
        cases.push((json!({"cpu": {"realtimeRuntime": 1000}}), "cpu.realtimeRuntime"));
    } else {
        cases.push((json!({"unified": {"memory.high": "max"}}), "unified"));
    }
    for (resources, field) in cases {
        let text = error(&sandbox, resources);
        assert!(text.contains(field) && text.contains(&sandbox.cgroup), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

fn nothing_asked() {
    made(json!({
        "cpu": {"shares": 0, "burst": 0, "idle": 0, "cpus": "", "mems": ""},
        "memory": {"limit": 0, "swap": 0, "reservation": 0},
        "pids": {"limit": 0},
        "blockIO": {"weight": 0, "leafWeight": 0, "weightDevice": []},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "network": {"priorities": []},
        "rdma": {}, "unified": {}, "devices": [],
    }));
}

fn unified() {
    let sandbox = made(json!({}));
    if !v2() {
        assert!(error(&sandbox, json!({"unified": {"memory.high": "1M"}})).contains("cgroup v1"));
        return;
    }
    set(
        &sandbox,
        json!({"memory": {"limit": 64 << 20}, "unified": {"memory.high": "33554432", "pids.max": "9"}}),
    );
    assert_eq!(file(&sandbox, "", "", "memory.high"), "33554432");
    assert_eq!(file(&sandbox, "", "", "memory.max"), (64 << 20).to_string());
    assert_eq!(file(&sandbox, "", "", "pids.max"), "9");
    let text = error(&sandbox, json!({"unified": {"memory.nonsense": "1"}}));
    assert!(text.contains("unified.memory.nonsense"), "{text}");
    assert!(error(&sandbox, json!({"unified": {"a/b.c": "1"}})).contains("unified"));
}

fn devices() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let can = |path: &str| sandbox.exec(&container, &format!("head -c 1 {path} >/dev/null")).code() == 0;
    assert!(can("/dev/zero") && can("/dev/full"));
    let allow = |minor: i64| json!({"allow": true, "type": "c", "major": 1, "minor": minor, "access": "rw"});
    let deny = json!({"allow": false, "type": "a", "access": "rwm"});
    // /dev/null is what the redirection above needs.
    set(&sandbox, json!({"devices": [deny, allow(3), allow(5)]}));
    assert!(can("/dev/zero") && !can("/dev/full"));
    set(&sandbox, json!({"devices": [deny, allow(3), allow(7)]}));
    assert!(!can("/dev/zero") && can("/dev/full"));
    stop(&container);
}

fn details() {
    let mut sandbox = Sandbox::script("sleep 100");
    sandbox.spec["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20}, "pids": {"limit": 20}, "cpu": {"cpus": "0"},
    });
    let container = sandbox.start().unwrap();
    let details = serde_json::to_value(cgroups().details(&sandbox.cgroup).unwrap()).unwrap();
    assert_eq!(details["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(details["pids"], json!({"current": 1, "limit": 20}));
    assert_eq!(details["cpuset"]["cpus"], json!([0]));
    assert!(details["cpu"]["usage"]["total"].as_u64().is_some());
    assert_eq!(
        details["cpu"]["throttling"],
        json!({"periods": 0, "throttledPeriods": 0, "throttledTime": 0})
    );
    let raw = details["memory"]["raw"].as_object().unwrap();
    assert!(raw.contains_key("pgfault") && raw.len() > 10, "{raw:?}");
    if v2() {
        assert!(details["memory"]["psi"]["some"]["avg10"].is_f64(), "{details}");
    } else {
        assert!(details["memory"]["swap"]["limit"].as_u64().unwrap() > 0);
        assert!(!details["cpu"]["usage"]["percpu"].as_array().unwrap().is_empty());
    }
    stop(&container);
    assert!(cgroups().details("/berth-test-none").unwrap_err().is_not_found());
}
