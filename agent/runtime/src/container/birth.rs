//! How the first process of a container comes into its namespaces.
//!
//! Mostly clone3 makes them all at once. What an owner of namespaces may do depends on their user namespace, though:
//! the others must be made by somebody who is in it already. So when namespaces are to be joined besides, a helper
//! joins them and gives birth to a sibling of itself, which again is a child of the caller.

use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::LinuxNamespaceType;

use super::Error;
use super::channel::{Channel, Report};
use super::create::reap;
use super::namespaces::{ChildrenElsewhere, Namespaces};
use crate::sys::process::{Child, Clone3, pidfd_open};

/// Makes a child in the namespaces, on v2 in the cgroup, that runs `body`. Where no helper was needed `body` still has
/// to join what is to be joined.
pub fn give_birth(
    namespaces: &Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce(),
) -> Result<Child, Error> {
    let failed = |e| Error::sys("clone", "the container's process", e);
    if !namespaces.need_helper() {
        let _elsewhere =
            namespaces.joined_fd(LinuxNamespaceType::Pid).map(ChildrenElsewhere::enter).transpose()?;
        return Clone3 { flags: namespaces.clone_flags(), cgroup }.spawn(body).map_err(failed);
    }
    let (own, theirs) = Channel::pair().map_err(|e| Error::sys("make", "a socket pair", e))?;
    let helper = Clone3 { flags: 0, cgroup }.spawn(|| {
        let flags = namespaces.clone_flags() | libc::CLONE_PARENT as u64;
        let born =
            namespaces.join_all().and_then(|()| Clone3 { flags, cgroup: None }.spawn(body).map_err(failed));
        let report = match born {
            Ok(child) => Report::Born(child.pid),
            Err(error) => Report::Failed(error.into()),
        };
        // Without a parent there is nobody to tell.
        let _ = theirs.report(&report, None);
    });
    let helper = helper.map_err(failed)?;
    drop(theirs);
    let answer = own.next_report();
    let status = reap(helper.pidfd.as_fd());
    match answer.map_err(|e| Error::sys("listen to", "the helper process", e))? {
        // Not reaped yet, so the number is its own.
        Some((Report::Born(pid), _)) => {
            let pidfd = pidfd_open(pid).map_err(|e| Error::sys("open", format!("process {pid}"), e))?;
            Ok(Child { pid, pidfd })
        }
        Some((Report::Failed(failure), _)) => Err(failure.into()),
        _ => Err(Error::Died { status }),
    }
}
