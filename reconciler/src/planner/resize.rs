//! Changing cpu and memory of a running pod, as a kubelet's in-place resize does: first the node must be able to give what
//! the spec asks for (allocation), then each running container is brought to it (actuation).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::backoff::{Backoff, Failed};
use crate::node::{ContainerRecord, Failure, PodEvent};
use crate::planner::action::{Action, Key, Plan};
use crate::planner::context::{Context, Role};
use crate::planner::memory::Memory;
use crate::planner::transition::{normal, warning};
use crate::pod::Pod;
use crate::resources::amount;

/// What can be changed in place.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];
const NOTHING: &v1::ResourceRequirements =
    &v1::ResourceRequirements { claims: None, limits: None, requests: None };

/// The resources that a pod's containers ask for.
pub(crate) type Wanted = BTreeMap<String, v1::ResourceRequirements>;

/// How far a resize has come, for the pod's conditions.
pub(crate) enum Progress<'a> {
    /// The node cannot give it (now, or ever): why.
    Pending(&'a Failed),
    /// Running containers are being brought to it; with what stands against it.
    InProgress(Option<&'a Failed>),
}

fn wanted(pod: &Pod) -> Wanted {
    pod.all_containers().map(|c| (c.name.clone(), desired(c).clone())).collect()
}

fn desired(container: &v1::Container) -> &v1::ResourceRequirements {
    container.resources.as_ref().unwrap_or(NOTHING)
}

/// Whether cpu or memory differ between the two, by value and not by spelling.
fn differs(a: &v1::ResourceRequirements, b: &v1::ResourceRequirements) -> bool {
    a != b && RESIZABLE.iter().any(|name| differs_in(a, b, name))
}

fn differs_in(a: &v1::ResourceRequirements, b: &v1::ResourceRequirements, name: &str) -> bool {
    amount(a.limits.as_ref(), name) != amount(b.limits.as_ref(), name)
        || amount(a.requests.as_ref(), name) != amount(b.requests.as_ref(), name)
}

/// The resources that a container may have now: those of the last resize that the node has granted, else those that it
/// was started with, else those that it asks for.
pub(crate) fn allocated<'a>(ctx: &Context<'a>, container: &'a v1::Container) -> &'a v1::ResourceRequirements {
    let granted = ctx.observed.allocated.get(&container.name);
    let started_with = || ctx.newest(&container.name)?.resources.as_ref();
    granted.or_else(started_with).unwrap_or_else(|| desired(container))
}

/// Whether an instance has other resources than it may have.
pub(crate) fn is_stale(ctx: &Context<'_>, container: &v1::Container, record: &ContainerRecord) -> bool {
    record.resources.as_ref().is_some_and(|has| differs(has, allocated(ctx, container)))
}

/// Asks the node for what the spec wants, if that is not what it has granted.
pub(crate) fn allocate(ctx: &Context<'_>, plan: &mut Plan) {
    if !is_pending(ctx) || ctx.is_busy(&Key::Resources) {
        return;
    }
    match refusal(ctx) {
        Some(failed) if ctx.now < failed.due => {
            if failed.due < Timestamp::MAX {
                plan.wake(failed.due);
            }
        }
        _ => plan.push(Action::Allocate),
    }
}

/// Whether the node is being asked just now: what is started meanwhile would have to be changed at once.
pub(crate) fn is_asking(ctx: &Context<'_>, plan: &Plan) -> bool {
    ctx.is_busy(&Key::Resources) || plan.actions.contains(&Action::Allocate)
}

fn is_pending(ctx: &Context<'_>) -> bool {
    ctx.containers().any(|(container, _)| differs(desired(container), allocated(ctx, container)))
}

/// Why the node has refused what the spec wants now.
fn refusal<'a>(ctx: &Context<'a>) -> Option<&'a Failed> {
    let (of, failed) = ctx.memory.allocate.as_ref()?;
    (*of == wanted(ctx.pod)).then_some(failed)
}

/// Whether a running instance must be started anew to get its resources.
pub(crate) fn needs_restart(ctx: &Context<'_>, container: &v1::Container, record: &ContainerRecord) -> bool {
    let Some(has) = &record.resources else { return false };
    let policies = container.resize_policy.iter().flatten();
    policies.filter(|policy| policy.restart_policy == "RestartContainer").any(|policy| {
        RESIZABLE.contains(&policy.resource_name.as_str())
            && differs_in(has, allocated(ctx, container), &policy.resource_name)
    })
}

/// Brings a running instance to the resources that it may have.
pub(crate) fn actuate(
    ctx: &Context<'_>,
    plan: &mut Plan,
    container: &v1::Container,
    record: &ContainerRecord,
) {
    if !is_stale(ctx, container, record) || ctx.is_busy(&Key::Resources) {
        return;
    }
    if let Some(failed) = failure(ctx, container).filter(|failed| ctx.now < failed.due) {
        return plan.wake(failed.due);
    }
    plan.push(Action::ResizeContainer {
        container: record.name.clone(),
        id: record.id.clone(),
        resources: allocated(ctx, container).clone(),
    });
}

fn failure<'a>(ctx: &Context<'a>, container: &v1::Container) -> Option<&'a Failed> {
    ctx.memory.container(&container.name)?.resize.as_ref()
}

/// How far a resize has come; none if there is nothing to do.
pub(crate) fn progress<'a>(ctx: &Context<'a>) -> Vec<Progress<'a>> {
    let mut found = Vec::new();
    if is_pending(ctx) {
        found.extend(refusal(ctx).map(Progress::Pending));
    }
    let changing = |(container, role): &(&'a v1::Container, Role)| {
        let live = ctx.live(&container.name);
        *role != Role::Init && live.is_some_and(|record| is_stale(ctx, container, record))
    };
    let mut changing = ctx.containers().filter(changing).peekable();
    if changing.peek().is_some() {
        found.push(Progress::InProgress(changing.find_map(|(container, _)| failure(ctx, container))));
    }
    found
}

/// What is to be told of a step that is done.
pub(crate) fn events(action: &Action) -> Option<PodEvent> {
    match action {
        Action::Allocate => Some(normal("ResizeStarted", None, "The node grants the resources asked for")),
        Action::ResizeContainer { container, resources, .. } => {
            let text = format!("Container {container} resized in place: {}", describe(resources));
            Some(normal("ResizeCompleted", Some(container), text))
        }
        _ => None,
    }
}

/// `cpu 100m/1, memory -/64Mi`: request and limit.
fn describe(resources: &v1::ResourceRequirements) -> String {
    let of = |list: Option<&BTreeMap<String, _>>, name: &str| {
        amount(list, name).map_or_else(|| "-".to_owned(), |quantity| quantity.to_api().0)
    };
    let one = |name: &&str| {
        format!("{name} {}/{}", of(resources.requests.as_ref(), name), of(resources.limits.as_ref(), name))
    };
    format!("{} (request/limit)", RESIZABLE.iter().map(one).collect::<Vec<_>>().join(", "))
}

impl Memory {
    /// The node is being asked for what the pod wants now.
    pub(super) fn allocating(&mut self, pod: &Pod) {
        self.allocating = Some(wanted(pod));
    }

    /// The node has refused. What it can never give is not asked for again until the spec changes.
    pub(super) fn not_allocated(&mut self, pod: &Pod, failure: &Failure, now: Timestamp) -> Option<PodEvent> {
        // The pod may want something else by now.
        let wanted = self.allocating.take().unwrap_or_else(|| wanted(pod));
        let previous = self.allocate.take().filter(|(of, _)| *of == wanted).map(|(_, failed)| failed);
        let known = previous.as_ref().is_some_and(|failed| failed.failure == *failure);
        let mut failed = Failed::again(previous.as_ref(), failure.clone(), Backoff::RETRY, now);
        let reason = match failure.reason.as_str() {
            "Infeasible" => {
                failed.due = Timestamp::MAX;
                "ResizeInfeasible"
            }
            "Deferred" => "ResizeDeferred",
            _ => "ResizeError",
        };
        self.allocate = Some((wanted, failed));
        (!known).then(|| warning(reason, None, failure.message.as_str()))
    }
}
