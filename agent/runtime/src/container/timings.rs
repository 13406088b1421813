//! Where the time of a container's creation goes.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What the first process of a container did or waited for from its birth until it was ready to execute its program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Birth: the new namespaces and the copy of the parent's memory; joined namespaces and descriptors.
    pub namespaces: Duration,
    /// The root file system, what is mounted in it, devices, masked and read-only paths, the change into it.
    pub mounts: Duration,
    /// Waiting for the cgroup and entering it.
    pub cgroups: Duration,
    /// User, capabilities, limits, and hooks if there are any.
    pub process: Duration,
}

/// Measures one step after the other. A time namespace that is entered in between makes a step look like nothing.
pub struct Watch {
    last: Instant,
}

impl Watch {
    /// Starts to measure at a time that may be over.
    pub fn since(begun: Instant) -> Watch {
        Watch { last: begun }
    }

    /// The time since the last call.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(std::mem::replace(&mut self.last, now))
    }
}
