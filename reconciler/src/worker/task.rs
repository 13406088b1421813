//! The loop of one pod: observe, plan, act, publish, sleep until something happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::Options;
use super::execute::execute;
use super::slot::{Desired, Slot};
use super::standing::Standing;
use crate::node::{Deletion, Node, Observation, Probed};
use crate::planner::{Action, Key, Limits, Memory, Outcome, plan};
use crate::pod::Pod;
use crate::status::{Facts, pod_status, with_conditions};

/// A step that is done; no outcome if it was dropped.
type Flight = BoxFuture<'static, (Action, Option<Outcome>)>;

/// A pod's task. Everything it holds may be lost at any time.
pub(super) struct Task<'a, N: Node> {
    node: &'a Arc<N>,
    options: &'a Options,
    slot: &'a Slot,
    memory: Memory,
    flights: FuturesUnordered<Flight>,
    /// Steps that ended before anybody waited for them.
    landed: Vec<(Action, Option<Outcome>)>,
    pulls: BTreeMap<Key, AbortHandle>,
    /// What the node does by itself.
    standing: Standing,
    published: Option<(Arc<Pod>, Option<Deletion>)>,
    begun: Instant,
}

impl<'a, N: Node> Task<'a, N> {
    pub fn new(node: &'a Arc<N>, options: &'a Options, slot: &'a Slot) -> Self {
        let limits = Limits { max_restart_period: options.max_restart_period };
        let memory = Memory::new(limits, slot.published().as_deref(), (options.clock)());
        let (flights, pulls) = (FuturesUnordered::new(), BTreeMap::new());
        Task {
            node,
            options,
            slot,
            memory,
            flights,
            landed: Vec::new(),
            pulls,
            standing: Standing::default(),
            published: None,
            begun: Instant::now(),
        }
    }

    /// Runs until nothing of the pod exists any more.
    pub async fn run(mut self) {
        loop {
            let desired = self.slot.take();
            let observed = self.node.observe(desired.pod.uid()).await;
            let now = (self.options.clock)();
            self.memory.tick(now, self.steady(), desired.deletion.as_ref(), observed.evicted.as_ref());
            if desired.config_changed {
                self.memory.config_changed(now);
            }
            self.standing.review(&desired, &observed, &mut self.memory, now);
            // A plan may have held back what has to wait for a step that is under way; for a probe nothing has.
            let free = self.memory.only_probes();
            let wake_at = self.act(&desired, &observed, now);
            self.standing.review(&desired, &observed, &mut self.memory, now);
            // Steps are under way while the status is being written.
            self.push_off();
            self.publish(desired, &observed, now);
            if self.memory.removed() {
                return;
            }
            self.rest(wake_at, free).await;
        }
    }

    /// Waits until there is something to plan. A probe that finds what it found before is nothing: if that was all that the plan
    /// wanted, it is only repeated, which is most of what happens to most pods. Best is a node that does that by itself.
    async fn rest(&mut self, wake_at: Option<Timestamp>, free: bool) {
        let may_repeat = free && self.memory.only_probes();
        let mut repeats: Vec<(Timestamp, Action)> = Vec::new();
        loop {
            let next = repeats.iter().map(|(due, _)| *due).chain(wake_at).min();
            let mut plan = self.sleep(next).await;
            let pod = self.slot.pod();
            for (action, outcome) in std::mem::take(&mut self.landed) {
                let now = (self.options.clock)();
                plan |= self.memory.set_clock(now, self.steady());
                let due = outcome.as_ref().and_then(|outcome| self.memory.repeats(&pod, &action, outcome));
                self.complete(&pod, &action, outcome, now);
                let Some(due) = due.filter(|_| may_repeat) else {
                    plan = true;
                    continue;
                };
                let probe = (&pod, &action);
                if !self.standing.delegate(self.node, &mut self.memory, probe, (due, now)) {
                    repeats.push((due, action));
                }
            }
            let now = (self.options.clock)();
            if plan || wake_at.is_some_and(|at| at <= now) || self.memory.set_clock(now, self.steady()) {
                return;
            }
            let (due, later): (Vec<_>, Vec<_>) = repeats.into_iter().partition(|(due, _)| *due <= now);
            repeats = later;
            for (_, action) in due {
                // Nothing is told of a probe's beginning.
                let _ = self.memory.begin(&pod, &action, now);
                self.launch(pod.clone(), action);
            }
            self.push_off();
        }
    }

    /// What a clock shows that nobody sets. It is the one that timers go by.
    fn steady(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Begins every step that can be taken now. Gives the time of the next look.
    fn act(&mut self, desired: &Desired, observed: &Observation, now: Timestamp) -> Option<Timestamp> {
        let pod = &desired.pod;
        loop {
            let plan = plan(pod, desired.deletion.as_ref(), observed, &self.memory, now);
            let mut again = false;
            for action in plan.actions {
                let key = action.key();
                if key.as_ref().is_some_and(|key| self.memory.is_busy(key)) {
                    continue;
                }
                // That a probe is under way changes nothing but when the next one is due.
                again |= !matches!(action, Action::Probe { .. });
                if let Some(event) = self.memory.begin(pod, &action, now) {
                    self.node.event(pod, event);
                }
                if let Action::DropPull { container } = &action
                    && let Some(pull) = self.pulls.remove(&Key::Image(container.clone()))
                {
                    pull.abort();
                }
                if key.is_some() {
                    self.launch(pod.clone(), action);
                }
            }
            if !again {
                return plan.wake_at;
            }
        }
    }

    fn launch(&mut self, pod: Arc<Pod>, action: Action) {
        let (handle, registration) = AbortHandle::new_pair();
        if let Some(key @ Key::Image(_)) = action.key() {
            self.pulls.insert(key, handle);
        }
        let node = self.node.clone();
        let flight = async move {
            let outcome = Abortable::new(execute(node, pod, &action), registration).await.ok();
            (action, outcome)
        };
        self.flights.push(flight.boxed());
    }

    /// Lets every step that has begun run up to the first thing that it has to wait for.
    fn push_off(&mut self) {
        while let Some(Some(done)) = self.flights.next().now_or_never() {
            self.landed.push(done);
        }
    }

    fn publish(&mut self, desired: Desired, observed: &Observation, now: Timestamp) {
        let before = self.slot.status();
        let facts = Facts { host_ips: self.node.host_ips() };
        let (pod, deletion) = (desired.pod, desired.deletion);
        let given = self.slot.take_conditions().map(|given| with_conditions(&before, &given));
        let previous = given.as_ref().unwrap_or(&before);
        let status = pod_status(&pod, deletion.as_ref(), observed, &self.memory, Some(previous), &facts, now);
        self.memory.note_status(&status);
        let known = self.published.as_ref();
        let same = known.is_some_and(|(known, deleting)| Arc::ptr_eq(known, &pod) && *deleting == deletion);
        if same && status == *before {
            return;
        }
        let status = Arc::new(status);
        self.slot.set_status(status.clone());
        self.node.publish(&pod, deletion.as_ref(), &status);
        self.published = Some((pod, deletion));
    }

    /// Waits for a wake-up, the end of a step, or the time of the next look. True if it was the first.
    async fn sleep(&mut self, until: Option<Timestamp>) -> bool {
        let timer = async {
            match until {
                Some(at) => {
                    let left = at.duration_since((self.options.clock)());
                    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        let mut woken = false;
        if self.landed.is_empty() {
            let done = tokio::select! {
                Some(done) = self.flights.next() => Some(done),
                (action, probed) = self.standing.next() => Some(self.probed(action, probed)),
                () = self.slot.woken() => { woken = true; None }
                () = timer => None,
            };
            self.landed.extend(done);
        }
        // What is done by now needs no look of its own.
        self.push_off();
        woken
    }

    /// As if the last one had been made from here.
    fn probed(&mut self, action: Action, probed: Probed) -> (Action, Option<Outcome>) {
        let now = (self.options.clock)();
        let ago = SignedDuration::try_from(probed.ago).unwrap_or_default();
        let _ = self.memory.begin(&self.slot.pod(), &action, now.checked_sub(ago).unwrap_or(now));
        (action, Some(Outcome::Probed(probed.outcome)))
    }

    fn complete(&mut self, pod: &Arc<Pod>, action: &Action, outcome: Option<Outcome>, now: Timestamp) {
        let Some(outcome) = outcome else { return };
        if let Some(key @ Key::Image(_)) = action.key() {
            self.pulls.remove(&key);
        }
        for event in self.memory.finish(pod, action, &outcome, now) {
            self.node.event(pod, event);
        }
    }
}
