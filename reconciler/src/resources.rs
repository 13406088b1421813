//! From requests and limits to quality of service, cgroup values and out-of-memory scores.
//!
//! The formulas are kubelet's (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`,
//! `component-helpers/resource/helpers.go`). Everything here takes a checked pod and is pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::Quantity;

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
    /// Memory limit in bytes; none: no limit.
    pub memory_limit: Option<u64>,
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

/// The pod's QoS class. Only cpu and memory count, zeros do not.
pub fn qos_class(spec: &v1::PodSpec) -> QosClass {
    let nonzero = |list, name| amount(list, name).filter(|q| !q.is_zero() && !q.is_negative());
    let mut any = false;
    let mut guaranteed = true;
    for container in all_containers(spec) {
        for name in ["cpu", "memory"] {
            let request = nonzero(requests(container), name);
            let limit = nonzero(limits(container), name);
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

/// Values of one container's cgroup. A missing CPU request takes the limit.
pub fn container_values(container: &v1::Container) -> CpuMem {
    let limit = Amounts::of(limits(container));
    let request = amount(requests(container), "cpu").map_or(limit.cpu_milli, |q| unsigned(q.milli()));
    CpuMem {
        shares: cpu_shares(request),
        quota: cpu_quota(limit.cpu_milli),
        period: CPU_PERIOD,
        memory_limit: Some(limit.memory).filter(|bytes| *bytes > 0),
    }
}

/// Values of the pod's cgroup: limits only for a resource that every container limits.
pub fn pod_values(spec: &v1::PodSpec) -> CpuMem {
    let all_limit = |name| {
        all_containers(spec)
            .all(|c| amount(limits(c), name).is_some_and(|q| !q.is_zero() && !q.is_negative()))
    };
    let limit = pod_limits(spec);
    let best_effort = qos_class(spec) == QosClass::BestEffort;
    CpuMem {
        shares: if best_effort { MIN_SHARES } else { cpu_shares(pod_requests(spec).cpu_milli) },
        quota: cpu_quota(limit.cpu_milli).filter(|_| all_limit("cpu")),
        period: CPU_PERIOD,
        memory_limit: Some(limit.memory).filter(|bytes| *bytes > 0 && all_limit("memory")),
    }
}

/// `cpu.shares` of the Burstable tier: the sum over its pods.
pub fn burstable_tier_shares<'a>(pods: impl Iterator<Item = &'a v1::PodSpec>) -> u64 {
    cpu_shares(pods.map(|spec| pod_requests(spec).cpu_milli).fold(0, u64::saturating_add))
}

/// What the pod needs at its peak: main containers and sidecars together, or an init container with the sidecars
/// started before it, whichever is more.
pub fn pod_requests(spec: &v1::PodSpec) -> Amounts {
    // A request that is absent takes the limit, as the API server fills it in.
    peak(spec, |c| {
        let mut merged = limits(c).cloned().unwrap_or_default();
        merged.extend(requests(c).cloned().unwrap_or_default());
        Amounts::of(Some(&merged))
    })
}

/// The same sum over limits; a container without one counts as zero.
pub fn pod_limits(spec: &v1::PodSpec) -> Amounts {
    peak(spec, |c| Amounts::of(limits(c)))
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
    let is_init = spec.init_containers.iter().flatten().any(|c| c.name == container.name);
    let mut own = score(memory(container));
    if is_init && is_sidecar(container) {
        // A sidecar must not be killed before the containers that it serves.
        own = own.min(score(spec.containers.iter().map(memory).min().unwrap_or(0)));
    }
    // 3 keeps it above a Guaranteed pod that uses all memory, 999 below best effort.
    own.clamp(1000 + GUARANTEED_OOM_SCORE_ADJ, BEST_EFFORT_OOM_SCORE_ADJ - 1)
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
