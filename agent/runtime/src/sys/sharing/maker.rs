//! The thread that makes the children of [`super::spawn_child`].
//!
//! Whoever makes a child that shares its memory waits where nothing but its own end would wake it, and a child can be stopped by the
//! container that it is becoming a part of before its first instruction. So a thread besides makes it, and the caller waits for
//! that thread, as long as it likes: then it kills the child.
//!
//! The thread also keeps what children have in common, so that not each has to be given it again: the PID namespace that they are
//! born into, and a bounding set, which takes a system call for each capability that is not in it (capabilities(7)). Both are a
//! thread's own. A bounding set only shrinks: for a child that is to have more than the thread has there is another thread. The
//! first stays, for its children may be bound to its end (`PR_SET_PDEATHSIG`).
//!
//! The thread has a small stack and nothing besides. What belongs to threads of the C library it has not, so it makes
//! system calls by itself and touches no memory but a [`Post`]. Nor may its caller touch an errno while the child is there: the
//! child has the same.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Entry, Quiet, clone3, number_or_error};

/// A few hundred bytes are used. Frames are larger without optimisation.
const STACK: usize = if cfg!(debug_assertions) { 32 << 10 } else { 896 };
/// How long to wait for a child to be there at all when its time is over before that.
const MOMENT: Duration = Duration::from_millis(1);
/// A bounding set that nothing has been taken out of.
pub const EVERYTHING: u64 = u64::MAX;

/// linux/futex.h.
const FUTEX_WAIT_PRIVATE: usize = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
const FUTEX_WAKE_PRIVATE: usize = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;

/// The thread has nothing to do.
const IDLE: u32 = 0;
/// It is to make a child.
const WANTED: u32 = 1;
/// The child has left, or there is none.
const DONE: u32 = 2;

/// What a child begins with.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// A process of the PID namespace that it is born into.
    pub process: BorrowedFd<'a>,
    /// A number for that namespace, from 1 on: the thread joins it only if it is not in it already.
    pub namespace: u64,
    /// The capabilities that its bounding set is to have, a bit for each. The thread takes out others if it can.
    pub bounding: u64,
}

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: only the thread uses it.
unsafe impl Sync for Stack {}

/// What a thread and its callers have in common.
#[repr(C)]
struct Post {
    stack: Stack,
    /// Whose turn it is; a futex.
    turn: AtomicU32,
    /// The process of the PID namespace, -1 before there is one.
    process: AtomicI32,
    /// The namespace that is wanted, and the one that the thread's children are born into.
    wanted: AtomicU64,
    namespace: AtomicU64,
    /// What the bounding set is to become, and what it is within.
    goal: AtomicU64,
    bounding: AtomicU64,
    /// What to clone, and where that begins.
    args: AtomicPtr<libc::clone_args>,
    entry: AtomicPtr<c_void>,
    argument: AtomicPtr<c_void>,
    /// The child's number; below zero, an error's.
    result: AtomicI32,
}

impl Post {
    const fn new() -> Post {
        Post {
            stack: Stack(UnsafeCell::new([0; STACK])),
            turn: AtomicU32::new(IDLE),
            // Not all zeros, so that the first lies among what is written anyway.
            process: AtomicI32::new(-1),
            wanted: AtomicU64::new(0),
            namespace: AtomicU64::new(0),
            goal: AtomicU64::new(EVERYTHING),
            bounding: AtomicU64::new(EVERYTHING),
            args: AtomicPtr::new(null_mut()),
            entry: AtomicPtr::new(null_mut()),
            argument: AtomicPtr::new(null_mut()),
            result: AtomicI32::new(0),
        }
    }
}

/// The thread that is asked.
struct Thread {
    /// The process that has it: a copy of that has not. 0 before there is one.
    process: u32,
    post: &'static Post,
}

/// What is used of the first stack, its end, lies in one page with the rest.
#[repr(C, align(512))]
struct First {
    post: Post,
    /// Threads of one process take turns; whoever makes children like these has one only.
    thread: Mutex<Thread>,
}

// So that the upper half is in one page, wherever the lower one is.
const _: () = assert!(cfg!(debug_assertions) || size_of::<First>() <= 1024);

static FIRST: First =
    First { post: Post::new(), thread: Mutex::new(Thread { process: 0, post: &FIRST.post }) };

/// The thread, for one child.
pub struct Maker<'a> {
    begin: &'a Begin<'a>,
    thread: MutexGuard<'static, Thread>,
}

impl<'a> Maker<'a> {
    /// Takes the thread, and starts one if this process has none, or none that can make such a child. Only where children belong to
    /// the caller's PID namespace can one be started.
    ///
    /// # Errors
    /// What clone3(2) says.
    pub fn take(begin: &'a Begin<'a>) -> io::Result<Maker<'a>> {
        let mut thread = FIRST.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let own = std::process::id();
        if thread.process != own {
            // Whoever was at work on it is not in this process.
            let post = &FIRST.post;
            post.turn.store(IDLE, Ordering::SeqCst);
            post.namespace.store(0, Ordering::SeqCst);
            post.bounding.store(EVERYTHING, Ordering::SeqCst);
            *thread = started(own, post, begin.bounding)?;
        }
        let had = thread.post.bounding.load(Ordering::SeqCst);
        if begin.bounding & !had != 0 {
            // It is to do for both from now on. The memory is the new thread's for ever.
            *thread = started(own, Box::leak(Box::new(Post::new())), had | begin.bounding)?;
        }
        Ok(Maker { begin, thread })
    }

    /// What the bounding set of the child is within. Known when that is there.
    pub fn bounding(&self) -> u64 {
        self.thread.post.bounding.load(Ordering::SeqCst)
    }

    /// Makes the child, and returns when it has left this memory. It is killed after `deadline`. Into `pidfd` the kernel writes a
    /// descriptor of it.
    ///
    /// # Errors
    /// What setns(2) and clone3(2) say.
    ///
    /// # Safety
    /// Of [`clone3`]; and `args` must say that the descriptor is to be written there.
    pub unsafe fn make(
        &self,
        deadline: Instant,
        pidfd: &AtomicI32,
        args: *mut libc::clone_args,
        entry: Entry,
        argument: *mut c_void,
    ) -> io::Result<i32> {
        let post = self.thread.post;
        post.process.store(self.begin.process.as_raw_fd(), Ordering::SeqCst);
        post.wanted.store(self.begin.namespace, Ordering::SeqCst);
        post.args.store(args, Ordering::SeqCst);
        post.entry.store(entry as *mut c_void, Ordering::SeqCst);
        post.argument.store(argument, Ordering::SeqCst);
        post.turn.store(WANTED, Ordering::SeqCst);
        wake(&post.turn);
        let mut killed = false;
        while post.turn.load(Ordering::SeqCst) != DONE {
            let left = deadline.saturating_duration_since(Instant::now());
            match (killed, left.is_zero()) {
                (true, _) => wait(&post.turn, WANTED, None),
                (false, false) => wait(&post.turn, WANTED, Some(left)),
                (false, true) => {
                    killed = kill(pidfd.load(Ordering::SeqCst));
                    if !killed {
                        wait(&post.turn, WANTED, Some(MOMENT));
                    }
                }
            }
        }
        post.turn.store(IDLE, Ordering::SeqCst);
        number_or_error(post.result.load(Ordering::SeqCst).into())
    }
}

/// Starts a thread that is to have this bounding set.
fn started(process: u32, post: &'static Post, goal: u64) -> io::Result<Thread> {
    post.goal.store(goal, Ordering::SeqCst);
    // SAFETY: all zeros mean nothing special.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let thread =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    args.flags = (thread | libc::CLONE_SYSVSEM) as u64;
    args.stack = post.stack.0.get().addr() as u64;
    args.stack_size = STACK as u64;
    // It inherits that all signals are blocked, and so do its children.
    let _quiet = Quiet::begin()?;
    // SAFETY: the stack is the thread's for ever: this process starts no other on it, and a copy of the process has another stack.
    unsafe { clone3(&raw mut args, run, (&raw const *post).cast_mut().cast()) }?;
    Ok(Thread { process, post })
}

/// The thread. It may use nothing that belongs to a thread, such as errno.
extern "C" fn run(post: *mut c_void) -> ! {
    // SAFETY: it is there for ever.
    let post = unsafe { &*post.cast_const().cast::<Post>() };
    loop {
        while post.turn.load(Ordering::SeqCst) != WANTED {
            let seen = post.turn.load(Ordering::SeqCst);
            if seen != WANTED {
                wait(&post.turn, seen, None);
            }
        }
        let result = join(post).and_then(|()| {
            bound(post);
            let entry = post.entry.load(Ordering::SeqCst);
            // SAFETY: it is one, see `make`.
            let entry = unsafe { std::mem::transmute::<*mut c_void, Entry>(entry) };
            let (args, argument) = (post.args.load(Ordering::SeqCst), post.argument.load(Ordering::SeqCst));
            // SAFETY: the caller's promise, who waits.
            unsafe { clone3(args, entry, argument) }
        });
        let result = result.unwrap_or_else(|e| -e.raw_os_error().unwrap_or(libc::EIO));
        post.result.store(result, Ordering::SeqCst);
        post.turn.store(DONE, Ordering::SeqCst);
        wake(&post.turn);
    }
}

/// Has children born into the namespace that is wanted.
fn join(post: &Post) -> io::Result<()> {
    let wanted = post.wanted.load(Ordering::SeqCst);
    if post.namespace.load(Ordering::SeqCst) == wanted {
        return Ok(());
    }
    let process = post.process.load(Ordering::SeqCst) as usize;
    // SAFETY: only numbers are passed.
    let joined = unsafe { system_call(libc::SYS_setns, [process, libc::CLONE_NEWPID as usize, 0, 0]) };
    number_or_error(joined)?;
    post.namespace.store(wanted, Ordering::SeqCst);
    Ok(())
}

/// Takes out of the bounding set what no child is to have, the first time. Where that is not allowed, it is left to the children.
fn bound(post: &Post) {
    let goal = post.goal.load(Ordering::SeqCst);
    if goal == EVERYTHING || post.bounding.load(Ordering::SeqCst) != EVERYTHING {
        return;
    }
    for capability in (0..64).filter(|capability| goal >> capability & 1 == 0) {
        // SAFETY: only numbers are passed.
        let dropped =
            unsafe { system_call(libc::SYS_prctl, [libc::PR_CAPBSET_DROP as usize, capability, 0, 0]) };
        match -dropped {
            0 => {}
            // The kernel does not know this one, nor any higher one.
            error if error == i64::from(libc::EINVAL) => break,
            _ => return,
        }
    }
    post.bounding.store(goal, Ordering::SeqCst);
}

/// Kills a child, if that is there already. Kernels write the descriptor a little before it means something.
fn kill(pidfd: i32) -> bool {
    // SAFETY: only numbers are passed; no siginfo means what kill(2) would send.
    let sent =
        unsafe { system_call(libc::SYS_pidfd_send_signal, [pidfd as usize, libc::SIGKILL as usize, 0, 0]) };
    pidfd >= 0 && sent == 0
}

/// Waits until the word is another, for some time, or something else has happened.
fn wait(word: &AtomicU32, is: u32, limit: Option<Duration>) {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(0, |limit| (&raw const *limit).addr());
    // SAFETY: word and limit are live.
    unsafe { system_call(libc::SYS_futex, [word.as_ptr().addr(), FUTEX_WAIT_PRIVATE, is as usize, limit]) };
}

fn wake(word: &AtomicU32) {
    // SAFETY: the word is live.
    unsafe { system_call(libc::SYS_futex, [word.as_ptr().addr(), FUTEX_WAKE_PRIVATE, 1, 0]) };
}

/// A system call without the C library.
///
/// # Safety
/// As the call's.
#[cfg(target_arch = "x86_64")]
unsafe fn system_call(number: libc::c_long, [a, b, c, d]: [usize; 4]) -> i64 {
    let mut result = number;
    // SAFETY: the caller's promise; the registers are those of the kernel's convention (syscall(2)).
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// The same.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn system_call(number: libc::c_long, [a, b, c, d]: [usize; 4]) -> i64 {
    let mut result = a as i64;
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
        );
    }
    result
}

/// Not written for this processor, on which no child shares memory.
///
/// # Safety
/// Nothing is done.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn system_call(_: libc::c_long, _: [usize; 4]) -> i64 {
    -i64::from(libc::ENOSYS)
}
