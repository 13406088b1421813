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
    let seen = AtomicUsize::new(0);
    let mut made = None;
    let body = || {
        made = Some(vec![41; 3]);
        seen.store(made.as_ref().map_or(0, |m| m[0]), Ordering::SeqCst);
        reset_signals();
        program.execute(&c"/bin/sh".to_owned());
    };
    let (child, late) = spawn_child(LONG, body).unwrap();
    assert!(!late);
    assert_eq!(seen.into_inner(), 41);
    assert_eq!(made.unwrap(), [41; 3], "what it made is the caller's");
    assert_eq!(end_of(child.pid), WaitStatus::Exited(Pid::from_raw(child.pid), 7));
}

#[test]
fn signals_are_as_before_afterwards() {
    let mut before = 0_u64;
    mask(null(), &raw mut before).unwrap();
    let (child, late) = spawn_child(LONG, || ()).unwrap();
    assert!(!late);
    end_of(child.pid);
    let mut after = 0_u64;
    mask(null(), &raw mut after).unwrap();
    assert_eq!(after, before);
}

#[test]
fn a_panic_is_its_end_only() {
    let (child, _) = spawn_child(LONG, || panic!("the child")).unwrap();
    assert_eq!(end_of(child.pid), WaitStatus::Exited(Pid::from_raw(child.pid), CHILD_FAILED));
}

#[test]
fn one_that_takes_too_long_is_killed() {
    let for_ever = || {
        loop {
            std::thread::park();
        }
    };
    let (child, late) = spawn_child(Duration::from_millis(20), for_ever).unwrap();
    assert!(late);
    assert!(matches!(end_of(child.pid), WaitStatus::Signaled(..)));
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
    let (child, _) = spawn_child(LONG, body).unwrap();
    end_of(child.pid);
    let sibling = made.into_inner();
    assert_eq!(end_of(sibling), WaitStatus::Exited(Pid::from_raw(sibling), 5));
}
