//! Further processes in a running container.

use std::fs;
use std::os::fd::AsFd;

use berth_runtime::cgroup::Cgroups;
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, traced, wait};

pub const TESTS: &[Test] = &[
    ("it_is_in_all_of_the_containers_namespaces", namespaces),
    ("it_is_a_child_of_the_caller_and_in_the_cgroup", child),
    ("exit_code_and_output", output),
    ("user_groups_and_working_folder", user),
    ("capabilities_and_seccomp_of_the_container_hold", confined),
    ("many_one_after_the_other", many),
    ("no_descriptor_leaks_into_it", descriptors),
    ("it_ends_with_the_container", ends),
    ("missing_things_are_errors", errors),
    ("a_container_that_has_ended", ended),
    ("a_limit_on_stacks_is_the_programs", small_stack),
    ("nothing_of_them_stays_in_the_callers_memory", memory),
    ("a_scheduler_that_children_do_not_inherit", scheduler),
    ("what_is_killed_for_want_of_memory_does_not_take_the_caller_along", oom),
];

/// The same ones where the new process needs memory of its own.
pub const TRACED: &[Test] = &[
    ("it_is_in_all_of_the_containers_namespaces", || traced(namespaces)),
    ("it_is_a_child_of_the_caller_and_in_the_cgroup", || traced(child)),
    ("exit_code_and_output", || traced(output)),
    ("user_groups_and_working_folder", || traced(user)),
    ("capabilities_and_seccomp_of_the_container_hold", || traced(confined)),
    ("many_one_after_the_other", || traced(many)),
    ("no_descriptor_leaks_into_it", || traced(descriptors)),
    ("it_ends_with_the_container", || traced(ends)),
    ("missing_things_are_errors", || traced(errors)),
    ("a_container_that_has_ended", || traced(ended)),
    ("a_limit_on_stacks_is_the_programs", || traced(small_stack)),
];

/// A new process is the child of one that prepares it.
fn scheduler() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let policy = |wanted| {
        let process = json!({"args": ["sleep", "100"], "scheduler": wanted});
        let started = sandbox.try_exec(&container, process).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", started.pid)).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(started.pid), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        wait(started.pidfd.as_fd());
        // Field 41 (proc_pid_stat(5)); the name is the second.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        rest.split_ascii_whitespace().nth(38).unwrap().parse::<i32>().unwrap()
    };
    let flags = ["SCHED_RESET_ON_FORK"];
    assert_eq!(policy(json!({"policy": "SCHED_BATCH", "flags": flags})), libc::SCHED_BATCH);
    let times =
        json!({"policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 100_000, "period": 1_000_000});
    assert_eq!(policy(times), 6, "SCHED_DEADLINE");
    stop(&container);
}

fn namespaces() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let output =
        sandbox.exec(&container, "for n in pid mnt cgroup ipc uts net; do readlink /proc/self/ns/$n; done");
    let inside: Vec<&str> = output.ok().lines().collect();
    for (at, kind) in ["pid", "mnt", "cgroup", "ipc", "uts", "net"].iter().enumerate() {
        let expected = fs::read_link(format!("/proc/{}/ns/{kind}", container.pid)).unwrap();
        assert_eq!(inside[at], expected.to_str().unwrap());
    }
    stop(&container);
}

fn child() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let started = sandbox.try_exec(&container, json!({"args": ["sleep", "50"]})).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
    assert!(status.contains(&format!("PPid:\t{}", std::process::id())), "{status}");
    let cgroups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroups(started.pid), cgroups(container.pid));
    assert!(cgroups(started.pid).contains(&sandbox.cgroup));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(started.pid), nix::sys::signal::SIGTERM).unwrap();
    wait(started.pidfd.as_fd());
    stop(&container);
}

fn output() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let output = sandbox.exec(&container, "echo o; echo e >&2; exit 42");
    assert_eq!((output.code(), &*output.stdout, &*output.stderr), (42, "o\n", "e\n"));
    stop(&container);
}

/// Whoever calls needs more of its stack than the program may have, and the processes on the way use it below that.
fn small_stack() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let in_use = std::hint::black_box([1_u8; 256 << 10]);
    let limit = json!({"type": "RLIMIT_STACK", "soft": 64 << 10, "hard": 64 << 10});
    let output =
        sandbox.exec_process(&container, json!({"args": ["sh", "-c", "ulimit -s"], "rlimits": [limit]}));
    assert_eq!(output.ok(), "64");
    assert_eq!(in_use.len(), 256 << 10);
    stop(&container);
}

fn user() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let process = json!({"args": ["sh", "-c", "id -u; id -g; id -G; pwd; echo $HOME; echo $X"], "cwd": "/tmp",
        "user": {"uid": 33, "gid": 34, "additionalGids": [4]}, "env": ["PATH=/bin", "X=y"]});
    assert_eq!(sandbox.exec_process(&container, process).ok(), "33\n34\n34 4\n/tmp\n/srv\ny");
    stop(&container);
}

fn confined() {
    let mut sandbox = Sandbox::script("sleep 100");
    sandbox.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    sandbox.spec["process"]["noNewPrivileges"] = json!(true);
    let container = sandbox.start().unwrap();
    let output = sandbox.exec(&container, "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/1/status > /tmp/1
        grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status > /tmp/2; cat /tmp/1 /tmp/2; mkdir /x || echo no");
    stop(&container);
    let lines: Vec<&str> = output.ok().lines().collect();
    assert_eq!(lines[..4], lines[4..8]);
    assert_eq!(lines[8], "no");
}

fn many() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    for n in 0..30 {
        assert_eq!(sandbox.exec(&container, &format!("exit {n}")).code(), n);
    }
    stop(&container);
}

fn descriptors() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let output = sandbox.exec_process(&container, json!({"args": ["ls", "/proc/self/fd"]}));
    assert_eq!(output.ok().lines().count(), 4, "{}", output.stdout);
    stop(&container);
}

fn ends() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let started = sandbox.try_exec(&container, json!({"args": ["sleep", "100"]})).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(container.pid), nix::sys::signal::SIGKILL).unwrap();
    assert!(matches!(wait(started.pidfd.as_fd()), nix::sys::wait::WaitStatus::Signaled(_, _, _)));
    wait(container.pidfd.as_fd());
}

fn errors() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    let error = |process| sandbox.try_exec(&container, process).unwrap_err().to_string();
    assert_eq!(error(json!({"args": ["nope"]})), "exec: \"nope\": executable file not found in $PATH");
    assert_eq!(error(json!({"args": ["/x/y"]})), "exec: \"/x/y\": stat /x/y: no such file or directory");
    assert_eq!(error(json!({"args": ["/etc"]})), "exec: \"/etc\": is a directory: permission denied");
    let missing = error(json!({"args": ["true"], "cwd": "/no/such"}));
    assert!(missing.contains("working folder /no/such"), "{missing}");
    assert!(error(json!({"args": []})).contains("process.args"));
    stop(&container);
}

fn ended() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    stop(&container);
    assert!(sandbox.try_exec(&container, json!({"args": ["true"]})).is_err());
}

fn memory() {
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    // A copy of this that stays behind is seen.
    let (long, path) = ("x".repeat(100_000), format!("PATH=/{}:/bin", "y".repeat(100_000)));
    let own = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let some = || {
        for program in ["true", "nope", "/nope"] {
            let process = json!({"args": [program, long], "env": [path, format!("LONG={long}")]});
            match sandbox.try_exec(&container, process) {
                Ok(started) => {
                    wait(started.pidfd.as_fd());
                    assert_eq!(program, "true");
                }
                Err(error) => assert!(error.to_string().contains("nope"), "{error}"),
            }
        }
    };
    (0..5).for_each(|_| some());
    let before = own();
    (0..50).for_each(|_| some());
    let after = own();
    assert!(after < before + 4000, "{before} KB before, {after} KB after");
    stop(&container);
}

fn oom() {
    // Each file fills what memory there is, and something is killed for it, be it what is just being started: this process is
    // larger than all in the container.
    let mut sandbox = Sandbox::script("while :; do dd if=/dev/zero of=/dev/shm/full bs=1M; done 2>/dev/null");
    sandbox.spec["linux"]["resources"]["memory"] = json!({"limit": 8 << 20, "swap": 8 << 20});
    let container = sandbox.start().unwrap();
    let cgroups = Cgroups::detect().unwrap();
    let ballast = std::hint::black_box(vec![1_u8; 64 << 20]);
    let mut after_a_kill = 0;
    for _ in 0..200 {
        // What becomes of them is the kernel's choice.
        if let Ok(started) = sandbox.try_exec(&container, json!({"args": ["true"]})) {
            wait(started.pidfd.as_fd());
        }
        after_a_kill += u32::from(cgroups.oom_kills(&sandbox.cgroup).unwrap() > 0);
        // It may be the container's first process.
        if nix::sys::signal::kill(nix::unistd::Pid::from_raw(container.pid), None).is_err() {
            break;
        }
    }
    stop(&container);
    assert!(after_a_kill > 0 && ballast[0] == 1, "nothing was killed");
}
