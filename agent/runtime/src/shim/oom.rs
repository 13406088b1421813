//! Noticing at once that the kernel has killed in a container for want of memory.
//!
//! cgroup v2 says so through `memory.events` after the kill. v1 says so through an eventfd *before* the kill, so
//! that the counter is looked at a few times until it has moved.

use std::time::{Duration, Instant};

use crate::cgroup::{Cgroups, OomWatch};

/// Between two looks at the counter after a notice of v1.
const AGAIN: Duration = Duration::from_millis(20);

/// So many looks; the kernel has found and killed its victim long before, or will not.
const LOOKS: u8 = 50;

/// What is known of the kills in one container's cgroup.
#[derive(Debug, Default)]
pub(super) struct OomSense {
    watch: Option<OomWatch>,
    seen: u64,
    /// How often the kernel had killed all of it then.
    groups: u64,
    again: Option<(Instant, u8)>,
}

impl OomSense {
    /// Begins to watch a cgroup. Where that is not possible the end of the container still tells of kills.
    pub fn of(cgroups: &Cgroups, cgroup: &str) -> OomSense {
        let watch = cgroups.watch_oom(cgroup).ok().flatten();
        OomSense { watch, ..OomSense::default() }
    }

    /// What to poll.
    pub fn watch(&self) -> Option<&OomWatch> {
        self.watch.as_ref()
    }

    /// When to look again without being woken.
    pub fn deadline(&self) -> Option<Instant> {
        self.again.map(|(at, _)| at)
    }

    /// The watch is ready, or it is time to look again. Gives the number of kills if there are new ones.
    pub fn look(&mut self, cgroups: &Cgroups, cgroup: &str, now: Instant) -> Option<u64> {
        let noticed = self.watch.as_mut().is_some_and(OomWatch::take_notice);
        let kills = cgroups.oom_kills(cgroup).unwrap_or(self.seen);
        if kills > self.seen {
            self.seen = kills;
            self.again = None;
            return Some(kills);
        }
        let left = if noticed { LOOKS } else { self.again.map_or(0, |(_, left)| left.saturating_sub(1)) };
        self.again = (left > 0).then(|| (now + AGAIN, left));
        None
    }

    /// Whether the kills that were seen last were of single processes, as far as the kernel tells. To be asked each time.
    pub fn were_single(&mut self, cgroups: &Cgroups, cgroup: &str) -> bool {
        let now = cgroups.oom_group_kills(cgroup).ok().flatten().unwrap_or(self.groups);
        std::mem::replace(&mut self.groups, now) == now
    }

    /// The container has ended: no more is expected, and the descriptors are closed.
    pub fn close(&mut self) {
        self.watch = None;
        self.again = None;
    }
}
