//! Images and containers that try to get out.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::time::Duration;

use berth_runtime::cgroup::Cgroups;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, traced, until, wait};

pub const TESTS: &[Test] = &[
    ("a_link_as_mount_target_stays_inside", link_target),
    ("a_link_as_parent_of_a_file_target_stays_inside", link_parent),
    ("procfs_is_not_mounted_behind_a_link", proc_link),
    ("nothing_is_mounted_over_parts_of_procfs", over_proc),
    ("only_procfs_on_proc", fake_proc),
    ("a_working_folder_outside_is_refused", cwd_outside),
    ("an_exec_with_a_working_folder_outside_is_refused", exec_cwd_outside),
    ("a_passwd_that_is_a_pipe_does_not_block", passwd_pipe),
    ("a_ptmx_that_is_something_else_is_refused", fake_ptmx),
    ("a_dev_null_in_the_image_is_not_trusted", fake_null),
    ("the_runtime_cannot_be_looked_into", undumpable),
    ("a_process_that_is_being_started_cannot_be_looked_into", being_started),
    ("nor_one_that_has_memory_of_its_own", || traced(being_started)),
    ("it_cannot_leave_by_dots_or_chroot", leave),
    ("who_stops_a_process_at_its_birth_does_not_hold_up_the_caller", stopped_at_birth),
    ("nor_who_stops_it_before_its_start", stopped_before_start),
];

fn link_target() {
    let mut sandbox = Sandbox::script("test -f /etc/inside/mark && echo mounted");
    let outside = sandbox.host("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(sandbox.host("data")).unwrap();
    fs::write(sandbox.host("data/mark"), "").unwrap();
    symlink(&outside, sandbox.image("absolute")).unwrap();
    symlink("../../../../../../../etc/inside", sandbox.image("relative")).unwrap();
    let data = sandbox.host("data");
    for target in ["/absolute/deep", "/relative"] {
        sandbox.push("/mounts", json!({"destination": target, "source": data, "options": ["bind"]}));
    }
    assert_eq!(sandbox.run().ok(), "mounted");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made on the host");
}

fn link_parent() {
    let mut sandbox = Sandbox::script("true");
    let outside = sandbox.host("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(sandbox.host("file"), "").unwrap();
    symlink(outside.join("new"), sandbox.image("etc/hosts")).unwrap();
    sandbox.push("/mounts", json!({"destination": "/etc/hosts", "source": "file", "options": ["bind"]}));
    sandbox.run().ok();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

fn proc_link() {
    let sandbox = Sandbox::new();
    fs::remove_dir(sandbox.image("proc")).unwrap();
    symlink("/tmp", sandbox.image("proc")).unwrap();
    let error = sandbox.error();
    assert!(error.contains("link") && error.contains("/proc"), "{error}");
}

fn over_proc() {
    let mut sandbox = Sandbox::new();
    fs::write(sandbox.host("file"), "").unwrap();
    let target = "/proc/self/attr/exec";
    sandbox.push("/mounts", json!({"destination": target, "source": "file", "options": ["bind"]}));
    let error = sandbox.error();
    assert!(error.contains("/proc/self/attr/exec"), "{error}");
    let mut sandbox = Sandbox::script("cat /proc/uptime");
    fs::write(sandbox.host("uptime"), "covered").unwrap();
    sandbox.push("/mounts", json!({"destination": "/proc/uptime", "source": "uptime", "options": ["bind"]}));
    assert_eq!(sandbox.run().ok(), "covered");
}

fn fake_proc() {
    let mut sandbox = Sandbox::new();
    fs::create_dir(sandbox.host("fake")).unwrap();
    sandbox.spec["mounts"][0] = json!({"destination": "/proc", "source": "fake", "options": ["bind"]});
    let error = sandbox.error();
    assert!(error.contains("only procfs"), "{error}");
}

/// CVE-2024-21626: a descriptor of the runtime as working folder.
fn cwd_outside() {
    for fd in [3, 4, 5, 6, 7, 8, 9] {
        let mut sandbox = Sandbox::script("pwd; ls ../../..");
        sandbox.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        let text = match sandbox.start() {
            Err(error) => error.to_string(),
            Ok(container) => panic!("descriptor {fd}: {:?}", sandbox.finish(container)),
        };
        assert!(text.contains(&format!("/proc/self/fd/{fd}")), "{text}");
    }
}

fn exec_cwd_outside() {
    let sandbox =
        Sandbox::script("ln -s /proc/self/fd/3 /tmp/link; ln -s /proc/self/fd/4 /tmp/link4; sleep 100");
    let container = sandbox.start().unwrap();
    until("the links", || sandbox.exec(&container, "test -L /tmp/link4").code() == 0);
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/5", "/proc/self/fd/10", "/tmp/link", "/tmp/link4"] {
        let error =
            sandbox.try_exec(&container, json!({"args": ["pwd"], "cwd": cwd})).unwrap_err().to_string();
        assert!(error.contains(cwd), "{error}");
    }
    stop(&container);
}

fn passwd_pipe() {
    let sandbox = Sandbox::script("echo $HOME");
    fs::remove_file(sandbox.image("etc/passwd")).unwrap();
    nix::unistd::mkfifo(&sandbox.image("etc/passwd"), Mode::from_bits_truncate(0o644)).unwrap();
    assert_eq!(sandbox.run().ok(), "/");
    fs::remove_file(sandbox.image("etc/passwd")).unwrap();
    symlink("/proc/self/mem", sandbox.image("etc/passwd")).unwrap();
    assert_eq!(sandbox.run().ok(), "/");
}

fn fake_ptmx() {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["terminal"] = json!(true);
    sandbox.spec["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev/pts");
    sandbox.push("/mounts", json!({"destination": "/dev/pts", "type": "tmpfs", "source": "t"}));
    assert!(sandbox.error().contains("/dev/pts"));
}

fn fake_null() {
    let mut sandbox = Sandbox::new();
    // Without a tmpfs on /dev the image's own files are there.
    sandbox.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    fs::write(sandbox.image("dev/null"), "not a device").unwrap();
    let error = sandbox.error();
    assert!(error.contains("/dev/null"), "{error}");
}

fn undumpable() {
    let sandbox = Sandbox::new();
    let mut container = sandbox.create().unwrap();
    let maps = fs::metadata(format!("/proc/{}/maps", container.pid)).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&maps), 0);
    let output = sandbox.exec(&container, "readlink /proc/1/exe || echo hidden");
    assert_eq!(output.ok(), "hidden");
    container.start().unwrap();
    sandbox.finish(container);
}

fn being_started() {
    // Who can read the map of its memory can read and write the memory, too. This program is what is mapped until another one
    // is executed; no program is forked here, so that none is missed. Its root is the host's at first, which has a folder that the
    // container has not.
    let sandbox = Sandbox::script(
        "cd /proc; echo > /tmp/ready; while :; do for p in [0-9]*; do
            if read -r first < $p/maps; then case $first in *engine*) echo $first >> /tmp/seen; esac; fi
            for link in root cwd; do if [ -e $p/$link/var/tmp ]; then echo $p $link >> /tmp/seen; fi; done
        done; done 2>/dev/null",
    );
    let container = sandbox.start().unwrap();
    until("the spy", || sandbox.exec(&container, "test -e /tmp/ready").code() == 0);
    for _ in 0..300 {
        assert_eq!(sandbox.exec_process(&container, json!({"args": ["true"]})).code(), 0);
    }
    let seen = sandbox.exec(&container, "head -n 3 /tmp/seen 2>&1");
    stop(&container);
    assert!(seen.stdout.contains("No such file"), "{seen:?}");
}

fn leave() {
    let output = Sandbox::script(
        "cd /; cd ../../../..; ls -d lower 2>&1; chroot /proc/1/root /bin/ls -d /var/tmp 2>&1",
    )
    .run();
    assert_eq!(output.stdout.matches("No such file").count(), 2, "{output:?}");
}

const SILENT: &str = "listen to the container's process: it is silent; somebody may have stopped it";

/// Where containers share a PID namespace one may stop the first process of another while that is set up.
fn stopped_at_birth() {
    let first = Sandbox::script("while :; do kill -STOP -1; done");
    let hostile = first.start().unwrap();
    let mut sandbox = Sandbox::script("true");
    sandbox.patience = Some(Duration::from_millis(300));
    sandbox.spec["linux"]["namespaces"][0]["path"] = json!(format!("/proc/{}/ns/pid", hostile.pid));
    let error = (0..100).find_map(|_| sandbox.create().map(|container| stop(&container)).err());
    let error = error.expect("it came too late a hundred times").to_string();
    assert_eq!(error, SILENT);
    assert!(Cgroups::detect().unwrap().stats(&sandbox.cgroup).is_err(), "all is taken back");
    stop(&hostile);
}

fn stopped_before_start() {
    let mut sandbox = Sandbox::script("true");
    sandbox.patience = Some(Duration::from_millis(300));
    let mut container = sandbox.create().unwrap();
    kill(Pid::from_raw(container.pid), Signal::SIGSTOP).unwrap();
    let error = container.start().unwrap_err().to_string();
    assert_eq!(error, SILENT);
    // It does not stay, stopped.
    assert!(matches!(wait(container.pidfd.as_fd()), WaitStatus::Signaled(_, Signal::SIGKILL, _)));
}
