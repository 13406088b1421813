//! Pod objects as tests ask about them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

/// All pods of a node, by the name in the manifest: a file pod's suffix `-<node>` is left out.
pub type Pods = BTreeMap<String, Pod>;

/// Questions about a pod.
pub trait PodExt {
    /// `metadata.uid`.
    fn uid(&self) -> &str;
    /// `status.phase`.
    fn phase(&self) -> &str;
    /// `status.podIP`.
    fn ip(&self) -> &str;
    /// Status of every container, init containers first.
    fn statuses(&self) -> Vec<&ContainerStatus>;
    /// Status of a container.
    fn container(&self, name: &str) -> Option<&ContainerStatus>;
    /// Whether it is in phase Running and every main container runs.
    fn is_running(&self) -> bool;
    /// Whether it has a condition with status True.
    fn has(&self, condition: &str) -> bool;
    /// `status.reason`, or the first container's reason for waiting; empty if there is none.
    fn reason(&self) -> &str;
    /// Restarts of all containers together.
    fn restarts(&self) -> i32;
    /// How the only container ended: now, or else the last time.
    fn ended(&self) -> Option<&ContainerStateTerminated>;
}

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn phase(&self) -> &str {
        self.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
    }

    fn ip(&self) -> &str {
        self.status.as_ref().and_then(|s| s.pod_ip.as_deref()).unwrap_or_default()
    }

    fn statuses(&self) -> Vec<&ContainerStatus> {
        let Some(status) = &self.status else { return Vec::new() };
        status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten())
            .collect()
    }

    fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.statuses().into_iter().find(|c| c.name == name)
    }

    fn is_running(&self) -> bool {
        let main = self.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
        let running = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.running.is_some());
        self.phase() == "Running" && !main.is_empty() && main.iter().all(running)
    }

    fn has(&self, condition: &str) -> bool {
        let conditions = self.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == condition && c.status == "True")
    }

    fn reason(&self) -> &str {
        let waiting = |c: &&ContainerStatus| c.state.as_ref().is_some_and(|s| s.waiting.is_some());
        let statuses = self.statuses();
        let first = statuses.iter().copied().find(waiting);
        let container = first.and_then(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
        self.status.as_ref().and_then(|s| s.reason.as_deref()).or(container).unwrap_or_default()
    }

    fn restarts(&self) -> i32 {
        self.statuses().iter().map(|c| c.restart_count).sum()
    }

    fn ended(&self) -> Option<&ContainerStateTerminated> {
        let status = self.statuses().into_iter().next()?;
        let now = status.state.as_ref().and_then(|s| s.terminated.as_ref());
        now.or_else(|| status.last_state.as_ref()?.terminated.as_ref())
    }
}
