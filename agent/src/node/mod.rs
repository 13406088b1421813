//! The machine as the reconciler sees it: its actions carried out with shims, images, cgroups and the pod network.
//!
//! The tour: [`entry`] is what is known of one pod and how it lies on disk; [`sandbox`] starts and ends a pod's shim
//! and network; [`start`] makes containers; [`shims`] turns what shims tell into records; [`image`] pulls; [`probe`]
//! runs probes and hooks; [`ephemeral`] ends pods that take too much of the disk, [`shortage`] pods and images when the machine runs short; [`resize`] changes cpu
//! and memory in place; [`labels`] gives SELinux labels; [`adopt`] finds what an earlier agent
//! left running; [`kubepods`] is the tree of cgroups; [`users`] the ids of pods with user namespaces.

mod adopt;
mod ahead;
mod auth;
mod entry;
mod env_files;
pub mod ephemeral;
mod exec;
mod grpc;
mod http_probe;
mod image;
mod image_gc;
pub(crate) mod kubepods;
mod labels;
mod manifests;
pub(crate) mod networks;
mod places;
mod probe;
mod resize;
mod sandbox;
mod shims;
pub mod shortage;
mod shutdown;
mod signal;
mod start;
mod tls;
mod users;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use berth_image::Store;
use berth_netplug::Network;
use berth_reconciler::eviction::{PLENTY, Pressure};
use berth_reconciler::node::{
    Deletion, Failure, Hook, Node, Observation, PodEvent, ProbeOutcome, Probing, StartContainer, StopSignal,
};
use berth_reconciler::pod::Pod;
use berth_reconciler::selinux::Contexts;
use berth_reconciler::worker::Reconciler;
use berth_runtime::cgroup::{Cgroups, Version};
use k8s_openapi::api::core::v1;
use tokio::sync::watch;

use crate::cluster::{Cluster, ClusterClasses, ClusterServices};
use crate::cni::Cni;
use crate::config::Config;
use crate::configs::Configs;
use crate::events::{Recorder, Regarding};
use crate::facts::NodeFacts;
use crate::metrics::Counters;
use crate::metrics::usage::Meter;
use crate::policies::Policies;
use crate::services::Services;
use crate::store::{Kind, ObjectStore};
use crate::volumes::claims::{Claims, Pods};

pub use adopt::Adopted;
pub use exec::ExecSpec;
pub use image::images_in_use;
pub use manifests::ERROR_ANNOTATION;

use entry::Entry;

/// What the parts of a node are made of.
pub struct Parts {
    /// Settings.
    pub config: Arc<Config>,
    /// Facts of the machine.
    pub facts: NodeFacts,
    /// Images.
    pub images: Store,
    /// The pod network.
    pub network: Network,
    /// The networks of other plugins, if those are to be used.
    pub cni: Cni,
    /// Control groups.
    pub cgroups: Cgroups,
    /// ConfigMaps and Secrets.
    pub configs: Configs,
    /// PersistentVolumeClaims and PersistentVolumes.
    pub claims: Claims,
    /// Services.
    pub services: Services,
    /// NetworkPolicies and Namespaces.
    pub policies: Policies,
    /// Objects shown by the API.
    pub store: ObjectStore,
    /// Events.
    pub events: Arc<Recorder>,
    /// Figures of the agent.
    pub counters: Arc<Counters>,
}

/// The machine.
pub struct AgentNode {
    /// Settings.
    pub config: Arc<Config>,
    /// Facts of the machine.
    pub facts: NodeFacts,
    /// Images.
    pub images: Store,
    /// The pod network.
    pub network: Network,
    /// The networks of other plugins, if those are to be used.
    pub cni: Cni,
    /// Control groups.
    pub cgroups: Cgroups,
    /// ConfigMaps and Secrets.
    pub configs: Configs,
    /// PersistentVolumeClaims and PersistentVolumes.
    pub claims: Claims,
    /// Services.
    pub services: Services,
    /// NetworkPolicies and Namespaces.
    pub policies: Policies,
    /// Objects shown by the API.
    pub store: ObjectStore,
    /// Events.
    pub events: Arc<Recorder>,
    /// Figures of the agent.
    pub counters: Arc<Counters>,
    /// What pods and the machine use.
    pub meter: Meter,
    /// What is kept ready for the next pod.
    pub ahead: Arc<ahead::Ahead>,
    entries: Mutex<HashMap<String, Arc<Entry>>>,
    kubepods: Arc<kubepods::Tree>,
    id_ranges: users::IdRanges,
    /// What the policy wants containers to be, where pods get SELinux labels.
    selinux: Option<Contexts>,
    levels: labels::Levels,
    /// Told when there may be a pod with a limit on what it takes of the disk.
    limited: tokio::sync::Notify,
    /// Told when the sandbox of a pod that has ended is gone.
    sandbox_stopped: watch::Sender<()>,
    reconciler: OnceLock<Arc<Reconciler<AgentNode>>>,
    manifests: manifests::Manifests,
    /// The layer below those of all images; none if it cannot be made.
    places: Option<PathBuf>,
    /// Writes API objects so that they outlive the agent.
    pub objects: crate::backend::objects::Objects,
    /// The Services of the cluster, if the machine is a node of one.
    pub cluster_services: ClusterServices,
    /// The RuntimeClasses of the cluster, if the machine is a node of one.
    pub cluster_classes: ClusterClasses,
    /// Whether the machine runs short of something.
    pub pressures: watch::Sender<[Pressure; 3]>,
    cluster: OnceLock<Arc<Cluster>>,
}

impl Pods for Reconciler<AgentNode> {
    fn all(&self) -> Vec<Arc<Pod>> {
        self.pods().into_iter().map(|view| view.pod).collect()
    }

    fn wake(&self, uid: &str) {
        self.config_changed(uid);
    }
}

impl AgentNode {
    /// Puts the node together.
    pub fn new(parts: Parts) -> Arc<Self> {
        let kubepods = kubepods::Tree::new(parts.cgroups.clone(), &parts.config);
        let id_ranges = users::IdRanges::new(parts.config.root.join("users"), parts.config.user_namespaces);
        let levels = labels::Levels::new(parts.config.root.join("selinux"));
        let selinux = parts.config.selinux.then(crate::selinux::contexts);
        let objects = crate::backend::objects::Objects::new(&parts.config.root);
        let ahead = ahead::Ahead::new(parts.network.clone());
        let places = places::layer(&parts.config.root);
        let places =
            places.inspect_err(|error| tracing::warn!(%error, "cannot make the layer of mount points"));
        Arc::new(Self {
            places: places.ok(),
            config: parts.config,
            facts: parts.facts,
            images: parts.images,
            network: parts.network,
            cni: parts.cni,
            cgroups: parts.cgroups,
            configs: parts.configs,
            claims: parts.claims,
            services: parts.services,
            policies: parts.policies,
            store: parts.store,
            events: parts.events,
            counters: parts.counters,
            meter: Meter::default(),
            ahead,
            entries: Mutex::default(),
            kubepods: Arc::new(kubepods),
            id_ranges,
            selinux,
            levels,
            limited: tokio::sync::Notify::new(),
            sandbox_stopped: watch::Sender::new(()),
            reconciler: OnceLock::new(),
            manifests: manifests::Manifests::default(),
            objects,
            cluster_services: ClusterServices::default(),
            cluster_classes: ClusterClasses::default(),
            pressures: watch::Sender::new(PLENTY),
            cluster: OnceLock::new(),
        })
    }

    /// Makes the machine a node of a cluster. Called once, before any pod is given to the reconciler.
    pub fn be_in(&self, cluster: Arc<Cluster>) {
        let _ = self.cluster.set(cluster);
    }

    /// The cluster that the machine is a node of, if any.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.get()
    }

    /// Checks `singleProcessOOMKill`, and the feature gate MemoryQoS, against the machine.
    ///
    /// # Errors
    /// When it is false on cgroup v1, where the kernel knows nothing else.
    pub fn check_oom_setting(&self) -> anyhow::Result<()> {
        if self.config.group_oom_kill_wanted && self.cgroups.version() == Version::V1 {
            anyhow::bail!(
                "singleProcessOOMKill: must not be false on cgroup v1, which cannot kill a container as a whole"
            );
        }
        if self.config.memory_qos.is_some() && self.cgroups.version() == Version::V1 {
            tracing::warn!("featureGates.MemoryQoS has no effect: it needs cgroup v2");
        }
        Ok(())
    }

    /// Tells the node whom to wake. Called once, before any pod is given to the reconciler.
    pub fn connect(&self, reconciler: Arc<Reconciler<AgentNode>>) {
        self.claims.connect(reconciler.clone());
        let _ = self.reconciler.set(reconciler);
    }

    /// The Node, as events are about it.
    pub fn regarding(&self) -> Regarding {
        Regarding {
            kind: "Node",
            namespace: "default".to_owned(),
            name: self.facts.name.clone(),
            uid: String::new(),
            field: String::new(),
        }
    }

    /// All pods as they were published last.
    pub fn views(&self) -> Vec<berth_reconciler::worker::PodView> {
        self.reconciler.get().map(|reconciler| reconciler.pods()).unwrap_or_default()
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a pod that has something on this machine.
    fn find(&self, uid: &str) -> Option<Arc<Entry>> {
        self.entries().get(uid).cloned()
    }

    fn entry(&self, pod: &Arc<Pod>) -> Arc<Entry> {
        let mut entries = self.entries();
        let entry = entries
            .entry(pod.uid().to_owned())
            .or_insert_with(|| Arc::new(Entry::new(self.config.pods_dir().join(pod.uid()), pod.clone())))
            .clone();
        drop(entries);
        entry.set_pod(pod);
        entry
    }

    /// All pods that have something on this machine.
    pub fn known(&self) -> Vec<String> {
        self.entries().keys().cloned().collect()
    }

    pub(crate) fn all_entries(&self) -> Vec<Arc<Entry>> {
        self.entries().values().cloned().collect()
    }

    fn folders(&self, uid: &str) -> crate::volumes::Folders {
        crate::volumes::Folders {
            data: self.config.root.join("volumes").join(uid),
            objects: self.config.pods_dir().join(uid).join("volumes"),
            rootfs: self.config.root.join("rootfs").join(uid),
        }
    }

    fn log_dir(&self, pod: &Pod) -> PathBuf {
        self.config.log_dir.join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid()))
    }

    fn note(
        &self,
        pod: &Arc<Pod>,
        warning: bool,
        reason: &'static str,
        message: String,
        container: Option<&str>,
    ) {
        let container = container.map(str::to_owned);
        self.events.pod(pod, &PodEvent { warning, reason, message, container });
    }

    /// A ConfigMap or Secret has changed: volumes that show it follow, and pods that wait for it try again.
    pub fn config_changed(&self, key: &crate::configs::ObjectKey) {
        let Some(reconciler) = self.reconciler.get() else { return };
        for view in reconciler.pods() {
            if !crate::configs::uses(&view.pod, key) {
                continue;
            }
            self.refresh_volumes(&view.pod);
            reconciler.config_changed(view.pod.uid());
        }
    }

    /// Brings the volumes of a running pod up to date that are made of objects or of its own fields.
    pub fn refresh_volumes(&self, pod: &Arc<Pod>) {
        if !crate::volumes::follow_objects(pod) {
            return;
        }
        let Some(entry) = self.find(pod.uid()) else { return };
        if !entry.is_ready() {
            return;
        }
        let labels = match self.labels(pod) {
            Ok(labels) => labels,
            Err(error) => return self.note(pod, true, "FailedMount", error.to_string(), None),
        };
        let facts = self.facts.for_pod(&entry.ips());
        let sources = crate::volumes::Sources {
            facts: &facts,
            lookup: &self.configs,
            claims: &self.claims,
            images: &self.images,
            users: None,
            container: None,
            labels: labels.as_ref(),
        };
        let refreshed =
            crate::volumes::set_up(pod, &self.folders(pod.uid()), &sources, crate::volumes::Stage::Refresh);
        if let Err(failure) = refreshed {
            self.note(pod, true, "FailedMount", failure.message, None);
        }
    }
}

#[async_trait]
impl Node for AgentNode {
    async fn observe(&self, uid: &str) -> Observation {
        self.find(uid).map(|entry| entry.observation()).unwrap_or_default()
    }

    async fn create_sandbox(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        sandbox::create(self, pod).await
    }

    async fn ensure_image(&self, pod: &Arc<Pod>, container: &str) -> Result<(), Failure> {
        image::ensure(self, pod, container).await
    }

    async fn start_container(&self, pod: &Arc<Pod>, start: &StartContainer) -> Result<(), Failure> {
        start::start(self, pod, start).await
    }

    async fn remove_container(&self, pod: &Arc<Pod>, id: &str) -> Result<(), Failure> {
        start::remove(self, pod, id).await
    }

    async fn run_hook(
        &self,
        pod: &Arc<Pod>,
        id: &str,
        hook: Hook,
        handler: &v1::LifecycleHandler,
    ) -> Result<(), Failure> {
        probe::run_hook(self, pod, id, hook, handler).await
    }

    async fn probe(&self, pod: &Arc<Pod>, id: &str, probe: &v1::Probe) -> ProbeOutcome {
        probe::probe(self, pod, id, probe).await
    }

    fn probe_again(
        self: Arc<Self>,
        pod: &Arc<Pod>,
        id: &str,
        probe: &v1::Probe,
        wait: Duration,
    ) -> Option<Probing> {
        probe::again(self, pod, id, probe, wait)
    }

    async fn stop_container(&self, pod: &Arc<Pod>, id: &str, signal: StopSignal) -> Result<(), Failure> {
        start::stop(self, pod, id, signal).await
    }

    async fn allocate(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        resize::allocate(self, pod)
    }

    async fn resize_container(
        &self,
        pod: &Arc<Pod>,
        id: &str,
        resources: &v1::ResourceRequirements,
    ) -> Result<(), Failure> {
        resize::resize_container(self, pod, id, resources)
    }

    async fn remove_pod(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        sandbox::remove(self, pod).await
    }

    async fn stop_sandbox(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        sandbox::stop(self, pod).await?;
        self.sandbox_stopped.send_replace(());
        Ok(())
    }

    fn host_ips(&self) -> Vec<IpAddr> {
        self.facts.ips.clone()
    }

    fn publish(&self, pod: &Arc<Pod>, deletion: Option<&Deletion>, status: &Arc<v1::PodStatus>) {
        if let Some(entry) = self.find(pod.uid()) {
            entry.set_pod(pod);
            entry.save_status(deletion, status);
        }
        self.objects.save_pod(pod, deletion);
        let shown = self.shown_pod(pod, deletion, status);
        self.show(pod, shown);
        self.services.pod_changed(pod, deletion.is_some(), status);
        self.policies.pod_changed(pod);
        if let Some(cluster) = self.cluster() {
            cluster.published(pod, deletion, status);
        }
    }

    fn gone(&self, pod: &Arc<Pod>) {
        self.claims.pod_gone(pod);
        self.services.pod_gone(pod.uid());
        self.policies.pod_gone(pod.uid());
        if let Some(cluster) = self.cluster() {
            cluster.gone(pod);
        }
        // A pod that only waited for its name must not take the one that has it out of sight.
        let others = self.reconciler.get().map(|r| r.pods()).unwrap_or_default();
        if !others.iter().any(|v| v.pod.uid() != pod.uid() && v.pod.full_name() == pod.full_name()) {
            self.store.delete(Kind::Pod, pod.namespace(), pod.name());
        }
        // Whoever changes it at this moment has stored it before finding that it is shown no more.
        self.objects.remove_pod(pod);
    }

    fn event(&self, pod: &Arc<Pod>, event: PodEvent) {
        self.events.pod(pod, &event);
    }
}
