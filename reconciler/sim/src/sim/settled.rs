//! Whether what is, is what should be: the end that every history must come to.

use k8s_openapi::api::core::v1;

use super::history::History;
use super::pods::{infeasible, is_ephemeral, is_init, is_sidecar};
use super::rules::restarts;
use super::world::NEVER;
use crate::node::{ContainerState, Sandbox};
use crate::planner::{Action, spec_hash};

impl History {
    pub(super) fn settled(&self) -> bool {
        if self.removed {
            return true;
        }
        let busy = self.world.ops.iter().any(|op| !matches!(op.action, Action::Probe { .. }));
        let steady = self
            .world
            .running()
            .all(|(record, mind)| mind.exit_at == NEVER && !self.rules.is_stopping(&record.id));
        if busy || !steady || self.memory.is_none() || self.deletion.is_some() {
            return false;
        }
        let Some(status) = &self.published else { return false };
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return self.world.seen.sandbox == Sandbox::Absent && self.world.running().next().is_none();
        }
        let ends = self.pod.spec().active_deadline_seconds.is_some() || self.world.seen.evicted.is_some();
        !ends && self.world.ready() && self.all_up(status) && self.none_beside()
    }

    /// Nothing runs that nobody wants.
    fn none_beside(&self) -> bool {
        self.world.running().all(|(record, _)| {
            let newest = self.world.newest(&record.name).is_some_and(|(newest, _)| newest.id == record.id);
            let regular =
                self.pod.container(&record.name).is_some_and(|c| !is_init(&c.name) || is_sidecar(c));
            newest && regular
        })
    }

    fn all_up(&self, status: &v1::PodStatus) -> bool {
        let statuses: Vec<_> =
            status.init_container_statuses.iter().chain(&status.container_statuses).flatten().collect();
        self.pod.all_containers().all(|container| {
            let newest = self.world.newest(&container.name);
            let ready = statuses.iter().any(|s| s.name == container.name && s.ready);
            let debug = is_ephemeral(&container.name);
            let init = is_init(&container.name) && !is_sidecar(container);
            if newest.is_some_and(|(record, _)| !debug && self.rules.is_overtaken(record)) {
                return false;
            }
            match newest.map(|(record, _)| (record, &record.state)) {
                Some((_, ContainerState::Exited(_) | ContainerState::Running { .. })) if debug => true,
                Some((_, ContainerState::Exited(exit))) if init => exit.code == 0 && ready,
                Some((record, ContainerState::Exited(exit))) => {
                    !restarts(&self.pod, container, exit.code) && !self.rules.spec_changed(&record.id)
                }
                Some((record, ContainerState::Running { .. })) => {
                    let resources = container.resources.clone().unwrap_or_default();
                    let sized = record.resources.as_ref() == Some(&resources) || infeasible(&self.pod);
                    let hooked = container.lifecycle.as_ref().is_none_or(|l| l.post_start.is_none());
                    let whole = hooked || record.post_start_done;
                    !init && ready && record.spec_hash == spec_hash(container) && sized && whole
                }
                Some((_, ContainerState::Created)) | None => false,
            }
        })
    }
}
