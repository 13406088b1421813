//! A NetworkPolicy, as `kubectl describe networkpolicy` shows it.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::labels;
use super::text::Text;
use crate::api::table::selector;

/// Writes a NetworkPolicy without its events.
pub fn describe(text: &mut Text, policy: &NetworkPolicy) {
    let spec = policy.spec.clone().unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    let has = |word: &str| types.iter().any(|kind| kind == word);
    text.field("Name", policy.metadata.name.as_deref().unwrap_or_default());
    text.field("Namespace", policy.metadata.namespace.as_deref().unwrap_or_default());
    labels(text, "Labels", "=", policy.metadata.labels.as_ref());
    labels(text, "Annotations", ": ", policy.metadata.annotations.as_ref());
    text.block("Spec", |text| {
        let all = "<none> (Allowing the specific traffic to all pods in this namespace)";
        text.field("PodSelector", words(spec.pod_selector.as_ref(), all));
        let ingress = spec.ingress.iter().flatten();
        let ingress: Vec<_> = ingress.map(|rule| (rule.ports.as_deref(), rule.from.as_deref())).collect();
        let egress = spec.egress.iter().flatten();
        let egress: Vec<_> = egress.map(|rule| (rule.ports.as_deref(), rule.to.as_deref())).collect();
        for (word, way, rules) in [("ingress", "From", ingress), ("egress", "To", egress)] {
            let kind = if word == "ingress" { "Ingress" } else { "Egress" };
            if !has(kind) {
                text.line(format!("Not affecting {word} traffic"));
                continue;
            }
            text.block(&format!("Allowing {word} traffic"), |text| describe_rules(text, word, way, &rules));
        }
        text.field("Policy Types", types.join(", "));
    });
}

type Rule<'a> = (Option<&'a [NetworkPolicyPort]>, Option<&'a [NetworkPolicyPeer]>);

fn describe_rules(text: &mut Text, word: &str, way: &str, rules: &[Rule<'_>]) {
    if rules.is_empty() {
        text.line(format!("<none> (Selected pods are isolated for {word} connectivity)"));
    }
    for (number, (ports, peers)) in rules.iter().enumerate() {
        if number > 0 {
            text.line("----------");
        }
        match ports.unwrap_or_default() {
            [] => text.field("To Port", "<any> (traffic allowed to all ports)"),
            ports => ports.iter().for_each(|one| text.field("To Port", port(one))),
        }
        match peers.unwrap_or_default() {
            [] => text.field(way, "<any> (traffic not restricted by peer)"),
            peers => peers.iter().for_each(|one| peer(text, way, one)),
        }
    }
}

fn port(port: &NetworkPolicyPort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match (&port.port, port.end_port) {
        (None, _) => format!("<any>/{protocol}"),
        (Some(IntOrString::Int(first)), Some(last)) => format!("{first}-{last}/{protocol}"),
        (Some(IntOrString::Int(number)), None) => format!("{number}/{protocol}"),
        (Some(IntOrString::String(name)), _) => format!("{name}/{protocol}"),
    }
}

fn peer(text: &mut Text, way: &str, peer: &NetworkPolicyPeer) {
    text.block(way, |text| {
        if let Some(block) = &peer.ip_block {
            text.field("IPBlock", &block.cidr);
            text.field("Except", block.except.clone().unwrap_or_default().join(", "));
        }
        if let Some(namespaces) = &peer.namespace_selector {
            text.field("NamespaceSelector", words(Some(namespaces), "<none> (all namespaces)"));
        }
        if let Some(pods) = &peer.pod_selector {
            text.field("PodSelector", words(Some(pods), "<none> (all pods)"));
        }
    });
}

fn words(of: Option<&LabelSelector>, everything: &str) -> String {
    let text = of.map(selector).unwrap_or_default();
    if text.is_empty() { everything.to_owned() } else { text }
}
