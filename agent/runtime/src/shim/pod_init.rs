//! PID 1 of the PID namespace that the containers of a pod share (`shareProcessNamespace`).
//!
//! It is a child of the shim that does nothing: the kernel reaps for a parent that ignores SIGCHLD, so orphans vanish
//! without its doing. Containers see it in `/proc`, and one with CAP_SYS_PTRACE may look through `/proc/1/root`:
//! therefore its root is an empty, read-only tmpfs, and it has no user, capability or descriptor worth having.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir, pivot_root};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::failure;
use super::pod_users::PodUsers;
use super::proto::{Failure, FailureKind};
use crate::container;
use crate::sys::mount::{FsContext, attach};
use crate::sys::process;
use crate::sys::{credentials, shim_process};

/// Nobody, as the pause container of others uses.
const USER: u32 = 65535;

/// The process.
#[derive(Debug)]
pub(super) struct PodInit {
    pub pid: i32,
}

impl PodInit {
    /// Starts it, in the pod's user namespace if it has one: only who owns a PID namespace may mount its procfs. It is
    /// confined when this returns, and ends with the shim.
    pub fn start(users: Option<&PodUsers>) -> Result<PodInit, Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            failure(FailureKind::Internal, format!("cannot {what} for the pod's PID namespace: {error}"))
        };
        let (mut report, say) = std::io::pipe().map_err(|e| failed("make a pipe", &e))?;
        let users = users.map(PodUsers::path);
        let child = container::give_birth_in(users.as_deref(), || run(OwnedFd::from(say)))
            .map_err(|e| failed("make a process", &e))?;
        // Only the child's copy of the writing end is left: its parent's went into the closure.
        let mut said = String::new();
        report.read_to_string(&mut said).map_err(|e| failed("listen to the process", &e))?;
        if said != "ok" {
            let _ = process::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL);
            return Err(failed("confine the process", &said));
        }
        Ok(PodInit { pid: child.pid })
    }

    /// Its PID namespace, for a container to join.
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/pid", self.pid))
    }
}

/// Makes the specification's new PID namespace one that is there already.
pub(super) fn join(spec: &mut Spec, namespace: &Path) -> Result<(), Failure> {
    let pid = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut()).and_then(|all| {
        all.iter_mut().find(|one| one.typ() == LinuxNamespaceType::Pid && one.path().is_none())
    });
    let Some(pid) = pid else {
        let reason = "pod_pids, pids_of: linux.namespaces of the bundle has no new PID namespace";
        return Err(failure(FailureKind::Invalid, reason));
    };
    pid.set_path(Some(namespace.to_owned()));
    Ok(())
}

fn run(say: OwnedFd) {
    let mut say = std::fs::File::from(say);
    let said = match confine(&say) {
        Ok(()) => "ok".to_owned(),
        Err(reason) => format!("{reason} "),
    };
    // A shim that died before this was tied to it does not read any more: SIGPIPE is blocked, the write fails.
    let written = std::io::Write::write_all(&mut say, said.as_bytes());
    drop(say);
    if said == "ok" && written.is_ok() {
        shim_process::sleep_for_ever();
    }
}

fn confine(keep: &std::fs::File) -> Result<(), String> {
    let cannot = |what: &'static str| move |error: nix::errno::Errno| format!("{what}: {error}");
    let cannot_io = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    shim_process::close_all_but(keep.as_fd()).map_err(cannot_io("close inherited files"))?;
    // Of the pod's user namespace, if there is one; else it is that already.
    credentials::become_root().map_err(cannot_io("become root"))?;
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(cannot("leave the host's cgroups"))?;
    prctl::set_name(c"berth-pod").map_err(cannot("set the process name"))?;
    empty_root().map_err(cannot_io("leave the host's files"))?;
    credentials::set_groups(&[]).map_err(cannot_io("drop groups"))?;
    credentials::set_ids(USER, USER).map_err(cannot_io("change the user"))?;
    credentials::no_new_privileges().map_err(cannot_io("set no_new_privs"))?;
    credentials::set_dumpable(false).map_err(cannot_io("become non-dumpable"))?;
    shim_process::ignore_children();
    credentials::die_with_parent().map_err(cannot_io("tie it to the shim"))
}

/// Puts this process, alone in its mount namespace, on an empty read-only file system.
fn empty_root() -> std::io::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let attributes =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let empty = FsContext::open("tmpfs")?.mount(attributes)?;
    // Any folder will do to hang it up; /proc is everywhere.
    let place = nix::fcntl::open("/proc", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    attach(empty.as_fd(), place.as_fd())?;
    fchdir(&empty)?;
    pivot_root(".", ".")?;
    // The old root lies on top of the new one now.
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(())
}
