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

/// Bytes of disk below a folder, or of a file; nothing that is mounted below counts. What is not there takes nothing.
///
/// # Errors
/// What keeps a folder from being read.
pub fn of(path: &Path) -> io::Result<u64> {
    let Some(stat) = look(AT_FDCWD, path.as_os_str())? else { return Ok(0) };
    let mut count = Count { device: stat.st_dev, seen: HashSet::new(), bytes: 0 };
    count.add(&stat);
    if let Some(walk) = Walk::at(path)?.filter(|_| is_folder(&stat)) {
        count.tree(walk)?;
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
        assert_eq!(of(&outside.join("big")).unwrap(), 4 << 20, "a file");
    }

    /// However deep a container hides it.
    #[test]
    fn files_in_a_tree_of_any_depth_count() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let tree = dir.path().join("tree");
        nest(&tree, 2_000);
        assert!(of(&tree).unwrap() >= 8192);
        crate::volumes::remove_tree(&tree).unwrap();
    }
}
