//! From requests and limits to cgroup values.

use k8s_openapi::api::core::v1;

/// Quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has limits equal to requests.
    Guaranteed,
    /// Some container has a request or a limit.
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
    /// `cpu.shares` (2 to 262144).
    pub shares: u64,
    /// CFS quota in microseconds per period; none: no limit.
    pub quota: Option<i64>,
    /// CFS period in microseconds.
    pub period: u64,
    /// Memory limit in bytes; none: no limit.
    pub memory_limit: Option<u64>,
}

/// The pod's QoS class.
pub fn qos_class(_spec: &v1::PodSpec) -> QosClass {
    QosClass::BestEffort
}

/// Values of one container's cgroup.
pub fn container_values(_container: &v1::Container) -> CpuMem {
    CpuMem { shares: 2, quota: None, period: 100_000, memory_limit: None }
}

/// Values of the pod's cgroup.
pub fn pod_values(_spec: &v1::PodSpec) -> CpuMem {
    CpuMem { shares: 2, quota: None, period: 100_000, memory_limit: None }
}

/// oom_score_adj of a container on a node with that much memory.
pub fn oom_score_adj(_spec: &v1::PodSpec, _container: &v1::Container, _capacity: u64) -> i32 {
    1000
}
