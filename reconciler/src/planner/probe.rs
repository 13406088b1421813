//! When to probe, and what the results mean.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::backoff::after;
use crate::node::{ContainerRecord, ContainerState};
use crate::planner::action::{Action, Plan, ProbeKind};
use crate::planner::context::Context;
use crate::planner::memory::InstanceMemory;
use crate::pod::Pod;

/// A container's probe of that kind.
pub(crate) fn spec(container: &v1::Container, kind: ProbeKind) -> Option<&v1::Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
    }
}

/// The same by the container's name.
pub fn spec_of<'a>(pod: &'a Pod, container: &str, kind: ProbeKind) -> Option<&'a v1::Probe> {
    pod.container(container).and_then(|container| spec(container, kind))
}

/// How long after its last beginning a probe is made again.
pub fn period(probe: &v1::Probe) -> Duration {
    seconds(probe.period_seconds.filter(|v| *v > 0), 10)
}

/// The probe that found a running instance failed for good, if one did.
pub(crate) fn verdict(container: &v1::Container, instance: Option<&InstanceMemory>) -> Option<ProbeKind> {
    let instance = instance?;
    [ProbeKind::Startup, ProbeKind::Liveness]
        .into_iter()
        .find(|kind| spec(container, *kind).is_some() && instance.probe(*kind).result == Some(false))
}

/// Plans the probes that are due and wakes for the next. Liveness and readiness wait for startup, all wait for the
/// `postStart` hook; an instance on its way out is only probed for readiness. A paused pod is not probed at all. What seems
/// to have started in the future did so before the clock was set back.
pub(crate) fn schedule(
    ctx: &Context<'_>,
    plan: &mut Plan,
    container: &v1::Container,
    record: &ContainerRecord,
    stopping: bool,
) {
    let ContainerState::Running { started_at } = record.state else { return };
    if ctx.observed.paused || !ctx.post_start_done(container, record) {
        return;
    }
    let started_at = if started_at > ctx.now { Timestamp::MIN } else { started_at };
    let instance = ctx.memory.instance(&record.name, &record.id);
    let started = ctx.has_started(container, record);
    for kind in ProbeKind::ALL {
        let Some(probe) = spec(container, kind) else { continue };
        let wanted = match kind {
            ProbeKind::Startup => !started && !stopping,
            ProbeKind::Liveness => started && !stopping,
            ProbeKind::Readiness => started,
        };
        if !wanted || ctx.probe_busy(&record.name, kind) {
            continue;
        }
        let last = instance.and_then(|i| i.probe(kind).last_begun);
        let due = due(probe, started_at, instance.and_then(|i| i.taken_over), last);
        if ctx.now < due {
            plan.wake(due);
        } else {
            plan.push(Action::Probe { container: record.name.clone(), id: record.id.clone(), kind });
        }
    }
}

fn due(
    probe: &v1::Probe,
    started_at: Timestamp,
    taken_over: Option<Timestamp>,
    last: Option<Timestamp>,
) -> Timestamp {
    let first = after(started_at, seconds(probe.initial_delay_seconds, 0));
    match (last, taken_over) {
        (Some(last), _) => again(probe, last),
        (None, Some(at)) if first < at => one_from(first, at, period(probe)),
        (None, _) => first,
    }
}

/// The first one from `at` on of what is due at `first` and after each period. An agent that takes over does not know when an earlier one
/// probed last; if it probed all at once, as soon as it is there, all would be due together from then on. A kubelet waits for a random
/// part of the period.
fn one_from(first: Timestamp, at: Timestamp, period: Duration) -> Timestamp {
    let period = i64::try_from(period.as_millis()).unwrap_or(i64::MAX).max(1);
    let into = (at.as_millisecond() - first.as_millisecond()).rem_euclid(period);
    let wait = if into == 0 { 0 } else { period - into };
    after(at, Duration::from_millis(wait.unsigned_abs()))
}

/// When a probe that was begun then is due again: after its period, or up to a quarter of that sooner, on a beat that all probes of the
/// node keep. One that is late once does not shift those that follow, and what is probed together costs a third less than one by one:
/// the processors are awake, and their caches know the way.
pub(crate) fn again(probe: &v1::Probe, begun: Timestamp) -> Timestamp {
    let period = period(probe);
    let due = after(begun, period);
    let ms = due.as_millisecond();
    Timestamp::from_millisecond(ms - ms.rem_euclid(beat(period))).unwrap_or(due)
}

/// Milliseconds between the beats of probes with that period. Slower ones fall on those of faster ones; still slower would be noticed,
/// and has little left to save.
fn beat(period: Duration) -> i64 {
    match period.as_secs() {
        0 | 1 => 250,
        2 | 3 => 500,
        _ => 1000,
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn every(seconds: i32) -> v1::Probe {
        v1::Probe { period_seconds: Some(seconds), ..v1::Probe::default() }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn a_probe_that_is_late_once_does_not_shift_those_that_follow() {
        let probe = every(4);
        let mut due = again(&probe, at(10_300));
        assert_eq!(due, at(14_000));
        for (late, next) in [(2, 18_000), (700, 22_000), (0, 26_000), (999, 30_000)] {
            due = again(&probe, due + jiff::SignedDuration::from_millis(late));
            assert_eq!(due, at(next));
        }
    }

    #[test]
    fn who_takes_over_goes_on_when_it_would_have_been_due() {
        let probe = v1::Probe { initial_delay_seconds: Some(3), ..every(10) };
        let due = |taken_over, last| due(&probe, at(1_500), taken_over, last);
        assert_eq!(due(None, None), at(4_500));
        for (taken_over, first) in [
            (2_000, 4_500),
            (4_500, 4_500),
            (4_501, 14_500),
            (14_499, 14_500),
            (14_500, 14_500),
            (90_000, 94_500),
        ] {
            assert_eq!(due(Some(at(taken_over)), None), at(first), "{taken_over}");
        }
        assert_eq!(due(Some(at(90_000)), Some(at(94_500))), at(104_000));
        assert!(one_from(Timestamp::MIN, at(0), Duration::from_secs(7)) >= at(0));
    }

    #[test]
    fn probes_keep_their_period_but_for_a_beat_that_all_have() {
        for seconds in [1_i32, 2, 3, 4, 5, 10, 60, 86_400] {
            let (period, beat) =
                (i64::from(seconds) * 1000, beat(Duration::from_secs(seconds.unsigned_abs().into())));
            assert!(beat * 4 <= period && 1000 % beat == 0, "{seconds}");
            for begun in (0..5_000).map(|n| n * 7_919) {
                let due = again(&every(seconds), at(begun)).as_millisecond();
                assert!(
                    due <= begun + period && due > begun + period - beat && due % beat == 0,
                    "{seconds} {begun}"
                );
            }
        }
    }
}
