//! How much processor time is used at the moment: what metrics-server tells `kubectl top`. Two readings are compared; nothing is
//! read while nobody asks.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Mutex;

use super::containers::{PodSample, gather};
use crate::node::AgentNode;

/// The shortest time between two readings: the kernel counts processor time of the machine in hundredths of a second.
const SHORTEST: Duration = Duration::from_secs(1);
/// A reading that is older says too little about now.
const LONGEST: Duration = Duration::from_secs(60);

/// What a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// Billionths of a core.
    pub nanocores: u64,
    /// Working set, in bytes.
    pub memory: u64,
}

/// What a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
}

/// What everything uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// When that was read.
    pub at: Timestamp,
    /// The time over which processor time was counted.
    pub window: Duration,
    /// Pods with running containers.
    pub pods: Vec<PodUsage>,
    /// Billionths of a core that the whole machine uses.
    pub nanocores: u64,
    /// Processor time that the machine has used since it was started, in nanoseconds.
    pub machine: u64,
    /// Bytes of the machine's memory that cannot be had without swapping.
    pub memory: u64,
    /// Bytes of swap in use.
    pub swap: u64,
}

/// One reading.
#[derive(Clone, Debug, Default)]
struct Reading {
    /// Processor time in nanoseconds by container.
    containers: HashMap<String, u64>,
    /// Of the machine.
    machine: u64,
}

/// Remembers the last reading for the next.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Option<(Instant, Reading)>>);

impl Meter {
    /// What everything uses now. Who asks for the first time in a while waits a second.
    pub async fn read(&self, node: &AgentNode) -> (Usage, Vec<PodSample>) {
        let mut last = self.0.lock().await;
        let (since, before) = match last.take() {
            Some((since, before)) if since.elapsed() <= LONGEST => (since, before),
            _ => {
                let before = (Instant::now(), reading(&gather(node).await));
                tokio::time::sleep(SHORTEST).await;
                before
            }
        };
        if let Some(wait) = SHORTEST.checked_sub(since.elapsed()) {
            tokio::time::sleep(wait).await;
        }
        let samples = gather(node).await;
        let (now, after) = (Instant::now(), reading(&samples));
        let usage = compare(&samples, &before, &after, now.duration_since(since));
        *last = Some((now, after));
        (usage, samples)
    }
}

fn reading(samples: &[PodSample]) -> Reading {
    let containers = samples.iter().flat_map(|pod| &pod.containers);
    Reading {
        containers: containers.map(|c| (c.id.clone(), c.stats.cpu.usage_ns)).collect(),
        machine: machine(),
    }
}

fn compare(samples: &[PodSample], before: &Reading, after: &Reading, window: Duration) -> Usage {
    let at = Timestamp::now();
    let pods = samples.iter().filter(|sample| !sample.containers.is_empty());
    let pods = pods.map(|sample| PodUsage {
        namespace: sample.pod.namespace().to_owned(),
        name: sample.pod.name().to_owned(),
        containers: sample
            .containers
            .iter()
            .map(|container| {
                // One that was not there yet has used all it has used since its start.
                let (used, window) = match before.containers.get(&container.id) {
                    Some(before) => (container.stats.cpu.usage_ns.saturating_sub(*before), window),
                    None => (container.stats.cpu.usage_ns, since(container.started_at, at)),
                };
                ContainerUsage {
                    name: container.name.clone(),
                    nanocores: rate(used, window),
                    memory: container.stats.memory.working_set,
                }
            })
            .collect(),
    });
    Usage {
        at,
        window,
        pods: pods.collect(),
        nanocores: rate(after.machine.saturating_sub(before.machine), window),
        machine: after.machine,
        memory: difference("MemTotal:", "MemAvailable:"),
        swap: difference("SwapTotal:", "SwapFree:"),
    }
}

fn since(start: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(start)).unwrap_or_default()
}

/// Nanoseconds of processor time per second. Less than a tenth of a second says nothing about a second.
fn rate(nanoseconds: u64, window: Duration) -> u64 {
    let window = window.max(Duration::from_millis(100));
    (nanoseconds as f64 / window.as_secs_f64()) as u64
}

/// Processor time that was not idle, in nanoseconds (proc_stat(5)).
fn machine() -> u64 {
    /// The kernel's USER_HZ is the same on every architecture that Berth is for.
    const TICK: u64 = 10_000_000;
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy(text.lines().next().unwrap_or_default()) * TICK
}

/// user, nice, system, (idle, iowait), irq, softirq, steal; guests are in user.
fn busy(line: &str) -> u64 {
    let numbers = line.split_whitespace().skip(1).map(|word| word.parse::<u64>().unwrap_or(0));
    numbers.enumerate().filter(|(n, _)| matches!(n, 0..=2 | 5..=7)).map(|(_, ticks)| ticks).sum()
}

/// Between two figures of proc_meminfo(5), in bytes.
fn difference(all: &str, free: &str) -> u64 {
    let of = |name| crate::facts::meminfo(name).unwrap_or(0);
    of(all).saturating_sub(of(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_what_was_not_idle() {
        assert_eq!(busy("cpu  10 20 30 400 50 6 7 8 9 1"), 10 + 20 + 30 + 6 + 7 + 8);
        assert_eq!(busy(""), 0);
        assert_eq!(rate(500_000_000, Duration::from_secs(2)), 250_000_000);
        assert_eq!(rate(1_000, Duration::ZERO), 10_000);
    }
}
