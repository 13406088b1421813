//! Checks of containers.

use std::collections::HashSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::probe::{self, Kind};
use super::{env, names, resources, security, volume};
use crate::manifest::Context;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::resources::is_sidecar;

/// Checks `spec.containers` and `spec.initContainers`.
pub(crate) fn check_all(spec: &v1::PodSpec, node: &Context, issues: &mut Issues) {
    let path = FieldPath::of("spec");
    if spec.containers.is_empty() {
        issues.required(&path.field("containers"), "").hint("a pod needs at least one container");
    }
    let known = all_names(spec);
    let mut seen = HashSet::new();
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for (field, list, is_init) in
        [("initContainers", init, true), ("containers", &spec.containers[..], false)]
    {
        for (i, container) in list.iter().enumerate() {
            let path = path.field(field).index(i);
            let name = container.name.as_str();
            match name {
                "" => {
                    issues.required(&path.field("name"), "");
                }
                name => issues.all(&path.field("name"), name, names::dns_label(name)),
            }
            if !seen.insert(name) && !name.is_empty() {
                issues.duplicate(&path.field("name"), name);
            }
            check(spec, container, is_init, &known, node, &path, issues);
        }
        check_host_ports(list, &path.field(field), issues);
    }
}

/// Names of all containers of a pod.
pub(crate) fn all_names(spec: &v1::PodSpec) -> Vec<&str> {
    spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.name.as_str()).collect()
}

/// Checks an ephemeral container in a container's form.
pub(crate) fn check_one(
    spec: &v1::PodSpec,
    container: &v1::Container,
    known: &[&str],
    node: &Context,
    path: &FieldPath,
    issues: &mut Issues,
) {
    check(spec, container, false, known, node, path, issues);
}

fn check(
    spec: &v1::PodSpec,
    container: &v1::Container,
    init: bool,
    known: &[&str],
    node: &Context,
    path: &FieldPath,
    issues: &mut Issues,
) {
    check_image(container, path, issues);
    check_restart(container, init, path, issues);
    check_ports(spec, container, path, issues);
    env::check(spec, container, known, path, issues);
    let volumes: Vec<_> = spec.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
    volume::check_mounts(container, &volumes, path, issues);
    check_probes(spec, container, init, path, issues);
    if let Some(resources) = &container.resources {
        resources::check(resources, &path.field("resources"), issues);
    }
    for (i, policy) in container.resize_policy.iter().flatten().enumerate() {
        let path = path.field("resizePolicy").index(i);
        issues.one_of(&path.field("resourceName"), Some(&policy.resource_name), &["cpu", "memory"]);
        issues.one_of(
            &path.field("restartPolicy"),
            Some(&policy.restart_policy),
            &["NotRequired", "RestartContainer"],
        );
        let pod_policy = spec.restart_policy.as_deref();
        if pod_policy == Some("Never") && policy.restart_policy == "RestartContainer" {
            issues.invalid(
                &path.field("restartPolicy"),
                policy.restart_policy.as_str(),
                "must be 'NotRequired' when `restartPolicy` is 'Never'",
            );
        }
    }
    if let Some(context) = &container.security_context {
        let host_users = spec.host_users != Some(false);
        security::check_container(context, host_users, node, &path.field("securityContext"), issues);
    }
    issues.one_of(
        &path.field("terminationMessagePolicy"),
        container.termination_message_policy.as_deref(),
        &["FallbackToLogsOnError", "File"],
    );
    for (field, value) in [
        ("workingDir", &container.working_dir),
        ("terminationMessagePath", &container.termination_message_path),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty() && !value.starts_with('/')) {
            issues.invalid(&path.field(field), value, "must be an absolute path");
        }
    }
}

fn check_image(container: &v1::Container, path: &FieldPath, issues: &mut Issues) {
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        issues.required(&path.field("image"), "").hint("name the image to run");
    } else if image.trim() != image {
        issues.invalid(&path.field("image"), image, "must not have leading or trailing whitespace");
    }
    issues.one_of(
        &path.field("imagePullPolicy"),
        container.image_pull_policy.as_deref(),
        &["Always", "IfNotPresent", "Never"],
    );
}

fn check_restart(container: &v1::Container, init: bool, path: &FieldPath, issues: &mut Issues) {
    let at = path.field("restartPolicy");
    issues.one_of(&at, container.restart_policy.as_deref(), &["Always", "Never", "OnFailure"]);
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    let at_rules = path.field("restartPolicyRules");
    if !rules.is_empty() && container.restart_policy.is_none() {
        issues.required(&at, "must specify restartPolicy when restart rules are used");
    }
    // A sidecar is started again anyway; what it can ask for is that all are.
    if init && is_sidecar(container) && rules.iter().any(|rule| rule.action != "RestartAllContainers") {
        issues.forbidden(&at_rules, "a sidecar may have rules with the action RestartAllContainers only");
    }
    if rules.len() > 20 {
        issues.invalid(&at_rules, rules.len() as i64, "must have at most 20 items");
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = at_rules.index(i);
        let actions = ["Restart", "RestartAllContainers"];
        issues.one_of(&path.field("action"), Some(&rule.action), &actions);
        match &rule.exit_codes {
            None => {
                issues.required(&path.field("exitCodes"), "must be specified");
            }
            Some(codes) => {
                issues.one_of(
                    &path.field("exitCodes").field("operator"),
                    Some(&codes.operator),
                    &["In", "NotIn"],
                );
                if codes.values.as_ref().is_none_or(Vec::is_empty) {
                    issues.required(
                        &path.field("exitCodes").field("values"),
                        "must specify at least one value",
                    );
                }
            }
        }
    }
}

fn check_ports(spec: &v1::PodSpec, container: &v1::Container, path: &FieldPath, issues: &mut Issues) {
    let mut seen = HashSet::new();
    for (i, port) in container.ports.iter().flatten().enumerate() {
        let path = path.field("ports").index(i);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            issues.all(&path.field("name"), name, names::port_name(name));
            if !seen.insert(name) {
                issues.duplicate(&path.field("name"), name);
            }
        }
        match port.container_port {
            0 => {
                issues.required(&path.field("containerPort"), "");
            }
            number => {
                if let Some(detail) = names::port(number) {
                    issues.invalid(&path.field("containerPort"), number, detail);
                }
            }
        }
        let host_port = port.host_port.unwrap_or_default();
        if let Some(detail) = names::port(host_port).filter(|_| host_port != 0) {
            issues.invalid(&path.field("hostPort"), host_port, detail);
        }
        if spec.host_network == Some(true) && host_port != port.container_port {
            let detail = "must match `hostPort` when `hostNetwork` is true";
            issues.invalid(&path.field("containerPort"), port.container_port, detail);
        }
        if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty() && ip.parse::<IpAddr>().is_err())
        {
            issues.invalid(
                &path.field("hostIP"),
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
        issues.one_of(&path.field("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
    }
}

/// Two containers of a pod cannot have the same host port.
fn check_host_ports(containers: &[v1::Container], path: &FieldPath, issues: &mut Issues) {
    let mut seen = HashSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            let Some(number) = port.host_port.filter(|number| *number != 0) else { continue };
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let key = format!("{protocol}/{}/{number}", port.host_ip.as_deref().unwrap_or_default());
            if !seen.insert(key.clone()) {
                issues.duplicate(&path.index(i).field("ports").index(j).field("hostPort"), key.as_str());
            }
        }
    }
}

fn check_probes(
    spec: &v1::PodSpec,
    container: &v1::Container,
    init: bool,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let probes = [
        (Kind::Liveness, &container.liveness_probe),
        (Kind::Readiness, &container.readiness_probe),
        (Kind::Startup, &container.startup_probe),
    ];
    let one_shot = init && !is_sidecar(container);
    let detail = "may not be set for init containers without restartPolicy=Always";
    for (kind, probe) in probes {
        let path = path.field(kind.field());
        match probe {
            Some(_) if one_shot => {
                issues.forbidden(&path, detail);
            }
            Some(probe) => probe::check(probe, kind, &path, issues),
            None => {}
        }
    }
    if let Some(lifecycle) = &container.lifecycle {
        let path = path.field("lifecycle");
        if one_shot && (lifecycle.post_start.is_some() || lifecycle.pre_stop.is_some()) {
            issues.forbidden(&path, detail);
        } else {
            let grace = spec.termination_grace_period_seconds.unwrap_or(30);
            probe::check_lifecycle(lifecycle, grace, &path, issues);
        }
    }
}
