//! The columns of every kind but pods, as kubernetes/pkg/printers has them.

use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::duration::since;
use super::{Column, age, or_none};

pub const NODE: &[Column] = &[
    ("Name", "string", "name", 0),
    ("Status", "string", "", 0),
    ("Roles", "string", "", 0),
    ("Age", "string", "", 0),
    ("Version", "string", "", 0),
    ("Internal-IP", "string", "", 1),
    ("External-IP", "string", "", 1),
    ("OS-Image", "string", "", 1),
    ("Kernel-Version", "string", "", 1),
    ("Container-Runtime", "string", "", 1),
];

pub const EVENT: &[Column] = &[
    ("Last Seen", "string", "", 0),
    ("Type", "string", "", 0),
    ("Reason", "string", "", 0),
    ("Object", "string", "", 0),
    ("Subobject", "string", "", 1),
    ("Source", "string", "", 1),
    ("Message", "string", "", 0),
    ("First Seen", "string", "", 1),
    ("Count", "string", "", 1),
    ("Name", "string", "name", 1),
];

pub const CONFIG_MAP: &[Column] =
    &[("Name", "string", "name", 0), ("Data", "string", "", 0), ("Age", "string", "", 0)];

pub const SECRET: &[Column] = &[
    ("Name", "string", "name", 0),
    ("Type", "string", "", 0),
    ("Data", "string", "", 0),
    ("Age", "string", "", 0),
];

pub const NAMESPACE: &[Column] =
    &[("Name", "string", "name", 0), ("Status", "string", "", 0), ("Age", "string", "", 0)];

/// The cells of a node's row.
pub fn node(node: &Node) -> Vec<Value> {
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    let mut words = vec![match ready.map(|c| c.status.as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) {
        words.push("SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = status.addresses.iter().flatten().find(|a| a.type_ == kind);
        or_none(found.map(|a| a.address.as_str()))
    };
    let unknown = |text: &str| json!(if text.is_empty() { "<unknown>" } else { text });
    vec![
        json!(node.metadata.name),
        json!(words.join(",")),
        json!(roles(node)),
        json!(age(node.metadata.creation_timestamp.as_ref())),
        json!(info.kubelet_version),
        address("InternalIP"),
        address("ExternalIP"),
        unknown(&info.os_image),
        unknown(&info.kernel_version),
        unknown(&info.container_runtime_version),
    ]
}

fn roles(node: &Node) -> String {
    let labels = node.metadata.labels.iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ => (key == "kubernetes.io/role" && !value.is_empty()).then_some(value.as_str()),
        })
        .collect();
    roles.sort_unstable();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

/// What events are ordered by: when they were seen last.
pub fn event_order(event: &Event) -> String {
    last_seen(event).map(|time| time.0.to_string()).unwrap_or_default()
}

fn last_seen(event: &Event) -> Option<Time> {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| Time(t.0));
    let first = event.event_time.as_ref().map(|t| Time(t.0));
    series.or(event.last_timestamp.clone()).or(event.first_timestamp.clone()).or(first)
}

/// The cells of an event's row.
pub fn event(event: &Event) -> Vec<Value> {
    let seen = |time: Option<Time>| time.map_or_else(|| "<unknown>".to_owned(), |time| since(time.0));
    let about = &event.involved_object;
    let kind = about.kind.clone().unwrap_or_default().to_lowercase();
    let source = event.source.clone().unwrap_or_default();
    let parts: Vec<String> =
        [source.component, source.host].into_iter().flatten().filter(|part| !part.is_empty()).collect();
    let first = event.first_timestamp.clone().or(event.event_time.as_ref().map(|t| Time(t.0)));
    let count = event.series.as_ref().and_then(|s| s.count).or(event.count).unwrap_or(1);
    vec![
        json!(seen(last_seen(event))),
        json!(event.type_),
        json!(event.reason),
        json!(format!("{kind}/{}", about.name.clone().unwrap_or_default())),
        json!(about.field_path.clone().unwrap_or_default()),
        json!(parts.join(", ")),
        json!(event.message.as_deref().unwrap_or_default().trim()),
        json!(seen(first)),
        json!(count.to_string()),
        json!(event.metadata.name),
    ]
}

/// The cells of a ConfigMap's row.
pub fn config_map(map: &ConfigMap) -> Vec<Value> {
    let count = map.data.iter().flatten().count() + map.binary_data.iter().flatten().count();
    vec![
        json!(map.metadata.name),
        json!(count.to_string()),
        json!(age(map.metadata.creation_timestamp.as_ref())),
    ]
}

/// The cells of a Secret's row.
pub fn secret(secret: &Secret) -> Vec<Value> {
    vec![
        json!(secret.metadata.name),
        json!(secret.type_.as_deref().unwrap_or("Opaque")),
        json!(secret.data.iter().flatten().count().to_string()),
        json!(age(secret.metadata.creation_timestamp.as_ref())),
    ]
}

/// The cells of a namespace's row.
pub fn namespace(namespace: &Namespace) -> Vec<Value> {
    let phase =
        namespace.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_else(|| "Active".to_owned());
    vec![
        json!(namespace.metadata.name),
        json!(phase),
        json!(age(namespace.metadata.creation_timestamp.as_ref())),
    ]
}
