//! A node, as `kubectl describe node` shows it.

use berth_reconciler::status::has_ended;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::pod::{labels, time};
use super::text::Text;
use crate::api::table::{age, summary};

/// Writes a node and its pods.
pub fn describe(text: &mut Text, node: &Node, pods: &[Pod]) {
    let status = node.status.clone().unwrap_or_default();
    text.field("Name", node.metadata.name.as_deref().unwrap_or_default());
    labels(text, "Labels", "=", node.metadata.labels.as_ref());
    labels(text, "Annotations", ": ", node.metadata.annotations.as_ref());
    text.field("CreationTimestamp", time(node.metadata.creation_timestamp.as_ref()));
    let unschedulable = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    text.field("Unschedulable", unschedulable);
    let mut rows = vec![
        ["Type", "Status", "LastHeartbeatTime", "LastTransitionTime", "Reason", "Message"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for c in status.conditions.iter().flatten() {
        rows.push(vec![
            c.type_.clone(),
            c.status.clone(),
            time(c.last_heartbeat_time.as_ref()),
            time(c.last_transition_time.as_ref()),
            c.reason.clone().unwrap_or_default(),
            c.message.clone().unwrap_or_default(),
        ]);
    }
    text.block("Conditions", |text| text.table(&rows));
    text.block("Addresses", |text| {
        for address in status.addresses.iter().flatten() {
            text.field(&address.type_, &address.address);
        }
    });
    quantities(text, "Capacity", status.capacity.as_ref());
    quantities(text, "Allocatable", status.allocatable.as_ref());
    let info = status.node_info.unwrap_or_default();
    text.block("System Info", |text| {
        text.field("Machine ID", &info.machine_id);
        text.field("System UUID", &info.system_uuid);
        text.field("Boot ID", &info.boot_id);
        text.field("Kernel Version", &info.kernel_version);
        text.field("OS Image", &info.os_image);
        text.field("Operating System", &info.operating_system);
        text.field("Architecture", &info.architecture);
        text.field("Container Runtime Version", &info.container_runtime_version);
        text.field("Kubelet Version", &info.kubelet_version);
    });
    self::pods(text, pods);
}

fn quantities(text: &mut Text, name: &str, all: Option<&BTreeMap<String, Quantity>>) {
    text.block(name, |text| {
        for (resource, quantity) in all.into_iter().flatten() {
            text.field(resource, &quantity.0);
        }
    });
}

fn pods(text: &mut Text, pods: &[Pod]) {
    text.field(
        "Non-terminated Pods",
        format!("({} in total)", pods.iter().filter(|pod| !ended(pod)).count()),
    );
    let mut rows = vec![["Namespace", "Name", "Status", "Age"].map(str::to_owned).to_vec()];
    for pod in pods.iter().filter(|pod| !ended(pod)) {
        rows.push(vec![
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
            summary(pod).status,
            age(pod.metadata.creation_timestamp.as_ref()),
        ]);
    }
    for line in crate::cli::output::Columns::plain().format(&rows).lines() {
        text.line(format!("  {line}"));
    }
}

fn ended(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(has_ended)
}
