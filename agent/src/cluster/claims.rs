//! Claims that pods of the cluster use: which volume each is bound to.
//!
//! Nodes may only get claims and volumes, each by its name, and neither list nor watch them. So a claim is asked for when a pod
//! comes that names it, and again, with growing pauses, as long as it has no volume that can be mounted here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_reconciler::claims::{check_bound, is_made_for, volume_of};
use berth_reconciler::pod::Pod;
use k8s_openapi::api::core::v1;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::follow::{Key, key_of};
use super::{Cluster, Pause, code};
use crate::store::Kind;
use crate::volumes::claims::claim_of;

/// A claim and the volume that it is bound to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bound {
    /// The claim.
    pub claim: v1::PersistentVolumeClaim,
    /// Its volume.
    pub volume: v1::PersistentVolume,
}

#[derive(Default)]
struct Entry {
    /// Pods that refer to it, by uid.
    users: BTreeSet<String>,
    /// What was found last.
    bound: Option<Arc<Bound>>,
    /// Why it cannot be mounted now.
    refusal: Option<String>,
    /// Whether the server has been asked for the newest of its users.
    known: bool,
    /// Who asks.
    task: Option<AbortHandle>,
}

#[derive(Default)]
struct Inner {
    entries: Mutex<BTreeMap<Key, Entry>>,
    arrived: Notify,
}

/// The claims of the cluster's pods. Clones share.
#[derive(Clone, Default)]
pub struct ClusterClaims(Arc<Inner>);

impl ClusterClaims {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claim behind a volume of a pod and the volume it is bound to. A pod that `holds` it already keeps what it has.
    ///
    /// # Errors
    /// Why the pod has to wait.
    pub fn get(&self, pod: &Pod, volume: &v1::Volume, key: &Key, holds: bool) -> Result<Arc<Bound>, String> {
        let name = &key.1;
        let entries = self.lock();
        let entry = entries.get(key);
        let found = entry.and_then(|entry| entry.bound.clone());
        let refusal = entry.and_then(|entry| entry.refusal.clone());
        let bound = match (found, refusal) {
            (Some(bound), None) => bound,
            (Some(bound), Some(_)) if holds => bound,
            (_, Some(why)) => return Err(why),
            (None, None) => return Err(format!("persistentvolumeclaim {name:?} has not been asked for yet")),
        };
        if volume.ephemeral.is_some() && !is_made_for(&bound.claim, pod.uid()) {
            return Err(format!(
                "persistentvolumeclaim {name:?} was not created for this pod (pod is not owner)"
            ));
        }
        if bound.claim.metadata.deletion_timestamp.is_some() && !holds {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        Ok(bound)
    }

    /// The volume that a claim was found to be bound to.
    pub fn volume(&self, key: &Key) -> Option<Arc<Bound>> {
        self.lock().get(key)?.bound.clone()
    }

    /// Resolves when something is known of a claim.
    pub(super) async fn arrived(&self) {
        self.0.arrived.notified().await;
    }

    /// Whether the server has answered for every claim of the pod.
    pub(super) fn are_known(&self, uid: &str) -> bool {
        self.lock().values().filter(|entry| entry.users.contains(uid)).all(|entry| entry.known)
    }

    /// Nobody knows yet whether a pod refers to it, but an earlier agent found it.
    fn recall(&self, key: Key, bound: Bound) {
        self.lock().insert(key, Entry { bound: Some(Arc::new(bound)), known: true, ..Entry::default() });
    }

    /// A pod wants nothing any more. Gives what nobody else wants.
    fn release(&self, uid: &str) -> Vec<Key> {
        self.take_out(|entry| entry.users.remove(uid) && entry.users.is_empty())
    }

    /// All pods of the server have been seen: what an earlier agent found for others is not kept.
    fn prune(&self) -> Vec<Key> {
        self.take_out(|entry| entry.users.is_empty())
    }

    fn take_out(&self, mut is_unused: impl FnMut(&mut Entry) -> bool) -> Vec<Key> {
        let mut taken = Vec::new();
        self.lock().retain(|key, entry| {
            let unused = is_unused(entry);
            if unused {
                entry.task.take().inspect(AbortHandle::abort);
                taken.push(key.clone());
            }
            !unused
        });
        taken
    }

    /// Notes what the server has answered. Gives the pods that may have waited for it; none if nothing has changed for them.
    fn answered(&self, key: &Key, answer: Result<Arc<Bound>, String>) -> BTreeSet<String> {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(key) else { return BTreeSet::new() };
        let refusal = answer.as_ref().err().cloned();
        let same = entry.known && entry.refusal == refusal && refusal.is_some();
        entry.known = true;
        entry.refusal = refusal;
        if let Ok(bound) = answer {
            entry.bound = Some(bound);
            entry.task = None;
        }
        self.0.arrived.notify_one();
        if same { BTreeSet::new() } else { entry.users.clone() }
    }
}

/// What keeps a claim from being used.
enum Trouble {
    /// The server's word, or what follows from it.
    Refused(String),
    /// The server cannot be asked.
    Away(kube::Error),
}

impl Trouble {
    fn of(error: kube::Error, what: &str, name: &str) -> Self {
        match (code(&error), &error) {
            (Some(404), _) => Self::Refused(format!("{what} {name:?} not found")),
            (Some(403), kube::Error::Api(status)) => Self::Refused(status.message.clone()),
            _ => Self::Away(error),
        }
    }
}

impl Cluster {
    fn claims(&self) -> &ClusterClaims {
        &self.node.claims.cluster
    }

    pub(super) fn recall_claims(&self) {
        for bound in self.saved.all::<Bound>(Kind::PersistentVolumeClaim) {
            self.claims().recall(key_of(&bound.claim), bound);
        }
    }

    /// A pod refers to these claims.
    pub(super) fn want_claims(self: &Arc<Self>, pod: &Pod) {
        let Some(client) = self.client() else { return };
        for key in pod.spec().volumes.iter().flatten().filter_map(|volume| claim_of(pod, volume)) {
            let mut entries = self.claims().lock();
            let entry = entries.entry(key.clone()).or_default();
            if !entry.users.insert(pod.uid().to_owned()) {
                continue;
            }
            // It may have changed since the last pod came.
            entry.known = false;
            entry.task.take().inspect(AbortHandle::abort);
            entry.task = Some(tokio::spawn(self.clone().find_claim(client.clone(), key)).abort_handle());
        }
    }

    pub(super) fn release_claims(&self, uid: &str) {
        self.forget_claims(self.claims().release(uid));
    }

    pub(super) fn prune_claims(&self) {
        self.forget_claims(self.claims().prune());
    }

    fn forget_claims(&self, unused: Vec<Key>) {
        for (namespace, name) in unused {
            self.saved.remove(Kind::PersistentVolumeClaim, &namespace, &name);
        }
    }

    /// Asks for a claim until it has a volume.
    async fn find_claim(self: Arc<Self>, client: Client, key: Key) {
        let mut pause = Pause::new();
        loop {
            let answer = match self.ask_for_claim(&client, &key).await {
                Ok(bound) => {
                    if let Err(error) = self.saved.save(Kind::PersistentVolumeClaim, &key.0, &key.1, &bound) {
                        tracing::warn!(namespace = key.0, name = key.1, %error, "cannot store a claim of the cluster");
                    }
                    Ok(Arc::new(bound))
                }
                Err(Trouble::Refused(why)) => Err(why),
                Err(Trouble::Away(error)) => {
                    tracing::debug!(namespace = key.0, name = key.1, %error, "cannot ask for a claim");
                    // What is known from before will do.
                    let known = self.claims().volume(&key);
                    known.ok_or_else(|| {
                        format!("persistentvolumeclaim {:?}: the API server does not answer", key.1)
                    })
                }
            };
            let found = answer.is_ok();
            for uid in self.claims().answered(&key, answer) {
                self.reconciler.config_changed(&uid);
            }
            if found {
                return;
            }
            tokio::time::sleep(pause.take()).await;
        }
    }

    async fn ask_for_claim(&self, client: &Client, key: &Key) -> Result<Bound, Trouble> {
        let (namespace, name) = (&key.0, &key.1);
        let claims = Api::<v1::PersistentVolumeClaim>::namespaced(client.clone(), namespace);
        let mut claim = claims.get(name).await.map_err(|e| Trouble::of(e, "persistentvolumeclaim", name))?;
        let volume = volume_of(&claim).map_err(Trouble::Refused)?.to_owned();
        let volumes = Api::<v1::PersistentVolume>::all(client.clone());
        let mut volume =
            volumes.get(&volume).await.map_err(|e| Trouble::of(e, "persistentvolume", &volume))?;
        let labels =
            self.registered().as_ref().and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
        check_bound(&claim, &volume, &labels, &self.node.facts.name).map_err(Trouble::Refused)?;
        claim.metadata.managed_fields = None;
        volume.metadata.managed_fields = None;
        Ok(Bound { claim, volume })
    }
}
