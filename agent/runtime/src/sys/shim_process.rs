//! What the shim does to its own process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::check;

/// The raw end of a child: `waitpid`'s status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with a code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

/// Reaps one child of any kind if one has ended.
pub fn reap() -> Option<(i32, Ended)> {
    loop {
        let mut status = 0;
        // SAFETY: status is live.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        if pid < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if pid <= 0 {
            return None;
        }
        // Not nix's waitpid: it fails on real-time signals, after the child is gone.
        if libc::WIFEXITED(status) {
            return Some((pid, Ended::Code(libc::WEXITSTATUS(status))));
        }
        if libc::WIFSIGNALED(status) {
            return Some((pid, Ended::Signal(libc::WTERMSIG(status))));
        }
    }
}

/// Brings `lo` up in the caller's network namespace.
pub fn loopback_up() -> io::Result<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is live and names an interface; the kernel ignores flags that cannot be changed.
    check(libc::c_long::from(unsafe {
        libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))?;
    Ok(())
}

/// Makes the allocator keep one arena and little free memory. For a process with one thread.
pub fn frugal_heap() {
    // SAFETY: mallopt only stores numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 10);
        libc::mallopt(libc::M_TOP_PAD, 4 << 10);
        // No list of small freed pieces that are not joined with their neighbours.
        libc::mallopt(libc::M_MXFAST, 0);
    }
}

/// Gives free memory back to the kernel: the heap's, and the pages of the stack that a deep call, such as the parsing of a
/// configuration, has left behind. For the main thread of a process with one thread.
pub fn release_memory() {
    /// Left alone below this frame, for the frames of the calls made here.
    const MARGIN: usize = 4 << 10;
    /// How far down is looked. The kernel keeps more than that free below a main thread's stack.
    const DEPTH: usize = 1 << 20;
    const PAGE: usize = 4 << 10;
    let here = 0_u8;
    let end = (&raw const here as usize - MARGIN) & !(PAGE - 1);
    // SAFETY: malloc_trim has no preconditions. Below the margin under the current frame nothing of the stack is live, and
    // no signal handler is installed that could run there; parts of the range that are not mapped are passed over.
    unsafe {
        libc::malloc_trim(0);
        libc::madvise((end - DEPTH) as *mut libc::c_void, DEPTH, libc::MADV_DONTNEED);
    }
}

/// Makes reads and writes of what `fd` refers to return at once.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let fd: BorrowedFd<'_> = fd.as_fd();
    // SAFETY: fcntl with integers on a live descriptor.
    unsafe {
        let flags = check(libc::c_long::from(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL)))?;
        check(libc::c_long::from(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_SETFL,
            flags as libc::c_int | libc::O_NONBLOCK,
        )))?;
    }
    Ok(())
}

/// Sets the NIS domain name of the caller's UTS namespace.
pub fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length belong together.
    check(libc::c_long::from(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }))?;
    Ok(())
}

/// Gives the two signals that libc keeps for itself their default action again: `posix_spawn` leaves them ignored, libc's
/// sigaction refuses them, and what is ignored here would be in every container.
pub fn reset_libc_signals() {
    /// The kernel's own structure.
    #[repr(C)]
    struct KernelAction {
        handler: usize,
        flags: libc::c_ulong,
        restorer: usize,
        mask: u64,
    }
    let default = KernelAction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for signal in [32, 33] {
        // SAFETY: the structure is live, the last argument is the size of its mask; a process with one thread needs
        // neither signal.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null_mut::<u8>(),
                size_of::<u64>(),
            )
        };
    }
}

/// Replaces what `/proc/self/cmdline` shows, as far as there is room: what the process was started with.
pub fn show_command_line(line: &[u8]) -> io::Result<()> {
    // The name in the second field may hold spaces and parentheses. See proc_pid_stat(5): arg_start is the 48th field.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut places = fields.split_ascii_whitespace().skip(45).map(str::parse::<usize>);
    let (Some(Ok(start)), Some(Ok(end))) = (places.next(), places.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if start == 0 || end <= start {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // The last byte stays the end of a word.
    let room = end - start - 1;
    let length = line.len().min(room);
    // SAFETY: the kernel says that the arguments lie there, in the process' own writable stack, and nobody reads them any more:
    // the standard library hands out copies, and the caller has no other thread.
    unsafe {
        std::ptr::copy_nonoverlapping(line.as_ptr(), start as *mut u8, length);
        std::ptr::write_bytes((start + length) as *mut u8, 0, room + 1 - length);
    }
    Ok(())
}

/// Has the kernel reap this process's children: none of them becomes a zombie.
pub fn ignore_children() {
    // SAFETY: no handler is installed, only the disposition changes.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Does nothing until the process is killed.
pub fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: pause has no preconditions.
        unsafe { libc::pause() };
    }
}

/// Closes every descriptor but one. For a fresh child that uses no other any more.
pub fn close_all_but(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = keep.as_raw_fd() as libc::c_uint;
    // SAFETY: the caller has given up what its copies of the parent's owners refer to, and never drops those.
    unsafe {
        if keep > 0 {
            check(libc::syscall(libc::SYS_close_range, 0, keep - 1, 0))?;
        }
        check(libc::syscall(libc::SYS_close_range, keep + 1, libc::c_uint::MAX, 0))?;
    }
    Ok(())
}
