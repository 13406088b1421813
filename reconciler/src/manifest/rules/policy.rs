//! Checks of NetworkPolicies, as `kubernetes/pkg/apis/networking/validation` has them, and of the Namespaces that they
//! select.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::claim::check_selector;
use super::names;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

/// Checks a Namespace.
pub(crate) fn check_namespace(namespace: &v1::Namespace, issues: &mut Issues) {
    let meta = FieldPath::of("metadata");
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    if names::dns_subdomain(name).is_empty() {
        issues.all(&meta.field("name"), name, names::dns_label(name));
    }
    if namespace.metadata.namespace.as_ref().is_some_and(|of| !of.is_empty()) {
        issues.forbidden(&meta.field("namespace"), "a Namespace is in no namespace").hint("remove the field");
    }
}

/// Checks a NetworkPolicy whose defaults are filled in.
pub(crate) fn check(policy: &NetworkPolicy, issues: &mut Issues) {
    let path = FieldPath::of("spec");
    let Some(spec) = &policy.spec else {
        issues
            .required(&path, "")
            .hint("`spec: { podSelector: {} }` lets nothing in to any pod of the namespace");
        return;
    };
    if let Some(selector) = &spec.pod_selector {
        check_selector(selector, &path.field("podSelector"), issues);
    }
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        let path = path.field("ingress").index(i);
        check_ports(rule.ports.as_deref(), &path.field("ports"), issues);
        check_peers(rule.from.as_deref(), &path.field("from"), issues);
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        let path = path.field("egress").index(i);
        check_ports(rule.ports.as_deref(), &path.field("ports"), issues);
        check_peers(rule.to.as_deref(), &path.field("to"), issues);
    }
    let (at, types) = (path.field("policyTypes"), spec.policy_types.as_deref().unwrap_or_default());
    if types.len() > 2 {
        issues.invalid(&at, types.join(", ").as_str(), "may not specify more than two policyTypes");
        return;
    }
    for (i, kind) in types.iter().enumerate() {
        issues.one_of(&at.index(i), Some(kind), &["Egress", "Ingress"]);
    }
}

fn check_ports(ports: Option<&[NetworkPolicyPort]>, path: &FieldPath, issues: &mut Issues) {
    for (i, port) in ports.into_iter().flatten().enumerate() {
        let path = path.index(i);
        issues.one_of(&path.field("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
        let (at, at_end) = (path.field("port"), path.field("endPort"));
        match (&port.port, port.end_port) {
            (None, Some(_)) => {
                issues.required(&at, "must be specified when `endPort` is set");
            }
            (None, None) => {}
            (Some(IntOrString::Int(first)), end) => {
                if let Some(detail) = names::port(*first) {
                    issues.invalid(&at, i64::from(*first), detail);
                }
                let Some(end) = end else { continue };
                if end < *first {
                    issues.invalid(&at_end, i64::from(end), "must be greater than or equal to `port`");
                } else if let Some(detail) = names::port(end) {
                    issues.invalid(&at_end, i64::from(end), detail);
                }
            }
            (Some(IntOrString::String(name)), end) => {
                if let Some(end) = end {
                    let detail = "may not be specified when `port` is non-numeric";
                    issues.invalid(&at_end, i64::from(end), detail);
                }
                issues.all(&at, name, names::port_name(name));
            }
        }
    }
}

fn check_peers(peers: Option<&[NetworkPolicyPeer]>, path: &FieldPath, issues: &mut Issues) {
    for (i, peer) in peers.into_iter().flatten().enumerate() {
        let path = path.index(i);
        let selectors =
            [("podSelector", &peer.pod_selector), ("namespaceSelector", &peer.namespace_selector)];
        let mut selects = false;
        for (field, selector) in selectors {
            let Some(selector) = selector else { continue };
            selects = true;
            check_selector(selector, &path.field(field), issues);
        }
        match &peer.ip_block {
            Some(_) if selects => {
                issues.forbidden(&path, "may not specify both ipBlock and another peer");
            }
            Some(block) => check_block(block, &path.field("ipBlock"), issues),
            None if !selects => {
                issues.required(&path, "must specify a peer");
            }
            None => {}
        }
    }
}

/// An address and the length of its prefix, if the text is a range in CIDR notation.
fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let plain = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix: u8 = prefix.parse().ok().filter(|_| plain)?;
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

/// The network's bits, as those of an IPv6 address, without those of hosts.
fn bits((address, prefix): (IpAddr, u8)) -> u128 {
    let (bits, width) = match address {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, prefix),
        IpAddr::V6(ip) => (u128::from(ip), prefix),
    };
    let hosts = u128::MAX.checked_shr(u32::from(width)).unwrap_or(0);
    bits & !hosts
}

fn check_block(block: &IPBlock, path: &FieldPath, issues: &mut Issues) {
    const FORM: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let at = path.field("cidr");
    if block.cidr.is_empty() {
        issues.required(&at, "");
        return;
    }
    let Some(whole) = cidr(&block.cidr) else {
        issues.invalid(&at, block.cidr.as_str(), FORM);
        return;
    };
    for (i, text) in block.except.iter().flatten().enumerate() {
        let at = path.field("except").index(i);
        let Some(part) = cidr(text) else {
            issues.invalid(&at, text.as_str(), FORM);
            continue;
        };
        let inside = part.0.is_ipv4() == whole.0.is_ipv4()
            && part.1 > whole.1
            && bits((part.0, whole.1)) == bits(whole);
        if !inside {
            let detail = format!("must be a strict subset of `cidr` {}", block.cidr);
            issues.invalid(&at, text.as_str(), &detail);
        }
    }
}
