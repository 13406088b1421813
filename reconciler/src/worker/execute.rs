//! From an action to a call of the node.

use std::sync::Arc;

use crate::node::{Hook, Node, ProbeOutcome};
use crate::planner::{Action, Outcome, probe_of};
use crate::pod::Pod;

/// Takes one step.
pub(super) async fn execute<N: Node>(node: Arc<N>, pod: Arc<Pod>, action: &Action) -> Outcome {
    Outcome::Done(match action {
        Action::CreateSandbox => node.create_sandbox(&pod).await,
        Action::EnsureImage { container, .. } => node.ensure_image(&pod, container).await,
        Action::StartContainer(start) => node.start_container(&pod, start).await,
        Action::RemoveContainer { id, .. } => node.remove_container(&pod, id).await,
        Action::StopContainer { id, signal, .. } => node.stop_container(&pod, id, *signal).await,
        Action::Allocate => node.allocate(&pod).await,
        Action::ResizeContainer { id, resources, .. } => node.resize_container(&pod, id, resources).await,
        Action::StopSandbox => node.stop_sandbox(&pod).await,
        Action::RemovePod => node.remove_pod(&pod).await,
        Action::RunHook { container, id, hook } => {
            let lifecycle = pod.container(container).and_then(|c| c.lifecycle.as_ref());
            let handler = lifecycle.and_then(|lifecycle| match hook {
                Hook::PostStart => lifecycle.post_start.as_ref(),
                Hook::PreStop => lifecycle.pre_stop.as_ref(),
            });
            match handler {
                Some(handler) => node.run_hook(&pod, id, *hook, handler).await,
                None => Ok(()),
            }
        }
        Action::Probe { container, id, kind } => {
            return Outcome::Probed(match probe_of(&pod, container, *kind) {
                Some(probe) => node.probe(&pod, id, probe).await,
                None => ProbeOutcome::Success,
            });
        }
        Action::DropPull { .. } | Action::Note(_) => Ok(()),
    })
}
