//! The figures of cgroups and interfaces under the names that dashboards know from cAdvisor.

use std::sync::Arc;

use berth_netplug::Stats as NetStats;
use berth_reconciler::node::ContainerState;
use berth_reconciler::pod::Pod;
use berth_reconciler::resources::{self, CpuMem};
use berth_runtime::cgroup::Stats;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, Opts, Result};

use crate::node::AgentNode;

/// The figures of one container.
pub struct ContainerSample {
    pub(super) name: String,
    pub(super) id: String,
    image: String,
    cgroup: String,
    pub(super) started_at: Timestamp,
    restarts: u32,
    /// What its cgroup was given.
    values: CpuMem,
    /// When this was read.
    seen_at: Timestamp,
    pub(super) stats: Stats,
}

impl ContainerSample {
    /// Its name in the pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of memory that it cannot do without.
    pub fn working_set(&self) -> u64 {
        self.stats.memory.working_set
    }

    /// Its processes and threads.
    pub fn processes(&self) -> u64 {
        self.stats.pids.current
    }
}

impl PodSample {
    /// Whether these are that pod's.
    pub fn is_of(&self, uid: &str) -> bool {
        self.pod.uid() == uid
    }
}

/// The figures of one pod.
pub struct PodSample {
    pub(super) pod: Arc<Pod>,
    /// Running containers.
    pub containers: Vec<ContainerSample>,
    /// Each interface by its name.
    pub(super) interfaces: Vec<(String, NetStats)>,
}

/// Reads the figures of everything that runs.
pub async fn gather(node: &AgentNode) -> Vec<PodSample> {
    let mut samples = Vec::new();
    for entry in node.all_entries() {
        let (instances, networks) = {
            let state = entry.state();
            (state.instances.clone(), state.networks.clone())
        };
        let pod = entry.pod();
        let mut containers = Vec::new();
        for instance in instances {
            let ContainerState::Running { started_at } = instance.record.state else { continue };
            // A container that ends just now has no figures any more.
            let Ok(stats) = node.cgroups.stats(&instance.cgroup) else { continue };
            let given = v1::Container { resources: instance.record.resources, ..Default::default() };
            let cfs = node.config.cfs;
            let values = resources::container_values(pod.spec(), &given).under(cfs.quota, cfs.period);
            containers.push(ContainerSample {
                values,
                seen_at: Timestamp::now(),
                name: instance.record.name,
                id: instance.record.id,
                image: instance.record.image,
                cgroup: instance.cgroup,
                started_at,
                restarts: instance.record.attempt,
                stats,
            });
        }
        let mut interfaces = Vec::new();
        for one in networks {
            // An interface that goes just now has no figures any more.
            if let Some(stats) = node.interface_stats(&entry, &one.attachment).await {
                interfaces.push((one.attachment.interface, stats));
            }
        }
        samples.push(PodSample { pod, containers, interfaces });
    }
    samples.sort_by_key(|s| s.pod.full_name());
    samples
}

const LABELS: [&str; 6] = ["namespace", "pod", "container", "image", "name", "id"];
const NET_LABELS: [&str; 4] = ["namespace", "pod", "interface", "id"];

fn labels(sample: &PodSample, container: &ContainerSample) -> [String; 6] {
    [
        sample.pod.namespace().to_owned(),
        sample.pod.name().to_owned(),
        container.name.clone(),
        container.image.clone(),
        container.id.clone(),
        container.cgroup.clone(),
    ]
}

/// Of which kind a figure is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// A figure of a container: its name, what it says, its kind, and how to read it; none is left out.
type Figure = (&'static str, &'static str, Kind, fn(&ContainerSample) -> Option<f64>);

fn some(value: u64) -> Option<f64> {
    Some(value as f64)
}

const NANO: f64 = 1e-9;
const MICRO: f64 = 1e-6;

const FIGURES: &[Figure] = &[
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", Kind::Counter, |c| {
        Some(c.stats.cpu.usage_ns as f64 * NANO)
    }),
    (
        "container_cpu_user_seconds_total",
        "Cumulative user cpu time consumed in seconds.",
        Kind::Counter,
        |c| Some(c.stats.cpu.user_ns as f64 * NANO),
    ),
    (
        "container_cpu_system_seconds_total",
        "Cumulative system cpu time consumed in seconds.",
        Kind::Counter,
        |c| Some(c.stats.cpu.system_ns as f64 * NANO),
    ),
    (
        "container_cpu_cfs_periods_total",
        "Number of elapsed enforcement period intervals.",
        Kind::Counter,
        |c| some(c.stats.cpu.periods),
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        "Number of throttled period intervals.",
        Kind::Counter,
        |c| some(c.stats.cpu.throttled_periods),
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        Kind::Counter,
        |c| Some(c.stats.cpu.throttled_ns as f64 * NANO),
    ),
    ("container_memory_working_set_bytes", "Current working set in bytes.", Kind::Gauge, |c| {
        some(c.stats.memory.working_set)
    }),
    (
        "container_memory_usage_bytes",
        "Current memory usage in bytes, all memory included.",
        Kind::Gauge,
        |c| some(c.stats.memory.usage),
    ),
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", Kind::Gauge, |c| {
        some(c.stats.memory.max_usage)
    }),
    ("container_memory_rss", "Size of RSS in bytes.", Kind::Gauge, |c| some(c.stats.memory.rss)),
    ("container_memory_cache", "Number of bytes of page cache memory.", Kind::Gauge, |c| {
        some(c.stats.memory.cache)
    }),
    ("container_memory_swap", "Container swap usage in bytes.", Kind::Gauge, |c| some(c.stats.memory.swap)),
    ("container_memory_mapped_file", "Size of memory mapped files in bytes.", Kind::Gauge, |c| {
        some(c.stats.memory.mapped_file)
    }),
    // A gauge, since a counter without `_total` is refused by promtool and the name is cAdvisor's.
    ("container_memory_failcnt", "Number of memory usage hits limits.", Kind::Gauge, |c| {
        some(c.stats.memory.failcnt)
    }),
    (
        "container_oom_events_total",
        "Count of out of memory events observed for the container.",
        Kind::Counter,
        |c| some(c.stats.memory.oom_kills),
    ),
    ("container_spec_memory_limit_bytes", "Memory limit for the container; 0 is none.", Kind::Gauge, |c| {
        some(c.stats.memory.limit.unwrap_or(0))
    }),
    (
        "container_spec_memory_reservation_limit_bytes",
        "Memory request of the container; 0 is none.",
        Kind::Gauge,
        |c| some(c.values.memory_request),
    ),
    ("container_spec_cpu_shares", "CPU share of the container.", Kind::Gauge, |c| some(c.values.shares)),
    ("container_spec_cpu_period", "CPU period of the container.", Kind::Gauge, |c| some(c.values.period)),
    // As with cAdvisor, only of containers that have one.
    ("container_spec_cpu_quota", "CPU quota of the container.", Kind::Gauge, |c| {
        c.values.quota.map(|quota| quota as f64)
    }),
    ("container_last_seen", "Last time a container was seen by the exporter.", Kind::Gauge, |c| {
        Some(c.seen_at.as_second() as f64)
    }),
    ("container_threads", "Number of threads running inside the container.", Kind::Gauge, |c| {
        some(c.stats.pids.current)
    }),
    (
        "container_processes",
        "Number of processes and threads running inside the container.",
        Kind::Gauge,
        |c| some(c.stats.pids.current),
    ),
    ("container_fs_reads_total", "Cumulative count of reads completed.", Kind::Counter, |c| {
        some(c.stats.io.reads)
    }),
    ("container_fs_writes_total", "Cumulative count of writes completed.", Kind::Counter, |c| {
        some(c.stats.io.writes)
    }),
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read.", Kind::Counter, |c| {
        some(c.stats.io.read_bytes)
    }),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written.", Kind::Counter, |c| {
        some(c.stats.io.write_bytes)
    }),
    (
        "container_pressure_cpu_waiting_seconds_total",
        "Time tasks waited for a processor.",
        Kind::Counter,
        |c| c.stats.psi.map(|p| p.cpu.some_usec as f64 * MICRO),
    ),
    (
        "container_pressure_cpu_stalled_seconds_total",
        "Time no task could use a processor.",
        Kind::Counter,
        |c| c.stats.psi.map(|p| p.cpu.full_usec as f64 * MICRO),
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        "Time tasks waited for memory.",
        Kind::Counter,
        |c| c.stats.psi.map(|p| p.memory.some_usec as f64 * MICRO),
    ),
    (
        "container_pressure_memory_stalled_seconds_total",
        "Time all tasks waited for memory.",
        Kind::Counter,
        |c| c.stats.psi.map(|p| p.memory.full_usec as f64 * MICRO),
    ),
    ("container_pressure_io_waiting_seconds_total", "Time tasks waited for io.", Kind::Counter, |c| {
        c.stats.psi.map(|p| p.io.some_usec as f64 * MICRO)
    }),
    ("container_pressure_io_stalled_seconds_total", "Time all tasks waited for io.", Kind::Counter, |c| {
        c.stats.psi.map(|p| p.io.full_usec as f64 * MICRO)
    }),
    (
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds.",
        Kind::Gauge,
        |c| Some(c.started_at.as_millisecond() as f64 / 1000.0),
    ),
    ("container_restarts_total", "Restarts of the container, this instance included.", Kind::Counter, |c| {
        Some(f64::from(c.restarts))
    }),
];

/// The families of `/metrics/cadvisor`.
pub(super) fn cadvisor_families(node: &AgentNode, samples: &[PodSample]) -> Result<Vec<MetricFamily>> {
    let mut families = Vec::new();
    for (name, help, kind, read) in FIGURES {
        let values = samples.iter().flat_map(|s| s.containers.iter().map(move |c| (s, c)));
        let values = values.filter_map(|(s, c)| Some((labels(s, c), read(c)?)));
        families.extend(family(name, help, *kind, &LABELS, values)?);
    }
    families.extend(memory_failures(samples)?);
    families.extend(network(samples)?);
    let machine: [(&str, &str, f64); 2] = [
        ("machine_cpu_cores", "Number of logical CPU cores.", node.facts.cpus as f64),
        ("machine_memory_bytes", "Amount of memory installed on the machine.", node.facts.memory as f64),
    ];
    for (name, help, value) in machine {
        families.extend(family(name, help, Kind::Gauge, &[], std::iter::once(([], value)))?);
    }
    Ok(families)
}

/// A family with these values; none without any.
pub(super) fn family<const N: usize>(
    name: &str,
    help: &str,
    kind: Kind,
    label_names: &[&str; N],
    values: impl Iterator<Item = ([String; N], f64)>,
) -> Result<Vec<MetricFamily>> {
    let options = Opts::new(name, help);
    let collected = match kind {
        Kind::Counter => {
            let metric = CounterVec::new(options, label_names)?;
            for (labels, value) in values {
                let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
                metric.with_label_values(&labels).inc_by(value);
            }
            metric.collect()
        }
        Kind::Gauge => {
            let metric = GaugeVec::new(options, label_names)?;
            for (labels, value) in values {
                let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
                metric.with_label_values(&labels).set(value);
            }
            metric.collect()
        }
    };
    Ok(collected.into_iter().filter(|f| !f.get_metric().is_empty()).collect())
}

fn memory_failures(samples: &[PodSample]) -> Result<Vec<MetricFamily>> {
    let names = ["namespace", "pod", "container", "image", "name", "id", "failure_type", "scope"];
    let values = samples.iter().flat_map(|s| s.containers.iter().map(move |c| (s, c))).flat_map(|(s, c)| {
        let memory = &c.stats.memory;
        [("pgfault", memory.pgfault), ("pgmajfault", memory.pgmajfault)].map(|(kind, value)| {
            let [a, b, d, e, f, g] = labels(s, c);
            ([a, b, d, e, f, g, kind.to_owned(), "hierarchy".to_owned()], value as f64)
        })
    });
    let help = "Cumulative count of memory allocation failures.";
    family("container_memory_failures_total", help, Kind::Counter, &names, values)
}

fn network(samples: &[PodSample]) -> Result<Vec<MetricFamily>> {
    type Read = fn(&NetStats) -> u64;
    let figures: [(&str, &str, Read); 8] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received.", |n| n.rx_bytes),
        ("container_network_receive_packets_total", "Cumulative count of packets received.", |n| {
            n.rx_packets
        }),
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving.",
            |n| n.rx_dropped,
        ),
        ("container_network_receive_errors_total", "Cumulative count of errors while receiving.", |n| {
            n.rx_errors
        }),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", |n| n.tx_bytes),
        ("container_network_transmit_packets_total", "Cumulative count of packets transmitted.", |n| {
            n.tx_packets
        }),
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting.",
            |n| n.tx_dropped,
        ),
        ("container_network_transmit_errors_total", "Cumulative count of errors while transmitting.", |n| {
            n.tx_errors
        }),
    ];
    let mut families = Vec::new();
    for (name, help, read) in figures {
        let interfaces = samples.iter().flat_map(|s| s.interfaces.iter().map(move |one| (s, one)));
        let values = interfaces.map(|(s, (interface, stats))| {
            let labels = [
                s.pod.namespace().to_owned(),
                s.pod.name().to_owned(),
                interface.clone(),
                format!("pod{}", s.pod.uid()),
            ];
            (labels, read(stats) as f64)
        });
        families.extend(family(name, help, Kind::Counter, &NET_LABELS, values)?);
    }
    Ok(families)
}

/// A figure of a pod: the sum of what is read of its containers.
type Sum = (&'static str, &'static str, Kind, fn(&ContainerSample) -> f64);

const START_TIME: &str = "container_start_time_seconds";

/// The families of `/metrics/resource`.
pub(super) fn resource_families(samples: &[PodSample]) -> Result<Vec<MetricFamily>> {
    let mut families = Vec::new();
    let container_names = ["container", "namespace", "pod"];
    let figures: [Figure; 4] = [
        (
            "container_cpu_usage_seconds_total",
            "Cumulative cpu time consumed by the container in core-seconds",
            Kind::Counter,
            |c| Some(c.stats.cpu.usage_ns as f64 * NANO),
        ),
        (
            "container_memory_working_set_bytes",
            "Current working set of the container in bytes",
            Kind::Gauge,
            |c| some(c.stats.memory.working_set),
        ),
        (
            "container_swap_usage_bytes",
            "Current amount of the container swap usage in bytes",
            Kind::Gauge,
            |c| some(c.stats.memory.swap),
        ),
        (START_TIME, "Start time of the container since unix epoch in seconds", Kind::Gauge, |c| {
            Some(c.started_at.as_millisecond() as f64 / 1000.0)
        }),
    ];
    for (name, help, kind, read) in &figures {
        let values =
            samples.iter().flat_map(|s| s.containers.iter().map(move |c| (s, c))).filter_map(|(s, c)| {
                Some(([c.name.clone(), s.pod.namespace().to_owned(), s.pod.name().to_owned()], read(c)?))
            });
        families.extend(family(name, help, *kind, &container_names, values)?);
    }
    let pod_names = ["namespace", "pod"];
    let sums: [Sum; 3] = [
        (
            "pod_cpu_usage_seconds_total",
            "Cumulative cpu time consumed by the pod in core-seconds",
            Kind::Counter,
            |c| c.stats.cpu.usage_ns as f64 * NANO,
        ),
        ("pod_memory_working_set_bytes", "Current working set of the pod in bytes", Kind::Gauge, |c| {
            c.stats.memory.working_set as f64
        }),
        ("pod_swap_usage_bytes", "Current amount of the pod swap usage in bytes", Kind::Gauge, |c| {
            c.stats.memory.swap as f64
        }),
    ];
    for (name, help, kind, read) in sums {
        let values = samples.iter().filter(|s| !s.containers.is_empty()).map(|s| {
            ([s.pod.namespace().to_owned(), s.pod.name().to_owned()], s.containers.iter().map(read).sum())
        });
        families.extend(family(name, help, kind, &pod_names, values)?);
    }
    let whole = crate::facts::usage();
    let error = f64::from(u8::from(whole.is_none()));
    if let Some(whole) = whole {
        let cpu = "Cumulative cpu time consumed by the node in core-seconds";
        let memory = "Current working set of the node in bytes";
        let value = |v: f64| std::iter::once(([], v));
        families.extend(family(
            "node_cpu_usage_seconds_total",
            cpu,
            Kind::Counter,
            &[],
            value(whole.cpu_seconds),
        )?);
        let used = value(whole.memory_used as f64);
        families.extend(family("node_memory_working_set_bytes", memory, Kind::Gauge, &[], used)?);
    }
    // As a kubelet's page: figures have the time at which they were read, what does not change with time has none.
    let now = Timestamp::now().as_millisecond();
    for family in families.iter_mut().filter(|family| family.name() != START_TIME) {
        family.mut_metric().iter_mut().for_each(|metric| metric.set_timestamp_ms(now));
    }
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    families.extend(family("resource_scrape_error", help, Kind::Gauge, &[], std::iter::once(([], error)))?);
    Ok(families)
}
