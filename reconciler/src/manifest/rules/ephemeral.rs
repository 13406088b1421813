//! Checks of ephemeral containers (`validateEphemeralContainers` of Kubernetes).

use std::collections::HashSet;

use k8s_openapi::api::core::v1;

use super::{container, names};
use crate::manifest::Context;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::pod::as_container;

/// Checks `spec.ephemeralContainers`, which a pod has only once it runs.
pub(crate) fn check_all(spec: &v1::PodSpec, context: &Context, issues: &mut Issues) {
    let list = spec.ephemeral_containers.as_deref().unwrap_or_default();
    let path = FieldPath::of("spec").field("ephemeralContainers");
    if !list.is_empty() && !context.running {
        let detail = "cannot be set on create";
        issues.forbidden(&path, detail).hint("`berth debug` adds one to a running pod");
        return;
    }
    let known = container::all_names(spec);
    let mut seen: HashSet<&str> = known.iter().copied().collect();
    for (i, ephemeral) in list.iter().enumerate() {
        let path = path.index(i);
        match ephemeral.name.as_str() {
            "" => {
                issues.required(&path.field("name"), "");
            }
            name => issues.all(&path.field("name"), name, names::dns_label(name)),
        }
        if !seen.insert(&ephemeral.name) && !ephemeral.name.is_empty() {
            issues.duplicate(&path.field("name"), ephemeral.name.as_str());
        }
        check_fields(ephemeral, &path, issues);
        if let Some(target) = ephemeral.target_container_name.as_deref().filter(|name| !name.is_empty())
            && !known.contains(&target)
        {
            issues.not_found(&path.field("targetContainerName"), target);
        }
        for (j, mount) in ephemeral.volume_mounts.iter().flatten().enumerate() {
            let path = path.field("volumeMounts").index(j);
            for (field, sub) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if sub.as_deref().is_some_and(|sub| !sub.is_empty()) {
                    issues.forbidden(&path.field(field), "cannot be set for an Ephemeral Container");
                }
            }
        }
        container::check_one(spec, &as_container(ephemeral), &known, context, &path, issues);
    }
}

/// What a container may have and an ephemeral one may not.
fn check_fields(ephemeral: &v1::EphemeralContainer, path: &FieldPath, issues: &mut Issues) {
    let resources = ephemeral.resources.as_ref();
    let asks = resources.is_some_and(|r| r.limits.is_some() || r.requests.is_some() || r.claims.is_some());
    let set = [
        ("ports", ephemeral.ports.as_ref().is_some_and(|ports| !ports.is_empty())),
        ("livenessProbe", ephemeral.liveness_probe.is_some()),
        ("readinessProbe", ephemeral.readiness_probe.is_some()),
        ("startupProbe", ephemeral.startup_probe.is_some()),
        ("lifecycle", ephemeral.lifecycle.is_some()),
        ("resources", asks),
        ("resizePolicy", ephemeral.resize_policy.as_ref().is_some_and(|list| !list.is_empty())),
        ("restartPolicy", ephemeral.restart_policy.is_some()),
        ("restartPolicyRules", ephemeral.restart_policy_rules.as_ref().is_some_and(|list| !list.is_empty())),
    ];
    for (field, _) in set.into_iter().filter(|(_, set)| *set) {
        issues.forbidden(&path.field(field), "cannot be set for an Ephemeral Container");
    }
}
