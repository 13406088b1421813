//! Children that run in the memory of the process that makes them.
//!
//! To copy a process' memory for a child that executes a program a moment later takes longer than what the child does itself,
//! and so do the page faults on both sides and the removal of the copy. Here nothing is copied: a child runs on a stack of its
//! own, and the caller waits in the kernel until the memory is its own again, as with vfork(2). As there, the stack is the unused
//! part of the caller's: what has been there before costs no page faults, and is not given back each time.
//!
//! It has to be `CLONE_VFORK`. Who is killed for want of memory takes all along that share its memory, and only of a child that
//! is waited for like this does the kernel know that it should look for somebody else. A cgroup v2 that is killed as a whole
//! (`memory.oom.group`) does not even then: in such a one no child may be that shares memory with a process outside.

use std::ffi::c_void;
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::check;
use super::process::{CHILD_FAILED, CLONE_CLEAR_SIGHAND, Child, exit_now, pidfd_kill};

/// Whether this is written for the processor.
pub const CAN_SHARE: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// The children's stacks together with what their maker uses itself. A build without optimisation uses some 40 KB of each.
const STACKS: usize = 512 << 10;
/// What a process may still use of its stack while the child that it made is there, should it be woken up before that has left:
/// the first child may be killed while the second one is at work. Without optimisation its frames are larger.
const OWN: usize = if cfg!(debug_assertions) { 16 << 10 } else { 4 << 10 };
/// Zeros above the first frame: who walks up the stack, for the trace of a panic, ends there.
const TOP: usize = 512;
/// The size of the kernel's signal sets.
const SIGNAL_SET: usize = 8;

/// Has the kernel extend the stack of the caller as far as the children will need it, by a look that takes no memory. To be called
/// before a limit on stacks is set that is meant for what they execute: the kernel would not extend it beyond that.
pub fn make_room() {
    let here = black_box(0_u8);
    let lowest = (&raw const here).addr() - STACKS;
    // SAFETY: any byte of a thread's stack may be read; where there is no room, the guard below it ends the process, as in any call
    // that goes too deep.
    unsafe { (lowest as *const u8).read_volatile() };
}

/// What came of [`spawn_through`].
pub struct Through {
    /// The first child. It has ended or is about to, and is to be reaped by `__WALL`: no signal tells of its end.
    pub guide: Child,
    /// The number of the second one, a child of the caller too: it runs its program or, when that failed, is to be reaped. Or
    /// why there is none. Nothing when the first one did not want it.
    pub visitor: Option<io::Result<i32>>,
    /// They took longer than they may, and were killed.
    pub late: bool,
}

/// What the three processes share.
struct Shared<T, G, V> {
    guide: Option<G>,
    visitor: Option<V>,
    found: Option<T>,
    limit: Duration,
    life: Life,
}

/// Who uses the memory, by the kernel's word.
struct Life {
    /// 1 until the first child does not use it any more.
    guide: AtomicU32,
    /// The same of the second child.
    visitor: AtomicU32,
    /// The second child's number, which the kernel stores before that one runs.
    born: AtomicI32,
    /// Why it was not made.
    error: AtomicI32,
}

/// Makes a child that runs `guide` and then, when that returns something, makes a sibling of itself that runs `visitor` with
/// it, which executes a program. Returns when both have left this process' memory, each by executing a program or by ending;
/// who has not after `limit` is killed. They begin with all signals blocked.
///
/// The caller must have one thread only. Neither child may drop descriptors that the caller owns. What `guide` returns is
/// dropped by the caller, so that it must own no descriptor. What else a child allocates and has not freed when it executes its
/// program is lost.
///
/// # Errors
/// `Unsupported` where this is not written for the processor, or what clone3(2) says about the first child.
pub fn spawn_through<T, G: FnOnce() -> Option<T>, V: FnOnce(&T)>(
    limit: Duration,
    guide: G,
    visitor: V,
) -> io::Result<Through> {
    let mut shared: Shared<T, G, V> = Shared {
        guide: Some(guide),
        visitor: Some(visitor),
        found: None,
        limit,
        life: Life {
            guide: AtomicU32::new(1),
            visitor: AtomicU32::new(1),
            born: AtomicI32::new(0),
            error: AtomicI32::new(0),
        },
    };
    let mut pidfd: RawFd = -1;
    // What a signal brings about, be it only an errno, would disturb the children.
    let quiet = Quiet::begin()?;
    let mut args = arguments(libc::CLONE_PIDFD as u64, &shared.life.guide);
    args.pidfd = &raw mut pidfd as u64;
    let all = &raw mut shared;
    let deadline = Instant::now() + limit;
    // SAFETY: stack and arguments are live until the end of this function, which waits for the children. Until then this
    // thread, the only one, touches nothing of theirs but the atomic numbers.
    let pid = unsafe { clone3(&raw mut args, run_guide::<T, G, V>, all.cast()) }?;
    // SAFETY: the kernel stored a new descriptor there, and nobody else knows of it.
    let guide = Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
    // SAFETY: `shared` is live, and these numbers are atomic.
    let life = unsafe { &(*all).life };
    life.await_both(guide.pidfd.as_fd(), deadline);
    let late = Instant::now() >= deadline;
    drop(quiet);
    let visitor = match (life.born.load(Ordering::Acquire), life.error.load(Ordering::Acquire)) {
        (0, 0) => None,
        (0, error) => Some(Err(io::Error::from_raw_os_error(error))),
        (pid, _) => Some(Ok(pid)),
    };
    Ok(Through { guide, visitor, late })
}

/// Makes a sibling of this process that runs `body` in its memory, and returns when it has executed a program or ended. Who has
/// not after `limit` is killed. As for the second child of [`spawn_through`], of which the caller is the first one here.
///
/// # Errors
/// As there.
pub fn spawn_sibling<B: FnOnce()>(limit: Duration, body: B) -> io::Result<Child> {
    let mut shared = Sibling { body: Some(body), limit };
    let there = AtomicU32::new(1);
    let mut pidfd: RawFd = -1;
    let mut args = arguments((libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64, &there);
    args.pidfd = &raw mut pidfd as u64;
    // SAFETY: stack and arguments are live until the end of this function, which the child does not see the return of: the
    // kernel lets the caller go on only when the child has left, or when the caller is killed.
    let pid = unsafe { clone3(&raw mut args, run_sibling::<B>, (&raw mut shared).cast()) }?;
    // SAFETY: the kernel stored a new descriptor there, and nobody else knows of it.
    let child = Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
    is_left(&there, None);
    Ok(child)
}

/// What [`spawn_sibling`] and its child share.
struct Sibling<B> {
    body: Option<B>,
    limit: Duration,
}

/// The child. `all` is a [`Sibling`] that outlives it.
extern "C" fn run_sibling<B: FnOnce()>(all: *mut c_void) -> ! {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller waits.
        let shared = unsafe { &mut *all.cast::<Sibling<B>>() };
        if let (Some(body), Ok(())) = (shared.body.take(), end_after(shared.limit)) {
            body();
        }
    }));
    exit_now(CHILD_FAILED);
}

impl Life {
    /// Makes sure that neither child uses the memory. It is so already, unless the first one was killed.
    fn await_both(&self, guide: BorrowedFd<'_>, deadline: Instant) {
        if !is_left(&self.guide, Some(deadline)) {
            // It is not reaped yet, so that the descriptor is good.
            let _ = pidfd_kill(guide, libc::SIGKILL);
            is_left(&self.guide, None);
        }
        // The first one can make it no more.
        let born = self.born.load(Ordering::Acquire);
        if born != 0 && !is_left(&self.visitor, Some(deadline)) {
            // SAFETY: only integers are passed. It is a child that nobody has reaped, so that the number is its own.
            unsafe { libc::kill(born, libc::SIGKILL) };
            is_left(&self.visitor, None);
        }
    }
}

/// Waits until the kernel has cleared the word, at most until `deadline`.
fn is_left(there: &AtomicU32, deadline: Option<Instant>) -> bool {
    while there.load(Ordering::Acquire) != 0 {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return false;
        }
        let time = left.map(|left| libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(null(), std::ptr::from_ref);
        // SAFETY: word and time are live. The kernel wakes waiters of shared words, so this is not a private wait. Its failures
        // are what the loop looks for.
        unsafe { libc::syscall(libc::SYS_futex, there.as_ptr(), libc::FUTEX_WAIT, 1, time) };
    }
    true
}

/// The first child. `all` is a [`Shared`] that outlives it.
extern "C" fn run_guide<T, G: FnOnce() -> Option<T>, V: FnOnce(&T)>(all: *mut c_void) -> ! {
    let all = all.cast::<Shared<T, G, V>>();
    // A panic must not unwind into what is not there: the stack begins here.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller waits, and the other child is not there yet.
        let shared = unsafe { &mut *all };
        if end_after(shared.limit).is_err() {
            return;
        }
        shared.found = shared.guide.take().and_then(|guide| guide());
        if shared.found.is_none() {
            return;
        }
        // A sibling has its elder's signal of death.
        let flags = (libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID) as u64;
        let mut args = arguments(flags, &shared.life.visitor);
        args.parent_tid = shared.life.born.as_ptr() as u64;
        // SAFETY: all of it belongs to the caller, which waits for the child that is made here, too.
        if let Err(error) = unsafe { clone3(&raw mut args, run_visitor::<T, G, V>, all.cast()) } {
            let number = error.raw_os_error().unwrap_or(libc::EIO);
            // SAFETY: an atomic number of what is still live.
            unsafe { &(*all).life }.error.store(number, Ordering::Release);
        }
    }));
    exit_now(0);
}

/// The second child. `all` is a [`Shared`] that outlives it.
extern "C" fn run_visitor<T, G: FnOnce() -> Option<T>, V: FnOnce(&T)>(all: *mut c_void) -> ! {
    let all = all.cast::<Shared<T, G, V>>();
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller waits, and so does the first child.
        let (visitor, found, limit) = unsafe { ((*all).visitor.take(), &(*all).found, (*all).limit) };
        if let (Some(visitor), Some(found), Ok(())) = (visitor, found, end_after(limit)) {
            visitor(found);
        }
    }));
    exit_now(CHILD_FAILED);
}

/// Has the kernel kill this process then, unless it has executed a program before: that removes timers (timer_create(2)). The
/// caller could not, waiting as it does, and a process of a container may be stopped by others of it.
fn end_after(limit: Duration) -> io::Result<()> {
    // SAFETY: all zeros is a valid sigevent and timer specification.
    let (mut event, mut time): (libc::sigevent, libc::itimerspec) = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    time.it_value.tv_sec = limit.as_secs() as libc::time_t;
    time.it_value.tv_nsec = limit.subsec_nanos().into();
    let mut timer: libc::c_int = 0;
    // SAFETY: the structures are the kernel's own and live. Its timers are numbers.
    unsafe {
        check(libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer))?;
        check(libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const time, null_mut::<u8>()))?;
    }
    Ok(())
}

/// For a child in the same memory, with a stack below that of the caller, who has all signals blocked; `there` is cleared when it
/// leaves.
#[inline(never)]
fn arguments(flags: u64, there: &AtomicU32) -> libc::clone_args {
    // SAFETY: all zeros mean nothing special.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // In the frame of this function, so below all of the caller's; the arguments may be made in the caller's.
    let here = black_box(0_u8);
    let top = ((&raw const here).addr() - OWN) & !15;
    let stack = top - TOP;
    // SAFETY: below its frames a thread's stack is its own, and no handler runs on it now. Where there is no room, as in any call
    // that goes too deep, the guard below it ends the process.
    unsafe { std::ptr::write_bytes(stack as *mut u8, 0, TOP) };
    let shared = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_CHILD_CLEARTID) as u64;
    args.flags = flags | shared | CLONE_CLEAR_SIGHAND;
    args.child_tid = there.as_ptr() as u64;
    // The kernel wants its length, but looks at the end only.
    args.stack = (stack - TOP) as u64;
    args.stack_size = TOP as u64;
    args
}

/// Makes a child that begins in `entry`, at the end of its own stack.
///
/// # Safety
/// The stack, and what `argument` and `args` point to, must be live for as long as the child uses this memory.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    args: *mut libc::clone_args,
    entry: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> io::Result<i32> {
    let mut result = libc::SYS_clone3;
    // SAFETY: the parent only sees a system call. The child has the same registers but for the stack's, finds 0 as the result,
    // and never comes back: it needs nothing from the parent's stack.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("rax") result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    number_or_error(result)
}

/// The same.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(
    args: *mut libc::clone_args,
    entry: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> io::Result<i32> {
    let mut result = args as i64;
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("x0") result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
        );
    }
    number_or_error(result)
}

/// Not written for this processor.
///
/// # Safety
/// Nothing is done.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3(
    _: *mut libc::clone_args,
    _: extern "C" fn(*mut c_void) -> !,
    _: *mut c_void,
) -> io::Result<i32> {
    Err(io::ErrorKind::Unsupported.into())
}

/// What the kernel itself returns, without libc's errno.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn number_or_error(result: i64) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(result as i32) }
}

/// While it lives, all signals that can be held back are.
struct Quiet(u64);

impl Quiet {
    fn begin() -> io::Result<Quiet> {
        let (all, mut before) = (u64::MAX, 0_u64);
        mask(&raw const all, &raw mut before)?;
        Ok(Quiet(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // It was the mask before.
        let _ = mask(&raw const self.0, null_mut());
    }
}

fn mask(new: *const u64, old: *mut u64) -> io::Result<()> {
    // SAFETY: both sets are null or live and of the size given.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, new, old, SIGNAL_SET) })?;
    Ok(())
}

#[cfg(test)]
mod tests;
