//! Processes: clone3, signals, file descriptors and program execution.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use super::check;

/// The exit code of a child whose own code failed without being able to say so.
pub(super) const CHILD_FAILED: i32 = 70;

/// libc's own constant does not fit its type.
pub(super) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The child handles no signal any more; what is ignored stays so. Nor does this one fit its type.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// How a child is to be made.
pub struct Clone3<'a> {
    /// `CLONE_NEW*` flags, and `CLONE_PARENT` for a sibling of the caller.
    pub flags: u64,
    /// The cgroup v2 folder that the child shall be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child process.
#[derive(Debug)]
pub struct Child {
    /// Its process id, as the caller sees it.
    pub pid: i32,
    /// Refers to the same process.
    pub pidfd: OwnedFd,
}

impl Clone3<'_> {
    /// Makes a child that runs `body` on a copy of the caller's memory and exits when it returns. The caller must
    /// have one thread only, or `body` must not need a lock that another thread may hold.
    pub fn spawn(&self, body: impl FnOnce()) -> io::Result<Child> {
        let mut pidfd: RawFd = -1;
        // Before the child is made, so that later ones of this process find the answer.
        altered();
        let mut flags = self.flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
        if self.cgroup.is_some() {
            flags |= CLONE_INTO_CGROUP;
        }
        let mut args = libc::clone_args {
            flags,
            pidfd: &raw mut pidfd as u64,
            child_tid: 0,
            parent_tid: 0,
            // A sibling of the caller gets the caller's own.
            exit_signal: if self.flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 },
            stack: 0,
            stack_size: 0,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: self.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        };
        // SAFETY: the arguments point to live memory of the right size. Without CLONE_VM the child gets its own copy
        // of the address space and the same stack, as with fork.
        let pid =
            check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
        if pid == 0 {
            // A panic must not unwind into the parent's frames, which exist twice now.
            let _ = catch_unwind(AssertUnwindSafe(body));
            exit_now(CHILD_FAILED);
        }
        // SAFETY: the kernel stored a new descriptor there, and nobody else knows of it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Child { pid: pid as i32, pidfd })
    }
}

/// Ends the process without running destructors or exit handlers, which belong to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A descriptor for a process that already exists.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; a descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Sends a signal to the process that `pidfd` refers to.
pub fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and means what kill(2) would send.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
    })?;
    Ok(())
}

/// A descriptor of another process, as this one's own. Takes the right to trace that process.
pub fn take_fd(process: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; a descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) -> io::Result<()> {
    close_range(first, RawFd::MAX)
}

/// Closes the descriptors from `first` to `last`, as many of them as are open.
pub fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: called only in a fresh child that owns none of these descriptors any more.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Whether there is a descriptor of this number.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl with F_GETFD takes no pointer.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Makes `target` refer to what `fd` refers to, kept open by execve when `keep` is set.
pub fn install_fd(fd: RawFd, target: RawFd, keep: bool) -> io::Result<()> {
    // SAFETY: dup3 and fcntl only touch the descriptor table; callers are fresh children that gave up `target`.
    unsafe {
        if fd == target {
            check(libc::c_long::from(libc::fcntl(
                fd,
                libc::F_SETFD,
                if keep { 0 } else { libc::FD_CLOEXEC },
            )))?;
        } else {
            check(libc::c_long::from(libc::dup3(fd, target, if keep { 0 } else { libc::O_CLOEXEC })))?;
        }
    }
    Ok(())
}

/// A copy of `fd` whose number is `min` or higher, closed by execve. It is leaked: meant for a fresh child that
/// moves its descriptors out of the way.
pub fn duplicate_above(fd: RawFd, min: RawFd) -> io::Result<RawFd> {
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes an integer.
    Ok(check(libc::c_long::from(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, min) }))? as RawFd)
}

/// An owned descriptor for a number that a fresh child has just put in place.
pub fn adopt_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a number they installed themselves and that no other owner exists for.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sets soft and hard limit of a process when given, 0 is the calling one, and returns what they were.
pub fn prlimit(pid: i32, resource: u32, new: Option<(u64, u64)>) -> io::Result<(u64, u64)> {
    let new = new.map(|(soft, hard)| libc::rlimit64 { rlim_cur: soft, rlim_max: hard });
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let pointer = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the new limit is null or live, the old one is live.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, pointer, &raw mut old) })?;
    Ok((old.rlim_cur, old.rlim_max))
}

/// Descriptors 0 to 2, of a process that has them. The standard library's own handles are made when they are asked for, which a
/// child in the memory of another must not do.
pub fn standard_streams() -> [BorrowedFd<'static>; 3] {
    // SAFETY: they are there as long as nobody closes them, which nothing of ours does.
    [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// The size of the kernel's signal sets, and the highest signal.
const SIGNAL_SET: usize = 8;
const SIGNALS: i32 = 64;

/// The signals that this process ignored or handled when it was first asked, a bit for each. Nothing of ours changes that
/// afterwards, and to ask 64 times takes as long as to open a few files.
///
/// The kernel is asked, not libc: libc keeps two signals to itself, and those may have been ignored by an ancestor, too.
pub(super) fn altered() -> u64 {
    static ALTERED: OnceLock<u64> = OnceLock::new();
    *ALTERED.get_or_init(|| {
        let is_altered = |signal: &i32| {
            let mut action = [0_u64; 4];
            // SAFETY: the kernel writes one sigaction, of which the first word is the handler.
            let asked = unsafe {
                let none = std::ptr::null::<u64>();
                libc::syscall(libc::SYS_rt_sigaction, *signal, none, action.as_mut_ptr(), SIGNAL_SET)
            };
            asked == 0 && action[0] != libc::SIG_DFL as u64
        };
        (1..=SIGNALS).filter(is_altered).fold(0, |set, signal| set | 1 << (signal - 1))
    })
}

/// Gives every signal its default action and unblocks all: what a program expects at its start. For a child that was made here.
pub fn reset_signals() {
    // The kernel's sigaction: handler, flags, restorer, mask. All zero is SIG_DFL without flags.
    let action = [0_u64; 4];
    let altered = altered();
    // SAFETY: the kernel reads one sigaction and one set of the size given.
    unsafe {
        for signal in (1..=SIGNALS).filter(|signal| altered & 1 << (signal - 1) != 0) {
            let none = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), none, SIGNAL_SET);
        }
        let empty = 0_u64;
        let none = std::ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const empty, none, SIGNAL_SET);
    }
}

/// Lets SIGTERM end this process even if it is the first one of a PID namespace, which the default action does not. It is the
/// default one again for the program that is executed.
pub fn end_at_sigterm() {
    extern "C" fn end(signal: libc::c_int) {
        exit_now(128 + signal);
    }
    // SAFETY: the handler only calls _exit, which may be called anywhere.
    unsafe {
        libc::signal(libc::SIGTERM, end as *const () as libc::sighandler_t);
    }
}

/// Takes a variable out of this process's environment. Only while the process has a single thread.
pub fn forget_variable(name: &str) {
    // SAFETY: nobody reads or changes the environment at the same time, as the caller says.
    unsafe { std::env::remove_var(name) }
}

/// A program's arguments and environment in the form that execve takes, made before memory or system calls get scarce.
pub struct Program {
    _strings: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

impl Program {
    /// Keeps the strings and the two arrays of pointers to them.
    pub fn new(args: Vec<CString>, env: Vec<CString>) -> Program {
        let pointers = |strings: &[CString]| {
            strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>()
        };
        let (argv, envp) = (pointers(&args), pointers(&env));
        let mut strings = args;
        strings.extend(env);
        Program { _strings: strings, argv, envp }
    }

    /// Replaces the process by the program at `path`; returns only on failure.
    pub fn execute(&self, path: &CString) -> io::Error {
        // SAFETY: both arrays end with a null pointer and point to strings that `self` owns; moving a CString does
        // not move its bytes.
        unsafe { libc::execve(path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        io::Error::last_os_error()
    }
}
