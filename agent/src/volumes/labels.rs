//! SELinux labels of the files that the node owns: volumes, and what else a pod's containers have mounted.
//!
//! Containers may be at work in a volume meanwhile, so no path is ever followed, as with its group: see
//! [`super::ownership`]. What is mounted below a volume is not its own and keeps its labels.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fstat};
use rustix::fs::XattrFlags;

use super::walk::{Walk, is_folder};

/// Where the kernel keeps a file's context (xattr(7)).
#[cfg(not(test))]
const NAME: &str = "security.selinux";
/// A kernel without SELinux refuses that, but not this.
#[cfg(test)]
const NAME: &str = "user.selinux";

const FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Labels everything in a volume, the volume's own folder last: while that has another label, something is left to do.
///
/// # Errors
/// The first file that could not be labelled. A file system that knows no labels is left as it is.
pub fn relabel(path: &Path, label: &str) -> io::Result<()> {
    let root = openat(AT_FDCWD, path, FLAGS, Mode::empty())?;
    if let Some(mut walk) = Walk::at(path)? {
        loop {
            while let Some(name) = walk.next_name() {
                let Some(child) = open_child(walk.folder()?, &name)? else { continue };
                if is_folder(&fstat(&child)?) && walk.descend(&name)? {
                    continue;
                }
                set(child.as_fd(), label)?;
            }
            if walk.depth() == 1 {
                break;
            }
            set(walk.folder()?, label)?;
            walk.ascend()?;
        }
    }
    set(root.as_fd(), label)
}

/// The same unless the volume's own folder has the label.
///
/// # Errors
/// As [`relabel`].
pub fn settle(path: &Path, label: &str) -> io::Result<()> {
    let root = openat(AT_FDCWD, path, FLAGS, Mode::empty())?;
    match get(root.as_fd()) {
        Ok(found) if found.as_deref() == Some(label.as_bytes()) => Ok(()),
        Ok(_) => relabel(path, label),
        Err(error) => Err(error),
    }
}

/// Labels one file, folder or link.
///
/// # Errors
/// What the kernel says.
pub fn set_one(path: &Path, label: &str) -> io::Result<()> {
    set(openat(AT_FDCWD, path, FLAGS, Mode::empty())?.as_fd(), label)
}

/// Gives a new folder the label of the one that it was made in, whose maker has another level than the containers.
///
/// # Errors
/// What the kernel says.
pub fn inherit(above: BorrowedFd<'_>, folder: BorrowedFd<'_>) -> io::Result<()> {
    match get(above)?.map(String::from_utf8) {
        Some(Ok(label)) => set(folder, &label),
        _ => Ok(()),
    }
}

/// None if it has gone meanwhile, or another file system is mounted there.
fn open_child(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    loop {
        return match openat2(folder, name, OpenHow::new().flags(FLAGS).resolve(resolve)) {
            Ok(child) => Ok(Some(child)),
            Err(Errno::ENOENT | Errno::EXDEV) => Ok(None),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

/// A path that leads to exactly the file that is open, be it a link.
fn through(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// The file's label without the zero at its end; none if it has none.
fn get(file: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    use rustix::io::Errno;
    let mut label = Vec::with_capacity(4096);
    match rustix::fs::getxattr(through(file), NAME, rustix::buffer::spare_capacity(&mut label)) {
        Ok(_) => {
            label.truncate(label.iter().position(|byte| *byte == 0).unwrap_or(label.len()));
            Ok(Some(label))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Does nothing when the file has the label: that would count as a change of it.
fn set(file: BorrowedFd<'_>, label: &str) -> io::Result<()> {
    use rustix::io::Errno;
    if get(file)?.as_deref() == Some(label.as_bytes()) {
        return Ok(());
    }
    match rustix::fs::setxattr(through(file), NAME, label.as_bytes(), XattrFlags::empty()) {
        // Network file systems and the like have one label for all, which is their owner's matter.
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::walk::tests::nest;
    use super::*;

    fn label(path: &Path) -> Option<String> {
        let file = openat(AT_FDCWD, path, FLAGS, Mode::empty()).unwrap();
        get(file.as_fd()).unwrap().map(|label| String::from_utf8(label).unwrap())
    }

    #[test]
    fn everything_in_the_volume_is_labelled_and_nothing_behind_a_link() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::create_dir(&outside).unwrap();
        for file in [volume.join("file"), volume.join("sub/file"), outside.join("file")] {
            fs::write(file, "").unwrap();
        }
        fs::hard_link(volume.join("file"), volume.join("again")).unwrap();
        for (link, target) in [("folder", outside.clone()), ("sub/link", outside.join("file"))] {
            symlink(target, volume.join(link)).unwrap();
        }
        // What users may keep at a file, links may not have: see the test on a kernel with SELinux for their labels.
        for link in ["folder", "sub/link"] {
            let error = set_one(&volume.join(link), "l").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM), "it is the link that is labelled");
            fs::remove_file(volume.join(link)).unwrap();
        }
        relabel(&volume, "u:r:t:s0:c1,c2").unwrap();
        for file in ["", "file", "again", "sub", "sub/file"] {
            assert_eq!(label(&volume.join(file)).as_deref(), Some("u:r:t:s0:c1,c2"), "{file:?}");
        }
        assert_eq!((label(&outside), label(&outside.join("file"))), (None, None));
    }

    #[test]
    fn a_volume_that_has_the_label_is_not_gone_through() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let volume = dir.path().join("v");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("old"), "").unwrap();
        settle(&volume, "one").unwrap();
        assert_eq!(label(&volume.join("old")).as_deref(), Some("one"));
        fs::write(volume.join("new"), "").unwrap();
        settle(&volume, "one").unwrap();
        assert_eq!(label(&volume.join("new")), None);
        settle(&volume, "other").unwrap();
        assert_eq!(label(&volume.join("new")).as_deref(), Some("other"));
        relabel(&volume, "one").unwrap();
        assert_eq!(label(&volume.join("new")).as_deref(), Some("one"));
    }

    /// A container may make these; a recursion would overflow the stack.
    #[test]
    fn a_tree_of_any_depth_is_labelled() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let tree = dir.path().join("tree");
        nest(&tree, 2_000);
        relabel(&tree, "l").unwrap();
        let mut at = openat(AT_FDCWD, &tree, FLAGS, Mode::empty()).unwrap();
        for _ in 0..2_000 {
            at = openat(&at, "d", FLAGS, Mode::empty()).unwrap();
        }
        assert_eq!(get(at.as_fd()).unwrap().as_deref(), Some(&b"l"[..]));
        super::super::remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_new_folder_is_labelled_as_the_one_above() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let made = dir.path().join("made");
        fs::create_dir(&made).unwrap();
        let open = |path: &Path| openat(AT_FDCWD, path, FLAGS, Mode::empty()).unwrap();
        inherit(open(dir.path()).as_fd(), open(&made).as_fd()).unwrap();
        assert_eq!(label(&made), None, "the one above has none");
        set_one(dir.path(), "l").unwrap();
        inherit(open(dir.path()).as_fd(), open(&made).as_fd()).unwrap();
        assert_eq!(label(&made).as_deref(), Some("l"));
    }
}
