//! Settings: command-line flags over the config file over defaults, checked once, here.
//!
//! The config file uses the field names of `KubeletConfiguration` where Kubernetes has one (a file of that kind is
//! read as it is) and Berth's own names, documented in `docs/config.md`, for what a kubelet leaves to others.

pub mod cluster;
pub mod eviction;
pub mod networks;
mod services;
mod shutdown;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use berth_reconciler::memory_qos::MemoryQos;
use berth_reconciler::quantity::Quantity;
use berth_reconciler::shutdown::Turn;
use berth_runtime::cgroup::Driver;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::Deserialize;

/// Flags of `berth agent`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AgentArgs {
    /// Config file: berth's own or a KubeletConfiguration [default: /etc/berth/config.yaml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of Pod manifests to keep running; may be given more than once [default: /etc/berth/manifests]
    #[arg(long, value_name = "DIR")]
    pub manifests: Vec<PathBuf>,
    /// State folder: images, volumes, objects [default: /var/lib/berth]
    #[arg(long, value_name = "DIR", env = "BERTH_ROOT")]
    pub root: Option<PathBuf>,
    /// Run folder: sockets and records of what runs, empty after a reboot [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Folder of the pods' logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Control group under which `kubepods` is made [default: /]
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this node [default: that of the default route]
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Socket of the API, from the flag that every verb has [default: <run>/berth.sock].
    #[arg(skip)]
    pub socket: Option<PathBuf>,
    /// Address of the read-only HTTP server, or `none` [default: 127.0.0.1:10255]
    #[arg(long, value_name = "ADDR:PORT")]
    pub read_only_address: Option<String>,
    /// Address at which the API is also served over TLS, for kubectl (see `berth kubeconfig`), such as 127.0.0.1:6443
    /// [default: none]
    #[arg(long, value_name = "ADDR:PORT")]
    pub api_address: Option<String>,
    /// Kubeconfig of a cluster's API server: the machine becomes a node of that cluster
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig with which the node asks for a certificate of its own, for --kubeconfig [default of that: <root>/kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Labels that the node gives itself in the cluster: KEY=VALUE, with commas between
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints that the node has when it joins the cluster: KEY=VALUE:EFFECT, with commas between
    #[arg(long, value_name = "TAINTS", value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    /// Unique name by which the provider of the machine knows it, for the cluster
    #[arg(long, value_name = "ID")]
    pub provider_id: Option<String>,
    /// Bridge of the pod network [default: berth0]
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// IPv4 range of the pods, and after a comma an IPv6 range [default: 10.85.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// Range of the Services' addresses, or one of each family with a comma between [default: 10.86.0.0/16, or another if pods have that, and an IPv6 range if pods have one]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// nftables table (family inet) for masquerading and host ports [default: berth]
    #[arg(long, value_name = "NAME")]
    pub nft_table: Option<String>,
    /// Registry (host or host:port) that is spoken to over plain http; may be given more than once
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Vec<String>,
    /// When the agent ends, stop all pods and remove everything it made but images
    #[arg(long)]
    pub cleanup_on_exit: bool,
}

/// The config file as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    api_version: Option<String>,
    kind: Option<String>,
    // Names of KubeletConfiguration.
    static_pod_path: Option<PathBuf>,
    file_check_frequency: Option<String>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    cgroup_root: Option<String>,
    cgroup_driver: Option<String>,
    pod_logs_dir: Option<PathBuf>,
    container_log_max_size: Option<String>,
    container_log_max_files: Option<u32>,
    pod_pids_limit: Option<i64>,
    max_pods: Option<u32>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Option<Vec<IpAddr>>,
    cluster_domain: Option<String>,
    #[serde(rename = "localDNS")]
    local_dns: Option<bool>,
    mtu: Option<u32>,
    resolv_conf: Option<PathBuf>,
    seccomp_default: Option<bool>,
    crash_loop_back_off: Option<CrashLoopBackOff>,
    user_namespaces: Option<UserNamespacesFile>,
    allowed_unsafe_sysctls: Option<Vec<String>>,
    #[serde(rename = "cpuCFSQuota")]
    cpu_cfs_quota: Option<bool>,
    #[serde(rename = "cpuCFSQuotaPeriod")]
    cpu_cfs_quota_period: Option<String>,
    #[serde(rename = "singleProcessOOMKill")]
    single_process_oom_kill: Option<bool>,
    memory_swap: Option<MemorySwap>,
    fail_swap_on: Option<bool>,
    shutdown_grace_period: Option<String>,
    shutdown_grace_period_critical_pods: Option<String>,
    shutdown_grace_period_by_pod_priority: Option<Vec<shutdown::TurnFile>>,
    feature_gates: Option<BTreeMap<String, bool>>,
    memory_throttling_factor: Option<f64>,
    memory_reservation_policy: Option<String>,
    cpu_manager_policy: Option<String>,
    memory_manager_policy: Option<String>,
    topology_manager_policy: Option<String>,
    register_node: Option<bool>,
    register_with_taints: Option<Vec<k8s_openapi::api::core::v1::Taint>>,
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
    node_status_update_frequency: Option<String>,
    node_status_report_frequency: Option<String>,
    node_lease_duration_seconds: Option<u32>,
    rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: Option<bool>,
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
    address: Option<IpAddr>,
    port: Option<u16>,
    authentication: Option<cluster::Authentication>,
    authorization: Option<cluster::Authorization>,
    eviction_hard: Option<BTreeMap<String, String>>,
    eviction_soft: Option<BTreeMap<String, String>>,
    eviction_soft_grace_period: Option<BTreeMap<String, String>>,
    eviction_max_pod_grace_period: Option<u64>,
    eviction_minimum_reclaim: Option<BTreeMap<String, String>>,
    eviction_pressure_transition_period: Option<String>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u8>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<u8>,
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Option<String>,
    #[serde(rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Option<String>,
    kube_reserved: Option<BTreeMap<String, String>>,
    system_reserved: Option<BTreeMap<String, String>>,
    enforce_node_allocatable: Option<Vec<String>>,
    // Berth's own.
    kubeconfig: Option<PathBuf>,
    bootstrap_kubeconfig: Option<PathBuf>,
    node_labels: Option<BTreeMap<String, String>>,
    seccomp_profile_root: Option<PathBuf>,
    selinux: Option<bool>,
    manifests: Option<Vec<PathBuf>>,
    root: Option<PathBuf>,
    run: Option<PathBuf>,
    node_name: Option<String>,
    #[serde(rename = "nodeIP")]
    node_ip: Option<IpAddr>,
    socket: Option<PathBuf>,
    read_only_address: Option<String>,
    api_address: Option<String>,
    #[serde(rename = "apiCertSANs")]
    api_cert_sans: Option<Vec<String>>,
    bridge: Option<String>,
    #[serde(rename = "serviceCIDR")]
    service_cidr: Option<String>,
    nft_table: Option<String>,
    networks: Option<Vec<networks::NetworkFile>>,
    network_policy: Option<bool>,
    cni_conf_dir: Option<PathBuf>,
    cni_bin_dir: Option<String>,
    insecure_registries: Option<Vec<String>>,
    registry_certs_dirs: Option<Vec<PathBuf>>,
    registry_auth_file: Option<PathBuf>,
    runtimes: Option<BTreeMap<String, Runtime>>,
}

/// Another OCI runtime.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Runtime {
    /// The program.
    pub path: PathBuf,
    /// Words before its command, such as `--debug`.
    #[serde(default)]
    pub args: Vec<String>,
    /// What a pod of this runtime costs beside its containers: `overhead.podFixed` of a RuntimeClass.
    #[serde(default)]
    pub overhead: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct CrashLoopBackOff {
    max_container_restart_period: Option<String>,
}

impl CrashLoopBackOff {
    fn check(&self) -> anyhow::Result<Duration> {
        let text = self.max_container_restart_period.as_deref();
        duration("crashLoopBackOff.maxContainerRestartPeriod", text, Duration::from_secs(300))
    }
}

/// `memorySwap`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MemorySwap {
    swap_behavior: Option<String>,
}

/// Who may swap (cgroup v2 only).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapBehavior {
    /// Nobody.
    None,
    /// Burstable containers, by their memory requests.
    Limited,
}

/// Settings of the processor quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cfs {
    /// Whether processor limits are enforced.
    pub quota: bool,
    /// Over which period, in microseconds.
    pub period: u64,
}

impl Cfs {
    fn check(file: &File) -> anyhow::Result<Self> {
        let default = Duration::from_millis(100);
        let period = duration("cpuCFSQuotaPeriod", file.cpu_cfs_quota_period.as_deref(), default)?;
        if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&period) {
            bail!("cpuCFSQuotaPeriod: must be between 1ms and 1s, is {period:?}");
        }
        let period = u64::try_from(period.as_micros()).unwrap_or(u64::MAX);
        Ok(Self { quota: file.cpu_cfs_quota.unwrap_or(true), period })
    }
}

/// Where manifests lie: flags win over Berth's own field, that over a kubelet's.
fn manifest_folders(args: &AgentArgs, own: Option<Vec<PathBuf>>, kubelets: Option<PathBuf>) -> Vec<PathBuf> {
    if !args.manifests.is_empty() {
        return args.manifests.clone();
    }
    own.or(kubelets.map(|path| vec![path])).unwrap_or_else(|| vec!["/etc/berth/manifests".into()])
}

/// Refuses the policies that give containers whole cores or parts of the memory.
fn check_managers(file: &File) -> anyhow::Result<()> {
    for (field, value) in [
        ("cpuManagerPolicy", &file.cpu_manager_policy),
        ("memoryManagerPolicy", &file.memory_manager_policy),
        ("topologyManagerPolicy", &file.topology_manager_policy),
    ] {
        if let Some(policy) = value.as_deref().filter(|p| !p.is_empty() && !p.eq_ignore_ascii_case("none")) {
            bail!("{field}: {policy:?} is not supported: only none is");
        }
    }
    Ok(())
}

/// MemoryQoS as kubelet's settings describe it: nothing without its feature gate.
fn check_memory_qos(file: &File) -> anyhow::Result<Option<MemoryQos>> {
    let gates = file.feature_gates.iter().flatten();
    if let Some((other, _)) = gates.clone().find(|(name, _)| *name != "MemoryQoS") {
        bail!("featureGates: {other} is not known: only MemoryQoS is");
    }
    let throttling = file.memory_throttling_factor.unwrap_or(0.9);
    if !(throttling > 0.0 && throttling <= 1.0) {
        bail!("memoryThrottlingFactor: must be greater than 0 and at most 1.0, is {throttling}");
    }
    let tiered = match file.memory_reservation_policy.as_deref() {
        None | Some("" | "None") => false,
        Some("TieredReservation") => true,
        Some(other) => bail!("memoryReservationPolicy: {other:?} is not None or TieredReservation"),
    };
    let on = gates.clone().any(|(_, on)| *on);
    if tiered && !on {
        bail!("memoryReservationPolicy: needs the feature gate MemoryQoS");
    }
    Ok(on.then_some(MemoryQos { throttling, tiered }))
}

fn check_swap(file: &File) -> anyhow::Result<SwapBehavior> {
    if file.fail_swap_on == Some(true) {
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        // The first line is a heading.
        if let Some(device) = swaps.lines().nth(1).and_then(|line| line.split_whitespace().next()) {
            bail!("failSwapOn: this machine swaps to {device}; turn that off, or set failSwapOn to false");
        }
    }
    match file.memory_swap.as_ref().and_then(|m| m.swap_behavior.as_deref()) {
        None | Some("" | "NoSwap") => Ok(SwapBehavior::None),
        Some("LimitedSwap") => Ok(SwapBehavior::Limited),
        Some(other) => bail!("memorySwap.swapBehavior: {other:?} is not NoSwap or LimitedSwap"),
    }
}

/// `userNamespaces`: `idsPerPod` is KubeletConfiguration's. Where the ranges begin a kubelet learns from `/etc/subuid`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct UserNamespacesFile {
    ids_per_pod: Option<i64>,
    #[serde(rename = "firstHostID")]
    first_host_id: Option<i64>,
}

/// Which ids of the host the pods with `hostUsers: false` get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserNamespaces {
    /// The first id of the first pod.
    pub first_host_id: u32,
    /// How many each pod gets.
    pub ids_per_pod: u32,
    /// How many pods can have some.
    pub ranges: u32,
}

/// Above what useradd(8), systemd-nspawn and podman give away, below what systemd has set aside.
const FIRST_HOST_ID: i64 = 0x7000_0000;

impl UserNamespaces {
    fn check(file: &UserNamespacesFile, pods: u32) -> anyhow::Result<Self> {
        let (first, each) = (file.first_host_id.unwrap_or(FIRST_HOST_ID), file.ids_per_pod.unwrap_or(65536));
        if each < 65536 || each % 65536 != 0 {
            bail!("userNamespaces.idsPerPod: must be a multiple of 65536, is {each}");
        }
        if first < 65536 {
            bail!("userNamespaces.firstHostID: must be at least 65536, is {first}");
        }
        // The highest id stands for none, and signed 32-bit numbers are what some programs take for ids.
        let room = (i64::from(i32::MAX) - first) / each;
        if room < 1 {
            bail!("userNamespaces.firstHostID: no range of {each} ids fits between {first} and {}", i32::MAX);
        }
        let fits = |n: i64| u32::try_from(n).context("userNamespaces");
        Ok(Self {
            first_host_id: fits(first)?,
            ids_per_pod: fits(each)?,
            ranges: fits(room.min(i64::from(pods.max(1))))?,
        })
    }
}

/// The checked settings of one agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// Manifest folders.
    pub manifests: Vec<PathBuf>,
    /// How often a manifest folder is looked through beside inotify.
    pub file_check_frequency: Duration,
    /// State folder.
    pub root: PathBuf,
    /// Run folder.
    pub run: PathBuf,
    /// Folder of the pods' logs.
    pub log_dir: PathBuf,
    /// Folder of links `<pod>_<namespace>_<container>-<id>.log`; none if the log folder is not named `pods`.
    pub log_links: Option<PathBuf>,
    /// cgroup that holds `kubepods`, without a trailing slash; empty for the root.
    pub cgroup_parent: String,
    /// Who makes the cgroups.
    pub cgroup_driver: Driver,
    /// Name of this node.
    pub node_name: String,
    /// Address of this node, if it was given.
    pub node_ip: Option<IpAddr>,
    /// Unix socket of the API.
    pub socket: PathBuf,
    /// Read-only HTTP address.
    pub read_only: Option<SocketAddr>,
    /// Address of the API over TLS.
    pub api_address: Option<SocketAddr>,
    /// Further names and addresses that the API's certificate is for.
    pub api_cert_sans: Vec<String>,
    /// Bridge name.
    pub bridge: String,
    /// Pod CIDR, IPv4.
    pub pod_cidr: String,
    /// Range of the Services' addresses, or one of each family with a comma between.
    pub service_cidr: String,
    /// Pod CIDR, IPv6.
    pub pod_cidr6: Option<String>,
    /// MTU of the pod network; none: that of the uplink.
    pub mtu: Option<u32>,
    /// Whether the agent is the pods' name server where `cluster_dns` is empty.
    pub local_dns: bool,
    /// nft table.
    pub nft_table: String,
    /// Further networks, and settings of the node's own.
    pub networks: Vec<networks::Network>,
    /// Whether NetworkPolicies are enforced.
    pub network_policy: bool,
    /// The name servers of pods whose first network is one of those, where the agent is theirs.
    pub network_dns: BTreeMap<String, Vec<IpAddr>>,
    /// Registries spoken to over plain http.
    pub insecure_registries: Vec<String>,
    /// Folders with the certificate authorities of registries.
    pub registry_certs_dirs: Vec<PathBuf>,
    /// The node's own credentials for registries; need not exist.
    pub registry_auth_file: PathBuf,
    /// Bytes of a log file before it is rotated.
    pub log_max_size: u64,
    /// Log files kept per container, the current one included.
    pub log_max_files: u32,
    /// `podPidsLimit`; none is no limit.
    pub pod_pids_limit: Option<i64>,
    /// Pods that this node takes.
    pub max_pods: u32,
    /// DNS servers for pods with dnsPolicy ClusterFirst; empty: the host's.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// The host's resolver configuration.
    pub resolv_conf: PathBuf,
    /// Whether pods without a seccompProfile get the runtime's default one.
    pub seccomp_default: bool,
    /// Whether pods get SELinux labels.
    pub selinux: bool,
    /// Folder of network configurations for pods, in place of Berth's own network.
    pub cni_conf_dir: Option<PathBuf>,
    /// Folders of CNI plugins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Longest back-off between restarts.
    pub max_restart_period: Duration,
    /// Other OCI runtimes, by the name that a pod's `runtimeClassName` has for them.
    pub runtimes: BTreeMap<String, Runtime>,
    /// The processor quota.
    pub cfs: Cfs,
    /// Whether the kernel kills single processes of a container that is out of memory, not all of it (cgroup v2; v1 always
    /// does).
    pub single_process_oom_kill: bool,
    /// It was said to be false in so many words.
    pub group_oom_kill_wanted: bool,
    /// Who may swap.
    pub swap: SwapBehavior,
    /// Which memory is kept and who is slowed down (cgroup v2 only); none: nobody.
    pub memory_qos: Option<MemoryQos>,
    /// In which turns pods end with the machine, in ascending order of priority; empty: they are left to it.
    pub shutdown: Vec<Turn>,
    /// Unsafe sysctls that pods may set: names, or prefixes with `*` at their end.
    pub unsafe_sysctls: Vec<String>,
    /// Folder of the seccomp profiles of type Localhost.
    pub seccomp_root: PathBuf,
    /// The ids of pods with user namespaces.
    pub user_namespaces: UserNamespaces,
    /// Remove everything on exit.
    pub cleanup_on_exit: bool,
    /// What pods may have of the machine, and what goes when it runs short.
    pub room: eviction::Room,
    /// The cluster that the machine is a node of, if any.
    pub cluster: Option<cluster::ClusterConfig>,
}

/// Where the config file is looked for when none is named.
pub const DEFAULT_CONFIG: &str = "/etc/berth/config.yaml";

/// Where credentials for registries are looked for when no file is named.
pub const DEFAULT_AUTH_FILE: &str = "/etc/berth/auth.json";

/// Where podman and docker keep the certificate authorities of registries.
pub fn default_certs_dirs() -> Vec<PathBuf> {
    vec!["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()]
}

impl Config {
    /// Merges flags, file and defaults and checks the result.
    pub fn load(args: &AgentArgs) -> anyhow::Result<Self> {
        let file = match &args.config {
            Some(path) => File::read(path)?,
            None if Path::new(DEFAULT_CONFIG).exists() => File::read(Path::new(DEFAULT_CONFIG))?,
            None => File::default(),
        };
        Self::merge(args, file)
    }

    fn merge(args: &AgentArgs, file: File) -> anyhow::Result<Self> {
        check_managers(&file)?;
        let (cfs, swap, memory_qos) = (Cfs::check(&file)?, check_swap(&file)?, check_memory_qos(&file)?);
        let root =
            absolute(args.root.clone().or(file.root.clone()).unwrap_or_else(|| "/var/lib/berth".into()))?;
        let cluster = cluster::check(args, &file, &root)?;
        let (shutdown, room) = (shutdown::check(&file)?, eviction::check(&file, cluster.is_some())?);
        let manifests = manifest_folders(args, file.manifests, file.static_pod_path);
        let run = absolute(args.run.clone().or(file.run).unwrap_or_else(|| "/run/berth".into()))?;
        let log_dir =
            absolute(args.log_dir.clone().or(file.pod_logs_dir).unwrap_or_else(|| "/var/log/pods".into()))?;
        let log_links = log_dir.ends_with("pods").then(|| log_dir.with_file_name("containers"));
        let node_name = match args.node_name.clone().or(file.node_name) {
            Some(name) => name,
            None => host_name()?,
        };
        check_node_name(&node_name)?;
        let read_only = args.read_only_address.clone().or(file.read_only_address);
        let parent = args.cgroup_parent.clone().or(file.cgroup_root).unwrap_or_default();
        let max_pods = file.max_pods.unwrap_or(110);
        let (pod_cidr, pod_cidr6) = pod_cidrs(args.pod_cidr.clone().or(file.pod_cidr))?;
        let config = Self {
            manifests: manifests.into_iter().map(absolute).collect::<anyhow::Result<_>>()?,
            file_check_frequency: duration(
                "fileCheckFrequency",
                file.file_check_frequency.as_deref(),
                Duration::from_secs(20),
            )?,
            seccomp_root: absolute(file.seccomp_profile_root.unwrap_or_else(|| root.join("seccomp")))?,
            root,
            socket: absolute(args.socket.clone().or(file.socket).unwrap_or_else(|| run.join("berth.sock")))?,
            run,
            log_dir,
            log_links,
            cgroup_parent: check_cgroup_parent(&parent)?,
            cgroup_driver: cgroup_driver(file.cgroup_driver.as_deref())?,
            node_name,
            node_ip: args.node_ip.or(file.node_ip),
            read_only: address("read-only address", read_only.as_deref().or(Some("127.0.0.1:10255")))?,
            api_address: address("apiAddress", args.api_address.as_deref().or(file.api_address.as_deref()))?,
            api_cert_sans: file.api_cert_sans.unwrap_or_default(),
            bridge: check_interface(args.bridge.clone().or(file.bridge).unwrap_or_else(|| "berth0".into()))?,
            service_cidr: services::range([&args.service_cidr, &file.service_cidr], &pod_cidr, &pod_cidr6)?,
            pod_cidr,
            pod_cidr6,
            mtu: file.mtu,
            local_dns: file.local_dns.unwrap_or(true),
            nft_table: given(args.nft_table.as_ref(), file.nft_table, "berth"),
            networks: networks::check(file.networks.unwrap_or_default(), file.cni_conf_dir.is_some())?,
            network_policy: file.network_policy.unwrap_or(false),
            network_dns: BTreeMap::new(),
            insecure_registries: together(file.insecure_registries, &args.insecure_registry),
            registry_certs_dirs: file.registry_certs_dirs.unwrap_or_else(default_certs_dirs),
            registry_auth_file: file.registry_auth_file.unwrap_or_else(|| DEFAULT_AUTH_FILE.into()),
            log_max_size: log_size(file.container_log_max_size.as_deref())?,
            log_max_files: log_files(file.container_log_max_files)?,
            pod_pids_limit: file.pod_pids_limit.filter(|n| *n > 0),
            max_pods,
            cluster_dns: file.cluster_dns.unwrap_or_default(),
            cni_bin_dirs: check_cni(file.cni_conf_dir.is_some(), file.cni_bin_dir.as_deref())?,
            cni_conf_dir: file.cni_conf_dir.map(absolute).transpose()?,
            cluster_domain: file.cluster_domain.unwrap_or_else(|| "cluster.local".into()),
            resolv_conf: file.resolv_conf.unwrap_or_else(|| "/etc/resolv.conf".into()),
            seccomp_default: file.seccomp_default.unwrap_or(cluster.is_none()),
            selinux: file.selinux.unwrap_or(false),
            max_restart_period: file.crash_loop_back_off.unwrap_or_default().check()?,
            runtimes: check_runtimes(file.runtimes.unwrap_or_default())?,
            cfs,
            swap,
            memory_qos,
            shutdown,
            single_process_oom_kill: file.single_process_oom_kill.unwrap_or(false),
            group_oom_kill_wanted: file.single_process_oom_kill == Some(false),
            unsafe_sysctls: check_sysctls(file.allowed_unsafe_sysctls.unwrap_or_default())?,
            user_namespaces: UserNamespaces::check(&file.user_namespaces.unwrap_or_default(), max_pods)?,
            cleanup_on_exit: args.cleanup_on_exit,
            room,
            cluster,
        };
        Ok(config)
    }

    /// What pods of each runtime cost.
    pub fn overheads(&self) -> BTreeMap<String, BTreeMap<String, ApiQuantity>> {
        let known = self.runtimes.iter().filter(|(_, runtime)| !runtime.overhead.is_empty());
        known
            .map(|(name, runtime)| {
                let amounts = runtime.overhead.iter().map(|(k, v)| (k.clone(), ApiQuantity(v.clone())));
                (name.clone(), amounts.collect())
            })
            .collect()
    }

    /// `<run>/pods`.
    pub fn pods_dir(&self) -> PathBuf {
        self.run.join("pods")
    }
}

impl File {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read config {}", path.display()))?;
        let file: Self = serde_yaml::from_str(&text).map_err(|e| {
            anyhow::anyhow!("config {}: {e}; see docs/config.md for the fields", path.display())
        })?;
        if let Some(kind) = &file.kind
            && kind != "KubeletConfiguration"
            && kind != "BerthConfiguration"
        {
            bail!(
                "config {}: kind: {kind:?} is not KubeletConfiguration or BerthConfiguration",
                path.display()
            );
        }
        if let Some(version) = &file.api_version
            && version != "kubelet.config.k8s.io/v1beta1"
            && version != "berth.dev/v1"
        {
            bail!("config {}: apiVersion: {version:?} is not known", path.display());
        }
        Ok(file)
    }
}

fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("make {} absolute", path.display()))
}

fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
    Ok(name.trim().to_ascii_lowercase())
}

fn check_node_name(name: &str) -> anyhow::Result<()> {
    let good = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        });
    if !good {
        bail!(
            "node name {name:?} is not a DNS name (lower-case letters, digits, '-' and '.'); give one with --node-name"
        );
    }
    Ok(())
}

fn check_runtimes(runtimes: BTreeMap<String, Runtime>) -> anyhow::Result<BTreeMap<String, Runtime>> {
    for (name, runtime) in &runtimes {
        if !runtime.path.is_absolute() {
            bail!("runtimes.{name}.path: {:?} is not an absolute path", runtime.path.display());
        }
        if !runtime.path.is_file() {
            bail!("runtimes.{name}.path: {} is not there", runtime.path.display());
        }
        if runtime.args.iter().any(|word| word == "--systemd-cgroup") {
            bail!(
                "runtimes.{name}.args: --systemd-cgroup is given with cgroupDriver: systemd, and only then"
            );
        }
        for (resource, amount) in &runtime.overhead {
            let field = format!("runtimes.{name}.overhead.{resource}");
            if !["cpu", "memory"].contains(&resource.as_str()) {
                bail!("{field}: a pod's overhead is of cpu and memory");
            }
            if Quantity::parse(amount).is_ok_and(|q| !q.is_negative()) {
                continue;
            }
            bail!("{field}: {amount:?} is not an amount such as 250m or 64Mi");
        }
    }
    Ok(runtimes)
}

fn check_sysctls(patterns: Vec<String>) -> anyhow::Result<Vec<String>> {
    for pattern in &patterns {
        if let Err(reason) = berth_reconciler::manifest::check_sysctl_pattern(pattern) {
            bail!("allowedUnsafeSysctls: {pattern:?}: {reason}");
        }
    }
    Ok(patterns)
}

fn cgroup_driver(name: Option<&str>) -> anyhow::Result<Driver> {
    match name {
        None | Some("cgroupfs") => Ok(Driver::Cgroupfs),
        Some("systemd") => Ok(Driver::Systemd),
        Some(other) => bail!("cgroupDriver: {other:?} is neither cgroupfs nor systemd"),
    }
}

fn check_cgroup_parent(parent: &str) -> anyhow::Result<String> {
    let trimmed = parent.trim_matches('/');
    if trimmed.split('/').any(|part| part == ".." || part == ".") {
        bail!("cgroup parent {parent:?} must not contain '.' or '..'");
    }
    Ok(if trimmed.is_empty() { String::new() } else { format!("/{trimmed}") })
}

/// The ranges of pods: as a kubelet's, one, or two of both families.
fn pod_cidrs(text: Option<String>) -> anyhow::Result<(String, Option<String>)> {
    let Some(text) = text else { return Ok(("10.85.0.0/16".into(), None)) };
    let (v6, v4): (Vec<&str>, Vec<&str>) =
        text.split(',').map(str::trim).partition(|cidr| cidr.contains(':'));
    match (&v4[..], &v6[..]) {
        ([v4], [] | [_]) => Ok(((*v4).to_owned(), v6.first().map(|cidr| (*cidr).to_owned()))),
        _ => bail!("podCIDR: {text:?} is not an IPv4 range, or one with an IPv6 range after a comma"),
    }
}

/// The folders of `cniBinDir`, separated by commas as a kubelet's were.
fn check_cni(on: bool, dirs: Option<&str>) -> anyhow::Result<Vec<PathBuf>> {
    let Some(dirs) = dirs else {
        return Ok(crate::cni::DEFAULT_BIN_DIRS.map(PathBuf::from).to_vec());
    };
    if !on {
        bail!("cniBinDir: is without effect while cniConfDir is not set");
    }
    dirs.split(',').map(|dir| absolute(dir.trim().into())).collect()
}

/// What a flag says, else the file, else the default.
fn given(flag: Option<&String>, file: Option<String>, default: &str) -> String {
    flag.cloned().or(file).unwrap_or_else(|| default.to_owned())
}

fn check_interface(name: String) -> anyhow::Result<String> {
    if name.is_empty() || name.len() > 15 || name.contains(['/', ' ', ':']) {
        bail!("bridge {name:?}: an interface name has 1 to 15 characters and no '/', ':' or space");
    }
    Ok(name)
}

/// What the file says and what the flags add.
fn together(file: Option<Vec<String>>, flags: &[String]) -> Vec<String> {
    [file.as_deref().unwrap_or_default(), flags].concat()
}

/// An address to listen at, if any.
fn address(field: &str, text: Option<&str>) -> anyhow::Result<Option<SocketAddr>> {
    match text {
        None | Some("none" | "") => Ok(None),
        Some(text) => {
            text.parse().map(Some).with_context(|| format!("{field} {text:?} is not ADDRESS:PORT or none"))
        }
    }
}

fn log_files(number: Option<u32>) -> anyhow::Result<u32> {
    match number {
        Some(n) if n < 2 => bail!("containerLogMaxFiles: must be at least 2, is {n}"),
        other => Ok(other.unwrap_or(5)),
    }
}

fn log_size(text: Option<&str>) -> anyhow::Result<u64> {
    let Some(text) = text else { return Ok(10 << 20) };
    let quantity =
        Quantity::parse(text).map_err(|e| anyhow::anyhow!("containerLogMaxSize: {text:?}: {e}"))?;
    let bytes = u64::try_from(quantity.value()).unwrap_or(0);
    if bytes < 4096 {
        bail!("containerLogMaxSize: {text:?} is less than 4Ki");
    }
    Ok(bytes)
}

/// A Go duration such as `1m30s`, `300ms`, `2h`.
fn duration(field: &str, text: Option<&str>, default: Duration) -> anyhow::Result<Duration> {
    let Some(text) = text else { return Ok(default) };
    parse_duration(text).with_context(|| format!("{field}: {text:?} is not a duration such as 1m30s"))
}

/// Parses a Go duration such as `1m30s`; none if it is not one.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = 0f64;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file() {
        let args = AgentArgs { run: Some("/a".into()), node_name: Some("n".into()), ..AgentArgs::default() };
        let file = File { run: Some("/b".into()), root: Some("/c".into()), ..File::default() };
        let config = Config::merge(&args, file).unwrap();
        assert_eq!(config.run, Path::new("/a"));
        assert_eq!(config.root, Path::new("/c"));
        assert_eq!(config.socket, Path::new("/a/berth.sock"));
    }

    #[test]
    fn a_kubelet_configuration_is_read_as_it_is() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nstaticPodPath: /m\n\
                    podCIDR: 10.1.0.0/24\ncontainerLogMaxSize: 1Mi\ncrashLoopBackOff:\n  maxContainerRestartPeriod: 1m\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        let args = AgentArgs { config: Some(path), node_name: Some("n".into()), ..AgentArgs::default() };
        let config = Config::load(&args).unwrap();
        assert_eq!(config.manifests, [PathBuf::from("/m")]);
        assert_eq!(config.pod_cidr, "10.1.0.0/24");
        assert_eq!(config.log_max_size, 1 << 20);
        assert_eq!(config.max_restart_period, Duration::from_secs(60));
    }

    #[test]
    fn the_cgroup_driver() {
        let driver = |name: &str| {
            let file = File { cgroup_driver: Some(name.to_owned()), ..File::default() };
            merged(file).map(|c| c.cgroup_driver).map_err(|e| e.to_string())
        };
        assert_eq!(driver("systemd"), Ok(Driver::Systemd));
        assert_eq!(driver("cgroupfs"), Ok(Driver::Cgroupfs));
        assert!(driver("inherited").unwrap_err().contains("cgroupDriver"));
    }

    #[test]
    fn runtimes_are_programs_that_the_driver_of_cgroups_is_told_to() {
        let runtime = |path: &str, word: &str| {
            let one = Runtime { path: path.into(), args: vec![word.to_owned()], overhead: BTreeMap::new() };
            let cgroup_driver = Some("systemd".to_owned());
            merged(File {
                cgroup_driver,
                runtimes: Some(BTreeMap::from([("x".to_owned(), one)])),
                ..File::default()
            })
            .map(|c| c.runtimes["x"].args.clone())
            .map_err(|e| e.to_string())
        };
        assert_eq!(runtime("/bin/sh", "--debug").unwrap(), ["--debug"]);
        for (path, word, said) in [
            ("/bin/sh", "--systemd-cgroup", "runtimes.x.args: --systemd-cgroup is given with cgroupDriver"),
            ("sh", "-x", "runtimes.x.path: \"sh\" is not an absolute path"),
            ("/no/sh", "-x", "runtimes.x.path: /no/sh is not there"),
        ] {
            let error = runtime(path, word).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn ranges_of_pods_are_one_per_family() {
        let ranges = |text: &str| {
            let file = File { pod_cidr: Some(text.to_owned()), ..File::default() };
            merged(file).map(|c| (c.pod_cidr, c.pod_cidr6)).map_err(|e| e.to_string())
        };
        let both = ("10.1.0.0/24".to_owned(), Some("fd01::/64".to_owned()));
        assert_eq!(ranges("10.1.0.0/24"), Ok((both.0.clone(), None)));
        assert_eq!(ranges("10.1.0.0/24,fd01::/64").as_ref(), Ok(&both));
        assert_eq!(ranges("fd01::/64, 10.1.0.0/24"), Ok(both));
        for bad in ["fd01::/64", "10.1.0.0/24,10.2.0.0/24"] {
            assert!(ranges(bad).is_err_and(|e| e.starts_with("podCIDR")), "{bad}");
        }
        assert!(merged(File::default()).unwrap().local_dns);
    }

    #[test]
    fn folders_of_plugins_belong_to_one_of_networks() {
        let dirs = |confs: Option<&str>, bins: Option<&str>| {
            let file = File {
                cni_conf_dir: confs.map(Into::into),
                cni_bin_dir: bins.map(Into::into),
                ..File::default()
            };
            merged(file).map(|c| (c.cni_conf_dir, c.cni_bin_dirs)).map_err(|e| e.to_string())
        };
        let default = vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")];
        assert_eq!(dirs(None, None), Ok((None, default.clone())));
        assert_eq!(dirs(Some("/n"), None), Ok((Some("/n".into()), default)));
        assert_eq!(dirs(Some("/n"), Some("/a, /b")).unwrap().1, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert!(dirs(None, Some("/a")).unwrap_err().starts_with("cniBinDir: is without effect"));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "podCIDRs: x\n").unwrap();
        let args = AgentArgs { config: Some(path), ..AgentArgs::default() };
        let error = Config::load(&args).unwrap_err().to_string();
        assert!(error.contains("podCIDRs"), "{error}");
    }

    #[test]
    fn go_durations() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(parse_duration("5"), None);
        assert_eq!(parse_duration(""), None);
    }

    fn merged(file: File) -> anyhow::Result<Config> {
        Config::merge(&AgentArgs { node_name: Some("n".into()), ..AgentArgs::default() }, file)
    }

    #[test]
    fn ranges_of_ids_are_as_many_as_pods_and_fit_below_the_highest_id() {
        let users = |ids_per_pod, first_host_id, max_pods| {
            let file = UserNamespacesFile { ids_per_pod, first_host_id };
            merged(File { user_namespaces: Some(file), max_pods, ..File::default() })
                .map(|c| c.user_namespaces)
        };
        let default = UserNamespaces { first_host_id: 0x7000_0000, ids_per_pod: 65536, ranges: 110 };
        assert_eq!(users(None, None, None).unwrap(), default);
        assert_eq!(users(Some(131_072), Some(100_000), Some(7)).unwrap().ranges, 7);
        assert_eq!(users(None, Some(2_147_000_000), None).unwrap().ranges, 7, "no more fit");
        for (each, first, field) in [
            (Some(65_535), None, "userNamespaces.idsPerPod"),
            (Some(0), None, "userNamespaces.idsPerPod"),
            (Some(-65_536), None, "userNamespaces.idsPerPod"),
            (None, Some(0), "userNamespaces.firstHostID"),
            (None, Some(2_147_483_000), "userNamespaces.firstHostID"),
            (None, Some(-1), "userNamespaces.firstHostID"),
        ] {
            let error = users(each, first, None).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn only_sysctls_of_a_namespace_can_be_allowed() {
        let allow =
            |name: &str| merged(File { allowed_unsafe_sysctls: Some(vec![name.into()]), ..File::default() });
        assert_eq!(allow("net.core.*").unwrap().unsafe_sysctls, ["net.core.*"]);
        let error = allow("vm.swappiness").unwrap_err().to_string();
        assert!(error.starts_with("allowedUnsafeSysctls: \"vm.swappiness\""), "{error}");
    }

    #[test]
    fn the_processor_quota_has_a_period_and_can_be_off() {
        let cfs = |quota: Option<bool>, period: Option<&str>| {
            let period = period.map(str::to_owned);
            merged(File { cpu_cfs_quota: quota, cpu_cfs_quota_period: period, ..File::default() })
                .map(|c| c.cfs)
        };
        assert_eq!(cfs(None, None).unwrap(), Cfs { quota: true, period: 100_000 });
        assert_eq!(cfs(Some(false), Some("5ms")).unwrap(), Cfs { quota: false, period: 5_000 });
        for bad in ["2s", "10us", "fast"] {
            assert!(cfs(None, Some(bad)).unwrap_err().to_string().starts_with("cpuCFSQuotaPeriod"), "{bad}");
        }
    }

    #[test]
    fn managers_of_cores_and_memory_are_refused_by_name() {
        assert!(
            merged(File {
                cpu_manager_policy: Some("none".into()),
                memory_manager_policy: Some("None".into()),
                ..File::default()
            })
            .is_ok()
        );
        let error =
            merged(File { cpu_manager_policy: Some("static".into()), ..File::default() }).unwrap_err();
        assert_eq!(error.to_string(), "cpuManagerPolicy: \"static\" is not supported: only none is");
    }

    #[test]
    fn memory_qos_has_a_gate_a_factor_and_a_policy() {
        let qos = |on: Option<bool>, factor: Option<f64>, policy: Option<&str>| {
            merged(File {
                feature_gates: on.map(|on| BTreeMap::from([("MemoryQoS".to_owned(), on)])),
                memory_throttling_factor: factor,
                memory_reservation_policy: policy.map(str::to_owned),
                ..File::default()
            })
            .map(|c| c.memory_qos)
            .map_err(|e| e.to_string())
        };
        assert_eq!(qos(None, None, None), Ok(None));
        assert_eq!(qos(Some(false), Some(0.5), Some("None")), Ok(None));
        assert_eq!(qos(Some(true), None, None), Ok(Some(MemoryQos { throttling: 0.9, tiered: false })));
        let tiered = Some("TieredReservation");
        assert_eq!(qos(Some(true), Some(1.0), tiered), Ok(Some(MemoryQos { throttling: 1.0, tiered: true })));
        for (on, factor, policy, said) in [
            (Some(true), Some(0.0), None, "memoryThrottlingFactor: must be"),
            (Some(true), Some(1.1), None, "memoryThrottlingFactor: must be"),
            (Some(true), Some(f64::NAN), None, "memoryThrottlingFactor: must be"),
            (Some(true), None, Some("All"), "memoryReservationPolicy: \"All\" is not"),
            (None, None, tiered, "memoryReservationPolicy: needs the feature gate MemoryQoS"),
        ] {
            let error = qos(on, factor, policy).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
        let feature_gates = Some(BTreeMap::from([("NodeSwap".to_owned(), true)]));
        let error = merged(File { feature_gates, ..File::default() }).unwrap_err().to_string();
        assert_eq!(error, "featureGates: NodeSwap is not known: only MemoryQoS is");
    }

    #[test]
    fn swap_is_for_nobody_unless_it_is_limited() {
        let swap = |text: &str| {
            let memory_swap = Some(MemorySwap { swap_behavior: Some(text.into()) });
            merged(File { memory_swap, ..File::default() }).map(|c| c.swap)
        };
        assert_eq!(merged(File::default()).unwrap().swap, SwapBehavior::None);
        assert_eq!(swap("LimitedSwap").unwrap(), SwapBehavior::Limited);
        assert!(swap("Unlimited").unwrap_err().to_string().starts_with("memorySwap.swapBehavior"));
    }
}
