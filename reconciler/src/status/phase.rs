//! The phase.

use k8s_openapi::api::core::v1;

use super::container::has_begun;
use crate::planner::{Context, Role, end_of, exit_of, is_running};

/// Phase with reason and message.
pub(super) struct Phase {
    pub name: &'static str,
    pub reason: Option<String>,
    pub message: Option<String>,
}

impl Phase {
    fn plain(name: &'static str) -> Phase {
        Phase { name, reason: None, message: None }
    }
}

fn ended(succeeded: bool) -> &'static str {
    if succeeded { "Succeeded" } else { "Failed" }
}

/// A final phase is shown once nothing runs any more, and then stays.
pub(super) fn phase(ctx: &Context<'_>) -> Phase {
    let quiet = !ctx
        .containers()
        .any(|(container, _)| ctx.live(&container.name).is_some() || ctx.instance_busy(&container.name));
    if let Some(end) = end_of(ctx).filter(|_| quiet) {
        let (reason, message) = end.why.unzip();
        return Phase { name: ended(end.succeeded), reason, message };
    }
    if init_pending(ctx) {
        return Phase::plain("Pending");
    }
    let (mut running, mut stopped, mut succeeded) = (0, 0, 0);
    for container in ctx.mains() {
        match ctx.newest(&container.name) {
            Some(record) if is_running(record) => running += 1,
            Some(record) => match exit_of(record).or_else(|| last_exit(ctx, &container.name)) {
                Some(exit) => {
                    stopped += 1;
                    succeeded += usize::from(exit.code == 0);
                }
                None => return Phase::plain("Pending"),
            },
            None => return Phase::plain("Pending"),
        }
    }
    if running == 0 && ctx.deletion.is_some() && quiet {
        return Phase::plain(ended(stopped == succeeded));
    }
    Phase::plain("Running")
}

/// Whether the main containers' turn has come, ever: one has begun (so says its record, or else the status published
/// before), or there is nothing before them that has not ended well.
pub(super) fn initialised(ctx: &Context<'_>, previous: Option<&v1::PodStatus>) -> bool {
    let mut before = previous.and_then(|status| status.container_statuses.as_deref()).into_iter().flatten();
    if before.any(has_begun) {
        return true;
    }
    let done = |container: &v1::Container, role| match role {
        Role::Init => ctx.newest(&container.name).and_then(exit_of).is_some_and(|exit| exit.code == 0),
        Role::Sidecar => ctx.newest(&container.name).is_some(),
        Role::Main | Role::Ephemeral => true,
    };
    ctx.mains().iter().any(|main| ctx.newest(&main.name).is_some())
        || ctx.containers().all(|(container, role)| done(container, role))
}

/// Whether init containers still stand before the main containers: those that have not begun, and those that run. As
/// in a kubelet, one that has failed and waits for its next attempt does not count; the main containers that have
/// never been started do.
fn init_pending(ctx: &Context<'_>) -> bool {
    let initialised = ctx.mains().iter().any(|c| {
        if ctx.sandbox_since().is_some() { ctx.current(&c.name) } else { ctx.newest(&c.name) }.is_some()
    });
    let ended = |name: &str| ctx.newest(name).is_some_and(|record| exit_of(record).is_some());
    !initialised
        && ctx.containers().any(|(container, role)| match role {
            Role::Init => !ended(&container.name),
            Role::Sidecar => !ended(&container.name) && !ctx.started(container),
            Role::Main | Role::Ephemeral => false,
        })
}

fn last_exit<'a>(ctx: &Context<'a>, name: &str) -> Option<&'a crate::node::Exit> {
    ctx.observed.containers.iter().filter(|r| r.name == name).filter_map(exit_of).next_back()
}
