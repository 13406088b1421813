//! Writing to procfs, and making sure that it is procfs.
//!
//! A runtime that writes to `/proc/self/attr/exec` or `/proc/sys` by name writes to whatever is mounted there, which a
//! race of two containers can choose (CVE-2019-16884, CVE-2025-52881). Here the root of procfs is recognized by its
//! file system and inode, and what lies below is opened without crossing into another mount or following a link out.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::sys::mount::clone_tree;

/// The inode of the root of every procfs (`PROC_ROOT_INO` in the kernel).
const ROOT_INODE: u64 = 1;

/// Writes a text to a file below the host's `/proc`, as [`write`] does.
pub type Writer<'a> = &'a dyn Fn(&Path, &[u8]) -> io::Result<()>;

/// The root of the host's procfs, which can be kept: where the caller's `/proc` is another one later, that does not matter.
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl Proc {
    /// Opens it while it is the caller's `/proc`.
    ///
    /// # Errors
    /// What the kernel says; `ENOTSUP` when `/proc` is something else than procfs.
    pub fn open() -> io::Result<Proc> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let proc = open("/proc", flags, Mode::empty())?;
        if fstatfs(&proc)?.filesystem_type() != PROC_SUPER_MAGIC || fstat(&proc)?.st_ino != ROOT_INODE {
            return Err(Errno::ENOTSUP.into());
        }
        Ok(Proc(proc))
    }

    /// Writes `text` at once to the file at this path below it. `self` there is whoever calls.
    ///
    /// # Errors
    /// What the kernel says of the file.
    pub fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        let mut file = match open_below(&self.0, path) {
            // Something is mounted on the way, as containers have it: a copy of the mount shows what is below.
            Err(Errno::EXDEV) => open_below(&clone_tree(Some(self.0.as_fd()), Path::new(""), false)?, path)?,
            other => other?,
        };
        file.write_all(text)
    }
}

/// Writes `text` at once to the file at `path`, which starts below `/proc`. Only the host's procfs will do, so this
/// comes before the root is changed.
///
/// # Errors
/// Those of [`Proc`].
pub fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    Proc::open()?.write(path, text)
}

fn open_below(proc: &OwnedFd, path: &Path) -> nix::Result<File> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        match openat2(proc, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other.map(File::from),
        }
    }
}
