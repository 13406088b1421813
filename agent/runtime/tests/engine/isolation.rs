//! Namespaces, and what is seen from inside.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use berth_runtime::container::Stdio;
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::{Sandbox, slurp, stop, until, wait};

pub const TESTS: &[Test] = &[
    ("a_program_runs_and_its_exit_code_comes_back", runs),
    ("listed_namespaces_are_new_and_others_inherited", namespaces),
    ("it_is_process_one_and_sees_only_itself", process_one),
    ("the_host_name_is_its_own", host_name),
    ("a_pid_namespace_can_be_joined", joined_pid),
    ("a_network_namespace_can_be_joined", joined_network),
    ("nothing_runs_before_start", waits_for_start),
    ("it_dies_with_its_parent_end", start_twice),
    ("no_descriptor_leaks_into_it", descriptors),
    ("nothing_is_left_in_the_hosts_mount_table", host_mounts),
    ("signals_start_at_their_defaults", signals),
    ("it_leads_a_session", session),
];

fn runs() {
    let sandbox = Sandbox::script("echo out; echo err >&2; exit 7");
    let output = sandbox.run();
    assert_eq!((output.code(), &*output.stdout, &*output.stderr), (7, "out\n", "err\n"));
    assert_eq!(Sandbox::script("kill -9 $$; :").run().code(), 0, "process one ignores its own SIGKILL");
}

fn namespaces() {
    let mut sandbox =
        Sandbox::script("cd /proc/self/ns; for n in pid mnt cgroup ipc uts net user; do readlink $n; done");
    sandbox.spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}]);
    let output = sandbox.run();
    let inside: Vec<&str> = output.ok().lines().collect();
    for (at, (kind, new)) in [
        ("pid", true),
        ("mnt", true),
        ("cgroup", false),
        ("ipc", true),
        ("uts", false),
        ("net", false),
        ("user", false),
    ]
    .iter()
    .enumerate()
    {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_eq!(
            inside[at] != host.to_str().unwrap(),
            *new,
            "{kind}: {} and {}",
            inside[at],
            host.display()
        );
    }
}

fn process_one() {
    let output = Sandbox::script("echo $$; ls -d /proc/[0-9]* | wc -l").run();
    let lines: Vec<&str> = output.ok().lines().collect();
    assert_eq!(lines[0], "1");
    assert!(lines[1].trim().parse::<u32>().unwrap() <= 3, "{lines:?}");
}

fn host_name() {
    let before = nix::unistd::gethostname().unwrap();
    let mut sandbox = Sandbox::script("hostname; cat /proc/sys/kernel/domainname");
    sandbox.spec["hostname"] = json!("inside");
    sandbox.spec["domainname"] = json!("example.test");
    assert_eq!(sandbox.run().ok(), "inside\nexample.test");
    assert_eq!(nix::unistd::gethostname().unwrap(), before);
}

fn joined_pid() {
    let first = Sandbox::script("sleep 100");
    let running = first.start().unwrap();
    let mut second = Sandbox::script("cat /proc/1/cmdline | tr '\\0' ' '; test $$ != 1");
    second.spec["linux"]["namespaces"][0]["path"] = json!(format!("/proc/{}/ns/pid", running.pid));
    let own = fs::metadata("/proc/self/ns/pid_for_children").unwrap().ino();
    assert_eq!(second.run().ok(), "sleep 100");
    assert_eq!(fs::metadata("/proc/self/ns/pid_for_children").unwrap().ino(), own, "the caller came back");
    stop(&running);
}

fn joined_network() {
    let first = Sandbox::script("sleep 100");
    let running = first.start().unwrap();
    let wanted = fs::read_link(format!("/proc/{}/ns/net", running.pid)).unwrap();
    let mut second = Sandbox::script("readlink /proc/self/ns/net");
    second.spec["linux"]["namespaces"][5]["path"] = json!(format!("/proc/{}/ns/net", running.pid));
    assert_eq!(second.run().ok(), wanted.to_str().unwrap());
    stop(&running);
}

fn waits_for_start() {
    let mut sandbox = Sandbox::script("echo ran > /host/mark");
    fs::create_dir(sandbox.host("shared")).unwrap();
    let source = sandbox.host("shared");
    sandbox.push("/mounts", json!({"destination": "/host", "source": source, "options": ["bind"]}));
    let mut container = sandbox.create().unwrap();
    assert!(fs::read_to_string(format!("/proc/{}/comm", container.pid)).unwrap().starts_with("engine"));
    assert!(!sandbox.host("shared/mark").exists());
    container.start().unwrap();
    sandbox.finish(container);
    assert!(sandbox.host("shared/mark").exists());
}

fn start_twice() {
    let sandbox = Sandbox::script("sleep 100");
    let mut container = sandbox.start().unwrap();
    assert!(container.start().is_err());
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid)).unwrap();
    assert!(status.contains(&format!("PPid:\t{}", std::process::id())), "it is our child");
    stop(&container);
}

fn descriptors() {
    // Open and inheritable in the caller, as a careless one may have it.
    let secret = File::create("/var/tmp/berth-engine-secret").unwrap();
    nix::fcntl::fcntl(&secret, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    fs::remove_file("/var/tmp/berth-engine-secret").unwrap();
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["args"] = json!(["ls", "/proc/self/fd"]);
    let output = sandbox.run();
    // 3 is the folder that ls reads.
    assert_eq!(output.ok(), "0\n1\n2\n3");
    sandbox.spec["process"]["args"] = json!(["readlink", "/proc/self/fd/0"]);
    assert_eq!(sandbox.run().ok(), "/dev/null", "the container's own, not the host's");
    drop(secret);
}

fn host_mounts() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let sandbox = Sandbox::script("sleep 100");
    let container = sandbox.start().unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    stop(&container);
}

fn signals() {
    // Rust ignores SIGPIPE, and an ignored signal survives execve.
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["args"] = json!(["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]);
    let output = sandbox.run();
    let zero: Vec<bool> = output.ok().lines().map(|l| l.ends_with("0000000000000000")).collect();
    assert_eq!(zero, [true, true], "{}", output.stdout);
}

fn session() {
    let sandbox = Sandbox::script("cut -d' ' -f5,6 /proc/1/stat; while :; do sleep 1; done");
    let out = File::create_new(sandbox.host("pipe")).unwrap();
    let copy = File::open(sandbox.host("pipe")).unwrap();
    let stdio = Stdio { stdin: None, stdout: Some(out.into()), stderr: None };
    let mut container = sandbox.create_with(&sandbox.rootfs(), stdio).unwrap();
    container.start().unwrap();
    until("the session's line", || fs::metadata(sandbox.host("pipe")).unwrap().len() > 0);
    assert_eq!(slurp(copy).trim(), "1 1");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(container.pid), nix::sys::signal::SIGKILL).unwrap();
    wait(std::os::fd::AsFd::as_fd(&container.pidfd));
}
