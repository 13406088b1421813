//! `/stats/summary`, the kubelet's Summary API (k8s.io/kubelet/pkg/apis/stats/v1alpha1): what each pod and the node use, as
//! JSON, for programs that do not read Prometheus' text.

use berth_netplug::Stats as Traffic;
use berth_runtime::cgroup::Stats;
use jiff::Timestamp;
use nix::sys::statvfs::{Statvfs, statvfs};
use serde_json::{Value, json};

use super::containers::PodSample;
use super::usage::Usage;
use super::volumes::{self, Volume};
use crate::facts;
use crate::node::AgentNode;

/// The summary. Who asks for the first time in a while waits a second, see [`Meter`](super::usage::Meter).
pub async fn summary(node: &AgentNode) -> Value {
    let (usage, samples) = node.meter.read(node).await;
    let at = usage.at;
    let volumes = volumes::look(node, &samples).await;
    let pods: Vec<Value> = samples.iter().map(|sample| pod(sample, &usage, &volumes)).collect();
    let (memory, swap) = (node.facts.memory, node.facts.swap());
    let images = statvfs(&node.config.root.join("images")).ok();
    let root = statvfs(&node.config.root).ok();
    json!({
        "node": {
            "nodeName": node.facts.name,
            "startTime": node.facts.started_at,
            "cpu": {"time": at, "usageNanoCores": usage.nanocores, "usageCoreNanoSeconds": usage.machine},
            "memory": {"time": at, "availableBytes": memory.saturating_sub(usage.memory),
                "usageBytes": usage.memory, "workingSetBytes": usage.memory,
                "rssBytes": facts::meminfo("AnonPages:"),
                "pageFaults": facts::vmstat("pgfault"), "majorPageFaults": facts::vmstat("pgmajfault")},
            "swap": {"time": at, "swapUsageBytes": usage.swap,
                "swapAvailableBytes": swap.total.saturating_sub(usage.swap)},
            "fs": root.map(|fs| file_system(&fs, at)),
            "runtime": {"imageFs": images.map(|fs| file_system(&fs, at))},
        },
        "pods": pods,
    })
}

/// A file system as statvfs(3) tells of it.
fn file_system(fs: &Statvfs, at: Timestamp) -> Value {
    let bytes = |blocks: u64| blocks * fs.fragment_size();
    json!({
        "time": at,
        "availableBytes": bytes(fs.blocks_available()), "capacityBytes": bytes(fs.blocks()),
        "usedBytes": bytes(fs.blocks().saturating_sub(fs.blocks_free())),
        "inodesFree": fs.files_free(), "inodes": fs.files(), "inodesUsed": fs.files().saturating_sub(fs.files_free()),
    })
}

fn of_claim(volume: &Volume, at: Timestamp) -> Value {
    let mut value = file_system(&volume.fs, at);
    value["name"] = json!(volume.name);
    value["pvcRef"] = json!({"name": volume.claim.1, "namespace": volume.claim.0});
    value
}

fn pod(sample: &PodSample, usage: &Usage, volumes: &[Volume]) -> Value {
    let pod = &sample.pod;
    let of_pod = usage.pods.iter().find(|one| one.namespace == pod.namespace() && one.name == pod.name());
    let nanocores = |name: &str| {
        let containers = of_pod.iter().flat_map(|pod| &pod.containers);
        containers.into_iter().find(|one| one.name == name).map_or(0, |one| one.nanocores)
    };
    let mut containers = Vec::new();
    let (mut sum, mut cores) = (Stats::default(), 0);
    for container in &sample.containers {
        let (stats, used) = (&container.stats, nanocores(&container.name));
        let mut one = figures(stats, used, usage.at);
        one["name"] = json!(container.name);
        one["startTime"] = json!(container.started_at);
        containers.push(one);
        add(&mut sum, stats);
        cores += used;
    }
    let mut all = figures(&sum, cores, usage.at);
    all["podRef"] = json!({"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()});
    all["startTime"] = json!(sample.containers.iter().map(|one| one.started_at).min());
    all["containers"] = json!(containers);
    let own = volumes.iter().filter(|volume| volume.uid == pod.uid());
    let own: Vec<Value> = own.map(|volume| of_claim(volume, usage.at)).collect();
    if !own.is_empty() {
        all["volume"] = json!(own);
    }
    all["process_stats"] = json!({"process_count": sum.pids.current});
    if let Some((name, first)) = sample.interfaces.first() {
        let mut network = interface(name, first);
        network["time"] = json!(usage.at);
        network["interfaces"] =
            sample.interfaces.iter().map(|(name, stats)| interface(name, stats)).collect();
        all["network"] = network;
    }
    all
}

fn add(sum: &mut Stats, one: &Stats) {
    sum.cpu.usage_ns += one.cpu.usage_ns;
    sum.memory.usage += one.memory.usage;
    sum.memory.working_set += one.memory.working_set;
    sum.memory.rss += one.memory.rss;
    sum.memory.swap += one.memory.swap;
    sum.memory.pgfault += one.memory.pgfault;
    sum.memory.pgmajfault += one.memory.pgmajfault;
    sum.pids.current += one.pids.current;
}

fn figures(stats: &Stats, nanocores: u64, at: Timestamp) -> Value {
    let memory = &stats.memory;
    let mut figures = json!({
        "cpu": {"time": at, "usageNanoCores": nanocores, "usageCoreNanoSeconds": stats.cpu.usage_ns},
        "memory": {"time": at, "usageBytes": memory.usage, "workingSetBytes": memory.working_set,
            "rssBytes": memory.rss, "pageFaults": memory.pgfault, "majorPageFaults": memory.pgmajfault},
        "swap": {"time": at, "swapUsageBytes": memory.swap},
    });
    if let Some(limit) = memory.limit {
        figures["memory"]["availableBytes"] = json!(limit.saturating_sub(memory.working_set));
    }
    figures
}

fn interface(name: &str, stats: &Traffic) -> Value {
    json!({"name": name, "rxBytes": stats.rx_bytes, "rxErrors": stats.rx_errors,
        "txBytes": stats.tx_bytes, "txErrors": stats.tx_errors})
}
