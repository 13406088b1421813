//! Waits for the shims this process has started, so that one that dies leaves no zombie.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

/// Enough for a loop over poll.
const STACK: usize = 64 << 10;

struct Reaper {
    wake: EventFd,
    new: Vec<OwnedFd>,
}

static REAPER: Mutex<Option<Reaper>> = Mutex::new(None);

/// Hands over a child, by its pidfd, to be reaped whenever it ends. One thread serves all.
pub(super) fn adopt(pidfd: OwnedFd) -> io::Result<()> {
    let mut guard = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let woken = wake.as_fd().try_clone_to_owned()?;
        std::thread::Builder::new()
            .name("berth-reaper".to_owned())
            .stack_size(STACK)
            .spawn(move || reap_for_ever(&woken))?;
        *guard = Some(Reaper { wake, new: Vec::new() });
    }
    if let Some(reaper) = guard.as_mut() {
        reaper.new.push(pidfd);
        reaper.wake.write(1)?;
    }
    Ok(())
}

fn reap_for_ever(woken: &OwnedFd) {
    let mut children: Vec<OwnedFd> = Vec::new();
    loop {
        let ready: Vec<bool> = {
            let mut fds = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
            fds.extend(children.iter().map(|child| PollFd::new(child.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return tracing::error!("cannot wait for shims: {error}"),
            }
            fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
        };
        let mut ended = ready[1..].iter();
        children.retain(|child| {
            let ended = ended.next().is_some_and(|ended| *ended);
            if ended {
                // A failure means that somebody else has reaped it.
                let _ = waitid(Id::PIDFd(child.as_fd()), WaitPidFlag::WEXITED);
            }
            !ended
        });
        if ready[0] {
            let _ = nix::unistd::read(woken.as_fd(), &mut [0; 8]);
            let mut guard = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
            children.extend(guard.iter_mut().flat_map(|reaper| reaper.new.drain(..)));
        }
    }
}
