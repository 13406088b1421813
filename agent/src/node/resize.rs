//! Changing cpu and memory of running pods: whether the node can give it, and the cgroups that then follow.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_reconciler::node::{ContainerState, Failure};
use berth_reconciler::pod::Pod;
use berth_reconciler::resources::{self, Amounts};
use berth_reconciler::status::has_ended;
use berth_runtime::cgroup;
use k8s_openapi::api::core::v1;

use super::AgentNode;
use super::entry::{Entry, write_json};
use super::kubepods::unified;
use crate::oci::{cgroup_resources, memory_qos};

type Resources = BTreeMap<String, v1::ResourceRequirements>;

fn failure(reason: &str, message: String) -> Failure {
    Failure { reason: reason.into(), message }
}

/// Grants what the pod's spec asks for, if the node has it, and makes the pod's cgroup wide enough for it.
pub(super) fn allocate(node: &AgentNode, pod: &Arc<Pod>) -> Result<(), Failure> {
    let entry = node.entry(pod);
    admit(node, &entry, pod)?;
    let granted: Resources =
        pod.all_containers().map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect();
    let path = entry.dir.join("resources.json");
    write_json(&path, &granted).map_err(|e| failure("Error", format!("write {}: {e}", path.display())))?;
    entry.state().allocated = granted;
    fit(node, &entry, pod).map_err(|e| failure("Error", format!("resize the pod's cgroup: {e}")))?;
    node.refresh_volumes(pod);
    Ok(())
}

/// Whether the node has what the pod asks for more than it has. What it asks for less is always granted.
fn admit(node: &AgentNode, entry: &Entry, pod: &Pod) -> Result<(), Failure> {
    let asks = resources::pod_requests(pod.spec());
    let has = resources::pod_requests(&granted(entry, pod));
    let others = requests_of_others(node, pod.uid());
    let capacity = node.facts.for_pod(&[]);
    let checks = [
        ("cpu", "m", asks.cpu_milli, has.cpu_milli, others.cpu_milli, capacity.allocatable_cpu_milli),
        ("memory", "", asks.memory, has.memory, others.memory, capacity.allocatable_memory),
    ];
    for (name, unit, asks, has, others, capacity) in checks {
        if asks <= has {
            continue;
        }
        if asks > capacity {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {asks}{unit}, capacity: {capacity}{unit}"
            );
            return Err(failure("Infeasible", message));
        }
        if asks.saturating_add(others) > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {asks}{unit}, used: {others}{unit}, capacity: {capacity}{unit}"
            );
            return Err(failure("Deferred", message));
        }
    }
    Ok(())
}

/// What all other pods that have not ended were granted.
fn requests_of_others(node: &AgentNode, uid: &str) -> Amounts {
    let mut sum = Amounts::default();
    let views = node.reconciler.get().map(|r| r.pods()).unwrap_or_default();
    for view in views.iter().filter(|view| view.pod.uid() != uid) {
        if has_ended(&view.status) {
            continue;
        }
        let asks = match node.find(view.pod.uid()) {
            Some(entry) => resources::pod_requests(&granted(&entry, &view.pod)),
            None => resources::pod_requests(view.pod.spec()),
        };
        sum.cpu_milli = sum.cpu_milli.saturating_add(asks.cpu_milli);
        sum.memory = sum.memory.saturating_add(asks.memory);
    }
    sum
}

/// The spec with what was granted: by the last resize, else to the newest instance when it was started.
fn granted(entry: &Entry, pod: &Pod) -> v1::PodSpec {
    let state = entry.state();
    let started_with = |name: &str| {
        let of_name = state.instances.iter().filter(|i| i.record.name == name);
        of_name.max_by_key(|i| i.record.attempt)?.record.resources.as_ref()
    };
    resources::with_resources(pod.spec(), |name| state.allocated.get(name).or_else(|| started_with(name)))
}

/// The spec with what the running containers have, and what was granted to the others.
fn actual(entry: &Entry, pod: &Pod) -> v1::PodSpec {
    let granted = granted(entry, pod);
    let state = entry.state();
    resources::with_resources(&granted, |name| {
        let runs = |i: &&super::entry::Instance| {
            i.record.name == name && matches!(i.record.state, ContainerState::Running { .. })
        };
        state.instances.iter().find(runs)?.record.resources.as_ref()
    })
}

/// What the pod's cgroup is to be limited to: what was granted, and what still runs with more.
pub(super) fn wanted(entry: &Entry, pod: &Pod) -> resources::CpuMem {
    let granted = resources::pod_values(&granted(entry, pod));
    granted.widest(&resources::pod_values(&actual(entry, pod)))
}

/// Makes the pod's cgroup as wide as [`wanted`].
pub(super) fn fit(node: &AgentNode, entry: &Entry, pod: &Pod) -> Result<(), cgroup::Error> {
    node.kubepods.limit(pod, &wanted(entry, pod))
}

/// [`fit`] for a pod that has been resized; what goes wrong is told in the log only.
pub(super) fn settle(node: &AgentNode, entry: &Entry, pod: &Pod) {
    if entry.state().allocated.is_empty() {
        return;
    }
    if let Err(error) = fit(node, entry, pod) {
        tracing::warn!(pod = pod.full_name(), %error, "cannot fit the pod's cgroup to its containers");
    }
}

/// Gives a running container's cgroup other values. A memory limit below what is in use is refused: the kernel would
/// have to kill for it.
pub(super) fn resize_container(
    node: &AgentNode,
    pod: &Arc<Pod>,
    id: &str,
    resources: &v1::ResourceRequirements,
) -> Result<(), Failure> {
    let failed = |what: String| failure("Error", what);
    let entry = node.entry(pod);
    let mut instance = entry.instance(id).ok_or_else(|| failed("the container is not running".into()))?;
    let name = instance.record.name.clone();
    let container = v1::Container { resources: Some(resources.clone()), ..Default::default() };
    let values = resources::container_values(pod.spec(), &container);
    let mut limits = cgroup_resources(&values, node.config.cfs);
    if values.memory_limit.is_some() {
        limits["memory"]["checkBeforeUpdate"] = true.into();
    }
    let v2 = node.cgroups.version() == cgroup::Version::V2;
    limits["unified"] = unified(memory_qos(&node.config, v2, pod, &values, node.facts.memory));
    let limits = serde_json::from_value(limits).map_err(|e| failed(format!("resources of {name}: {e}")))?;
    node.cgroups
        .update(&instance.cgroup, &limits)
        .map_err(|e| failed(format!("resize container {name}: {e}")))?;
    instance.record.resources = Some(resources.clone());
    entry.save_instance(&instance).map_err(|e| failed(format!("record the resources of {name}: {e}")))?;
    if let Some(known) = entry.state().instances.iter_mut().find(|i| i.record.id == id) {
        known.record.resources = Some(resources.clone());
    }
    settle(node, &entry, pod);
    Ok(())
}
