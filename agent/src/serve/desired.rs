//! What is wanted: manifest folders and stored objects, told to the reconciler.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_reconciler::folder::{self, FolderEvent, NetworkRules};
use berth_reconciler::manifest::{Context, HASH_ANNOTATION, ManifestError, changes_in_place};
use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::status::has_ended;
use berth_reconciler::worker::{PodView, Reconciler};
use k8s_openapi::api::core::v1;
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::configs::{Object, Owner};
use crate::events::Regarding;
use crate::node::AgentNode;
use crate::volumes::claims::MOVED;

/// The pods that each file wants, by uid.
type Files = BTreeMap<PathBuf, HashMap<String, Arc<Pod>>>;

/// Everything that is wanted.
pub(super) struct Desired {
    node: Arc<AgentNode>,
    reconciler: Arc<Reconciler<AgentNode>>,
    files: Files,
    /// Pods found on disk that came from files: gone unless a file still wants them.
    found: HashMap<String, Arc<Pod>>,
    synced: bool,
}

impl Desired {
    pub fn new(node: Arc<AgentNode>, reconciler: Arc<Reconciler<AgentNode>>) -> Self {
        Self { node, reconciler, files: Files::new(), found: HashMap::new(), synced: false }
    }

    /// Takes over what an earlier agent left, and what the API has stored.
    pub async fn start(&self) -> Vec<Arc<Pod>> {
        let mut stored = self.node.objects.pods();
        match self.node.cluster() {
            Some(cluster) => stored.extend(cluster.recall()),
            None => Cluster::forget(&self.node.config.root),
        }
        for object in self.node.objects.configs() {
            self.node.configs.put(Owner::Api, object);
        }
        let mut of_files = Vec::new();
        let mut adopted = self.node.adopt().await;
        // Of two pods with one name, the one that is being deleted still holds it.
        adopted.sort_by_key(|found| found.deletion.is_none());
        for found in adopted {
            let pod = found.pod.clone();
            let uid = pod.uid().to_owned();
            let wanted = match pod.source {
                Source::File(_) => {
                    of_files.push(pod.clone());
                    true
                }
                Source::Api => stored.iter().any(|s| s.pod.uid() == uid),
                // Until its API server says something else.
                Source::Cluster => self.node.cluster().is_some(),
            };
            tracing::info!(pod = pod.full_name(), uid, "took over a pod of an earlier agent");
            self.node.policies.pod_changed(&found.pod);
            if let Some(status) = &found.status {
                self.node.services.pod_changed(
                    &found.pod,
                    found.deletion.is_some(),
                    &Arc::new(status.clone()),
                );
            }
            self.reconciler.adopt(found.pod, found.deletion, found.status);
            if !wanted {
                self.reconciler.delete(&uid, None);
            }
        }
        for stored in stored {
            let uid = stored.pod.uid().to_owned();
            self.reconciler.apply(stored.pod);
            if let Some(deletion) = stored.deletion {
                self.reconciler.delete(&uid, Some(deletion.grace_seconds));
            }
        }
        of_files
    }

    /// Follows the manifest folders for ever; `ready` turns true once they have been read.
    pub async fn follow(mut self, context: Context, ready: watch::Sender<bool>) {
        for view in self.reconciler.pods() {
            if matches!(view.pod.source, Source::File(_)) {
                self.found.insert(view.pod.uid().to_owned(), view.pod.clone());
            }
        }
        let config = self.node.config.clone();
        let options = folder::Options { rescan: config.file_check_frequency };
        let mut events = folder::watch(config.manifests.clone(), context, options);
        while let Some(event) = events.recv().await {
            match event {
                FolderEvent::Loaded {
                    file,
                    pods,
                    config_maps,
                    secrets,
                    volumes,
                    claims,
                    services,
                    rules,
                    errors,
                    broken,
                } => {
                    self.storage(&file, volumes, claims, broken).await;
                    // Before the pods of the same file, which they are to find in force.
                    self.policies(&file, *rules, broken).await;
                    // Before the pods of the same file, which are told of them.
                    self.services(&file, services, broken).await;
                    self.loaded(&file, pods, config_maps, secrets, &errors, broken);
                }
                FolderEvent::Removed { file } => {
                    self.storage(&file, Vec::new(), Vec::new(), false).await;
                    self.services(&file, Vec::new(), false).await;
                    self.policies(&file, NetworkRules::default(), false).await;
                    self.removed(&file);
                }
                FolderEvent::Synced => {
                    self.synced().await;
                    ready.send_replace(true);
                }
            }
        }
    }

    /// Claims and volumes come before the pods of the same file.
    async fn storage(
        &self,
        file: &Path,
        volumes: Vec<Arc<v1::PersistentVolume>>,
        claims: Vec<Arc<v1::PersistentVolumeClaim>>,
        broken: bool,
    ) {
        let (path, all) = (file.to_owned(), self.node.claims.clone());
        let loaded = tokio::task::spawn_blocking(move || all.file_loaded(&path, volumes, claims, broken));
        let loaded = match loaded.await {
            Ok(loaded) => loaded,
            Err(error) => return tracing::error!(%error, "cannot look after claims and volumes"),
        };
        for error in loaded.errors {
            self.complain(file, &error);
        }
        if loaded.left_out {
            let claims = self.node.claims.clone();
            tokio::spawn(async move {
                tokio::time::sleep(MOVED).await;
                if let Err(error) = tokio::task::spawn_blocking(move || claims.ripen()).await {
                    tracing::error!(%error, "cannot look after claims and volumes");
                }
            });
        }
    }

    async fn services(&self, file: &Path, services: Vec<Arc<v1::Service>>, broken: bool) {
        let (path, all) = (file.to_owned(), self.node.services.clone());
        // It writes files.
        match tokio::task::spawn_blocking(move || all.file_loaded(&path, services, broken)).await {
            Ok(errors) => errors.iter().for_each(|error| self.complain(file, error)),
            Err(error) => tracing::error!(%error, "cannot look after Services"),
        }
    }

    async fn policies(&self, file: &Path, rules: NetworkRules, broken: bool) {
        let (path, all) = (file.to_owned(), self.node.policies.clone());
        // It writes files.
        let loaded = tokio::task::spawn_blocking(move || all.file_loaded(&path, rules, broken)).await;
        match loaded {
            Ok(errors) => errors.iter().for_each(|error| self.complain(file, error)),
            Err(error) => tracing::error!(%error, "cannot look after NetworkPolicies"),
        }
    }

    /// What a file says cannot be done: in the log and as an event of the node.
    fn complain(&self, file: &Path, what: &str) {
        let text = format!("{}: {what}", file.display());
        tracing::error!("{text}");
        let about = Regarding {
            kind: "Node",
            namespace: "default".into(),
            name: self.node.facts.name.clone(),
            uid: String::new(),
            field: String::new(),
        };
        self.node.events.record(&about, true, "InvalidManifest", &text);
    }

    fn loaded(
        &mut self,
        file: &Path,
        pods: Vec<Arc<Pod>>,
        config_maps: Vec<Arc<v1::ConfigMap>>,
        secrets: Vec<Arc<v1::Secret>>,
        errors: &[ManifestError],
        broken: bool,
    ) {
        let result = if errors.is_empty() { "ok" } else { "failed" };
        self.node.counters.manifests.with_label_values(&[result]).inc();
        // Objects first, so that pods of the same file find them.
        let maps = config_maps.into_iter().map(Object::ConfigMap);
        self.objects(file, maps.chain(secrets.into_iter().map(Object::Secret)).collect(), broken);
        let pods = pods.into_iter().map(|pod| self.carried_on(pod));
        let new: HashMap<String, Arc<Pod>> = pods.map(|p| (p.uid().to_owned(), p)).collect();
        let old = self.files.remove(file).unwrap_or_default();
        let mut wanted = new.clone();
        for (uid, pod) in old {
            if new.contains_key(&uid) {
                continue;
            }
            let replaced = new.values().any(|p| p.full_name() == pod.full_name());
            if broken && !replaced {
                wanted.insert(uid, pod);
            } else {
                self.reconciler.delete(&uid, None);
            }
        }
        for (uid, pod) in new {
            self.found.remove(&uid);
            self.reconciler.apply(self.first_seen(pod));
        }
        self.keep_found(file, broken, &mut wanted);
        self.files.insert(file.to_owned(), wanted);
        self.report(file, errors);
    }

    /// The pod as the next state of the one that runs, if it is that one with changes that can be made in place: then it
    /// keeps the uid that the file's first text gave it.
    fn carried_on(&self, pod: Arc<Pod>) -> Arc<Pod> {
        let runs = |view: &PodView| {
            let ended = has_ended(&view.status);
            let same = view.pod.source == pod.source && view.pod.full_name() == pod.full_name();
            same && view.deletion.is_none() && !ended && view.pod.uid() != pod.uid()
        };
        let Some(known) = self.reconciler.pods().into_iter().find(runs) else { return pod };
        let (old, new) = (&known.pod.object, &pod.object);
        let hash = |pod: &v1::Pod| pod.metadata.annotations.as_ref()?.get(HASH_ANNOTATION).cloned();
        let is_known_text = hash(old).is_some() && hash(old) == hash(new);
        if !is_known_text && !changes_in_place(old, new) {
            return pod;
        }
        tracing::info!(
            pod = pod.full_name(),
            uid = known.pod.uid(),
            "the manifest's changes are made in place"
        );
        let mut pod = Arc::unwrap_or_clone(pod);
        pod.object.metadata.uid.clone_from(&old.metadata.uid);
        pod.object.metadata.generation = old.metadata.generation;
        if !is_known_text {
            pod.object.metadata.generation = Some(old.metadata.generation.unwrap_or(1) + 1);
        }
        Arc::new(pod)
    }

    /// The pod with the times at which it was seen first, if it is known already, and with the ephemeral
    /// containers that it was given: reading its file again, as every new agent does, does not make it another.
    fn first_seen(&self, pod: Arc<Pod>) -> Arc<Pod> {
        const SEEN: &str = "kubernetes.io/config.seen";
        let Some(known) = self.reconciler.get(pod.uid()) else { return pod };
        let old = &known.pod.object.metadata;
        let debugged = known.pod.spec().ephemeral_containers.clone();
        let mut pod = Arc::unwrap_or_clone(pod);
        if let Some(spec) = &mut pod.object.spec {
            spec.ephemeral_containers = debugged;
        }
        pod.object.metadata.creation_timestamp.clone_from(&old.creation_timestamp);
        if let Some(seen) = old.annotations.as_ref().and_then(|a| a.get(SEEN)) {
            pod.object.metadata.annotations.get_or_insert_default().insert(SEEN.into(), seen.clone());
        }
        Arc::new(pod)
    }

    /// Pods of an earlier agent whose file has turned bad meanwhile are kept as well; those of a good file that
    /// does not have them any more go now, so that a successor of the same name need not wait for the end of the scan.
    fn keep_found(&mut self, file: &Path, broken: bool, wanted: &mut HashMap<String, Arc<Pod>>) {
        let of_file: Vec<String> = self
            .found
            .iter()
            .filter(|(_, pod)| matches!(&pod.source, Source::File(path) if path == file))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in of_file {
            let Some(pod) = self.found.remove(&uid) else { continue };
            let replaced = wanted.values().any(|p| p.full_name() == pod.full_name());
            if broken && !replaced {
                wanted.insert(uid, pod);
            } else {
                self.reconciler.delete(&uid, None);
            }
        }
    }

    fn objects(&self, file: &Path, mut objects: Vec<Object>, broken: bool) {
        let owner = Owner::File(file.to_owned());
        let kept: BTreeSet<_> = objects.iter().map(Object::key).collect();
        if !broken {
            for key in self.node.configs.of_file(file) {
                if !kept.contains(&key) && self.node.configs.remove(&owner, &key) {
                    self.node.config_changed(&key);
                }
            }
        }
        objects.retain(|object| match self.node.configs.frozen(object) {
            None => true,
            Some(field) => {
                let (kind, namespace, name) = object.key();
                self.complain(
                    file,
                    &format!("{kind} {namespace}/{name}: {field} is immutable when `immutable` is set; remove the object and add it again"),
                );
                false
            }
        });
        for object in objects {
            let key = object.key();
            if self.node.configs.put(owner.clone(), object) {
                self.node.config_changed(&key);
            }
        }
    }

    fn removed(&mut self, file: &Path) {
        for uid in self.files.remove(file).unwrap_or_default().into_keys() {
            self.reconciler.delete(&uid, None);
        }
        self.objects(file, Vec::new(), false);
        self.node.manifest_errors(file, &[]);
        tracing::info!(file = %file.display(), "manifest removed");
    }

    /// Puts errors where people look: log, event, and the pod they are about.
    fn report(&self, file: &Path, errors: &[ManifestError]) {
        for error in errors {
            tracing::error!("{error}");
            let about = match &error.object {
                Some(object) if object.kind == "Pod" && !object.name.is_empty() => Regarding {
                    kind: "Pod",
                    namespace: object.namespace.clone(),
                    name: format!("{}-{}", object.name, self.node.facts.name),
                    uid: String::new(),
                    field: String::new(),
                },
                _ => Regarding {
                    kind: "Node",
                    namespace: "default".into(),
                    name: self.node.facts.name.clone(),
                    uid: String::new(),
                    field: String::new(),
                },
            };
            self.node.events.record(&about, true, "InvalidManifest", &error.to_string());
        }
        self.node.manifest_errors(file, errors);
    }

    async fn synced(&mut self) {
        if self.synced {
            return;
        }
        self.synced = true;
        let claims = self.node.claims.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || claims.synced()).await {
            tracing::error!(%error, "cannot look after claims and volumes");
        }
        self.node.services.synced();
        tokio::spawn(self.node.services.clone().run(self.node.network.clone()));
        self.node.policies.synced();
        tokio::spawn(self.node.policies.clone().run(self.node.network.clone()));
        for (uid, pod) in self.found.drain() {
            tracing::info!(pod = pod.full_name(), uid, "no manifest wants this pod any more");
            self.reconciler.delete(&uid, None);
        }
        let wanted: HashSet<String> = self.reconciler.pods().iter().map(|v| v.pod.uid().to_owned()).collect();
        self.node.collect_garbage(wanted).await;
    }
}
