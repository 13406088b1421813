//! The scripted machine: sandbox, instances and running steps of one pod, under virtual time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use berth_reconciler::node::{
    ContainerRecord, ContainerState, Eviction, Exit, Failure, Hook, Observation, ProbeOutcome, Sandbox,
    StopSignal,
};
use berth_reconciler::planner::{Action, Key, Outcome};
use berth_reconciler::pod::Pod;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;

use super::pods::{infeasible, wanted};
use super::rng::Rng;

/// Never, for instances that do not exit by themselves.
pub const NEVER: i64 = i64::MAX;

/// One instance and how it is going to behave.
pub struct Instance {
    pub record: ContainerRecord,
    /// When it exits, in milliseconds, and with which code.
    pub exit_at: i64,
    pub exit_code: i32,
    /// How long it takes to obey its stop signal; none: it ignores it.
    obeys_after: Option<i64>,
    /// Until when it does not even die of KILL.
    stuck_until: i64,
    pub sick: bool,
    /// When it got its first stop signal.
    pub term_at: Option<i64>,
    /// When its `preStop` hook was done.
    pub pre_stop_done: bool,
}

/// A step that runs.
pub struct Op {
    pub action: Action,
    pub done_at: i64,
    /// When its first visible effect happens (an instance is `Created`).
    middle_at: i64,
    outcome: Outcome,
    /// What the pod asked for when the step began.
    wanted: BTreeMap<String, v1::ResourceRequirements>,
}

/// How unfriendly the machine is; calm is how a history ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Chaos,
    Calm,
}

pub struct World {
    pub now: i64,
    pub sandbox: Sandbox,
    pub instances: Vec<Instance>,
    pub ops: Vec<Op>,
    pub weather: Weather,
    /// That the pod is to end because it took too much, in its run folder.
    pub evicted: Option<Eviction>,
    /// The resources that the node has granted.
    pub allocated: BTreeMap<String, v1::ResourceRequirements>,
    next_id: u64,
}

/// What happened in the world and is news to the agent.
pub enum News {
    Done(Box<Action>, Outcome),
    Exited,
}

pub fn stamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
}

impl World {
    pub fn new() -> World {
        World {
            now: 0,
            sandbox: Sandbox::Absent,
            instances: Vec::new(),
            ops: Vec::new(),
            weather: Weather::Chaos,
            evicted: None,
            allocated: BTreeMap::new(),
            next_id: 1,
        }
    }

    pub fn observe(&self) -> Observation {
        let containers = self.instances.iter().map(|instance| instance.record.clone()).collect();
        Observation {
            sandbox: self.sandbox.clone(),
            containers,
            evicted: self.evicted.clone(),
            allocated: self.allocated.clone(),
            ..Observation::default()
        }
    }

    pub fn running(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|i| matches!(i.record.state, ContainerState::Running { .. }))
    }

    pub fn find(&mut self, id: &str) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|instance| instance.record.id == id)
    }

    /// Whether a step runs that makes, removes or stops an instance or a sandbox.
    pub fn is_building(&self) -> bool {
        self.ops.iter().any(|op| matches!(op.action.key(), Some(Key::Pod | Key::Instance(_) | Key::Stop(_))))
    }

    /// A step begins.
    pub fn launch(&mut self, rng: &mut Rng, pod: &Pod, action: &Action) {
        let (low, high) = match action {
            _ if self.weather == Weather::Chaos && rng.percent(4) => (10_000, 60_000),
            Action::RunHook { .. } => (1, 8_000),
            Action::EnsureImage { .. } => (0, 3_000),
            _ => (0, 300),
        };
        let done_at = self.now + rng.between(low, high);
        let middle_at = rng.between(self.now, done_at);
        let outcome = self.outcome(rng, pod, action);
        let wanted = if *action == Action::Allocate { wanted(pod) } else { BTreeMap::new() };
        self.ops.push(Op { action: action.clone(), done_at, middle_at, outcome, wanted });
    }

    fn outcome(&self, rng: &mut Rng, pod: &Pod, action: &Action) -> Outcome {
        let refuse = |reason: &str| {
            let (reason, message) = (reason.to_owned(), "scripted".to_owned());
            Outcome::Done(Err(Failure { reason, message }))
        };
        if *action == Action::Allocate && infeasible(pod) {
            return refuse("Infeasible");
        }
        if let Action::Probe { id, .. } = action {
            let sick = self.instances.iter().any(|i| i.record.id == *id && i.sick);
            let failure = sick || self.weather == Weather::Chaos && rng.percent(3);
            return Outcome::Probed(if failure {
                ProbeOutcome::Failure("no answer".to_owned())
            } else {
                ProbeOutcome::Success
            });
        }
        let chance = match action {
            Action::EnsureImage { .. } => 15,
            _ => 6,
        };
        if self.weather == Weather::Calm || !rng.percent(chance) {
            return Outcome::Done(Ok(()));
        }
        let reason = match action {
            Action::EnsureImage { .. } => "ErrImagePull",
            Action::StartContainer(_) => "CreateContainerError",
            Action::Allocate => "Deferred",
            _ => "Failed",
        };
        refuse(reason)
    }

    /// Forgets a pull that the agent dropped.
    pub fn drop_pull(&mut self, container: &str) {
        self.ops
            .retain(|op| !matches!(&op.action, Action::EnsureImage { container: c, .. } if c == container));
    }

    /// When something happens next.
    pub fn next_at(&self) -> i64 {
        let ops = self.ops.iter().map(|op| op.done_at.min(op.middle_at));
        let exits = self.running().map(|instance| instance.exit_at);
        ops.chain(exits).min().unwrap_or(NEVER)
    }

    /// Lets everything happen that is due now.
    pub fn turn(&mut self, rng: &mut Rng, pod: &Pod) -> Vec<News> {
        let mut news = Vec::new();
        for index in 0..self.instances.len() {
            let instance = &self.instances[index];
            if matches!(instance.record.state, ContainerState::Running { .. }) && instance.exit_at <= self.now
            {
                let code = instance.exit_code;
                self.exit(index, code);
                news.push(News::Exited);
            }
        }
        let mut waiting = Vec::new();
        for mut op in std::mem::take(&mut self.ops) {
            if op.middle_at <= self.now && op.middle_at != NEVER {
                self.begin_effect(rng, &op.action);
                op.middle_at = NEVER;
            }
            if op.done_at > self.now {
                waiting.push(op);
                continue;
            }
            let outcome = self.effect(rng, pod, &op.action, op.outcome, op.wanted);
            news.push(News::Done(Box::new(op.action), outcome));
        }
        self.ops.append(&mut waiting);
        news
    }

    fn exit(&mut self, index: usize, code: i32) {
        let finished_at = stamp(self.now);
        let instance = &mut self.instances[index];
        let started_at = match instance.record.state {
            ContainerState::Running { started_at } => Some(started_at),
            _ => None,
        };
        let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
        let signal = (code > 128).then_some(code - 128);
        let exit = Exit { code, signal, reason, message: None, started_at, finished_at };
        instance.record.state = ContainerState::Exited(exit);
        let id = instance.record.id.clone();
        for op in &mut self.ops {
            let of = match &op.action {
                Action::RunHook { id, .. } | Action::Probe { id, .. } => id,
                _ => continue,
            };
            if *of == id {
                op.done_at = op.done_at.min(self.now + 10);
            }
        }
    }

    /// The shim dies and takes its containers with it.
    pub fn kill_shim(&mut self) {
        if !matches!(self.sandbox, Sandbox::Ready { .. }) {
            return;
        }
        self.sandbox = Sandbox::Dead;
        for index in 0..self.instances.len() {
            if !matches!(self.instances[index].record.state, ContainerState::Exited(_)) {
                self.exit(index, 137);
            }
        }
    }

    /// The agent dies: its steps end where they are.
    pub fn abandon_ops(&mut self, rng: &mut Rng, pod: &Pod) {
        for op in std::mem::take(&mut self.ops) {
            if rng.percent(40) {
                self.effect(rng, pod, &op.action, op.outcome, op.wanted);
            } else if rng.percent(50) {
                self.begin_effect(rng, &op.action);
            }
        }
    }

    fn begin_effect(&mut self, rng: &mut Rng, action: &Action) {
        let Action::StartContainer(start) = action else { return };
        let present = |i: &&Instance| i.record.name == start.name && i.record.attempt == start.attempt;
        if !matches!(self.sandbox, Sandbox::Ready { .. }) || self.instances.iter().find(present).is_some() {
            return;
        }
        let newest_dead =
            self.instances.iter().filter(|i| i.record.name == start.name).map(|i| i.record.attempt).max();
        self.instances.retain(|i| i.record.name != start.name || Some(i.record.attempt) == newest_dead);
        let id = format!("{:064x}", self.next_id);
        self.next_id += 1;
        let record = ContainerRecord {
            id,
            name: start.name.clone(),
            attempt: start.attempt,
            delay: start.delay,
            spec_hash: start.spec_hash.clone(),
            image: "image".to_owned(),
            image_id: "sha256:0".to_owned(),
            created_at: stamp(self.now),
            state: ContainerState::Created,
            post_start_done: false,
            user: None,
            resources: Some(start.resources.clone()),
            round: start.round,
        };
        let obeys_after = rng.percent(75).then(|| rng.between(0, 3_000));
        self.instances.push(Instance {
            record,
            exit_at: NEVER,
            exit_code: 0,
            obeys_after,
            stuck_until: 0,
            sick: false,
            term_at: None,
            pre_stop_done: false,
        });
    }

    fn effect(
        &mut self,
        rng: &mut Rng,
        pod: &Pod,
        action: &Action,
        outcome: Outcome,
        wanted: BTreeMap<String, v1::ResourceRequirements>,
    ) -> Outcome {
        let ok = !matches!(outcome, Outcome::Done(Err(_)));
        match action {
            Action::CreateSandbox => self.sandbox_made(ok),
            Action::StartContainer(start) => {
                self.begin_effect(rng, action);
                return self.started(rng, pod, &start.name, start.attempt, outcome);
            }
            Action::RemoveContainer { id, .. } if ok => self.instances.retain(|i| i.record.id != *id),
            Action::RunHook { id, hook, .. } => {
                if let Some(instance) = self.find(id) {
                    match hook {
                        Hook::PostStart => instance.record.post_start_done |= ok,
                        Hook::PreStop => instance.pre_stop_done = true,
                    }
                }
            }
            Action::StopContainer { id, signal, .. } if ok => self.signal(rng, id, *signal),
            Action::Allocate if ok => self.allocated = wanted,
            Action::ResizeContainer { id, resources, .. } if ok => {
                if let Some(instance) = self.find(id) {
                    instance.record.resources = Some(resources.clone());
                }
            }
            Action::StopSandbox if ok => {
                self.kill_shim();
                self.sandbox = Sandbox::Absent;
            }
            Action::RemovePod if ok => {
                self.instances.clear();
                self.allocated.clear();
                self.sandbox = Sandbox::Absent;
            }
            _ => {}
        }
        outcome
    }

    fn sandbox_made(&mut self, ok: bool) {
        self.kill_shim();
        self.sandbox = if ok {
            let ips = vec![IpAddr::V4(Ipv4Addr::new(10, 85, 0, 2))];
            Sandbox::Ready { ips, created_at: stamp(self.now) }
        } else {
            Sandbox::Absent
        };
    }

    fn started(&mut self, rng: &mut Rng, pod: &Pod, name: &str, attempt: u32, outcome: Outcome) -> Outcome {
        let ready = matches!(self.sandbox, Sandbox::Ready { .. });
        let at = self.instances.iter().position(|i| i.record.name == name && i.record.attempt == attempt);
        let created = at.filter(|at| self.instances[*at].record.state == ContainerState::Created);
        let Some(index) = created.filter(|_| ready) else {
            let failure =
                Failure { reason: "RunContainerError".to_owned(), message: "no sandbox".to_owned() };
            return Outcome::Done(Err(failure));
        };
        if matches!(outcome, Outcome::Done(Err(_))) {
            self.instances.remove(index);
            return outcome;
        }
        let (exit_at, exit_code) = self.behaviour(rng, pod, name);
        let started_at = stamp(self.now);
        let instance = &mut self.instances[index];
        (instance.exit_at, instance.exit_code) = (exit_at, exit_code);
        instance.record.state = ContainerState::Running { started_at };
        if self.weather == Weather::Chaos && rng.percent(3) {
            self.exit(index, 128);
        }
        outcome
    }

    fn behaviour(&self, rng: &mut Rng, pod: &Pod, name: &str) -> (i64, i32) {
        let job = name.starts_with("init")
            && pod.container(name).is_some_and(|container| container.restart_policy.is_none());
        let policy = pod.spec().restart_policy.as_deref();
        let ends = self.now + rng.between(1, 20_000);
        match self.weather {
            Weather::Calm if job => (ends, 0),
            Weather::Calm => (NEVER, 0),
            Weather::Chaos if job => (ends, if rng.percent(30) { 1 } else { 0 }),
            Weather::Chaos if rng.percent(40) => (ends, *rng.pick(&[0, 1, 3])),
            Weather::Chaos if rng.percent(5) => (self.now + 700_000, 1),
            Weather::Chaos if policy != Some("Always") && rng.percent(50) => (ends, 0),
            Weather::Chaos => (NEVER, 0),
        }
    }

    fn signal(&mut self, rng: &mut Rng, id: &str, signal: StopSignal) {
        let (now, calm) = (self.now, self.weather == Weather::Calm);
        let stuck = !calm && rng.percent(5);
        let Some(instance) = self.find(id) else { return };
        match signal {
            StopSignal::Stop => {
                instance.term_at.get_or_insert(now);
                if let Some(after) = instance.obeys_after {
                    let exit_at = now + after;
                    if exit_at < instance.exit_at {
                        (instance.exit_at, instance.exit_code) = (exit_at, 143);
                    }
                }
            }
            StopSignal::Kill => {
                if stuck && instance.stuck_until == 0 {
                    instance.stuck_until = now + 40_000;
                }
                if now >= instance.stuck_until || calm {
                    (instance.exit_at, instance.exit_code) = (now + 5, 137);
                }
            }
        }
    }

    /// From now on nothing goes wrong any more.
    pub fn calm_down(&mut self) {
        self.weather = Weather::Calm;
        for instance in &mut self.instances {
            instance.sick = false;
        }
        for op in &mut self.ops {
            op.done_at = op.done_at.min(self.now + 1_000);
            if matches!(op.outcome, Outcome::Probed(_)) {
                op.outcome = Outcome::Probed(ProbeOutcome::Success);
            }
        }
    }
}

/// Milliseconds between two points in time.
pub fn ms(from: Timestamp, to: Timestamp) -> i64 {
    let span: SignedDuration = to.duration_since(from);
    i64::try_from(span.as_millis()).unwrap()
}
