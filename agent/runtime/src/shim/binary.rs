//! The program of a shim, in a form that no container can overwrite (CVE-2019-5736).

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::geteuid;

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

    /// The same for a process that soon ends, and for which to copy the program would take longer than to run it: it is
    /// kept as the file `name` in `folder`, which is made when it is missing, and executed through a read-only mount. The
    /// name starts with `program~` and ends with what tells it from those of other releases, which are removed. Where that
    /// cannot be done, it is copied to memory.
    ///
    /// # Errors
    /// When memory files are not allowed either.
    pub fn kept_in(folder: &Path, bytes: &'static [u8], name: &str) -> io::Result<Program> {
        let fd = kept(folder, bytes, name).or_else(|_| copied(&mut &*bytes))?;
        Ok(Program(Arc::new(fd)))
    }

    /// Replaces the calling process by it, with these words, of which the first is its name, and a variable more than the
    /// process has. Returns only the reason why not.
    pub fn execute(&self, words: impl Iterator<Item = OsString>, variable: (&str, &str)) -> io::Error {
        let mut words = words;
        let mut command = Command::new(self.name());
        if let Some(name) = words.next() {
            command.arg0(name);
        }
        command.args(words).env(variable.0, variable.1).exec()
    }

    /// The name to execute it by.
    pub(super) fn name(&self) -> PathBuf {
        path(&self.0)
    }
}

/// Programs that are kept have names that start like this, which no container's id does.
const KEPT: &str = "program~";

/// See [`Program::kept_in`].
fn kept(folder: &Path, bytes: &[u8], name: &str) -> io::Result<OwnedFd> {
    let path = folder.join(name);
    match detached(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            keep(folder, &path, bytes)?;
            detached(&path)
        }
        other => other,
    }
    .and_then(|mount| {
        // Whoever may write to it may be somebody else in the same group, and a full disk has cut it.
        let stat = fstat(&mount)?;
        let regular = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
        let own = stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o022 == 0;
        if regular && own && u64::try_from(stat.st_size).is_ok_and(|size| size == bytes.len() as u64) {
            Ok(mount)
        } else {
            Err(io::Error::other(format!("{} is not what was put there", path.display())))
        }
    })
}

/// Writes a program whole or not at all, and removes those of other releases: processes of them have what they need.
fn keep(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(KEPT)) {
            // Somebody else may have been faster.
            let _ = fs::remove_file(entry.path());
        }
    }
    let temporary = folder.join(format!("{KEPT}{}.tmp", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o500)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A read-only mount of the file that is attached nowhere. That its folder may hold no programs does not count.
fn detached(exe: &Path) -> io::Result<OwnedFd> {
    let mount = clone_tree(None, exe, false)?;
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        clear: libc::MOUNT_ATTR_NOEXEC,
        propagation: 0,
    };
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn neither_form_can_be_written() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(file.path(), "program").unwrap();
        let mount = detached(file.path()).unwrap();
        let error = File::options().write(true).open(path(&mount)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        assert_eq!(std::fs::read_to_string(path(&mount)).unwrap(), "program");

        let copy = copied(&mut &b"program"[..]).unwrap();
        let mut open = File::options().write(true).open(path(&copy)).unwrap();
        let error = io::Write::write(&mut open, b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert_eq!(std::fs::read_to_string(path(&copy)).unwrap(), "program");
    }

    #[test]
    fn a_program_is_kept_once_and_never_taken_from_others() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let folder = dir.path().join("a/b");
        let open = |digest: &str| kept(&folder, b"program", &format!("{KEPT}{digest}"));
        let first = open("1").unwrap();
        assert_eq!(fs::read_to_string(path(&first)).unwrap(), "program");
        let inode = |fd: &OwnedFd| fstat(fd).unwrap().st_ino;
        assert_eq!(inode(&open("1").unwrap()), inode(&first));
        let error = File::options().write(true).open(path(&first)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        open("2").unwrap();
        let names = || fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(), ["program~2"], "the other release's is gone");

        let kept = folder.join("program~2");
        for damage in [0o520, 0o502] {
            fs::set_permissions(&kept, fs::Permissions::from_mode(damage)).unwrap();
            assert!(open("2").is_err(), "somebody else may write to it");
        }
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o500)).unwrap();
        open("2").unwrap();
        fs::write(&kept, "progra").unwrap();
        assert!(open("2").is_err(), "it is too short");
        fs::remove_file(&kept).unwrap();
        std::os::unix::fs::symlink("/bin/sh", &kept).unwrap();
        assert!(open("2").is_err(), "it is another program");
        let program = Program::kept_in(&folder, b"program", "program~2").unwrap();
        assert_eq!(fs::read_to_string(program.name()).unwrap(), "program", "then it is copied");
    }
}
