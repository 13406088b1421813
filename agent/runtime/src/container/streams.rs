//! The standard streams and other descriptors of a new process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, fchown};

use super::mounts::{check_device, open_device};
use super::{Error, Root, Stdio};
use crate::sys::process;

/// The first descriptor after the streams.
const FIRST: RawFd = 3;

/// Arranges the descriptors of a fresh child: streams at 0 to 2, then those that are `handed` on at the numbers they
/// have, the extra ones, nothing else. A stream that is not given is the host's `/dev/null`, or, where that is to be replaced anyway
/// ([`reopen_null`], a terminal), whatever `filler` is. What the caller owns is closed under its owners: they must not be dropped in
/// this process.
pub fn arrange(
    stdio: &Stdio,
    filler: Option<BorrowedFd<'_>>,
    extra: &[BorrowedFd<'_>],
    handed: &[RawFd],
) -> Result<impl Iterator<Item = OwnedFd> + use<>, Error> {
    let failed = |e| Error::sys("arrange", "standard streams", e);
    let place = handed.iter().fold(FIRST, |end, fd| end.max(fd + 1));
    // Descriptors are first moved above the places they may have to leave.
    let scratch = place + 1 + extra.len() as RawFd;
    let streams = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
    let null = if filler.is_none() && streams.iter().any(|s| s.is_none()) {
        Some(open_device(Path::new("/dev/null"), 1, 3, OFlag::O_RDWR).map_err(failed)?)
    } else {
        None
    };
    let mut moved = [0; 3];
    for (at, stream) in streams.iter().enumerate() {
        let given = stream.as_ref().map(AsFd::as_fd).or(filler).or(null.as_ref().map(AsFd::as_fd));
        let Some(fd) = given else { continue };
        moved[at] = process::duplicate_above(fd.as_raw_fd(), scratch).map_err(failed)?;
    }
    // Closed now, not after its number may be somebody else's.
    drop(null);
    let extra: Vec<RawFd> = extra
        .iter()
        .map(|fd| process::duplicate_above(fd.as_raw_fd(), scratch))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    preserve(handed, place)?;
    for (at, fd) in moved.into_iter().enumerate() {
        process::install_fd(fd, at as RawFd, true).map_err(failed)?;
    }
    let mut end = place;
    for fd in &extra {
        process::install_fd(*fd, end, false).map_err(failed)?;
        end += 1;
    }
    process::close_from(end).map_err(failed)?;
    Ok((place..end).map(process::adopt_fd))
}

/// The same for a child that needs no channel.
pub fn replace(stdio: &Stdio) -> Result<(), Error> {
    let failed = |e| Error::sys("arrange", "standard streams", e);
    let null = open_device(Path::new("/dev/null"), 1, 3, OFlag::O_RDWR).map_err(failed)?;
    let mut moved = [0; 3];
    for (fd, stream) in moved.iter_mut().zip([&stdio.stdin, &stdio.stdout, &stdio.stderr]) {
        let from = stream.as_ref().unwrap_or(&null).as_raw_fd();
        *fd = process::duplicate_above(from, FIRST + 3).map_err(failed)?;
    }
    drop(null);
    for (at, fd) in moved.into_iter().enumerate() {
        process::install_fd(fd, at as RawFd, true).map_err(failed)?;
    }
    process::close_from(FIRST).map_err(failed)
}

/// Keeps those of the caller's descriptors open for the program, and closes all others below `end`.
fn preserve(handed: &[RawFd], end: RawFd) -> Result<(), Error> {
    for fd in FIRST..end {
        let kept = handed.contains(&fd);
        if kept { process::install_fd(fd, fd, true) } else { process::close_range(fd, fd) }
            .map_err(|e| Error::sys("preserve", format!("descriptor {fd}"), e))?;
    }
    Ok(())
}

/// Makes the streams that are not given the container's `/dev/null`, so that no descriptor leads out of its root.
pub fn reopen_null(root: &Root, stdio: &Stdio) -> Result<(), Error> {
    let failed = |e| Error::sys("open", "/dev/null", e);
    for (at, stream) in [&stdio.stdin, &stdio.stdout, &stdio.stderr].iter().enumerate() {
        if stream.is_none() {
            let null =
                root.open_path(Path::new("/dev/null"), OFlag::O_RDWR | OFlag::O_NOCTTY).map_err(failed)?;
            check_device(null.as_fd(), 1, 3).map_err(failed)?;
            process::install_fd(null.as_raw_fd(), at as RawFd, true).map_err(failed)?;
        }
    }
    Ok(())
}

/// Gives streams to a user of a user namespace, who is somebody else here: from the inside that would not be allowed.
pub fn give_to_outer(stdio: &Stdio, uid: u32) {
    for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten() {
        // As from the inside it is a help, not a condition; a device belongs to everybody.
        if fstat(fd).is_ok_and(|s| s.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits()) {
            let _ = fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>);
        }
    }
}

/// Gives the streams to the container's user, who could otherwise not open `/dev/stdout` again.
pub fn give_to(uid: u32) -> Result<(), Error> {
    for fd in process::standard_streams() {
        let failed = |e: Errno| Error::sys("change owner of", "a standard stream", e.into());
        let stat = fstat(fd).map_err(failed)?;
        let kind = stat.st_mode & SFlag::S_IFMT.bits();
        // A device such as /dev/null belongs to everybody.
        if stat.st_uid == uid || kind == SFlag::S_IFCHR.bits() {
            continue;
        }
        match fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>) {
            Ok(()) | Err(Errno::EPERM | Errno::EINVAL | Errno::EROFS) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}
