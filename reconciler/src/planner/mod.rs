//! The planner: a pure function from what should be and what is to the next steps. No clock, no I/O, nothing async.
//!
//! [`plan`] decides. `context` holds the snapshot and the questions asked of it, `end` says whether the pod has come to
//! its end, `run` brings it up and keeps it up, `resize` changes resources in place, `image` and `probe` plan pulls and probes, `stop` takes instances
//! down, `restart` knows the policies. A [`Memory`] holds what cannot be observed; [`Memory::begin`] and
//! [`Memory::finish`] change it, for the worker and for the simulator alike.

mod action;
mod context;
mod end;
mod hash;
mod image;
mod memory;
mod probe;
mod resize;
mod restart;
mod run;
mod stop;
mod transition;

use std::time::Duration;

use jiff::Timestamp;

pub use self::action::{Action, Key, Note, Plan, ProbeKind, StopCause};
pub(crate) use self::context::{Context, Role, exit_of, is_running};
pub(crate) use self::end::end_of;
pub use self::hash::spec_hash;
pub(crate) use self::image::{backing_off_from as pull_backing_off_from, failure as pull_failure};
pub use self::memory::{Limits, Memory};
pub use self::probe::{period as probe_period, spec_of as probe_of};
pub(crate) use self::resize::{Progress as ResizeProgress, allocated, progress as resize_progress};
pub(crate) use self::run::crash_wait;
use self::stop::Grace;
pub use self::transition::Outcome;
pub(crate) use self::transition::pod_label;
use crate::backoff::{Failed, after};
use crate::node::{Deletion, Observation, Sandbox};
use crate::pod::Pod;

/// The next steps of a pod. Asking again without any change gives the same plan.
pub fn plan(
    pod: &Pod,
    deletion: Option<&Deletion>,
    observed: &Observation,
    memory: &Memory,
    now: Timestamp,
) -> Plan {
    let ctx = Context::new(pod, deletion, observed, memory, now);
    let mut plan = Plan::default();
    if memory.removed {
        return plan;
    }
    if let Some(deletion) = deletion {
        delete(&ctx, &mut plan, deletion);
    } else if let Some(end) = end_of(&ctx) {
        finish(&ctx, &mut plan, &end);
    } else {
        if let Some(deadline) = end::deadline_of(&ctx) {
            plan.wake(deadline);
        }
        run::run(&ctx, &mut plan);
    }
    plan
}

/// Stops everything, then removes it.
fn delete(ctx: &Context<'_>, plan: &mut Plan, deletion: &Deletion) {
    drop_pulls(ctx, plan);
    let grace = Duration::from_secs(deletion.grace_seconds);
    let begun = ctx.memory.deleting_since.unwrap_or(deletion.requested_at);
    let (deadline, force) = (after(begun, grace), deletion.grace_seconds == 0);
    let running = stop::stop_all(ctx, plan, |_, own| match own {
        None => Grace { deadline, force },
        Some(own) => Grace { deadline: deadline.min(own.deadline), force: force || own.force },
    });
    if !running && !teardown_blocked(ctx) {
        retry(ctx, plan, ctx.memory.remove_pod.as_ref(), Action::RemovePod);
    }
}

/// Stops what still runs of a pod that has come to its end, then its sandbox; its records stay.
fn finish(ctx: &Context<'_>, plan: &mut Plan, end: &end::End) {
    drop_pulls(ctx, plan);
    let exceeded = end.why.as_ref().is_some_and(|(reason, _)| reason == end::DEADLINE_EXCEEDED);
    if exceeded && !ctx.memory.deadline_noted && ctx.memory.ended.is_none() {
        plan.push(Action::Note(Note::DeadlineExceeded));
    }
    // Whoever learns late of the end (the agent was away, a deadline was moved) grants the whole period all the same.
    let running = stop::stop_all(ctx, plan, |stopping, own| {
        let grace = end::grace_of(ctx, end);
        match own {
            None => Grace { deadline: after(stopping.since, grace), force: false },
            Some(own) if end.is_eviction() => {
                let ends = after(end.since.max(stopping.since), grace);
                Grace { deadline: own.deadline.min(ends), force: own.force }
            }
            Some(own) => own,
        }
    });
    if !running && !teardown_blocked(ctx) && ctx.observed.sandbox != Sandbox::Absent {
        retry(ctx, plan, ctx.memory.stop_sandbox.as_ref(), Action::StopSandbox);
    }
}

/// Whether a step is under way that teardown must not overtake.
fn teardown_blocked(ctx: &Context<'_>) -> bool {
    ctx.memory
        .in_flight
        .iter()
        .any(|key| matches!(key, Key::Pod | Key::Instance(_) | Key::Stop(_) | Key::Resources))
}

fn drop_pulls(ctx: &Context<'_>, plan: &mut Plan) {
    for key in &ctx.memory.in_flight {
        if let Key::Image(container) = key {
            plan.push(Action::DropPull { container: container.clone() });
        }
    }
}

fn retry(ctx: &Context<'_>, plan: &mut Plan, failed: Option<&Failed>, action: Action) {
    match failed {
        Some(failed) if ctx.now < failed.due => plan.wake(failed.due),
        _ => plan.push(action),
    }
}
