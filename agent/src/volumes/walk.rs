//! Walking through a tree of folders that a container has made, however deep and while others change it.
//!
//! No path is followed: a folder is opened by its name in the open folder above it. Neither the stack nor the number of open
//! files grows with the depth: a container can nest a million folders, and a recursion would end this process.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// So many folders stay open, the topmost. To a deeper one the way back is `..`.
const OPEN: usize = 64;

const FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A folder that the walk is in, and those above it up to where it began.
struct Level {
    /// Its name in the folder above.
    name: OsString,
    /// Device and inode.
    id: (u64, u64),
    /// What is in it and has not been looked at.
    rest: VecDeque<OsString>,
    open: Option<OwnedFd>,
}

/// A walk: never empty.
pub(super) struct Walk {
    levels: Vec<Level>,
    /// The folder of the last level, where that does not hold it.
    deep: Option<OwnedFd>,
    /// Whether it goes into what is mounted below.
    across_mounts: bool,
}

impl Walk {
    /// Begins at a folder; none if it is not there, or not a folder.
    pub fn at(root: &Path) -> io::Result<Option<Walk>> {
        match openat(AT_FDCWD, root, FLAGS, Mode::empty()) {
            Ok(root) => Walk::within(root).map(Some),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins at an open folder.
    pub fn within(root: OwnedFd) -> io::Result<Walk> {
        let mut walk = Walk { levels: Vec::new(), deep: None, across_mounts: false };
        walk.enter(OsString::new(), root)?;
        Ok(walk)
    }

    /// Has it go into what is mounted below, too.
    #[must_use]
    pub fn across_mounts(self) -> Walk {
        Walk { across_mounts: true, ..self }
    }

    /// The folder that the walk is in.
    pub fn folder(&self) -> io::Result<BorrowedFd<'_>> {
        let held = self.levels.last().and_then(|level| level.open.as_ref()).or(self.deep.as_ref());
        held.map(AsFd::as_fd).ok_or_else(lost)
    }

    /// How many folders it is in: 1 where it began.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The next name in it; none once all have been given.
    pub fn next_name(&mut self) -> Option<OsString> {
        self.levels.last_mut()?.rest.pop_front()
    }

    /// Goes into the folder of a name. False if it has gone, is no folder, or another file system is mounted there.
    pub fn descend(&mut self, name: &OsStr) -> io::Result<bool> {
        let child = match openat(self.folder()?, name, FLAGS, Mode::empty()) {
            Ok(child) => child,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let device = self.levels.last().map_or(0, |level| level.id.0);
        if !self.across_mounts && id(&fstat(&child)?).0 != device {
            return Ok(false);
        }
        self.enter(name.to_owned(), child)?;
        Ok(true)
    }

    fn enter(&mut self, name: OsString, folder: OwnedFd) -> io::Result<()> {
        let mut rest = VecDeque::new();
        for entry in Dir::openat(&folder, ".", FLAGS, Mode::empty())?.iter() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                rest.push_back(name.to_owned());
            }
        }
        let id = id(&fstat(&folder)?);
        let open = if self.levels.len() < OPEN {
            Some(folder)
        } else {
            self.deep = Some(folder);
            None
        };
        self.levels.push(Level { name, id, rest, open });
        Ok(())
    }

    /// Goes back to the folder above and gives the name of the one that was left; none where the walk began.
    ///
    /// # Errors
    /// When somebody has moved the folder meanwhile, so that the way back is another one. The walk can go on: from the nearest
    /// folder that is still open.
    pub fn ascend(&mut self) -> io::Result<Option<OsString>> {
        if self.levels.len() < 2 {
            return Ok(None);
        }
        let Some(left) = self.levels.pop() else { return Ok(None) };
        let deep = self.deep.take();
        let above = self.levels.last().ok_or_else(lost)?;
        if above.open.is_some() {
            return Ok(Some(left.name));
        }
        match way_back(deep.as_ref(), above.id) {
            Ok(folder) => {
                self.deep = Some(folder);
                Ok(Some(left.name))
            }
            Err(error) => {
                self.levels.truncate(OPEN);
                Err(error)
            }
        }
    }
}

/// The folder above, if it is still the one that was left.
fn way_back(folder: Option<&OwnedFd>, wanted: (u64, u64)) -> io::Result<OwnedFd> {
    let above = openat(folder.ok_or_else(lost)?, "..", FLAGS, Mode::empty())?;
    if id(&fstat(&above)?) == wanted {
        return Ok(above);
    }
    Err(io::Error::other("a folder was moved while this went through it"))
}

fn lost() -> io::Error {
    io::Error::other("the walk has no folder")
}

fn id(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Whether it is a folder.
pub(super) fn is_folder(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// What is known of a name in a folder, without following a link; none if it has gone.
pub(super) fn look(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<FileStat>> {
    match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `rm -rf`; a missing folder is fine.
///
/// # Errors
/// The first that could not be removed, and `EBUSY` for a folder where something is mounted, which is left as it is.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    let Some(mut walk) = Walk::at(dir)? else {
        return match std::fs::remove_file(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    loop {
        while let Some(name) = walk.next_name() {
            match unlinkat(walk.folder()?, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                // POSIX has one of them for a folder, Linux the other.
                Err(Errno::EISDIR | Errno::EPERM) => {
                    if !walk.descend(&name)? {
                        remove_folder(walk.folder()?, &name)?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        match walk.ascend()? {
            Some(name) => remove_folder(walk.folder()?, &name)?,
            None => break,
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_folder(above: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(above, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// Folders within folders, with a file in the innermost.
    pub fn nest(root: &Path, depth: usize) {
        std::fs::create_dir_all(root).unwrap();
        let mut at = openat(AT_FDCWD, root, FLAGS, Mode::empty()).unwrap();
        for _ in 0..depth {
            nix::sys::stat::mkdirat(&at, "d", Mode::from_bits_truncate(0o755)).unwrap();
            at = openat(&at, "d", FLAGS, Mode::empty()).unwrap();
        }
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = openat(&at, "file", flags, Mode::from_bits_truncate(0o600)).unwrap();
        nix::unistd::write(&file, &[1; 8192]).unwrap();
    }

    /// A container may make these; a recursion would overflow the stack of the thread that removes them.
    #[test]
    fn a_tree_of_any_depth_is_removed() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let tree = dir.path().join("tree");
        nest(&tree, 10_000);
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("a/link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && Path::new("/etc/passwd").exists());
        remove_tree(&tree).unwrap();
        std::fs::write(&tree, "").unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn a_walk_sees_everything_once_and_notices_a_folder_that_was_moved() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let tree = dir.path().join("tree");
        nest(&tree, 2 * OPEN);
        let mut walk = Walk::at(&tree).unwrap().unwrap();
        let mut depth = 0;
        while let Some(name) = walk.next_name() {
            depth += usize::from(walk.descend(&name).unwrap());
        }
        assert_eq!(depth, 2 * OPEN);
        assert_eq!(walk.ascend().unwrap().as_deref(), Some(OsStr::new("d")));
        // The folder that the walk is in gets another one above it.
        let inner = tree.join(vec!["d"; 2 * OPEN - 1].join("/"));
        std::fs::rename(&inner, dir.path().join("moved")).unwrap();
        walk.ascend().unwrap_err();
        let mut left = 0;
        while walk.ascend().unwrap().is_some() {
            left += 1;
        }
        assert_eq!(left, OPEN - 1, "it goes on where it is sure of the way");
    }
}
