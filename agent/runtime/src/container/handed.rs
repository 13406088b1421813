//! Bind sources, also those that another process hands over as a descriptor of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};

use crate::sys::mount::clone_tree;

/// A copy of what is mounted at a source. A source may also be a descriptor of another process, `/proc/<pid>/fd/<n>`: who
/// has looked for a file with care (a `subPath`) hands over what was found. The kernel copies no mounts of another mount
/// namespace (`EINVAL`), which such a descriptor refers to, so the same file is opened again here; if somebody has put
/// another in its place meanwhile, that is noticed, since no link is followed and the inode is compared.
pub fn source_tree(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    match clone_tree(None, source, recursive) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let Ok(path) = std::fs::read_link(source) else { return Err(error) };
            let handed = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
            let here = openat2(AT_FDCWD, &path, how)?;
            let (handed, found) = (fstat(&handed)?, fstat(&here)?);
            if (handed.st_dev, handed.st_ino) != (found.st_dev, found.st_ino) {
                return Err(io::Error::other("another file has been put in its place"));
            }
            clone_tree(Some(here.as_fd()), Path::new(""), recursive)
        }
        cloned => cloned,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// CVE-2021-25741, the second half: between looking for a subPath and mounting it. Needs root; the mount namespace is this
    /// thread's own, so that the descriptor is one of another namespace, as the agent's is to a container.
    #[test]
    fn cve_2021_25741_what_was_handed_over_is_mounted_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(volume.join("sub/file"), "").unwrap();
        let handed = open(&volume.join("sub"), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let source = format!("/proc/thread-self/fd/{}", handed.as_raw_fd());
        let source = Path::new(&source);
        let plain = clone_tree(None, source, true).unwrap_err();
        assert_eq!(plain.raw_os_error(), Some(libc::EINVAL), "the kernel needs no help any more");
        let tree = source_tree(source, true).unwrap();
        assert!(Path::new(&format!("/proc/thread-self/fd/{}/file", tree.as_raw_fd())).exists());

        // Another folder, or a link, takes its name: the descriptor's link tells the new place of what was handed over.
        fs::rename(volume.join("sub"), volume.join("moved")).unwrap();
        symlink(&outside, volume.join("sub")).unwrap();
        let tree = source_tree(source, true).unwrap();
        assert!(Path::new(&format!("/proc/thread-self/fd/{}/file", tree.as_raw_fd())).exists());
        fs::remove_dir_all(volume.join("moved")).unwrap();
        source_tree(source, true).unwrap_err();
    }
}
