//! One task per pod: observe, plan, act, and sleep until something happens.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::node::{Deletion, Node};
use crate::pod::Pod;

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
    node: Arc<N>,
    options: Options,
}

impl<N: Node> Reconciler<N> {
    /// An empty set of pods on that node.
    pub fn new(node: Arc<N>, options: Options) -> Self {
        Reconciler { node, options }
    }

    /// The node it acts on.
    pub fn node(&self) -> &Arc<N> {
        &self.node
    }

    /// Makes a pod wanted, or changes it. A known uid gets the new spec. A pod whose name is still held by another
    /// uid waits for that one's end (which the caller asks for with [`Reconciler::delete`]); of several waiting the
    /// latest wins. The uid of a pod that is being deleted starts anew after its end.
    pub fn apply(&self, _pod: Arc<Pod>) {
        let _ = &self.options;
    }

    /// Takes over a pod that an earlier agent ran, with its deletion and the status published last.
    pub fn adopt(&self, _pod: Arc<Pod>, _deletion: Option<Deletion>, _status: Option<v1::PodStatus>) {}

    /// Deletes a pod within a grace period in seconds, its own by default; 0 kills at once. A second call can shorten the grace
    /// period only. Returns whether the uid is known.
    pub fn delete(&self, _uid: &str, _grace: Option<u64>) -> bool {
        false
    }

    /// Something may have happened to the pod: look at it again. Unknown uids are ignored.
    pub fn wake(&self, _uid: &str) {}

    /// Something that the pod may wait for has changed (a ConfigMap, a Secret, an image): steps that failed are tried
    /// again at once.
    pub fn config_changed(&self, _uid: &str) {}

    /// One pod.
    pub fn get(&self, _uid: &str) -> Option<PodView> {
        None
    }

    /// All pods, those that wait for their name too.
    pub fn pods(&self) -> Vec<PodView> {
        Vec::new()
    }

    /// Returns once no pod is left.
    pub async fn drained(&self) {}

    /// Ends all tasks and leaves the pods as they are. Returns once no task runs any more.
    pub async fn shutdown(&self) {}
}
