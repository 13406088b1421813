//! What there is to know of this machine: addresses, capacity, and the Node object made of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use berth_reconciler::env;
use berth_reconciler::eviction::{Signal, allocatable};
use berth_reconciler::quantity::binary;
use berth_reconciler::resources::huge_pages_name;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::config::Config;
use crate::store::Kind;

/// Facts of the node that do not change while the agent runs.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its addresses, the primary one first; never empty.
    pub ips: Vec<IpAddr>,
    /// Processors.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Bytes of the file system of the state folder.
    pub storage: u64,
    /// Bytes in huge pages, by the size of a page.
    pub huge_pages: BTreeMap<u64, u64>,
    /// What of it pods may have.
    pub allocatable: Allocatable,
    /// When the agent was started.
    pub started_at: Timestamp,
}

/// What of the machine pods may have: all but reservations and what has to be left (`evictionHard`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// CPU in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory in bytes, without huge pages.
    pub memory: u64,
    /// Bytes of the disk.
    pub storage: u64,
}

impl NodeFacts {
    /// Looks at the machine.
    pub fn gather(config: &Config) -> Self {
        let mut ips = addresses();
        if let Some(ip) = config.node_ip {
            ips.retain(|other| *other != ip);
            ips.insert(0, ip);
        }
        if ips.is_empty() {
            ips.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        let storage = nix::sys::statvfs::statvfs(&config.root).map_or(0, |s| s.blocks() * s.fragment_size());
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let memory = meminfo("MemTotal:").unwrap_or(0);
        let huge_pages = crate::oci::huge_page_pools();
        let (reserved, eviction) = (&config.room.reserved, config.room.eviction.as_ref());
        let in_pages = huge_pages.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        let allocatable = Allocatable {
            cpu_milli: (cpus * 1000).saturating_sub(reserved.cpu_milli),
            memory: allocatable(memory, reserved.memory, Signal::Memory, eviction).saturating_sub(in_pages),
            storage: allocatable(storage, reserved.storage, Signal::Disk, eviction),
        };
        Self {
            name: config.node_name.clone(),
            ips,
            cpus,
            memory,
            storage,
            huge_pages,
            allocatable,
            started_at: Timestamp::now(),
        }
    }

    /// Memory and swap, as they are now: swap can be turned on later.
    pub fn swap(&self) -> crate::oci::Swap {
        crate::oci::Swap { total: meminfo("SwapTotal:").unwrap_or(0), memory: self.memory }
    }

    /// The facts that the downward API tells, for a pod with these addresses.
    pub fn for_pod(&self, pod_ips: &[IpAddr]) -> env::Facts {
        env::Facts {
            node_name: self.name.clone(),
            host_ips: self.ips.clone(),
            pod_ips: pod_ips.to_vec(),
            allocatable_cpu_milli: self.allocatable.cpu_milli,
            allocatable_memory: self.allocatable.memory,
            allocatable_ephemeral_storage: self.allocatable.storage,
        }
    }

    /// The labels that a kubelet gives its node.
    pub fn labels(&self) -> std::collections::BTreeMap<String, String> {
        let arch = go_arch();
        [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
    }

    /// The Node object.
    pub fn node_object(&self, config: &Config) -> Value {
        let ranges: Vec<&String> = std::iter::once(&config.pod_cidr).chain(&config.pod_cidr6).collect();
        let now = Timestamp::now();
        // As a kubelet writes them: capacity in Ki, what pods may have of the disk in bytes.
        let resources = |cpu_milli: u64, memory: u64, storage: String| {
            let mut all = json!({
                "cpu": if cpu_milli.is_multiple_of(1000) { (cpu_milli / 1000).to_string() } else { format!("{cpu_milli}m") },
                "memory": format!("{}Ki", memory / 1024),
                "ephemeral-storage": storage,
                "pods": config.max_pods.to_string(),
            });
            for (size, bytes) in &self.huge_pages {
                all[huge_pages_name(*size)] = json!(binary(*bytes));
            }
            all
        };
        let may = &self.allocatable;
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                   "lastHeartbeatTime": now, "lastTransitionTime": self.started_at})
        };
        let mut addresses: Vec<Value> =
            self.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        addresses.push(json!({"type": "Hostname", "address": self.name}));
        let root = std::path::absolute(&config.root).unwrap_or_else(|_| config.root.clone());
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "uid": node_uid(&self.name), "labels": self.labels(),
                         "annotations": {ROOT_ANNOTATION: root}, "creationTimestamp": self.started_at},
            "spec": {"podCIDR": config.pod_cidr, "podCIDRs": ranges},
            "status": {
                "capacity": resources(self.cpus * 1000, self.memory, format!("{}Ki", self.storage / 1024)),
                "allocatable": resources(may.cpu_milli, may.memory, may.storage.to_string()),
                "addresses": addresses,
                "conditions": [
                    condition("Ready", "True", "BerthReady", "berth agent is running"),
                ],
                "nodeInfo": node_info(),
            }
        })
    }
}

/// A counter of /proc/vmstat (proc(5)).
pub fn vmstat(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Annotation of the Node: the agent's state folder, where its images lie.
pub const ROOT_ANNOTATION: &str = "berth.dev/root";

/// A node keeps its uid over restarts.
fn node_uid(name: &str) -> String {
    hashed_uid(&format!("node/{name}"))
}

/// The uid of an object that every server has and nobody stores, such as the namespace `kube-system`: the same for as long as the
/// state folder stays on this machine. Tools take that namespace's for the cluster's own id.
pub fn built_in_uid(root: &Path, kind: Kind, name: &str) -> String {
    let machine = first_line("/etc/machine-id");
    let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    hashed_uid(&format!("{}/{name} {machine} {}", kind.plural(), root.display()))
}

fn hashed_uid(text: &str) -> String {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(text.as_bytes());
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

fn node_info() -> Value {
    let uname = nix::sys::utsname::uname().ok();
    let release = uname.as_ref().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "machineID": first_line("/etc/machine-id"),
        "systemUUID": first_line("/sys/class/dmi/id/product_uuid"),
        "bootID": first_line("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": release,
        "osImage": os_image(),
        "containerRuntimeVersion": format!("berth://{version}"),
        "kubeletVersion": format!("v1.36.0-berth.{version}"),
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": go_arch(),
    })
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The architecture in Go's words.
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What the whole machine uses.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Processor time of all processors since boot, in seconds.
    pub cpu_seconds: f64,
    /// Bytes of memory that could not be had without swapping.
    pub memory_used: u64,
}

/// What the whole machine uses now; none if /proc does not tell.
pub fn usage() -> Option<Usage> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    // user nice system idle iowait irq softirq steal; guest time is in user already (proc_stat(5)).
    let ticks: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let busy: u64 = ticks.iter().enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, n)| n).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()?? as f64;
    let memory_used = meminfo("MemTotal:")?.saturating_sub(meminfo("MemAvailable:")?);
    Some(Usage { cpu_seconds: busy as f64 / per_second, memory_used })
}

/// A line of /proc/meminfo in bytes.
pub(crate) fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let rest = text.lines().find_map(|l| l.strip_prefix(name))?;
    Some(rest.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The source addresses that the kernel would choose for traffic to the outside. Connecting a UDP socket sends
/// nothing; the targets are of the documentation ranges (RFC 5737, RFC 3849).
fn addresses() -> Vec<IpAddr> {
    let probe = |bind: IpAddr, to: IpAddr| -> Option<IpAddr> {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
    };
    [
        probe(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        probe(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ]
    .into_iter()
    .flatten()
    .collect()
}
