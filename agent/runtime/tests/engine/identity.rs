//! User, capabilities, limits, seccomp.

use std::fs;

use berth_runtime::container::seccomp::default_profile;
use nix::unistd::{Gid, getgroups, setgroups};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::sandbox::{CAPABILITIES, Output, Sandbox, stop, until};

pub const TESTS: &[Test] = &[
    ("user_group_and_additional_groups", user),
    ("groups_of_the_creator_are_kept_on_demand", kept_groups),
    ("a_user_by_name", named_user),
    ("the_umask", umask),
    ("the_five_capability_sets", capabilities),
    ("no_capabilities_when_none_are_given", no_capabilities),
    ("another_user_keeps_only_ambient_capabilities", ambient),
    ("no_new_privs", no_new_privileges),
    ("limits_are_set", limits),
    ("a_limit_that_cannot_be_raised_is_a_warning", raised_limit),
    ("the_out_of_memory_score", oom_score),
    ("home_comes_from_passwd", home),
    ("streams_belong_to_the_user", streams),
    ("seccomp_denies_and_allows", seccomp),
    ("seccomp_looks_at_arguments", seccomp_arguments),
    ("seccomp_can_kill", seccomp_kill),
    ("seccomp_judges_32_bit_programs_by_their_own_numbers", seccomp_narrow),
    ("seccomp_kills_threads_traps_and_logs", seccomp_actions),
    ("seccomp_flags", seccomp_flags),
    ("the_default_profile_lets_programs_run", seccomp_default),
    ("the_default_profile_with_another_user_and_no_new_privs", seccomp_other_user),
];

fn status(sandbox: &Sandbox) -> impl Fn(&str) -> String {
    let output = sandbox.run();
    let text = output.ok().to_owned();
    move |key| {
        let line =
            text.lines().find(|l| l.starts_with(&format!("{key}:"))).unwrap_or_else(|| panic!("no {key}"));
        line.split_once(':').unwrap().1.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn user() {
    let mut sandbox = Sandbox::script("cat /proc/self/status");
    sandbox.spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 9]});
    let status = status(&sandbox);
    assert_eq!(status("Uid"), "1000 1000 1000 1000");
    assert_eq!(status("Gid"), "1001 1001 1001 1001");
    assert_eq!(status("Groups"), "7 9");
}

/// What podman's `--group-add keep-groups` comes to.
fn kept_groups() {
    let before = getgroups().unwrap();
    let mut sandbox = Sandbox::script("id -G; sleep 100");
    sandbox.spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7]});
    sandbox.spec["annotations"] = json!({"run.oci.keep_original_groups": "1"});
    setgroups(&[Gid::from_raw(1234)]).unwrap();
    let container = sandbox.start().unwrap();
    until("the groups", || fs::read_to_string(sandbox.host("out")).unwrap() == "1001 1234\n");
    let process = json!({"args": ["id", "-G"], "user": {"uid": 1000, "gid": 1002}});
    assert_eq!(sandbox.exec_process(&container, process).ok(), "1002 1234");
    setgroups(&before).unwrap();
    stop(&container);
}

fn named_user() {
    let mut sandbox = Sandbox::script("id -u; id -g; id -G; echo $HOME");
    sandbox.spec["process"]["user"] = json!({"uid": 0, "gid": 0, "username": "web"});
    assert_eq!(sandbox.run().ok(), "33\n34\n34 4\n/srv");
    sandbox.spec["process"]["user"]["username"] = json!("nobody-here");
    assert!(sandbox.error().contains("no user \"nobody-here\""));
}

fn umask() {
    let mut sandbox = Sandbox::script("umask");
    assert_eq!(sandbox.run().ok(), "0022");
    sandbox.spec["process"]["user"]["umask"] = json!(0o077);
    assert_eq!(sandbox.run().ok(), "0077");
}

/// CHOWN 0, DAC_OVERRIDE 1, KILL 5, NET_BIND_SERVICE 10.
fn capabilities() {
    let mut sandbox = Sandbox::script("cat /proc/self/status");
    sandbox.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_DAC_OVERRIDE"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_CHOWN", "CAP_KILL"],
        "inheritable": ["CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    sandbox.spec["process"]["user"] = json!({"uid": 5, "gid": 5});
    let status = status(&sandbox);
    assert_eq!(status("CapBnd"), "0000000000000423");
    assert_eq!(status("CapInh"), "0000000000000400");
    assert_eq!(status("CapAmb"), "0000000000000400");
    assert_eq!(status("CapPrm"), "0000000000000400");
    assert_eq!(status("CapEff"), "0000000000000400");
}

fn no_capabilities() {
    let mut sandbox = Sandbox::script("cat /proc/self/status");
    sandbox.spec["process"].as_object_mut().unwrap().remove("capabilities");
    let status = status(&sandbox);
    for set in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
}

fn ambient() {
    let mut sandbox = Sandbox::script("cat /proc/self/status");
    sandbox.spec["process"]["user"] = json!({"uid": 5, "gid": 5});
    let status = status(&sandbox);
    assert_eq!(status("CapEff"), "0000000000000000");
    assert_ne!(status("CapBnd"), "0000000000000000");
}

fn no_new_privileges() {
    let mut sandbox = Sandbox::script("grep NoNewPrivs /proc/self/status");
    for wanted in [false, true] {
        sandbox.spec["process"]["noNewPrivileges"] = json!(wanted);
        assert_eq!(sandbox.run().ok(), format!("NoNewPrivs:\t{}", i32::from(wanted)));
    }
}

fn limits() {
    let mut sandbox = Sandbox::script("ulimit -n; ulimit -Hn; ulimit -c");
    sandbox.spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}
    ]);
    assert_eq!(sandbox.run().ok(), "100\n200\n0");
}

/// Without CAP_SYS_RESOURCE, which some machines do not give to root, no limit can be raised.
fn raised_limit() {
    let may_raise = has_sys_resource();
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let mut sandbox = Sandbox::script("ulimit -Hn");
    let limit = json!({"type": "RLIMIT_NOFILE", "soft": hard + 10, "hard": hard + 10});
    sandbox.spec["process"]["rlimits"] = json!([limit]);
    let output = sandbox.run();
    let expected = if may_raise { hard + 10 } else { hard };
    assert_eq!(output.ok(), expected.to_string());
    assert_eq!(
        output.warnings.iter().any(|w| w.contains("RLIMIT_NOFILE")),
        !may_raise,
        "{:?}",
        output.warnings
    );
}

fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("CapEff")).unwrap();
    u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap() & 1 << 24 != 0
}

fn oom_score() {
    let mut sandbox = Sandbox::script("cat /proc/self/oom_score_adj");
    sandbox.spec["process"]["oomScoreAdj"] = json!(700);
    assert_eq!(sandbox.run().ok(), "700");
    sandbox.spec["process"]["oomScoreAdj"] = json!(-997);
    let output = sandbox.run();
    if has_sys_resource() {
        assert_eq!(output.ok(), "-997");
    } else {
        assert!(output.warnings.iter().any(|w| w.contains("oom_score_adj -997")), "{:?}", output.warnings);
    }
}

fn home() {
    let mut sandbox = Sandbox::script("echo $HOME");
    assert_eq!(sandbox.run().ok(), "/root");
    sandbox.spec["process"]["user"] = json!({"uid": 33, "gid": 34});
    assert_eq!(sandbox.run().ok(), "/srv");
    sandbox.spec["process"]["user"] = json!({"uid": 4711, "gid": 0});
    assert_eq!(sandbox.run().ok(), "/");
    sandbox.push("/process/env", json!("HOME=/given"));
    assert_eq!(sandbox.run().ok(), "/given");
}

fn streams() {
    let mut sandbox = Sandbox::script("echo again > /dev/stdout; echo wrong > /dev/stderr");
    sandbox.spec["process"]["user"] = json!({"uid": 33, "gid": 34});
    assert_eq!(sandbox.run().ok(), "again");
}

fn with_seccomp(script: &str, seccomp: Value) -> Output {
    let mut sandbox = Sandbox::script(script);
    sandbox.spec["linux"]["seccomp"] = seccomp;
    sandbox.run()
}

fn seccomp() {
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["chmod", "fchmodat", "fchmodat2", "no_such_call"], "action": "SCMP_ACT_ERRNO"},
        ],
    });
    let output = with_seccomp("mkdir /x; touch /y && echo touched; grep Seccomp: /proc/self/status", rules);
    assert!(output.stderr.contains("No space left"), "{output:?}");
    assert_eq!(output.ok(), "touched\nSeccomp:\t2");
}

/// kill(2) may send signal 0 but not SIGTERM.
fn seccomp_arguments() {
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
            "args": [{"index": 1, "value": 15, "op": "SCMP_CMP_EQ"}],
        }],
    });
    let output = with_seccomp("sleep 100 & kill -0 $! && echo zero; kill -15 $! || kill -9 $!", rules);
    assert_eq!(output.ok(), "zero");
    assert!(output.stderr.contains("Permission denied"), "{output:?}");
}

fn seccomp_kill() {
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    });
    assert_eq!(with_seccomp("(exec mkdir /x); echo $?", rules).ok(), (128 + libc::SIGSYS).to_string());
}

/// A program for i386 that makes the folder /made and exits with the error number: 84 bytes of ELF headers, 28 of code.
fn narrow_program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut words = |list: &[u32]| file.extend(list.iter().flat_map(|w| w.to_le_bytes()));
    // An executable for machine 3, version 1; entry, program headers, section headers, flags; sizes and counts.
    words(&[3 << 16 | 2, 1, BASE + 84, 52, 0, 0, 32 << 16 | 52, 1, 0]);
    // One part to load: offset, addresses, sizes, readable and executable, aligned to pages.
    words(&[1, 0, BASE, BASE, 118, 118, 5, 0x1000]);
    file.extend([0xb8, 39, 0, 0, 0, 0xbb]); // eax = mkdir, ebx =
    file.extend((BASE + 112).to_le_bytes()); // the name
    file.extend([0xb9, 0xed, 1, 0, 0, 0xcd, 0x80]); // ecx = 0o755, call
    file.extend([0xf7, 0xd8, 0x89, 0xc3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]); // ebx = -eax, eax = exit, call
    file.extend(b"/made\0");
    file
}

#[cfg(target_arch = "x86_64")]
fn seccomp_narrow() {
    let run = |seccomp: Option<Value>| {
        let mut sandbox = Sandbox::script("true");
        fs::write(sandbox.image("bin/narrow"), narrow_program()).unwrap();
        fs::set_permissions(sandbox.image("bin/narrow"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        sandbox.spec["process"]["args"] = json!(["narrow"]);
        if let Some(seccomp) = seccomp {
            sandbox.spec["linux"]["seccomp"] = seccomp;
        }
        let container = sandbox.start().map_err(|e| e.to_string())?;
        Ok::<i32, String>(sandbox.finish(container).code())
    };
    match run(None) {
        // A kernel for 64 bits only.
        Err(error) => return assert!(error.contains("exec format error"), "{error}"),
        Ok(code) => assert_eq!(code, 0),
    }
    let rules = |architectures: Value| {
        Some(json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
        }))
    };
    assert_eq!(run(rules(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]))), Ok(28));
    assert_eq!(run(rules(json!(["SCMP_ARCH_X86_64"]))), Ok(128 + libc::SIGSYS));
    assert_eq!(run(Some(default_rules())), Ok(0), "the default profile");
}

#[cfg(not(target_arch = "x86_64"))]
fn seccomp_narrow() {
    assert_eq!(narrow_program().len(), 118);
}

fn seccomp_actions() {
    let rules = |action: &str| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}]});
    let script = "(exec mkdir /x); echo $?; test -d /x && echo made";
    let killed = (128 + libc::SIGSYS).to_string();
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let mut output = with_seccomp(script, rules(action));
        output.status = nix::sys::wait::WaitStatus::Exited(nix::unistd::Pid::from_raw(1), 0);
        assert_eq!(output.ok(), killed, "{action}");
    }
    assert_eq!(with_seccomp(script, rules("SCMP_ACT_LOG")).ok(), "0\nmade");
    // Nobody traces, so the kernel says that there is no such call.
    let output = with_seccomp("mkdir /x; test -d /x || echo none", rules("SCMP_ACT_TRACE"));
    assert_eq!(output.ok(), "none");
    assert!(output.stderr.contains("not implemented"), "{output:?}");
}

fn seccomp_flags() {
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                  "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
    });
    assert_eq!(with_seccomp("grep Seccomp: /proc/self/status", rules).ok(), "Seccomp:\t2");
}

fn default_rules() -> Value {
    let set = json!({"bounding": CAPABILITIES});
    serde_json::to_value(default_profile(&serde_json::from_value(set).unwrap())).unwrap()
}

fn seccomp_default() {
    let output = with_seccomp(
        "ls / >/dev/null && echo hello | cat | tr a-z A-Z; mount -t tmpfs t /tmp; sleep 0 & wait; echo done",
        default_rules(),
    );
    assert_eq!(output.ok(), "HELLO\ndone");
    assert!(output.stderr.contains("permission denied"), "{output:?}");
}

fn seccomp_other_user() {
    let mut sandbox = Sandbox::script("id -u; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status");
    sandbox.spec["linux"]["seccomp"] = default_rules();
    sandbox.spec["process"]["user"] = json!({"uid": 33, "gid": 34});
    for nnp in [true, false] {
        sandbox.spec["process"]["noNewPrivileges"] = json!(nnp);
        assert_eq!(sandbox.run().ok(), format!("33\nNoNewPrivs:\t{}\nSeccomp:\t2", i32::from(nnp)));
    }
}
