//! Scheduler, priorities, CPU affinity, NUMA policy, personality, labels and names of a process.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop};

pub const TESTS: &[Test] = &[
    ("the_scheduler_and_its_priority", scheduler),
    ("a_scheduler_that_does_not_fit_is_refused", bad_scheduler),
    ("the_io_priority", io_priority),
    ("the_personality", personality),
    ("the_memory_policy", memory_policy),
    ("an_exec_takes_them_over_or_has_its_own", exec),
    ("the_cpu_affinity_of_an_exec", affinity),
    ("a_container_may_run_on_every_cpu_of_the_machine", every_cpu),
    ("labels_of_systems_that_the_kernel_lacks_are_refused", labels),
    ("names_need_a_uts_namespace", names),
    ("a_limit_listed_twice_and_a_wide_umask_are_refused", doubles),
];

/// Nice value, real-time priority and policy of the process: the fields 19, 40 and 41 of proc_pid_stat(5).
const SCHEDULER: &str = "sed 's/.*) //' /proc/self/stat | cut -d' ' -f17,38,39";

fn with(pointer: &str, value: Value, script: &str) -> Sandbox {
    let mut sandbox = Sandbox::script(script);
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    sandbox.spec.pointer_mut(parent).unwrap()[name] = value;
    sandbox
}

fn scheduler() {
    for (wanted, seen) in [
        (json!({"policy": "SCHED_BATCH", "nice": 7}), "7 0 3"),
        (json!({"policy": "SCHED_OTHER", "nice": -3}), "-3 0 0"),
        (json!({"policy": "SCHED_IDLE"}), "0 0 5"),
    ] {
        assert_eq!(with("/process/scheduler", wanted.clone(), SCHEDULER).run().ok(), seen, "{wanted}");
    }
    for (wanted, seen) in [
        (json!({"policy": "SCHED_FIFO", "priority": 5}), "0 5 1"),
        (json!({"policy": "SCHED_RR", "priority": 9}), "0 9 2"),
        // The pipe's parts are forked, so they are back at the ordinary policy.
        (json!({"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_RESET_ON_FORK"]}), "0 0 0"),
    ] {
        let sandbox = with("/process/scheduler", wanted.clone(), SCHEDULER);
        if Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
            // A v1 cgroup has no real time unless it is given some.
            assert!(sandbox.error().contains("process.scheduler SCHED_"), "{wanted}");
        } else {
            assert_eq!(sandbox.run().ok(), seen, "{wanted}");
        }
    }
}

fn bad_scheduler() {
    let error = |value| with("/process/scheduler", value, "true").error();
    let found = error(json!({"policy": "SCHED_OTHER", "priority": 3}));
    assert!(found.starts_with("process.scheduler.priority"), "{found}");
    let found = error(json!({"policy": "SCHED_RR", "priority": 100}));
    assert!(found.contains("process.scheduler SCHED_RR"), "{found}");
}

fn io_priority() {
    let sandbox = with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 3}), "ionice");
    assert_eq!(sandbox.run().ok(), "best-effort: prio 3");
    let sandbox = with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0}), "ionice");
    assert_eq!(sandbox.run().ok(), "idle");
    let error =
        with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_RT", "priority": 8}), "true").error();
    assert!(error.starts_with("process.ioPriority.priority"), "{error}");
}

fn personality() {
    let machine = |domain: &str| {
        with("/linux/personality", json!({"domain": domain}), "cat /proc/self/personality").run()
    };
    let plain = machine("LINUX");
    let narrow = machine("LINUX32");
    assert!(plain.ok().ends_with("00000000"), "{plain:?}");
    assert!(narrow.ok().ends_with("00000008"), "{narrow:?}");
    let flags = json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]});
    let error = with("/linux/personality", flags, "true").error();
    assert!(error.starts_with("linux.personality.flags"), "{error}");
}

/// The kernel shows the policy of a mapping when it is not the default one.
fn memory_policy() {
    if !Path::new("/proc/self/numa_maps").exists() {
        // A kernel without NUMA has no such system call: it must say so.
        let error = with("/linux/memoryPolicy", json!({"mode": "MPOL_LOCAL"}), "true").error();
        assert!(error.contains("linux.memoryPolicy"), "{error}");
        return;
    }
    let script = "head -n 1 /proc/self/numa_maps | cut -d' ' -f2";
    let bind = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    assert_eq!(with("/linux/memoryPolicy", bind, script).run().ok(), "bind=static:0");
    assert_eq!(with("/linux/memoryPolicy", json!({"mode": "MPOL_LOCAL"}), script).run().ok(), "local");
    let error = with("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0-"}), "true").error();
    assert!(error.starts_with("linux.memoryPolicy.nodes"), "{error}");
}

fn exec() {
    let mut sandbox = with("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 7}), "sleep 100");
    sandbox.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    sandbox.spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    let container = sandbox.start().unwrap();
    let first = sandbox.exec(&container, &format!("{SCHEDULER}; ionice; cat /proc/self/personality"));
    let own = json!({"args": ["sh", "-c", SCHEDULER], "scheduler": {"policy": "SCHED_OTHER", "nice": 4}});
    let own = sandbox.exec_process(&container, own);
    stop(&container);
    assert_eq!(first.ok(), "7 0 3\nidle\n00000008");
    assert_eq!(own.ok(), "4 0 0");
}

fn affinity() {
    let script = "grep Cpus_allowed_list /proc/self/status | cut -f2";
    let mut sandbox = Sandbox::script("sleep 100");
    sandbox.spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    let container = sandbox.start().unwrap();
    let first = sandbox.exec(&container, &script.replace("self", "1"));
    let inherited = sandbox.exec(&container, script);
    let cpus = first.ok().to_owned();
    let own = json!({"args": ["sh", "-c", script], "execCPUAffinity": {"initial": "0", "final": cpus}});
    let own = sandbox.exec_process(&container, own);
    stop(&container);
    assert_eq!(inherited.ok(), "0");
    assert_eq!(own.ok(), cpus, "the final list wins, and the first process has no part in it");
}

/// Its first process is sent to another CPU than its maker's to begin with; where it ends up first is a matter of luck.
fn every_cpu() {
    let all = std::fs::read_to_string("/sys/fs/cgroup/cpuset/cpuset.effective_cpus")
        .or_else(|_| std::fs::read_to_string("/sys/devices/system/cpu/online"))
        .unwrap();
    for at in 0..10 {
        let sandbox = Sandbox::script("grep Cpus_allowed_list /proc/self/status | cut -f2");
        assert_eq!(sandbox.run().ok(), all.trim(), "{at}");
    }
}

fn labels() {
    let apparmor = with("/process/apparmorProfile", json!("some-profile"), "true");
    if std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.starts_with('Y')) {
        assert!(
            apparmor.error().contains("process.apparmorProfile some-profile"),
            "there is no such profile"
        );
    } else {
        assert_eq!(apparmor.error(), "process.apparmorProfile: this kernel has no AppArmor");
    }
    with("/process/apparmorProfile", json!("unconfined"), "true").run().ok();
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        let label = json!("system_u:system_r:container_t:s0");
        let error = with("/process/selinuxLabel", label.clone(), "true").error();
        assert_eq!(error, "process.selinuxLabel: this kernel has no SELinux");
        let mut container = with("/linux/mountLabel", label, "sleep 100").start().unwrap();
        let warnings = std::mem::take(&mut container.warnings);
        stop(&container);
        assert_eq!(warnings, ["linux.mountLabel is without effect: this kernel has no SELinux"]);
    }
}

fn names() {
    for name in ["hostname", "domainname"] {
        let mut sandbox = Sandbox::script("true");
        sandbox.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
        sandbox.spec[name] = json!("inside");
        assert_eq!(sandbox.error(), format!("{name}: it needs a UTS namespace of the container's own"));
    }
    let first = Sandbox::script("sleep 100");
    let running = first.start().unwrap();
    let mut second = Sandbox::script("hostname");
    second.spec["linux"]["namespaces"][4]["path"] = json!(format!("/proc/{}/ns/uts", running.pid));
    second.spec["hostname"] = json!("joined");
    let output = second.run();
    let seen = first.exec(&running, "hostname");
    stop(&running);
    assert_eq!((output.ok(), seen.ok()), ("joined", "joined"));
}

fn doubles() {
    let limit = json!({"type": "RLIMIT_CORE", "soft": 0, "hard": 0});
    let error = with("/process/rlimits", json!([limit, limit]), "true").error();
    assert_eq!(error, "process.rlimits[RLIMIT_CORE]: it is listed twice");
    let mut sandbox = Sandbox::script("true");
    sandbox.spec["process"]["user"]["umask"] = json!(0o1000);
    assert!(sandbox.error().starts_with("process.user.umask"));
}
