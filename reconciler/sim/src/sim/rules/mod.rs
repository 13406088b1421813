//! What must hold at every step of every history, judged by the world and not by the planner's own memory.

mod probe;
mod retry;
mod start;
mod status;
mod stop;

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use self::probe::Probed;
use self::retry::Waits;
use super::history::Broken;
use super::world::World;
use crate::node::{ContainerRecord, ContainerState, Deletion};
use crate::planner::{Action, Note, Outcome, StopCause};
use crate::pod::Pod;

/// How long deletion may take beyond the grace period and beyond the end of all trouble: what a step takes, times the
/// containers, and the longest distance between two attempts of a step that had failed before.
const DELETION_SLACK: i64 = 100_000;

/// What the rules need to know of the past. Times are true ones, in milliseconds.
#[derive(Default)]
pub(super) struct Rules {
    /// When the pod was seen first.
    begun_at: i64,
    /// When nothing went wrong any more.
    calm_at: Option<i64>,
    evicted_at: Option<i64>,
    /// How long an evicted pod has at most.
    evicted_grace: i64,
    /// Back-off level of each instance in seconds; none: a first start.
    levels: HashMap<(String, u32), Option<u64>>,
    /// The image that was made present for the next start.
    ensured: HashMap<String, String>,
    /// Why and since when an instance is being stopped.
    stopping: HashMap<String, (StopCause, i64)>,
    /// When the stop signal was sent first.
    terminated: HashMap<String, i64>,
    /// Instances that got KILL before, which may be repeated at any time.
    killed: HashSet<String>,
    /// Hooks that were begun, by instance; `true` for `preStop`.
    hooks: HashSet<(String, bool)>,
    probed: Probed,
    waits: Waits,
    /// The last exit for which all containers are restarted, as it is on record.
    round: Option<Timestamp>,
    restart_counts: HashMap<String, i32>,
    phase: Option<String>,
}

/// One moment, as the rules see it.
pub(super) struct Moment<'a> {
    pub world: &'a World,
    pub pod: &'a Pod,
    pub deletion: Option<&'a Deletion>,
    /// When it was asked for, in true time.
    pub deleted_at: i64,
}

/// The first of a container's restart rules that a code matches.
fn rule_of(container: &v1::Container, code: i32) -> Option<&v1::ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        let codes = rule.exit_codes.as_ref().unwrap();
        codes.values.as_ref().unwrap().contains(&code) == (codes.operator == "In")
    })
}

/// Whether a container that is no regular init container is started again after that exit.
pub(super) fn restarts(pod: &Pod, container: &v1::Container, code: i32) -> bool {
    let policy = container.restart_policy.as_deref().or(pod.spec().restart_policy.as_deref());
    rule_of(container, code).is_some() || policy == Some("Always") || policy == Some("OnFailure") && code != 0
}

fn require(holds: bool, rule: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(rule()) }
}

fn probe_of(container: &v1::Container, kind: crate::planner::ProbeKind) -> Option<&v1::Probe> {
    match kind {
        crate::planner::ProbeKind::Startup => container.startup_probe.as_ref(),
        crate::planner::ProbeKind::Liveness => container.liveness_probe.as_ref(),
        crate::planner::ProbeKind::Readiness => container.readiness_probe.as_ref(),
    }
}

impl Rules {
    /// The rules of a pod that is seen first now.
    pub(super) fn begun(now: i64, calm: bool) -> Rules {
        Rules { begun_at: now, calm_at: calm.then_some(now), ..Rules::default() }
    }

    /// The agent was killed: what it had prepared is forgotten, what it had published is not.
    pub(super) fn crashed(&mut self, published: Option<&v1::PodStatus>) {
        self.ensured.clear();
        self.stopping.clear();
        self.hooks.clear();
        self.waits = Waits::default();
        self.probed.crashed(published);
    }

    pub(super) fn calms(&mut self, now: i64) {
        self.calm_at.get_or_insert(now);
    }

    pub(super) fn evicted(&mut self, now: i64, grace_seconds: u64) {
        self.evicted_at.get_or_insert(now);
        self.evicted_grace = i64::try_from(grace_seconds).unwrap();
    }

    /// Steps that failed may be taken again at once.
    pub(super) fn config_changed(&mut self) {
        self.waits.forgive();
    }

    /// Whether all containers are to be restarted since that instance was ordered.
    pub(super) fn is_overtaken(&self, record: &ContainerRecord) -> bool {
        record.round < self.round
    }

    /// Whether the agent has decided to stop that instance.
    pub(super) fn is_stopping(&self, id: &str) -> bool {
        self.stopping.contains_key(id)
    }

    /// Whether that instance was stopped to start another with a new spec, whatever the restart policy says.
    pub(super) fn spec_changed(&self, id: &str) -> bool {
        matches!(self.stopping.get(id), Some((StopCause::SpecChanged | StopCause::Resized, _)))
    }

    fn look_for_a_restart_of_all(&mut self, moment: &Moment<'_>) {
        for record in &moment.world.seen.containers {
            let ContainerState::Exited(exit) = &record.state else { continue };
            let rule = moment.pod.container(&record.name).and_then(|c| rule_of(c, exit.code));
            if rule.is_some_and(|rule| rule.action == "RestartAllContainers") {
                self.round = self.round.max(Some(exit.finished_at.max(record.created_at)));
            }
        }
    }

    /// A step begins, or a decision is made.
    pub(super) fn begins(&mut self, moment: &Moment<'_>, action: &Action) -> Result<(), Broken> {
        self.look_for_a_restart_of_all(moment);
        self.waits.begins(moment, action)?;
        match action {
            Action::StartContainer(start) => {
                self.start_is_wanted(moment, start)?;
                self.order_holds(moment, start)?;
                self.backoff_holds(moment, start)
            }
            Action::Note(Note::Stopping { id, container, cause, .. }) => {
                self.stop_is_justified(moment, container, id, *cause)?;
                self.stopping.insert(id.clone(), (*cause, moment.world.now));
                Ok(())
            }
            Action::StopContainer { container, id, signal } => {
                self.stop_is_due(moment, container, id, *signal)?;
                if *signal == crate::node::StopSignal::Kill {
                    self.killed.insert(id.clone());
                }
                self.terminated.entry(id.clone()).or_insert(moment.world.now);
                Ok(())
            }
            Action::RunHook { container, id, hook } => self.hook_is_due(moment, container, id, *hook),
            Action::Probe { container, id, kind } => self.probe_is_due(moment, container, id, *kind),
            Action::ResizeContainer { container, id, resources } => {
                let running = moment.world.running().any(|(record, _)| record.id == *id);
                require(running, || format!("{container} resized although it does not run"))?;
                let granted = moment.world.seen.allocated.get(container) == Some(resources);
                require(granted, || format!("{container} gets what the node has not granted"))
            }
            Action::CreateSandbox => {
                self.pod_goes_on(moment, "sandbox")?;
                require(!moment.world.ready(), || "sandbox made over one that runs".to_owned())
            }
            Action::RemovePod | Action::StopSandbox => {
                let removed = *action == Action::RemovePod;
                require(!removed || moment.deletion.is_some(), || "removed although wanted".to_owned())?;
                let runs = moment.world.ready() && moment.world.running().next().is_some();
                require(!runs, || "teardown under a container".to_owned())?;
                require(!moment.world.is_building(), || "teardown under a step that builds".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// A step has come to its end.
    pub(super) fn ends(&mut self, moment: &Moment<'_>, action: &Action, outcome: &Outcome) {
        self.waits.ends(moment, action, outcome);
        match (action, outcome) {
            (Action::EnsureImage { container, image }, Outcome::Done(Ok(()))) => {
                self.ensured.insert(container.clone(), image.clone());
            }
            (Action::Probe { container, id, kind }, Outcome::Probed(outcome)) => {
                self.probed.ends(moment, container, id, *kind, outcome);
            }
            _ => {}
        }
    }

    /// The agent has planned all that it wants to plan now.
    pub(super) fn looked(&mut self, moment: &Moment<'_>) -> Result<(), Broken> {
        self.look_for_a_restart_of_all(moment);
        self.failed_probes_have_an_effect(moment)
    }

    /// The pod has settled or is gone.
    pub(super) fn ended(
        &self,
        world: &World,
        deleted_at: Option<i64>,
        deletion: Option<&Deletion>,
    ) -> Result<(), Broken> {
        let (Some(deleted_at), Some(deletion)) = (deleted_at, deletion) else { return Ok(()) };
        let grace = i64::try_from(deletion.grace_seconds).unwrap() * 1000;
        let quiet = self.calm_at.unwrap_or(world.now);
        let took = world.now - quiet.max(deleted_at + grace);
        require(took <= DELETION_SLACK, || format!("deletion took {took} ms more than its grace period"))
    }

    /// Nothing is to be built for a pod that is being deleted or has ended.
    fn pod_goes_on(&self, moment: &Moment<'_>, what: &str) -> Result<(), Broken> {
        require(moment.deletion.is_none(), || format!("{what} in a deleted pod"))?;
        require(moment.world.seen.evicted.is_none(), || format!("{what} in an evicted pod"))?;
        require(self.phase.as_deref().is_none_or(|p| p == "Pending" || p == "Running"), || {
            format!("{what} in an ended pod")
        })?;
        let over = self.deadline(moment.pod).is_some_and(|deadline| deadline + 1_000 < moment.world.now);
        let sure = self.phase.is_some() && moment.world.stepped_at < self.begun_at;
        require(!sure || !over, || format!("{what} after the active deadline"))
    }

    /// When `activeDeadlineSeconds` is over, to the second.
    fn deadline(&self, pod: &Pod) -> Option<i64> {
        Some(self.begun_at + pod.spec().active_deadline_seconds? * 1000)
    }
}
