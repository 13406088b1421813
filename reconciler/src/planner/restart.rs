//! Restart policies.

use k8s_openapi::api::core::v1;

use crate::planner::context::Role;
use crate::pod::Pod;

/// The exit code that a killed container is expected to end with.
pub(crate) const KILLED: i32 = 137;

/// A rule's action that restarts all containers of the pod, init containers first.
pub(crate) const ALL: &str = "RestartAllContainers";

/// Whether a container that ended with that exit code is started again. A container's `restartPolicyRules` come
/// first, then its own policy, then the pod's; an init container that succeeded has done its work under every policy, and an
/// ephemeral container is never started again.
pub(crate) fn should_restart(pod: &Pod, container: &v1::Container, role: Role, code: i32) -> bool {
    if role == Role::Ephemeral {
        return false;
    }
    if rule_of(container, code).is_some() {
        return true;
    }
    let policy = container.restart_policy.as_deref().or(pod.spec().restart_policy.as_deref());
    match policy {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => role != Role::Init || code != 0,
    }
}

/// The first of a container's rules that an exit code matches.
pub(crate) fn rule_of(container: &v1::Container, code: i32) -> Option<&v1::ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|value| *value == code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}
