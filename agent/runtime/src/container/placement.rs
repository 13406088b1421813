//! Getting a new process into its cgroup. `cgroups-rs` is gone round here, for speed.
//!
//! v1: a process that writes `0` into `tasks` is moved at once (0.05 ms for three hierarchies). Writing a process id
//! to `cgroup.procs`, as the library does, waits for an RCU grace period: 7 to 12 ms.
//! v2: clone3 makes the process in its cgroup (0.2 ms), see [`crate::sys::process::Clone3`].

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Error;
use super::create::cgroups_of;
use super::namespaces::{ChildrenElsewhere, own_pids};
use super::procfs::Proc;
use crate::cgroup::{Cgroups, Driver, GroupKill, Held};
use crate::sys::process::{Child, Clone3, pidfd_open};
use crate::sys::sharing::{Common, Maker};

/// The v1 cgroups that a process is going to enter, by their open `tasks` files.
#[derive(Debug)]
pub struct Placement(Vec<OwnedFd>);

impl Placement {
    /// Opens the `tasks` files while the host's cgroup file systems can be reached.
    pub fn open(files: &[PathBuf]) -> Result<Placement, Error> {
        let mut open = Vec::with_capacity(files.len());
        for path in files {
            match OpenOptions::new().write(true).open(path) {
                Ok(file) => open.push(file.into()),
                // The container has no limit in this hierarchy.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::sys("open cgroup", path.display().to_string(), e)),
            }
        }
        Ok(Placement(open))
    }

    /// The same below a cgroup, in the hierarchies that have this.
    fn open_below(cgroups: &Cgroups, cgroup: &str, below: &[SubCgroup]) -> Result<Placement, Error> {
        let mut unknown: Vec<&str> =
            below.iter().flat_map(|sub| &sub.controllers).map(String::as_str).collect();
        let mut files = Vec::new();
        for (controllers, file) in cgroups.v1_entrances(cgroup)? {
            let has = |name: &str| controllers.iter().any(|c| c.trim_start_matches("name=") == name);
            unknown.retain(|name| !has(name));
            let sub =
                below.iter().find(|s| s.controllers.is_empty() || s.controllers.iter().any(|name| has(name)));
            let (Some(sub), true) = (sub, file.exists()) else {
                files.push(file);
                continue;
            };
            let mut inner = file.with_file_name(&sub.path);
            inner.extend(file.file_name());
            if !inner.exists() {
                let missing = io::Error::from(io::ErrorKind::NotFound);
                return Err(Error::sys("open cgroup", inner.display().to_string(), missing));
            }
            files.push(inner);
        }
        match unknown.first() {
            Some(name) => Err(Error::spec("--cgroup", format!("unknown controller {name}"))),
            None => Placement::open(&files),
        }
    }

    /// The files, for another process.
    pub fn files(&self) -> Vec<RawFd> {
        self.0.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Those files, in that process.
    pub fn of_files(files: Vec<OwnedFd>) -> Placement {
        Placement(files)
    }

    /// Moves the calling thread, which must be the only one of its process. The files stay open, and can be used again.
    pub fn enter(&self) -> Result<(), Error> {
        self.0.iter().try_for_each(|file| {
            nix::unistd::write(file, b"0").map(drop).map_err(|e| {
                let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
                Error::sys("enter cgroup", path.display().to_string(), e.into())
            })
        })
    }
}

/// A cgroup below that of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SubCgroup {
    /// The controllers of cgroup v1 that it is for; none for all, as always on v2.
    pub controllers: Vec<String>,
    /// Its path from the container's on, without a slash around it.
    pub path: String,
}

/// The way into a container and its cgroup. It serves for many processes: to look for it takes longer than to go in.
#[derive(Debug)]
pub struct Entrance {
    cgroups: Cow<'static, Cgroups>,
    /// On v2.
    folder: Option<File>,
    /// On v1.
    placement: Placement,
    /// The container's first process.
    process: OnceCell<OwnedFd>,
    /// The PID namespace of this process.
    own_pids: OnceCell<OwnedFd>,
    /// The host's procfs, if it can be had.
    proc: Option<Proc>,
    /// The cgroup's path, where it has one for all hierarchies.
    cgroup: Option<String>,
    /// See [`Entrance::hold_group`].
    group: OnceCell<Option<GroupKill>>,
    /// See [`Entrance::maker`].
    maker: OnceCell<Maker>,
}

impl Entrance {
    /// Opens the way into a cgroup that is relative to each hierarchy's root. One without a name is where its creator was; so is
    /// who enters it.
    ///
    /// # Errors
    /// When there is no such cgroup.
    pub fn open(cgroup: &str) -> Result<Entrance, Error> {
        let driver = if cgroup.is_empty() { Driver::Inherited } else { Driver::Cgroupfs };
        let cgroups = cgroups_of(driver)?;
        let folder = cgroups.v2_folder(cgroup)?;
        let placement = Placement::open(&cgroups.v1_task_files(cgroup)?)?;
        Ok(Entrance { cgroup: Some(cgroup.to_owned()), ..Entrance::new(cgroups, folder, placement) })
    }

    /// The way into cgroups below that one, which must exist. Where none is named, it is that one itself.
    ///
    /// # Errors
    /// When there is no such cgroup or no such controller.
    pub fn open_below(cgroup: &str, below: &[SubCgroup]) -> Result<Entrance, Error> {
        match below {
            [] => Entrance::open(cgroup),
            [all] if all.controllers.is_empty() && all.path.is_empty() => Entrance::open(cgroup),
            some => {
                let cgroups = cgroups_of(Driver::Cgroupfs)?;
                let folder = match some {
                    [all] if all.controllers.is_empty() => {
                        cgroups.v2_folder(&format!("{cgroup}/{}", all.path))?
                    }
                    _ => None,
                };
                let placement = Placement::open_below(&cgroups, cgroup, some)?;
                Ok(Entrance::new(cgroups, folder, placement))
            }
        }
    }

    fn new(cgroups: Cow<'static, Cgroups>, folder: Option<File>, placement: Placement) -> Entrance {
        Entrance {
            cgroups,
            folder,
            placement,
            process: OnceCell::new(),
            own_pids: OnceCell::new(),
            proc: Proc::open().ok(),
            cgroup: None,
            group: OnceCell::new(),
            maker: OnceCell::new(),
        }
    }

    /// The host's procfs, if that is where it belongs.
    pub(super) fn proc(&self) -> Option<&Proc> {
        self.proc.as_ref()
    }

    /// Keeps the kernel from killing a cgroup v2 as a whole as long as what this returns lives. Nothing when that cannot be done: then no
    /// process may be in it that shares memory with one outside.
    pub(super) fn hold_group(&self) -> Option<Held<'_>> {
        let find = || self.cgroup.as_ref().and_then(|cgroup| self.cgroups.group_kill(cgroup));
        self.group.get_or_init(find).as_ref()?.hold().ok()
    }

    /// Whether the container is to be killed as a whole, but may have been kept from that like this.
    pub(crate) fn holds_group(&self) -> bool {
        self.group.get().and_then(Option::as_ref).is_some_and(GroupKill::is_on)
    }

    /// Who makes processes of the container that begin in the memory of this one. The first time, what they have in common is asked
    /// for, the most first: if the kernel refuses it, the next is taken.
    pub(super) fn maker<'a>(&self, common: impl FnOnce() -> Vec<Common<'a>>) -> io::Result<&Maker> {
        if let Some(maker) = self.maker.get() {
            return Ok(maker);
        }
        let mut outcome = Err(io::ErrorKind::Unsupported.into());
        for common in common() {
            outcome = Maker::start(&common);
            if outcome.is_ok() {
                break;
            }
        }
        outcome.map(|maker| self.maker.get_or_init(|| maker))
    }

    /// The container's first process. What is asked for first is kept: an entrance leads into one container.
    pub(super) fn process(&self, pid: i32) -> Result<BorrowedFd<'_>, Error> {
        keep(&self.process, || {
            pidfd_open(pid).map_err(|e| Error::sys("open", format!("container process {pid}"), e))
        })
    }

    /// Has children of this process born into the container's PID namespace.
    pub(super) fn enter_pids(&self, pid: i32) -> Result<ChildrenElsewhere<BorrowedFd<'_>>, Error> {
        let own = keep(&self.own_pids, own_pids)?;
        ChildrenElsewhere::enter_from(own, self.process(pid)?)
    }

    /// The cgroup's folder on v2.
    pub(super) fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().map(AsFd::as_fd)
    }

    /// Goes in on v1.
    pub(super) fn enter(&self) -> Result<(), Error> {
        self.placement.enter()
    }

    /// Makes a child there. When the container has divided its cgroup on v2 into smaller ones, no process may be in it, and the
    /// one of its first process `init` is taken.
    pub(super) fn spawn(&self, init: i32, mut body: impl FnMut()) -> Result<Child, Error> {
        let mut make = |cgroup: Option<BorrowedFd<'_>>| Clone3 { flags: 0, cgroup }.spawn(&mut body);
        let failed = |e| Error::sys("clone", "a process in the container", e);
        match make(self.folder()) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && self.folder.is_some() => {
                let inner = own_cgroup(init).ok_or_else(|| failed(e))?;
                make(self.cgroups.v2_folder(&inner)?.as_ref().map(AsFd::as_fd)).map_err(failed)
            }
            other => other.map_err(failed),
        }
    }
}

fn keep(
    cell: &OnceCell<OwnedFd>,
    open: impl FnOnce() -> Result<OwnedFd, Error>,
) -> Result<BorrowedFd<'_>, Error> {
    let fd = match cell.get() {
        Some(fd) => fd,
        None => {
            let fd = open()?;
            cell.get_or_init(|| fd)
        }
    };
    Ok(fd.as_fd())
}

/// The cgroup v2 of a process.
fn own_cgroup(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("0::")).map(str::to_owned)
}
