#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicI32, AtomicUsize};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::*;
use crate::sys::process::{Program, reset_signals};

const LONG: Duration = Duration::from_secs(60);

fn end_of(pid: i32) -> WaitStatus {
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED).unwrap()
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
    let left = spawn_child(LONG, body).unwrap();
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
        let left = spawn_child(Duration::from_micros(100 + at as u64), turn_over).unwrap();
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
    let left = spawn_child(LONG, body).unwrap();
    end_of(left.child.pid);
    let with = resident();
    drop(left);
    assert!(resident() + (19 << 20) < with, "{} of {with} bytes are left", resident());
    // More than there is room for is its end.
    let left = spawn_child(LONG, || letters.leave(vec![1_u8; 80 << 20])).unwrap();
    assert!(matches!(end_of(left.child.pid), WaitStatus::Signaled(..) | WaitStatus::Exited(..)));
}

#[test]
fn signals_are_as_before_afterwards() {
    let mut before = 0_u64;
    mask(null(), &raw mut before).unwrap();
    let left = spawn_child(LONG, || ()).unwrap();
    assert!(!left.late);
    end_of(left.child.pid);
    let mut after = 0_u64;
    mask(null(), &raw mut after).unwrap();
    assert_eq!(after, before);
}

#[test]
fn a_panic_is_its_end_only() {
    let Left { child, .. } = spawn_child(LONG, || panic!("the child")).unwrap();
    assert_eq!(end_of(child.pid), WaitStatus::Exited(Pid::from_raw(child.pid), CHILD_FAILED));
}

#[test]
fn one_that_takes_too_long_is_killed() {
    let for_ever = || {
        loop {
            std::thread::park();
        }
    };
    let Left { child, late, .. } = spawn_child(Duration::from_millis(20), for_ever).unwrap();
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
        let Left { child, late, .. } = spawn_child(Duration::from_millis(2), stopped).unwrap();
        assert!(late);
        assert!(matches!(end_of(child.pid), WaitStatus::Signaled(..)));
        // The signal of the time that is over may come now.
        let Left { child, late, .. } = spawn_child(LONG, || ()).unwrap();
        assert!(!late);
        assert_eq!(end_of(child.pid), WaitStatus::Exited(Pid::from_raw(child.pid), CHILD_FAILED));
    }
    // No time at all is not for ever.
    let Left { child, late, .. } = spawn_child(Duration::ZERO, stopped).unwrap();
    assert!(late && matches!(end_of(child.pid), WaitStatus::Signaled(..)));
}

#[test]
fn a_copy_of_the_process_has_a_watch_of_its_own() {
    let watched = || {
        let left = spawn_child(Duration::from_millis(2), || {
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
fn a_sibling_is_a_child_of_the_callers_parent() {
    let program = shell("exit 5");
    let made = AtomicI32::new(0);
    let body = || {
        reset_signals();
        let child = spawn_sibling(LONG, || {
            program.execute(&c"/bin/sh".to_owned());
        });
        made.store(child.unwrap().pid, Ordering::SeqCst);
    };
    let Left { child, .. } = spawn_child(LONG, body).unwrap();
    end_of(child.pid);
    let sibling = made.into_inner();
    assert_eq!(end_of(sibling), WaitStatus::Exited(Pid::from_raw(sibling), 5));
}
