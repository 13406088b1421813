//! The planner: a pure function from what should be and what is to the next steps.

mod action;
mod hash;
mod memory;

use jiff::Timestamp;

pub use self::action::{Action, Key, Note, Plan, ProbeKind, StopCause};
pub use self::hash::spec_hash;
pub use self::memory::{Limits, Memory};
use crate::node::{Deletion, Observation};
use crate::pod::Pod;

/// The next steps of a pod. Asking again without any change gives the same plan.
pub fn plan(
    _pod: &Pod,
    _deletion: Option<&Deletion>,
    _observed: &Observation,
    _memory: &Memory,
    _now: Timestamp,
) -> Plan {
    Plan::default()
}
