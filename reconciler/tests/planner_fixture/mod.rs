//! A pod, what is observed of it and a memory, to ask the planner and the status about.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use berth_reconciler::node::{
    ContainerRecord, ContainerState, Deletion, Exit, Failure, Observation, PodEvent, ProbeOutcome, Sandbox,
};
use berth_reconciler::planner::{Action, Limits, Memory, Note, Outcome, Plan, plan, spec_hash};
use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::status::{Facts, pod_status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

/// A point in time, in seconds.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub fn pod(spec: Value) -> Pod {
    let object = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "u1", "generation": 1 },
        "spec": spec,
    });
    Pod::new(serde_json::from_value(object).unwrap(), Source::Api)
}

/// A pod with one main container `c` that has these fields, and pod fields beside it.
pub fn one(container: Value, fields: Value) -> Pod {
    let mut spec = json!({ "containers": [{ "name": "c", "image": "i" }] });
    merge(&mut spec["containers"][0], container);
    merge(&mut spec, fields);
    pod(spec)
}

fn merge(into: &mut Value, from: Value) {
    let Value::Object(from) = from else { return };
    for (key, value) in from {
        into[key] = value;
    }
}

pub struct Bench {
    pub pod: Pod,
    pub deletion: Option<Deletion>,
    pub seen: Observation,
    pub memory: Memory,
    pub now: Timestamp,
    /// What a clock shows that nobody sets.
    pub steady: Duration,
    pub events: Vec<PodEvent>,
}

impl Bench {
    /// A pod that was seen first at 0, without anything on the machine.
    pub fn new(pod: Pod) -> Bench {
        let memory = Memory::new(Limits::default(), None, at(0));
        let (seen, events) = (Observation::default(), Vec::new());
        Bench { pod, deletion: None, seen, memory, now: at(0), steady: Duration::from_secs(1 << 20), events }
    }

    /// The same with a sandbox that was made at 0.
    pub fn up(pod: Pod) -> Bench {
        let mut bench = Bench::new(pod);
        bench.sandbox(0);
        bench
    }

    pub fn sandbox(&mut self, since: i64) {
        let ips = vec![IpAddr::V4(Ipv4Addr::new(10, 85, 0, 9))];
        self.seen.sandbox = Sandbox::Ready { ips, created_at: at(since) };
    }

    pub fn time(&mut self, seconds: i64) -> &mut Bench {
        self.now = at(seconds);
        self
    }

    pub fn plan(&self) -> Plan {
        plan(&self.pod, self.deletion.as_ref(), &self.seen, &self.memory, self.now)
    }

    /// Plans and begins until nothing new is planned, as the worker does. Gives what was begun, notes left out.
    pub fn step(&mut self) -> Vec<Action> {
        let mut begun = Vec::new();
        loop {
            let plan = self.plan();
            let mut any = false;
            for action in plan.actions {
                if action.key().is_some_and(|key| self.memory.is_busy(&key)) {
                    continue;
                }
                any = true;
                self.events.extend(self.memory.begin(&self.pod, &action, self.now));
                if !matches!(action, Action::Note(_)) {
                    begun.push(action);
                }
            }
            if !any {
                return begun;
            }
        }
    }

    /// As [`Bench::step`], in short words: `pull c`, `start c 0`, `Stop c` ...
    pub fn words(&mut self) -> Vec<String> {
        self.step().iter().map(word).collect()
    }

    pub fn done(&mut self, action: &Action) {
        self.finish(action, Outcome::Done(Ok(())));
    }

    pub fn fail(&mut self, action: &Action, reason: &str, message: &str) {
        let failure = Failure { reason: reason.to_owned(), message: message.to_owned() };
        self.finish(action, Outcome::Done(Err(failure)));
    }

    pub fn probed(&mut self, action: &Action, success: bool) {
        let failure = || ProbeOutcome::Failure("no answer".to_owned());
        self.finish(action, Outcome::Probed(if success { ProbeOutcome::Success } else { failure() }));
    }

    fn finish(&mut self, action: &Action, outcome: Outcome) {
        let events = self.memory.finish(&self.pod, action, &outcome, self.now);
        self.events.extend(events);
    }

    /// Takes the steps that are planned now, successfully, and gives them in short words.
    pub fn take(&mut self) -> Vec<String> {
        let actions = self.step();
        for action in &actions {
            match action {
                Action::Probe { .. } => self.probed(action, true),
                _ => self.done(action),
            }
        }
        actions.iter().map(word).collect()
    }

    fn record(
        &mut self,
        name: &str,
        attempt: u32,
        created: i64,
        state: ContainerState,
    ) -> &mut ContainerRecord {
        let record = ContainerRecord {
            id: format!("{name}-{attempt}"),
            name: name.to_owned(),
            attempt,
            delay: None,
            spec_hash: self.pod.container(name).map(spec_hash).unwrap_or_default(),
            image: "i".to_owned(),
            image_id: "sha256:1".to_owned(),
            created_at: at(created),
            state,
            post_start_done: false,
            user: None,
            resources: self.pod.container(name).and_then(|container| container.resources.clone()),
            round: None,
        };
        self.seen.containers.retain(|known| known.name != name || known.attempt + 1 == attempt);
        self.seen.containers.push(record);
        self.seen.containers.last_mut().unwrap()
    }

    pub fn running(&mut self, name: &str, attempt: u32, since: i64) -> &mut ContainerRecord {
        self.record(name, attempt, since, ContainerState::Running { started_at: at(since) })
    }

    pub fn created(&mut self, name: &str, attempt: u32, since: i64) -> &mut ContainerRecord {
        self.record(name, attempt, since, ContainerState::Created)
    }

    /// An instance that ran from `since` to `end`.
    pub fn exited(
        &mut self,
        name: &str,
        attempt: u32,
        since: i64,
        end: i64,
        code: i32,
    ) -> &mut ContainerRecord {
        let exit = Exit {
            code,
            signal: (code > 128).then_some(code - 128),
            reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
            message: None,
            started_at: Some(at(since)),
            finished_at: at(end),
        };
        self.record(name, attempt, since, ContainerState::Exited(exit))
    }

    pub fn delete(&mut self, seconds: i64, grace_seconds: u64) {
        self.deletion = Some(Deletion { requested_at: at(seconds), grace_seconds });
    }

    pub fn wake(&self) -> Option<i64> {
        self.plan().wake_at.map(|wake| wake.as_second() - at(0).as_second())
    }

    pub fn status(&self, previous: Option<&v1::PodStatus>) -> v1::PodStatus {
        let facts = Facts { host_ips: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))] };
        pod_status(&self.pod, self.deletion.as_ref(), &self.seen, &self.memory, previous, &facts, self.now)
    }

    pub fn event(&self, reason: &str) -> Option<&str> {
        self.events.iter().rev().find(|event| event.reason == reason).map(|event| event.message.as_str())
    }
}

fn word(action: &Action) -> String {
    match action {
        Action::CreateSandbox => "sandbox".to_owned(),
        Action::EnsureImage { container, .. } => format!("pull {container}"),
        Action::StartContainer(start) => format!("start {} {}", start.name, start.attempt),
        Action::RemoveContainer { id, .. } => format!("remove {id}"),
        Action::RunHook { id, hook, .. } => format!("{hook:?} {id}"),
        Action::Probe { id, kind, .. } => format!("{kind:?} {id}"),
        Action::StopContainer { id, signal, .. } => format!("{signal:?} {id}"),
        Action::Allocate => "allocate".to_owned(),
        Action::ResizeContainer { id, .. } => format!("resize {id}"),
        Action::StopSandbox => "stop sandbox".to_owned(),
        Action::RemovePod => "remove pod".to_owned(),
        Action::DropPull { container } => format!("drop {container}"),
        Action::Note(Note::Stopping { id, .. }) => format!("stopping {id}"),
        Action::Note(note) => format!("{note:?}"),
    }
}

/// The back-off recorded for the instance that is to be started.
pub fn delay(actions: &[Action]) -> Option<Option<Duration>> {
    actions.iter().find_map(|action| match action {
        Action::StartContainer(start) => Some(start.delay),
        _ => None,
    })
}
