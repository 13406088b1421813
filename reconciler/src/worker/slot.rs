//! What the table of pods and a pod's task share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use tokio::sync::Notify;

use super::PodView;
use crate::node::Deletion;
use crate::pod::Pod;

/// One pod: what is wanted of it and what was published last. Wake-ups carry nothing and may be lost in each other.
pub(super) struct Slot {
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    pod: Arc<Pod>,
    deletion: Option<Deletion>,
    config_changed: bool,
    status: Arc<v1::PodStatus>,
    /// Conditions that somebody has set and that no status says yet.
    conditions: Option<Vec<v1::PodCondition>>,
    /// Whether the status was published by some agent, not only made up here.
    published: bool,
}

/// What a task is to bring about.
pub(super) struct Desired {
    pub pod: Arc<Pod>,
    pub deletion: Option<Deletion>,
    /// Steps that failed are to be tried again at once.
    pub config_changed: bool,
}

impl Slot {
    pub fn new(pod: Arc<Pod>, deletion: Option<Deletion>, status: Option<v1::PodStatus>) -> Slot {
        let published = status.is_some();
        let status = Arc::new(status.unwrap_or_else(pending));
        let state = State { pod, deletion, config_changed: false, status, conditions: None, published };
        Slot { state: Mutex::new(state), wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    pub fn pod(&self) -> Arc<Pod> {
        self.lock().pod.clone()
    }

    pub fn set_pod(&self, pod: Arc<Pod>) {
        self.lock().pod = pod;
        self.wake();
    }

    pub fn config_changed(&self) {
        self.lock().config_changed = true;
        self.wake();
    }

    pub fn deleting(&self) -> bool {
        self.lock().deletion.is_some()
    }

    /// Asks for deletion, or shortens the grace period of one that goes on.
    pub fn delete(&self, grace: Option<u64>, now: Timestamp) {
        let mut state = self.lock();
        let own = state.pod.spec().termination_grace_period_seconds;
        let grace_seconds = grace.unwrap_or_else(|| own.map_or(30, |own| u64::try_from(own).unwrap_or(0)));
        match &mut state.deletion {
            Some(known) if known.grace_seconds <= grace_seconds => return,
            Some(known) => known.grace_seconds = grace_seconds,
            none => *none = Some(Deletion { requested_at: now, grace_seconds }),
        }
        drop(state);
        self.wake();
    }

    /// What is wanted now; a change of configuration is handed out once.
    pub fn take(&self) -> Desired {
        let mut state = self.lock();
        let config_changed = std::mem::take(&mut state.config_changed);
        Desired { pod: state.pod.clone(), deletion: state.deletion.clone(), config_changed }
    }

    pub fn status(&self) -> Arc<v1::PodStatus> {
        self.lock().status.clone()
    }

    /// Sets the conditions that are not the node's own.
    pub fn set_conditions(&self, conditions: Vec<v1::PodCondition>) {
        self.lock().conditions = Some(conditions);
        self.wake();
    }

    /// The conditions that somebody has set since this was asked last.
    pub fn take_conditions(&self) -> Option<Vec<v1::PodCondition>> {
        self.lock().conditions.take()
    }

    /// The status that an agent published, for a task's first look.
    pub fn published(&self) -> Option<Arc<v1::PodStatus>> {
        let state = self.lock();
        state.published.then(|| state.status.clone())
    }

    pub fn set_status(&self, status: Arc<v1::PodStatus>) {
        let mut state = self.lock();
        state.status = status;
        state.published = true;
    }

    pub fn view(&self) -> PodView {
        let state = self.lock();
        PodView { pod: state.pod.clone(), deletion: state.deletion.clone(), status: state.status.clone() }
    }
}

/// The status of a pod that nobody has looked at yet.
pub(super) fn pending() -> v1::PodStatus {
    v1::PodStatus { phase: Some("Pending".to_owned()), ..v1::PodStatus::default() }
}
