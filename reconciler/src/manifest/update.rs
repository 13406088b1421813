//! Which changes a running pod takes (`ValidatePodUpdate` of Kubernetes).

use k8s_openapi::api::core::v1;

use super::issue::Issues;
use super::node::FieldPath;

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
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0)
        && new.termination_grace_period_seconds == Some(1)
    {
        masked.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if masked != *old {
        issues.forbidden(&path, IMMUTABLE).hint("delete the pod and create it again");
    }
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
