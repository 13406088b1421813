//! `spec`: a configuration to begin with, the one that other runtimes give.

use serde_json::{Value, json};

use super::SPEC_VERSION;
use crate::cgroup::Version;

/// A configuration that runs a shell. `rootless` has it run as this user in a user namespace. It has a cgroup namespace on cgroup
/// v2 only, as with crun and runc: who adds one elsewhere must not find it there.
pub fn template(rootless: Option<(u32, u32)>, version: Version) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let own = |list: &[&str]| -> Value {
        let cgroup = (version == Version::V2).then_some("cgroup");
        list.iter().copied().chain(cgroup).map(|name| json!({"type": name})).collect()
    };
    let mut spec = json!({
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "berth",
        "mounts": mounts(rootless.is_some()),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": own(&["pid", "network", "ipc", "uts", "mount"]),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if let Some((uid, gid)) = rootless {
        spec["linux"]["namespaces"] = own(&["pid", "ipc", "uts", "mount", "user"]);
        spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
        spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
        spec["linux"]["resources"] = Value::Null;
        if let Some(linux) = spec["linux"].as_object_mut() {
            linux.remove("resources");
        }
    }
    spec
}

fn mounts(rootless: bool) -> Value {
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let sys = if rootless {
        // A new sysfs needs a network namespace of the same user namespace.
        json!({"destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]})
    } else {
        // The group of terminals has no number in a map of one user.
        pts.push("gid=5");
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"]})
    };
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]},
        sys,
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceType, Spec};

    use super::*;

    #[test]
    fn both_are_specs() {
        for rootless in [None, Some((1000, 1000))] {
            for (version, cgroup) in [(Version::V1, 0), (Version::V2, 1)] {
                let spec: Spec = serde_json::from_value(template(rootless, version)).unwrap();
                assert_eq!(spec.mounts().as_ref().unwrap().len(), 7);
                let list = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
                let found = list.iter().filter(|n| n.typ() == LinuxNamespaceType::Cgroup).count();
                assert_eq!(found, cgroup);
            }
        }
    }
}
