//! What files take of the disk.
//!
//! Containers write while this counts, see [`Walk`]. A file with several names counts once.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::FileStat;

use super::walk::{Walk, is_folder, look};

/// `st_blocks` is in these (inode(7)).
const BLOCK: u64 = 512;

/// What files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes.
    pub bytes: u64,
    /// Files and folders.
    pub inodes: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// What a folder and all below it takes of the disk, or a file; nothing that is mounted below counts. What is not there takes
/// nothing.
///
/// # Errors
/// What keeps a folder from being read.
pub fn of(path: &Path) -> io::Result<Used> {
    let Some(stat) = look(AT_FDCWD, path.as_os_str())? else { return Ok(Used::default()) };
    let mut count = Count { device: stat.st_dev, seen: HashSet::new(), used: Used::default() };
    count.add(&stat);
    if let Some(walk) = Walk::at(path)?.filter(|_| is_folder(&stat)) {
        count.tree(walk)?;
    }
    Ok(count.used)
}

struct Count {
    device: u64,
    /// Files with several names that have been counted.
    seen: HashSet<u64>,
    used: Used,
}

impl Count {
    fn add(&mut self, stat: &FileStat) {
        if is_folder(stat) || stat.st_nlink < 2 || self.seen.insert(stat.st_ino) {
            self.used += Used { bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK, inodes: 1 };
        }
    }

    fn tree(&mut self, mut walk: Walk) -> io::Result<()> {
        loop {
            while let Some(name) = walk.next_name() {
                let Some(stat) = look(walk.folder()?, &name)? else { continue };
                if stat.st_dev != self.device {
                    continue;
                }
                self.add(&stat);
                if is_folder(&stat) {
                    walk.descend(&name)?;
                }
            }
            // An error is a folder that was moved away: it is found where it is now, or next time.
            if let Ok(None) = walk.ascend() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::walk::tests::nest;
    use super::*;

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        let empty = of(&tree).unwrap().bytes;
        std::fs::write(outside.join("big"), vec![1; 4 << 20]).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        std::fs::write(tree.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(tree.join("a/b/file"), tree.join("again")).unwrap();
        let used = of(&tree).unwrap();
        assert_eq!(used.inodes, 5, "tree, a, b, the link and the file of two names");
        let used = used.bytes - empty;
        assert!((1 << 20..3 << 19).contains(&used), "{used}");
        // A hole takes nothing.
        std::fs::File::create(tree.join("hole")).unwrap().set_len(1 << 30).unwrap();
        assert!(of(&tree).unwrap().bytes - empty < 3 << 19);
        assert_eq!(of(&dir.path().join("none")).unwrap(), Used::default());
        assert_eq!(of(&outside.join("big")).unwrap().bytes, 4 << 20, "a file");
    }

    /// However deep a container hides it.
    #[test]
    fn files_in_a_tree_of_any_depth_count() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let tree = dir.path().join("tree");
        nest(&tree, 2_000);
        assert!(of(&tree).unwrap().bytes >= 8192);
        crate::volumes::remove_tree(&tree).unwrap();
    }
}
