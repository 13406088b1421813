//! Limits of a container's cgroup beside processor and memory: huge pages, swap, and how it dies when memory runs out.

use std::collections::BTreeMap;
use std::path::Path;

use berth_reconciler::memory_qos::Setting;
use berth_reconciler::pod::Pod;
use berth_reconciler::quantity::Quantity;
use berth_reconciler::resources::{self, CpuMem, QosClass};
use berth_reconciler::shutdown;
use k8s_openapi::api::core::v1;
use serde_json::{Map, Value, json};

use super::Inputs;
use crate::config::{Config, SwapBehavior};

const CGROUPS: &str = "/sys/fs/cgroup";
const POOLS: &str = "/sys/kernel/mm/hugepages";
/// How many pages there are, and how many more may be made when they are wanted.
const FILES: [&str; 2] = ["nr_hugepages", "nr_overcommit_hugepages"];

/// The machine's memory and swap, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swap {
    /// All swap.
    pub total: u64,
    /// All memory.
    pub memory: u64,
}

/// `linux.resources.hugepageLimits`: what is asked for, and nothing of the other sizes that the machine has pages of.
/// A size without any page, now or when one is wanted, needs no limit. On a machine whose control groups do not count huge pages
/// there are no limits but its pools, as with containerd.
pub fn huge_pages(asked: &BTreeMap<u64, u64>) -> Vec<Value> {
    if counted(Path::new(CGROUPS)) { limits_of(asked, &pools(Path::new(POOLS), &FILES)) } else { Vec::new() }
}

/// Whether there is a hugetlb controller, of v1 or v2. A folder of that name may be nobody's.
fn counted(cgroups: &Path) -> bool {
    let v2 = std::fs::read_to_string(cgroups.join("cgroup.controllers")).unwrap_or_default();
    cgroups.join("hugetlb/cgroup.procs").exists() || v2.split_whitespace().any(|name| name == "hugetlb")
}

fn limits_of(asked: &BTreeMap<u64, u64>, pools: &BTreeMap<u64, u64>) -> Vec<Value> {
    let filled = pools.iter().filter(|(_, pages)| **pages > 0).map(|(size, _)| (*size, 0));
    let mut limits: BTreeMap<u64, u64> = filled.collect();
    limits.extend(asked);
    limits.iter().map(|(size, bytes)| json!({ "pageSize": page_size(*size), "limit": bytes })).collect()
}

/// The huge pages that the machine has now: bytes by the size of a page.
pub fn huge_page_pools() -> BTreeMap<u64, u64> {
    let pages = pools(Path::new(POOLS), &["nr_hugepages"]);
    pages.into_iter().map(|(size, count)| (size, size.saturating_mul(count))).collect()
}

/// The sum of what some files say of each size of pages, in bytes.
fn pools(dir: &Path, files: &[&str]) -> BTreeMap<u64, u64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = |file: &str| {
                let text = std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
                text.trim().parse::<u64>().unwrap_or(0)
            };
            Some((kilobytes << 10, files.iter().map(|file| count(file)).sum()))
        })
        .collect()
}

/// As the files of the hugetlb controller are named: `2MB`.
fn page_size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

/// `linux.resources.unified`: files of cgroup v2 that OCI has no other name for.
pub(super) fn unified(inputs: &Inputs<'_>) -> Map<String, Value> {
    let mut files = Map::new();
    if let Some(swap) = inputs.swap {
        let bytes = swap_limit(inputs.pod, inputs.container, inputs.config.swap, swap);
        files.insert("memory.swap.max".into(), json!(bytes.to_string()));
    }
    let values = resources::container_values(inputs.pod.spec(), inputs.container);
    for (file, value) in
        memory_qos(inputs.config, inputs.cgroup_v2, inputs.pod, &values, inputs.memory_capacity)
    {
        files.insert(file.to_owned(), json!(value));
    }
    if inputs.cgroup_v2 && inputs.config.single_process_oom_kill {
        files.insert("memory.oom.group".into(), json!("0"));
    }
    files
}

/// What MemoryQoS sets in the cgroup of a container with these values; nothing on cgroup v1. All of the node's memory, so many
/// bytes, can be allocated.
pub fn memory_qos(config: &Config, cgroup_v2: bool, pod: &Pod, values: &CpuMem, memory: u64) -> Vec<Setting> {
    let Some(qos) = config.memory_qos.filter(|_| cgroup_v2) else { return Vec::new() };
    qos.container(resources::qos_class(pod.spec()), values, memory, PAGE)
}

/// The smallest page; where they are larger, the kernel rounds down to its own.
const PAGE: u64 = 4096;

/// Bytes that a container may swap, as in kubelet's `swap_util.go`: with LimitedSwap a Burstable container's share of the
/// machine's swap is its request's share of the machine's memory, and everybody else has none.
fn swap_limit(pod: &Pod, container: &v1::Container, behavior: SwapBehavior, swap: Swap) -> u64 {
    let critical = shutdown::priority(pod.spec()) >= shutdown::SYSTEM_CRITICAL;
    let bytes = |list| resources::amount(list, "memory").unwrap_or(Quantity::ZERO);
    let (request, limit) = (bytes(resources::requests(container)), bytes(resources::limits(container)));
    let limited = behavior == SwapBehavior::Limited
        && !critical
        && resources::qos_class(pod.spec()) == QosClass::Burstable
        && !request.is_zero()
        && request != limit;
    if !limited || swap.memory == 0 {
        return 0;
    }
    let share = u128::from(u64::try_from(request.value()).unwrap_or(0)) * u128::from(swap.total);
    u64::try_from(share / u128::from(swap.memory)).unwrap_or(swap.total).min(swap.total)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_nobody_asked_for_are_closed() {
        let pools = BTreeMap::from([(2 << 20, 10), (1 << 30, 0), (64 << 10, 1)]);
        let asked = BTreeMap::from([(1 << 30, 1 << 30)]);
        let wanted = json!([
            {"pageSize": "64KB", "limit": 0}, {"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 1 << 30}
        ]);
        assert_eq!(json!(limits_of(&asked, &pools)), wanted);
        assert!(limits_of(&BTreeMap::new(), &BTreeMap::from([(2 << 20, 0)])).is_empty());
    }

    #[test]
    fn a_machine_that_does_not_count_huge_pages_does_not_limit_them() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!counted(dir.path()));
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert!(!counted(dir.path()));
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu hugetlb\n").unwrap();
        assert!(counted(dir.path()));
        std::fs::remove_file(dir.path().join("cgroup.controllers")).unwrap();
        std::fs::create_dir(dir.path().join("hugetlb")).unwrap();
        assert!(!counted(dir.path()), "nothing is mounted there");
        std::fs::write(dir.path().join("hugetlb/cgroup.procs"), "").unwrap();
        assert!(counted(dir.path()));
    }

    #[test]
    fn the_machines_pools_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for (name, pages, more) in [("hugepages-2048kB", "3\n", "1\n"), ("hugepages-1048576kB", "0\n", "0\n")]
        {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("nr_hugepages"), pages).unwrap();
            std::fs::write(dir.path().join(name).join("nr_overcommit_hugepages"), more).unwrap();
        }
        assert_eq!(pools(dir.path(), &FILES), BTreeMap::from([(2 << 20, 4), (1 << 30, 0)]));
        assert_eq!(pools(&dir.path().join("none"), &FILES), BTreeMap::new());
    }

    #[test]
    fn limited_swap_is_the_requests_share_of_a_burstable_container() {
        let machine = Swap { total: 8 << 30, memory: 16 << 30 };
        let limit = |behavior, resources: Value, spec: Value| {
            let mut all = spec;
            all["containers"] = json!([{"name": "c", "resources": resources}]);
            let object = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": all})).unwrap();
            let pod = Pod::new(object, berth_reconciler::pod::Source::Api);
            swap_limit(&pod, &pod.spec().containers[0], behavior, machine)
        };
        let burstable = json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "4Gi"}});
        let full = json!({"limits": {"cpu": 1, "memory": "2Gi"}});
        let cases = [
            (SwapBehavior::Limited, burstable.clone(), json!({}), 1 << 30),
            (SwapBehavior::None, burstable.clone(), json!({}), 0),
            (
                SwapBehavior::Limited,
                burstable.clone(),
                json!({"priorityClassName": "system-cluster-critical"}),
                0,
            ),
            (SwapBehavior::Limited, burstable, json!({"priority": 2_000_001_000}), 0),
            (SwapBehavior::Limited, full, json!({}), 0),
            (SwapBehavior::Limited, json!({}), json!({}), 0),
            (SwapBehavior::Limited, json!({"requests": {"cpu": 1}}), json!({}), 0),
        ];
        for (behavior, resources, spec, bytes) in cases {
            assert_eq!(
                limit(behavior, resources.clone(), spec.clone()),
                bytes,
                "{behavior:?} {resources} {spec}"
            );
        }
    }
}
