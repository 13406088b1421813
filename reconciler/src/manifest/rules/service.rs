//! Checks of Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::services::{NODE_PORTS, is_headless};

/// How long a client may keep its endpoint: a day.
const AFFINITY_MAX_SECONDS: i32 = 86_400;

/// Checks a Service whose defaults are filled in.
pub(crate) fn check(service: &v1::Service, issues: &mut Issues) {
    let path = FieldPath::of("spec");
    let name = service.metadata.name.as_deref().unwrap_or_default();
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.contains('.') || name.len() > 63 {
        let detail = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                      alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', \
                      regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
        issues.invalid(&FieldPath::of("metadata").field("name"), name, detail);
    }
    let Some(spec) = &service.spec else {
        issues.required(&path, "");
        return;
    };
    check_type(spec, &path, issues);
    check_addresses(spec, &path, issues);
    check_ports(spec, &path, issues);
    check_affinity(spec, &path, issues);
    check_policies(spec, &path, issues);
    if spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) {
        let hint = "name the labels of the pods behind it; endpoints that are no pods of this node are not supported";
        issues.required(&path.field("selector"), "").hint(hint);
    }
    for (key, value) in spec.selector.iter().flatten() {
        let path = path.field("selector").key(key);
        issues.all(&path, key, names::qualified(key));
        issues.all(&path, value, names::label_value(value));
    }
}

fn check_type(spec: &v1::ServiceSpec, path: &FieldPath, issues: &mut Issues) {
    let path = path.field("type");
    match spec.type_.as_deref().unwrap_or_default() {
        "ClusterIP" | "NodePort" => {}
        kind => {
            let hint = match kind {
                "LoadBalancer" => {
                    "a node without a cluster has no load balancer: use NodePort, or `hostPort` in the pod for a port of your choice"
                }
                "ExternalName" => "use the name itself, or `hostAliases` in the pod",
                _ => "the default is ClusterIP",
            };
            issues.not_supported(&path, kind, &["ClusterIP", "NodePort"]).hint(hint);
        }
    }
}

fn check_addresses(spec: &v1::ServiceSpec, path: &FieldPath, issues: &mut Issues) {
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    let at = path.field("clusterIP");
    let detail = "must be a valid IPv4 address, \"None\", or empty to have one allocated";
    if !matches!(first, "" | "None") && first.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()).eq(&false) {
        issues.invalid(&at, first, detail);
    }
    if is_headless(spec) && spec.type_.as_deref() == Some("NodePort") {
        issues.invalid(&at, first, "may not be set to 'None' for NodePort services");
    }
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    if all.len() > 1 {
        issues.invalid(
            &path.field("clusterIPs").index(1),
            all[1].as_str(),
            "Services have one address, of IPv4",
        );
    }
    if let Some(other) = all.first().filter(|other| *other != first) {
        let path = path.field("clusterIPs").index(0);
        issues.invalid(&path, other.as_str(), "first value must match `clusterIP`");
    }
    for (i, family) in spec.ip_families.iter().flatten().enumerate() {
        issues.one_of(&path.field("ipFamilies").index(i), Some(family), &["IPv4"]);
    }
    let policies = ["PreferDualStack", "SingleStack"];
    issues.one_of(&path.field("ipFamilyPolicy"), spec.ip_family_policy.as_deref(), &policies);
}

fn check_ports(spec: &v1::ServiceSpec, path: &FieldPath, issues: &mut Issues) {
    let path = path.field("ports");
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !is_headless(spec) {
        issues.required(&path, "");
    }
    let (mut known, mut named, mut on_node) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        match port.name.as_deref().unwrap_or_default() {
            "" if ports.len() > 1 => {
                issues.required(&path.field("name"), "");
            }
            "" => {}
            name => {
                issues.all(&path.field("name"), name, names::dns_label(name));
                if !named.insert(name) {
                    issues.duplicate(&path.field("name"), name);
                }
            }
        }
        if let Some(detail) = names::port(port.port) {
            issues.invalid(&path.field("port"), i64::from(port.port), detail);
        }
        issues.one_of(&path.field("protocol"), Some(protocol), &["SCTP", "TCP", "UDP"]);
        match &port.target_port {
            Some(IntOrString::Int(number)) => {
                if let Some(detail) = names::port(*number) {
                    issues.invalid(&path.field("targetPort"), i64::from(*number), detail);
                }
            }
            Some(IntOrString::String(name)) => {
                issues.all(&path.field("targetPort"), name, names::port_name(name));
            }
            None => {}
        }
        if !known.insert((protocol, port.port)) {
            issues.duplicate(&path, format!("{}/{protocol}", port.port).as_str());
        }
        let Some(node_port) = port.node_port.filter(|number| *number != 0) else { continue };
        let at = path.field("nodePort");
        if spec.type_.as_deref() == Some("ClusterIP") {
            issues.forbidden(&at, "may not be used when `type` is 'ClusterIP'");
        } else if !u16::try_from(node_port).is_ok_and(|number| NODE_PORTS.contains(&number)) {
            let detail = "provided port is not in the valid range. The range of valid ports is 30000-32767";
            issues.invalid(&at, i64::from(node_port), detail);
        } else if !on_node.insert((protocol, node_port)) {
            issues.duplicate(&at, i64::from(node_port));
        }
    }
}

fn check_affinity(spec: &v1::ServiceSpec, path: &FieldPath, issues: &mut Issues) {
    issues.one_of(&path.field("sessionAffinity"), spec.session_affinity.as_deref(), &["ClientIP", "None"]);
    let at = path.field("sessionAffinityConfig");
    let Some(config) = &spec.session_affinity_config else { return };
    if spec.session_affinity.as_deref() == Some("None") {
        issues.forbidden(&at, "must not be set when session affinity is None");
    }
    let seconds = config.client_ip.as_ref().and_then(|client| client.timeout_seconds);
    if let Some(seconds) = seconds.filter(|seconds| !(1..=AFFINITY_MAX_SECONDS).contains(seconds)) {
        let detail = format!("must be greater than 0 and less than or equal to {AFFINITY_MAX_SECONDS}");
        issues.invalid(&at.field("clientIP").field("timeoutSeconds"), i64::from(seconds), &detail);
    }
}

/// All pods are on this node, so that every policy is kept.
fn check_policies(spec: &v1::ServiceSpec, path: &FieldPath, issues: &mut Issues) {
    let policies = ["Cluster", "Local"];
    issues.one_of(&path.field("internalTrafficPolicy"), spec.internal_traffic_policy.as_deref(), &policies);
    let external = spec.external_traffic_policy.as_deref().filter(|policy| !policy.is_empty());
    let at = path.field("externalTrafficPolicy");
    issues.one_of(&at, external, &policies);
    if let Some(policy) = external.filter(|_| spec.type_.as_deref() == Some("ClusterIP")) {
        issues.invalid(&at, policy, "may only be set for externally-accessible services");
    }
    let distribution = spec.traffic_distribution.as_deref();
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    issues.one_of(&path.field("trafficDistribution"), distribution, &distributions);
}
