//! Checks of `spec.securityContext.sysctls`, as in kubelet's `pkg/kubelet/sysctl` and the API server's validation.

use k8s_openapi::api::core::v1;

use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

/// The sysctls that Kubernetes calls safe: they act on the pod alone.
pub(crate) const SAFE: [&str; 12] = [
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

const MAX_LEN: usize = 253;

/// The namespace that a sysctl belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

impl Namespace {
    /// Of a name with dots, or of the part of a pattern before its star.
    fn of(name: &str) -> Option<Namespace> {
        const IPC: [&str; 3] = ["kernel.shm", "kernel.msg", "fs.mqueue."];
        match name {
            "kernel.sem" => Some(Namespace::Ipc),
            name if IPC.iter().any(|prefix| name.starts_with(prefix)) => Some(Namespace::Ipc),
            name if name.starts_with("net.") => Some(Namespace::Net),
            _ => None,
        }
    }
}

/// The form with dots, where slashes are separators: `net/ipv4/conf/eth0.1/forwarding` keeps its dot as a slash.
fn dotted(name: &str) -> String {
    let separator = name.find(['.', '/']).map(|at| name.as_bytes()[at]);
    match separator {
        Some(b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// `([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*([a-z0-9]([-_a-z0-9]*[a-z0-9])?)`
fn well_formed(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    name.len() <= MAX_LEN
        && name.split(['.', '/']).all(|segment| {
            let bytes = segment.as_bytes();
            edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| inner(*b))
        })
}

/// Whether one of `allowedUnsafeSysctls` of a node's settings makes sense: a name, or a prefix and `*`, of sysctls that
/// belong to a namespace.
///
/// # Errors
/// What is wrong with it.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let pattern = dotted(pattern);
    let prefix = pattern.strip_suffix('*');
    let name = prefix.unwrap_or(&pattern);
    let good = match prefix {
        Some(prefix) => well_formed(prefix.trim_end_matches(['.', '_', '-'])),
        None => well_formed(name),
    };
    if !good {
        return Err("is no sysctl name and no prefix of one with * at its end".to_owned());
    }
    match Namespace::of(name) {
        Some(_) => Ok(()),
        None => {
            Err("the sysctls are not known to be namespaced: they would change the whole machine".to_owned())
        }
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let pattern = dotted(pattern);
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// Checks the sysctls of a pod; `allowed` are the patterns of unsafe ones that the node takes.
pub(crate) fn check(
    spec: &v1::PodSpec,
    context: &v1::PodSecurityContext,
    allowed: &[String],
    path: &FieldPath,
    issues: &mut Issues,
) {
    let mut seen = Vec::new();
    for (i, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let at = path.index(i).field("name");
        let given = sysctl.name.as_str();
        let name = dotted(given);
        if name.is_empty() {
            issues.required(&at, "");
        } else if !well_formed(&name) {
            let detail = format!(
                "must have at most {MAX_LEN} characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*([a-z0-9]([-_a-z0-9]*[a-z0-9])?)$"
            );
            issues.invalid(&at, given, &detail);
        } else if seen.contains(&name) {
            issues.duplicate(&at, given);
        } else if !SAFE.contains(&name.as_str()) && !allowed.iter().any(|pattern| matches(pattern, &name)) {
            issues.forbidden(&at, &format!("unsafe sysctl {given:?} is not allowed")).hint(format!(
                "safe: {}; others the node's settings may allow, by allowedUnsafeSysctls",
                SAFE.join(", ")
            ));
        } else {
            match Namespace::of(&name) {
                Some(Namespace::Net) if spec.host_network == Some(true) => {
                    issues.invalid(&at, given, "may not be specified when 'hostNetwork' is true");
                }
                Some(Namespace::Ipc) if spec.host_ipc == Some(true) => {
                    issues.invalid(&at, given, "may not be specified when 'hostIPC' is true");
                }
                _ => {}
            }
        }
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_can_be_allowed() {
        for good in [
            "kernel.msg*",
            "net.core.somaxconn",
            "net/core/somaxconn",
            "net.*",
            "fs.mqueue.*",
            "kernel.sem",
            "kernel.shm_*",
        ] {
            assert_eq!(check_pattern(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "*",
            "kernel.*",
            "vm.swappiness",
            "net.ipv4.*.x",
            "net..x",
            "kernel.hostname",
            "NET.*",
            "net.a*b*",
        ] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slashes_and_dots_are_the_same_separator() {
        assert_eq!(dotted("net/ipv4/conf/eth0.1/rp_filter"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(dotted("net.ipv4.conf.eth0/1.rp_filter"), "net.ipv4.conf.eth0/1.rp_filter");
        assert!(matches("net/core/*", "net.core.somaxconn"));
        assert!(!matches("net.core.some", "net.core.somaxconn"));
    }

    #[test]
    fn no_name_leads_out_of_the_folder_of_sysctls() {
        for bad in ["net/../kernel/x", "net..x", "net./x", "/net/x", "net/x/", "net.X", "net. x", "net.\0"] {
            assert!(!well_formed(&dotted(bad)), "{bad:?}");
        }
    }
}
