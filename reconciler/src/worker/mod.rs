//! One task per pod: observe, plan, act, and sleep until something happens.
//!
//! [`Reconciler`] holds the table of pods. `slot` is what it shares with a pod's task, `task` the task's loop,
//! `execute` turns actions into calls of the [`Node`].

mod execute;
mod slot;
mod standing;
mod task;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use self::slot::Slot;
use self::task::Task;
use crate::node::{Deletion, Node};
use crate::pod::Pod;

/// How long a task that panicked rests.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// How a [`Reconciler`] behaves.
#[derive(Clone)]
pub struct Options {
    /// Longest CrashLoopBackOff delay (`crashLoopBackOff.maxContainerRestartPeriod`).
    pub max_restart_period: Duration,
    /// The wall clock, which tests replace.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Default for Options {
    fn default() -> Self {
        Options { max_restart_period: Duration::from_secs(300), clock: Arc::new(Timestamp::now) }
    }
}

/// A pod as the reconciler holds it.
#[derive(Clone, Debug)]
pub struct PodView {
    /// The pod as it should be.
    pub pod: Arc<Pod>,
    /// Its deletion, once asked for.
    pub deletion: Option<Deletion>,
    /// The status published last.
    pub status: Arc<v1::PodStatus>,
}

/// All pods of a node, each with its own task. Clones share one set. Needs a tokio runtime.
pub struct Reconciler<N: Node> {
    inner: Arc<Inner<N>>,
}

impl<N: Node> Clone for Reconciler<N> {
    fn clone(&self) -> Self {
        Reconciler { inner: self.inner.clone() }
    }
}

struct Inner<N: Node> {
    node: Arc<N>,
    options: Options,
    table: Mutex<Table>,
    /// Told whenever a pod is gone.
    left: Notify,
}

#[derive(Default)]
struct Table {
    /// Pods with a task, by uid.
    active: HashMap<String, Entry>,
    /// Who holds a name: `namespace/name` to uid.
    names: HashMap<String, String>,
    /// Who gets the name next.
    waiting: HashMap<String, Arc<Pod>>,
    closed: bool,
}

struct Entry {
    slot: Arc<Slot>,
    task: JoinHandle<()>,
}

impl<N: Node> Reconciler<N> {
    /// An empty set of pods on that node.
    pub fn new(node: Arc<N>, options: Options) -> Self {
        let (table, left) = (Mutex::default(), Notify::new());
        Reconciler { inner: Arc::new(Inner { node, options, table, left }) }
    }

    /// The node it acts on.
    pub fn node(&self) -> &Arc<N> {
        &self.inner.node
    }

    /// Makes a pod wanted, or changes it. A known uid gets the new spec. A pod whose name is still held by another
    /// uid waits for that one's end (which the caller asks for with [`Reconciler::delete`]); of several waiting the
    /// latest wins. The uid of a pod that is being deleted starts anew after its end.
    pub fn apply(&self, pod: Arc<Pod>) {
        self.inner.admit(pod, None, None);
    }

    /// Changes a pod that is there, whether or not it is being deleted; nothing begins by it. Returns whether the uid is known.
    pub fn update(&self, pod: Arc<Pod>) -> bool {
        let mut table = self.inner.lock();
        if let Some(entry) = table.active.get(pod.uid()) {
            entry.slot.set_pod(pod);
            return true;
        }
        match table.waiting.values_mut().find(|waiting| waiting.uid() == pod.uid()) {
            Some(waiting) => {
                *waiting = pod;
                true
            }
            None => false,
        }
    }

    /// Takes over a pod that an earlier agent ran, with its deletion and the status published last. Where two pods
    /// share a name, the one being deleted has to come first.
    pub fn adopt(&self, pod: Arc<Pod>, deletion: Option<Deletion>, status: Option<v1::PodStatus>) {
        self.inner.admit(pod, deletion, status);
    }

    /// Deletes a pod within a grace period in seconds, its own by default; 0 kills at once. A second call can only
    /// shorten the grace period. A pod that waits for its name is forgotten. Returns whether the uid is known.
    pub fn delete(&self, uid: &str, grace: Option<u64>) -> bool {
        let mut table = self.inner.lock();
        let waiting = table.waiting.iter().find(|(_, pod)| pod.uid() == uid).map(|(name, _)| name.clone());
        let forgotten = waiting.and_then(|name| table.waiting.remove(&name));
        let slot = table.active.get(uid).map(|entry| entry.slot.clone());
        drop(table);
        if let Some(slot) = slot {
            slot.delete(grace, (self.inner.options.clock)());
            return true;
        }
        if let Some(pod) = &forgotten {
            self.inner.node.gone(pod);
        }
        forgotten.is_some()
    }

    /// Something may have happened to the pod: look at it again. Unknown uids are ignored.
    pub fn wake(&self, uid: &str) {
        if let Some(slot) = self.inner.slot(uid) {
            slot.wake();
        }
    }

    /// Something that the pod may wait for has changed (a ConfigMap, a Secret, an image): steps that failed are tried
    /// again at once.
    pub fn config_changed(&self, uid: &str) {
        if let Some(slot) = self.inner.slot(uid) {
            slot.config_changed();
        }
    }

    /// Sets the conditions of a pod that are not the node's own, such as those that its readiness gates wait for. Unknown uids are ignored.
    pub fn set_conditions(&self, uid: &str, conditions: Vec<v1::PodCondition>) {
        if let Some(slot) = self.inner.slot(uid) {
            slot.set_conditions(conditions);
        }
    }

    /// One pod; if it is being deleted and wanted again, the one being deleted.
    pub fn get(&self, uid: &str) -> Option<PodView> {
        let table = self.inner.lock();
        let active = table.active.get(uid).map(|entry| entry.slot.view());
        active.or_else(|| table.waiting.values().find(|pod| pod.uid() == uid).map(waiting_view))
    }

    /// All pods, those that wait for their name too, in no order.
    pub fn pods(&self) -> Vec<PodView> {
        let table = self.inner.lock();
        let waiting = table.waiting.values().filter(|pod| !table.active.contains_key(pod.uid()));
        table.active.values().map(|entry| entry.slot.view()).chain(waiting.map(waiting_view)).collect()
    }

    /// Returns once no pod is left.
    pub async fn drained(&self) {
        loop {
            let left = self.inner.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.inner.lock().active.is_empty() {
                return;
            }
            left.await;
        }
    }

    /// Ends all tasks and leaves the pods as they are. Returns once no task runs any more; later calls of
    /// [`Reconciler::apply`] and [`Reconciler::adopt`] do nothing.
    pub async fn shutdown(&self) {
        let entries = {
            let mut table = self.inner.lock();
            table.closed = true;
            std::mem::take(&mut table.active)
        };
        for entry in entries.into_values() {
            entry.task.abort();
            // An error only says that the task was aborted, which is what is wanted.
            let _ = entry.task.await;
        }
        self.inner.left.notify_waiters();
    }
}

fn waiting_view(pod: &Arc<Pod>) -> PodView {
    PodView { pod: pod.clone(), deletion: None, status: Arc::new(slot::pending()) }
}

impl<N: Node> Inner<N> {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, uid: &str) -> Option<Arc<Slot>> {
        self.lock().active.get(uid).map(|entry| entry.slot.clone())
    }

    fn admit(self: &Arc<Self>, pod: Arc<Pod>, deletion: Option<Deletion>, status: Option<v1::PodStatus>) {
        let mut table = self.lock();
        if table.closed {
            return;
        }
        let name = pod.full_name();
        let slot = table.active.get(pod.uid()).map(|entry| entry.slot.clone());
        match slot {
            Some(slot) if !slot.deleting() => slot.set_pod(pod),
            None if !table.names.contains_key(&name) => self.start(&mut table, pod, deletion, status),
            _ => {
                let replaced = table.waiting.insert(name, pod.clone());
                drop(table);
                if let Some(replaced) = replaced.filter(|replaced| replaced.uid() != pod.uid()) {
                    self.node.gone(&replaced);
                }
            }
        }
    }

    fn start(
        self: &Arc<Self>,
        table: &mut Table,
        pod: Arc<Pod>,
        deletion: Option<Deletion>,
        status: Option<v1::PodStatus>,
    ) {
        let (uid, name) = (pod.uid().to_owned(), pod.full_name());
        let slot = Arc::new(Slot::new(pod, deletion, status));
        let task = tokio::spawn(self.clone().supervise(slot.clone()));
        table.names.insert(name, uid.clone());
        table.active.insert(uid, Entry { slot, task });
    }

    /// Runs a pod's task to its end. A panic costs the task's memory only: what it needs can be observed again.
    async fn supervise(self: Arc<Self>, slot: Arc<Slot>) {
        loop {
            let task = Task::new(&self.node, &self.options, &slot).run();
            if AssertUnwindSafe(task).catch_unwind().await.is_ok() {
                break;
            }
            tracing::error!(pod = %slot.pod().full_name(), "a pod's worker panicked and starts anew");
            tokio::time::sleep(AFTER_PANIC).await;
        }
        self.leave(&slot.pod());
    }

    /// Forgets a pod of which nothing exists any more, and lets the next one have its name.
    fn leave(self: &Arc<Self>, pod: &Arc<Pod>) {
        self.node.gone(pod);
        let mut table = self.lock();
        let name = pod.full_name();
        table.active.remove(pod.uid());
        table.names.remove(&name);
        if let Some(next) = table.waiting.remove(&name).filter(|_| !table.closed) {
            self.start(&mut table, next, None, None);
        }
        drop(table);
        self.left.notify_waiters();
    }
}
