//! Faults planted between the planner and the machine. The rules must catch every one of them: rules that catch nothing
//! prove nothing.

use std::borrow::Cow;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;

use super::pods::{changed, is_ephemeral, is_init, is_sidecar};
use super::world::World;
use crate::node::{
    ContainerRecord, ContainerState, Deletion, Hook, Observation, ProbeOutcome, Sandbox, StopSignal,
};
use crate::planner::{Action, Memory, Note, Outcome, Plan, ProbeKind, StopCause};
use crate::pod::Pod;

/// Declares the faults, each with the words of the rules that may catch it.
macro_rules! bugs {
    ($($(#[doc = $doc:expr])+ $name:ident: $($sign:literal)|+;)+) => {
        /// A fault that an agent could have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Bug {
            /// All faults.
            pub const ALL: &[Bug] = &[$(Bug::$name),+];

            /// What the rule that catches it says; one of these.
            pub fn signs(self) -> &'static [&'static str] {
                match self {
                    $(Bug::$name => &[$($sign),+],)+
                }
            }
        }
    };
}

bugs! {
    /// A container is started again without waiting.
    IgnoresBackoff: "back-off";
    /// Each back-off is the first.
    ForgetsBackoff: "back-off";
    /// Init containers run in the wrong order.
    SwapsInits: "was through";
    /// Main containers do not wait for init containers.
    ForgetsInits: "was through" | "unknown" | "does not settle";
    /// Sidecars get their stop signal with all others.
    StopsSidecarsFirst: "stopped before a later container";
    /// An agent that starts anew does not look at what runs.
    StartsTwiceAfterCrash: "beside another instance" | "is not what its status says" | "attempts skip";
    /// An agent that starts anew makes a second sandbox.
    ForgetsSandboxAfterCrash: "sandbox made over one that runs" | "without sandbox" | "is not what its status says";
    /// Ephemeral containers are left running when the pod is deleted.
    ForgetsEphemeral: "teardown under a container" | "is not what its status says";
    /// An ephemeral container is started once more.
    RunsEphemeralAgain: "attempts skip" | "is not what its status says" | "started again";
    /// `status.restartCount` starts at 0 again.
    ResetsRestartCounts: "restart count falls";
    /// Attempts are counted from 0 again.
    ResetsAttempts: "attempts skip" | "back-off";
    /// Exits are only seen by chance.
    LosesExits: "does not settle" | "goes on";
    /// A dead sandbox is taken for a running one.
    LosesSandboxDeath: "does not settle" | "is not what its status says" | "without sandbox" | "not running";
    /// `preStop` is skipped.
    SkipsPreStop: "stop signal before preStop";
    /// `preStop` is skipped by an agent that starts anew.
    SkipsPreStopAfterCrash: "stop signal before preStop";
    /// `postStart` is skipped.
    SkipsPostStart: "before its hook" | "during the postStart hook" | "does not settle";
    /// A hook that failed counts as one that succeeded.
    BelievesHooks: "before its hook" | "during the postStart hook" | "does not settle";
    /// Ready at once, whatever the readiness probe says.
    IgnoresReadiness: "ready without its probe" | "does not settle";
    /// Ready as soon as the process runs.
    SaysReady: "ready without its probe" | "has not started";
    /// Ready before others say that it is.
    IgnoresGates: "Ready is not what it follows from";
    /// Started at once, whatever the startup probe says.
    IgnoresStartup: "before it started" | "before its probe" | "was through";
    /// A probe that failed counts as one that succeeded.
    BelievesLiveness: "failed its Liveness probe and goes on";
    /// The first failure of a probe is the last.
    IgnoresThreshold: "reason that is none";
    /// The first probe comes too early.
    IgnoresProbeDelay: "probe of";
    /// Probes come too often.
    ProbesTooOften: "probe of";
    /// Paused pods are probed, and started.
    IgnoresPause: "paused";
    /// A container is stopped although nothing is wrong.
    StopsForNothing: "reason that is none";
    /// KILL comes without a stop signal before it.
    KillsAtOnce: "killed too early";
    /// KILL never comes.
    NeverKills: "does not settle" | "deletion took";
    /// What the clock shows is taken for how late it is.
    BelievesClock: "killed too early" | "tried again after" | "probe of" | "deletion took";
    /// Half of the grace period is granted.
    HalvesGrace: "killed too early";
    /// The pod is removed under its containers.
    RemovesTooEarly: "teardown under";
    /// Deletion is not noticed.
    IgnoresDeletion: "in a deleted pod" | "does not settle" | "while it ends";
    /// Containers are started again whatever the policy says.
    AlwaysRestarts: "started again after" | "in an ended pod" | "without need";
    /// `RestartAllContainers` restarts one container.
    RestartsOneOfAll: "are to be restarted" | "does not settle" | "was through" | "started again after";
    /// `activeDeadlineSeconds` never comes.
    IgnoresDeadline: "after the active deadline" | "does not settle";
    /// An eviction is not noticed.
    IgnoresEviction: "in an evicted pod" | "does not settle" | "while it ends";
    /// A changed image is not noticed.
    KeepsOldImage: "with an old spec" | "does not settle" | "without its image";
    /// Steps that failed are taken again at once.
    RetriesAtOnce: "tried again after";
    /// A pull that failed counts as one that succeeded.
    BelievesPulls: "without its image";
    /// A refused resize counts as granted.
    BelievesAllocation: "asked again" | "spins" | "does not come to an end";
    /// Time is not waited for.
    ForgetsToWake: "does not settle" | "does not rest" | "goes on";
    /// The agent never sleeps.
    NeverSleeps: "spins";
    /// Conditions change their times without a change.
    TouchesTransitionTimes: "no transition";
    /// What failed is said to have succeeded.
    SaysSucceeded: "phase Succeeded after a failure";
    /// A final phase is taken back.
    LeavesFinalPhase: "phase leaves" | "does not settle" | "not what the containers are";
}

/// How long the machine has been up when a history begins, in milliseconds: more than any clock is set back.
const FAR: i64 = 1 << 40;

/// What stands between planner and machine: nothing, in an honest history.
pub(super) struct Faults {
    bug: Option<Bug>,
    crashed: bool,
    deleted: bool,
    pod: Option<Pod>,
    seen: Option<Observation>,
    deletion: Option<Option<Deletion>>,
}

impl Faults {
    pub(super) fn new(bug: Option<Bug>) -> Faults {
        Faults { bug, crashed: false, deleted: false, pod: None, seen: None, deletion: None }
    }

    pub(super) fn crashed(&mut self) {
        self.crashed = true;
    }

    /// Whether exits are news.
    pub(super) fn hears(&self) -> bool {
        self.bug != Some(Bug::LosesExits)
    }

    /// What the clock shows that cannot be set.
    pub(super) fn steady(&self, world: &World) -> Duration {
        let set_by = if self.bug == Some(Bug::BelievesClock) { world.skew } else { 0 };
        Duration::from_millis(u64::try_from(world.now + set_by + FAR).unwrap_or(0))
    }

    pub(super) fn pod<'a>(&'a self, pod: &'a Pod) -> &'a Pod {
        self.pod.as_ref().unwrap_or(pod)
    }

    pub(super) fn seen<'a>(&'a self, seen: &'a Observation) -> &'a Observation {
        self.seen.as_ref().unwrap_or(seen)
    }

    pub(super) fn deletion<'a>(&'a self, deletion: Option<&'a Deletion>) -> Option<&'a Deletion> {
        match &self.deletion {
            Some(other) => other.as_ref(),
            None => deletion,
        }
    }

    /// Distorts what the agent is going to see.
    pub(super) fn look(&mut self, pod: &Pod, world: &World, deletion: Option<&Deletion>) {
        let Some(bug) = self.bug else { return };
        self.deleted = deletion.is_some();
        self.pod = self.other_pod(bug, pod);
        self.seen = self.other_view(bug, pod, &world.seen, deletion.is_some());
        self.deletion = match bug {
            Bug::IgnoresDeletion => Some(None),
            Bug::HalvesGrace => Some(deletion.map(|deletion| Deletion {
                grace_seconds: deletion.grace_seconds.div_ceil(2),
                requested_at: deletion.requested_at,
            })),
            _ => None,
        };
    }

    fn other_pod(&self, bug: Bug, pod: &Pod) -> Option<Pod> {
        let mut other = changed(pod, |spec| {
            match bug {
                Bug::SwapsInits => spec.init_containers.iter_mut().for_each(|list| list.reverse()),
                Bug::ForgetsInits => spec.init_containers = None,
                Bug::AlwaysRestarts => spec.restart_policy = Some("Always".to_owned()),
                Bug::IgnoresDeadline => spec.active_deadline_seconds = None,
                Bug::IgnoresGates => spec.readiness_gates = None,
                _ => {}
            }
            for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
                distort(container, bug, self.crashed);
            }
        });
        other.object.metadata.generation = pod.object.metadata.generation;
        (other != *pod).then_some(other)
    }

    fn other_view(&self, bug: Bug, pod: &Pod, seen: &Observation, deleted: bool) -> Option<Observation> {
        let mut other = seen.clone();
        let running = |record: &ContainerRecord| matches!(record.state, ContainerState::Running { .. });
        match bug {
            Bug::StartsTwiceAfterCrash if self.crashed => {
                other.containers.retain(|record| is_init(&record.name) || !running(record));
            }
            Bug::ForgetsSandboxAfterCrash if self.crashed => other.sandbox = Sandbox::Absent,
            Bug::ForgetsEphemeral if deleted => other.containers.retain(|r| !is_ephemeral(&r.name)),
            Bug::RunsEphemeralAgain => other.containers.retain(|r| !is_ephemeral(&r.name) || running(r)),
            Bug::LosesSandboxDeath if seen.sandbox == Sandbox::Dead => {
                other.sandbox = Sandbox::Ready { ips: Vec::new(), created_at: Timestamp::MIN };
            }
            Bug::IgnoresEviction => other.evicted = None,
            Bug::IgnoresPause => other.paused = false,
            _ => {}
        }
        // An exit that has all restarted says by its time whether that was done.
        let plain = |name: &str| pod.container(name).is_some_and(|c| c.restart_policy_rules.is_none());
        for record in &mut other.containers {
            match (&mut record.state, bug) {
                (ContainerState::Exited(exit), Bug::IgnoresBackoff) if plain(&record.name) => {
                    exit.finished_at -= SignedDuration::from_hours(1);
                }
                (_, Bug::ForgetsBackoff) => record.delay = record.delay.map(|_| Duration::ZERO),
                (_, Bug::ResetsAttempts) if self.crashed => record.attempt = 0,
                _ => {}
            }
        }
        (other != *seen).then_some(other)
    }

    /// Changes what the agent remembers.
    pub(super) fn meddle(&self, memory: &mut Memory, now: Timestamp) {
        if self.bug == Some(Bug::RetriesAtOnce) {
            memory.config_changed(now);
        }
    }

    /// What the agent is told of a step.
    pub(super) fn outcome<'a>(&self, action: &Action, outcome: &'a Outcome) -> Cow<'a, Outcome> {
        let lie = match (self.bug, action) {
            (Some(Bug::BelievesPulls), Action::EnsureImage { .. })
            | (Some(Bug::BelievesAllocation), Action::Allocate)
            | (Some(Bug::BelievesHooks), Action::RunHook { hook: Hook::PostStart, .. }) => {
                Some(Outcome::Done(Ok(())))
            }
            (Some(Bug::BelievesLiveness), Action::Probe { kind: ProbeKind::Liveness, .. }) => {
                Some(Outcome::Probed(ProbeOutcome::Success))
            }
            _ => None,
        };
        lie.map_or(Cow::Borrowed(outcome), Cow::Owned)
    }

    /// Changes what the agent does.
    pub(super) fn plan(&self, mut plan: Plan, world: &World, pod: &Pod, now: Timestamp) -> Plan {
        let Some(bug) = self.bug else { return plan };
        match bug {
            Bug::KillsAtOnce => {
                for action in &mut plan.actions {
                    if let Action::StopContainer { signal, .. } = action {
                        *signal = StopSignal::Kill;
                    }
                }
            }
            Bug::NeverKills => plan
                .actions
                .retain(|action| !matches!(action, Action::StopContainer { signal: StopSignal::Kill, .. })),
            Bug::ForgetsToWake => plan.wake_at = None,
            Bug::NeverSleeps => plan.wake_at = Some(now),
            Bug::RemovesTooEarly if self.deleted && world.running().next().is_some() => {
                let stops = plan.actions.iter().any(|a| matches!(a, Action::StopContainer { .. }));
                plan.actions.extend(stops.then_some(Action::RemovePod));
            }
            Bug::StopsSidecarsFirst
                if self.deleted
                    && plan.actions.iter().any(|a| matches!(a, Action::StopContainer { .. }))
                    && !plan.actions.iter().any(|a| matches!(a, Action::Note(_))) =>
            {
                let sidecar = |name: &str| pod.container(name).is_some_and(is_sidecar);
                let all = world.running().map(|(record, _)| record).filter(|record| sidecar(&record.name));
                plan.actions.extend(all.map(|record| {
                    let (container, id) = (record.name.clone(), record.id.clone());
                    Action::StopContainer { container, id, signal: StopSignal::Stop }
                }));
            }
            Bug::ProbesTooOften => {
                let kind = ProbeKind::Readiness;
                let probed = |name: &str| pod.container(name).is_some_and(|c| c.readiness_probe.is_some());
                let all = world.running().map(|(record, _)| record).filter(|record| probed(&record.name));
                let one =
                    |r: &ContainerRecord| Action::Probe { container: r.name.clone(), id: r.id.clone(), kind };
                plan.actions.extend(all.map(one));
            }
            Bug::StopsForNothing => {
                let cause = StopCause::Probe(ProbeKind::Liveness);
                let first = world.running().find(|(_, mind)| world.now > mind.started_at + 5_000);
                plan.actions.extend(first.map(|(record, _)| {
                    let (container, id) = (record.name.clone(), record.id.clone());
                    Action::Note(Note::Stopping { container, id, cause, restart: true })
                }));
            }
            _ => {}
        }
        plan
    }

    /// Changes what the agent says.
    pub(super) fn status(&self, status: &mut v1::PodStatus, now: Timestamp) {
        match self.bug {
            Some(Bug::ResetsRestartCounts) if self.crashed => {
                status.container_statuses.iter_mut().flatten().for_each(|c| c.restart_count = 0);
            }
            Some(Bug::SaysReady) => {
                for container in status.container_statuses.iter_mut().flatten() {
                    container.ready = container.state.as_ref().is_some_and(|s| s.running.is_some());
                }
            }
            Some(Bug::TouchesTransitionTimes) => {
                for condition in status.conditions.iter_mut().flatten() {
                    condition.last_transition_time.iter_mut().for_each(|time| time.0 = now);
                }
            }
            Some(Bug::SaysSucceeded) if status.phase.as_deref() == Some("Failed") => {
                status.phase = Some("Succeeded".to_owned());
            }
            Some(Bug::LeavesFinalPhase) if self.crashed => {
                status.phase = Some("Running".to_owned());
            }
            _ => {}
        }
    }
}

fn distort(container: &mut v1::Container, bug: Bug, crashed: bool) {
    match bug {
        Bug::IgnoresReadiness => container.readiness_probe = None,
        Bug::IgnoresStartup => container.startup_probe = None,
        Bug::KeepsOldImage => container.image = Some("image:0".to_owned()),
        Bug::RestartsOneOfAll => {
            let rules = container.restart_policy_rules.iter_mut().flatten();
            rules.for_each(|rule| rule.action = "Restart".to_owned());
        }
        Bug::SkipsPreStop => container.lifecycle.iter_mut().for_each(|l| l.pre_stop = None),
        Bug::SkipsPreStopAfterCrash if crashed => {
            container.lifecycle.iter_mut().for_each(|l| l.pre_stop = None);
        }
        Bug::SkipsPostStart => container.lifecycle.iter_mut().for_each(|l| l.post_start = None),
        _ => {}
    }
    let probes =
        [&mut container.startup_probe, &mut container.liveness_probe, &mut container.readiness_probe];
    for probe in probes.into_iter().flatten() {
        match bug {
            Bug::IgnoresThreshold => probe.failure_threshold = Some(1),
            Bug::IgnoresProbeDelay => probe.initial_delay_seconds = None,
            _ => {}
        }
    }
}
