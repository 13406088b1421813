//! Checks of what belongs to the pod as a whole.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{affinity, container, ephemeral, names, resources, security, volume};
use crate::manifest::Context;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

/// Linux' host names have at most so many bytes.
const MAX_HOSTNAME: usize = 64;

/// Checks `spec`.
pub(crate) fn check(spec: &v1::PodSpec, context: &Context, issues: &mut Issues) {
    let path = FieldPath::of("spec");
    volume::check_all(spec, &container::all_names(spec), &path.field("volumes"), issues);
    volume::check_tokens(spec, context.cluster || context.elsewhere, issues);
    container::check_all(spec, context, issues);
    ephemeral::check_all(spec, context, issues);
    issues.one_of(
        &path.field("restartPolicy"),
        spec.restart_policy.as_deref(),
        &["Always", "OnFailure", "Never"],
    );
    if let Some(seconds) = spec.active_deadline_seconds.filter(|s| !(1..=i64::from(i32::MAX)).contains(s)) {
        issues.invalid(
            &path.field("activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    issues.at_least(&path.field("terminationGracePeriodSeconds"), spec.termination_grace_period_seconds, 0);
    if let Some(security) = &spec.security_context {
        security::check_pod(spec, security, context, &path.field("securityContext"), issues);
    }
    security::check_users(spec, &path, issues);
    resources::check_pod(spec, &path.field("resources"), issues);
    resources::check_overhead(spec, context, &path.field("overhead"), issues);
    check_names(spec, &path, issues);
    check_node(spec, context, &path, issues);
    affinity::check(spec, context, issues);
    check_runtime(spec, context, &path.field("runtimeClassName"), issues);
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let reason = "ShareProcessNamespace and HostPID cannot both be enabled";
        issues.invalid(&path.field("shareProcessNamespace"), "true", reason);
    }
    check_dns(spec, &path, issues);
    check_host_aliases(spec, &path.field("hostAliases"), issues);
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let at = path.field("readinessGates").index(i).field("conditionType");
        issues.all(&at, &gate.condition_type, names::qualified(&gate.condition_type));
    }
    check_tolerations(spec, &path.field("tolerations"), issues);
    issues.one_of(
        &path.field("preemptionPolicy"),
        spec.preemption_policy.as_deref(),
        &["Never", "PreemptLowerPriority"],
    );
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        None | Some("linux") => {}
        Some("windows") => {
            issues.forbidden(&path.field("os").field("name"), "Berth runs Linux containers only");
        }
        Some("") => {
            issues.required(&path.field("os").field("name"), "");
        }
        Some(other) => {
            issues.not_supported(&path.field("os").field("name"), other, &["linux"]);
        }
    }
}

fn check_names(spec: &v1::PodSpec, path: &FieldPath, issues: &mut Issues) {
    for (field, value) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            issues.all(&path.field(field), value, names::dns_label(value));
        }
    }
    if let Some(name) = spec.hostname_override.as_deref() {
        let at = path.field("hostnameOverride");
        issues.all(&at, name, names::dns_subdomain(name));
        if name.len() > MAX_HOSTNAME {
            issues.invalid(&at, name, &format!("must be no more than {MAX_HOSTNAME} bytes"));
        }
        if spec.set_hostname_as_fqdn == Some(true) {
            issues.forbidden(&path.field("setHostnameAsFQDN"), "must not be set when hostnameOverride is");
        }
        if spec.host_network == Some(true) {
            issues.forbidden(&at, "must not be set when hostNetwork is true");
        }
    }
    let subdomains = [
        ("serviceAccountName", &spec.service_account_name),
        ("priorityClassName", &spec.priority_class_name),
    ];
    for (field, value) in subdomains {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            issues.all(&path.field(field), value, names::dns_subdomain(value));
        }
    }
    for (i, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let path = path.field("imagePullSecrets").index(i).field("name");
        match secret.name.as_str() {
            "" => {
                issues.required(&path, "");
            }
            name => issues.all(&path, name, names::dns_subdomain(name)),
        }
    }
}

fn check_node(spec: &v1::PodSpec, context: &Context, path: &FieldPath, issues: &mut Issues) {
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        let at = path.field("nodeName");
        issues.all(&at, name, names::dns_subdomain(name));
        if !context.node_name.is_empty() && name != context.node_name {
            let detail = format!("this node is {:?}", context.node_name);
            issues.invalid(&at, name, &detail).hint("remove the field to run the pod here");
        }
    }
    let selector = path.field("nodeSelector");
    for (key, value) in spec.node_selector.iter().flatten() {
        issues.all(&selector.key(key), key, names::qualified(key));
        issues.all(&selector.key(key), value, names::label_value(value));
        let Some(labels) = &context.node_labels else { continue };
        match labels.get(key) {
            Some(label) if label == value => {}
            Some(label) => {
                let detail = format!("the node's label is {label:?}");
                issues.invalid(&selector.key(key), value.as_str(), &detail).node_affinity();
            }
            None => {
                let detail = "the node has no such label";
                issues.invalid(&selector.key(key), value.as_str(), detail).node_affinity();
            }
        }
    }
}

/// The name is the handler's, as it is in the agent's configuration.
fn check_runtime(spec: &v1::PodSpec, context: &Context, at: &FieldPath, issues: &mut Issues) {
    let Some(name) = spec.runtime_class_name.as_deref().filter(|name| !name.is_empty()) else { return };
    issues.all(at, name, names::dns_subdomain(name));
    let Some(known) = &context.runtimes else { return };
    if !known.iter().any(|one| one == name) {
        let reason = match known.as_slice() {
            [] => "the node has no other runtime than its own".to_owned(),
            known => format!("the node's runtimes are {}", known.join(", ")),
        };
        issues.invalid(at, name, &reason).hint("name it under `runtimes` in the agent's configuration");
    }
}

fn check_dns(spec: &v1::PodSpec, path: &FieldPath, issues: &mut Issues) {
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    issues.one_of(&path.field("dnsPolicy"), spec.dns_policy.as_deref(), &policies);
    let config = path.field("dnsConfig");
    let servers = spec.dns_config.iter().flat_map(|c| c.nameservers.iter().flatten()).count();
    if spec.dns_policy.as_deref() == Some("None") {
        if spec.dns_config.is_none() {
            issues.required(&config, "must provide `dnsConfig` when `dnsPolicy` is None");
        } else if servers == 0 {
            issues.required(
                &config.field("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    let Some(dns) = &spec.dns_config else { return };
    if servers > 3 {
        issues.invalid(&config.field("nameservers"), servers as i64, "must not have more than 3 nameservers");
    }
    for (i, server) in dns.nameservers.iter().flatten().enumerate() {
        check_ip(server, &config.field("nameservers").index(i), issues);
    }
    let searches = dns.searches.as_deref().unwrap_or_default();
    if searches.len() > 32 {
        issues.invalid(
            &config.field("searches"),
            searches.len() as i64,
            "must not have more than 32 search paths",
        );
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let name = search.strip_suffix('.').unwrap_or(search).replace('_', "x");
        issues.all(&config.field("searches").index(i), search, names::dns_subdomain(&name));
    }
    for (i, option) in dns.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            issues.required(&config.field("options").index(i), "must not be empty");
        }
    }
}

fn check_host_aliases(spec: &v1::PodSpec, path: &FieldPath, issues: &mut Issues) {
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        check_ip(&alias.ip, &path.index(i).field("ip"), issues);
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            issues.all(&path.index(i).field("hostnames").index(j), name, names::dns_subdomain(name));
        }
    }
}

fn check_ip(text: &str, path: &FieldPath, issues: &mut Issues) {
    if text.parse::<IpAddr>().is_err() {
        issues.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn check_tolerations(spec: &v1::PodSpec, path: &FieldPath, issues: &mut Issues) {
    for (i, toleration) in spec.tolerations.iter().flatten().enumerate() {
        let path = path.index(i);
        let key = toleration.key.as_deref().unwrap_or_default();
        let operator = toleration.operator.as_deref().unwrap_or_default();
        if !key.is_empty() {
            issues.all(&path.field("key"), key, names::qualified(key));
        } else if operator != "Exists" {
            issues.invalid(
                &path.field("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        issues.one_of(&path.field("operator"), Some(operator), &["", "Equal", "Exists", "Gt", "Lt"]);
        issues.one_of(
            &path.field("effect"),
            toleration.effect.as_deref(),
            &["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
        );
        if let Some(value) = toleration.value.as_deref().filter(|v| operator == "Exists" && !v.is_empty()) {
            issues.invalid(&path.field("value"), value, "value must be empty when `operator` is 'Exists'");
        }
        if toleration.toleration_seconds.is_some() && toleration.effect.as_deref() != Some("NoExecute") {
            let effect = toleration.effect.as_deref().unwrap_or_default();
            issues.invalid(
                &path.field("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
    }
}
