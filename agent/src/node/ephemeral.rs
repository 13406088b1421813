//! Ends pods that take more of the disk than they may.
//!
//! Only pods that state a limit are looked at, every ten seconds as a kubelet does; looking at one never takes more than a
//! twentieth of the time, however many files it has. While there is no such pod, this sleeps.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_reconciler::node::{ContainerState, Eviction};
use berth_reconciler::storage::{self, EVICTED, Usage};
use jiff::Timestamp;

use super::AgentNode;
use super::entry::{Entry, write_json};
use super::sandbox::blocking;
use crate::volumes;

/// kubelet's eviction manager looks as often.
const PERIOD: Duration = Duration::from_secs(10);
/// Between two looks at a pod lies at least this many times what one took.
const PATIENCE: u32 = 20;

/// Why a pod is evicted, in its run folder.
pub(super) const RECORD: &str = "evicted.json";

/// Where the files of a pod lie.
struct Places {
    containers: Vec<(String, Vec<PathBuf>)>,
    volumes: Vec<(String, PathBuf)>,
}

impl Places {
    fn measure(&self) -> std::io::Result<Usage> {
        let mut usage = Usage::default();
        for (name, paths) in &self.containers {
            let mut sum = 0;
            for path in paths {
                sum += volumes::usage::of(path)?;
            }
            *usage.containers.entry(name.clone()).or_default() += sum;
        }
        for (name, path) in &self.volumes {
            usage.volumes.insert(name.clone(), volumes::usage::of(path)?);
        }
        Ok(usage)
    }
}

/// Looks after all pods, for ever.
pub async fn watch(node: Arc<AgentNode>) {
    let mut rest: HashMap<String, Instant> = HashMap::new();
    loop {
        let limited: Vec<Arc<Entry>> = node.all_entries().into_iter().filter(|e| is_watched(e)).collect();
        if limited.is_empty() {
            rest.clear();
            node.limited.notified().await;
            continue;
        }
        tokio::time::sleep(PERIOD).await;
        rest.retain(|uid, _| node.find(uid).is_some());
        for entry in limited {
            let uid = entry.pod().uid().to_owned();
            if rest.get(&uid).is_some_and(|until| Instant::now() < *until) || !is_watched(&entry) {
                continue;
            }
            let begun = Instant::now();
            check(&node, &entry).await;
            rest.insert(uid, Instant::now() + begun.elapsed() * PATIENCE);
        }
    }
}

fn is_watched(entry: &Entry) -> bool {
    entry.is_ready() && !entry.is_evicted() && storage::is_limited(entry.pod().spec())
}

async fn check(node: &AgentNode, entry: &Arc<Entry>) {
    let pod = entry.pod();
    let places = places(node, entry);
    let usage = match blocking(move || places.measure()).await {
        Ok(usage) => usage,
        Err(error) => {
            tracing::warn!(pod = pod.full_name(), %error, "cannot measure what the pod takes of the disk");
            return;
        }
    };
    let Some(message) = storage::exceeded(pod.spec(), &usage) else { return };
    tracing::warn!(pod = pod.full_name(), "evicting: {message}");
    let eviction = Eviction { message: message.clone(), since: Timestamp::now() };
    // On disk before it is believed: the next agent goes on with it.
    if let Err(error) = write_json(&entry.dir.join(RECORD), &eviction) {
        tracing::error!(pod = pod.full_name(), %error, "cannot record that the pod is evicted");
        return;
    }
    entry.state().evicted = Some(eviction);
    node.note(&pod, true, EVICTED, message, None);
    if let Some(reconciler) = node.reconciler.get() {
        reconciler.wake(pod.uid());
    }
}

/// The writable layers of running containers with all logs of each container, and the emptyDirs.
fn places(node: &AgentNode, entry: &Entry) -> Places {
    let pod = entry.pod();
    let rootfs = node.config.root.join("rootfs").join(pod.uid());
    let logs = node.log_dir(&pod);
    let running = entry.state().instances.clone();
    let running = running.into_iter().filter(|i| matches!(i.record.state, ContainerState::Running { .. }));
    let containers = running.map(|instance| {
        let name = instance.record.name;
        let paths = vec![rootfs.join(&instance.record.id).join("upper"), logs.join(&name)];
        (name, paths)
    });
    let data = node.folders(pod.uid()).data;
    let empty_dirs = pod.spec().volumes.iter().flatten().filter(|volume| {
        volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty())
    });
    Places {
        containers: containers.collect(),
        volumes: empty_dirs.map(|volume| (volume.name.clone(), data.join(&volume.name))).collect(),
    }
}
