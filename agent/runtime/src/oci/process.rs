//! Processes that are not children of this one: a number is believed only together with the start time.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Error;
use crate::sys::process::{pidfd_kill, pidfd_open};

/// The start time of a process in clock ticks since boot, unless it has ended or is a zombie.
///
/// Source: proc_pid_stat(5), fields 3 and 22.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may contain anything; field 3 follows the last bracket.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X" | "x") | None) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A descriptor for the process that had this number at that time, if it still runs.
pub fn open(pid: i32, started: u64) -> Result<Option<OwnedFd>, Error> {
    let fd = match pidfd_open(pid) {
        Ok(fd) => fd,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => return Ok(None),
        Err(e) => return Err(Error::sys("open", format!("process {pid}"))(e)),
    };
    // Only now: what has this start time under this number is what the descriptor refers to.
    Ok((start_time(pid) == Some(started)).then_some(fd))
}

/// Sends a signal; false when the process has ended.
pub fn signal(process: &OwnedFd, signal: i32) -> Result<bool, Error> {
    match pidfd_kill(process.as_fd(), signal) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(e) => Err(Error::sys("send", format!("signal {signal}"))(e)),
    }
}

/// Waits for the end of a process; false when it takes longer than `patience`.
pub fn ended_within(process: &OwnedFd, patience: Duration) -> Result<bool, Error> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis() as u64).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if !left.is_zero() => {}
            Ok(n) => return Ok(n > 0),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::sys("wait for", "a process")(io::Error::from(e))),
        }
    }
}
