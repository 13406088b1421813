//! The threads that make the children of [`super::spawn_child`], one for each container that has such.
//!
//! Whoever makes a child that shares its memory waits where nothing but its own end would wake it, and a child can be stopped by the
//! container that it is becoming a part of before its first instruction. So a thread besides makes it, and the caller waits for
//! that thread, as long as it likes: then it kills the child.
//!
//! The thread also keeps what its children have in common, so that not each has to be given it again: namespaces; the bounding set, which
//! takes a system call for each capability that is not in it (capabilities(7)); and the filter of system calls, which takes as long
//! to install as a cheap program takes to run. All of them are a thread's own. So it lives in the container without a part of it
//! being there: nobody inside sees it, for it was not born there, and it looks at nothing but its own memory.
//!
//! The thread has a small stack and nothing besides. What belongs to threads of the C library it has not, so it makes
//! system calls by itself and touches no memory but a [`Post`] and what it is asked for with. Nor may its caller touch an errno while
//! the child is there: the child has the same.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Entry, Quiet, clone, number_or_error};
use crate::sys::seccomp::{Instruction, Program};

/// A few hundred bytes are used. Frames are larger without optimisation.
const STACK: usize = if cfg!(debug_assertions) { 32 << 10 } else { 896 };
/// How long to wait for a child to be there at all when its time is over before that.
const MOMENT: Duration = Duration::from_millis(1);
/// A bounding set that nothing has been taken out of.
pub const EVERYTHING: u64 = u64::MAX;

/// linux/futex.h.
const FUTEX_WAIT_PRIVATE: usize = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
const FUTEX_WAKE_PRIVATE: usize = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;

/// The thread waits to be asked.
const IDLE: u32 = 0;
/// It is at work on what it was asked for.
const WANTED: u32 = 1;
/// It is to end.
const LEAVE: u32 = 2;

/// What the children of one thread have in common.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// A process in whose PID namespace they are born.
    pub process: BorrowedFd<'a>,
    /// Other namespaces of that process that they are born in: `CLONE_NEW*`. A user namespace cannot be among them: a thread has none of
    /// its own.
    pub namespaces: libc::c_int,
    /// The capabilities that their bounding set is to have, a bit for each.
    pub bounding: u64,
    /// The filter that they have, and flags for seccomp(2). It must allow what [`Maker::CALLS`] lists, and [`making`].
    pub filter: Option<(&'a [Instruction], u64)>,
}

/// A call that makes a child, as filters see it.
pub fn making() -> (libc::c_long, [u64; 6]) {
    (libc::SYS_clone, [super::CHILD | libc::SIGCHLD as u64, 0, 0, 0, 0, 0])
}

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: only one thread at a time uses it.
unsafe impl Sync for Stack {}

/// What a thread and its caller have in common.
#[repr(C)]
struct Post {
    stack: Stack,
    /// Whose turn it is; a futex.
    turn: AtomicU32,
    /// Whether there is a thread. The kernel clears it when that has gone; a futex.
    there: AtomicU32,
    /// What it is asked for: first a [`Beginning`], then [`Making`] after [`Making`].
    order: AtomicPtr<c_void>,
    /// What has become of that; below zero, an error's number.
    result: AtomicI32,
}

impl Post {
    const fn new() -> Post {
        Post {
            stack: Stack(UnsafeCell::new([0; STACK])),
            turn: AtomicU32::new(IDLE),
            there: AtomicU32::new(0),
            order: AtomicPtr::new(null_mut()),
            // Not all zeros, so that the first lies among what is written anyway.
            result: AtomicI32::new(-1),
        }
    }

    /// One that has no thread, which the caller is to make one for.
    fn free() -> &'static Post {
        let mut more = MORE.lock().unwrap_or_else(PoisonError::into_inner);
        let take =
            |post: &&Post| post.there.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        std::iter::once(&FIRST.post).chain(more.iter().copied()).find(take).unwrap_or_else(|| {
            let post: &Post = Box::leak(Box::new(Post::new()));
            post.there.store(1, Ordering::SeqCst);
            more.push(post);
            post
        })
    }

    /// Waits until the thread has done what it was asked for, and gives its answer.
    fn answer(&self) -> io::Result<i32> {
        while self.turn.load(Ordering::SeqCst) == WANTED {
            wait(&self.turn, WANTED, None);
        }
        number_or_error(self.result.load(Ordering::SeqCst).into())
    }
}

/// What is used of the stack, its end, lies in one page with the rest.
#[repr(C, align(512))]
struct First {
    post: Post,
}

// So that the upper half is in one page, wherever the lower one is.
const _: () = assert!(cfg!(debug_assertions) || size_of::<First>() <= 1024);

/// Most pods have one container with probes.
static FIRST: First = First { post: Post::new() };
/// The others. Their memory is used again.
static MORE: Mutex<Vec<&'static Post>> = Mutex::new(Vec::new());

/// How many threads there are, and how many places for them.
#[cfg(test)]
pub(super) fn threads() -> (u32, usize) {
    let more = MORE.lock().unwrap_or_else(PoisonError::into_inner);
    let all = std::iter::once(&FIRST.post).chain(more.iter().copied());
    (all.map(|post| post.there.load(Ordering::SeqCst)).map(|there| there.min(1)).sum(), 1 + more.len())
}

/// With what a thread begins.
struct Beginning {
    process: RawFd,
    namespaces: libc::c_int,
    bounding: u64,
    filter: Option<(Program, u64)>,
}

/// A child to make.
struct Making {
    args: *const libc::clone_args,
    entry: Entry,
    argument: *mut c_void,
}

/// A thread that makes children. It ends when this is dropped, and so do those of its children that asked for it (`PR_SET_PDEATHSIG`).
#[derive(Debug)]
pub struct Maker {
    post: &'static Post,
    /// See [`Maker::bounding`].
    bounding: u64,
    /// See [`Maker::namespaces`].
    namespaces: libc::c_int,
    /// See [`Maker::filters`].
    filters: bool,
}

impl std::fmt::Debug for Post {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Post").field("turn", &self.turn).field("there", &self.there).finish_non_exhaustive()
    }
}

impl Maker {
    /// The system calls that the thread makes itself.
    pub const CALLS: [libc::c_long; 2] = [libc::SYS_futex, libc::SYS_exit];

    /// Starts a thread. The caller's own children must be born into its own PID namespace.
    ///
    /// # Errors
    /// What clone(2), setns(2) and seccomp(2) say.
    pub fn start(common: &Common<'_>) -> io::Result<Maker> {
        let program = |(filter, flags)| Program::of(filter).map(|program| (program, flags));
        let filter = common.filter.map(program).transpose()?;
        let beginning = Beginning {
            process: common.process.as_raw_fd(),
            namespaces: common.namespaces,
            bounding: common.bounding,
            filter,
        };
        // It inherits that all signals are blocked, and so do its children.
        let quiet = Quiet::begin()?;
        let post = Post::free();
        post.order.store((&raw const beginning).cast_mut().cast(), Ordering::SeqCst);
        post.turn.store(WANTED, Ordering::SeqCst);
        // SAFETY: all zeros mean nothing special.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        // Without CLONE_FS: who joins another mount namespace must have its own root and working folder.
        let thread = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        args.flags = (thread | libc::CLONE_SYSVSEM | libc::CLONE_CHILD_CLEARTID) as u64;
        args.child_tid = post.there.as_ptr() as u64;
        args.stack = post.stack.0.get().addr() as u64;
        args.stack_size = STACK as u64;
        // SAFETY: nobody else uses the stack before the thread has gone.
        let made = unsafe { clone(&raw const args, run, (&raw const *post).cast_mut().cast()) };
        drop(quiet);
        if let Err(error) = made {
            post.there.store(0, Ordering::SeqCst);
            return Err(error);
        }
        // If it fails it ends.
        let bounding = if post.answer()? == 0 { EVERYTHING } else { common.bounding };
        Ok(Maker { post, bounding, namespaces: common.namespaces, filters: common.filter.is_some() })
    }

    /// What the bounding set of its children is within.
    pub fn bounding(&self) -> u64 {
        self.bounding
    }

    /// The namespaces that they are in, besides the PID namespace.
    pub fn namespaces(&self) -> libc::c_int {
        self.namespaces
    }

    /// Whether they have the filter.
    pub fn filters(&self) -> bool {
        self.filters
    }

    /// Makes a child, and returns when it has left this memory. It is killed after `deadline`. Into `pidfd` the kernel writes a
    /// descriptor of it.
    ///
    /// # Errors
    /// What clone(2) says.
    ///
    /// # Safety
    /// Of [`clone`]; and `args` must say that the descriptor is to be written there.
    pub(super) unsafe fn make(
        &self,
        deadline: Instant,
        pidfd: &AtomicI32,
        args: *const libc::clone_args,
        entry: Entry,
        argument: *mut c_void,
    ) -> io::Result<i32> {
        let post = self.post;
        let making = Making { args, entry, argument };
        post.order.store((&raw const making).cast_mut().cast(), Ordering::SeqCst);
        post.turn.store(WANTED, Ordering::SeqCst);
        wake(&post.turn);
        let mut killed = false;
        while !killed && post.turn.load(Ordering::SeqCst) == WANTED {
            let left = deadline.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                wait(&post.turn, WANTED, Some(left));
                continue;
            }
            killed = kill(pidfd.load(Ordering::SeqCst));
            if !killed {
                wait(&post.turn, WANTED, Some(MOMENT));
            }
        }
        post.answer()
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.post.turn.store(LEAVE, Ordering::SeqCst);
        wake(&self.post.turn);
        // Its namespaces are not to be held any longer than anybody else would.
        until_cleared(&self.post.there);
    }
}

/// The thread. It may use nothing that belongs to a thread, such as errno.
extern "C" fn run(post: *mut c_void) -> ! {
    // SAFETY: it is there for ever.
    let post = unsafe { &*post.cast_const().cast::<Post>() };
    // SAFETY: the caller waits for the answer.
    let begun = begin(unsafe { &*post.order.load(Ordering::SeqCst).cast::<Beginning>() });
    let good = begun.is_ok();
    report(post, begun);
    if good {
        serve(post);
    }
    loop {
        // SAFETY: only a number is passed.
        unsafe { system_call(libc::SYS_exit, [0; 4]) };
    }
}

/// Makes children until it is told to leave.
fn serve(post: &Post) {
    loop {
        match post.turn.load(Ordering::SeqCst) {
            IDLE => wait(&post.turn, IDLE, None),
            WANTED => {
                // SAFETY: the caller waits for the answer.
                let making = unsafe { &*post.order.load(Ordering::SeqCst).cast::<Making>() };
                // SAFETY: the promise of who waits.
                report(post, unsafe { clone(making.args, making.entry, making.argument) });
            }
            _ => return,
        }
    }
}

fn report(post: &Post, result: io::Result<i32>) {
    let result = result.unwrap_or_else(|e| -e.raw_os_error().unwrap_or(libc::EIO));
    post.result.store(result, Ordering::SeqCst);
    post.turn.store(IDLE, Ordering::SeqCst);
    wake(&post.turn);
}

/// Takes on what the children have in common. 1 if the bounding set is among it.
fn begin(beginning: &Beginning) -> io::Result<i32> {
    let namespaces = (beginning.namespaces | libc::CLONE_NEWPID) as usize;
    // SAFETY: only numbers are passed.
    let joined = unsafe { system_call(libc::SYS_setns, [beginning.process as usize, namespaces, 0, 0]) };
    number_or_error(joined)?;
    let bound = bound(beginning.bounding);
    if let Some((program, flags)) = &beginning.filter {
        let how = [libc::SECCOMP_SET_MODE_FILTER as usize, *flags as usize, (&raw const *program).addr(), 0];
        // SAFETY: the program is live, and says how long it is.
        number_or_error(unsafe { system_call(libc::SYS_seccomp, how) })?;
    }
    Ok(bound.into())
}

/// Takes out of the bounding set what no child is to have. Where that is not allowed, it is left to the children.
fn bound(goal: u64) -> bool {
    for capability in (0..64).filter(|capability| goal >> capability & 1 == 0) {
        // SAFETY: only numbers are passed.
        let dropped =
            unsafe { system_call(libc::SYS_prctl, [libc::PR_CAPBSET_DROP as usize, capability, 0, 0]) };
        match -dropped {
            0 => {}
            // The kernel does not know this one, nor any higher one.
            error if error == i64::from(libc::EINVAL) => break,
            _ => return false,
        }
    }
    true
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

/// Waits until the kernel has cleared a word that is 1, as it does for a thread that has left (`CLONE_CHILD_CLEARTID`).
pub(super) fn until_cleared(word: &AtomicU32) {
    while word.load(Ordering::SeqCst) != 0 {
        // It wakes waiters of shared words, so this is not a private wait.
        // SAFETY: the word is live.
        unsafe { system_call(libc::SYS_futex, [word.as_ptr().addr(), libc::FUTEX_WAIT as usize, 1, 0]) };
    }
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
