//! A scripted [`Node`] under tokio's paused time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use berth_reconciler::node::{
    ContainerRecord, ContainerState, Deletion, Exit, Failure, Hook, Node, Observation, PodEvent,
    ProbeOutcome, Probed, Probing, Sandbox, StartContainer, StopSignal,
};
use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::worker::{Options, Reconciler};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

#[derive(Default)]
pub struct State {
    pub machine: HashMap<String, Observation>,
    pub calls: Vec<String>,
    pub observed: usize,
    pub published: Vec<(String, v1::PodStatus)>,
    pub gone: Vec<String>,
    /// Verbs that fail (with that reason), by their first word and container, and commands of probes.
    pub failing: HashMap<String, &'static str>,
    /// Verbs that panic once.
    pub panics: Option<&'static str>,
    /// How long a pull takes.
    pub pull: Duration,
    /// How long a hook takes.
    pub hook: Duration,
    /// It makes probes that succeed again and again by itself, so often.
    pub repeats: u32,
}

#[derive(Default)]
pub struct Script {
    state: Mutex<State>,
}

/// The wall clock that goes with tokio's.
pub fn clock(base: Arc<OnceLock<Instant>>) -> Timestamp {
    let elapsed = base.get_or_init(Instant::now).elapsed();
    let start = Timestamp::from_second(1_800_000_000).unwrap();
    start + SignedDuration::try_from(elapsed).unwrap()
}

pub fn reconciler() -> Reconciler<Script> {
    let base = Arc::new(OnceLock::new());
    base.get_or_init(Instant::now);
    let clock = Arc::new(move || clock(base.clone()));
    Reconciler::new(Arc::default(), Options { clock, ..Options::default() })
}

pub fn pod(uid: &str, name: &str, spec: Value) -> Arc<Pod> {
    let mut whole = json!({ "containers": [{ "name": "c", "image": "i" }] });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let object = json!({ "metadata": { "name": name, "namespace": "default", "uid": uid }, "spec": whole });
    Arc::new(Pod::new(serde_json::from_value(object).unwrap(), Source::Api))
}

/// Lets everything happen that happens within that time.
pub async fn pass(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

impl Script {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().calls)
    }

    pub fn phase(&self, uid: &str) -> Option<String> {
        let state = self.lock();
        let last = state.published.iter().rev().find(|(of, _)| of == uid)?;
        last.1.phase.clone()
    }

    fn call(&self, uid: &str, words: String) -> Result<(), Failure> {
        let mut state = self.lock();
        state.calls.push(format!("{uid} {words}"));
        let first = words.split(' ').next().unwrap();
        if state.panics == Some(first) {
            state.panics = None;
            drop(state);
            panic!("scripted");
        }
        match state.failing.get(first) {
            Some(reason) => Err(Failure { reason: (*reason).to_owned(), message: "scripted".to_owned() }),
            None => Ok(()),
        }
    }

    /// An instance ends.
    pub fn exit(&self, uid: &str, code: i32, now: Timestamp) {
        let mut state = self.lock();
        let Some(record) = state.machine.get_mut(uid).and_then(|seen| seen.containers.last_mut()) else {
            return;
        };
        let ContainerState::Running { started_at } = record.state else { return };
        record.state = ContainerState::Exited(Exit {
            code,
            signal: None,
            reason: "Error".to_owned(),
            message: None,
            started_at: Some(started_at),
            finished_at: now,
        });
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }
}

#[async_trait]
impl Node for Script {
    async fn observe(&self, uid: &str) -> Observation {
        let mut state = self.lock();
        state.observed += 1;
        state.machine.get(uid).cloned().unwrap_or_default()
    }

    async fn create_sandbox(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        self.call(pod.uid(), "sandbox".to_owned())?;
        sleep(Duration::from_millis(10)).await;
        let sandbox = Sandbox::Ready { ips: Vec::new(), created_at: self.now() };
        self.lock().machine.entry(pod.uid().to_owned()).or_default().sandbox = sandbox;
        Ok(())
    }

    async fn ensure_image(&self, pod: &Arc<Pod>, container: &str) -> Result<(), Failure> {
        self.call(pod.uid(), format!("pull {container}"))?;
        let pull = self.lock().pull;
        sleep(pull).await;
        self.lock().calls.push(format!("{} pulled", pod.uid()));
        Ok(())
    }

    async fn start_container(&self, pod: &Arc<Pod>, start: &StartContainer) -> Result<(), Failure> {
        self.call(pod.uid(), format!("start {} {}", start.name, start.attempt))?;
        sleep(Duration::from_millis(10)).await;
        let record = ContainerRecord {
            id: format!("{}-{}", start.name, start.attempt),
            name: start.name.clone(),
            attempt: start.attempt,
            delay: start.delay,
            spec_hash: start.spec_hash.clone(),
            image: "i".to_owned(),
            image_id: "sha256:1".to_owned(),
            created_at: self.now(),
            state: ContainerState::Running { started_at: self.now() },
            post_start_done: false,
            user: None,
            resources: Some(start.resources.clone()),
            round: start.round,
        };
        self.lock().machine.entry(pod.uid().to_owned()).or_default().containers.push(record);
        Ok(())
    }

    async fn remove_container(&self, pod: &Arc<Pod>, id: &str) -> Result<(), Failure> {
        self.call(pod.uid(), format!("remove-container {id}"))
    }

    async fn run_hook(
        &self,
        pod: &Arc<Pod>,
        id: &str,
        hook: Hook,
        _: &v1::LifecycleHandler,
    ) -> Result<(), Failure> {
        self.call(pod.uid(), format!("hook {hook:?} {id}"))?;
        let takes = self.lock().hook;
        sleep(takes).await;
        Ok(())
    }

    async fn probe(&self, pod: &Arc<Pod>, id: &str, probe: &v1::Probe) -> ProbeOutcome {
        let command = probe.exec.as_ref().and_then(|exec| exec.command.as_ref()?.first().cloned());
        if command.is_some_and(|command| self.lock().failing.contains_key(&command)) {
            return ProbeOutcome::Failure("scripted".to_owned());
        }
        match self.call(pod.uid(), format!("probe {id}")) {
            Ok(()) => ProbeOutcome::Success,
            Err(failure) => ProbeOutcome::Failure(failure.message),
        }
    }

    fn probe_again(
        self: Arc<Self>,
        pod: &Arc<Pod>,
        id: &str,
        probe: &v1::Probe,
        wait: Duration,
    ) -> Option<Probing> {
        let times = Some(self.lock().repeats).filter(|times| *times > 0)?;
        let period = Duration::from_secs(probe.period_seconds.unwrap().unsigned_abs().into());
        self.lock().calls.push(format!("{} ask {id}", pod.uid()));
        let (pod, id, probe) = (pod.clone(), id.to_owned(), probe.clone());
        Some(Box::pin(async move {
            sleep(wait).await;
            for _ in 1..times {
                let outcome = self.probe(&pod, &id, &probe).await;
                if outcome != ProbeOutcome::Success {
                    return Probed { outcome, ago: Duration::ZERO };
                }
                sleep(period).await;
            }
            Probed { outcome: self.probe(&pod, &id, &probe).await, ago: Duration::ZERO }
        }))
    }

    async fn stop_container(&self, pod: &Arc<Pod>, id: &str, signal: StopSignal) -> Result<(), Failure> {
        self.call(pod.uid(), format!("stop {id} {signal:?}"))
    }

    async fn allocate(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        self.call(pod.uid(), "allocate".to_owned())?;
        let wanted = pod.all_containers().map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()));
        self.lock().machine.entry(pod.uid().to_owned()).or_default().allocated = wanted.collect();
        Ok(())
    }

    async fn resize_container(
        &self,
        pod: &Arc<Pod>,
        id: &str,
        resources: &v1::ResourceRequirements,
    ) -> Result<(), Failure> {
        self.call(pod.uid(), format!("resize {id}"))?;
        let mut state = self.lock();
        let seen = state.machine.entry(pod.uid().to_owned()).or_default();
        for record in seen.containers.iter_mut().filter(|record| record.id == id) {
            record.resources = Some(resources.clone());
        }
        Ok(())
    }

    async fn remove_pod(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        self.call(pod.uid(), "remove".to_owned())?;
        self.lock().machine.remove(pod.uid());
        Ok(())
    }

    async fn stop_sandbox(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        self.call(pod.uid(), "stop-sandbox".to_owned())?;
        self.lock().machine.entry(pod.uid().to_owned()).or_default().sandbox = Sandbox::Absent;
        Ok(())
    }

    fn host_ips(&self) -> Vec<IpAddr> {
        Vec::new()
    }

    fn publish(&self, pod: &Arc<Pod>, _: Option<&Deletion>, status: &Arc<v1::PodStatus>) {
        self.lock().published.push((pod.uid().to_owned(), v1::PodStatus::clone(status)));
    }

    fn gone(&self, pod: &Arc<Pod>) {
        self.lock().gone.push(pod.uid().to_owned());
    }

    fn event(&self, _: &Arc<Pod>, _: PodEvent) {}
}
