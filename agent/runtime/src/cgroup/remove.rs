//! Killing what is inside a cgroup and removing it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hierarchy::{Hierarchy, Mount};
use super::{Error, freeze, path};
use crate::sys::process::pidfd_open;

/// How long killed processes may take to leave.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one wait for an event lasts at most, and one for what has no event, in milliseconds.
const WAIT_MS: u8 = 50;
const CLEARING_MS: u8 = 1;
/// A fork bomb may need several rounds where there is no freezer.
const KILL_ROUNDS: usize = 200;

/// The processes inside and below, sorted.
pub fn pids(hierarchy: &Hierarchy, relative: &Path) -> Result<Vec<i32>, Error> {
    let mut all = BTreeSet::new();
    for top in hierarchy.folders(relative) {
        collect_pids(&top, &mut all)?;
    }
    Ok(all.into_iter().collect())
}

fn collect_pids(dir: &Path, all: &mut BTreeSet<i32>) -> Result<(), Error> {
    let Some(text) = path::read_optional(&dir.join("cgroup.procs"))? else { return Ok(()) };
    all.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0));
    path::children(dir).iter().try_for_each(|name| collect_pids(&dir.join(name), all))
}

/// Kills everything inside and below. Returns when the signals are sent, not when the processes are gone.
pub fn kill_all(hierarchy: &Hierarchy, relative: &Path) -> Result<(), Error> {
    if let Hierarchy::V2(root) = hierarchy {
        match path::write(&root.join(relative).join("cgroup.kill"), "1") {
            // The cgroup is gone, or the kernel is older than 5.14.
            Err(e) if e.is_not_found() => {}
            other => return other,
        }
    }
    if pids(hierarchy, relative)?.is_empty() {
        return Ok(());
    }
    // A frozen cgroup cannot fork faster than it is killed.
    freeze::begin(hierarchy, relative);
    let result = kill_rounds(hierarchy, relative);
    // On v1 the frozen processes die only now, those of a paused container as well.
    freeze::thaw_all(hierarchy, relative).and(result)
}

fn kill_rounds(hierarchy: &Hierarchy, relative: &Path) -> Result<(), Error> {
    let mut killed = BTreeSet::new();
    for _ in 0..KILL_ROUNDS {
        let fresh: Vec<i32> =
            pids(hierarchy, relative)?.into_iter().filter(|pid| !killed.contains(pid)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        for pid in fresh {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => killed.insert(pid),
                Err(e) => return Err(Error::io("kill process in cgroup", relative, e.into())),
            };
        }
    }
    Ok(())
}

/// Kills what is inside and waits up to ten seconds until it is gone.
pub fn empty(hierarchy: &Hierarchy, relative: &Path, name: &str) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = pids(hierarchy, relative)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Busy { path: name.to_owned(), pids: left });
        }
        kill_all(hierarchy, relative)?;
        wait_empty(hierarchy, relative);
    }
}

/// Kills what is inside and removes the folders in every hierarchy.
pub fn remove(hierarchy: &Hierarchy, relative: &Path, name: &str) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    // The usual case is empty cgroups, which rmdir tells at no cost.
    if try_remove(hierarchy, relative)? {
        return Ok(());
    }
    loop {
        kill_all(hierarchy, relative)?;
        wait_empty(hierarchy, relative);
        if try_remove(hierarchy, relative)? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Busy { path: name.to_owned(), pids: pids(hierarchy, relative)? });
        }
    }
}

/// True when nothing is left; false when something still lives inside.
fn try_remove(hierarchy: &Hierarchy, relative: &Path) -> Result<bool, Error> {
    let mut done = true;
    for top in hierarchy.folders(relative) {
        match fs::remove_dir(&top) {
            Ok(()) => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => {}
        }
        for dir in path::deepest_first(&top) {
            match fs::remove_dir(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => done = false,
                // A new child appeared after the list was made.
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => done = false,
                Err(e) => return Err(Error::io("remove cgroup", dir, e)),
            }
        }
    }
    Ok(done)
}

/// Above the container are its pod, its tier and the tree of pods.
const LEVELS: usize = 4;

/// Removes empty folders in v1 hierarchies that are mounted but not among `used`.
pub fn elsewhere(used: &[Mount], relative: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(point), Some("cgroup")) = (words.next(), words.next()) else { continue };
        if used.iter().any(|mount| mount.root == Path::new(point)) {
            continue;
        }
        for dir in relative.ancestors().take(LEVELS).filter(|dir| !dir.as_os_str().is_empty()) {
            if fs::remove_dir(Path::new(point).join(dir)).is_err_and(|e| e.kind() != io::ErrorKind::NotFound)
            {
                break;
            }
        }
    }
}

/// Waits a moment for the cgroup to become empty: for its event on v2; v1 has none, so for the end of the processes.
fn wait_empty(hierarchy: &Hierarchy, relative: &Path) {
    let events = match hierarchy {
        Hierarchy::V2(root) => File::open(root.join(relative).join("cgroup.events")).ok(),
        Hierarchy::V1(_) => None,
    };
    let populated = |f: &File| io::read_to_string(f).is_ok_and(|t| t.contains("populated 1"));
    let mut owners: Vec<OwnedFd> = Vec::new();
    let mut wanted = PollFlags::POLLIN;
    match events {
        Some(file) if populated(&file) => {
            wanted = PollFlags::POLLPRI;
            owners.push(file.into());
        }
        Some(_) => {}
        None => {
            let left = pids(hierarchy, relative).unwrap_or_default();
            owners.extend(left.into_iter().filter_map(|pid| pidfd_open(pid).ok()));
        }
    }
    // With nothing to wait for, what is left is the kernel's own clearing up.
    let timeout = PollTimeout::from(if owners.is_empty() { CLEARING_MS } else { WAIT_MS });
    let mut fds: Vec<PollFd<'_>> = owners.iter().map(|fd| PollFd::new(fd.as_fd(), wanted)).collect();
    let _ = poll(&mut fds, timeout);
}
