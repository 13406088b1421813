//! Images whose links and files lie in the way of what a runtime mounts, masks and makes.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use berth_runtime::container::Stdio;
use serde_json::json;

use crate::attacker::put;
use crate::harness::Test;
use crate::sandbox::{Sandbox, slurp, wait};

pub const TESTS: &[Test] = &[
    ("cve_2023_27561_proc_is_a_link", proc_link),
    ("cve_2023_28642_sys_is_a_link", sys_link),
    ("cve_2019_19921_proc_is_a_link_into_a_volume", proc_in_volume),
    ("cve_2025_31133_dev_null_of_the_container_is_no_mask", fake_mask),
    ("cve_2025_52565_dev_console_is_a_link", console_link),
    ("cve_2025_52565_dev_ptmx_is_something_else", fake_ptmx),
    ("etc_hosts_is_a_link_to_the_host", etc_link),
];

/// A spec without mounts on /dev, so that the image's own files are there.
fn without_dev(sandbox: &mut Sandbox) {
    let mounts = sandbox.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
}

/// A link in the place of /proc takes procfs, and with it what is masked there, to where no mask reaches. Defence:
/// procfs and sysfs are mounted only on a path without links (`Mounter::target`, RESOLVE_NO_SYMLINKS).
fn proc_link() {
    for target in ["/tmp", "tmp", "/proc-2/../tmp", "/proc"] {
        let sandbox = Sandbox::new();
        fs::remove_dir(sandbox.image("proc")).unwrap();
        symlink(target, sandbox.image("proc")).unwrap();
        let error = sandbox.error();
        assert!(error.contains("/proc"), "{target}: {error}");
    }
}

/// As before, with /sys.
fn sys_link() {
    for target in ["/tmp", "tmp", "/no/such/place"] {
        let sandbox = Sandbox::new();
        fs::remove_dir(sandbox.image("sys")).unwrap();
        symlink(target, sandbox.image("sys")).unwrap();
        let error = sandbox.error();
        assert!(error.contains("link") && error.contains("/sys"), "{target}: {error}");
    }
}

/// The link leads into a volume that another container shares. Defence: as before.
fn proc_in_volume() {
    let mut sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.host("volume/proc")).unwrap();
    fs::remove_dir(sandbox.image("proc")).unwrap();
    symlink("/data/proc", sandbox.image("proc")).unwrap();
    let volume = json!({"destination": "/data", "source": "volume", "options": ["bind"]});
    sandbox.spec["mounts"].as_array_mut().unwrap().insert(0, volume);
    let error = sandbox.error();
    assert!(error.contains("link") && error.contains("/proc"), "{error}");
    assert_eq!(fs::read_dir(sandbox.host("volume/proc")).unwrap().count(), 0);
}

/// A masked path hides behind the container's /dev/null, which is a link to the file that the attacker wants there.
/// Defence: `protect::mask` mounts the host's null device and looks at its numbers.
fn fake_mask() {
    let mut sandbox = Sandbox::script("cat /proc/timer_list; echo hit > /proc/timer_list; cat /etc/target");
    put(&sandbox.image("etc/target"), "untouched");
    fs::create_dir(sandbox.host("dev")).unwrap();
    symlink("/etc/target", sandbox.host("dev/null")).unwrap();
    without_dev(&mut sandbox);
    // The runtime makes nothing in a /dev that the spec binds, so that this null is what a mask would find.
    sandbox.push("/mounts", json!({"destination": "/dev", "source": "dev", "options": ["bind"]}));
    let mut stdio = sandbox.stdio("out", "err");
    stdio.stdin = Some(fs::File::open("/dev/null").unwrap().into());
    let mut container = sandbox.create_with(&sandbox.rootfs(), stdio).unwrap();
    container.start().unwrap();
    let output = sandbox.finish(container);
    assert_eq!(output.stdout, "untouched", "{output:?}");
}

/// The terminal is bound over what /dev/console leads to: a link would cover, say, a masked file, and a mount on the
/// host's file would be an escape. Defence: the place is resolved within the root and mounted by descriptor.
fn console_link() {
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    put(&outside.path().join("file"), "host");
    for target in [outside.path().join("file"), outside.path().join("new"), "../../../../etc/mark".into()] {
        let mut sandbox = Sandbox::script("stat -c '%t' /dev/console; tty");
        sandbox.spec["process"]["terminal"] = json!(true);
        without_dev(&mut sandbox);
        let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666"]});
        sandbox.push("/mounts", pts);
        symlink(&target, sandbox.image("dev/console")).unwrap();
        let mut container = sandbox.create_with(&sandbox.rootfs(), Stdio::default()).unwrap();
        let master = fs::File::from(container.console.take().unwrap());
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", container.pid)).unwrap();
        container.start().unwrap();
        wait(container.pidfd.as_fd());
        drop(master);
        // Inside the container's root there is a terminal of its own devpts; nothing was made or covered outside.
        let place = mounts.lines().find(|l| l.contains("/0 ") && l.contains(" - devpts"));
        assert!(place.is_some(), "the terminal is mounted nowhere in the container: {mounts}");
        assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "host");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}

/// /dev/pts/ptmx is another file, and what the runtime opens as a terminal is the attacker's choice. Defence:
/// `console::open` takes only the master device of a devpts, found without a link.
fn fake_ptmx() {
    let case = |prepare: &dyn Fn(&Path)| {
        let mut sandbox = Sandbox::new();
        sandbox.spec["process"]["terminal"] = json!(true);
        let fake = sandbox.host("pts");
        fs::create_dir(&fake).unwrap();
        prepare(&fake);
        sandbox.spec["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev/pts");
        sandbox.push("/mounts", json!({"destination": "/dev/pts", "source": "pts", "options": ["bind"]}));
        let error = sandbox.error();
        assert!(error.contains("/dev/pts"), "{error}");
    };
    case(&|_| ());
    case(&|fake| put(&fake.join("ptmx"), ""));
    case(&|fake| symlink("/dev/null", fake.join("ptmx")).unwrap());
    case(&|fake| symlink("/dev/ptmx", fake.join("ptmx")).unwrap());
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let node = |fake: &Path, major, minor| {
        let number = nix::sys::stat::makedev(major, minor);
        nix::sys::stat::mknod(&fake.join("ptmx"), nix::sys::stat::SFlag::S_IFCHR, mode, number).unwrap();
    };
    case(&|fake| node(fake, 1, 3));
    // The right device in the wrong file system would be a terminal of the host.
    case(&|fake| node(fake, 5, 2));
    case(&|fake| nix::unistd::mkfifo(&fake.join("ptmx"), mode).unwrap());
}

/// The files that every pod gets lie behind links of the image. Defence: as for the console.
fn etc_link() {
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    put(&outside.path().join("hosts"), "host's own");
    for name in ["hosts", "resolv.conf", "hostname"] {
        let mut sandbox = Sandbox::script(&format!("cat /etc/{name}; echo changed > /etc/{name}"));
        symlink(outside.path().join(name), sandbox.image("etc").join(name)).unwrap();
        put(&sandbox.host("pods-file"), "pod's\n");
        let destination = format!("/etc/{name}");
        let bind = json!({"destination": destination, "source": "pods-file", "options": ["bind"]});
        sandbox.push("/mounts", bind);
        assert_eq!(sandbox.run().ok(), "pod's");
        assert_eq!(slurp(fs::File::open(sandbox.host("pods-file")).unwrap()), "changed\n");
    }
    assert_eq!(fs::read_to_string(outside.path().join("hosts")).unwrap(), "host's own");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}
