//! Who a process is and what it may do: user, groups, capabilities, no_new_privs, seccomp.
//!
//! It takes two steps. [`Identity::become_user`] is done while a container is being created.
//! [`Identity::confine`] comes right before the program is executed, so that a strict filter does not see the system
//! calls with which a created container waits.

use std::borrow::Cow;
use std::io;
use std::os::fd::IntoRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, getcwd};
use oci_spec::runtime::{Process, Spec};

use super::capabilities::Capabilities;
use super::channel::Channel;
use super::seccomp::Filter;
use super::users::{self, Ids};
use super::{Error, Root, Tie};
use crate::sys::sharing::EVERYTHING;
use crate::sys::{credentials, seccomp};

/// The umask of a process whose spec names none, as every runtime sets it.
const DEFAULT_UMASK: u32 = 0o022;
/// Set to `1`, it keeps the supplementary groups of who calls the runtime: crun's, and what podman makes of
/// `--group-add keep-groups`.
const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// See the module.
pub struct Identity<'f> {
    ids: Ids,
    keep_groups: bool,
    umask: u32,
    capabilities: Capabilities,
    /// What the bounding set is within.
    inherited: u64,
    no_new_privileges: bool,
    filter: Option<Cow<'f, Filter>>,
}

impl<'f> Identity<'f> {
    /// Takes a process apart. The filter is compiled by the parent; it may also come later, see [`Identity::set_filter`].
    pub fn of_process(
        process: &Process,
        filter: Option<&'f Filter>,
        warn: &mut dyn FnMut(String),
    ) -> Result<Self, Error> {
        let user = process.user();
        let (capabilities, warning) = Capabilities::of_spec(process.capabilities().as_ref())?;
        if let Some(warning) = warning {
            warn(warning);
        }
        Ok(Identity {
            ids: Ids {
                uid: user.uid(),
                gid: user.gid(),
                groups: user.additional_gids().clone().unwrap_or_default(),
            },
            keep_groups: false,
            umask: match user.umask().unwrap_or(DEFAULT_UMASK) {
                umask @ 0..=0o777 => umask,
                umask => return Err(Error::spec("process.user.umask", format!("{umask:#o} is above 0o777"))),
            },
            capabilities,
            inherited: EVERYTHING,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            filter: filter.map(Cow::Borrowed),
        })
    }

    /// Whether the processes of this container keep the supplementary groups of its creator.
    pub fn keeps_groups(spec: &Spec) -> bool {
        spec.annotations().as_ref().and_then(|all| all.get(KEEP_GROUPS)).is_some_and(|value| value == "1")
    }

    /// Whether the supplementary groups stay as they are, in place of those of the spec.
    pub fn keep_groups(&mut self, keep: bool) {
        self.keep_groups = keep;
    }

    /// What is not in this set need not be taken out of the bounding set any more.
    pub fn inherit_bounding(&mut self, set: u64) {
        self.inherited = set;
    }

    /// Replaces the numbers by those of the named user, when the spec names one. Additional groups stay.
    pub fn look_up(&mut self, process: &Process, root: &Root) -> Result<(), Error> {
        if let Some(name) = process.user().username().as_deref().filter(|n| !n.is_empty()) {
            let found = users::lookup(root, name)?;
            self.ids.uid = found.uid;
            self.ids.gid = found.gid;
            self.ids.groups.extend(found.groups);
        }
        Ok(())
    }

    /// What [`Identity::confine`] installs.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = Some(Cow::Owned(filter));
    }

    /// The user.
    pub fn uid(&self) -> u32 {
        self.ids.uid
    }

    /// Changes user, groups, bounding set and working folder. All permitted capabilities are kept for now.
    pub fn become_user(&self, cwd: &Path) -> Result<(), Error> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |e| Error::sys("set", what, e)
        };
        let entered = enter(cwd);
        umask(Mode::from_bits_truncate(self.umask));
        self.capabilities.limit_bounding(self.inherited)?;
        credentials::keep_capabilities().map_err(failed("keepcaps"))?;
        if !self.keep_groups {
            self.set_groups().map_err(failed("supplementary groups"))?;
        }
        credentials::set_ids(self.ids.uid, self.ids.gid)
            .map_err(failed(&format!("user {} and group {}", self.ids.uid, self.ids.gid)))?;
        Capabilities::raise_all()?;
        match entered {
            // On NFS the user may be let in where root is not.
            Err(Errno::EACCES | Errno::EPERM) => enter(cwd),
            other => other,
        }
        .map_err(|e| Error::sys("change to working folder", cwd.display().to_string(), e.into()))
    }

    fn set_groups(&self) -> io::Result<()> {
        match credentials::set_groups(&self.ids.groups) {
            // Who maps only the own user has to give setgroups(2) up (user_namespaces(7)), and keeps the groups.
            Err(e) if self.ids.groups.is_empty() && e.raw_os_error() == Some(libc::EPERM) => Ok(()),
            other => other,
        }
    }

    /// Drops the capabilities, shuts the way to new ones and installs the filter. Nothing but executing the program
    /// may follow.
    ///
    /// A filter that asks somebody is handed over by `channel`.
    pub fn confine(&self, channel: &Channel) -> Result<(), Error> {
        self.confine_first()?;
        self.confine_last(Some(channel))
    }

    /// Whether the filter asks somebody. A process has at most one such filter, and its children have that, too.
    pub fn asks(&self) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.asks())
    }

    /// As much of that as a process can bear that still has to make a child, which the filter may forbid.
    pub fn confine_first(&self) -> Result<(), Error> {
        if self.no_new_privileges {
            self.capabilities.apply()?;
            return credentials::no_new_privileges().map_err(|e| Error::sys("set", "no_new_privs", e));
        }
        // Without no_new_privs a filter needs CAP_SYS_ADMIN.
        if self.filter.is_some() { Ok(()) } else { self.capabilities.apply() }
    }

    /// The rest of it. Without a channel the filter must not ask anybody.
    pub fn confine_last(&self, channel: Option<&Channel>) -> Result<(), Error> {
        self.install_filter(channel)?;
        if self.no_new_privileges || self.filter.is_none() { Ok(()) } else { self.capabilities.apply() }
    }

    fn install_filter(&self, channel: Option<&Channel>) -> Result<(), Error> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let listener = seccomp::install(filter.program(), filter.flags())
            .map_err(|e| Error::sys("install", "the seccomp filter", e))?;
        // It is closed when the program is executed: the filter may not let close(2) pass.
        match (listener, channel) {
            (None, _) => Ok(()),
            (Some(listener), Some(channel)) => channel.report_listener(listener.into_raw_fd()),
            (Some(_), None) => {
                Err(Error::sys("hand over", "the seccomp listener", io::ErrorKind::NotConnected.into()))
            }
        }
    }
}

/// Says again whether the process dies with its parent: a change of user has undone it.
pub fn tie_to_parent(tie: &Tie) -> Result<(), Error> {
    if tie.outlives { credentials::outlive_parent() } else { credentials::die_with_parent() }
        .map_err(|e| Error::sys("set", "the signal at the parent's death", e))
}

/// Enters a folder and makes sure that it lies within the root: the path may be a link to a descriptor that leads out
/// (CVE-2024-21626).
fn enter(cwd: &Path) -> nix::Result<()> {
    chdir(cwd)?;
    match getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => {
            chdir("/")?;
            Err(Errno::EXDEV)
        }
    }
}
