//! Checks of security contexts.

use k8s_openapi::api::core::v1;

use super::names;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

/// The sysctls that Kubernetes calls safe: they act on the pod alone.
pub(crate) const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

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
    check_sysctls(spec, context, &path.field("sysctls"), issues);
}

fn check_sysctls(
    spec: &v1::PodSpec,
    context: &v1::PodSecurityContext,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let mut seen = Vec::new();
    for (i, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = path.index(i).field("name");
        let name = sysctl.name.replace('/', ".");
        if name.is_empty() {
            issues.required(&path, "");
        } else if seen.contains(&name) {
            issues.duplicate(&path, sysctl.name.as_str());
        } else if !SAFE_SYSCTLS.contains(&name.as_str()) {
            let safe = SAFE_SYSCTLS.join(", ");
            issues
                .forbidden(&path, &format!("unsafe sysctl {:?} is not allowed", sysctl.name))
                .hint(format!("safe: {safe}"));
        } else if spec.host_network == Some(true) && name.starts_with("net.") {
            issues.invalid(&path, sysctl.name.as_str(), "may not be specified when 'hostNetwork' is true");
        } else if spec.host_ipc == Some(true) && name.starts_with("kernel.shm") {
            issues.invalid(&path, sysctl.name.as_str(), "may not be specified when 'hostIPC' is true");
        }
        seen.push(name);
    }
}

/// Checks a container's security context.
pub(crate) fn check_container(context: &v1::SecurityContext, path: &FieldPath, issues: &mut Issues) {
    check_id(context.run_as_user, &path.field("runAsUser"), issues);
    check_id(context.run_as_group, &path.field("runAsGroup"), issues);
    issues.one_of(&path.field("procMount"), context.proc_mount.as_deref(), &["Default", "Unmasked"]);
    if let Some(profile) = &context.seccomp_profile {
        check_seccomp(profile, &path.field("seccompProfile"), issues);
    }
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
