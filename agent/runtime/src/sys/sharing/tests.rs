#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::*;
use crate::sys::credentials;
use crate::sys::process::{Program, pidfd_open, reset_signals};

const LONG: Duration = Duration::from_secs(60);

/// Who makes children like these has one thread. Tests may be threads of one process: a copy that one makes would find the maker
/// taken by another, which is not in it, for ever.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end_of(pid: i32) -> WaitStatus {
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED).unwrap()
}

/// A thread for children in the caller's own PID namespace, with the capabilities that it has.
fn plain() -> Maker {
    let own = pidfd_open(std::process::id().cast_signed()).unwrap();
    Maker::start(&common(own.as_fd())).unwrap()
}

fn common(process: BorrowedFd<'_>) -> Common<'_> {
    Common { process, namespaces: 0, bounding: EVERYTHING, filter: None }
}

fn made(limit: Duration, body: impl FnOnce()) -> io::Result<Left> {
    spawn_child(limit, &plain(), None, body)
}

fn shell(script: &str) -> Program {
    Program::new(
        vec![c"sh".to_owned(), c"-c".to_owned(), std::ffi::CString::new(script).unwrap()],
        Vec::new(),
    )
}

#[test]
fn a_child_runs_its_program_in_no_copy_of_the_memory() {
    let _alone = alone();
    let program = shell("exit 7");
    let (seen, letters) = (AtomicUsize::new(0), Letters::new());
    let body = || {
        seen.store(41, Ordering::SeqCst);
        letters.leave("one".to_owned());
        letters.leave("two".repeat(1000));
        reset_signals();
        program.execute(&c"/bin/sh".to_owned());
    };
    let left = made(LONG, body).unwrap();
    assert!(!left.late);
    let said = letters.of(&left);
    let pid = left.child.pid;
    drop(left);
    assert_eq!((seen.into_inner(), said), (41, vec!["one".to_owned(), "two".repeat(1000)]));
    assert_eq!(end_of(pid), WaitStatus::Exited(Pid::from_raw(pid), 7));
}

/// Takes and gives back memory of many sizes until it is killed.
fn turn_over() {
    let mut held: Vec<Vec<usize>> = (0..64).map(|_| Vec::new()).collect();
    for at in 0_usize.. {
        let size = 1 + at.wrapping_mul(0x9e37_79b9) % 700;
        held[at % 64] = vec![at; size];
        held[(at + 7) % 64].shrink_to_fit();
    }
}

#[test]
fn one_that_is_killed_when_it_takes_memory_leaves_that_of_its_maker_in_order() {
    let _alone = alone();
    let mut own: Vec<Vec<u8>> = Vec::new();
    for at in 0..300_usize {
        let left = made(Duration::from_micros(100 + at as u64), turn_over).unwrap();
        assert!(matches!(end_of(left.child.pid), WaitStatus::Signaled(..)));
        drop(left);
        own.push(vec![at as u8; 24 + at * 13]);
        own.push(Vec::with_capacity(40));
        if at % 3 == 0 {
            own.swap_remove(at / 3);
        }
    }
    assert!(own.iter().filter(|o| !o.is_empty()).all(|o| o.iter().all(|byte| *byte == o[0])));
}

#[test]
fn what_a_child_takes_is_gone_afterwards() {
    let _alone = alone();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let letters = Letters::new();
    let body = || letters.leave(vec![1_u8; 20 << 20]);
    let left = made(LONG, body).unwrap();
    end_of(left.child.pid);
    let with = resident();
    drop(left);
    assert!(resident() + (19 << 20) < with, "{} of {with} bytes are left", resident());
    // More than there is room for is its end.
    let left = made(LONG, || letters.leave(vec![1_u8; 80 << 20])).unwrap();
    assert!(matches!(end_of(left.child.pid), WaitStatus::Signaled(..) | WaitStatus::Exited(..)));
}

#[test]
fn signals_are_as_before_afterwards() {
    let _alone = alone();
    let mut before = 0_u64;
    mask(std::ptr::null(), &raw mut before).unwrap();
    let left = made(LONG, || ()).unwrap();
    assert!(!left.late);
    end_of(left.child.pid);
    let mut after = 0_u64;
    mask(std::ptr::null(), &raw mut after).unwrap();
    assert_eq!(after, before);
}

#[test]
fn a_panic_is_its_end_only() {
    let _alone = alone();
    let Left { child, .. } = made(LONG, || panic!("the child")).unwrap();
    assert_eq!(end_of(child.pid), WaitStatus::Exited(Pid::from_raw(child.pid), CHILD_FAILED));
}

#[test]
fn one_that_takes_too_long_is_killed() {
    let _alone = alone();
    let for_ever = || {
        loop {
            std::thread::park();
        }
    };
    let Left { child, late, .. } = made(Duration::from_millis(20), for_ever).unwrap();
    assert!(late);
    assert!(matches!(end_of(child.pid), WaitStatus::Signaled(..)));
}

#[test]
fn one_that_is_stopped_is_killed_in_time_and_others_have_their_own() {
    let _alone = alone();
    let stopped = || {
        // SAFETY: only numbers are passed.
        unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
    };
    let maker = plain();
    for _ in 0..20 {
        let Left { child, late, .. } = spawn_child(Duration::from_millis(2), &maker, None, stopped).unwrap();
        assert!(late);
        assert!(matches!(end_of(child.pid), WaitStatus::Signaled(..)));
        // The signal of the time that is over may come now.
        let Left { child, late, .. } = spawn_child(LONG, &maker, None, || ()).unwrap();
        assert!(!late);
        assert_eq!(end_of(child.pid), WaitStatus::Exited(Pid::from_raw(child.pid), CHILD_FAILED));
    }
    // No time at all is not for ever.
    let Left { child, late, .. } = spawn_child(Duration::ZERO, &maker, None, stopped).unwrap();
    assert!(late && matches!(end_of(child.pid), WaitStatus::Signaled(..)));
}

#[test]
fn a_copy_of_the_process_has_a_thread_of_its_own() {
    let _alone = alone();
    let watched = || {
        let left = made(Duration::from_millis(2), || {
            loop {
                std::thread::park();
            }
        });
        left.is_ok_and(|Left { child, late, .. }| {
            late && matches!(end_of(child.pid), WaitStatus::Signaled(..))
        })
    };
    assert!(watched());
    let copy = crate::sys::process::Clone3 { flags: 0, cgroup: None }
        .spawn(|| crate::sys::process::exit_now(if watched() { 0 } else { 1 }))
        .unwrap();
    assert_eq!(end_of(copy.pid), WaitStatus::Exited(Pid::from_raw(copy.pid), 0));
    assert!(watched());
}

#[test]
fn a_thread_goes_with_its_maker_and_its_place_is_used_again() {
    let _alone = alone();
    for _ in 0..3 {
        let makers: Vec<Maker> = (0..4).map(|_| plain()).collect();
        assert_eq!(maker::threads(), (4, 4));
        for (at, maker) in makers.iter().enumerate() {
            let left = spawn_child(LONG, maker, None, || exit_now(at as i32)).unwrap();
            assert_eq!(end_of(left.child.pid), WaitStatus::Exited(Pid::from_raw(left.child.pid), at as i32));
        }
        drop(makers);
        assert_eq!(maker::threads(), (0, 4));
    }
}

fn bounding_set() -> u64 {
    (0..64).filter(|c| credentials::bounding_has(*c) == Some(true)).fold(0, |set, c| set | 1 << c)
}

#[test]
fn what_no_child_may_have_is_taken_from_the_thread() {
    let _alone = alone();
    let own = pidfd_open(std::process::id().cast_signed()).unwrap();
    let all = bounding_set();
    assert_ne!(all & 0b1111, 0, "these tests need capabilities");
    for wanted in [EVERYTHING, 0b11, 0b01, 0] {
        let maker = Maker::start(&Common { bounding: wanted, ..common(own.as_fd()) }).unwrap();
        assert_eq!(maker.bounding(), wanted);
        let has = AtomicU64::new(0);
        let left = spawn_child(LONG, &maker, None, || has.store(bounding_set(), Ordering::SeqCst)).unwrap();
        end_of(left.child.pid);
        assert_eq!(has.into_inner(), wanted & all);
    }
    assert_eq!(bounding_set(), all);
}

#[test]
fn children_have_the_filter_of_their_maker_and_nobody_else() {
    let _alone = alone();
    let own = pidfd_open(std::process::id().cast_signed()).unwrap();
    // Load the number; getppid(2) is an error, everything else is let pass.
    let error = libc::SECCOMP_RET_ERRNO | libc::ENOANO as u32;
    let filter = [
        (0x20, 0, 0, 0),
        (0x15, 0, 1, libc::SYS_getppid as u32),
        (0x06, 0, 0, error),
        (0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| crate::sys::seccomp::Instruction { code, jt, jf, k });
    let ask = || {
        // SAFETY: takes nothing.
        let answer = unsafe { libc::syscall(libc::SYS_getppid) };
        if answer < 0 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
    };
    let filtered = Maker::start(&Common { filter: Some((&filter, 0)), ..common(own.as_fd()) }).unwrap();
    assert!(filtered.filters());
    for (maker, expected) in [(&filtered, libc::ENOANO), (&plain(), 0), (&filtered, libc::ENOANO)] {
        let said = AtomicI32::new(-1);
        let left = spawn_child(LONG, maker, None, || said.store(ask(), Ordering::SeqCst)).unwrap();
        end_of(left.child.pid);
        assert_eq!(said.into_inner(), expected);
    }
    assert_eq!(ask(), 0);
    // What the kernel does not take is an error, and no thread is left behind.
    let before = maker::threads();
    let wrong = Maker::start(&Common { filter: Some((&filter[..1], 0)), ..common(own.as_fd()) });
    assert_eq!(wrong.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    while maker::threads() != before {
        std::thread::yield_now();
    }
}

#[test]
fn children_are_born_in_the_namespaces_of_the_process() {
    let _alone = alone();
    let new = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWPID;
    let other = first_of_namespaces(new as u64);
    let number = |who: &str, kind: &str| std::fs::read_link(format!("/proc/{who}/ns/{kind}")).unwrap();
    let kinds = ["mnt", "uts", "ipc", "pid", "net"];
    let before = kinds.map(|kind| number("thread-self", kind));
    let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    let maker = Maker::start(&Common { namespaces, ..common(other.pidfd.as_fd()) }).unwrap();
    let parked = || {
        // SAFETY: only numbers are passed.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    };
    // A zombie has no namespaces to look at, so the child stops in a program.
    let program = shell("kill -STOP $$");
    let left = spawn_child(LONG, &maker, None, || {
        reset_signals();
        program.execute(&c"/bin/sh".to_owned());
        parked();
    })
    .unwrap();
    waitid(Id::Pid(Pid::from_raw(left.child.pid)), WaitPidFlag::WSTOPPED).unwrap();
    let (child, first) = (left.child.pid.to_string(), other.pid.to_string());
    for (kind, own) in kinds.iter().zip(&before) {
        assert_eq!(number(&child, kind), number(&first, kind), "{kind}");
        assert_eq!(number(&child, kind) == *own, *kind == "net", "{kind}");
    }
    // The caller is where it was.
    assert_eq!(kinds.map(|kind| number("thread-self", kind)), before);
    crate::sys::process::pidfd_kill(other.pidfd.as_fd(), libc::SIGKILL).unwrap();
    end_of(left.child.pid);
    end_of(other.pid);
    let error = Maker::start(&Common { namespaces, ..common(other.pidfd.as_fd()) }).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
}

fn first_of_namespaces(flags: u64) -> Child {
    let idle = || {
        loop {
            std::thread::park();
        }
    };
    crate::sys::process::Clone3 { flags, cgroup: None }.spawn(idle).unwrap()
}

#[test]
fn a_child_is_born_into_the_pid_namespace_of_the_process() {
    let _alone = alone();
    let [one, other] = [(); 2].map(|()| first_of_namespaces(libc::CLONE_NEWPID as u64));
    let [first, second] = [&one, &other].map(|init| Maker::start(&common(init.pidfd.as_fd())).unwrap());
    let number_in = |maker: &Maker| {
        let number = AtomicI32::new(0);
        // SAFETY: takes nothing.
        let body = || number.store(unsafe { libc::getpid() }, Ordering::SeqCst);
        let left = spawn_child(LONG, maker, None, body).unwrap();
        end_of(left.child.pid);
        number.into_inner()
    };
    assert_eq!([&first, &first, &second, &first].map(number_in), [2, 3, 2, 4]);
    // What the caller makes itself is not affected.
    let own = crate::sys::process::Clone3 { flags: 0, cgroup: None }.spawn(|| ()).unwrap();
    end_of(own.pid);
    for init in [one, other] {
        crate::sys::process::pidfd_kill(init.pidfd.as_fd(), libc::SIGKILL).unwrap();
        end_of(init.pid);
    }
    // Nobody is born there any more.
    let error = spawn_child(LONG, &first, None, || ()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
}

#[test]
fn a_sibling_is_a_child_of_the_callers_parent() {
    let _alone = alone();
    let program = shell("exit 5");
    let sibling = AtomicI32::new(0);
    let body = || {
        reset_signals();
        let child = spawn_sibling(LONG, || {
            program.execute(&c"/bin/sh".to_owned());
        });
        sibling.store(child.unwrap().pid, Ordering::SeqCst);
    };
    let Left { child, .. } = made(LONG, body).unwrap();
    end_of(child.pid);
    let sibling = sibling.into_inner();
    assert_eq!(end_of(sibling), WaitStatus::Exited(Pid::from_raw(sibling), 5));
}
