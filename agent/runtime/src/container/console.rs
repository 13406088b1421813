//! A terminal for a process: a pseudo terminal out of the container's own devpts.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statfs::fstatfs;
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid, fchown};
use oci_spec::runtime::Process;

use super::channel::{Channel, Report};
use super::mounts::{attach_to, check_device};
use super::root::Kind;
use super::{Error, Root};
use crate::sys::mount::clone_tree;
use crate::sys::process::install_fd;
use crate::sys::terminal;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Opens a new terminal of the devpts below `root`, tells the parent its master and returns the slave.
///
/// The path may lead to anything in a hostile container (CVE-2025-52565): it must be the master device of a devpts.
/// With `bare_lines` see [`super::Tie`].
pub fn open(root: &Root, process: &Process, bare_lines: bool, channel: &Channel) -> Result<OwnedFd, Error> {
    let failed = |e| Error::sys("open a terminal of", "/dev/pts", e);
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    // O_PATH first: opening a device for real may already do something.
    let place = root.open_plain(Path::new("/dev/pts/ptmx"), OFlag::O_PATH).map_err(failed)?;
    check_device(place.as_fd(), 5, 2).map_err(failed)?;
    if fstatfs(&place).map_err(|e| failed(e.into()))?.filesystem_type().0 != DEVPTS_MAGIC {
        return Err(failed(std::io::Error::other("it is not a devpts")));
    }
    let master = root.open_plain(Path::new("/dev/pts/ptmx"), flags).map_err(failed)?;
    check_device(master.as_fd(), 5, 2).map_err(failed)?;
    terminal::unlock(master.as_fd()).map_err(failed)?;
    let slave = terminal::open_slave(master.as_fd()).map_err(failed)?;
    if let Some(size) = process.console_size() {
        let cut = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        terminal::resize(slave.as_fd(), cut(size.height()), cut(size.width())).map_err(failed)?;
    }
    if bare_lines {
        let mut settings = tcgetattr(&slave).map_err(|e| failed(e.into()))?;
        settings.output_flags.remove(OutputFlags::ONLCR);
        tcsetattr(&slave, SetArg::TCSANOW, &settings).map_err(|e| failed(e.into()))?;
    }
    let uid = process.user().uid();
    if uid != 0 {
        fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>).map_err(|e| failed(e.into()))?;
    }
    channel
        .report(&Report::Console, Some(master.as_raw_fd()))
        .map_err(|e| Error::sys("hand over", "the terminal", e))?;
    Ok(slave)
}

/// Shows the terminal as `/dev/console`.
pub fn bind_console(root: &Root, slave: &OwnedFd) -> Result<(), Error> {
    let path = Path::new("/dev/console");
    let place = root.ensure(path, Kind::File)?;
    let tree = clone_tree(Some(slave.as_fd()), Path::new(""), false)
        .map_err(|e| Error::sys("bind mount the terminal on", "/dev/console", e))?;
    attach_to(tree.as_fd(), place.as_fd(), path)
}

/// Makes the terminal the standard streams and the controlling terminal of this session leader.
pub fn take(slave: &OwnedFd) -> Result<(), Error> {
    let failed = |e| Error::sys("take over", "the terminal", e);
    terminal::make_controlling(slave.as_fd()).map_err(failed)?;
    (0..3).try_for_each(|fd| install_fd(slave.as_raw_fd(), fd, true)).map_err(failed)
}
