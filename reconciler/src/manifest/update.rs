//! Which changes a running pod takes (`ValidatePodUpdate` of Kubernetes).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::identity::{HASH_ANNOTATION, SEEN_ANNOTATION, SOURCE_ANNOTATION};
use super::issue::Issues;
use super::node::FieldPath;
use crate::resources::{is_sidecar, qos_class};

const IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Compares two checked specs.
pub(crate) fn check(old: &v1::PodSpec, new: &v1::PodSpec, issues: &mut Issues) {
    let path = FieldPath::of("spec");
    let lists = [
        ("containers", Some(&old.containers), Some(&new.containers)),
        ("initContainers", old.init_containers.as_ref(), new.init_containers.as_ref()),
    ];
    for (field, before, after) in lists {
        if before.map_or(0, Vec::len) != after.map_or(0, Vec::len) {
            issues.forbidden(&path.field(field), "pod updates may not add or remove containers");
            return;
        }
    }
    check_deadline(old.active_deadline_seconds, new.active_deadline_seconds, &path, issues);
    check_tolerations(old, new, &path, issues);
    // Everything that may change is made equal; the rest must be equal then.
    let mut masked = new.clone();
    for (before, after) in old.containers.iter().zip(&mut masked.containers) {
        after.image = before.image.clone();
    }
    for (before, after) in
        old.init_containers.iter().flatten().zip(masked.init_containers.iter_mut().flatten())
    {
        after.image = before.image.clone();
    }
    masked.active_deadline_seconds = old.active_deadline_seconds;
    masked.tolerations = old.tolerations.clone();
    masked.node_name = old.node_name.clone();
    let gates = |spec: &v1::PodSpec| spec.scheduling_gates.clone().unwrap_or_default();
    let before = gates(old);
    if gates(new).iter().all(|gate| before.contains(gate)) {
        masked.scheduling_gates = old.scheduling_gates.clone();
    } else {
        issues.forbidden(&path.field("schedulingGates"), "only deletion is allowed");
    }
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0)
        && new.termination_grace_period_seconds == Some(1)
    {
        masked.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if masked != *old {
        issues.forbidden(&path, IMMUTABLE).hint("delete the pod and create it again");
    }
}

/// Compares two checked specs of which the second came through the `resize` subresource (`ValidatePodResize`).
pub(crate) fn check_resize(old: &v1::PodSpec, new: &v1::PodSpec, issues: &mut Issues) {
    let path = FieldPath::of("spec");
    if with_resources_of(new, old) != *old {
        issues.forbidden(&path, "only cpu and memory resources are mutable");
        return;
    }
    let inits = old.init_containers.iter().flatten().zip(new.init_containers.iter().flatten());
    let mains = old.containers.iter().zip(&new.containers);
    let inits = inits.enumerate().map(|(i, pair)| (path.field("initContainers").index(i), pair));
    let mains = mains.enumerate().map(|(i, pair)| (path.field("containers").index(i), pair));
    for (path, (before, after)) in inits.chain(mains) {
        let lists = |container: &v1::Container| {
            let resources = container.resources.clone().unwrap_or_default();
            [("limits", resources.limits), ("requests", resources.requests)]
        };
        for ((field, before), (_, after)) in lists(before).into_iter().zip(lists(after)) {
            let path = path.field("resources").field(field);
            check_list(&before.unwrap_or_default(), &after.unwrap_or_default(), field, &path, issues);
        }
    }
    let (before, after) = (qos_class(old), qos_class(new));
    if before != after {
        let detail =
            format!("Pod QOS Class may not change as a result of resizing (it is {})", before.as_str());
        issues.invalid(&path, after.as_str(), &detail);
    }
}

/// The spec with the resources and resize policies that another gives to the containers that can be resized.
fn with_resources_of(spec: &v1::PodSpec, other: &v1::PodSpec) -> v1::PodSpec {
    let mut spec = spec.clone();
    let inits = spec.init_containers.iter_mut().flatten().zip(other.init_containers.iter().flatten());
    let sidecars = inits.filter(|(_, other)| is_sidecar(other));
    for (own, other) in sidecars.chain(spec.containers.iter_mut().zip(&other.containers)) {
        own.resources = other.resources.clone();
        own.resize_policy = other.resize_policy.clone();
    }
    spec
}

/// Other resources than cpu and memory stay, and none is taken away.
fn check_list(
    before: &BTreeMap<String, ApiQuantity>,
    after: &BTreeMap<String, ApiQuantity>,
    field: &str,
    path: &FieldPath,
    issues: &mut Issues,
) {
    for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
        let (old, new) = (before.get(name), after.get(name));
        if !matches!(name.as_str(), "cpu" | "memory") {
            if old != new {
                issues.forbidden(&path.key(name), "only cpu and memory resources are mutable");
            }
        } else if new.is_none() {
            issues.forbidden(&path.key(name), &format!("resource {field} cannot be removed"));
        }
    }
}

/// Compares two checked specs of which the second came through the `ephemeralcontainers` subresource: it may have more
/// ephemeral containers, and that is all.
pub(crate) fn check_ephemeral(old: &v1::PodSpec, new: &v1::PodSpec, issues: &mut Issues) {
    let path = FieldPath::of("spec");
    let masked = v1::PodSpec { ephemeral_containers: old.ephemeral_containers.clone(), ..new.clone() };
    if masked != *old {
        issues.forbidden(&path, "only ephemeral containers can be changed here");
        return;
    }
    let path = path.field("ephemeralContainers");
    let after = new.ephemeral_containers.as_deref().unwrap_or_default();
    for (i, known) in old.ephemeral_containers.iter().flatten().enumerate() {
        match after.iter().find(|container| container.name == known.name) {
            Some(same) if same == known => {}
            Some(_) => {
                let detail = format!("existing ephemeral containers {:?} may not be changed", known.name);
                issues.forbidden(&path.index(i), &detail);
            }
            None => {
                let detail = format!("existing ephemeral containers {:?} may not be removed", known.name);
                issues.forbidden(&path, &detail);
            }
        }
    }
}

/// Whether a running pod can become one of another text without being replaced: by what an update and a resize allow.
/// Metadata counts whole, but for what a node writes there.
pub(crate) fn in_place(old: &v1::Pod, new: &v1::Pod) -> bool {
    let (Some(before), Some(after)) = (&old.spec, &new.spec) else { return false };
    let own = |pod: &v1::Pod| {
        let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
        annotations
            .retain(|key, _| ![HASH_ANNOTATION, SEEN_ANNOTATION, SOURCE_ANNOTATION].contains(&key.as_str()));
        let metadata = &pod.metadata;
        (
            annotations,
            metadata.labels.clone().unwrap_or_default(),
            metadata.name.clone(),
            metadata.namespace.clone(),
        )
    };
    let after = v1::PodSpec { ephemeral_containers: before.ephemeral_containers.clone(), ..after.clone() };
    let count =
        |spec: &v1::PodSpec| (spec.init_containers.as_ref().map_or(0, Vec::len), spec.containers.len());
    if own(old) != own(new) || count(before) != count(&after) {
        return false;
    }
    let resized = with_resources_of(&after, before);
    let mut issues = Issues::default();
    check(before, &resized, &mut issues);
    check_resize(&resized, &after, &mut issues);
    issues.0.is_empty()
}

fn check_deadline(old: Option<i64>, new: Option<i64>, path: &FieldPath, issues: &mut Issues) {
    let path = path.field("activeDeadlineSeconds");
    match (old, new) {
        (Some(old), Some(new)) if new > old => {
            issues.invalid(&path, new, &format!("must be less than or equal to previous value {old}"));
        }
        (Some(_), None) => {
            issues.invalid(&path, "", "must not update from a positive integer to nil value");
        }
        _ => {}
    }
}

fn check_tolerations(old: &v1::PodSpec, new: &v1::PodSpec, path: &FieldPath, issues: &mut Issues) {
    let kept = |toleration: &v1::Toleration| {
        // Only how long an existing toleration holds may change.
        let plain = |t: &v1::Toleration| v1::Toleration { toleration_seconds: None, ..t.clone() };
        new.tolerations.iter().flatten().any(|t| plain(t) == plain(toleration))
    };
    if !old.tolerations.iter().flatten().all(kept) {
        issues.forbidden(
            &path.field("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}
