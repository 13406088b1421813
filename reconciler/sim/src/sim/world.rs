//! The scripted machine: sandbox, instances and running steps of one pod, under virtual time.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use super::pods::{infeasible, is_init, is_sidecar, wanted};
use super::rng::Rng;
use crate::node::{ContainerRecord, ContainerState, Exit, Failure, Hook, Observation, ProbeOutcome, Sandbox};
use crate::planner::{Action, Key, Outcome};
use crate::pod::Pod;

/// Never, for what does not happen by itself.
pub(super) const NEVER: i64 = i64::MAX;

/// What an instance is going to do, and what it has been through. Times are true ones, in milliseconds, whatever the
/// machine's clock shows.
pub(super) struct Mind {
    /// When it exits, and with which code.
    pub exit_at: i64,
    pub exit_code: i32,
    /// How long it takes to obey its stop signal; none: it ignores it.
    pub obeys_after: Option<i64>,
    /// Until when it does not even die of KILL.
    pub stuck_until: i64,
    /// Whether its probes fail.
    pub sick: bool,
    pub started_at: i64,
    pub finished_at: i64,
    /// Whether its `preStop` hook has come to an end.
    pub pre_stop_done: bool,
    /// Whether its `postStart` hook has failed.
    pub post_start_failed: bool,
}

/// A step that runs.
pub(super) struct Op {
    pub action: Action,
    pub done_at: i64,
    /// When its first visible effect happens (an instance is `Created`).
    pub middle_at: i64,
    pub outcome: Outcome,
    /// What the pod asked for when the step began.
    pub wanted: BTreeMap<String, v1::ResourceRequirements>,
}

/// How unfriendly the machine is; calm is how a history ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    Chaos,
    Calm,
}

pub(super) struct World {
    /// True time in milliseconds.
    pub now: i64,
    /// How far the machine's clock is off.
    pub skew: i64,
    /// When that changed last.
    pub stepped_at: i64,
    /// Since when there has been an agent, which knows what was done to the clock.
    pub up_since: i64,
    /// How far it was set back in all.
    pub set_back: i64,
    /// What the agent can see; the records are in the order in which they were made.
    pub seen: Observation,
    /// One for each record.
    pub minds: Vec<Mind>,
    pub ops: Vec<Op>,
    pub weather: Weather,
    pub next_id: u64,
}

/// What happened in the world and is news to the agent.
pub(super) enum News {
    Done(Box<Action>, Outcome),
    Exited(String),
}

fn stamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
}

/// Milliseconds from one point in time to another.
pub(super) fn ms(from: Timestamp, to: Timestamp) -> i64 {
    i64::try_from(to.duration_since(from).as_millis()).unwrap()
}

impl World {
    pub(super) fn new() -> World {
        World {
            now: 0,
            skew: 0,
            stepped_at: -1,
            up_since: 0,
            set_back: 0,
            seen: Observation::default(),
            minds: Vec::new(),
            ops: Vec::new(),
            weather: Weather::Chaos,
            next_id: 1,
        }
    }

    /// What the machine's clock shows.
    pub(super) fn clock(&self) -> Timestamp {
        stamp(self.now + self.skew)
    }

    /// Sets the machine's clock.
    pub(super) fn step_clock(&mut self, by: i64) {
        self.skew += by;
        self.stepped_at = self.now;
        self.set_back += by.min(0).abs();
    }

    /// Whether an agent can know how long that is ago: the clock was not set since, or before its eyes.
    pub(super) fn can_tell_since(&self, since: i64) -> bool {
        self.stepped_at < since || self.up_since <= since && self.stepped_at > since
    }

    pub(super) fn ready(&self) -> bool {
        matches!(self.seen.sandbox, Sandbox::Ready { .. })
    }

    /// All instances, oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = (&ContainerRecord, &Mind)> {
        self.seen.containers.iter().zip(&self.minds)
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (&ContainerRecord, &Mind)> {
        self.all().filter(|(record, _)| matches!(record.state, ContainerState::Running { .. }))
    }

    /// The newest instance of a container.
    pub(super) fn newest(&self, name: &str) -> Option<(&ContainerRecord, &Mind)> {
        self.all().filter(|(record, _)| record.name == name).last()
    }

    /// Instances of a container that belong to the present sandbox.
    pub(super) fn of_sandbox(&self, name: &str) -> impl Iterator<Item = &ContainerRecord> {
        let since = match &self.seen.sandbox {
            Sandbox::Ready { created_at, .. } => *created_at,
            Sandbox::Absent | Sandbox::Dead => Timestamp::MAX,
        };
        self.seen.containers.iter().filter(move |r| r.name == name && r.created_at >= since)
    }

    pub(super) fn find(&self, id: &str) -> Option<usize> {
        self.seen.containers.iter().position(|record| record.id == id)
    }

    pub(super) fn instance(&self, id: &str) -> Option<(&ContainerRecord, &Mind)> {
        self.find(id).map(|index| (&self.seen.containers[index], &self.minds[index]))
    }

    pub(super) fn is_running(&self, index: usize) -> bool {
        matches!(self.seen.containers[index].state, ContainerState::Running { .. })
    }

    /// Whether a step is under way that makes or stops an instance or a sandbox.
    pub(super) fn is_building(&self) -> bool {
        self.ops.iter().any(|op| matches!(op.action.key(), Some(Key::Pod | Key::Instance(_) | Key::Stop(_))))
    }

    /// A step begins.
    pub(super) fn launch(&mut self, rng: &mut Rng, pod: &Pod, action: &Action) {
        let chaos = self.weather == Weather::Chaos;
        let hook = matches!(action, Action::RunHook { .. });
        let (low, high) = match action {
            _ if chaos && rng.percent(4) => (10_000, 60_000),
            Action::RunHook { .. } => (1, 8_000),
            Action::EnsureImage { .. } => (0, 3_000),
            _ => (0, 300),
        };
        let done_at = self.now + rng.between(low, high);
        let middle_at = rng.between(self.now, done_at);
        // Some hooks hang until their container ends.
        let done_at = if hook && chaos && rng.percent(8) { NEVER } else { done_at };
        let outcome = self.outcome(rng, pod, action);
        let wanted = if *action == Action::Allocate { wanted(pod) } else { BTreeMap::new() };
        self.ops.push(Op { action: action.clone(), done_at, middle_at, outcome, wanted });
    }

    fn outcome(&self, rng: &mut Rng, pod: &Pod, action: &Action) -> Outcome {
        let refuse = |reason: &str| {
            let (reason, message) = (reason.to_owned(), "scripted".to_owned());
            Outcome::Done(Err(Failure { reason, message }))
        };
        let chaos = self.weather == Weather::Chaos;
        if *action == Action::Allocate && infeasible(pod) {
            return refuse("Infeasible");
        }
        if let Action::Probe { id, .. } = action {
            let sick = self.instance(id).is_some_and(|(_, mind)| mind.sick);
            let failure = sick || chaos && rng.percent(5);
            return Outcome::Probed(if failure {
                ProbeOutcome::Failure("no answer".to_owned())
            } else {
                ProbeOutcome::Success
            });
        }
        let chance = match action {
            Action::EnsureImage { .. } | Action::RunHook { .. } => 15,
            _ => 6,
        };
        if !chaos || !rng.percent(chance) {
            return Outcome::Done(Ok(()));
        }
        let reasons: &[&str] = match action {
            Action::EnsureImage { .. } => {
                &["ErrImagePull", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"]
            }
            Action::StartContainer(_) => &["CreateContainerError", "CreateContainerConfigError"],
            Action::Allocate => &["Deferred"],
            Action::CreateSandbox => &["FailedCreatePodSandBox", "FailedMount"],
            _ => &["Failed"],
        };
        let reason = *rng.pick(reasons);
        refuse(reason)
    }

    /// Forgets a pull that the agent dropped.
    pub(super) fn drop_pull(&mut self, container: &str) {
        self.ops
            .retain(|op| !matches!(&op.action, Action::EnsureImage { container: c, .. } if c == container));
    }

    /// When something happens next.
    pub(super) fn next_at(&self) -> i64 {
        let ops = self.ops.iter().map(|op| op.done_at.min(op.middle_at));
        let exits = self.running().map(|(_, mind)| mind.exit_at);
        ops.chain(exits).min().unwrap_or(NEVER)
    }

    /// Lets everything happen that is due now.
    pub(super) fn turn(&mut self, rng: &mut Rng, pod: &Pod) -> Vec<News> {
        let mut news = Vec::new();
        for index in 0..self.minds.len() {
            if self.is_running(index) && self.minds[index].exit_at <= self.now {
                self.exit(index, self.minds[index].exit_code);
                news.push(News::Exited(self.seen.containers[index].id.clone()));
            }
        }
        let mut at = 0;
        while at < self.ops.len() {
            let op = &mut self.ops[at];
            if op.middle_at <= self.now {
                op.middle_at = NEVER;
                if let Action::StartContainer(start) = &op.action {
                    let start = start.clone();
                    self.create(rng, &start);
                }
            }
            if self.ops[at].done_at > self.now {
                at += 1;
                continue;
            }
            let op = self.ops.remove(at);
            let outcome = self.effect(rng, pod, &op.action, op.outcome, op.wanted);
            news.push(News::Done(Box::new(op.action), outcome));
        }
        news
    }

    pub(super) fn exit(&mut self, index: usize, code: i32) {
        let now = self.clock();
        let record = &mut self.seen.containers[index];
        let started_at = match record.state {
            ContainerState::Running { started_at } => Some(started_at),
            _ => None,
        };
        let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
        let signal = (code > 128).then_some(code - 128);
        let exit = Exit { code, signal, reason, message: None, started_at, finished_at: now };
        record.state = ContainerState::Exited(exit);
        self.minds[index].finished_at = self.now;
        for op in &mut self.ops {
            if let Action::RunHook { id, .. } | Action::Probe { id, .. } = &op.action
                && *id == record.id
            {
                op.done_at = op.done_at.min(self.now + 10);
            }
        }
    }

    /// The shim dies and takes its containers with it.
    pub(super) fn kill_shim(&mut self) {
        if !self.ready() {
            return;
        }
        self.seen.sandbox = Sandbox::Dead;
        for index in 0..self.minds.len() {
            if !matches!(self.seen.containers[index].state, ContainerState::Exited(_)) {
                self.exit(index, 137);
            }
        }
    }

    /// The agent dies: its steps end where they are.
    pub(super) fn abandon_ops(&mut self, rng: &mut Rng, pod: &Pod) {
        for op in std::mem::take(&mut self.ops) {
            let hangs = op.done_at == NEVER;
            if !hangs && rng.percent(40) {
                self.effect(rng, pod, &op.action, op.outcome, op.wanted);
            } else if let (Action::StartContainer(start), true) = (&op.action, rng.percent(50)) {
                self.create(rng, start);
            }
        }
    }

    /// How long a container runs, and how it ends.
    pub(super) fn behaviour(&self, rng: &mut Rng, pod: &Pod, name: &str) -> (i64, i32) {
        let job = is_init(name) && pod.container(name).is_some_and(|container| !is_sidecar(container));
        let policy = pod.spec().restart_policy.as_deref();
        let ends = self.now + rng.between(1, 20_000);
        match self.weather {
            Weather::Calm if job => (ends, 0),
            Weather::Calm => (NEVER, 0),
            Weather::Chaos if job => (ends, if rng.percent(30) { *rng.pick(&[1, 3]) } else { 0 }),
            Weather::Chaos if rng.percent(40) => (ends, *rng.pick(&[0, 1, 3])),
            Weather::Chaos if rng.percent(5) => (self.now + 700_000, 1),
            Weather::Chaos if policy != Some("Always") && rng.percent(50) => (ends, 0),
            Weather::Chaos => (NEVER, 0),
        }
    }

    /// From now on nothing goes wrong any more.
    pub(super) fn calm_down(&mut self) {
        self.weather = Weather::Calm;
        self.seen.paused = false;
        for mind in &mut self.minds {
            mind.sick = false;
        }
        for op in &mut self.ops {
            let hangs = matches!(op.action, Action::RunHook { hook: Hook::PreStop, .. });
            if !hangs {
                op.done_at = op.done_at.min(self.now + 1_000);
            }
            if matches!(op.outcome, Outcome::Probed(_)) {
                op.outcome = Outcome::Probed(ProbeOutcome::Success);
            }
        }
    }
}
