//! ConfigMaps and Secrets that pods of the cluster use: each watched by its name, as long as a pod refers to it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Cluster;
use super::follow::{Seen, follow};
use crate::configs::{Object, ObjectKey, Owner};
use crate::store::Kind;

struct Watch {
    users: HashSet<String>,
    task: JoinHandle<()>,
    /// Whether the server has been asked with an answer, even if that was an error.
    known: bool,
}

#[derive(Default)]
struct State {
    watches: HashMap<ObjectKey, Watch>,
    /// What each pod refers to.
    pods: HashMap<String, BTreeSet<ObjectKey>>,
}

/// The objects that are watched.
pub(super) struct Watched {
    state: Mutex<State>,
    arrived: Notify,
}

impl Watched {
    pub fn new() -> Self {
        Self { state: Mutex::default(), arrived: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when an object has become known.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Whether the server has answered for everything that the pod refers to.
    pub fn are_known(&self, uid: &str) -> bool {
        let state = self.lock();
        let Some(keys) = state.pods.get(uid) else { return true };
        keys.iter().all(|key| state.watches.get(key).is_none_or(|watch| watch.known))
    }

    /// A pod refers to nothing any more. Gives what nobody else refers to.
    pub fn release(&self, uid: &str) -> Vec<ObjectKey> {
        let mut state = self.lock();
        let keys = state.pods.remove(uid).unwrap_or_default();
        state.let_go(uid, keys)
    }

    fn answered(&self, key: &ObjectKey) {
        if let Some(watch) = self.lock().watches.get_mut(key) {
            watch.known = true;
        }
        self.arrived.notify_one();
    }
}

impl State {
    fn let_go(&mut self, uid: &str, keys: BTreeSet<ObjectKey>) -> Vec<ObjectKey> {
        let mut unused = Vec::new();
        for key in keys {
            let Some(watch) = self.watches.get_mut(&key) else { continue };
            watch.users.remove(uid);
            if watch.users.is_empty() {
                watch.task.abort();
                self.watches.remove(&key);
                unused.push(key);
            }
        }
        unused
    }
}

impl Cluster {
    /// A pod refers to exactly these now.
    pub(super) fn watch_objects(self: &Arc<Self>, uid: &str, keys: BTreeSet<ObjectKey>) {
        let Some(client) = self.client() else { return };
        let unused = {
            let mut state = self.objects.lock();
            for key in &keys {
                let watch = state.watches.entry(key.clone()).or_insert_with(|| Watch {
                    users: HashSet::new(),
                    task: tokio::spawn(self.clone().follow_object(client.clone(), key.clone())),
                    known: false,
                });
                watch.users.insert(uid.to_owned());
            }
            let before = state.pods.insert(uid.to_owned(), keys.clone()).unwrap_or_default();
            let left_out = before.difference(&keys).cloned().collect();
            state.let_go(uid, left_out)
        };
        for key in unused {
            self.object_gone(&key);
        }
    }

    async fn follow_object(self: Arc<Self>, client: Client, key: ObjectKey) {
        match key.0 {
            Kind::Secret => {
                let api = Api::<v1::Secret>::namespaced(client, &key.1);
                self.follow_one(api, &key, |object| Object::Secret(Arc::new(object))).await;
            }
            _ => {
                let api = Api::<v1::ConfigMap>::namespaced(client, &key.1);
                self.follow_one(api, &key, |object| Object::ConfigMap(Arc::new(object))).await;
            }
        }
    }

    async fn follow_one<K>(&self, api: Api<K>, key: &ObjectKey, wrap: fn(K) -> Object)
    where
        K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", key.2));
        // It may be known from before.
        let known = BTreeSet::from([(key.1.clone(), key.2.clone())]);
        let see = |seen| match seen {
            Seen::Is(object) => self.object_is(key, wrap(without_server_fields(object))),
            Seen::Gone(_) => self.object_gone(key),
            Seen::Listed => self.objects.answered(key),
            Seen::Failed(error) => {
                tracing::debug!(kind = %key.0, namespace = key.1, name = key.2, %error, "cannot follow an object");
                // The pod says what it lacks; when the server can be asked again, it goes on.
                self.objects.answered(key);
            }
        };
        follow(api, config, known, see).await;
    }

    fn object_is(&self, key: &ObjectKey, object: Object) {
        match self.node.configs.owner(key) {
            None | Some(Owner::Cluster) => {}
            Some(_) => {
                tracing::warn!(kind = %key.0, namespace = key.1, name = key.2, "the node has an object of its own by this name, which its pods see in place of the cluster's");
                return;
            }
        }
        if !self.node.configs.put(Owner::Cluster, object.clone()) {
            return;
        }
        if let Err(error) = self.saved.save_config(&object) {
            tracing::warn!(kind = %key.0, namespace = key.1, name = key.2, %error, "cannot store an object of the cluster");
        }
        self.node.config_changed(key);
    }

    pub(super) fn object_gone(&self, key: &ObjectKey) {
        self.saved.remove_config(key);
        if self.node.configs.remove(&Owner::Cluster, key) {
            self.node.config_changed(key);
        }
    }
}

/// The object without what changes though nothing has, and without what nobody here reads.
fn without_server_fields<K: kube::Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}
