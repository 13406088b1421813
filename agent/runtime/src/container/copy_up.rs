//! The option `tmpcopyup`: a new tmpfs starts with what it hides.
//!
//! What it hides may lie in a volume that another container changes meanwhile, and the host's root is still in reach:
//! each name is looked up in an open folder, is never followed, and is judged by what was opened (CVE-2021-30465's kind
//! of race).

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

/// Deeper folders are an error: this runs on the stack of a small process.
const MAX_DEPTH: usize = 100;

/// Copies folders, files and links in `hidden` to `tmpfs`, with owners and modes. Other kinds of files are left out.
pub fn copy_up(hidden: BorrowedFd<'_>, tmpfs: BorrowedFd<'_>) -> io::Result<()> {
    let from = open_folder(hidden, c".")?;
    let to = open_folder(tmpfs, c".")?;
    copy_folder(from, to.as_fd(), 0)
}

fn open_folder(parent: BorrowedFd<'_>, name: &CStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn copy_folder(from: OwnedFd, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP.into());
    }
    let mut folder = Dir::from_fd(from)?;
    let names: Vec<_> =
        folder.iter().map(|entry| entry.map(|e| e.file_name().to_owned())).collect::<nix::Result<_>>()?;
    for name in names.iter().filter(|n| !matches!(n.to_bytes(), b"." | b"..")) {
        copy_entry(folder.as_fd(), to, name, depth)?;
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
    // A pipe must not be waited for, and a device not be opened: O_PATH tells first.
    let path = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let kind = match openat(from, name, path, Mode::empty()) {
        Ok(fd) => kind(&fstat(fd)?),
        // Removed since it was listed.
        Err(Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    match kind {
        SFlag::S_IFDIR => {
            let source = open_folder(from, name)?;
            let stat = fstat(&source)?;
            mkdirat(to, name, Mode::from_bits_truncate(0o700))?;
            let target = open_folder(to, name)?;
            copy_folder(source, target.as_fd(), depth + 1)?;
            own(&target, &stat)
        }
        SFlag::S_IFREG => copy_file(from, to, name),
        SFlag::S_IFLNK => {
            let target = OsString::from_vec(readlinkat(from, name)?.into_vec());
            symlinkat(target.as_os_str(), to, name)?;
            let stat = nix::sys::stat::fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            Ok(fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
        }
        _ => Ok(()),
    }
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let source = openat(from, name, flags, Mode::empty())?;
    let stat = fstat(&source)?;
    if kind(&stat) != SFlag::S_IFREG {
        // Swapped since it was looked at.
        return Ok(());
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut target = File::from(openat(to, name, flags, Mode::from_bits_truncate(0o600))?);
    io::copy(&mut File::from(source), &mut target)?;
    own(&target, &stat)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Owner first: a change of it takes set-user-ID bits away.
fn own(target: &impl AsFd, stat: &FileStat) -> io::Result<()> {
    fchown(target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    Ok(fchmod(target, Mode::from_bits_truncate(stat.st_mode & 0o7777))?)
}
