//! Capabilities, seccomp, devices and the paths that a container must not see.

use std::fmt::Display;
use std::path::Path;
use std::sync::OnceLock;

use berth_reconciler::node::Failure;
use k8s_openapi::api::core::v1;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::{Inputs, create_error};
use crate::apparmor;

/// Longest seccomp profile that is read, in bytes.
const MAX_PROFILE: u64 = 4 << 20;

/// What Docker and containerd give a container.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability in the order of their numbers (linux/capability.h).
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// `securityContext.privileged`.
pub fn privileged(container: &v1::Container) -> bool {
    container.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false)
}

/// `allowPrivilegeEscalation: false` sets no_new_privs.
pub fn no_new_privileges(container: &v1::Container) -> bool {
    container.security_context.as_ref().and_then(|s| s.allow_privilege_escalation) == Some(false)
}

/// The capabilities that this process may hand on (`CapBnd` of `/proc/self/status`): asking for another one fails. They
/// never change: the agent drops none, and nobody gets one back.
fn bounding() -> u64 {
    static BOUNDING: OnceLock<u64> = OnceLock::new();
    *BOUNDING.get_or_init(|| {
        std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|text| {
                let line = text.lines().find_map(|l| l.strip_prefix("CapBnd:"))?;
                u64::from_str_radix(line.trim(), 16).ok()
            })
            .unwrap_or(u64::MAX)
    })
}

/// The names of a container's capabilities, `CAP_` in front, in the kernel's order.
pub fn capability_names(container: &v1::Container, privileged: bool) -> Vec<String> {
    let wanted = container.security_context.as_ref().and_then(|s| s.capabilities.as_ref());
    let list = |l: Option<&Vec<String>>| -> Vec<String> {
        l.into_iter()
            .flatten()
            .map(|c| c.to_ascii_uppercase().trim_start_matches("CAP_").to_owned())
            .collect()
    };
    let (add, drop) = (list(wanted.and_then(|w| w.add.as_ref())), list(wanted.and_then(|w| w.drop.as_ref())));
    let has = |list: &[String], name: &str| list.iter().any(|c| c == name);
    let bounding = bounding();
    ALL_CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| bounding & (1 << bit) != 0)
        .map(|(_, name)| *name)
        .filter(|name| {
            if privileged || has(&add, name) {
                return true;
            }
            let base = has(&add, "ALL") || (DEFAULT_CAPABILITIES.contains(name) && !has(&drop, "ALL"));
            base && !has(&drop, name)
        })
        .map(|name| format!("CAP_{name}"))
        .collect()
}

pub(super) fn capabilities(container: &v1::Container, privileged: bool) -> Value {
    let names = capability_names(container, privileged);
    // No inheritable ones: CVE-2022-24769.
    json!({ "bounding": names, "effective": names, "permitted": names })
}

/// Adds seccomp, masked and read-only paths and devices; gives the AppArmor profile.
///
/// # Errors
/// `CreateContainerError` when a profile of type Localhost cannot be had.
pub(super) fn apply(
    inputs: &Inputs<'_>,
    privileged: bool,
    linux: &mut Value,
) -> Result<Option<String>, Failure> {
    let context = inputs.container.security_context.as_ref();
    let unmasked = context.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked");
    if !privileged && !unmasked {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    if privileged {
        linux["devices"] = host_devices();
    }
    if let Some(profile) = seccomp(inputs, privileged)? {
        linux["seccomp"] = json!(profile);
    }
    app_armor(inputs, privileged)
}

/// The filter. Privileged containers have none, whatever the pod says, as under every other runtime.
fn seccomp(inputs: &Inputs<'_>, privileged: bool) -> Result<Option<LinuxSeccomp>, Failure> {
    let own = inputs.container.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    let pods = inputs.pod.spec().security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    let wanted = own.or(pods);
    if privileged {
        return Ok(None);
    }
    match wanted.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref().unwrap_or_default())) {
        Some(("RuntimeDefault", _)) => {}
        Some(("Localhost", name)) => return local_seccomp(&inputs.config.seccomp_root, name).map(Some),
        None if inputs.config.seccomp_default => {}
        _ => return Ok(None),
    }
    let capabilities = serde_json::from_value(capabilities(inputs.container, privileged))
        .expect("names of capabilities that the OCI specification knows");
    Ok(Some(berth_runtime::container::seccomp::default_profile(&capabilities)))
}

/// Reads a profile of type Localhost: `linux.seccomp` of the OCI runtime specification.
fn local_seccomp(root: &Path, name: &str) -> Result<LinuxSeccomp, Failure> {
    let path = root.join(name);
    let failed =
        |e: &dyn Display| create_error(format!("cannot load seccomp profile {:?}: {e}", path.display()));
    let file = std::fs::File::open(&path).map_err(|e| failed(&e))?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_PROFILE), &mut text)
        .map_err(|e| failed(&e))?;
    serde_json::from_str(&text).map_err(|e| failed(&e))
}

/// The AppArmor profile. Without AppArmor in the kernel there is none: who asks for one was refused before.
fn app_armor(inputs: &Inputs<'_>, privileged: bool) -> Result<Option<String>, Failure> {
    let own = inputs.container.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let pods = inputs.pod.spec().security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let wanted = own.or(pods).map(|p| (p.type_.as_str(), p.localhost_profile.as_deref().unwrap_or_default()));
    match wanted {
        Some(("Unconfined", _)) => Ok(None),
        Some(("Localhost", name)) => {
            apparmor::check_loaded(name).map_err(|e| create_error(e.to_string()))?;
            Ok(Some(name.to_owned()))
        }
        _ if privileged => Ok(None),
        Some(_) => apparmor::default_profile().map(Some).map_err(|e| create_error(e.to_string())),
        None if !apparmor::enabled() => Ok(None),
        None => match apparmor::default_profile() {
            Ok(name) => Ok(Some(name)),
            // Nobody asked for it, and a machine need not have the program that loads profiles.
            Err(error) => {
                tracing::debug!(%error, "a container runs without AppArmor");
                Ok(None)
            }
        },
    }
}

/// The devices cgroup: everything for a privileged container, else nothing but the default devices, which every OCI
/// runtime adds by itself.
pub(super) fn device_rules(privileged: bool) -> Value {
    json!([{ "allow": privileged, "access": "rwm" }])
}

/// The device nodes of the host's `/dev`, for a privileged container.
fn host_devices() -> Value {
    let mut list = Vec::new();
    collect_devices(std::path::Path::new("/dev"), 0, &mut list);
    Value::Array(list)
}

fn collect_devices(dir: &std::path::Path, depth: u32, list: &mut Vec<Value>) {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    // These folders are mounts of their own in every container, or hold links to what is listed anyway.
    const SKIP: [&str; 9] = ["pts", "ptmx", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"];
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if SKIP.iter().any(|s| entry.file_name() == *s) {
            continue;
        }
        let Ok(meta) = entry.metadata() else { continue };
        let kind = meta.file_type();
        if kind.is_dir() && depth < 4 {
            collect_devices(&entry.path(), depth + 1, list);
        } else if kind.is_char_device() || kind.is_block_device() {
            let number = meta.rdev();
            list.push(json!({
                "path": entry.path(),
                "type": if kind.is_char_device() { "c" } else { "b" },
                "major": nix::sys::stat::major(number),
                "minor": nix::sys::stat::minor(number),
                "fileMode": meta.mode() & 0o7777,
                "uid": meta.uid(),
                "gid": meta.gid(),
            }));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(capabilities: Value) -> Vec<String> {
        let container: v1::Container =
            serde_json::from_value(json!({"name": "c", "securityContext": {"capabilities": capabilities}}))
                .unwrap();
        capability_names(&container, false)
    }

    #[test]
    fn drop_all_then_add_one() {
        assert_eq!(names(json!({"drop": ["ALL"], "add": ["net_bind_service"]})), ["CAP_NET_BIND_SERVICE"]);
    }

    #[test]
    fn add_all_but_one() {
        let list = names(json!({"add": ["ALL"], "drop": ["CAP_SYS_ADMIN"]}));
        assert!(list.len() > 30 && !list.contains(&"CAP_SYS_ADMIN".to_owned()));
    }

    #[test]
    fn the_default_is_dockers() {
        assert_eq!(names(json!({})).len(), DEFAULT_CAPABILITIES.len());
    }
}
