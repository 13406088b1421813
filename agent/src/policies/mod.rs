//! NetworkPolicies and Namespaces: kept, and brought into the network.
//!
//! [`kept`] keeps the objects, [`derive`] says what follows from them and the pods. [`Policies::run`] brings every change
//! into the network at once, and [`Policies::joined`] holds a new pod back until the network knows it.

mod derive;
mod kept;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_netplug::Network;
use berth_reconciler::folder::NetworkRules;
use berth_reconciler::manifest::NAMESPACE_NAME;
use berth_reconciler::pod::Pod;
use berth_reconciler::status::whole_seconds;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::watch;

pub use kept::Refusal;

use crate::events::{Recorder, Regarding};
use crate::facts;
use crate::hub::is_provided;
use crate::store::{Kind, ObjectStore};
use derive::Member;
use kept::{Kept, Object};

/// How long after a failure the network is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The namespaces that there always are.
pub const BUILT_IN: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Why a NetworkPolicy is refused, and what to do.
const OFF: &str = "this node does not enforce network policies: set `networkPolicy: true` in the agent's configuration \
                   (/etc/berth/config.yaml) and start the agent again";

impl Object for NetworkPolicy {
    const STORE_KIND: Kind = Kind::NetworkPolicy;

    fn wants_the_same(&self, other: &Self) -> bool {
        self.spec == other.spec
    }
}

impl Object for Namespace {
    const STORE_KIND: Kind = Kind::Namespace;

    fn wants_the_same(&self, _: &Self) -> bool {
        true
    }
}

struct State {
    policies: Kept<NetworkPolicy>,
    namespaces: Kept<Namespace>,
    /// The pods as they were published last, by uid.
    pods: HashMap<String, Arc<Pod>>,
}

/// How far the network is.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// The change that it knows of.
    done: u64,
    /// The change that was tried last without success, and why.
    failed: Option<(u64, String)>,
}

/// The NetworkPolicies and Namespaces of this node. Clones share.
#[derive(Clone)]
pub struct Policies(Arc<Inner>);

struct Inner {
    /// The agent's state folder.
    root: PathBuf,
    /// Whether policies are enforced.
    on: bool,
    store: ObjectStore,
    state: Mutex<State>,
    /// The number of the last change.
    changes: watch::Sender<u64>,
    progress: watch::Sender<Progress>,
}

impl Policies {
    /// None yet. They are stored below `root` and shown in `store`; `on` says whether policies are enforced, or refused.
    pub fn new(root: &Path, on: bool, store: ObjectStore) -> Self {
        let state = State {
            policies: Kept::new(root, store.clone()),
            namespaces: Kept::new(root, store.clone()),
            pods: HashMap::new(),
        };
        let (changes, progress) = (watch::Sender::default(), watch::Sender::default());
        Self(Arc::new(Inner {
            root: root.to_owned(),
            on,
            store,
            state: Mutex::new(state),
            changes,
            progress,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every step leaves the state whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) -> u64 {
        let mut number = 0;
        self.0.changes.send_modify(|last| {
            *last += 1;
            number = *last;
        });
        number
    }

    /// Reads what an earlier agent has stored. Policies that are not enforced any more are told of in the log and by events.
    pub fn load(&self, events: &Recorder) {
        let mut state = self.lock();
        state.policies.load();
        state.namespaces.load();
        for policy in state.policies.iter().filter(|_| !self.0.on) {
            let (namespace, name) = kept::key_of(policy);
            tracing::warn!("NetworkPolicy {namespace}/{name} has no effect: {OFF}");
            let about = Regarding {
                kind: "NetworkPolicy",
                namespace,
                name,
                uid: policy.metadata.uid.clone().unwrap_or_default(),
                field: String::new(),
            };
            events.record(&about, true, "NotEnforced", &format!("The policy has no effect: {OFF}"));
        }
        drop(state);
        self.show_built_in();
    }

    /// Shows the namespaces that there always are, unless they have objects.
    fn show_built_in(&self) {
        for name in BUILT_IN.into_iter().filter(|name| self.0.store.get(Kind::Namespace, "", name).is_none())
        {
            let created = whole_seconds(jiff::Timestamp::now());
            let uid = facts::built_in_uid(&self.0.root, Kind::Namespace, name);
            self.0.store.put(
                Kind::Namespace,
                "",
                name,
                &serde_json::json!({
                    "metadata": {"name": name, "uid": uid, "creationTimestamp": created, "labels": {NAMESPACE_NAME: name}},
                    "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
                }),
            );
        }
    }

    /// Takes what a manifest file holds now; the rest of what it gave before goes, unless it is `broken`. Gives what of it
    /// cannot be done.
    pub fn file_loaded(&self, file: &Path, rules: NetworkRules, broken: bool) -> Vec<String> {
        let NetworkRules { namespaces, policies } = rules;
        let mut state = self.lock();
        let namespaces: Vec<Arc<Namespace>> =
            namespaces.into_iter().map(|one| Arc::new(active(Arc::unwrap_or_clone(one)))).collect();
        let mut errors = state.namespaces.file_loaded(file, &namespaces, broken);
        let refused = |policy: &Arc<NetworkPolicy>| {
            let (namespace, name) = kept::key_of(policy.as_ref());
            format!("NetworkPolicy {namespace}/{name}: {OFF}")
        };
        match self.0.on {
            true => errors.extend(state.policies.file_loaded(file, &policies, broken)),
            false => {
                errors.extend(policies.iter().map(refused));
                errors.extend(state.policies.file_loaded(file, &[], broken));
            }
        }
        drop(state);
        self.show_built_in();
        self.changed();
        errors
    }

    /// Every manifest has been read: what no file wants any more goes.
    pub fn synced(&self) {
        let mut state = self.lock();
        state.policies.synced();
        state.namespaces.synced();
        drop(state);
        self.show_built_in();
        self.changed();
    }

    /// Creates or replaces a NetworkPolicy for the API; gives it as it is afterwards, or would be.
    ///
    /// # Errors
    /// The node enforces none, the policy is somebody else's or there already, or the disk cannot be written.
    pub fn put_policy(
        &self,
        policy: NetworkPolicy,
        create_only: bool,
        dry_run: bool,
    ) -> Result<NetworkPolicy, Refusal> {
        if !self.0.on {
            return Err(Refusal::Forbidden(OFF.into()));
        }
        let put = self.lock().policies.put_from_api(policy, create_only, dry_run)?;
        self.changed();
        Ok(put)
    }

    /// Creates or replaces a Namespace for the API; gives it as it is afterwards, or would be.
    ///
    /// # Errors
    /// It is somebody else's or there already, or the disk cannot be written.
    pub fn put_namespace(
        &self,
        namespace: Namespace,
        create_only: bool,
        dry_run: bool,
    ) -> Result<Namespace, Refusal> {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        if create_only && BUILT_IN.contains(&name.as_str()) {
            return Err(Refusal::Exists);
        }
        let put = self.lock().namespaces.put_from_api(active(namespace), create_only, dry_run)?;
        self.changed();
        Ok(put)
    }

    /// Removes a NetworkPolicy for the API.
    ///
    /// # Errors
    /// There is none, or it comes from a file.
    pub fn delete_policy(&self, namespace: &str, name: &str) -> Result<(), Refusal> {
        self.lock().policies.delete(&(namespace.to_owned(), name.to_owned()))?;
        self.changed();
        Ok(())
    }

    /// Removes a Namespace for the API, which must be empty.
    ///
    /// # Errors
    /// There is none, it comes from a file, there always is one of this name, or something is in it.
    pub fn delete_namespace(&self, name: &str) -> Result<(), Refusal> {
        if BUILT_IN.contains(&name) {
            return Err(Refusal::Forbidden("this namespace may not be deleted".into()));
        }
        let of_users = |kind: &Kind| kind.namespaced() && *kind != Kind::Event;
        let mut inside = Kind::ALL.into_iter().filter(of_users);
        if let Some(kind) =
            inside.find(|kind| !self.0.store.list(*kind, Some(name)).0.iter().all(|one| is_provided(one)))
        {
            let plural = kind.plural();
            return Err(Refusal::Forbidden(format!(
                "it has {plural} in it; delete them first: `berth get {plural} -n {name}` lists them"
            )));
        }
        self.lock().namespaces.delete(&(String::new(), name.to_owned()))?;
        self.changed();
        Ok(())
    }

    /// A pod is this now; its labels may be others.
    pub fn pod_changed(&self, pod: &Arc<Pod>) {
        if !self.0.on {
            return;
        }
        let before = self.lock().pods.insert(pod.uid().to_owned(), pod.clone());
        if before.is_none_or(|before| before.object.metadata.labels != pod.object.metadata.labels) {
            self.changed();
        }
    }

    /// A pod is no more.
    pub fn pod_gone(&self, uid: &str) {
        if !self.0.on {
            return;
        }
        self.lock().pods.remove(uid);
        self.changed();
    }

    /// A pod has joined its networks; returns once they know what it may receive and send. Until then it can talk to
    /// nobody but the node.
    ///
    /// # Errors
    /// Why they cannot be told.
    pub async fn joined(&self, pod: &Arc<Pod>) -> Result<(), String> {
        if !self.0.on {
            return Ok(());
        }
        self.lock().pods.insert(pod.uid().to_owned(), pod.clone());
        let number = self.changed();
        let mut progress = self.0.progress.subscribe();
        let tried = |progress: &Progress| {
            progress.done >= number || progress.failed.as_ref().is_some_and(|(tried, _)| *tried >= number)
        };
        // The sender is in `self`.
        let Ok(now) = progress.wait_for(tried).await else { return Ok(()) };
        match &now.failed {
            Some((_, why)) if now.done < number => Err(format!("cannot enforce network policies: {why}")),
            _ => Ok(()),
        }
    }

    /// Brings changes into the network, for ever. To be called once all pods and policies are known that an earlier agent
    /// has left: until then the network goes on with what that one told it.
    pub async fn run(self, network: Network) {
        if !self.0.on {
            return;
        }
        let mut changes = self.0.changes.subscribe();
        loop {
            let number = *changes.borrow_and_update();
            let wanted = self.derive(&network);
            let outcome = match wanted {
                Ok(wanted) => network.set_policies(wanted).await,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::error!(%error, "cannot bring network policies into the pod network; trying again");
                self.0.progress.send_modify(|now| now.failed = Some((number, error.to_string())));
                tokio::time::sleep(RETRY).await;
                continue;
            }
            self.0.progress.send_modify(|now| *now = Progress { done: number, failed: None });
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn derive(&self, network: &Network) -> Result<berth_netplug::Policies, berth_netplug::Error> {
        let state = self.lock();
        let mut members = Vec::new();
        for (uid, pod) in &state.pods {
            let mut ips = Vec::new();
            for one in network.all() {
                ips.extend(one.attached(uid)?.map(|attachment| attachment.ips).unwrap_or_default());
            }
            if !ips.is_empty() {
                members.push(Member { pod: &pod.object, ips });
            }
        }
        let namespaces: BTreeMap<String, BTreeMap<String, String>> = state
            .namespaces
            .iter()
            .map(|one| {
                (
                    one.metadata.name.clone().unwrap_or_default(),
                    one.metadata.labels.clone().unwrap_or_default(),
                )
            })
            .collect();
        Ok(derive::derive(state.policies.iter(), &namespaces, &members))
    }
}

/// A Namespace with what a cluster adds to it.
fn active(mut namespace: Namespace) -> Namespace {
    namespace.spec.get_or_insert_default().finalizers = Some(vec!["kubernetes".into()]);
    namespace.status.get_or_insert_default().phase = Some("Active".into());
    namespace
}
