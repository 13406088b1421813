//! The program of a shim, in a form that no container can overwrite (CVE-2019-5736).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::sys::heap::forget_pages;
use crate::sys::mount::{Attributes, clone_tree};

/// What shims are executed from. Clones share it.
#[derive(Clone, Debug)]
pub struct Program(Arc<OwnedFd>);

impl Program {
    /// A program that lies in a file, which nobody can change through what its processes show of it.
    ///
    /// # Errors
    /// When the file cannot be read, or neither mounted nor copied.
    pub fn from_file(exe: &Path) -> io::Result<Program> {
        // A mount shares the page cache with other processes of the file; a copy in memory does not.
        let fd = detached(exe).or_else(|_| File::open(exe).and_then(|mut file| copied(&mut file)))?;
        Ok(Program(Arc::new(fd)))
    }

    /// A program that is part of this one. Its bytes are copied to a memory file that all shims share, and do not count
    /// as this process' memory any longer.
    ///
    /// # Errors
    /// When memory files are not allowed.
    pub fn embedded(bytes: &'static [u8]) -> io::Result<Program> {
        let fd = copied(&mut &*bytes)?;
        forget_pages(bytes);
        Ok(Program(Arc::new(fd)))
    }

    /// Executes this very program again, with the same words, from where no container can overwrite it; returns at once
    /// when it runs from such a place. For programs that execute a container's program themselves: that may be called
    /// `/proc/self/exe`, or have it as its interpreter, and then holds this one's file.
    ///
    /// # Errors
    /// When it can neither be mounted nor copied, or the copy cannot be executed.
    pub fn protect_own() -> io::Result<()> {
        let own = File::open(OWN)?;
        if is_safe(&own)? {
            return Ok(());
        }
        let program = Program::from_file(Path::new(OWN))?;
        let mut words = std::env::args_os();
        let mut again = Command::new(program.name());
        if let Some(name) = words.next() {
            again.arg0(name);
        }
        Err(again.args(words).exec())
    }

    /// The name to execute it by.
    pub(super) fn name(&self) -> PathBuf {
        path(&self.0)
    }
}

/// The file that the calling process was executed from.
const OWN: &str = "/proc/self/exe";

/// Whether a file lies on a read-only mount or is sealed against writing.
fn is_safe(file: &File) -> io::Result<bool> {
    if fstatvfs(file)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(true);
    }
    // Only memory files have seals.
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).unwrap_or(0);
    Ok(SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE))
}

/// A read-only mount of the file that is attached nowhere.
fn detached(exe: &Path) -> io::Result<OwnedFd> {
    let mount = clone_tree(None, exe, false)?;
    let read_only = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    read_only.apply(mount.as_fd(), false)?;
    Ok(mount)
}

/// A copy in memory that nobody can change.
fn copied(program: &mut impl Read) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create(c"berth-shim", flags)?);
    io::copy(program, &mut copy)?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    // A file that is open for writing anywhere cannot be executed.
    Ok(File::open(path(&copy))?.into())
}

fn path(fd: &impl AsRawFd) -> PathBuf {
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
        assert!(!is_safe(&File::open(file.path()).unwrap()).unwrap());
        let mount = detached(file.path()).unwrap();
        assert!(is_safe(&File::open(path(&mount)).unwrap()).unwrap());
        let error = File::options().write(true).open(path(&mount)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        assert_eq!(std::fs::read_to_string(path(&mount)).unwrap(), "program");

        let copy = copied(&mut &b"program"[..]).unwrap();
        let mut open = File::options().write(true).open(path(&copy)).unwrap();
        let error = io::Write::write(&mut open, b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert_eq!(std::fs::read_to_string(path(&copy)).unwrap(), "program");
    }
}
