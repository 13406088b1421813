//! Figures for Prometheus: the agent's own, and those of every container's cgroup and pod's interface.

mod containers;
mod probes;
pub mod summary;
pub mod usage;
mod volumes;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use berth_runtime::container::Timings;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

pub use containers::gather;
pub use probes::Counting;

/// The agent's own figures.
pub struct Counters {
    registry: Registry,
    /// Pulls by result.
    pub pulls: IntCounterVec,
    /// Exits of containers seen.
    pub exits: IntCounter,
    /// Shims that died by themselves.
    pub shims_lost: IntCounter,
    /// Probes run.
    pub probes: IntCounter,
    standing: Mutex<probes::Standing>,
    /// Manifest files read, by result.
    pub manifests: IntCounterVec,
    /// Time to make a sandbox.
    pub sandbox_seconds: Histogram,
    /// Time to make and start a container, its image present.
    pub container_seconds: Histogram,
    stages: HistogramVec,
    creation: HistogramVec,
    pods: IntGauge,
    running: IntGauge,
    resident: IntGauge,
    cpu: prometheus::Counter,
    open_fds: IntGauge,
}

/// The steps of a pod's start, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Run folder, records, cgroup and volumes.
    Folders,
    /// The shim's process and its namespaces.
    Shim,
    /// The pod's interface, address and routes.
    Network,
    /// A container's bundle: environment, image, folders, `config.json`.
    Bundle,
    /// A container's process, mounts and cgroup, up to its `execve`.
    Create,
    /// The `execve`, and the record of it.
    Exec,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Folders => "folders",
            Stage::Shim => "shim",
            Stage::Network => "network",
            Stage::Bundle => "bundle",
            Stage::Create => "create",
            Stage::Exec => "exec",
        }
    }
}

/// Buckets of stages, from a tenth of a millisecond to a second.
const STAGE_BUCKETS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0];

/// Buckets from a millisecond to half a minute.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

impl Counters {
    /// All at zero.
    ///
    /// # Errors
    /// Never with the names that are used here.
    pub fn new(started_at: jiff::Timestamp) -> prometheus::Result<Self> {
        let registry = Registry::new();
        macro_rules! register {
            ($metric:expr) => {{
                let metric = $metric?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        let seconds = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()))
        };
        let build = register!(IntGauge::with_opts(
            Opts::new("berth_build_info", "A constant 1, labelled with the version of the agent.")
                .const_label("version", env!("CARGO_PKG_VERSION"))
        ));
        build.set(1);
        let start = register!(IntGauge::new(
            "process_start_time_seconds",
            "Start time of the agent since unix epoch in seconds."
        ));
        start.set(started_at.as_second());
        Ok(Self {
            pulls: register!(IntCounterVec::new(
                Opts::new("berth_image_pulls_total", "Image pulls, by result."),
                &["result"]
            )),
            exits: register!(IntCounter::new("berth_container_exits_total", "Exits of containers.")),
            shims_lost: register!(IntCounter::new(
                "berth_shims_lost_total",
                "Shims that ended without being asked to; each took its pod with it."
            )),
            probes: register!(IntCounter::new("berth_probes_total", "Probes run.")),
            manifests: register!(IntCounterVec::new(
                Opts::new("berth_manifest_loads_total", "Manifest files read, by result."),
                &["result"]
            )),
            sandbox_seconds: register!(seconds(
                "berth_sandbox_start_duration_seconds",
                "Time to make a pod's sandbox: cgroup, shim, network."
            )),
            container_seconds: register!(seconds(
                "berth_container_start_duration_seconds",
                "Time to make and start a container whose image is present."
            )),
            stages: register!(HistogramVec::new(
                HistogramOpts::new("berth_pod_start_stage_seconds", "Time of each step of a pod's start.")
                    .buckets(STAGE_BUCKETS.to_vec()),
                &["stage"]
            )),
            creation: register!(HistogramVec::new(
                HistogramOpts::new(
                    "berth_container_create_step_seconds",
                    "Time of each step of a container's first process before it executes its program."
                )
                .buckets(STAGE_BUCKETS.to_vec()),
                &["step"]
            )),
            pods: register!(IntGauge::new("berth_pods", "Pods that this node has.")),
            running: register!(IntGauge::new("berth_running_containers", "Containers that run.")),
            resident: register!(IntGauge::new(
                "process_resident_memory_bytes",
                "Resident memory of the agent in bytes."
            )),
            cpu: register!(prometheus::Counter::new(
                "process_cpu_seconds_total",
                "User and system CPU time of the agent in seconds."
            )),
            open_fds: register!(IntGauge::new("process_open_fds", "Open file descriptors of the agent.")),
            standing: Mutex::default(),
            registry,
        })
    }

    /// Notes how long a step of a start took that began at `begun`, and gives the time that the next one begins.
    pub fn stage(&self, stage: Stage, begun: Instant) -> Instant {
        let now = Instant::now();
        self.stages.with_label_values(&[stage.name()]).observe((now - begun).as_secs_f64());
        now
    }

    /// Notes two steps that began together at `begun`, the second of which took the last part of the time.
    pub fn split_stage(&self, first: Stage, begun: Instant, second: Stage, took: Duration) {
        let first_took = begun.elapsed().saturating_sub(took);
        for (stage, time) in [(first, first_took), (second, took)] {
            self.stages.with_label_values(&[stage.name()]).observe(time.as_secs_f64());
        }
    }

    /// Notes where the time of a container's creation went, which is the most of [`Stage::Create`].
    pub fn creation(&self, timings: &Timings) {
        let Timings { namespaces, mounts, cgroups, process } = timings;
        for (step, time) in
            [("namespaces", namespaces), ("mounts", mounts), ("cgroups", cgroups), ("process", process)]
        {
            self.creation.with_label_values(&[step]).observe(time.as_secs_f64());
        }
    }

    fn refresh(&self, pods: usize, running: usize) {
        self.count_standing();
        self.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        if let Some(own) = own_usage() {
            self.resident.set(own.resident);
            self.open_fds.set(own.open_fds);
            self.cpu.reset();
            self.cpu.inc_by(own.cpu_seconds);
        }
    }
}

struct Own {
    resident: i64,
    cpu_seconds: f64,
    open_fds: i64,
}

fn own_usage() -> Option<Own> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()?? as f64;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces; utime and stime are fields 14 and 15 (proc(5)).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let spent = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let resident = statm.split_whitespace().nth(1)?.parse::<i64>().ok()? * page;
    let open_fds = i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()?;
    Some(Own { resident, cpu_seconds: spent / ticks, open_fds })
}

/// Which families to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/metrics`: the agent's and the containers'.
    All,
    /// `/metrics/cadvisor`: the containers'.
    Containers,
    /// `/metrics/resource`: the few figures of metrics-server.
    Resource,
}

/// The text of a page in Prometheus' exposition format.
///
/// # Errors
/// When the figures do not fit together, which would be a mistake in this program.
pub async fn page(node: &crate::node::AgentNode, page: Page) -> prometheus::Result<Vec<u8>> {
    let samples = gather(node).await;
    let mut families = match page {
        Page::Resource => containers::resource_families(&samples)?,
        Page::All | Page::Containers => containers::cadvisor_families(node, &samples)?,
    };
    if page == Page::All {
        let running = samples.iter().map(|s| s.containers.len()).sum();
        node.counters.refresh(samples.len(), running);
        families.extend(node.counters.registry.gather());
        families.extend(volumes::families(&volumes::look(node, &samples).await)?);
        families.sort_by(|a, b| a.name().cmp(b.name()));
    }
    let mut text = Vec::with_capacity(16 << 10);
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}
