#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicUsize;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::*;
use crate::sys::process::{Program, reset_signals};

const LONG: Duration = Duration::from_secs(60);

fn end_of(pid: i32) -> WaitStatus {
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::__WALL).unwrap()
}

fn shell(script: &str) -> Program {
    Program::new(
        vec![c"sh".to_owned(), c"-c".to_owned(), std::ffi::CString::new(script).unwrap()],
        Vec::new(),
    )
}

#[test]
fn the_second_child_runs_its_program_in_no_copy_of_the_memory() {
    let program = shell("exit 7");
    let seen = AtomicUsize::new(0);
    let guide = || {
        seen.fetch_add(1, Ordering::SeqCst);
        Some(vec![40; 3])
    };
    let through = spawn_through(LONG, guide, |found: &Vec<usize>| {
        seen.fetch_add(found[0], Ordering::SeqCst);
        reset_signals();
        program.execute(&c"/bin/sh".to_owned());
    })
    .unwrap();
    assert!(!through.late);
    assert_eq!(seen.into_inner(), 41);
    let visitor = through.visitor.unwrap().unwrap();
    assert_eq!(end_of(visitor), WaitStatus::Exited(Pid::from_raw(visitor), 7));
    assert_eq!(end_of(through.guide.pid), WaitStatus::Exited(Pid::from_raw(through.guide.pid), 0));
}

#[test]
fn signals_are_as_before_afterwards() {
    let mut before = 0_u64;
    mask(null(), &raw mut before).unwrap();
    let through = spawn_through(LONG, || None::<()>, |()| ()).unwrap();
    assert!(through.visitor.is_none() && !through.late);
    end_of(through.guide.pid);
    let mut after = 0_u64;
    mask(null(), &raw mut after).unwrap();
    assert_eq!(after, before);
}

#[test]
fn a_panic_in_either_is_their_end_only() {
    let through = spawn_through(LONG, || -> Option<()> { panic!("the first") }, |()| ()).unwrap();
    assert!(through.visitor.is_none());
    end_of(through.guide.pid);
    let through = spawn_through(LONG, || Some(()), |()| panic!("the second")).unwrap();
    let visitor = through.visitor.unwrap().unwrap();
    assert_eq!(end_of(visitor), WaitStatus::Exited(Pid::from_raw(visitor), CHILD_FAILED));
    end_of(through.guide.pid);
}

#[test]
fn those_that_take_too_long_are_killed() {
    fn for_ever() -> ! {
        loop {
            std::thread::park();
        }
    }
    let short = Duration::from_millis(20);
    let first = spawn_through(short, || -> Option<()> { for_ever() }, |()| ()).unwrap();
    assert!(first.late && first.visitor.is_none());
    assert!(matches!(end_of(first.guide.pid), WaitStatus::Signaled(..)));
    let second = spawn_through(short, || Some(()), |()| for_ever()).unwrap();
    assert!(second.late);
    assert!(matches!(end_of(second.visitor.unwrap().unwrap()), WaitStatus::Signaled(..)));
    end_of(second.guide.pid);
}

#[test]
fn a_sibling_is_a_child_of_the_callers_parent() {
    let program = shell("exit 5");
    let made = AtomicI32::new(0);
    let guide = || {
        reset_signals();
        let child = spawn_sibling(LONG, || {
            program.execute(&c"/bin/sh".to_owned());
        });
        made.store(child.unwrap().pid, Ordering::SeqCst);
        None::<()>
    };
    let through = spawn_through(LONG, guide, |()| ()).unwrap();
    end_of(through.guide.pid);
    let sibling = made.into_inner();
    assert_eq!(end_of(sibling), WaitStatus::Exited(Pid::from_raw(sibling), 5));
}
