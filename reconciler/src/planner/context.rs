//! One snapshot, with the questions that all rules ask of it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::node::{ContainerRecord, ContainerState, Deletion, Exit, Hook, Observation, Sandbox};
use crate::planner::StopCause;
use crate::planner::action::{Key, ProbeKind};
use crate::planner::memory::Memory;
use crate::planner::restart::{self, should_restart};
use crate::pod::Pod;

/// The part a container plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to completion before the next.
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    Main,
    /// Started once, at any time, and never again.
    Ephemeral,
}

/// Desired and observed state at one time.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub pod: &'a Pod,
    pub deletion: Option<&'a Deletion>,
    pub observed: &'a Observation,
    pub memory: &'a Memory,
    pub now: Timestamp,
    /// The exit that had all containers restarted last.
    pub round: Option<Timestamp>,
}

impl<'a> Context<'a> {
    pub fn new(
        pod: &'a Pod,
        deletion: Option<&'a Deletion>,
        observed: &'a Observation,
        memory: &'a Memory,
        now: Timestamp,
    ) -> Context<'a> {
        Context { pod, deletion, observed, memory, now, round: round(pod, observed) }
    }

    /// Init containers in their order.
    pub fn inits(&self) -> &'a [v1::Container] {
        self.pod.spec().init_containers.as_deref().unwrap_or_default()
    }

    /// Main containers in their order.
    pub fn mains(&self) -> &'a [v1::Container] {
        &self.pod.spec().containers
    }

    /// All containers with their roles.
    pub fn containers(&self) -> impl Iterator<Item = (&'a v1::Container, Role)> + use<'a> {
        let inits = self.inits().iter().map(|c| (c, init_role(c)));
        let mains = self.mains().iter().map(|c| (c, Role::Main));
        inits.chain(mains).chain(self.pod.ephemeral().iter().map(|c| (c, Role::Ephemeral)))
    }

    /// When the sandbox that runs now was made.
    pub fn sandbox_since(&self) -> Option<Timestamp> {
        match &self.observed.sandbox {
            Sandbox::Ready { created_at, .. } => Some(*created_at),
            Sandbox::Absent | Sandbox::Dead => None,
        }
    }

    /// The newest instance of a container, whichever sandbox it belongs to.
    pub fn newest(&self, name: &str) -> Option<&'a ContainerRecord> {
        self.observed.containers.iter().filter(|r| r.name == name).max_by_key(|r| (r.attempt, r.created_at))
    }

    /// The newest instance of a container if it belongs to the sandbox that runs now, and was not overtaken by a
    /// restart of all containers.
    pub fn current(&self, name: &str) -> Option<&'a ContainerRecord> {
        let since = self.sandbox_since()?;
        self.newest(name).filter(|record| record.created_at >= since && !self.overtaken(record))
    }

    /// Whether all containers were restarted since that instance was ordered.
    pub fn overtaken(&self, record: &ContainerRecord) -> bool {
        record.round < self.round
    }

    /// The running instance of a container.
    pub fn live(&self, name: &str) -> Option<&'a ContainerRecord> {
        self.sandbox_since()?;
        self.newest(name).filter(|record| is_running(record))
    }

    /// Running instances that no rule asks for: of unknown containers, or beside a newer instance.
    pub fn strays(&self) -> impl Iterator<Item = &'a ContainerRecord> + '_ {
        let ready = self.sandbox_since().is_some();
        self.observed.containers.iter().filter(move |record| {
            let wanted = || {
                self.pod.container(&record.name).is_some()
                    && self.newest(&record.name).is_some_and(|newest| newest.id == record.id)
            };
            ready && is_running(record) && !wanted()
        })
    }

    /// Whether another instance is to follow one that has ended.
    pub fn restarts(
        &self,
        container: &v1::Container,
        role: Role,
        record: &ContainerRecord,
        exit: &Exit,
    ) -> bool {
        let stopping = self.memory.instance(&record.name, &record.id).and_then(|i| i.stopping.as_ref());
        role != Role::Ephemeral && self.overtaken(record)
            || stopping.is_some_and(|s| matches!(s.cause, StopCause::SpecChanged | StopCause::Resized))
            || should_restart(self.pod, container, role, exit.code)
    }

    pub fn is_busy(&self, key: &Key) -> bool {
        self.memory.is_busy(key)
    }

    /// Whether a container's image is being made present.
    pub fn image_busy(&self, name: &str) -> bool {
        self.memory.in_flight.iter().any(|key| matches!(key, Key::Image(busy) if busy == name))
    }

    /// Whether a container's hook runs.
    pub fn hook_busy(&self, name: &str, hook: Hook) -> bool {
        let mut keys = self.memory.in_flight.iter();
        keys.any(|key| matches!(key, Key::Hook(busy, of) if *of == hook && busy == name))
    }

    /// Whether a container's probe runs.
    pub fn probe_busy(&self, name: &str, kind: ProbeKind) -> bool {
        let mut keys = self.memory.in_flight.iter();
        keys.any(|key| matches!(key, Key::Probe(busy, of) if *of == kind && busy == name))
    }

    /// Whether a container is being signalled.
    pub fn stop_busy(&self, name: &str) -> bool {
        self.memory.in_flight.iter().any(|key| matches!(key, Key::Stop(busy) if busy == name))
    }

    /// Whether an instance of that container is being made or removed.
    pub fn instance_busy(&self, name: &str) -> bool {
        self.memory.in_flight.iter().any(|key| matches!(key, Key::Instance(busy) if busy == name))
    }

    /// Whether a container has passed its `postStart` hook and its startup probe.
    pub fn started(&self, container: &v1::Container) -> bool {
        self.live(&container.name).is_some_and(|record| self.has_started(container, record))
    }

    /// As [`Context::started`], for a record that is known to run.
    pub fn has_started(&self, container: &v1::Container, record: &ContainerRecord) -> bool {
        let instance = self.memory.instance(&container.name, &record.id);
        self.post_start_done(container, record)
            && (container.startup_probe.is_none()
                || instance.is_some_and(|instance| instance.startup.result == Some(true)))
    }

    /// Whether the `postStart` hook has succeeded or there is none.
    pub fn post_start_done(&self, container: &v1::Container, record: &ContainerRecord) -> bool {
        record.post_start_done
            || post_start(container).is_none()
            || self
                .memory
                .instance(&container.name, &record.id)
                .is_some_and(|instance| instance.post_start == super::memory::PostStart::Done)
    }

    /// The pod's own grace period in seconds.
    pub fn pod_grace(&self) -> i64 {
        self.pod.spec().termination_grace_period_seconds.unwrap_or(30).max(0)
    }
}

/// The last exit for which all containers are restarted. It is on record as an exit, or with what was started after it.
fn round(pod: &Pod, observed: &Observation) -> Option<Timestamp> {
    let triggered = |record: &ContainerRecord| {
        let exit = exit_of(record)?;
        let container = pod.container(&record.name)?;
        let all = restart::rule_of(container, exit.code).is_some_and(|rule| rule.action == restart::ALL);
        // Later than all that was before its start, even if the clock was set back since.
        all.then_some(exit.finished_at.max(record.created_at))
    };
    observed.containers.iter().flat_map(|record| [record.round, triggered(record)]).flatten().max()
}

/// The role of an init container.
pub(crate) fn init_role(container: &v1::Container) -> Role {
    if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init }
}

pub(crate) fn is_running(record: &ContainerRecord) -> bool {
    matches!(record.state, ContainerState::Running { .. })
}

/// The exit of an instance that has ended.
pub(crate) fn exit_of(record: &ContainerRecord) -> Option<&Exit> {
    match &record.state {
        ContainerState::Exited(exit) => Some(exit),
        ContainerState::Created | ContainerState::Running { .. } => None,
    }
}

pub(crate) fn post_start(container: &v1::Container) -> Option<&v1::LifecycleHandler> {
    container.lifecycle.as_ref()?.post_start.as_ref()
}

pub(crate) fn pre_stop(container: &v1::Container) -> Option<&v1::LifecycleHandler> {
    container.lifecycle.as_ref()?.pre_stop.as_ref()
}
