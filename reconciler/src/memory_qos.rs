//! MemoryQoS: how much memory cgroup v2 keeps for a pod and from where on it slows a container down. The rules are those of
//! Kubernetes 1.36 (KEP-2570, `kuberuntime_container_linux.go`, `qos_container_manager_linux.go`).

use crate::resources::{CpuMem, QosClass};

/// The node's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryQos {
    /// `memoryThrottlingFactor`, above 0 and at most 1: where between request and limit a container is slowed down.
    pub throttling: f64,
    /// `memoryReservationPolicy: TieredReservation`: requests are kept, firmly for Guaranteed pods and as long as there is other
    /// memory for Burstable ones.
    pub tiered: bool,
}

/// A file of a cgroup and what is written to it.
pub type Setting = (&'static str, String);

const MIN: &str = "memory.min";
const LOW: &str = "memory.low";
const HIGH: &str = "memory.high";

impl MemoryQos {
    /// The settings of a container. `allocatable` is the node's memory and `page` the size of a page, in bytes.
    pub fn container(&self, class: QosClass, values: &CpuMem, allocatable: u64, page: u64) -> Vec<Setting> {
        let mut settings = self.reserved(class, values.memory_request);
        let high = self.throttled_from(values, allocatable, page);
        settings.push((HIGH, high.map_or("max".to_owned(), |bytes| bytes.to_string())));
        settings
    }

    /// The settings of a pod's cgroup for what its containers request together.
    pub fn pod(&self, class: QosClass, request: u64) -> Vec<Setting> {
        self.reserved(class, request)
    }

    /// The settings of the cgroup above all Burstable pods, for what they request together.
    pub fn burstable_tier(&self, burstable: u64) -> Vec<Setting> {
        self.reserved(QosClass::Burstable, burstable)
    }

    /// The settings of the cgroup above all pods, for what the Guaranteed and the Burstable ones request together: the kernel
    /// keeps for a cgroup no more than its parents have.
    pub fn root(&self, guaranteed: u64, burstable: u64) -> Vec<Setting> {
        if !self.tiered {
            return Vec::new();
        }
        let both = guaranteed.saturating_add(burstable);
        vec![(MIN, both.to_string()), (LOW, burstable.to_string())]
    }

    fn reserved(&self, class: QosClass, request: u64) -> Vec<Setting> {
        match class {
            QosClass::Guaranteed if self.tiered => vec![(MIN, request.to_string())],
            QosClass::Burstable if self.tiered => vec![(LOW, request.to_string())],
            _ => Vec::new(),
        }
    }

    /// `floor((request + factor * (limit or allocatable - request)) / page) * page`, unless that is no more than the request,
    /// or request and limit are equal.
    fn throttled_from(&self, values: &CpuMem, allocatable: u64, page: u64) -> Option<u64> {
        let request = values.memory_request;
        if values.memory_limit == Some(request) {
            return None;
        }
        let end = values.memory_limit.unwrap_or(allocatable);
        let bytes = request as f64 + (end as f64 - request as f64) * self.throttling;
        let high = (bytes / page.max(1) as f64).floor() as u64 * page;
        (high > request).then_some(high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const NODE: u64 = 8 << 30;
    const TIERED: MemoryQos = MemoryQos { throttling: 0.9, tiered: true };
    const PLAIN: MemoryQos = MemoryQos { throttling: 0.9, tiered: false };

    fn values(memory_request: u64, memory_limit: Option<u64>) -> CpuMem {
        CpuMem { shares: 2, quota: None, period: 100_000, memory_request, memory_limit }
    }

    fn high(qos: &MemoryQos, request: u64, limit: Option<u64>) -> String {
        let settings = qos.container(QosClass::Burstable, &values(request, limit), NODE, PAGE);
        settings.into_iter().find(|(file, _)| *file == HIGH).map_or(String::new(), |(_, value)| value)
    }

    #[test]
    fn a_container_is_slowed_down_between_request_and_limit() {
        let mi = 1 << 20;
        // 128 Mi + 0.9 * 128 Mi is 243.2 Mi, in whole pages 62259 of them.
        assert_eq!(high(&PLAIN, 128 * mi, Some(256 * mi)), (62_259 * PAGE).to_string());
        // Without a limit the node's memory takes its place, also for who requests nothing.
        assert_eq!(high(&PLAIN, 128 * mi, None), (1_890_713 * PAGE).to_string());
        assert_eq!(high(&PLAIN, 0, None), (1_887_436 * PAGE).to_string());
        assert_eq!(
            high(&MemoryQos { throttling: 1.0, tiered: false }, 0, Some(64 * mi)),
            (64 * mi).to_string()
        );
    }

    #[test]
    fn equal_or_close_values_slow_nobody_down() {
        assert_eq!(high(&PLAIN, 1 << 20, Some(1 << 20)), "max");
        assert_eq!(high(&PLAIN, 8192, Some(8193)), "max", "less than a page more");
        assert_eq!(high(&PLAIN, NODE, None), "max");
    }

    #[test]
    fn requests_are_kept_by_class_if_the_policy_says_so() {
        let kept = |qos: &MemoryQos, class| qos.pod(class, 7);
        assert_eq!(kept(&TIERED, QosClass::Guaranteed), [(MIN, "7".to_owned())]);
        assert_eq!(kept(&TIERED, QosClass::Burstable), [(LOW, "7".to_owned())]);
        assert_eq!(kept(&TIERED, QosClass::BestEffort), []);
        for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            assert_eq!(kept(&PLAIN, class), []);
        }
        let container = TIERED.container(QosClass::Guaranteed, &values(7, Some(7)), NODE, PAGE);
        assert_eq!(container, [(MIN, "7".to_owned()), (HIGH, "max".to_owned())]);
    }

    #[test]
    fn parents_keep_what_their_children_keep() {
        assert_eq!(TIERED.burstable_tier(5), [(LOW, "5".to_owned())]);
        assert_eq!(TIERED.root(7, 5), [(MIN, "12".to_owned()), (LOW, "5".to_owned())]);
        assert_eq!((PLAIN.burstable_tier(5), PLAIN.root(7, 5)), (vec![], vec![]));
    }
}
