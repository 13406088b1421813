#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::*;
use crate::sys::credentials;
use crate::sys::process::{Program, pidfd_open, reset_signals};

const LONG: Duration = Duration::from_secs(60);

fn end_of(pid: i32) -> WaitStatus {
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED).unwrap()
}

/// In the caller's own PID namespace, with the capabilities that it has.
fn made(limit: Duration, body: impl FnOnce()) -> io::Result<Left> {
    let own = pidfd_open(std::process::id().cast_signed())?;
    let begin = Begin { process: own.as_fd(), namespace: 1, bounding: EVERYTHING };
    spawn_child(limit, &begin, |_| body())
}

fn shell(script: &str) -> Program {
    Program::new(
        vec![c"sh".to_owned(), c"-c".to_owned(), std::ffi::CString::new(script).unwrap()],
        Vec::new(),
    )
}

#[test]
fn a_child_runs_its_program_in_no_copy_of_the_memory() {
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
    let mut before = 0_u64;
    mask(null(), &raw mut before).unwrap();
    let left = made(LONG, || ()).unwrap();
    assert!(!left.late);
    end_of(left.child.pid);
    let mut after = 0_u64;
    mask(null(), &raw mut after).unwrap();
    assert_eq!(after, before);
}

#[test]
fn a_panic_is_its_end_only() {
    let Left { child, .. } = made(LONG, || panic!("the child")).unwrap();
    assert_eq!(end_of(child.pid), WaitStatus::Exited(Pid::from_raw(child.pid), CHILD_FAILED));
}

#[test]
fn one_that_takes_too_long_is_killed() {
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
    let stopped = || {
        // SAFETY: only numbers are passed.
        unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
    };
    for _ in 0..20 {
        let Left { child, late, .. } = made(Duration::from_millis(2), stopped).unwrap();
        assert!(late);
        assert!(matches!(end_of(child.pid), WaitStatus::Signaled(..)));
        // The signal of the time that is over may come now.
        let Left { child, late, .. } = made(LONG, || ()).unwrap();
        assert!(!late);
        assert_eq!(end_of(child.pid), WaitStatus::Exited(Pid::from_raw(child.pid), CHILD_FAILED));
    }
    // No time at all is not for ever.
    let Left { child, late, .. } = made(Duration::ZERO, stopped).unwrap();
    assert!(late && matches!(end_of(child.pid), WaitStatus::Signaled(..)));
}

#[test]
fn a_copy_of_the_process_has_a_thread_of_its_own() {
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

/// The bounding set of a child, as the kernel sees it, and as it is told.
fn bounding_of_child(begin: &Begin<'_>) -> (u64, u64) {
    let (has, told) = (AtomicU64::new(0), AtomicU64::new(0));
    let left = spawn_child(LONG, begin, |bounding| {
        let all = (0..64).filter(|c| credentials::bounding_has(*c) == Some(true));
        has.store(all.fold(0, |set, c| set | 1 << c), Ordering::SeqCst);
        told.store(bounding, Ordering::SeqCst);
    });
    end_of(left.unwrap().child.pid);
    (has.into_inner(), told.into_inner())
}

#[test]
fn what_no_child_may_have_is_taken_once_and_who_may_have_more_has_it() {
    let own = pidfd_open(std::process::id().cast_signed()).unwrap();
    let begin = |bounding| Begin { process: own.as_fd(), namespace: 1, bounding };
    let all = bounding_of_child(&begin(EVERYTHING)).0;
    assert_ne!(all & 0b1111, 0, "these tests need capabilities");
    // One that has everything was asked first, and does for all.
    assert_eq!(bounding_of_child(&begin(0b11)), (all, EVERYTHING));
    let copy = crate::sys::process::Clone3 { flags: 0, cgroup: None }.spawn(|| {
        let few = [0b11, 0b01].map(|set| bounding_of_child(&begin(set)) == (0b11 & all, 0b11));
        // Another thread, which has both from now on.
        let more = [0b110, 0b11, 0b100].map(|set| bounding_of_child(&begin(set)) == (0b111 & all, 0b111));
        let everything = bounding_of_child(&begin(EVERYTHING)) == (all, EVERYTHING);
        let kept =
            (0..64).filter(|c| credentials::bounding_has(*c) == Some(true)).fold(0, |set, c| set | 1 << c);
        let good = few.iter().chain(&more).all(|is| *is) && everything && kept == all;
        crate::sys::process::exit_now(if good { 0 } else { 1 });
    });
    let copy = copy.unwrap();
    assert_eq!(end_of(copy.pid), WaitStatus::Exited(Pid::from_raw(copy.pid), 0));
}

fn first_of_a_namespace() -> Child {
    let flags = libc::CLONE_NEWPID as u64;
    let idle = || {
        loop {
            std::thread::park();
        }
    };
    crate::sys::process::Clone3 { flags, cgroup: None }.spawn(idle).unwrap()
}

#[test]
fn a_child_is_born_into_the_namespace_that_is_asked_for() {
    let one = first_of_a_namespace();
    let other = first_of_a_namespace();
    let number_in = |process: BorrowedFd<'_>, namespace| {
        let number = AtomicI32::new(0);
        let begin = Begin { process, namespace, bounding: EVERYTHING };
        // SAFETY: takes nothing.
        let left = spawn_child(LONG, &begin, |_| number.store(unsafe { libc::getpid() }, Ordering::SeqCst));
        let left = left.unwrap();
        end_of(left.child.pid);
        number.into_inner()
    };
    let numbers: Vec<i32> = [(&one, 11), (&one, 11), (&other, 12), (&one, 11)]
        .map(|(p, n)| number_in(p.pidfd.as_fd(), n))
        .to_vec();
    assert_eq!(numbers, [2, 3, 2, 4]);
    // What the caller makes itself is not affected.
    let own = crate::sys::process::Clone3 { flags: 0, cgroup: None }.spawn(|| ()).unwrap();
    end_of(own.pid);
    for init in [one, other] {
        crate::sys::process::pidfd_kill(init.pidfd.as_fd(), libc::SIGKILL).unwrap();
        end_of(init.pid);
    }
    let gone = Begin { process: own.pidfd.as_fd(), namespace: 13, bounding: EVERYTHING };
    let error = spawn_child(LONG, &gone, |_| ()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
}

#[test]
fn a_sibling_is_a_child_of_the_callers_parent() {
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
