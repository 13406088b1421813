//! Conditions, with kubelet's reasons and messages (`pkg/kubelet/status/generate.go`).

use k8s_openapi::api::core::v1;

use super::container::Statuses;
use super::time;
use crate::backoff::Failed;
use crate::node::Sandbox;
use crate::planner::{Context, Key, ResizeProgress, Role, resize_progress};

const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// There, and true, only while the pod is paused.
pub const PAUSED: &str = "berth.dev/Paused";

/// There, and true, once the node has decided to end the pod.
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// There, and true, while the node does not give a pod the resources that it asks for.
const RESIZE_PENDING: &str = "PodResizePending";
/// There, and true, while running containers are brought to the resources that the node has granted.
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// There, and true, while an exit has all containers of the pod restarted (KEP-5532).
const ALL_RESTARTING: &str = "AllContainersRestarting";
/// What is there only while it is true.
const PASSING: [&str; 4] = [PAUSED, RESIZE_PENDING, RESIZE_IN_PROGRESS, ALL_RESTARTING];

/// Whether the node itself says what a condition of that type is; all others somebody else says, and the node keeps them.
pub fn is_own_condition(type_: &str) -> bool {
    OWN.contains(&type_) || PASSING.contains(&type_) || type_ == DISRUPTION_TARGET
}

/// The status with other conditions of others.
pub fn with_conditions(status: &v1::PodStatus, others: &[v1::PodCondition]) -> v1::PodStatus {
    let mut status = status.clone();
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| is_own_condition(&condition.type_));
    conditions.splice(0..0, others.iter().cloned());
    status
}

/// A condition's status with its reason and message.
#[derive(Clone)]
struct Verdict {
    status: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Verdict {
    fn plain(status: bool) -> Verdict {
        Verdict { status, reason: None, message: None }
    }

    fn because(status: bool, reason: &'static str) -> Verdict {
        Verdict { status, reason: Some(reason.to_owned()), message: None }
    }
}

/// All conditions. Those of others are kept; a transition time changes with the status only.
pub(super) fn conditions(
    ctx: &Context<'_>,
    phase: &str,
    statuses: &Statuses,
    previous: Option<&v1::PodStatus>,
) -> Vec<v1::PodCondition> {
    let before = previous.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let mut conditions: Vec<_> =
        before.iter().filter(|condition| !OWN.contains(&condition.type_.as_str())).cloned().collect();
    let sandbox = matches!(ctx.observed.sandbox, Sandbox::Ready { .. }) && !ctx.is_busy(&Key::Pod);
    let containers = containers_ready(phase, statuses);
    let ready = ready(ctx, &containers, &conditions);
    let verdicts =
        [Verdict::plain(sandbox), initialized(ctx, phase, statuses), ready, containers, Verdict::plain(true)];
    for (type_, verdict) in OWN.into_iter().zip(verdicts) {
        conditions.push(condition(ctx, type_, verdict, before));
    }
    conditions.retain(|condition| !PASSING.contains(&condition.type_.as_str()));
    if !matches!(phase, "Succeeded" | "Failed") && all_restarting(ctx) {
        conditions.push(condition(ctx, ALL_RESTARTING, Verdict::because(true, "ContainerExited"), before));
    }
    for progress in resize_progress(ctx) {
        let (type_, verdict) = resizing(&progress);
        conditions.push(condition(ctx, type_, verdict, before));
    }
    let known = conditions.iter().any(|condition| condition.type_ == DISRUPTION_TARGET);
    if let Some(eviction) = ctx.observed.evicted.as_ref().filter(|_| !known) {
        let message = Some(eviction.message.clone());
        let verdict = Verdict { message, ..Verdict::because(true, "TerminationByKubelet") };
        conditions.push(condition(ctx, DISRUPTION_TARGET, verdict, before));
    }
    if ctx.observed.paused {
        let message = Some("the pod's processes are frozen; `berth resume pod` lets them go on".to_owned());
        conditions.push(condition(ctx, PAUSED, Verdict { message, ..Verdict::plain(true) }, before));
    }
    conditions
}

fn condition(
    ctx: &Context<'_>,
    type_: &str,
    verdict: Verdict,
    before: &[v1::PodCondition],
) -> v1::PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let same = before.iter().find(|condition| condition.type_ == type_ && condition.status == status);
    v1::PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason,
        message: verdict.message,
        last_transition_time: same
            .and_then(|condition| condition.last_transition_time.clone())
            .or_else(|| Some(time(ctx.now))),
        observed_generation: ctx.pod.object.metadata.generation,
        ..v1::PodCondition::default()
    }
}

/// Whether a container has not been started again since the exit that has all restarted.
fn all_restarting(ctx: &Context<'_>) -> bool {
    ctx.deletion.is_none()
        && ctx
            .containers()
            .filter(|(_, role)| *role != Role::Ephemeral)
            .any(|(container, _)| ctx.newest(&container.name).is_some_and(|newest| ctx.overtaken(newest)))
}

fn resizing(progress: &ResizeProgress<'_>) -> (&'static str, Verdict) {
    let because = |reason: &str, failed: &Failed| Verdict {
        status: true,
        reason: Some(reason.to_owned()),
        message: Some(failed.failure.message.clone()),
    };
    match progress {
        ResizeProgress::Pending(failed) => (RESIZE_PENDING, because(&failed.failure.reason, failed)),
        ResizeProgress::InProgress(Some(failed)) => (RESIZE_IN_PROGRESS, because("Error", failed)),
        ResizeProgress::InProgress(None) => (RESIZE_IN_PROGRESS, Verdict::plain(true)),
    }
}

fn containers_ready(phase: &str, statuses: &Statuses) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::because(false, "PodCompleted"),
        "Failed" => return Verdict::because(false, "PodFailed"),
        _ => {}
    }
    let sidecars = statuses.init.iter().filter(|status| statuses.sidecars.contains(&status.name));
    let unready = names(sidecars.chain(&statuses.main).filter(|status| !status.ready));
    if unready.is_empty() {
        return Verdict::plain(true);
    }
    let message = Some(format!("containers with unready status: [{unready}]"));
    Verdict { message, ..Verdict::because(false, "ContainersNotReady") }
}

fn initialized(ctx: &Context<'_>, phase: &str, statuses: &Statuses) -> Verdict {
    if phase == "Succeeded" {
        return Verdict::because(true, "PodCompleted");
    }
    let begun = |container: &v1::Container| {
        if ctx.sandbox_since().is_some() { ctx.current(&container.name) } else { ctx.newest(&container.name) }
    };
    // At the end of a pod its records go, and what was said of its containers stays.
    let ran = |status: &v1::ContainerStatus| phase == "Failed" && status.container_id.is_some();
    if ctx.mains().iter().any(|container| begun(container).is_some()) || statuses.main.iter().any(ran) {
        return Verdict::plain(true);
    }
    let incomplete = names(statuses.init.iter().filter(|status| {
        let sidecar = statuses.sidecars.contains(&status.name);
        if sidecar { status.started != Some(true) } else { !status.ready }
    }));
    if incomplete.is_empty() {
        return Verdict::plain(true);
    }
    let message = Some(format!("containers with incomplete status: [{incomplete}]"));
    Verdict { message, ..Verdict::because(false, "ContainersNotInitialized") }
}

fn ready(ctx: &Context<'_>, containers: &Verdict, others: &[v1::PodCondition]) -> Verdict {
    if !containers.status {
        return containers.clone();
    }
    let closed = ctx.pod.spec().readiness_gates.iter().flatten().filter_map(|gate| {
        let type_ = &gate.condition_type;
        match others.iter().find(|condition| condition.type_ == *type_) {
            None => {
                Some(format!("corresponding condition of pod readiness gate \"{type_}\" does not exist."))
            }
            Some(condition) if condition.status != "True" => Some(format!(
                "the status of pod readiness gate \"{type_}\" is not \"True\", but {}",
                condition.status
            )),
            Some(_) => None,
        }
    });
    let closed: Vec<String> = closed.collect();
    if closed.is_empty() {
        return Verdict::plain(true);
    }
    Verdict { message: Some(closed.join(", ")), ..Verdict::because(false, "ReadinessGatesNotReady") }
}

/// Names separated by spaces, as Go prints a list.
fn names<'a>(statuses: impl Iterator<Item = &'a v1::ContainerStatus>) -> String {
    statuses.map(|status| status.name.as_str()).collect::<Vec<_>>().join(" ")
}
