//! Ends pods that take more of the disk than they may.
//!
//! Only pods that state a limit are looked at, every ten seconds as a kubelet does, or less often where that costs too much
//! ([`rest`]): a walk through 100,000 files takes a fifth of a second. While there is no such pod, this sleeps.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_reconciler::node::{ContainerState, Eviction};
use berth_reconciler::storage::{self, EVICTED, Usage};
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

use super::AgentNode;
use super::entry::{Entry, write_json};
use super::sandbox::blocking;
use crate::volumes;
use crate::volumes::usage::Used;

/// kubelet's eviction manager looks as often.
const PERIOD: Duration = Duration::from_secs(10);
/// Looking at all pods takes no more than this part of a processor.
const SHARE: u32 = 200;
/// Nor is a disk that answers slowly asked for more than this part of the time by one pod.
const DISK_SHARE: u32 = 20;
/// No pod waits longer for its next look, whatever that costs, as with a kubelet (20 times a minute).
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// Why a pod is evicted, in its run folder.
pub(super) const RECORD: &str = "evicted.json";

/// What looking at a pod has cost.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Time of a processor.
    cpu: Duration,
    /// Time that passed.
    took: Duration,
}

/// How long a pod is left alone after a look, if so many pods are looked at: with all of them, [`SHARE`] is kept.
fn rest(cost: Cost, pods: usize) -> Duration {
    let pods = u32::try_from(pods).unwrap_or(u32::MAX).max(1);
    let cpu = cost.cpu.saturating_mul(SHARE).saturating_mul(pods);
    cpu.max(cost.took.saturating_mul(DISK_SHARE)).clamp(PERIOD, LONGEST)
}

/// Where the files of a pod lie.
struct Places {
    containers: Vec<(String, Vec<PathBuf>)>,
    volumes: Vec<(String, PathBuf)>,
}

/// What the files of a pod take.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Each running container's writable layer and logs.
    pub containers: BTreeMap<String, Used>,
    /// Each emptyDir on disk.
    pub volumes: BTreeMap<String, Used>,
}

impl Files {
    fn bytes(&self) -> Usage {
        let bytes = |all: &BTreeMap<String, Used>| {
            all.iter().map(|(name, used)| (name.clone(), used.bytes)).collect()
        };
        Usage { containers: bytes(&self.containers), volumes: bytes(&self.volumes) }
    }
}

/// Measures what the files of a pod take.
pub(super) async fn measure(node: &AgentNode, entry: &Entry) -> std::io::Result<Files> {
    let places = places(node, entry);
    blocking(move || places.measure()).await
}

impl Places {
    fn measure(&self) -> std::io::Result<Files> {
        let mut usage = Files::default();
        for (name, paths) in &self.containers {
            let sum = usage.containers.entry(name.clone()).or_default();
            for path in paths {
                *sum += volumes::usage::of(path)?;
            }
        }
        for (name, path) in &self.volumes {
            usage.volumes.insert(name.clone(), volumes::usage::of(path)?);
        }
        Ok(usage)
    }
}

/// Looks after all pods, for ever.
pub async fn watch(node: Arc<AgentNode>) {
    let mut until: HashMap<String, Instant> = HashMap::new();
    loop {
        let limited: Vec<Arc<Entry>> = node.all_entries().into_iter().filter(|e| is_watched(e)).collect();
        if limited.is_empty() {
            until.clear();
            node.limited.notified().await;
            continue;
        }
        tokio::time::sleep(PERIOD).await;
        until.retain(|uid, _| node.find(uid).is_some());
        let pods = limited.len();
        for entry in limited {
            let uid = entry.pod().uid().to_owned();
            if until.get(&uid).is_some_and(|until| Instant::now() < *until) || !is_watched(&entry) {
                continue;
            }
            let cost = check(&node, &entry).await;
            // A timer that comes a little early is none the less for this look.
            let slack = Duration::from_secs(1);
            until.insert(uid, Instant::now() + rest(cost, pods) - slack);
        }
    }
}

fn is_watched(entry: &Entry) -> bool {
    entry.is_ready() && !entry.is_evicted() && storage::is_limited(entry.pod().spec())
}

/// Measures a pod, and evicts it if it takes too much.
async fn check(node: &AgentNode, entry: &Arc<Entry>) -> Cost {
    let pod = entry.pod();
    let places = places(node, entry);
    let (usage, cost) = blocking(move || timed(|| places.measure())).await;
    match usage {
        Ok(files) => judge(node, entry, &files.bytes()),
        Err(error) => {
            tracing::warn!(pod = pod.full_name(), %error, "cannot measure what the pod takes of the disk");
        }
    }
    cost
}

/// Does something on this thread, and says what it has cost.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let cpu = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    let (begun, before) = (Instant::now(), cpu());
    let done = work();
    (done, Cost { cpu: cpu().saturating_sub(before), took: begun.elapsed() })
}

/// Evicts a pod if it takes too much.
fn judge(node: &AgentNode, entry: &Arc<Entry>, usage: &Usage) {
    let pod = entry.pod();
    let Some(message) = storage::exceeded(pod.spec(), usage) else { return };
    tracing::warn!(pod = pod.full_name(), "evicting: {message}");
    evict(node, entry, Eviction::at_once(message, Timestamp::now()), EVICTED);
}

/// Ends a pod for good, with an event of that reason.
pub(super) fn evict(node: &AgentNode, entry: &Arc<Entry>, eviction: Eviction, event: &'static str) {
    let pod = entry.pod();
    // On disk before it is believed: the next agent goes on with it.
    if let Err(error) = write_json(&entry.dir.join(RECORD), &eviction) {
        tracing::error!(pod = pod.full_name(), %error, "cannot record why the pod is to end");
        return;
    }
    node.note(&pod, true, event, eviction.message.clone(), None);
    entry.state().evicted = Some(eviction);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_all_pods_takes_a_two_hundredth_of_a_processor() {
        let ms = Duration::from_millis;
        for (cpu, took, pods, wanted) in [
            (0, 0, 1, ms(10_000)),
            (50, 50, 1, ms(10_000)),
            // 100,000 files.
            (200, 200, 1, ms(40_000)),
            (200, 200, 5, ms(200_000)),
            (5, 5, 110, ms(110_000)),
            // A disk that sleeps, or is busy.
            (1, 2_000, 1, ms(40_000)),
            (10_000, 10_000, 1, LONGEST),
            (10_000, 10_000, usize::MAX, LONGEST),
        ] {
            let cost = Cost { cpu: ms(cpu), took: ms(took) };
            assert_eq!(rest(cost, pods), wanted, "{cost:?}, {pods} pods");
        }
    }

    #[test]
    fn what_a_walk_costs_is_told() {
        let (sum, cost) = timed(|| (0..20_000_000u64).fold(0, |sum, n| sum ^ std::hint::black_box(n)));
        assert_eq!(sum, (0..20_000_000u64).fold(0, |sum, n| sum ^ n));
        assert!(cost.cpu > Duration::ZERO && cost.took >= cost.cpu / 2, "{cost:?}");
    }
}
