//! Counting probes that shims make by themselves: by the clock, until they tell.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Counters;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Standing {
    last: u64,
    all: BTreeMap<u64, Order>,
}

#[derive(Debug)]
struct Order {
    first: Instant,
    period: Duration,
    times: u32,
    counted: u32,
}

impl Order {
    /// What has become due and was not counted yet.
    fn fresh(&mut self, now: Instant) -> u32 {
        let Some(gone) = now.checked_duration_since(self.first) else { return 0 };
        let due = gone.as_nanos() / self.period.as_nanos().max(1) + 1;
        let due = u32::try_from(due).unwrap_or(u32::MAX).min(self.times);
        let fresh = due.saturating_sub(self.counted);
        self.counted += fresh;
        fresh
    }
}

/// Ends the counting by the clock.
pub struct Counting {
    counters: Arc<Counters>,
    key: u64,
}

impl Counters {
    /// Counts a probe from now on that is made so many times at most.
    pub fn count_probes(self: &Arc<Self>, wait: Duration, period: Duration, times: u32) -> Counting {
        let mut standing = self.standing();
        standing.last += 1;
        let key = standing.last;
        standing.all.insert(key, Order { first: Instant::now() + wait, period, times, counted: 0 });
        Counting { counters: self.clone(), key }
    }

    /// Brings the counter up to date.
    pub(super) fn count_standing(&self) {
        let now = Instant::now();
        let fresh: u64 = self.standing().all.values_mut().map(|order| u64::from(order.fresh(now))).sum();
        self.probes.inc_by(fresh);
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counting {
    /// It was made so many times.
    pub fn end(self, runs: u32) {
        if let Some(order) = self.counters.standing().all.remove(&self.key) {
            self.counters.probes.inc_by(runs.saturating_sub(order.counted).into());
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let order = self.counters.standing().all.remove(&self.key);
        if let Some(mut order) = order {
            self.counters.probes.inc_by(order.fresh(Instant::now()).into());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn probes_of_shims_are_counted_once_each() {
        let counters = Arc::new(Counters::new(jiff::Timestamp::now()).unwrap());
        let now = Instant::now();
        let mut order = Order { first: now + SECOND, period: SECOND, times: 4, counted: 0 };
        let seen = [0, 1, 1, 2, 9, 10].map(|seconds| order.fresh(now + seconds * SECOND));
        assert_eq!(seen, [0, 1, 0, 1, 2, 0]);

        let told = counters.count_probes(Duration::ZERO, 100 * SECOND, 4);
        let dropped = counters.count_probes(Duration::ZERO, 100 * SECOND, 4);
        let waits = counters.count_probes(100 * SECOND, SECOND, 4);
        counters.count_standing();
        assert_eq!(counters.probes.get(), 2);
        told.end(3);
        drop(dropped);
        drop(waits);
        counters.count_standing();
        assert_eq!(counters.probes.get(), 4);
        assert!(counters.standing().all.is_empty());
    }
}
