//! Checks of security contexts and of the users of a pod.

use k8s_openapi::api::core::v1;

use super::{names, sysctls};
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::manifest::{Context, Selinux};

/// Linux' capabilities, without their prefix, and ALL.
#[rustfmt::skip]
const CAPABILITIES: [&str; 42] = [
    "ALL", "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE",
    "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN",
    "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE",
    "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
];

/// Checks the pod's security context.
pub(crate) fn check_pod(
    spec: &v1::PodSpec,
    context: &v1::PodSecurityContext,
    node: &Context,
    path: &FieldPath,
    issues: &mut Issues,
) {
    check_id(context.run_as_user, &path.field("runAsUser"), issues);
    check_id(context.run_as_group, &path.field("runAsGroup"), issues);
    check_id(context.fs_group, &path.field("fsGroup"), issues);
    for (i, group) in context.supplemental_groups.iter().flatten().enumerate() {
        check_id(Some(*group), &path.field("supplementalGroups").index(i), issues);
    }
    issues.one_of(
        &path.field("fsGroupChangePolicy"),
        context.fs_group_change_policy.as_deref(),
        &["Always", "OnRootMismatch"],
    );
    issues.one_of(
        &path.field("supplementalGroupsPolicy"),
        context.supplemental_groups_policy.as_deref(),
        &["Merge", "Strict"],
    );
    if let Some(profile) = &context.seccomp_profile {
        check_seccomp(profile, &path.field("seccompProfile"), issues);
    }
    if let Some(profile) = &context.app_armor_profile {
        check_app_armor(profile, node, &path.field("appArmorProfile"), issues);
    }
    check_selinux(context.se_linux_options.as_ref(), node, &path.field("seLinuxOptions"), issues);
    issues.one_of(
        &path.field("seLinuxChangePolicy"),
        context.se_linux_change_policy.as_deref(),
        &["MountOption", "Recursive"],
    );
    sysctls::check(spec, context, &node.unsafe_sysctls, &path.field("sysctls"), issues);
}

/// Checks what a pod with users of its own cannot have (`hostUsers: false`).
pub(crate) fn check_users(spec: &v1::PodSpec, path: &FieldPath, issues: &mut Issues) {
    if spec.host_users != Some(false) {
        return;
    }
    for (field, set) in
        [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)]
    {
        if set == Some(true) {
            issues.forbidden(&path.field(field), "when `hostUsers` is false");
        }
    }
}

/// Checks a container's security context.
pub(crate) fn check_container(
    context: &v1::SecurityContext,
    host_users: bool,
    node: &Context,
    path: &FieldPath,
    issues: &mut Issues,
) {
    check_id(context.run_as_user, &path.field("runAsUser"), issues);
    check_id(context.run_as_group, &path.field("runAsGroup"), issues);
    issues.one_of(&path.field("procMount"), context.proc_mount.as_deref(), &["Default", "Unmasked"]);
    if host_users && context.proc_mount.as_deref() == Some("Unmasked") {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        issues.invalid(&path.field("procMount"), "Unmasked", detail);
    }
    if let Some(profile) = &context.app_armor_profile {
        check_app_armor(profile, node, &path.field("appArmorProfile"), issues);
    }
    if let Some(profile) = &context.seccomp_profile {
        check_seccomp(profile, &path.field("seccompProfile"), issues);
    }
    check_selinux(context.se_linux_options.as_ref(), node, &path.field("seLinuxOptions"), issues);
    let capabilities = context.capabilities.clone().unwrap_or_default();
    for (field, list) in [("add", &capabilities.add), ("drop", &capabilities.drop)] {
        for (i, name) in list.iter().flatten().enumerate() {
            let upper = name.to_ascii_uppercase();
            if !CAPABILITIES.contains(&upper.strip_prefix("CAP_").unwrap_or(&upper)) {
                let path = path.field("capabilities").field(field).index(i);
                issues
                    .invalid(&path, name.as_str(), "is no capability of Linux")
                    .hint("for example NET_ADMIN, or ALL");
            }
        }
    }
    if context.allow_privilege_escalation == Some(false) {
        let admin = capabilities
            .add
            .iter()
            .flatten()
            .any(|name| matches!(name.as_str(), "SYS_ADMIN" | "CAP_SYS_ADMIN"));
        if context.privileged == Some(true) {
            issues.invalid(
                path,
                "",
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        } else if admin {
            issues.invalid(
                path,
                "",
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
}

fn check_id(id: Option<i64>, path: &FieldPath, issues: &mut Issues) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        issues.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}

/// Where the kernel has no SELinux there is nothing to label, and runtimes leave labels out. Where it has, a container must not run
/// with less than it was given. Whether the policy knows the label is asked of the kernel when it is used.
fn check_selinux(
    options: Option<&v1::SELinuxOptions>,
    node: &Context,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let Some(options) = options.filter(|options| **options != v1::SELinuxOptions::default()) else { return };
    match node.selinux {
        None | Some(Selinux::Absent) => {}
        Some(Selinux::Unused) => {
            issues
                .forbidden(path, "this node does not label pods, although its kernel has SELinux")
                .hint("set `selinux: true` in the agent's configuration, or remove the field");
        }
        Some(Selinux::Used) => {
            for (field, value) in [("user", &options.user), ("role", &options.role), ("type", &options.type_)]
            {
                if let Some(value) = value.as_ref().filter(|value| !value.chars().all(is_label_char)) {
                    let detail = "must consist of letters, digits, '_', '-' and '.'";
                    issues.invalid(&path.field(field), value.as_str(), detail);
                }
            }
            if let Some(level) = options.level.as_ref().filter(|level| !level.is_empty() && !is_level(level))
            {
                issues
                    .invalid(
                        &path.field("level"),
                        level.as_str(),
                        "must be a sensitivity, with or without categories",
                    )
                    .hint("for example s0, s0:c123,c456 or s0-s1:c0.c1023");
            }
        }
    }
}

fn is_label_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Whether this is `s0`, `s0:c1,c2`, `s0:c1.c3`, or two of these with a dash between (SELinux Notebook, MLS and MCS).
fn is_level(text: &str) -> bool {
    let numbered = |text: &str, letter: char| {
        let digits = text.strip_prefix(letter);
        digits.is_some_and(|d| (1..=4).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_digit()))
    };
    let level = |text: &str| match text.split_once(':') {
        None => numbered(text, 's'),
        Some((sensitivity, categories)) => {
            let range =
                |text: &str| text.split('.').count() <= 2 && text.split('.').all(|c| numbered(c, 'c'));
            numbered(sensitivity, 's') && categories.split(',').all(range)
        }
    };
    text.split('-').count() <= 2 && text.split('-').all(level)
}

fn check_seccomp(profile: &v1::SeccompProfile, path: &FieldPath, issues: &mut Issues) {
    let file = profile.localhost_profile.as_deref();
    let at = path.field("localhostProfile");
    match (profile.type_.as_str(), file) {
        ("", _) => {
            issues.required(&path.field("type"), "type is required when seccompProfile is set");
        }
        ("Localhost", None | Some("")) => {
            issues.required(&at, "must be set when seccomp type is Localhost");
        }
        ("Localhost", Some(file)) => {
            if let Some(detail) = names::local_path(file) {
                issues.invalid(&at, file, detail);
            }
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("RuntimeDefault" | "Unconfined", Some(file)) => {
            issues.invalid(&at, file, "can only be set when seccomp type is Localhost");
        }
        (other, _) => {
            issues.not_supported(&path.field("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
}

/// The longest name of a profile: that of a path, which it may be.
const MAX_PROFILE_LEN: usize = 4095;

fn check_app_armor(profile: &v1::AppArmorProfile, node: &Context, path: &FieldPath, issues: &mut Issues) {
    let name = profile.localhost_profile.as_deref();
    let at = path.field("localhostProfile");
    match (profile.type_.as_str(), name) {
        ("", _) => {
            issues.required(&path.field("type"), "type is required when appArmorProfile is set");
        }
        ("Localhost", None | Some("")) => {
            issues.required(&at, "must be set when AppArmor type is Localhost");
        }
        ("Localhost", Some(name)) if name.trim() != name => {
            issues.invalid(&at, name, "must not be padded with whitespace");
        }
        ("Localhost", Some(name)) if name.len() > MAX_PROFILE_LEN => {
            issues.invalid(&at, name, &format!("must be no more than {MAX_PROFILE_LEN} bytes"));
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            issues.invalid(&at, name, "can only be set when AppArmor type is Localhost");
        }
        ("Unconfined", None) => {}
        ("RuntimeDefault" | "Localhost", _) => {
            if node.app_armor == Some(false) {
                issues.forbidden(path, "Cannot enforce AppArmor: AppArmor is not enabled on the host");
            }
        }
        (other, _) => {
            issues.not_supported(&path.field("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use crate::manifest::{Context, Selinux, check_pod};

    fn errors(pods: Value, own: Value, selinux: Option<Selinux>) -> Vec<String> {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "securityContext": pods, "containers": [{"name": "c", "image": "i", "securityContext": own}]}});
        let errors = check_pod(&pod, &Context { selinux, ..Context::default() }).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn selinux_labels_are_refused_where_the_kernel_has_them_and_the_node_does_not_want_them() {
        let options = json!({"seLinuxOptions": {"user": "u", "role": "r", "type": "t", "level": "s0:c1,c2"}});
        for selinux in [None, Some(Selinux::Absent), Some(Selinux::Used)] {
            assert_eq!(errors(options.clone(), options.clone(), selinux), [""; 0]);
        }
        let said = errors(options.clone(), options, Some(Selinux::Unused));
        for at in ["spec.securityContext.seLinuxOptions", "spec.containers[0].securityContext.seLinuxOptions"]
        {
            assert!(
                said.iter()
                    .any(|error| error.contains(&format!("{at}: Forbidden: this node does not label pods"))
                        && error.contains("`selinux: true`")),
                "{said:?}"
            );
        }
        let nothing = json!({"seLinuxOptions": {}});
        assert_eq!(
            errors(nothing.clone(), nothing, Some(Selinux::Unused)),
            [""; 0],
            "what asks for nothing gets it"
        );
    }

    #[test]
    fn the_parts_of_a_label_are_what_they_can_be() {
        let said =
            |options: Value| errors(json!({}), json!({"seLinuxOptions": options}), Some(Selinux::Used));
        for level in ["", "s0", "s15", "s0:c0", "s0:c1,c2", "s0:c1.c3,c7", "s0-s1:c0.c1023"] {
            assert_eq!(said(json!({"level": level})), [""; 0], "{level:?}");
        }
        for level in
            ["c1", "s", "s0,c1", "s0:", "s0:c1,", "s0:c1.c2.c3", "s0-s0-s0", "s0:c12345", "s0:c1 ", "s0\nx"]
        {
            let said = said(json!({"level": level}));
            assert!(
                said.len() == 1 && said[0].contains("securityContext.seLinuxOptions.level: Invalid value"),
                "{level:?}: {said:?}"
            );
        }
        for field in ["user", "role", "type"] {
            assert_eq!(said(json!({field: "container_t"})), [""; 0]);
            for value in ["a:b", "a b", "a\0"] {
                let said = said(json!({field: value}));
                assert!(
                    said.len() == 1 && said[0].contains(&format!("seLinuxOptions.{field}: Invalid")),
                    "{said:?}"
                );
            }
        }
    }

    #[test]
    fn the_change_of_selinux_labels_is_one_of_two() {
        for policy in ["MountOption", "Recursive"] {
            assert_eq!(
                errors(json!({"seLinuxChangePolicy": policy}), json!({}), Some(Selinux::Used)),
                [""; 0]
            );
        }
        let said = errors(json!({"seLinuxChangePolicy": "Never"}), json!({}), None);
        assert!(
            said[0].contains("spec.securityContext.seLinuxChangePolicy: Unsupported value: \"Never\""),
            "{said:?}"
        );
    }
}
