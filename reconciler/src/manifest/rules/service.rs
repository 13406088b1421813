//! Checks of Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::services::{IpFamily, NODE_PORTS, is_alias, is_headless};

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
    if spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) && !is_alias(spec) {
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
    let at = path.field("type");
    match spec.type_.as_deref().unwrap_or_default() {
        "ClusterIP" | "NodePort" => {}
        "ExternalName" => check_alias(spec, path, issues),
        kind => {
            let hint = match kind {
                "LoadBalancer" => {
                    "a node without a cluster has no load balancer: use NodePort, `externalIPs`, or `hostPort` in the pod for a port of your choice"
                }
                _ => "the default is ClusterIP",
            };
            issues.not_supported(&at, kind, &["ClusterIP", "ExternalName", "NodePort"]).hint(hint);
        }
    }
}

fn check_alias(spec: &v1::ServiceSpec, path: &FieldPath, issues: &mut Issues) {
    for (field, is_set) in [
        ("clusterIP", spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty())),
        ("ipFamilies", spec.ip_families.as_ref().is_some_and(|families| !families.is_empty())),
        ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
    ] {
        if is_set {
            issues.forbidden(&path.field(field), "may not be set for ExternalName services");
        }
    }
    let at = path.field("externalName");
    // A dot at the end says that the name is whole, as everywhere in DNS.
    match spec.external_name.as_deref().map(|name| name.strip_suffix('.').unwrap_or(name)) {
        None | Some("") => {
            issues.required(&at, "");
        }
        Some(name) => issues.all(&at, name, names::dns_subdomain(name)),
    }
}

fn check_addresses(spec: &v1::ServiceSpec, path: &FieldPath, issues: &mut Issues) {
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    let at = path.field("clusterIP");
    if !matches!(first, "" | "None") && first.parse::<IpAddr>().is_err() {
        issues.invalid(&at, first, "must be a valid IP address, \"None\", or empty to have one allocated");
    }
    if is_headless(spec) && spec.type_.as_deref() == Some("NodePort") {
        issues.invalid(&at, first, "may not be set to 'None' for NodePort services");
    }
    let at = path.field("clusterIPs");
    if let Some(other) = all.first().filter(|other| *other != first) {
        issues.invalid(&at.index(0), other.as_str(), "first value must match `clusterIP`");
    }
    for (i, text) in all.iter().enumerate() {
        let headless = text == "None";
        if headless && (i > 0 || all.len() > 1) {
            issues.invalid(&at.index(i), text.as_str(), "'None' must be the first and only value");
        } else if !headless && i > 0 && text.parse::<IpAddr>().is_err() {
            issues.invalid(&at.index(i), text.as_str(), "must be a valid IP address");
        }
    }
    let ips: Vec<IpAddr> = all.iter().filter_map(|text| text.parse().ok()).collect();
    if all.len() > 2 {
        issues.invalid(&at, all.join(",").as_str(), "may only hold up to 2 values");
    } else if let [one, other] = ips[..]
        && IpFamily::of(one) == IpFamily::of(other)
    {
        let detail = "may specify no more than one IP for each IP family";
        issues.invalid(&at, all.join(",").as_str(), detail);
    }
    check_families(spec, &ips, path, issues);
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        let at = path.field("externalIPs").index(i);
        match text.parse::<IpAddr>() {
            Err(_) => {
                issues.invalid(
                    &at,
                    text.as_str(),
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                );
            }
            Ok(ip) => {
                if let Some(detail) = special(ip) {
                    issues.invalid(&at, text.as_str(), detail);
                }
            }
        }
    }
}

/// Why an address cannot be led anywhere (`ValidateNonSpecialIP`).
fn special(ip: IpAddr) -> Option<&'static str> {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if is_link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if ip.is_multicast() {
        Some("may not be a multicast address")
    } else {
        None
    }
}

fn check_families(spec: &v1::ServiceSpec, ips: &[IpAddr], path: &FieldPath, issues: &mut Issues) {
    let at = path.field("ipFamilies");
    let names = spec.ip_families.as_deref().unwrap_or_default();
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    issues.one_of(&path.field("ipFamilyPolicy"), spec.ip_family_policy.as_deref(), &policies);
    if names.len() > 2 {
        issues.invalid(&at, names.join(",").as_str(), "may only hold up to 2 values");
        return;
    }
    for (i, name) in names.iter().enumerate() {
        issues.one_of(&at.index(i), Some(name), &["IPv4", "IPv6"]);
        if names[..i].contains(name) {
            issues.duplicate(&at.index(i), name.as_str());
        }
        if let (Some(ip), Some(family)) = (ips.get(i), IpFamily::named(name))
            && IpFamily::of(*ip) != family
        {
            let detail = format!("expected an {name} value as indicated by `ipFamilies[{i}]`");
            issues.invalid(&path.field("clusterIPs").index(i), ip.to_string().as_str(), &detail);
        }
    }
    if spec.ip_family_policy.as_deref() == Some("SingleStack") {
        for (several, of) in [(names.len() > 1, "IP families"), (ips.len() > 1, "cluster IPs")] {
            if several {
                let detail = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {of} are specified"
                );
                issues.invalid(&path.field("ipFamilyPolicy"), "SingleStack", &detail);
            }
        }
    }
}

fn check_ports(spec: &v1::ServiceSpec, path: &FieldPath, issues: &mut Issues) {
    let path = path.field("ports");
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !is_headless(spec) && !is_alias(spec) {
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
        if spec.type_.as_deref() != Some("NodePort") {
            let kind = spec.type_.as_deref().unwrap_or_default();
            issues.forbidden(&at, &format!("may not be used when `type` is '{kind}'"));
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
    let is_reachable = spec.type_.as_deref() == Some("NodePort")
        || spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    if let Some(policy) = external.filter(|_| !is_reachable) {
        issues.invalid(&at, policy, "may only be set for externally-accessible services");
    }
    let distribution = spec.traffic_distribution.as_deref();
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    issues.one_of(&path.field("trafficDistribution"), distribution, &distributions);
}
