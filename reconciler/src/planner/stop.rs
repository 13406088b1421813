//! Stopping instances: `preStop`, stop signal, grace period, KILL.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::backoff::after;
use crate::node::{ContainerRecord, Hook, StopSignal};
use crate::planner::action::{Action, Note, Plan, StopCause};
use crate::planner::context::{Context, Role, pre_stop};
use crate::planner::memory::Stopping;
use crate::planner::probe;

/// What is left to a process after its `preStop` hook has used up the grace period, as in a kubelet.
const MIN_GRACE: Duration = Duration::from_secs(2);
/// KILL is repeated after this long, then at doubled distances: a process in an uninterruptible sleep dies late.
const KILL_AGAIN: Duration = Duration::from_secs(5);
/// An instance that lives this long after its stop signal is named in an event.
const SLOW: Duration = Duration::from_secs(5);

/// Until when an instance may take its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grace {
    /// End of the grace period.
    pub deadline: Timestamp,
    /// KILL without asking first.
    pub force: bool,
}

/// The grace period of an instance that is stopped while its pod goes on.
pub(crate) fn own_grace(ctx: &Context<'_>, container: &v1::Container, stopping: &Stopping) -> Grace {
    let seconds = match stopping.cause {
        StopCause::Probe(kind) => {
            probe::spec(container, kind).and_then(|p| p.termination_grace_period_seconds)
        }
        StopCause::PodEnds
        | StopCause::SpecChanged
        | StopCause::Resized
        | StopCause::AllRestart
        | StopCause::PostStartFailed => None,
    };
    let seconds = u64::try_from(seconds.unwrap_or_else(|| ctx.pod_grace())).unwrap_or(0);
    Grace { deadline: after(stopping.since, Duration::from_secs(seconds)), force: seconds == 0 }
}

/// The next step of an instance that is being stopped. `turn`: no other instance has to go before it.
pub(crate) fn step(
    ctx: &Context<'_>,
    plan: &mut Plan,
    container: &v1::Container,
    record: &ContainerRecord,
    stopping: &Stopping,
    grace: Grace,
    turn: bool,
) {
    if let Some(last) = stopping.kill_at {
        let distance = KILL_AGAIN * 2u32.pow(stopping.kills.saturating_sub(1).min(4));
        return signal_at(ctx, plan, record, StopSignal::Kill, after(last, distance));
    }
    if grace.force {
        return signal_at(ctx, plan, record, StopSignal::Kill, ctx.now);
    }
    if let Some(sent) = stopping.term_at {
        let kill = grace.deadline.max(after(sent, MIN_GRACE));
        note_slow(ctx, plan, record, stopping, sent, kill);
        return signal_at(ctx, plan, record, StopSignal::Kill, kill);
    }
    // Whoever has all containers restarted has no time for hooks, says Kubernetes.
    let hook = pre_stop(container).filter(|_| stopping.cause != StopCause::AllRestart);
    if hook.is_some() && ctx.now < grace.deadline {
        if !stopping.pre_stop_begun {
            let (container, id) = (record.name.clone(), record.id.clone());
            plan.push(Action::RunHook { container, id, hook: Hook::PreStop });
        }
        if !stopping.pre_stop_begun || ctx.hook_busy(&record.name, Hook::PreStop) {
            return plan.wake(grace.deadline);
        }
    }
    if !turn && ctx.now < grace.deadline {
        return plan.wake(grace.deadline);
    }
    signal_at(ctx, plan, record, StopSignal::Stop, ctx.now);
}

fn signal_at(
    ctx: &Context<'_>,
    plan: &mut Plan,
    record: &ContainerRecord,
    signal: StopSignal,
    at: Timestamp,
) {
    if ctx.now < at {
        plan.wake(at);
    } else if !ctx.stop_busy(&record.name) {
        plan.push(Action::StopContainer { container: record.name.clone(), id: record.id.clone(), signal });
    }
}

/// Names an instance that ignores its stop signal, when there is still some grace period left to be annoyed about.
fn note_slow(
    ctx: &Context<'_>,
    plan: &mut Plan,
    record: &ContainerRecord,
    stopping: &Stopping,
    sent: Timestamp,
    kill: Timestamp,
) {
    let slow = after(sent, SLOW);
    if stopping.slow_noted || slow >= kill || ctx.now >= kill {
        return;
    }
    if ctx.now < slow {
        return plan.wake(slow);
    }
    plan.push(Action::Note(Note::StoppingSlowly {
        container: record.name.clone(),
        id: record.id.clone(),
        waited: ctx.now.duration_since(sent).as_secs(),
        left: kill.duration_since(ctx.now).as_secs(),
    }));
}

/// Stops everything that runs: main containers (and init containers) at once, sidecars after them in reverse order.
/// Readiness is probed until the end. `grace` tells how long an instance has; it is given what that one had already if
/// it is being stopped for a reason of its own. Returns whether something still runs.
pub(crate) fn stop_all(
    ctx: &Context<'_>,
    plan: &mut Plan,
    grace: impl Fn(&Stopping, Option<Grace>) -> Grace,
) -> bool {
    let containers: Vec<_> = ctx.containers().collect();
    let mut running = kill_strays(ctx, plan);
    for (index, (container, role)) in containers.iter().enumerate() {
        let Some(record) = ctx.live(&container.name) else { continue };
        running = true;
        let holds = |(other, role): &(&v1::Container, Role)| {
            *role != Role::Ephemeral && (ctx.live(&other.name).is_some() || ctx.instance_busy(&other.name))
        };
        let Some(stopping) = ctx.memory.instance(&record.name, &record.id).and_then(|i| i.stopping.as_ref())
        else {
            let (container, id) = (record.name.clone(), record.id.clone());
            plan.push(Action::Note(Note::Stopping {
                container,
                id,
                cause: StopCause::PodEnds,
                restart: false,
            }));
            continue;
        };
        let own = (stopping.cause != StopCause::PodEnds).then(|| own_grace(ctx, container, stopping));
        let grace = grace(stopping, own);
        let turn = *role != Role::Sidecar
            || stopping.cause != StopCause::PodEnds
            || !containers[index + 1..].iter().any(holds);
        step(ctx, plan, container, record, stopping, grace, turn);
        probe::schedule(ctx, plan, container, record, true);
    }
    running
}

/// Stops what still runs from before a restart of all containers. Returns whether there is any.
pub(crate) fn end_round(ctx: &Context<'_>, plan: &mut Plan) -> bool {
    let mut any = false;
    for (container, role) in ctx.containers() {
        let Some(record) = ctx.live(&container.name).filter(|record| ctx.overtaken(record)) else { continue };
        any = true;
        match ctx.memory.instance(&record.name, &record.id).and_then(|i| i.stopping.as_ref()) {
            Some(stopping) => {
                let grace = own_grace(ctx, container, stopping);
                step(ctx, plan, container, record, stopping, grace, true);
            }
            None => plan.push(Action::Note(Note::Stopping {
                container: record.name.clone(),
                id: record.id.clone(),
                cause: StopCause::AllRestart,
                restart: role != Role::Ephemeral,
            })),
        }
    }
    any
}

/// Kills instances that nobody wants. Returns whether there are any.
pub(crate) fn kill_strays(ctx: &Context<'_>, plan: &mut Plan) -> bool {
    let mut any = false;
    for record in ctx.strays() {
        any = true;
        let last = ctx.memory.strays.get(&record.id);
        let due = last.map_or(ctx.now, |last| after(*last, KILL_AGAIN));
        signal_at(ctx, plan, record, StopSignal::Kill, due);
    }
    any
}
