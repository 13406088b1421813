//! Who ends a child that does not leave the memory of its maker in time.
//!
//! The maker waits where nothing but its own end would wake it, and a child that sees to its own end can be stopped by the container
//! that it is becoming a part of before its first instruction. So a second thread of the maker's does it: it sleeps until a timer
//! tells it that the time of a child is over, which is armed and disarmed for each child and costs nothing else.
//!
//! The thread has a small stack and nothing besides. What belongs to threads of the C library it has not, so it makes
//! system calls by itself and touches no memory but the values below.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Quiet, SIGNAL_SET, clone3, make_timer, set_timer};

/// A few hundred bytes are used. Frames are larger without optimisation.
const STACK: usize = if cfg!(debug_assertions) { 32 << 10 } else { 960 };
/// Sent to the thread alone, which has it blocked and fetches it.
const SIGNAL: libc::c_int = libc::SIGALRM;
const NANOS: u64 = 1_000_000_000;

/// No child is watched.
const IDLE: u32 = 0;
/// One is, and lives on if its maker says so in time.
const ARMED: u32 = 1;
/// It is being killed.
const ENDING: u32 = 2;

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

/// What maker and thread have in common. What is used of the stack, its end, lies in one page with the rest.
#[repr(C, align(512))]
struct Shared {
    stack: Stack,
    /// Threads of one process take turns; whoever makes children like these has one only.
    turn: Mutex<()>,
    /// The process that has the thread: a copy of that has not.
    process: AtomicI32,
    thread: AtomicI32,
    /// Of the kernel, -1 before there is one.
    timer: AtomicI32,
    state: AtomicU32,
    /// The pidfd of the child that is watched, -1 before there is one. The kernel writes it before the child can run.
    child: AtomicI32,
    /// By the clock that never jumps, in nanoseconds. A signal may be left from an earlier child's.
    deadline: AtomicU64,
}

// SAFETY: all is atomic but the stack, which only the thread uses.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared {
    stack: Stack(UnsafeCell::new([0; STACK])),
    turn: Mutex::new(()),
    process: AtomicI32::new(0),
    thread: AtomicI32::new(0),
    timer: AtomicI32::new(-1),
    state: AtomicU32::new(IDLE),
    // Not all zeros, so that it lies among what is written anyway.
    child: AtomicI32::new(-1),
    deadline: AtomicU64::new(0),
};

/// While it lives, a child is watched.
pub struct Watch {
    _turn: MutexGuard<'static, ()>,
}

impl Watch {
    /// Begins the time of a child that is about to be made.
    pub fn begin(limit: Duration) -> io::Result<Watch> {
        let turn = SHARED.turn.lock().unwrap_or_else(PoisonError::into_inner);
        start()?;
        SHARED.child.store(-1, Ordering::SeqCst);
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        SHARED.deadline.store(now().saturating_add(limit_ns), Ordering::SeqCst);
        SHARED.state.store(ARMED, Ordering::SeqCst);
        let watch = Watch { _turn: turn };
        set_timer(SHARED.timer.load(Ordering::SeqCst), Some(limit))?;
        Ok(watch)
    }

    /// Where the kernel is to write the pidfd.
    pub fn place(&self) -> *mut i32 {
        SHARED.child.as_ptr()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // One that goes off is too late to do anything.
        let _ = set_timer(SHARED.timer.load(Ordering::SeqCst), None);
        // The descriptor must not be another's when the thread uses it.
        while SHARED.state.compare_exchange(ARMED, IDLE, Ordering::SeqCst, Ordering::SeqCst) == Err(ENDING) {
            std::thread::yield_now();
        }
    }
}

/// Starts the thread, if this process has it not yet. Only where children belong to the caller's PID namespace can one be started.
///
/// # Errors
/// What clone3(2) and timer_create(2) say.
pub fn prepare() -> io::Result<()> {
    let _turn = SHARED.turn.lock().unwrap_or_else(PoisonError::into_inner);
    start()
}

fn start() -> io::Result<()> {
    let own = std::process::id().cast_signed();
    if SHARED.process.load(Ordering::SeqCst) != own {
        SHARED.thread.store(start_thread()?, Ordering::SeqCst);
        SHARED.state.store(IDLE, Ordering::SeqCst);
        SHARED.timer.store(-1, Ordering::SeqCst);
        SHARED.process.store(own, Ordering::SeqCst);
    }
    if SHARED.timer.load(Ordering::SeqCst) < 0 {
        let thread = SHARED.thread.load(Ordering::SeqCst);
        SHARED.timer.store(make_timer(SIGNAL, Some(thread))?, Ordering::SeqCst);
    }
    Ok(())
}

/// Starts the thread and gives its number.
fn start_thread() -> io::Result<i32> {
    // SAFETY: all zeros mean nothing special.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let thread =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    args.flags = (thread | libc::CLONE_SYSVSEM) as u64;
    args.stack = SHARED.stack.0.get().addr() as u64;
    args.stack_size = STACK as u64;
    // It inherits that all signals are blocked.
    let _quiet = Quiet::begin()?;
    // SAFETY: the stack is the thread's for ever: this process starts no other on it, and a copy of the process has another stack.
    unsafe { clone3(&raw mut args, run, null_mut()) }
}

/// The thread. It may use nothing that belongs to a thread, such as errno.
extern "C" fn run(_: *mut c_void) -> ! {
    loop {
        let set = 1_u64 << (SIGNAL - 1);
        // SAFETY: the set is live and as long as said; neither what came nor a limit is asked for.
        unsafe { system_call(libc::SYS_rt_sigtimedwait, [(&raw const set).addr(), 0, 0, SIGNAL_SET]) };
        end_child();
    }
}

/// Kills the child whose time is over, if there is one.
fn end_child() {
    if now() < SHARED.deadline.load(Ordering::SeqCst) {
        return;
    }
    while SHARED.child.load(Ordering::SeqCst) < 0 && SHARED.state.load(Ordering::SeqCst) == ARMED {
        // SAFETY: takes nothing.
        unsafe { system_call(libc::SYS_sched_yield, [0; 4]) };
    }
    if SHARED.state.compare_exchange(ARMED, ENDING, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        let (child, kill) = (SHARED.child.load(Ordering::SeqCst) as usize, libc::SIGKILL as usize);
        // SAFETY: only numbers are passed. The maker waits with the descriptor until the state has changed.
        unsafe { system_call(libc::SYS_pidfd_send_signal, [child, kill, 0, 0]) };
        SHARED.state.store(IDLE, Ordering::SeqCst);
    }
}

fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = libc::CLOCK_MONOTONIC as usize;
    // SAFETY: the structure is live and the kernel's own.
    unsafe { system_call(libc::SYS_clock_gettime, [clock, (&raw mut time).addr(), 0, 0]) };
    (time.tv_sec as u64).wrapping_mul(NANOS).wrapping_add(time.tv_nsec as u64)
}

/// A system call without the C library.
///
/// # Safety
/// As the call's.
#[cfg(target_arch = "x86_64")]
unsafe fn system_call(number: libc::c_long, [a, b, c, d]: [usize; 4]) {
    // SAFETY: the caller's promise; the registers are those of the kernel's convention (syscall(2)).
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => _,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            out("rcx") _,
            out("r11") _,
        );
    }
}

/// The same.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn system_call(number: libc::c_long, [a, b, c, d]: [usize; 4]) {
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") a => _,
            in("x1") b,
            in("x2") c,
            in("x3") d,
        );
    }
}

/// Not written for this processor, on which no child is made that has to be watched.
///
/// # Safety
/// Nothing is done.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn system_call(_: libc::c_long, _: [usize; 4]) {}
