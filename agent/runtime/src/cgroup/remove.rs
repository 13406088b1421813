//! Killing what is inside a cgroup and removing it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hierarchy::Hierarchy;
use super::{Error, path};

/// How long killed processes may take to leave.
const PATIENCE: Duration = Duration::from_secs(10);
/// v1 has no event for "became empty", so it is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(2);
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
    let freezer = freezer(hierarchy, relative);
    if let Some((file, freeze, _)) = &freezer {
        let _ = path::write(file, freeze);
    }
    let result = kill_rounds(hierarchy, relative);
    if let Some((file, _, thaw)) = &freezer {
        // On v1 the frozen processes die only now.
        match path::write(file, thaw) {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
    }
    result
}

fn freezer(hierarchy: &Hierarchy, relative: &Path) -> Option<(PathBuf, &'static str, &'static str)> {
    let dir = hierarchy.folder("freezer", relative)?;
    Some(match hierarchy {
        Hierarchy::V1(_) => (dir.join("freezer.state"), "FROZEN", "THAWED"),
        Hierarchy::V2(_) => (dir.join("cgroup.freeze"), "1", "0"),
    })
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

/// Waits a moment for the cgroup to become empty: for the event on v2, for a short time on v1.
fn wait_empty(hierarchy: &Hierarchy, relative: &Path) {
    if let Hierarchy::V2(root) = hierarchy {
        if let Ok(events) = File::open(root.join(relative).join("cgroup.events")) {
            let populated = io::read_to_string(&events).is_ok_and(|t| t.contains("populated 1"));
            if populated {
                let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
                let _ = poll(&mut fds, PollTimeout::from(50_u8));
            }
            return;
        }
    }
    std::thread::sleep(LOOK_EVERY);
}
