//! Pseudo terminals, see pty(7) and ioctl_tty(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// Unlocks the slave of a pseudo terminal's master.
pub fn unlock(master: BorrowedFd<'_>) -> io::Result<()> {
    let lock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    ioctl(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const lock) })?;
    Ok(())
}

/// Opens the slave without going through a path, which could lead elsewhere.
pub fn open_slave(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    unsafe {
        let fd = ioctl(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Makes a terminal the controlling one of the calling session leader.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    ioctl(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Sets a terminal's size in characters.
pub fn resize(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    ioctl(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// A terminal's size: rows and columns.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    ioctl(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

fn ioctl(result: libc::c_int) -> io::Result<libc::c_long> {
    check(libc::c_long::from(result))
}
