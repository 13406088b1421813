//! The cluster's RuntimeClasses: which of this node's runtimes a pod's `runtimeClassName` means.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::runtime::watcher;
use kube::{Api, Client};

use super::Cluster;
use super::follow::{Key, Seen, follow};
use crate::store::Kind;

/// The handler that is Berth's own engine.
pub const OWN: &str = "berth";

#[derive(Clone, Debug, PartialEq)]
struct Class {
    handler: String,
    overhead: BTreeMap<String, Quantity>,
}

/// The RuntimeClasses of the cluster that this machine is a node of; none without one. Clones share.
#[derive(Clone, Default)]
pub struct ClusterClasses(Arc<RwLock<BTreeMap<String, Class>>>);

impl ClusterClasses {
    /// The handler of a class; none if there is no such class.
    pub fn handler(&self, class: &str) -> Option<String> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(class).map(|class| class.handler.clone())
    }

    /// The classes whose handler is one of these, with what their pods cost.
    pub fn usable(&self, known: impl Fn(&str) -> bool) -> BTreeMap<String, BTreeMap<String, Quantity>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let usable = all.iter().filter(|(_, class)| known(&class.handler));
        usable.map(|(name, class)| (name.clone(), class.overhead.clone())).collect()
    }

    fn put(&self, class: &RuntimeClass) {
        let overhead = class.overhead.as_ref().and_then(|overhead| overhead.pod_fixed.clone());
        let value = Class { handler: class.handler.clone(), overhead: overhead.unwrap_or_default() };
        let name = class.metadata.name.clone().unwrap_or_default();
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, value);
    }

    fn keys(&self) -> BTreeSet<Key> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.keys().map(|name| (String::new(), name.clone())).collect()
    }

    fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

impl Cluster {
    pub(super) fn recall_classes(&self) {
        for class in self.saved.all::<RuntimeClass>(Kind::RuntimeClass) {
            self.node.cluster_classes.put(&class);
        }
    }

    /// Follows the cluster's RuntimeClasses, for ever.
    pub(super) async fn follow_classes(self: Arc<Self>, client: Client) {
        let known = self.node.cluster_classes.keys();
        let see = |seen| match seen {
            Seen::Is(class) => self.class_is(&class),
            Seen::Gone((_, name)) => {
                self.node.cluster_classes.remove(&name);
                self.saved.remove(Kind::RuntimeClass, "", &name);
            }
            Seen::Listed => drop(self.classes_known.send_replace(true)),
            Seen::Failed(error) => {
                tracing::debug!(%error, "cannot follow the cluster's RuntimeClasses");
                // Pods without a class need none.
                self.classes_known.send_replace(true);
            }
        };
        follow(Api::all(client), watcher::Config::default(), known, see).await;
    }

    fn class_is(&self, class: &RuntimeClass) {
        let mut class = class.clone();
        class.metadata.managed_fields = None;
        let name = class.metadata.name.clone().unwrap_or_default();
        if let Err(error) = self.saved.save(Kind::RuntimeClass, "", &name, &class) {
            tracing::warn!(name, %error, "cannot store a RuntimeClass of the cluster");
        }
        self.node.cluster_classes.put(&class);
    }
}
