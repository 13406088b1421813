//! Local ephemeral storage: which pods state a limit, and whether one is exceeded.
//!
//! The rules and texts are those of kubelet's `localStorageEviction` (`pkg/kubelet/eviction`): first every emptyDir, then the
//! pod as a whole, then every container.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use crate::quantity::Quantity;
use crate::resources::{amount, is_sidecar, limits};

/// `status.reason` of a pod that was ended because it took too much of the node.
pub const EVICTED: &str = "Evicted";

const RESOURCE: &str = "ephemeral-storage";

/// What a pod takes, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Each running container's writable layer and logs.
    pub containers: BTreeMap<String, u64>,
    /// Each emptyDir on disk.
    pub volumes: BTreeMap<String, u64>,
}

/// Whether the pod states any limit that has to be watched. Those of emptyDirs in memory the kernel keeps.
pub fn is_limited(spec: &v1::PodSpec) -> bool {
    volume_limits(spec).next().is_some() || pod_limit(spec).is_some()
}

/// The first limit that is exceeded, in kubelet's words.
pub fn exceeded(spec: &v1::PodSpec, usage: &Usage) -> Option<String> {
    for (name, limit) in volume_limits(spec) {
        if bytes(usage.volumes.get(name)) > limit {
            let limit = limit.to_api().0;
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "));
        }
    }
    let total: u64 = usage.containers.values().chain(usage.volumes.values()).sum();
    if let Some(limit) = pod_limit(spec).filter(|limit| bytes(Some(&total)) > *limit) {
        let limit = limit.to_api().0;
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
        ));
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.into_iter().find_map(|container| {
        let limit = container_limit(container)?;
        (bytes(usage.containers.get(&container.name)) > limit).then(|| {
            let (name, limit) = (&container.name, limit.to_api().0);
            format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. ")
        })
    })
}

fn bytes(amount: Option<&u64>) -> Quantity {
    Quantity::from_value(amount.map_or(0, |bytes| i64::try_from(*bytes).unwrap_or(i64::MAX)))
}

/// The emptyDirs on disk with their size limits; a limit of zero is none.
fn volume_limits(spec: &v1::PodSpec) -> impl Iterator<Item = (&str, Quantity)> {
    spec.volumes.iter().flatten().filter_map(|volume| {
        let empty = volume.empty_dir.as_ref()?;
        let on_disk = empty.medium.as_deref().unwrap_or_default().is_empty();
        let limit = Quantity::of(empty.size_limit.as_ref().filter(|_| on_disk)?).ok()?;
        (!limit.is_zero()).then_some((volume.name.as_str(), limit))
    })
}

fn container_limit(container: &v1::Container) -> Option<Quantity> {
    amount(limits(container), RESOURCE)
}

/// The sum over main containers and sidecars, or an init container with the sidecars before it, whichever is more. A container
/// without a limit adds nothing; a pod without any has none.
fn pod_limit(spec: &v1::PodSpec) -> Option<Quantity> {
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.clone().find_map(container_limit)?;
    let own = |container: &v1::Container| container_limit(container).unwrap_or(Quantity::ZERO);
    let mut running = spec.containers.iter().fold(Quantity::ZERO, |sum, c| sum.plus(&own(c)));
    let (mut sidecars, mut peak) = (Quantity::ZERO, Quantity::ZERO);
    for container in spec.init_containers.iter().flatten() {
        let now = sidecars.plus(&own(container));
        if is_sidecar(container) {
            running = running.plus(&own(container));
            sidecars = now;
        }
        peak = peak.max(now);
    }
    Some(running.max(peak))
}
