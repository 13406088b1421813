//! From requests and limits to quality of service, cgroup values and out-of-memory scores.
//!
//! The formulas are kubelet's (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`,
//! `component-helpers/resource/helpers.go`). Everything here takes a checked pod and is pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::{Quantity, binary};

/// Smallest `cpu.shares`, also those of the best-effort tier.
pub const MIN_SHARES: u64 = 2;
/// Largest `cpu.shares`.
pub const MAX_SHARES: u64 = 262_144;
/// The CFS period, in microseconds.
pub const CPU_PERIOD: u64 = 100_000;
/// Smallest CFS quota the kernel takes, in microseconds.
const MIN_QUOTA: i64 = 1_000;
const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;
const BEST_EFFORT_OOM_SCORE_ADJ: i64 = 1000;

/// Quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QosClass {
    /// Every container has cpu and memory limits, and the requests equal them.
    Guaranteed,
    /// Some container has a cpu or memory request or limit.
    Burstable,
    /// None has.
    BestEffort,
}

impl QosClass {
    /// As in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

/// What a cgroup gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMem {
    /// `cpu.shares` (2 to 262144); see [`pod_weight`] and [`container_weight`] for cgroup v2.
    pub shares: u64,
    /// CFS quota in microseconds per period; none: no limit.
    pub quota: Option<i64>,
    /// CFS period in microseconds.
    pub period: u64,
    /// Memory request in bytes, 0 for none: what [`crate::memory_qos`] goes by.
    pub memory_request: u64,
    /// Memory limit in bytes; none: no limit.
    pub memory_limit: Option<u64>,
}

impl CpuMem {
    /// What holds both: while a resize is under way, a pod's cgroup must not be narrower than what runs in it.
    pub fn widest(&self, other: &CpuMem) -> CpuMem {
        CpuMem {
            shares: self.shares.max(other.shares),
            quota: self.quota.zip(other.quota).map(|(a, b)| a.max(b)),
            period: self.period,
            memory_request: self.memory_request.max(other.memory_request),
            memory_limit: self.memory_limit.zip(other.memory_limit).map(|(a, b)| a.max(b)),
        }
    }
}

/// Sums of what a pod asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of ephemeral storage.
    pub ephemeral_storage: u64,
}

impl Amounts {
    fn of(list: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
        Amounts {
            cpu_milli: amount(list, "cpu").map_or(0, |q| unsigned(q.milli())),
            memory: amount(list, "memory").map_or(0, |q| unsigned(q.value())),
            ephemeral_storage: amount(list, "ephemeral-storage").map_or(0, |q| unsigned(q.value())),
        }
    }

    /// The same with those of the list that are in it.
    fn overridden(self, list: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
        let other = Amounts::of(list);
        let given = |name| list.is_some_and(|l| l.contains_key(name));
        Amounts {
            cpu_milli: if given("cpu") { other.cpu_milli } else { self.cpu_milli },
            memory: if given("memory") { other.memory } else { self.memory },
            ..self
        }
    }

    /// `cpu` and `memory` with their amounts.
    pub fn quantities(self) -> [(&'static str, Quantity); 2] {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        [
            ("cpu", Quantity::from_milli(signed(self.cpu_milli))),
            ("memory", Quantity::from_value(signed(self.memory))),
        ]
    }

    /// The names of those that are not zero.
    fn named(self) -> impl Iterator<Item = &'static str> {
        [("cpu", self.cpu_milli), ("memory", self.memory)].into_iter().filter(|(_, v)| *v > 0).map(|(n, _)| n)
    }

    fn combine(self, other: Amounts, with: fn(u64, u64) -> u64) -> Amounts {
        Amounts {
            cpu_milli: with(self.cpu_milli, other.cpu_milli),
            memory: with(self.memory, other.memory),
            ephemeral_storage: with(self.ephemeral_storage, other.ephemeral_storage),
        }
    }
}

/// An init container that keeps running beside the main containers.
pub fn is_sidecar(container: &v1::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// One entry of a resource list.
pub fn amount(list: Option<&BTreeMap<String, ApiQuantity>>, name: &str) -> Option<Quantity> {
    list?.get(name).and_then(|q| Quantity::of(q).ok())
}

/// `resources.requests` of a container.
pub fn requests(container: &v1::Container) -> Option<&BTreeMap<String, ApiQuantity>> {
    container.resources.as_ref()?.requests.as_ref()
}

/// `resources.limits` of a container.
pub fn limits(container: &v1::Container) -> Option<&BTreeMap<String, ApiQuantity>> {
    container.resources.as_ref()?.limits.as_ref()
}

/// Whether a pod may ask for a resource as a whole.
pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What the pod asks for as a whole (`spec.resources`), which counts instead of its containers' sums.
pub fn pod_level(spec: &v1::PodSpec) -> Option<&v1::ResourceRequirements> {
    let some = |list: &Option<BTreeMap<String, ApiQuantity>>| list.as_ref().is_some_and(|l| !l.is_empty());
    spec.resources.as_ref().filter(|r| some(&r.requests) || some(&r.limits))
}

fn nonzero(list: Option<&BTreeMap<String, ApiQuantity>>, name: &str) -> Option<Quantity> {
    amount(list, name).filter(|q| !q.is_zero() && !q.is_negative())
}

/// The pod's QoS class. Only cpu and memory count, zeros do not.
pub fn qos_class(spec: &v1::PodSpec) -> QosClass {
    let own = pod_level(spec);
    let of_containers = all_containers(spec).filter(|_| own.is_none()).map(|c| c.resources.as_ref());
    let mut any = false;
    let mut guaranteed = true;
    for resources in own.map(Some).into_iter().chain(of_containers) {
        for name in ["cpu", "memory"] {
            let request = nonzero(resources.and_then(|r| r.requests.as_ref()), name);
            let limit = nonzero(resources.and_then(|r| r.limits.as_ref()), name);
            any |= request.is_some() || limit.is_some();
            // A request that is absent takes the limit (the API server's default).
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// `cpu.shares` for thousandths of a core.
pub fn cpu_shares(milli: u64) -> u64 {
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota in microseconds per [`CPU_PERIOD`]; none for no limit.
pub fn cpu_quota(milli: u64) -> Option<i64> {
    let quota = i64::try_from(milli.saturating_mul(CPU_PERIOD) / 1000).unwrap_or(i64::MAX);
    (milli > 0).then(|| quota.max(MIN_QUOTA))
}

/// cgroup v2 `cpu.weight` of a pod's or a tier's cgroup.
pub fn pod_weight(shares: u64) -> u64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - 2) * 9999 / 262_142
}

/// cgroup v2 `cpu.weight` of a container's cgroup, as newer OCI runtimes convert shares: 1 CPU (1024) is 100.
pub fn container_weight(shares: u64) -> u64 {
    match shares {
        0..=MIN_SHARES => 1,
        MAX_SHARES.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

impl CpuMem {
    /// The same under the node's settings `cpuCFSQuota` and `cpuCFSQuotaPeriod` (microseconds): the share of a core
    /// stays, over another period, or there is no quota at all.
    #[must_use]
    pub fn under(self, quota: bool, period: u64) -> CpuMem {
        let scaled = |q: i64| {
            let scaled = i128::from(q) * i128::from(period) / i128::from(self.period.max(1));
            i64::try_from(scaled).unwrap_or(i64::MAX).max(MIN_QUOTA)
        };
        CpuMem { quota: self.quota.filter(|_| quota).map(scaled), period, ..self }
    }
}

/// Values of one container's cgroup. A missing CPU request takes the limit, a missing limit the pod's.
pub fn container_values(spec: &v1::PodSpec, container: &v1::Container) -> CpuMem {
    let pods = pod_level(spec).and_then(|r| r.limits.as_ref());
    let limit = |name| nonzero(limits(container), name).or_else(|| nonzero(pods, name));
    let cpu_limit = limit("cpu").map_or(0, |q| unsigned(q.milli()));
    let request = amount(requests(container), "cpu").map_or(cpu_limit, |q| unsigned(q.milli()));
    let memory = amount(requests(container), "memory").or_else(|| nonzero(limits(container), "memory"));
    CpuMem {
        shares: cpu_shares(request),
        quota: cpu_quota(cpu_limit),
        period: CPU_PERIOD,
        memory_request: memory.map_or(0, |q| unsigned(q.value())),
        memory_limit: limit("memory").map(|q| unsigned(q.value())).filter(|bytes| *bytes > 0),
    }
}

/// Values of the pod's cgroup: limits only for a resource that the pod or every container limits.
pub fn pod_values(spec: &v1::PodSpec) -> CpuMem {
    let pods = pod_level(spec).and_then(|r| r.limits.as_ref());
    let limited = |name| {
        nonzero(pods, name).is_some() || all_containers(spec).all(|c| nonzero(limits(c), name).is_some())
    };
    let limit = pod_limits(spec);
    let best_effort = qos_class(spec) == QosClass::BestEffort;
    let request = pod_requests(spec);
    CpuMem {
        shares: if best_effort { MIN_SHARES } else { cpu_shares(request.cpu_milli) },
        quota: cpu_quota(limit.cpu_milli).filter(|_| limited("cpu")),
        period: CPU_PERIOD,
        memory_request: request.memory,
        memory_limit: Some(limit.memory).filter(|bytes| *bytes > 0 && limited("memory")),
    }
}

/// `cpu.shares` of the Burstable tier: the sum over its pods.
pub fn burstable_tier_shares<'a>(pods: impl Iterator<Item = &'a v1::PodSpec>) -> u64 {
    cpu_shares(pods.map(|spec| pod_requests(spec).cpu_milli).fold(0, u64::saturating_add))
}

/// The spec with other resources for the containers that `of` knows.
pub fn with_resources<'a>(
    spec: &v1::PodSpec,
    of: impl Fn(&str) -> Option<&'a v1::ResourceRequirements>,
) -> v1::PodSpec {
    let mut spec = spec.clone();
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(resources) = of(&container.name) {
            container.resources = Some(resources.clone());
        }
    }
    spec
}

/// What the pod needs at its peak: main containers and sidecars together, or an init container with the sidecars
/// started before it, whichever is more; or what the pod says as a whole. With `spec.overhead`.
pub fn pod_requests(spec: &v1::PodSpec) -> Amounts {
    let merged = pod_level(spec).map(|pods| {
        let mut merged = pods.limits.clone().unwrap_or_default();
        // Where only containers request, theirs is the pod's request.
        for name in container_requests(spec).named() {
            merged.remove(name);
        }
        merged.extend(pods.requests.clone().unwrap_or_default());
        merged
    });
    let overhead = Amounts::of(spec.overhead.as_ref());
    container_requests(spec).overridden(merged.as_ref()).combine(overhead, u64::saturating_add)
}

/// The containers' sum alone.
fn container_requests(spec: &v1::PodSpec) -> Amounts {
    // A request that is absent takes the limit, as the API server fills it in.
    peak(spec, |c| {
        let mut merged = limits(c).cloned().unwrap_or_default();
        merged.extend(requests(c).cloned().unwrap_or_default());
        Amounts::of(Some(&merged))
    })
}

/// The same sum over limits; a container without one counts as zero, and so does what is not limited at all.
pub fn pod_limits(spec: &v1::PodSpec) -> Amounts {
    let sum = peak(spec, |c| Amounts::of(limits(c)))
        .overridden(pod_level(spec).and_then(|pods| pods.limits.as_ref()));
    let overhead = Amounts::of(spec.overhead.as_ref());
    let add = |sum: u64, more: u64| if sum == 0 { 0 } else { sum.saturating_add(more) };
    sum.combine(overhead, add)
}

fn peak(spec: &v1::PodSpec, of: impl Fn(&v1::Container) -> Amounts) -> Amounts {
    let mut running =
        spec.containers.iter().map(&of).fold(Amounts::default(), |a, b| a.combine(b, u64::saturating_add));
    let mut sidecars = Amounts::default();
    let mut init = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        let now = sidecars.combine(own, u64::saturating_add);
        if is_sidecar(container) {
            running = running.combine(own, u64::saturating_add);
            sidecars = now;
        }
        init = init.combine(now, u64::max);
    }
    running.combine(init, u64::max)
}

/// `oom_score_adj` of a container on a node with `capacity` bytes of memory.
pub fn oom_score_adj(spec: &v1::PodSpec, container: &v1::Container, capacity: u64) -> i32 {
    let node_critical = spec.priority_class_name.as_deref() == Some("system-node-critical");
    let score = match qos_class(spec) {
        _ if node_critical => GUARANTEED_OOM_SCORE_ADJ,
        QosClass::Guaranteed => GUARANTEED_OOM_SCORE_ADJ,
        QosClass::BestEffort => BEST_EFFORT_OOM_SCORE_ADJ,
        QosClass::Burstable => burstable_oom_score_adj(spec, container, capacity),
    };
    score as i32
}

fn burstable_oom_score_adj(spec: &v1::PodSpec, container: &v1::Container, capacity: u64) -> i64 {
    let memory = |c: &v1::Container| {
        amount(requests(c), "memory")
            .or_else(|| amount(limits(c), "memory"))
            .map_or(0, |q| unsigned(q.value()))
    };
    let score = |bytes: u64| {
        let share = u128::from(bytes) * 1000 / u128::from(capacity.max(1));
        1000 - i64::try_from(share.min(2000)).unwrap_or(2000)
    };
    let rest = pod_memory_per_container(spec);
    let is_init = spec.init_containers.iter().flatten().any(|c| c.name == container.name);
    let mut own = score(memory(container).saturating_add(rest));
    if is_init && is_sidecar(container) {
        // A sidecar must not be killed before the containers that it serves.
        own = own.min(score(spec.containers.iter().map(memory).min().unwrap_or(0).saturating_add(rest)));
    }
    // 3 keeps it above a Guaranteed pod that uses all memory, 999 below best effort.
    own.clamp(1000 + GUARANTEED_OOM_SCORE_ADJ, BEST_EFFORT_OOM_SCORE_ADJ - 1)
}

/// What the pod as a whole requests of memory beyond its containers, for each of those that run side by side.
fn pod_memory_per_container(spec: &v1::PodSpec) -> u64 {
    let requests = pod_level(spec).and_then(|r| r.requests.as_ref());
    let Some(pods) = nonzero(requests, "memory").map(|q| unsigned(q.value())) else { return 0 };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)).count();
    let count = u64::try_from(spec.containers.len() + sidecars).unwrap_or(1).max(1);
    pods.saturating_sub(container_requests(spec).memory) / count
}

/// The limits of huge pages in a list, by the size of a page in bytes: their names and how many bytes.
pub(crate) fn page_limits(list: Option<&BTreeMap<String, ApiQuantity>>) -> BTreeMap<u64, (&str, u64)> {
    list.into_iter()
        .flatten()
        .filter_map(|(name, amount)| {
            let size = unsigned(Quantity::parse(name.strip_prefix("hugepages-")?).ok()?.value());
            let bytes = unsigned(Quantity::of(amount).ok()?.value());
            (size > 0).then_some((size, (name.as_str(), bytes)))
        })
        .collect()
}

fn pages(list: Option<&BTreeMap<String, ApiQuantity>>) -> BTreeMap<u64, u64> {
    page_limits(list).into_iter().map(|(size, (_, bytes))| (size, bytes)).collect()
}

/// The name of the resource that is huge pages of a size in bytes.
pub fn huge_pages_name(size: u64) -> String {
    format!("hugepages-{}", binary(size))
}

/// The huge pages that a container may use, by the size of a page in bytes; without limits of its own the pod's.
pub fn huge_pages(spec: &v1::PodSpec, container: &v1::Container) -> BTreeMap<u64, u64> {
    let mut all = pages(pod_level(spec).and_then(|pods| pods.limits.as_ref()));
    all.extend(pages(limits(container)));
    all
}

/// The size in bytes of the pages of an emptyDir with this medium; none for another one than `HugePages` and
/// `HugePages-<size>`.
///
/// # Errors
/// What kubelet says when no container asks for such pages, or `HugePages` leaves open which (`empty_dir.go`).
pub fn page_size_of_medium(medium: &str, spec: &v1::PodSpec) -> Result<Option<u64>, String> {
    let Some(rest) = medium.strip_prefix("HugePages") else { return Ok(None) };
    let containers = all_containers(spec).map(limits);
    let lists = containers.chain([pod_level(spec).and_then(|pods| pods.limits.as_ref())]);
    let asked: BTreeSet<u64> = lists.flat_map(|list| pages(list).into_keys()).collect();
    let missing = || {
        format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )
    };
    if rest.is_empty() {
        let mut sizes = asked.into_iter();
        return match (sizes.next(), sizes.next()) {
            (None, _) => Err(missing()),
            (size, None) => Ok(size),
            _ => {
                Err(format!("medium: {medium} can't be used if container requests multiple huge page sizes"))
            }
        };
    }
    let size = rest.strip_prefix('-').and_then(|size| Quantity::parse(size).ok());
    match size.map(|size| unsigned(size.value())).filter(|size| *size > 0) {
        None => Err(format!("medium {medium}: its size is not one of a page, such as 2Mi")),
        Some(size) if asked.contains(&size) => Ok(Some(size)),
        Some(_) => Err(missing()),
    }
}

/// The huge pages that all containers of a pod may use at its peak, by the size of a page in bytes; or what the pod says as a
/// whole.
pub fn pod_huge_pages(spec: &v1::PodSpec) -> BTreeMap<u64, u64> {
    let add = |mut sum: BTreeMap<u64, u64>, container: &v1::Container| {
        for (size, bytes) in pages(limits(container)) {
            let entry = sum.entry(size).or_default();
            *entry = entry.saturating_add(bytes);
        }
        sum
    };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let sidecars = sidecars.fold(BTreeMap::new(), &add);
    let mut all = spec.containers.iter().fold(sidecars.clone(), &add);
    for container in spec.init_containers.iter().flatten().filter(|c| !is_sidecar(c)) {
        for (size, bytes) in add(sidecars.clone(), container) {
            let entry = all.entry(size).or_default();
            *entry = bytes.max(*entry);
        }
    }
    all.extend(pages(pod_level(spec).and_then(|pods| pods.limits.as_ref())));
    all
}

/// Bytes of the tmpfs of an emptyDir with medium Memory: the least of its sizeLimit, the pod's memory limit and the node's
/// allocatable memory. A limit of zero counts as none.
pub fn memory_volume_size(size_limit: Option<&ApiQuantity>, spec: &v1::PodSpec, allocatable: u64) -> u64 {
    let size = size_limit.and_then(|q| Quantity::of(q).ok()).map(|q| unsigned(q.value())).filter(|b| *b > 0);
    [size, pod_values(spec).memory_limit].into_iter().flatten().fold(allocatable, u64::min)
}

fn all_containers(spec: &v1::PodSpec) -> impl Iterator<Item = &v1::Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
