//! Handing a volume over to a pod's fsGroup, as kubelet's `SetVolumeOwnership` does.
//!
//! Other pods may be at work in the volume meanwhile, so no path is ever followed: every file is reached by its name in the
//! open folder above it, and changed through the descriptor that was found.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, fchownat};

use super::walk::Walk;

/// Read and write for the group, and set-group-ID and search on folders: what is made there later is the group's, too.
const FILE: u32 = 0o660;
const FOLDER: u32 = 0o2770;

/// Gives everything in the volume to the group. With `on_mismatch` only if the volume's own folder is not the group's
/// already (`fsGroupChangePolicy: OnRootMismatch`).
///
/// # Errors
/// The first file that could not be changed.
pub fn hand_over(path: &Path, group: u32, on_mismatch: bool) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = openat(AT_FDCWD, path, flags, Mode::empty())?;
    let stat = fstat(&root)?;
    if on_mismatch && stat.st_gid == group && stat.st_mode & FOLDER == FOLDER {
        return Ok(());
    }
    if let Some(mut walk) = Walk::at(path)?.map(Walk::across_mounts) {
        loop {
            while let Some(name) = walk.next_name() {
                // What is in a folder comes before the folder: if this is cut short, the folder still shows that it is to be
                // done again.
                if walk.descend(&name)? {
                    continue;
                }
                if let Some(child) = open_child(walk.folder()?, &name)? {
                    change(child.as_fd(), group)?;
                }
            }
            if walk.depth() == 1 {
                break;
            }
            change(walk.folder()?, group)?;
            walk.ascend()?;
        }
    }
    change(root.as_fd(), group)
}

fn change(file: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    let stat = fstat(file)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    fchownat(file, "", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    let wanted = match kind {
        SFlag::S_IFLNK => return Ok(()),
        SFlag::S_IFDIR => FOLDER,
        _ => FILE,
    };
    let mode = stat.st_mode & 0o7777;
    if mode | wanted != mode || kind != SFlag::S_IFDIR && mode & 0o6000 != 0 {
        std::fs::set_permissions(through(file), std::fs::Permissions::from_mode(mode | wanted))?;
    }
    Ok(())
}

/// None if it has gone meanwhile.
fn open_child(folder: BorrowedFd<'_>, name: &std::ffi::OsStr) -> io::Result<Option<OwnedFd>> {
    match openat(folder, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(child) => Ok(Some(child)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A path that leads to exactly the file that is open.
fn through(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn modes(path: &Path) -> (u32, u32) {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.gid(), meta.mode() & 0o7777)
    }

    #[test]
    fn everything_becomes_the_groups_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("sub")).unwrap();
        for (file, mode) in [(volume.join("sub/file"), 0o600), (outside.clone(), 0o600)] {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::set_permissions(volume.join("sub"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(&outside, volume.join("link")).unwrap();
        hand_over(&volume, 4711, false).unwrap();
        assert_eq!(modes(&volume).0, 4711);
        assert_eq!(modes(&volume.join("sub")), (4711, 0o2775));
        assert_eq!(modes(&volume.join("sub/file")), (4711, 0o660));
        assert_eq!(modes(&volume.join("link")).0, 4711);
        assert_eq!(modes(&outside), (0, 0o600), "the link was followed");
    }

    #[test]
    fn on_root_mismatch_looks_at_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("old"), "").unwrap();
        hand_over(&volume, 4711, true).unwrap();
        assert_eq!(modes(&volume.join("old")).0, 4711, "the root was not the group's");
        fs::write(volume.join("new"), "").unwrap();
        std::os::unix::fs::chown(volume.join("new"), None, Some(0)).unwrap();
        hand_over(&volume, 4711, true).unwrap();
        assert_eq!(modes(&volume.join("new")).0, 0, "the root was the group's already");
        hand_over(&volume, 4711, false).unwrap();
        assert_eq!(modes(&volume.join("new")).0, 4711);
    }
}
