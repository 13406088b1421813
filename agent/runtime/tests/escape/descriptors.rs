//! What a container finds among its descriptors, and where its working folder may be (CVE-2024-21626, CVE-2019-5736).

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::Mode;
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop, until};

pub const TESTS: &[Test] = &[
    ("cve_2024_21626_no_descriptor_of_the_host_is_left", leaked),
    ("cve_2024_21626_a_created_container_holds_none_either", created),
    ("cve_2024_21626_the_working_folder_is_no_descriptor", cwd),
    ("cve_2024_21626_the_working_folder_of_an_exec_is_no_descriptor", exec_cwd),
    ("cve_2024_21626_programs_are_not_reached_through_descriptors", program),
];

/// Folders of the host, open without close-on-exec, as a careless caller may leave them.
struct Careless(Vec<OwnedFd>);

impl Careless {
    fn open() -> Careless {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fds = ["/", "/sys/fs/cgroup", "/proc", "/var/tmp", "/etc"]
            .iter()
            .cycle()
            .take(40)
            .map(|path| nix::fcntl::open(*path, flags, Mode::empty()).unwrap())
            .collect::<Vec<_>>();
        for fd in &fds {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        }
        assert!(fds.iter().any(|fd| fd.as_raw_fd() > 30));
        Careless(fds)
    }

    /// Numbers to try, and some around them.
    fn numbers(&self) -> impl Iterator<Item = i32> {
        3..self.0.iter().map(AsRawFd::as_raw_fd).max().unwrap() + 3
    }
}

/// Defence: `streams::arrange` closes everything from the first descriptor that it did not place itself.
fn leaked() {
    let _open = Careless::open();
    let sandbox = Sandbox::script("ls /proc/self/fd | tr '\\n' ' '; sleep 100");
    let container = sandbox.start().unwrap();
    // ls itself has its folder open as 3.
    until("the list", || fs::read_to_string(sandbox.host("out")).unwrap().ends_with("3 "));
    assert_eq!(fs::read_to_string(sandbox.host("out")).unwrap(), "0 1 2 3 ");
    let visitor = sandbox.exec_process(&container, json!({"args": ["ls", "/proc/self/fd"]}));
    stop(&container);
    assert_eq!(visitor.ok().split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

/// Between create and start others of the pod may look at the process. Defence: as before, and the root's descriptor
/// is dropped; what is left beside the streams is the channel to the parent, which execve closes.
fn created() {
    let _open = Careless::open();
    let sandbox = Sandbox::new();
    let container = sandbox.create().unwrap();
    let mut left: Vec<String> = fs::read_dir(format!("/proc/{}/fd", container.pid))
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_name().to_string_lossy().parse::<i32>().unwrap() > 2)
        .map(|e| fs::read_link(e.path()).unwrap().to_string_lossy().into_owned())
        .collect();
    stop(&container);
    left.retain(|target| !target.starts_with("socket:"));
    assert_eq!(left, Vec::<String>::new());
}

/// The image's working folder is a descriptor that leads to the host. Defence: none is open, `Root` follows no magic
/// links, and `identity::enter` asks the kernel where it has come to.
fn cwd() {
    let open = Careless::open();
    for fd in open.numbers() {
        for form in ["/proc/self/fd/N", "/proc/self/fd/N/../../..", "/proc/1/fd/N", "/link"] {
            let path = form.replace('N', &fd.to_string());
            let mut sandbox = Sandbox::script("pwd; ls");
            symlink(format!("/proc/self/fd/{fd}"), sandbox.image("link")).unwrap();
            sandbox.spec["process"]["cwd"] = json!(path);
            let error = sandbox.error();
            assert!(error.contains(&path), "{error}");
        }
    }
}

/// As before, with a container that prepared a link.
fn exec_cwd() {
    let open = Careless::open();
    let sandbox = Sandbox::script(
        "for n in $(seq 3 60); do ln -s /proc/self/fd/$n /tmp/$n; done; touch /tmp/all; sleep 100",
    );
    symlink("busybox", sandbox.image("bin/seq")).unwrap();
    let container = sandbox.start().unwrap();
    until("the links", || sandbox.host("upper/tmp/all").exists());
    for fd in open.numbers() {
        for form in [
            "/proc/self/fd/N",
            "/proc/self/fd/N/../../..",
            "/proc/thread-self/fd/N",
            "/tmp/N",
            "/proc/self/task/1/fd/N",
        ] {
            let path = form.replace('N', &fd.to_string());
            let error = sandbox.try_exec(&container, json!({"args": ["pwd"], "cwd": path})).unwrap_err();
            assert!(error.to_string().contains(&path), "{error}");
        }
    }
    stop(&container);
}

/// The program is named by a descriptor of the host's. Defence: as for the first.
fn program() {
    let open = Careless::open();
    for fd in open.numbers() {
        let name = format!("/proc/self/fd/{fd}/bin/sh");
        let mut sandbox = Sandbox::new();
        sandbox.spec["process"]["args"] = json!([name, "-c", "echo out"]);
        let error = sandbox.error();
        assert!(error.contains(&name), "{error}");
    }
}
