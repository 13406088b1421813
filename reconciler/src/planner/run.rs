//! Bringing a pod up and keeping it up: sandbox, init containers, sidecars, main containers.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::backoff::{after, crash_delay};
use crate::node::{ContainerRecord, ContainerState, Hook, Sandbox, StartContainer};
use crate::planner::action::{Action, Key, Note, Plan, StopCause};
use crate::planner::context::{Context, Role, exit_of, init_role, post_start};
use crate::planner::memory::PostStart;
use crate::planner::{image, probe, resize, stop};

/// Plans a pod that is to run.
pub(crate) fn run(ctx: &Context<'_>, plan: &mut Plan) {
    if ctx.is_busy(&Key::Pod) || ctx.observed.sandbox == Sandbox::Dead && any_instance_busy(ctx) {
        return prefetch(ctx, plan);
    }
    match ctx.observed.sandbox {
        Sandbox::Ready { .. } => {
            stop::kill_strays(ctx, plan);
            resize::allocate(ctx, plan);
            if !stop::end_round(ctx, plan) {
                containers(ctx, plan);
            }
        }
        Sandbox::Absent | Sandbox::Dead => {
            sandbox(ctx, plan);
            prefetch(ctx, plan);
        }
    }
}

fn any_instance_busy(ctx: &Context<'_>) -> bool {
    ctx.memory.in_flight.iter().any(|key| matches!(key, Key::Instance(_)))
}

fn sandbox(ctx: &Context<'_>, plan: &mut Plan) {
    if ctx.observed.sandbox == Sandbox::Dead && !ctx.memory.sandbox_change_noted {
        plan.push(Action::Note(Note::SandboxChanged));
    }
    match &ctx.memory.sandbox {
        Some(failed) if ctx.now < failed.due => plan.wake(failed.due),
        _ => plan.push(Action::CreateSandbox),
    }
}

/// While there is no sandbox, the images of the containers that come first are made present.
fn prefetch(ctx: &Context<'_>, plan: &mut Plan) {
    let first = match ctx.inits() {
        [] => ctx.mains(),
        [first, ..] => std::slice::from_ref(first),
    };
    for container in first {
        let again = ctx.newest(&container.name).is_some();
        if !again {
            image::ensure(ctx, plan, container);
        }
    }
}

fn containers(ctx: &Context<'_>, plan: &mut Plan) {
    for container in ctx.pod.ephemeral() {
        keep(ctx, plan, container, Role::Ephemeral, false);
    }
    let (inits, mains) = (ctx.inits(), ctx.mains());
    let initialised = mains.iter().any(|c| ctx.current(&c.name).is_some());
    let last = inits.iter().rposition(|c| ctx.current(&c.name).is_some());
    // How many init containers are to be looked after: those that have begun, and the next if the last is through.
    let begun = match last {
        _ if initialised => inits.len(),
        None => 0,
        Some(last) => last + 1,
    };
    let through = initialised || last.is_none_or(|last| init_through(ctx, &inits[last]));
    for (index, container) in inits[..begun].iter().enumerate() {
        let role = init_role(container);
        let at_work = !initialised && index + 1 == begun && !through;
        if role == Role::Sidecar || at_work {
            keep(ctx, plan, container, role, false);
        }
    }
    match inits.get(begun) {
        Some(next) if through => {
            keep(ctx, plan, next, init_role(next), false);
        }
        None if through => {
            // As in a kubelet, a main container whose postStart hook has not finished holds up those after it.
            let mut held = false;
            for container in mains {
                held |= keep(ctx, plan, container, Role::Main, held) == Progress::Holding;
            }
        }
        _ => {}
    }
}

/// Whether the init container that began last lets the next one begin.
fn init_through(ctx: &Context<'_>, container: &v1::Container) -> bool {
    match init_role(container) {
        Role::Sidecar => ctx.started(container),
        _ => ctx.current(&container.name).and_then(exit_of).is_some_and(|exit| exit.code == 0),
    }
}

/// What a container means for those after it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Free,
    Holding,
}

/// Starts a container, watches it, or starts it again. `held`: it must not start yet.
fn keep(ctx: &Context<'_>, plan: &mut Plan, container: &v1::Container, role: Role, held: bool) -> Progress {
    let holding = if post_start(container).is_some() { Progress::Holding } else { Progress::Free };
    if ctx.instance_busy(&container.name) {
        return holding;
    }
    match ctx.newest(&container.name) {
        Some(record) if record.state == ContainerState::Created => {
            if let Some(due) = create_retry(ctx, container) {
                plan.wake(due);
                return Progress::Free;
            }
            let (container, id) = (record.name.clone(), record.id.clone());
            plan.push(Action::RemoveContainer { container, id });
            holding
        }
        Some(record) if ctx.live(&container.name).is_some() => {
            watch(ctx, plan, container, role, record);
            if ctx.post_start_done(container, record) { Progress::Free } else { holding }
        }
        // Still shown as running although it belongs to a sandbox that is gone: wait for the truth.
        Some(record) if exit_of(record).is_none() => Progress::Free,
        newest => {
            if start(ctx, plan, container, role, newest, held) {
                holding
            } else {
                Progress::Free
            }
        }
    }
}

/// Looks after a running instance: hook, probes, changes of the spec.
fn watch(
    ctx: &Context<'_>,
    plan: &mut Plan,
    container: &v1::Container,
    role: Role,
    record: &ContainerRecord,
) {
    let instance = ctx.memory.instance(&record.name, &record.id);
    if let Some(stopping) = instance.and_then(|instance| instance.stopping.as_ref()) {
        let grace = stop::own_grace(ctx, container, stopping);
        stop::step(ctx, plan, container, record, stopping, grace, true);
        return probe::schedule(ctx, plan, container, record, true);
    }
    let hook = instance.map_or(PostStart::Pending, |instance| instance.post_start);
    let can_change = matches!(role, Role::Sidecar | Role::Main);
    let cause = if can_change && record.spec_hash != ctx.pod.hash_of(&container.name) {
        Some(StopCause::SpecChanged)
    } else if resize::needs_restart(ctx, container, record) {
        Some(StopCause::Resized)
    } else if hook == PostStart::Failed {
        Some(StopCause::PostStartFailed)
    } else {
        probe::verdict(container, instance).map(StopCause::Probe)
    };
    if let Some(cause) = cause {
        let restart = matches!(cause, StopCause::SpecChanged | StopCause::Resized)
            || super::restart::should_restart(ctx.pod, container, role, super::restart::KILLED);
        let (container, id) = (record.name.clone(), record.id.clone());
        return plan.push(Action::Note(Note::Stopping { container, id, cause, restart }));
    }
    resize::actuate(ctx, plan, container, record);
    if !ctx.post_start_done(container, record) {
        if !ctx.hook_busy(&record.name, Hook::PostStart) {
            let (container, id) = (record.name.clone(), record.id.clone());
            plan.push(Action::RunHook { container, id, hook: Hook::PostStart });
        }
        return;
    }
    probe::schedule(ctx, plan, container, record, false);
}

/// Starts an instance when nothing stands against it any more. Returns whether that is under way.
fn start(
    ctx: &Context<'_>,
    plan: &mut Plan,
    container: &v1::Container,
    role: Role,
    newest: Option<&ContainerRecord>,
    held: bool,
) -> bool {
    let (mut attempt, mut delay) = (0, None);
    if let Some((record, exit)) = newest.and_then(|record| Some((record, exit_of(record)?))) {
        let of_old_sandbox = ctx.current(&container.name).is_none();
        let before_mains = matches!(role, Role::Init | Role::Sidecar);
        let runs_again = of_old_sandbox && before_mains || ctx.restarts(container, role, record, exit);
        if !runs_again {
            return false;
        }
        attempt = record.attempt.saturating_add(1);
        if let Some((_, due)) = crash_wait(ctx, container, record) {
            note_backing_off(ctx, plan, record);
            plan.wake(due);
            return false;
        }
        if same_as_before(ctx, container, record) {
            delay = Some(crash_delay(record, ctx.memory.limits.max_restart_period));
        }
    }
    if let Some(due) = create_retry(ctx, container) {
        plan.wake(due);
        return false;
    }
    if !image::ensure(ctx, plan, container) {
        return ctx.image_busy(&container.name) || image::wanted_now(plan, container);
    }
    if !held && !ctx.observed.paused && !resize::is_asking(ctx, plan) {
        plan.push(Action::StartContainer(StartContainer {
            name: container.name.clone(),
            attempt,
            delay,
            spec_hash: ctx.pod.hash_of(&container.name).to_owned(),
            resources: resize::allocated(ctx, container).clone(),
            round: ctx.round,
        }));
    }
    true
}

/// Until when a failed creation is not tried again.
fn create_retry(ctx: &Context<'_>, container: &v1::Container) -> Option<Timestamp> {
    let failed = ctx.memory.container(&container.name)?.create.as_ref()?;
    (ctx.now < failed.due).then_some(failed.due)
}

/// The CrashLoopBackOff that stands before the instance after `record`: its length and its end. A container whose spec
/// or resources were changed is started at once; so is one that seems to have ended in the future, because the clock was
/// set back since and nobody knows how long ago it was.
pub(crate) fn crash_wait(
    ctx: &Context<'_>,
    container: &v1::Container,
    record: &ContainerRecord,
) -> Option<(Duration, Timestamp)> {
    let exit = exit_of(record)?;
    let delay = crash_delay(record, ctx.memory.limits.max_restart_period);
    let due = after(exit.finished_at, delay);
    let set_back = ctx.now < exit.finished_at && after(ctx.now, delay * 2) < due;
    (ctx.now < due && !set_back && same_as_before(ctx, container, record)).then_some((delay, due))
}

/// Whether the next instance is to be what `record` was: only then is there a back-off between them.
fn same_as_before(ctx: &Context<'_>, container: &v1::Container, record: &ContainerRecord) -> bool {
    record.spec_hash == ctx.pod.hash_of(&container.name) && !resize::is_stale(ctx, container, record)
}

fn note_backing_off(ctx: &Context<'_>, plan: &mut Plan, record: &ContainerRecord) {
    let noted = ctx.memory.container(&record.name).and_then(|memory| memory.backoff_noted.as_deref());
    if noted != Some(record.id.as_str()) {
        let (container, id) = (record.name.clone(), record.id.clone());
        plan.push(Action::Note(Note::BackingOff { container, id }));
    }
}
