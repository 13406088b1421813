//! The system calls of the bench that no crate has as safe functions.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// The last capability that Linux 6.18 knows is CAP_CHECKPOINT_RESTORE, 40.
const CAPABILITIES: i32 = 41;

/// linux/sched.h; the `libc` crate has it in a type that is too narrow.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// clone3(2): makes a child in new namespaces that runs `body` on a copy of the caller's memory and exits, with 1 if `body`
/// returns at all. `cgroup` is the folder of a cgroup v2 for it. The caller must have one thread only.
pub fn spawn(namespaces: i32, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce()) -> io::Result<Pid> {
    let into = cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
    // SAFETY: all fields are numbers, for which zero is right.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces as u64 | into;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: the arguments are live and of the size that is given. Without CLONE_VM this is a fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    let pid = Errno::result(pid)?;
    if pid == 0 {
        body();
        // SAFETY: it has no preconditions.
        unsafe { libc::_exit(1) };
    }
    Ok(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?))
}

/// Takes each capability that is not in the mask out of the bounding set.
pub fn bound(mask: u64) -> io::Result<()> {
    for capability in (0..CAPABILITIES).filter(|c| mask >> c & 1 == 0) {
        // SAFETY: numbers only.
        Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
    }
    Ok(())
}

/// Installs a seccomp filter, after no_new_privs.
pub fn filter(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let length = program.len().try_into().map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the program lives until the calls return, and has the length that is given.
    unsafe {
        Errno::result(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        Errno::result(libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        ))?;
    }
    Ok(())
}
