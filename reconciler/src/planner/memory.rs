//! What a worker remembers of a pod beside what can be observed: steps in flight, failures and their back-off, probe
//! results, what has been signalled. Losing it costs at most a repeated step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;

use crate::backoff::Failed;
use crate::node::{Deletion, Eviction, ProbeOutcome};
use crate::planner::action::{Key, ProbeKind, StopCause};
use crate::planner::resize::Wanted;
use crate::status::whole_seconds;

/// Clocks that drift apart by less are not set: two are never read at the same instant, and a clock is slewed all the time.
const STEP: SignedDuration = SignedDuration::from_millis(100);

/// What a node's configuration says about planning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest CrashLoopBackOff delay (`crashLoopBackOff.maxContainerRestartPeriod`).
    pub max_restart_period: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_restart_period: Duration::from_secs(300) }
    }
}

/// A worker's memory of one pod. Only [`Memory::begin`], [`Memory::finish`] and their kin change it.
#[derive(Clone, Debug)]
pub struct Memory {
    pub(crate) limits: Limits,
    /// How far the machine's clock was ahead of the steady one when it was set last.
    ahead: Option<SignedDuration>,
    /// When the deletion was asked for, by the clock as it is set now.
    pub(crate) deleting_since: Option<Timestamp>,
    /// When the node decided to evict the pod, by the clock as it is set now.
    pub(crate) evicted_since: Option<Timestamp>,
    /// `status.startTime`: when this node first saw the pod.
    pub(crate) start_time: Timestamp,
    /// Phase, reason and message of a pod that has ended; they never change again.
    pub(crate) ended: Option<EndedStatus>,
    pub(crate) in_flight: BTreeSet<Key>,
    pub(crate) sandbox: Option<Failed>,
    pub(crate) stop_sandbox: Option<Failed>,
    pub(crate) remove_pod: Option<Failed>,
    /// The resources that the node is being asked for.
    pub(crate) allocating: Option<Wanted>,
    /// The resources that the pod could not have, and why.
    pub(crate) allocate: Option<(Wanted, Failed)>,
    /// When instances that nobody wants were killed last.
    pub(crate) strays: BTreeMap<String, Timestamp>,
    pub(crate) removed: bool,
    pub(crate) sandbox_change_noted: bool,
    pub(crate) deadline_noted: bool,
    pub(crate) containers: BTreeMap<String, ContainerMemory>,
}

/// How a pod ended, as its status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedStatus {
    pub(crate) phase: String,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
}

/// Memory of one container.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerMemory {
    /// The image that is being made present.
    pub pulling: Option<String>,
    /// The image that has been made present for the next start.
    pub pulled: Option<String>,
    /// The image that could not be made present.
    pub pull: Option<(String, Failed)>,
    pub pull_backoff_noted: bool,
    /// Why no instance could be made.
    pub create: Option<Failed>,
    /// Why the running instance's resources could not be changed.
    pub resize: Option<Failed>,
    /// The instance whose back-off has been told in an event.
    pub backoff_noted: Option<String>,
    pub instance: Option<InstanceMemory>,
}

/// Memory of a container's newest instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct InstanceMemory {
    pub id: String,
    /// When this agent came to it, if that was started by an earlier one.
    pub taken_over: Option<Timestamp>,
    pub startup: ProbeMemory,
    pub liveness: ProbeMemory,
    pub readiness: ProbeMemory,
    pub post_start: PostStart,
    pub stopping: Option<Stopping>,
}

/// How far the `postStart` hook has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PostStart {
    #[default]
    Pending,
    Done,
    Failed,
}

/// An instance on its way out.
#[derive(Clone, Debug)]
pub(crate) struct Stopping {
    pub cause: StopCause,
    pub since: Timestamp,
    pub pre_stop_begun: bool,
    /// When the stop signal was sent.
    pub term_at: Option<Timestamp>,
    /// When KILL was sent last, and how often.
    pub kill_at: Option<Timestamp>,
    pub kills: u32,
    pub slow_noted: bool,
}

impl Stopping {
    pub fn new(cause: StopCause, since: Timestamp) -> Stopping {
        Stopping {
            cause,
            since,
            pre_stop_begun: false,
            term_at: None,
            kill_at: None,
            kills: 0,
            slow_noted: false,
        }
    }
}

/// Results of one probe of one instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProbeMemory {
    pub last_begun: Option<Timestamp>,
    /// The result that counts: thresholds have been applied. None: no result yet.
    pub result: Option<bool>,
    last: Option<bool>,
    streak: i32,
}

impl ProbeMemory {
    /// Counts one outcome; the result changes once the threshold is reached.
    pub fn count(&mut self, probe: &v1::Probe, outcome: &ProbeOutcome) {
        let success = !matches!(outcome, ProbeOutcome::Failure(_));
        self.streak = if self.last == Some(success) { self.streak.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold =
            if success { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        if self.streak >= threshold.max(1) {
            self.result = Some(success);
        }
    }
}

impl InstanceMemory {
    pub fn probe(&self, kind: ProbeKind) -> &ProbeMemory {
        match kind {
            ProbeKind::Startup => &self.startup,
            ProbeKind::Liveness => &self.liveness,
            ProbeKind::Readiness => &self.readiness,
        }
    }

    pub fn probe_mut(&mut self, kind: ProbeKind) -> &mut ProbeMemory {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        }
    }
}

impl Memory {
    /// The memory of a pod that this agent has not handled yet. `previous` is the status that an earlier agent
    /// published; start time, readiness and a final phase go on from there.
    pub fn new(limits: Limits, previous: Option<&v1::PodStatus>, now: Timestamp) -> Memory {
        let mut memory = Memory {
            limits,
            ahead: None,
            deleting_since: None,
            evicted_since: None,
            start_time: previous
                .and_then(|status| status.start_time.as_ref())
                .map_or(whole_seconds(now), |time| time.0),
            ended: None,
            in_flight: BTreeSet::new(),
            sandbox: None,
            stop_sandbox: None,
            remove_pod: None,
            allocating: None,
            allocate: None,
            strays: BTreeMap::new(),
            removed: false,
            sandbox_change_noted: false,
            deadline_noted: false,
            containers: BTreeMap::new(),
        };
        if let Some(status) = previous {
            memory.note_status(status);
            memory.recall(status, now);
        }
        memory
    }

    /// Takes over readiness and startup of running instances from a published status.
    fn recall(&mut self, status: &v1::PodStatus, now: Timestamp) {
        let known = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        for container in known {
            let Some(id) = container.container_id.as_deref().and_then(|id| id.split_once("://")) else {
                continue;
            };
            let (id, taken_over) = (id.1.to_owned(), Some(now));
            let mut instance = InstanceMemory { id, taken_over, ..InstanceMemory::default() };
            instance.startup.result = container.started.filter(|started| *started);
            instance.readiness.result = Some(container.ready);
            self.container_mut(&container.name).instance = Some(instance);
        }
    }

    /// Remembers a status that has been computed: a final phase stays.
    pub fn note_status(&mut self, status: &v1::PodStatus) {
        if let Some(phase @ ("Succeeded" | "Failed")) = status.phase.as_deref() {
            self.ended.get_or_insert_with(|| EndedStatus {
                phase: phase.to_owned(),
                reason: status.reason.clone(),
                message: status.message.clone(),
            });
        }
    }

    /// It is that late now, on the machine's clock and on a steady one that nobody can set ([`Memory::set_clock`]); and this is
    /// why the pod is to end. From here on that counts from when it was asked for, however the clock is set.
    pub fn tick(
        &mut self,
        now: Timestamp,
        steady: Duration,
        deletion: Option<&Deletion>,
        eviction: Option<&Eviction>,
    ) {
        self.set_clock(now, steady);
        if let Some(deletion) = deletion {
            self.deleting_since.get_or_insert(deletion.requested_at.min(now));
        }
        if let Some(eviction) = eviction {
            self.evicted_since.get_or_insert(eviction.since.min(now));
        }
    }

    /// Compares the machine's clock with one that cannot be set. Where it was set, all that is remembered is set with it, so
    /// that what is waited for takes neither longer nor shorter. True if it was.
    pub fn set_clock(&mut self, now: Timestamp, steady: Duration) -> bool {
        let steady = Timestamp::UNIX_EPOCH.saturating_add(steady).unwrap_or(Timestamp::MAX);
        let ahead = now.duration_since(steady);
        let set_by = ahead - *self.ahead.get_or_insert(ahead);
        let was_set = set_by.abs() >= STEP;
        if was_set {
            self.ahead = Some(ahead);
            self.shift(set_by);
        }
        was_set
    }

    fn shift(&mut self, by: SignedDuration) {
        let shift = |at: &mut Timestamp| *at = at.checked_add(by).unwrap_or(*at);
        let failed = |failed: &mut Failed| {
            shift(&mut failed.at);
            if failed.due < Timestamp::MAX {
                shift(&mut failed.due);
            }
        };
        let steps = [&mut self.sandbox, &mut self.stop_sandbox, &mut self.remove_pod];
        steps.into_iter().flatten().for_each(failed);
        self.allocate.iter_mut().for_each(|(_, of)| failed(of));
        let ends = self.deleting_since.iter_mut().chain(&mut self.evicted_since);
        self.strays.values_mut().chain(ends).for_each(shift);
        for container in self.containers.values_mut() {
            container.create.iter_mut().chain(&mut container.resize).for_each(failed);
            container.pull.iter_mut().for_each(|(_, of)| failed(of));
            let Some(instance) = &mut container.instance else { continue };
            instance.taken_over.iter_mut().for_each(shift);
            for kind in ProbeKind::ALL {
                instance.probe_mut(kind).last_begun.iter_mut().for_each(shift);
            }
            if let Some(stopping) = &mut instance.stopping {
                shift(&mut stopping.since);
                stopping.term_at.iter_mut().chain(&mut stopping.kill_at).for_each(shift);
            }
        }
    }

    /// Whether everything of the pod has been removed.
    pub fn removed(&self) -> bool {
        self.removed
    }

    /// Whether no other steps run than probes.
    pub fn only_probes(&self) -> bool {
        self.in_flight.iter().all(|key| matches!(key, Key::Probe(..)))
    }

    /// Something that failed steps may have waited for has changed (a ConfigMap, a Secret, an image): they are taken
    /// again at once.
    pub fn config_changed(&mut self, now: Timestamp) {
        let steps = self.containers.values_mut().flat_map(|container| {
            container.create.iter_mut().chain(container.pull.iter_mut().map(|(_, failed)| failed))
        });
        for failed in steps.chain(&mut self.sandbox) {
            failed.due = failed.due.min(now);
        }
    }

    /// Whether a step with that key runs.
    pub fn is_busy(&self, key: &Key) -> bool {
        self.in_flight.contains(key)
    }

    pub(crate) fn container(&self, name: &str) -> Option<&ContainerMemory> {
        self.containers.get(name)
    }

    pub(crate) fn container_mut(&mut self, name: &str) -> &mut ContainerMemory {
        if !self.containers.contains_key(name) {
            self.containers.insert(name.to_owned(), ContainerMemory::default());
        }
        self.containers.get_mut(name).expect("it has just been inserted")
    }

    /// Memory of that very instance.
    pub(crate) fn instance(&self, name: &str, id: &str) -> Option<&InstanceMemory> {
        self.container(name)?.instance.as_ref().filter(|instance| instance.id == id)
    }

    pub(crate) fn instance_mut(&mut self, name: &str, id: &str) -> &mut InstanceMemory {
        let slot = &mut self.container_mut(name).instance;
        if slot.as_ref().is_none_or(|instance| instance.id != id) {
            *slot = Some(InstanceMemory { id: id.to_owned(), ..InstanceMemory::default() });
        }
        slot.as_mut().expect("it has just been set")
    }
}
