//! When to probe, and what the results mean.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::backoff::after;
use crate::node::{ContainerRecord, ContainerState};
use crate::planner::action::{Action, Plan, ProbeKind};
use crate::planner::context::Context;
use crate::planner::memory::InstanceMemory;

/// A container's probe of that kind.
pub(crate) fn spec(container: &v1::Container, kind: ProbeKind) -> Option<&v1::Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
    }
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
        let due = due(probe, started_at, instance.and_then(|i| i.probe(kind).last_begun));
        if ctx.now < due {
            plan.wake(due);
        } else {
            plan.push(Action::Probe { container: record.name.clone(), id: record.id.clone(), kind });
        }
    }
}

fn due(probe: &v1::Probe, started_at: Timestamp, last: Option<Timestamp>) -> Timestamp {
    match last {
        None => after(started_at, seconds(probe.initial_delay_seconds, 0)),
        Some(last) => again(probe, last),
    }
}

/// When a probe that was begun then is due again.
pub(crate) fn again(probe: &v1::Probe, begun: Timestamp) -> Timestamp {
    after(begun, seconds(probe.period_seconds.filter(|v| *v > 0), 10))
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}
