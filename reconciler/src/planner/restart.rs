//! Restart policies.

use k8s_openapi::api::core::v1;

use crate::planner::context::Role;
use crate::pod::Pod;

/// The exit code that a killed container is expected to end with.
pub(crate) const KILLED: i32 = 137;

/// Whether a container that ended with that exit code is started again. A container's `restartPolicyRules` come
/// first, then its own policy, then the pod's; an init container that succeeded has done its work under every policy.
pub(crate) fn should_restart(pod: &Pod, container: &v1::Container, role: Role, code: i32) -> bool {
    if container.restart_policy_rules.iter().flatten().any(|rule| rule_restarts(rule, code)) {
        return true;
    }
    let policy = container.restart_policy.as_deref().or(pod.spec().restart_policy.as_deref());
    match policy {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => role != Role::Init || code != 0,
    }
}

fn rule_restarts(rule: &v1::ContainerRestartRule, code: i32) -> bool {
    let Some(codes) = &rule.exit_codes else { return false };
    let listed = codes.values.iter().flatten().any(|value| *value == code);
    rule.action == "Restart"
        && match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
}
