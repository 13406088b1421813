//! How long to wait before trying again. Pure arithmetic; who waits is the planner's caller.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::node::{ContainerRecord, ContainerState, Failure};

/// First real delay of CrashLoopBackOff.
const CRASH_INITIAL: Duration = Duration::from_secs(10);
/// A container that has run this long starts its back-off anew.
const CRASH_RESET: Duration = Duration::from_secs(600);

/// An exponential back-off: first delay and cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// First delay.
    pub initial: Duration,
    /// Longest delay.
    pub max: Duration,
}

impl Backoff {
    /// Image pulls, as a kubelet: 10 s doubling to 300 s.
    pub const PULL: Backoff = Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(300) };
    /// Sandboxes, container creation and teardown: 1 s doubling to 60 s.
    pub const RETRY: Backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60) };

    /// The delay that follows `previous`.
    pub fn next(self, previous: Option<Duration>) -> Duration {
        previous.map_or(self.initial, |delay| (delay * 2).max(self.initial)).min(self.max)
    }
}

/// A step that failed and the earliest time to take it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong.
    pub failure: Failure,
    /// When.
    pub at: Timestamp,
    /// The delay that is being waited.
    pub delay: Duration,
    /// When to try again; earlier than `at + delay` once something the step waits for has changed.
    pub due: Timestamp,
}

impl Failed {
    /// Records one more failure after `previous`.
    pub fn again(previous: Option<&Failed>, failure: Failure, backoff: Backoff, now: Timestamp) -> Failed {
        let delay = backoff.next(previous.map(|failed| failed.delay));
        Failed { failure, at: now, delay, due: after(now, delay) }
    }
}

/// `time + delay`, without overflow.
pub fn after(time: Timestamp, delay: Duration) -> Timestamp {
    SignedDuration::try_from(delay)
        .ok()
        .and_then(|delay| time.checked_add(delay).ok())
        .unwrap_or(Timestamp::MAX)
}

/// The delay to wait, counted from its end, before the instance after `record` is started: the first restart is at
/// once, then 10 s doubling to `max`. An instance that ran for 600 s starts the sequence anew.
///
/// It follows from what is recorded with the instance, so it survives the agent.
pub fn crash_delay(record: &ContainerRecord, max: Duration) -> Duration {
    let ContainerState::Exited(exit) = &record.state else { return Duration::ZERO };
    let ran =
        exit.started_at.map_or(SignedDuration::ZERO, |started| exit.finished_at.duration_since(started));
    if ran >= SignedDuration::try_from(CRASH_RESET).unwrap_or(SignedDuration::MAX) {
        return Duration::ZERO;
    }
    match record.delay {
        None => Duration::ZERO,
        Some(delay) => Backoff { initial: CRASH_INITIAL, max }.next(Some(delay)),
    }
}
