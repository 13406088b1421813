//! What files take of the disk.
//!
//! Containers write while this counts, so no path is followed: every folder is opened by its name in the open folder above
//! it, and a file with several names counts once.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

/// `st_blocks` is in these (inode(7)).
const BLOCK: u64 = 512;

/// Bytes of disk below a folder, or of a file; nothing that is mounted below counts. What is not there takes nothing.
///
/// # Errors
/// What keeps a folder from being read.
pub fn of(path: &Path) -> io::Result<u64> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = match openat(AT_FDCWD, path, flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::ENOENT) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let stat = fstat(&root)?;
    let mut count = Count { device: stat.st_dev, seen: HashSet::new(), bytes: 0 };
    count.add(&stat);
    if is_folder(&stat) {
        count.folder(root.as_fd())?;
    }
    Ok(count.bytes)
}

struct Count {
    device: u64,
    /// Files with several names that have been counted.
    seen: HashSet<u64>,
    bytes: u64,
}

impl Count {
    fn add(&mut self, stat: &FileStat) {
        if is_folder(stat) || stat.st_nlink < 2 || self.seen.insert(stat.st_ino) {
            self.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
        }
    }

    fn folder(&mut self, folder: BorrowedFd<'_>) -> io::Result<()> {
        for entry in std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
            let name = entry?.file_name();
            let stat = match fstatat(folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Gone meanwhile.
                Err(Errno::ENOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            if stat.st_dev != self.device {
                continue;
            }
            self.add(&stat);
            if !is_folder(&stat) {
                continue;
            }
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(folder, name.as_os_str(), flags, Mode::empty()) {
                Ok(child) => self.folder(child.as_fd())?,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn is_folder(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        let empty = of(&tree).unwrap();
        std::fs::write(outside.join("big"), vec![1; 4 << 20]).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        std::fs::write(tree.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(tree.join("a/b/file"), tree.join("again")).unwrap();
        let used = of(&tree).unwrap() - empty;
        assert!((1 << 20..3 << 19).contains(&used), "{used}");
        // A hole takes nothing.
        std::fs::File::create(tree.join("hole")).unwrap().set_len(1 << 30).unwrap();
        assert!(of(&tree).unwrap() - empty < 3 << 19);
        assert_eq!(of(&dir.path().join("none")).unwrap(), 0);
    }
}
