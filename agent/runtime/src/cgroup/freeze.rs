//! Stopping and continuing all processes of a cgroup at once.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::hierarchy::Hierarchy;
use super::{Error, path};

/// How long processes may take to stop; one in an uninterruptible system call does only when that returns.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks where there is no event.
const LOOK: Duration = Duration::from_millis(2);

/// Freezes, and returns when all has stopped; when it does not in time everything is let go on again.
pub fn freeze(hierarchy: &Hierarchy, relative: &Path) -> Result<(), Error> {
    let result = match hierarchy {
        Hierarchy::V1(_) => freeze_v1(hierarchy, relative),
        Hierarchy::V2(root) => freeze_v2(&root.join(relative)),
    };
    if result.is_err() {
        let _ = thaw(hierarchy, relative);
    }
    result
}

/// Lets everything go on. A cgroup that does not exist is fine.
pub fn thaw(hierarchy: &Hierarchy, relative: &Path) -> Result<(), Error> {
    hierarchy.folder("freezer", relative).map_or(Ok(()), |dir| thaw_folder(hierarchy, &dir))
}

/// The same of all cgroups below: one that was frozen itself stays so when the one above it goes on.
pub fn thaw_all(hierarchy: &Hierarchy, relative: &Path) -> Result<(), Error> {
    let Some(dir) = hierarchy.folder("freezer", relative) else { return Ok(()) };
    path::deepest_first(&dir).iter().try_for_each(|dir| thaw_folder(hierarchy, dir))
}

fn thaw_folder(hierarchy: &Hierarchy, dir: &Path) -> Result<(), Error> {
    let (file, _, go_on) = switch(hierarchy, dir);
    match path::write(&file, go_on) {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}

/// Begins to freeze, without waiting for it; where that is not possible everything goes on.
pub fn begin(hierarchy: &Hierarchy, relative: &Path) {
    let Some(dir) = hierarchy.folder("freezer", relative) else { return };
    let (file, stop, _) = switch(hierarchy, &dir);
    let _ = path::write(&file, stop);
}

/// The file that freezes a cgroup, and what it is told to stop and to go on.
fn switch(hierarchy: &Hierarchy, dir: &Path) -> (PathBuf, &'static str, &'static str) {
    match hierarchy {
        Hierarchy::V1(_) => (dir.join("freezer.state"), "FROZEN", "THAWED"),
        Hierarchy::V2(_) => (dir.join("cgroup.freeze"), "1", "0"),
    }
}

/// Whether it was told to stop, by its own file.
pub fn is_frozen(hierarchy: &Hierarchy, relative: &Path) -> bool {
    let Some(dir) = hierarchy.folder("freezer", relative) else { return false };
    let (file, frozen) = match hierarchy {
        Hierarchy::V1(_) => ("freezer.state", ["FROZEN", "FREEZING"]),
        Hierarchy::V2(_) => ("cgroup.freeze", ["1", "1"]),
    };
    path::read(&dir.join(file)).is_ok_and(|state| frozen.contains(&state.trim()))
}

/// The kernel's own documentation (cgroup-v1/freezer-subsystem.rst) has FROZEN written again while it says FREEZING.
fn freeze_v1(hierarchy: &Hierarchy, relative: &Path) -> Result<(), Error> {
    let Some(dir) = hierarchy.folder("freezer", relative) else {
        return Err(Error::NoHierarchy("the freezer controller".to_owned()));
    };
    let file = dir.join("freezer.state");
    let deadline = Instant::now() + PATIENCE;
    loop {
        path::write(&file, "FROZEN")?;
        if path::read(&file)?.trim() == "FROZEN" {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(stuck(&file));
        }
        let _ = poll(&mut [], PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO));
    }
}

fn freeze_v2(dir: &Path) -> Result<(), Error> {
    let name = dir.join("cgroup.events");
    let mut events = File::open(&name).map_err(|e| Error::io("open", name.clone(), e))?;
    path::write(&dir.join("cgroup.freeze"), "1")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut text = String::new();
        events
            .rewind()
            .and_then(|()| events.read_to_string(&mut text))
            .map_err(|e| Error::io("read", name.clone(), e))?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(stuck(&name));
        }
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], left);
    }
}

fn stuck(file: &Path) -> Error {
    let why = format!("not all processes stopped within {} s", PATIENCE.as_secs());
    Error::io("freeze by", file, std::io::Error::other(why))
}
