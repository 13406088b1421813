//! The user namespace that all containers of a pod share (`hostUsers: false`), and the namespaces that belong to it.
//!
//! The shim stays the host's root: it writes logs, cgroups and records. But who makes a network, IPC or UTS namespace
//! decides which user namespace owns it, and only an owner may mount its sysfs and message queues. So a child becomes
//! root of the user namespace, makes the others, and the shim joins them from outside, which its parent may.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, Spec};

use super::failure;
use super::proto::{Failure, FailureKind};
use crate::container;
use crate::sys::process::{Clone3, pidfd_kill};
use crate::sys::{credentials, shim_process};

/// The host's ids that the pod's users are, from 0 on inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The id on the host that is 0 inside.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl IdRange {
    /// Reads `FIRST:COUNT`.
    pub fn parse(text: &str) -> Option<IdRange> {
        let (first, count) = text.split_once(':')?;
        let range = IdRange { first: first.parse().ok()?, count: count.parse().ok()? };
        (range.count > 0 && range.first.checked_add(range.count).is_some()).then_some(range)
    }

    pub(crate) fn map(self) -> io::Result<Vec<LinuxIdMapping>> {
        let map = LinuxIdMappingBuilder::default()
            .container_id(0_u32)
            .host_id(self.first)
            .size(self.count)
            .build()
            .map_err(io::Error::other)?;
        Ok(vec![map])
    }
}

/// The pod's user namespace, which lives as long as this does.
#[derive(Debug)]
pub(super) struct PodUsers {
    namespace: OwnedFd,
}

impl PodUsers {
    /// Makes it and joins new namespaces of these kinds that belong to it.
    pub fn make(range: IdRange, kinds: CloneFlags) -> Result<PodUsers, String> {
        let map = range.map().map_err(|e| format!("cannot map the pod's users: {e}"))?;
        let namespace = container::user_namespace(&map)
            .map_err(|e| format!("cannot make the pod's user namespace: {e}"))?;
        if !kinds.is_empty() {
            join_new(&namespace, kinds).map_err(|e| format!("cannot make the pod's namespaces: {e}"))?;
        }
        Ok(PodUsers { namespace })
    }

    /// For a container to join.
    pub fn path(&self) -> PathBuf {
        // By the process' number: another runtime opens it, too.
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }
}

/// Has a child make namespaces inside of `users` and joins them.
fn join_new(users: &OwnedFd, kinds: CloneFlags) -> io::Result<()> {
    let (mut report, say) = io::pipe()?;
    let child = Clone3 { flags: 0, cgroup: None }.spawn(move || {
        let mut say = say;
        let said = make_inside(users, kinds).map_or_else(|e| e.to_string(), |()| "ok".to_owned());
        let written = say.write_all(said.as_bytes());
        drop(say);
        if said == "ok" && written.is_ok() {
            // The namespaces are there as long as somebody is in them.
            shim_process::sleep_for_ever();
        }
    })?;
    // Only the child's copy of the writing end is left: the parent's went into the closure.
    let mut said = String::new();
    let joined = report.read_to_string(&mut said).and_then(|_| match said.as_str() {
        "ok" => setns(&child.pidfd, kinds).map_err(io::Error::from),
        reason => Err(io::Error::other(reason.to_owned())),
    });
    // It may have ended by itself.
    let _ = pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL);
    container::reap(child.pidfd.as_fd());
    joined
}

fn make_inside(users: &OwnedFd, kinds: CloneFlags) -> io::Result<()> {
    credentials::die_with_parent()?;
    setns(users, CloneFlags::CLONE_NEWUSER)?;
    // The file system of message queues belongs to the user who makes the IPC namespace.
    credentials::become_root()?;
    unshare(kinds)?;
    Ok(())
}

/// Makes the specification's user namespace the pod's.
pub(super) fn join(spec: &mut Spec, users: Option<&PodUsers>) -> Result<(), Failure> {
    let wanted =
        spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut()).and_then(|all| {
            all.iter_mut().find(|one| one.typ() == LinuxNamespaceType::User && one.path().is_none())
        });
    match (wanted, users) {
        (Some(wanted), Some(users)) => {
            wanted.set_path(Some(users.path()));
            Ok(())
        }
        (None, Some(_)) => {
            let reason = "linux.namespaces of the bundle has no user namespace, but the pod has one";
            Err(failure(FailureKind::Invalid, reason))
        }
        // A bundle may ask for one of its own.
        (_, None) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_first_and_count() {
        assert_eq!(IdRange::parse("65536:10"), Some(IdRange { first: 65536, count: 10 }));
        for wrong in ["", "1", "1:0", "4294967295:2", "-1:5", "1:2:3"] {
            assert_eq!(IdRange::parse(wrong), None, "{wrong}");
        }
    }
}
