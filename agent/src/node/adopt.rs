//! What an earlier agent left running: found, believed, connected to.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_reconciler::node::{ContainerState, Deletion, Eviction, Sandbox};
use berth_reconciler::pod::Pod;
use berth_reconciler::shutdown::TERMINATED;
use berth_runtime::shim::client::{Client, ContainerState as ShimContainer, ExitRecord, Status};
use k8s_openapi::api::core::v1;

use super::entry::{Entry, Instance, PodRecord, SandboxRecord, read_json};
use super::sandbox::{blocking, kill_remains, kill_shim};
use super::{AgentNode, networks, shims};
use crate::volumes;

/// A pod that was found.
pub struct Adopted {
    /// The pod as it was accepted.
    pub pod: Arc<Pod>,
    /// Its deletion, if that had begun.
    pub deletion: Option<Deletion>,
    /// The status published last.
    pub status: Option<v1::PodStatus>,
}

impl AgentNode {
    /// Finds every pod of the run folder and connects to its shim. Call it once, before anything is reconciled.
    pub async fn adopt(&self) -> Vec<Adopted> {
        let mut found = Vec::new();
        for dir in sub_folders(&self.config.pods_dir()) {
            let Some(record) = read_json::<PodRecord>(&dir.join("pod.json")) else {
                self.remove_nameless(&dir).await;
                continue;
            };
            if dir.file_name().and_then(|n| n.to_str()) != Some(record.pod.uid()) {
                self.remove_nameless(&dir).await;
                continue;
            }
            let status = read_json(&dir.join("status.json"));
            let evicted: Option<Eviction> = read_json(&dir.join(super::ephemeral::RECORD));
            let entry = Arc::new(Entry::new(dir, record.pod.clone()));
            if evicted.as_ref().is_some_and(|e| e.reason == TERMINATED) && record.deletion.is_none() {
                // It ended with the machine, which is up again, although the run folder has outlived that.
                kill_remains(self, &entry).await;
                self.remove_folder(&entry.dir).await;
                continue;
            }
            entry.state().evicted = evicted;
            self.entries().insert(record.pod.uid().to_owned(), entry.clone());
            self.connect_to(&entry).await;
            if entry.has_sandbox() {
                self.claims.hold(&record.pod);
            }
            self.limited.notify_one();
            found.push(Adopted { pod: record.pod, deletion: record.deletion, status });
        }
        found
    }

    async fn connect_to(&self, entry: &Arc<Entry>) {
        let pod = entry.pod();
        let record: Option<SandboxRecord> = read_json(&entry.dir.join("sandbox.json"));
        let in_place = record.as_ref().is_some_and(|record| self.is_in_place(&pod, record));
        let connected = match &record {
            Some(_) if in_place => Client::connect(&entry.dir.join("shim.sock")).await.ok(),
            _ => None,
        };
        let listed = match &connected {
            Some((client, _)) => client.list().await.ok(),
            None => None,
        };
        entry.state().allocated = read_json(&entry.dir.join("resources.json")).unwrap_or_default();
        match (record, connected, listed) {
            (Some(record), Some((client, events)), Some(listed)) => {
                entry.set_paused(listed.iter().any(|container| container.paused));
                {
                    let mut state = entry.state();
                    state.instances = load_instances(entry, &pod, Some(&listed));
                    state.networks = record.networks();
                    state.sandbox = Sandbox::Ready { ips: record.ips, created_at: record.created_at };
                }
                shims::follow(self, entry, client, events);
                if let Err(error) = super::resize::fit(self, entry, &pod) {
                    tracing::warn!(pod = pod.full_name(), %error, "cannot restore the pod's cgroup limits");
                }
            }
            (record, _, _) => {
                kill_remains(self, entry).await;
                let mut state = entry.state();
                state.instances = load_instances(entry, &pod, None);
                state.sandbox = if record.is_some() { Sandbox::Dead } else { Sandbox::Absent };
            }
        }
    }

    /// Whether the pod still has its place in its networks. If not, because the settings are others now, it is made anew.
    fn is_in_place(&self, pod: &Pod, record: &SandboxRecord) -> bool {
        if self.cni.is_on() || self.cni.holds(pod.uid()) {
            return true;
        }
        match networks::still_there(&self.network, pod, &record.networks()) {
            Ok(()) => true,
            Err(why) => {
                tracing::warn!(pod = pod.full_name(), why, "the pod is made anew: its networks have changed");
                false
            }
        }
    }

    /// A run folder that does not say whose it is: an agent died while it made or removed it.
    async fn remove_nameless(&self, dir: &Path) {
        tracing::warn!(dir = %dir.display(), "removing a run folder without a record");
        self.remove_folder(dir).await;
    }

    async fn remove_folder(&self, dir: &Path) {
        let folder = dir.to_owned();
        blocking(move || {
            kill_shim(&folder);
            berth_runtime::tmpfs::unmount(&folder.join("shm"));
            if let Err(error) = volumes::remove_tree(&folder) {
                tracing::warn!(dir = %folder.display(), %error, "cannot remove it");
            }
        })
        .await;
    }

    /// Removes what belongs to no pod that is known: cgroups, network leases, ids, SELinux levels, root file systems, volumes, logs.
    /// `wanted` are the uids of pods that are about to run: what they left behind before a reboot is theirs.
    pub async fn collect_garbage(&self, wanted: HashSet<String>) {
        let mut known = wanted;
        known.extend(self.known());
        for name in self.kubepods.collect_garbage(&|uid| known.contains(uid)) {
            tracing::info!(cgroup = name, "removed a cgroup that no pod owned");
        }
        self.id_ranges.collect_garbage(&|uid| known.contains(uid));
        self.levels.collect_garbage(&|uid| known.contains(uid));
        let live: Vec<String> = known.iter().cloned().collect();
        match self.cni.gc(&live).await {
            Ok(freed) if !freed.is_empty() => tracing::info!(?freed, "disconnected pods that nobody owned"),
            Ok(_) => {}
            Err(error) => tracing::warn!(error, "cannot disconnect pods that nobody owns"),
        }
        let freed = match self.cni.is_on() {
            true => self.network.detach_all_but(&live).await,
            false => self.network.gc(&live).await,
        };
        match freed {
            Ok(freed) if !freed.is_empty() => tracing::info!(?freed, "freed addresses that no pod owned"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot look for addresses that no pod owns"),
        }
        let (root, log_dir) = (self.config.root.clone(), self.config.log_dir.clone());
        let links = self.config.log_links.clone();
        blocking(move || collect_folders(&root, &log_dir, links.as_deref(), &known)).await;
    }

    /// Makes the tree of cgroups.
    ///
    /// # Errors
    /// When the configured parent cannot hold cgroups.
    pub fn prepare_cgroups(&self) -> Result<(), berth_runtime::cgroup::Error> {
        self.kubepods.prepare()
    }

    /// Removes the tree of cgroups, when the agent cleans up after itself.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove_cgroups(&self) -> Result<(), berth_runtime::cgroup::Error> {
        self.kubepods.remove_all()
    }
}

fn sub_folders(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

/// Reads the instances of a run folder; `listed` is what its shim says, none if it is dead.
fn load_instances(entry: &Entry, pod: &Pod, listed: Option<&[ShimContainer]>) -> Vec<Instance> {
    let mut instances = Vec::new();
    for bundle in sub_folders(&entry.dir.join("containers")) {
        let Some(mut instance) = read_json::<Instance>(&bundle.join("meta.json")) else {
            // Died before it was known to anybody.
            if let Err(error) = volumes::remove_tree(&bundle) {
                tracing::warn!(bundle = %bundle.display(), %error, "cannot remove a bundle without a record");
            }
            continue;
        };
        let known = listed.and_then(|l| l.iter().find(|c| c.id == instance.record.id));
        instance.pid = known.map(|c| c.pid);
        instance.record.state = state_of(pod, &instance, &bundle, known);
        instances.push(instance);
    }
    instances
}

fn state_of(pod: &Pod, instance: &Instance, bundle: &Path, known: Option<&ShimContainer>) -> ContainerState {
    let container = pod.container(&instance.record.name);
    let exited = |exit: &ExitRecord| {
        ContainerState::Exited(shims::describe(exit, container, bundle, &instance.log_path))
    };
    if let Some(exit) = known.and_then(|c| c.exit.as_ref()) {
        return exited(exit);
    }
    if let Some(exit) = read_json::<ExitRecord>(&bundle.join("exit.json")) {
        return exited(&exit);
    }
    match known.map(|c| (c.status, c.started_at)) {
        Some((Status::Running, Some(started_at))) => return ContainerState::Running { started_at },
        Some((Status::Created, _)) => return ContainerState::Created,
        _ => {}
    }
    let last: Option<berth_runtime::shim::proto::StateRecord> = read_json(&bundle.join("state.json"));
    match last.and_then(|s| s.started_at) {
        // It ran, nobody knows it any more, and no exit was recorded.
        Some(started_at) => {
            ContainerState::Exited(shims::last_words(pod, instance, bundle, Some(started_at)))
        }
        None => ContainerState::Created,
    }
}

/// Folders named after uids that nobody knows. Only our own state folder is trusted to say which uids were ours.
fn collect_folders(root: &Path, log_dir: &Path, links: Option<&Path>, known: &HashSet<String>) {
    let mut orphans: HashSet<String> = HashSet::new();
    for parent in ["rootfs", "volumes"] {
        for dir in sub_folders(&root.join(parent)) {
            let Some(uid) = dir.file_name().and_then(|n| n.to_str()).map(str::to_owned) else { continue };
            if known.contains(&uid) {
                continue;
            }
            for volume in sub_folders(&dir) {
                berth_runtime::tmpfs::unmount(&volume);
            }
            if let Err(error) = volumes::remove_tree(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "cannot remove a folder that no pod owns");
            }
            orphans.insert(uid);
        }
    }
    for dir in sub_folders(log_dir) {
        let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.rsplit('_').next().is_some_and(|uid| orphans.contains(uid)) {
            let _ = volumes::remove_tree(&dir);
        }
    }
    for link in links.and_then(|l| std::fs::read_dir(l).ok()).into_iter().flatten().flatten() {
        let dangling =
            std::fs::metadata(link.path()).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        let ours = std::fs::read_link(link.path()).is_ok_and(|to| to.starts_with(log_dir));
        if dangling && ours {
            let _ = std::fs::remove_file(link.path());
        }
    }
}
