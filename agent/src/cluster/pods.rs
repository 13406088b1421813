//! The pods that are bound to this node: followed, checked, and handed to the reconciler once what they need is here.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_reconciler::admission::{self, Capacity, Rejection};
use berth_reconciler::eviction;
use berth_reconciler::manifest::{self, Cause, MIRROR_ANNOTATION as MIRROR, ManifestError};
use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::resources::QosClass;
use berth_reconciler::status::{has_ended, is_own_condition, time};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};

use super::Cluster;
use crate::configs;

/// A pod as the server has it.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub namespace: String,
    pub name: String,
    pub status: Arc<v1::PodStatus>,
    /// The hash of the pod that it shows, if it is a mirror.
    pub mirror: Option<String>,
    pub deleting: bool,
}

#[derive(Default)]
struct State {
    remote: HashMap<String, Remote>,
    /// Pods that wait for what they need, by uid.
    waiting: HashMap<String, Arc<Pod>>,
    /// Whether the server has been listed in this life.
    listed: bool,
}

/// What is known of the server's pods.
#[derive(Default)]
pub(super) struct Known(Mutex<State>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod by its uid.
    pub fn get(&self, uid: &str) -> Option<Remote> {
        self.lock().remote.get(uid).cloned()
    }

    /// The mirror of that name, with its uid.
    pub fn mirror(&self, namespace: &str, name: &str) -> Option<(String, Remote)> {
        let state = self.lock();
        let mut found = state.remote.iter().filter(|(_, remote)| remote.mirror.is_some());
        let one = found.find(|(_, remote)| remote.namespace == namespace && remote.name == name);
        one.map(|(uid, remote)| (uid.clone(), remote.clone()))
    }

    /// All mirrors with their uids.
    pub fn mirrors(&self) -> Vec<(String, Remote)> {
        let state = self.lock();
        let mirrors = state.remote.iter().filter(|(_, remote)| remote.mirror.is_some());
        mirrors.map(|(uid, remote)| (uid.clone(), remote.clone())).collect()
    }

    /// The server has this status now.
    pub fn told(&self, uid: &str, status: v1::PodStatus) {
        if let Some(remote) = self.lock().remote.get_mut(uid) {
            remote.status = Arc::new(status);
        }
    }

    /// A pod is no more.
    pub fn forget(&self, uid: &str) {
        let mut state = self.lock();
        state.remote.remove(uid);
        state.waiting.remove(uid);
    }

    /// Whether the server has been listed since the agent started.
    pub fn listed(&self) -> bool {
        self.lock().listed
    }

    /// The pods that wait for what they need.
    pub fn waiting(&self) -> Vec<Arc<Pod>> {
        self.lock().waiting.values().cloned().collect()
    }
}

impl Cluster {
    /// Follows the pods that are bound to this node, for ever.
    pub(super) async fn follow_pods(self: Arc<Self>, client: Client) {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node.facts.name));
        let stream = watcher::watcher(Api::<v1::Pod>::all(client), config).default_backoff();
        futures::pin_mut!(stream);
        let mut listing = HashSet::new();
        let mut lost = false;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = self.objects.arrived() => { self.admit_waiting(); continue }
                () = self.node.configs.tokens.arrived() => { self.admit_waiting(); continue }
                () = self.node.claims.cluster.arrived() => { self.admit_waiting(); continue }
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    if !lost {
                        tracing::warn!(%error, "cannot follow the cluster's pods; those that are here go on");
                    }
                    lost = true;
                    continue;
                }
                Some(Ok(Event::Init)) => listing.clear(),
                Some(Ok(Event::InitApply(pod))) => {
                    listing.extend(pod.metadata.uid.clone());
                    self.seen(pod);
                }
                Some(Ok(Event::InitDone)) => self.listed(&std::mem::take(&mut listing)),
                Some(Ok(Event::Apply(pod))) => self.seen(pod),
                Some(Ok(Event::Delete(pod))) => self.removed(&pod),
            }
            if std::mem::take(&mut lost) {
                tracing::info!("the cluster's pods are followed again");
            }
            self.admit_waiting();
        }
    }

    /// The server has this pod for this node.
    fn seen(self: &Arc<Self>, pod: v1::Pod) {
        let meta = &pod.metadata;
        let (Some(uid), Some(name)) = (meta.uid.clone(), meta.name.clone()) else { return };
        if self.is_leaving() {
            return;
        }
        let mirror = meta.annotations.as_ref().and_then(|all| all.get(MIRROR)).cloned();
        let remote = Remote {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name,
            status: Arc::new(pod.status.clone().unwrap_or_default()),
            deleting: meta.deletion_timestamp.is_some(),
            mirror,
        };
        let is_mirror = remote.mirror.is_some();
        self.pods.lock().remote.insert(uid.clone(), remote.clone());
        if is_mirror {
            return self.mirror_seen(&remote);
        }
        // What the server says now may differ from what this node has told it.
        self.statuses.look_at(&uid);
        let here = self.reconciler.get(&uid);
        if meta.deletion_timestamp.is_some() {
            self.pods.lock().waiting.remove(&uid);
            let grace = meta.deletion_grace_period_seconds.and_then(|grace| u64::try_from(grace).ok());
            if !self.reconciler.delete(&uid, grace) {
                self.release(&uid);
                self.statuses.absent(&uid, &remote.namespace, &remote.name);
            }
            return;
        }
        let ended = has_ended(&remote.status);
        if ended && here.as_ref().is_none_or(|here| !has_ended(&here.status)) {
            // Nothing of it is here; or somebody else has said that it failed, such as a controller of nodes that were away:
            // that stays so, and what still runs ends.
            self.reconciler.delete(&uid, None);
            return;
        }
        let checked = match self.checked(pod) {
            Ok(checked) => Arc::new(checked),
            Err(rejection) => return self.reject(&uid, &remote, rejection),
        };
        let keys = configs::references(&checked);
        self.watch_objects(&uid, keys);
        self.node.configs.tokens.want(&checked);
        self.want_claims(&checked);
        let Some(here) = here else {
            self.pods.lock().waiting.insert(uid, checked);
            return;
        };
        let others = |status: &v1::PodStatus| -> Vec<v1::PodCondition> {
            status.conditions.iter().flatten().filter(|c| !is_own_condition(&c.type_)).cloned().collect()
        };
        let given = others(&remote.status);
        if given != others(&here.status) {
            self.reconciler.set_conditions(&uid, given);
        }
        if here.pod.object != checked.object {
            self.save(&checked);
            self.reconciler.apply(checked.clone());
            // Volumes that show its labels and annotations follow.
            self.node.refresh_volumes(&checked);
        }
    }

    /// The object as a pod of this node, in the form in which all pods are kept.
    fn checked(&self, object: v1::Pod) -> Result<Pod, Rejection> {
        let meta = object.metadata.clone();
        let mut context = manifest::Context { running: true, ..self.context.clone() };
        if let Some(node) = &*self.registered() {
            context.node_labels = node.metadata.labels.clone().or(context.node_labels);
        }
        let runtimes = &self.node.config.runtimes;
        let classes = self
            .node
            .cluster_classes
            .usable(|handler| handler == super::OWN_HANDLER || runtimes.contains_key(handler));
        context.runtimes = Some(classes.keys().cloned().collect());
        context.overheads = classes.into_iter().filter(|(_, overhead)| !overhead.is_empty()).collect();
        let value = serde_json::to_value(&object).map_err(|error| Rejection {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!("Pod was rejected: {error}"),
        })?;
        let mut pod = manifest::check_pod(&value, &context).map_err(|errors| rejection(&errors))?;
        pod.metadata.uid = meta.uid;
        pod.metadata.creation_timestamp = meta.creation_timestamp;
        pod.metadata.generation = meta.generation;
        pod.metadata.owner_references = meta.owner_references;
        let mut pod = manifest::admit(pod, Source::Cluster, &self.node.facts.name);
        if let Some(known) = self.reconciler.get(pod.uid())
            && let Some(seen) = known.pod.object.metadata.annotations.as_ref()
            && let Some(seen) = seen.get(manifest::SEEN_ANNOTATION)
        {
            // Looking at it again does not make it another.
            let annotations = pod.object.metadata.annotations.get_or_insert_default();
            annotations.insert(manifest::SEEN_ANNOTATION.to_owned(), seen.clone());
        }
        Ok(pod)
    }

    /// The whole list has been seen: what is not in it is not wanted any more.
    fn listed(&self, there: &HashSet<String>) {
        let gone: Vec<String> = {
            let mut state = self.pods.lock();
            state.listed = true;
            let gone = state.remote.keys().filter(|uid| !there.contains(*uid)).cloned().collect();
            state.remote.retain(|uid, _| there.contains(uid));
            state.waiting.retain(|uid, _| there.contains(uid));
            gone
        };
        for uid in gone {
            self.unwanted(&uid, None);
        }
        for view in self.reconciler.pods() {
            if view.pod.source == Source::Cluster && !there.contains(view.pod.uid()) {
                self.unwanted(view.pod.uid(), None);
            }
        }
        // What was kept for pods that have not come back with the agent.
        for stored in self.saved.pods() {
            if !there.contains(stored.pod.uid()) {
                self.saved.remove_pod(&stored.pod);
            }
        }
        self.prune_claims();
        self.mirrors.notify_one();
        self.statuses.look_at_all();
    }

    /// The server has removed a pod: whoever did it does not wait for its end.
    fn removed(&self, pod: &v1::Pod) {
        let Some(uid) = &pod.metadata.uid else { return };
        self.pods.forget(uid);
        if pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR)) {
            return self.mirror_removed();
        }
        let grace = pod.metadata.deletion_grace_period_seconds.and_then(|grace| u64::try_from(grace).ok());
        self.unwanted(uid, grace);
    }

    fn unwanted(&self, uid: &str, grace: Option<u64>) {
        if !self.reconciler.delete(uid, grace) {
            self.release(uid);
            self.statuses.forget(uid);
        }
    }

    /// Hands the pods to the reconciler that have all they need: the important ones first, then the older ones.
    fn admit_waiting(&self) {
        if self.is_leaving() {
            return;
        }
        let mut ready = self.pods.waiting();
        ready.retain(|pod| {
            let uid = pod.uid();
            self.objects.are_known(uid)
                && self.node.configs.tokens.are_known(uid)
                && self.node.claims.cluster.are_known(uid)
        });
        ready.sort_by_key(|pod| {
            let created = pod.object.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (std::cmp::Reverse(pod.spec().priority.unwrap_or(0)), created, pod.full_name())
        });
        for pod in ready {
            if self.pods.lock().waiting.remove(pod.uid()).is_none() {
                continue;
            }
            match self.fits(&pod) {
                Ok(()) => {
                    self.save(&pod);
                    self.reconciler.apply(pod);
                }
                Err(rejection) => {
                    let Some(remote) = self.pods.get(pod.uid()) else { continue };
                    self.reject(pod.uid(), &remote, rejection);
                }
            }
        }
    }

    fn fits(&self, pod: &Pod) -> Result<(), Rejection> {
        let views = self.reconciler.pods();
        let taken: Vec<&v1::PodSpec> = views
            .iter()
            .filter(|view| view.pod.uid() != pod.uid() && !has_ended(&view.status))
            .map(|view| view.pod.spec())
            .collect();
        let asks_for_nothing = pod.qos_class() == QosClass::BestEffort;
        eviction::admit(pod.spec(), asks_for_nothing, &*self.node.pressures.borrow())?;
        let facts = &self.node.facts;
        let capacity = Capacity {
            cpu_milli: facts.allocatable.cpu_milli,
            memory: facts.allocatable.memory,
            storage: facts.allocatable.storage,
            huge_pages: facts.huge_pages.clone(),
            pods: self.node.config.max_pods as usize,
        };
        let node = self.registered().clone();
        let taints = node.as_ref().and_then(|node| node.spec.as_ref()?.taints.as_deref()).unwrap_or_default();
        // Static pods are the owner's own word, these are a scheduler's.
        admission::admit(pod.spec(), &taken, &capacity, taints)
    }

    /// A pod that is not taken has failed: whoever owns it makes another.
    fn reject(&self, uid: &str, remote: &Remote, rejection: Rejection) {
        self.release(uid);
        let full_name = format!("{}/{}", remote.namespace, remote.name);
        tracing::warn!(pod = full_name, reason = rejection.reason, "{}", rejection.message);
        let about = crate::events::Regarding {
            kind: "Pod",
            namespace: remote.namespace.clone(),
            name: remote.name.clone(),
            uid: uid.to_owned(),
            field: String::new(),
        };
        self.node.events.record(&about, true, &rejection.reason, &rejection.message);
        let status = v1::PodStatus {
            phase: Some("Failed".to_owned()),
            reason: Some(rejection.reason),
            message: Some(rejection.message),
            start_time: Some(time(jiff::Timestamp::now())),
            qos_class: remote.status.qos_class.clone(),
            conditions: remote.status.conditions.clone(),
            ..v1::PodStatus::default()
        };
        self.statuses.rejected(uid, &remote.namespace, &remote.name, status);
    }

    fn save(&self, pod: &Arc<Pod>) {
        if let Err(error) = self.saved.create_pod(pod) {
            tracing::warn!(pod = pod.full_name(), %error, "cannot store a pod of the cluster; after a reboot it begins once the API server has been reached");
        }
    }
}

/// Why the pod cannot be run here, with every field that is to blame.
fn rejection(errors: &[ManifestError]) -> Rejection {
    if errors.iter().all(|error| error.cause == Cause::NodeAffinity) {
        let message = "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return Rejection { reason: "NodeAffinity".to_owned(), message: message.to_owned() };
    }
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Rejection {
        reason: "UnsupportedPodSpec".to_owned(),
        message: format!("Pod was rejected: this node cannot run it: {}", texts.join("; ")),
    }
}
