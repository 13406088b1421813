//! The standard streams and other descriptors of a new process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, fchown};

use super::channel::Channel;
use super::mounts::{check_device, open_device};
use super::{Error, Root, Stdio};
use crate::sys::process;

/// Where the channel lies in a new process; all above is closed.
const CHANNEL: RawFd = 3;
/// Where a further descriptor lies that a child needs.
const EXTRA: RawFd = 4;
/// Descriptors are first moved above the places they may have to leave.
const SCRATCH: RawFd = 10;

/// Arranges the descriptors of a fresh child: streams at 0 to 2, the channel at 3, one more at 4 if given, nothing
/// else. What the caller owns is closed under its owners: they must not be dropped in this process.
pub fn arrange(
    stdio: &Stdio,
    channel: &Channel,
    extra: Option<BorrowedFd<'_>>,
) -> Result<(Channel, Option<OwnedFd>), Error> {
    let failed = |e| Error::sys("arrange", "standard streams", e);
    let streams = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
    let null = if streams.iter().any(|s| s.is_none()) {
        Some(open_device(Path::new("/dev/null"), 1, 3, OFlag::O_RDWR).map_err(failed)?)
    } else {
        None
    };
    let mut moved = [0; 3];
    for (at, stream) in streams.iter().enumerate() {
        let Some(fd) = stream.as_ref().or(null.as_ref()) else { continue };
        moved[at] = process::duplicate_above(fd.as_raw_fd(), SCRATCH).map_err(failed)?;
    }
    // Closed now, not after its number may be somebody else's.
    drop(null);
    let own = process::duplicate_above(channel.raw(), SCRATCH).map_err(failed)?;
    let extra =
        extra.map(|fd| process::duplicate_above(fd.as_raw_fd(), SCRATCH)).transpose().map_err(failed)?;
    for (at, fd) in moved.into_iter().enumerate() {
        process::install_fd(fd, at as RawFd, true).map_err(failed)?;
    }
    process::install_fd(own, CHANNEL, false).map_err(failed)?;
    let Some(extra) = extra else {
        process::close_from(EXTRA).map_err(failed)?;
        return Ok((Channel::adopt(CHANNEL), None));
    };
    process::install_fd(extra, EXTRA, false).map_err(failed)?;
    process::close_from(EXTRA + 1).map_err(failed)?;
    Ok((Channel::adopt(CHANNEL), Some(process::adopt_fd(EXTRA))))
}

/// Replaces the host's `/dev/null` by the container's, so that no descriptor leads out of its root.
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

/// Gives the streams to the container's user, who could otherwise not open `/dev/stdout` again.
pub fn give_to(uid: u32) -> Result<(), Error> {
    for fd in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
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
