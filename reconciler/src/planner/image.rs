//! Making a container's image present before each start.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::backoff::{Failed, after};
use crate::planner::action::{Action, Note, Plan};
use crate::planner::context::Context;

/// How long a failed pull is shown as `ErrImagePull` before it becomes `ImagePullBackOff`.
const SHOW_ERROR: Duration = Duration::from_secs(2);

/// Whether the image is there. If not, plans the pull, or waits for its back-off.
pub(crate) fn ensure(ctx: &Context<'_>, plan: &mut Plan, container: &v1::Container) -> bool {
    let image = container.image.as_deref().unwrap_or_default();
    let memory = ctx.memory.container(&container.name);
    if memory.is_some_and(|memory| memory.pulled.as_deref() == Some(image)) {
        return true;
    }
    if ctx.image_busy(&container.name) {
        if memory.is_some_and(|memory| memory.pulling.as_deref() != Some(image)) {
            plan.push(Action::DropPull { container: container.name.clone() });
        }
        return false;
    }
    if let Some(failed) = failure(ctx, container).filter(|failed| ctx.now < failed.due) {
        let noted = memory.is_some_and(|memory| memory.pull_backoff_noted);
        match (noted, backing_off_from(failed)) {
            (true, _) | (_, None) => {}
            (false, Some(from)) if ctx.now < from => plan.wake(from),
            (false, Some(_)) => {
                plan.push(Action::Note(Note::PullBackingOff { container: container.name.clone() }));
            }
        }
        plan.wake(failed.due);
        return false;
    }
    plan.push(Action::EnsureImage { container: container.name.clone(), image: image.to_owned() });
    false
}

/// Whether the plan pulls the container's image.
pub(crate) fn wanted_now(plan: &Plan, container: &v1::Container) -> bool {
    plan.actions.iter().any(
        |action| matches!(action, Action::EnsureImage { container: name, .. } if *name == container.name),
    )
}

/// Why the container's present image could not be pulled last time.
pub(crate) fn failure<'a>(ctx: &Context<'a>, container: &v1::Container) -> Option<&'a Failed> {
    let (image, failed) = ctx.memory.container(&container.name)?.pull.as_ref()?;
    (Some(image.as_str()) == container.image.as_deref()).then_some(failed)
}

/// From when a failed pull counts as backing off; other failures (a bad name, `Never`) stay what they are.
pub(crate) fn backing_off_from(failed: &Failed) -> Option<Timestamp> {
    (failed.failure.reason == "ErrImagePull").then(|| after(failed.at, SHOW_ERROR))
}
