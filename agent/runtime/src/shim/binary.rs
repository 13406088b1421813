//! The program of a shim, in a form that no container can overwrite (CVE-2019-5736).

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::sys::mount::{Attributes, clone_tree};

/// The program that was made safe last: a process starts all its shims from one.
static LAST: Mutex<Option<(PathBuf, Arc<OwnedFd>)>> = Mutex::new(None);

/// A descriptor of the program `exe`, to be executed by its name in `/proc/self/fd`.
pub(super) fn sealed(exe: &Path) -> io::Result<Arc<OwnedFd>> {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((path, fd)) = &*last
        && path == exe
    {
        return Ok(Arc::clone(fd));
    }
    // A mount shares the page cache with the agent; a copy in memory does not.
    let fd = Arc::new(detached(exe).or_else(|_| copied(exe))?);
    *last = Some((exe.to_owned(), Arc::clone(&fd)));
    Ok(fd)
}

/// A read-only mount of the file that is attached nowhere.
fn detached(exe: &Path) -> io::Result<OwnedFd> {
    let mount = clone_tree(None, exe, false)?;
    let read_only = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    read_only.apply(mount.as_fd(), false)?;
    Ok(mount)
}

/// A copy in memory that nobody can change: where mounts are not allowed, or the file was replaced on disk.
fn copied(exe: &Path) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create(c"berth-shim", flags)?);
    io::copy(&mut File::open(exe)?, &mut copy)?;
    copy.seek(SeekFrom::Start(0))?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(copy.into())
}

/// The name to execute a descriptor by.
pub(super) fn name(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn neither_form_can_be_written() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(file.path(), "program").unwrap();
        let mount = detached(file.path()).unwrap();
        let error = File::options().write(true).open(name(&mount)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        assert_eq!(std::fs::read_to_string(name(&mount)).unwrap(), "program");

        let copy = copied(file.path()).unwrap();
        let mut open = File::options().write(true).open(name(&copy)).unwrap();
        let error = io::Write::write(&mut open, b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert_eq!(std::fs::read_to_string(name(&copy)).unwrap(), "program");
    }
}
