//! A Service, as `kubectl describe service` shows it.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::labels;
use super::text::Text;
use crate::api::table::ready_members;

/// Writes a Service without its events.
pub fn describe(text: &mut Text, service: &Service, slices: &[EndpointSlice]) {
    let spec = service.spec.clone().unwrap_or_default();
    text.field("Name", service.metadata.name.as_deref().unwrap_or_default());
    text.field("Namespace", service.metadata.namespace.as_deref().unwrap_or_default());
    labels(text, "Labels", "=", service.metadata.labels.as_ref());
    labels(text, "Annotations", ": ", service.metadata.annotations.as_ref());
    let selector: Vec<String> = spec.selector.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    text.field("Selector", selector.join(","));
    text.field("Type", spec.type_.as_deref().unwrap_or_default());
    text.optional("IP Family Policy", spec.ip_family_policy.as_deref());
    text.field("IP Families", spec.ip_families.unwrap_or_default().join(","));
    text.field("IP", spec.cluster_ip.as_deref().unwrap_or_default());
    text.field("IPs", spec.cluster_ips.unwrap_or_default().join(","));
    if let Some(ips) = &spec.external_ips {
        text.field("External IPs", ips.join(","));
    }
    text.optional("External Name", spec.external_name.as_deref());
    for port in spec.ports.iter().flatten() {
        describe_port(text, port, slices);
    }
    text.field("Session Affinity", spec.session_affinity.as_deref().unwrap_or_default());
    text.optional("External Traffic Policy", spec.external_traffic_policy.as_deref());
    text.optional("Internal Traffic Policy", spec.internal_traffic_policy.as_deref());
}

fn describe_port(text: &mut Text, port: &ServicePort, slices: &[EndpointSlice]) {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let name = port.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("<unset>");
    text.field("Port", format!("{name}  {}/{protocol}", port.port));
    match &port.target_port {
        Some(IntOrString::Int(number)) => text.field("TargetPort", format!("{number}/{protocol}")),
        Some(IntOrString::String(target)) => text.field("TargetPort", format!("{target}/{protocol}")),
        None => {}
    }
    if let Some(number) = port.node_port.filter(|number| *number != 0) {
        text.field("NodePort", format!("{name}  {number}/{protocol}"));
    }
    text.field("Endpoints", ready_members(slices, port.name.as_deref().unwrap_or_default()));
}
