//! Children that run in the memory of the process that makes them.
//!
//! To copy a process' memory for a child that executes a program a moment later takes longer than what the child does itself,
//! and so do the page faults on both sides and the removal of the copy. Here nothing is copied: a child runs on a stack of its
//! own, and the caller waits in the kernel until the memory is its own again, as with vfork(2). As there, the stack is the unused
//! part of the caller's: what has been there before costs no page faults, and is not given back each time.
//!
//! It has to be `CLONE_VFORK`. Who is killed for want of memory takes all along that share its memory, and only of a child that
//! is waited for like this does the kernel know that it should look for somebody else. A cgroup v2 that is killed as a whole
//! (`memory.oom.group`) does not even then: in such a one no child may be that shares memory with a process outside, so whoever makes
//! one keeps the kernel from that meanwhile.
//!
//! Until it has left, its maker can do nothing, not even see to its end if it does not come to that: a thread makes it, see
//! [`maker`].
//!
//! It may be killed while it does something else: what it leaves half done must be its own. Its memory is
//! ([`super::scratch`]), and what it has to say it says by [`Letters`].

use std::ffi::c_void;
use std::hint::black_box;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::check;
use super::process::{CHILD_FAILED, CLONE_INTO_CGROUP, Child, altered, exit_now};
use super::scratch::{Scratch, is_there};
pub use maker::{Common, EVERYTHING, Maker, making};

/// Whether [`spawn_sibling`] is written for the processor.
pub const CAN_SHARE: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Whether [`spawn_child`] is, and the program has the allocator for it.
pub fn can_share() -> bool {
    CAN_SHARE && is_there()
}

/// The children's stacks together with what their maker uses itself. A build without optimisation uses some 40 KB of each.
const STACKS: usize = 512 << 10;
/// What a process may still use of its stack while the child that it made is there, should it be woken up before that has left:
/// the first child may be killed while the second one is at work. Without optimisation its frames are larger.
const OWN: usize = if cfg!(debug_assertions) { 16 << 10 } else { 4 << 10 };
/// Zeros above the first frame: who walks up the stack, for the trace of a panic, ends there.
const TOP: usize = 512;
/// What all children like these have: the memory, until they leave it; and the caller gets to know of that.
const CHILD: u64 = (libc::CLONE_VM
    | libc::CLONE_VFORK
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_SETTLS
    | libc::CLONE_PIDFD) as u64;
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

/// A child that has left.
#[derive(Debug)]
pub struct Left {
    /// The child.
    pub child: Child,
    /// Whether it took too long, and was killed.
    pub late: bool,
    /// What it has taken is gone with this.
    _scratch: Scratch,
}

/// Has `maker` make a child that runs `body`, which executes a program, and returns it when it has left this process' memory, by
/// executing that or by ending. It begins with all signals blocked, and in the folder's cgroup v2 if that is given: this must not be
/// killed as a whole meanwhile, and the maker's filter must let clone3(2) pass. Who has not left after `limit` is killed.
///
/// The caller must have one thread besides its makers, and be the process that has started this one, not a copy of it. The child has of a
/// thread's own what its maker has. `body` may not drop descriptors that the caller owns. It may be killed between any two
/// instructions, so it writes nothing that the caller looks at but single values, and [`Letters`]; all memory that it takes is gone with
/// what this returns. Of its end, which may come before it has executed anything, SIGCHLD tells.
///
/// # Errors
/// `Unsupported` where [`can_share`] says no, or what clone(2) says.
pub fn spawn_child<B: FnOnce()>(
    limit: Duration,
    maker: &Maker,
    cgroup: Option<BorrowedFd<'_>>,
    body: B,
) -> io::Result<Left> {
    // Looked at once by whoever comes first, and that is not to be the child: nobody would know that it is not at it any more.
    altered();
    // What a signal brings about, be it only an errno, would disturb the child.
    let quiet = Quiet::begin()?;
    let deadline = Instant::now() + limit;
    let scratch = Scratch::begin()?;
    let child = spawn(Ends::Maker(maker, deadline), cgroup, body)?;
    scratch.close();
    drop(quiet);
    Ok(Left { child, late: Instant::now() >= deadline, _scratch: scratch })
}

/// What a child says to its maker whose memory it shares: each is there as a whole or not at all.
#[derive(Debug)]
pub struct Letters<T> {
    last: AtomicPtr<Letter<T>>,
}

#[derive(Debug)]
struct Letter<T> {
    content: T,
    before: *mut Letter<T>,
}

impl<T> Letters<T> {
    /// None yet.
    pub fn new() -> Self {
        Letters { last: AtomicPtr::new(null_mut()) }
    }

    /// For the child. It is never dropped.
    pub fn leave(&self, content: T) {
        let before = self.last.load(Ordering::Relaxed);
        let letter = Box::new(Letter { content, before });
        self.last.store(Box::into_raw(letter), Ordering::Release);
    }

    /// Copies of all that the child has left, in its order.
    pub fn of(&self, _: &Left) -> Vec<T>
    where
        T: Clone,
    {
        let mut all = Vec::new();
        let mut next = self.last.load(Ordering::Acquire);
        // SAFETY: letters are written before they are left, not changed afterwards, and lie in memory that is there for as long as
        // what the child has taken.
        while let Some(letter) = unsafe { next.as_ref() } {
            all.push(letter.content.clone());
            next = letter.before;
        }
        all.reverse();
        all
    }
}

/// Makes a sibling of this process that runs `body` in its memory, and returns when it has executed a program or ended. Who has
/// not after `limit` is killed. Otherwise as [`spawn_child`]; but the caller, who is to have all signals blocked, ends soon.
///
/// # Errors
/// As there.
pub fn spawn_sibling<B: FnOnce()>(limit: Duration, body: B) -> io::Result<Child> {
    spawn(Ends::Itself(limit), None, body)
}

/// Makes a child of the caller, who has a thread make it, or a sibling that ends itself: as `ends` says.
fn spawn<B: FnOnce()>(ends: Ends<'_>, cgroup: Option<BorrowedFd<'_>>, body: B) -> io::Result<Child> {
    let pidfd = AtomicI32::new(-1);
    let limit = match ends {
        Ends::Maker(..) => None,
        Ends::Itself(limit) => Some(limit),
    };
    let mut shared = Shared { body: Some(body), limit };
    let argument = (&raw mut shared).cast();
    let there = AtomicU32::new(1);
    let mut args = arguments(&there);
    args.pidfd = pidfd.as_ptr() as u64;
    match ends {
        Ends::Maker(..) => args.exit_signal = libc::SIGCHLD as u64,
        // The signal is that of the caller.
        Ends::Itself(_) => args.flags |= libc::CLONE_PARENT as u64,
    }
    if let Some(folder) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = folder.as_raw_fd() as u64;
    }
    // SAFETY: stack and arguments are live until the end of this function, which the child does not see the return of: the
    // kernel lets its maker go on only when the child has left, or when all of this process is killed.
    let pid = unsafe {
        match ends {
            Ends::Maker(maker, deadline) => maker.make(deadline, &pidfd, &raw const args, run::<B>, argument),
            Ends::Itself(_) => clone(&raw const args, run::<B>, argument),
        }
    }?;
    // SAFETY: the kernel stored a new descriptor there, and nobody else knows of it.
    let child = Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd.into_inner()) } };
    // The kernel lets its maker go on a little before it has left.
    maker::until_cleared(&there);
    Ok(child)
}

/// Who ends a process that does not leave the memory of its maker.
#[derive(Clone, Copy)]
enum Ends<'a> {
    Maker(&'a Maker, Instant),
    Itself(Duration),
}

/// What the two share.
struct Shared<B> {
    body: Option<B>,
    /// After which it ends itself.
    limit: Option<Duration>,
}

/// The child. `all` is a [`Shared`] that outlives it.
extern "C" fn run<B: FnOnce()>(all: *mut c_void) -> ! {
    // A panic must not unwind into what is not there: the stack begins here.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller waits.
        let shared = unsafe { &mut *all.cast::<Shared<B>>() };
        let limited = shared.limit.map_or(Ok(()), end_after);
        if let (Some(body), Ok(())) = (shared.body.take(), limited) {
            body();
        }
    }));
    exit_now(CHILD_FAILED);
}

/// Has the kernel kill this process then, unless it has executed a program before: that removes timers (timer_create(2)). For one
/// whose maker can be killed as well, since it may be stopped before it comes to this: see [`maker`].
fn end_after(limit: Duration) -> io::Result<()> {
    // SAFETY: all zeros is a valid sigevent.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    (event.sigev_notify, event.sigev_signo) = (libc::SIGEV_SIGNAL, libc::SIGKILL);
    let mut timer: libc::c_int = 0;
    // SAFETY: both are live and the kernel's own. Its timers are numbers.
    check(unsafe {
        libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
    })?;
    // No time at all would mean never.
    let limit = limit.max(Duration::from_nanos(1));
    // SAFETY: all zeros is a valid timer specification.
    let mut time: libc::itimerspec = unsafe { std::mem::zeroed() };
    time.it_value.tv_sec = limit.as_secs() as libc::time_t;
    time.it_value.tv_nsec = limit.subsec_nanos().into();
    // SAFETY: the structure is live and the kernel's own.
    check(unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const time, null_mut::<u8>()) })?;
    Ok(())
}

/// For a child in the same memory, with a stack below that of the caller, who has all signals blocked; `there` is cleared when it
/// leaves.
#[inline(never)]
fn arguments(there: &AtomicU32) -> libc::clone_args {
    // SAFETY: all zeros mean nothing special.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // In the frame of this function, so below all of the caller's; the arguments may be made in the caller's.
    let here = black_box(0_u8);
    let top = ((&raw const here).addr() - OWN) & !15;
    let stack = top - TOP;
    // SAFETY: below its frames a thread's stack is its own, and no handler runs on it now. Where there is no room, as in any call
    // that goes too deep, the guard below it ends the process.
    unsafe { std::ptr::write_bytes(stack as *mut u8, 0, TOP) };
    args.flags = CHILD;
    args.child_tid = there.as_ptr() as u64;
    // Who makes it may be another thread than the one whose part it plays.
    args.tls = thread_pointer();
    // What counts is its end.
    args.stack = (stack - TOP) as u64;
    args.stack_size = TOP as u64;
    args
}

/// Where a child begins.
type Entry = extern "C" fn(*mut c_void) -> !;

/// What makes this thread the thread that it is to the C library.
#[cfg(target_arch = "x86_64")]
fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: the first word of a thread's block is its own address (the processor's ELF supplement, "thread-local storage").
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, pure, readonly)) };
    pointer
}

/// The same.
#[cfg(target_arch = "aarch64")]
fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: reads a register.
    unsafe { std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, pure, nomem)) };
    pointer
}

/// Not written for this processor, on which no child shares memory.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn thread_pointer() -> u64 {
    0
}

/// Makes a child that begins in `entry`, at the end of its own stack. It is clone(2) that is asked where that knows everything, not
/// clone3(2): what this is asked for filters of system calls cannot see, so most forbid it.
///
/// # Safety
/// The stack, and what `argument` and `args` point to, must be live for as long as the child uses this memory.
#[cfg(target_arch = "x86_64")]
unsafe fn clone(args: *const libc::clone_args, entry: Entry, argument: *mut c_void) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    let new = unsafe { &*args };
    let (mut result, first, second) = calling(new);
    // SAFETY: the parent only sees a system call. The child has the same registers but for the stack's, finds 0 as the result,
    // and never comes back: it needs nothing from the parent's stack.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            // Chosen here: of any register it might be the one that is cleared.
            in("r12") argument,
            in("r13") entry,
            inlateout("rax") result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") new.pidfd,
            in("r10") new.child_tid,
            in("r8") new.tls,
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
unsafe fn clone(args: *const libc::clone_args, entry: Entry, argument: *mut c_void) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    let new = unsafe { &*args };
    let (call, first, second) = calling(new);
    let mut result = first as i64;
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            // As above.
            in("x20") argument,
            in("x21") entry,
            inlateout("x0") result,
            in("x1") second,
            in("x2") new.pidfd,
            in("x3") new.tls,
            in("x4") new.child_tid,
            in("x8") call,
        );
    }
    number_or_error(result)
}

/// Not written for this processor.
///
/// # Safety
/// Nothing is done.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone(_: *const libc::clone_args, _: Entry, _: *mut c_void) -> io::Result<i32> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The call that makes such a child, with its first two arguments. clone3(2) has no more.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn calling(args: &libc::clone_args) -> (libc::c_long, u64, u64) {
    if args.flags & CLONE_INTO_CGROUP != 0 {
        (libc::SYS_clone3, (&raw const *args).addr() as u64, size_of::<libc::clone_args>() as u64)
    } else {
        (libc::SYS_clone, args.flags | args.exit_signal, args.stack + args.stack_size)
    }
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

mod maker;

#[cfg(test)]
mod tests;
