//! The systemd cgroup driver, on a machine whose PID 1 is systemd: `scripts/vm/test` boots one.
//!
//! What crun and runc support is also asked of them, which tests the test.
#![allow(clippy::unwrap_used)]

mod node;
mod podman;
mod scope;
mod service;
mod unit;

/// Makes a test of the check for each of the runtimes.
macro_rules! checks {
    ($($check:ident: $($runtime:ident)+;)+) => {
        $(mod $check {
            $(#[test]
            fn $runtime() {
                super::$check(&crate::unit::$runtime());
            })+
        })+
    };
}
pub(crate) use checks;
