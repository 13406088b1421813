//! What a container sees of the machine.

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;

#[test]
fn a_container_has_its_own_processes_name_root_and_little_power() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let inside = |line: &str| node.exec("a", &["sh", "-c", line]).unwrap().ok().unwrap();
    assert!(inside("cat /proc/1/cmdline").starts_with("sleep"));
    assert_eq!(inside("hostname").trim(), pod.metadata.name.as_deref().unwrap());
    assert!(inside("cat /etc/hosts").contains(pod.ip()));
    assert!(!inside("cat /etc/resolv.conf").trim().is_empty());
    // The default capabilities of a container, no more.
    assert_eq!(inside("grep CapEff /proc/1/status").split_whitespace().nth(1), Some("00000000a80425fb"));
    assert_eq!(inside("grep Seccomp: /proc/1/status").split_whitespace().nth(1), Some("2"));
    assert_eq!(inside("cat /proc/keys 2>/dev/null | wc -l").trim(), "0", "a masked path can be read");
    assert!(
        inside("echo 1 > /proc/sys/kernel/sysrq 2>/dev/null && echo written || echo refused")
            .contains("refused")
    );
    assert!(
        inside("mount -t tmpfs none /tmp 2>/dev/null && echo mounted || echo refused").contains("refused")
    );
    assert!(inside("ls -A /sys/fs/cgroup >/dev/null && mkdir /sys/fs/cgroup/x 2>/dev/null && echo made || echo refused").contains("refused"));
    // What it writes lands in its own layer, not in the image.
    inside("echo mine > /etc/mine");
    node.apply("b.yaml", &manifest::pod("b", "exec sleep 1000000")).unwrap();
    node.wait_running(&["b"]).unwrap();
    node.exec("b", &["cat", "/etc/mine"]).unwrap().code(1).unwrap();
}

#[test]
fn a_start_writes_nothing_into_the_layer_of_the_container() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let own = node.path("root/rootfs").join(pod.uid());
    let written = || -> Vec<_> {
        walkdir(&own).into_iter().filter(|path| path.components().any(|c| c.as_os_str() == "upper")).collect()
    };
    // The place of every file that Berth mounts is there already.
    let places = written();
    assert!(places.iter().all(|path| path.ends_with("upper")) && places.len() == 1, "{places:?}");
    node.exec("a", &["touch", "/etc/mine"]).unwrap().ok().unwrap();
    assert!(written().iter().any(|path| path.ends_with("upper/etc/mine")));
}

/// All folders and files below a folder.
fn walkdir(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            all.extend(walkdir(&entry.path()));
        }
        all.push(entry.path());
    }
    all
}

#[test]
fn the_security_context_is_obeyed() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with("securityContext: { runAsUser: 1000, runAsGroup: 3000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: { drop: [ALL] } }")
        .with("workingDir: /home/app")
        .with_pod("securityContext: { supplementalGroups: [4000] }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    let inside = |line: &str| node.exec("a", &["sh", "-c", line]).unwrap().stdout;
    assert_eq!(inside("id -u; id -g; id -G").split_whitespace().collect::<Vec<_>>()[..2], ["1000", "3000"]);
    assert!(inside("id -G").contains("4000"));
    assert_eq!(inside("pwd").trim(), "/home/app");
    assert!(inside("touch /x 2>&1").contains("Read-only"));
    assert_eq!(inside("grep NoNewPrivs /proc/1/status").split_whitespace().nth(1), Some("1"));
    assert_eq!(inside("grep CapEff /proc/1/status").split_whitespace().nth(1), Some("0000000000000000"));
}

#[test]
fn requests_limits_and_quality_of_service_are_in_the_cgroups() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with("resources: { requests: { cpu: 250m, memory: 16Mi }, limits: { cpu: 500m, memory: 32Mi } }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let id = pod
        .container("main")
        .unwrap()
        .container_id
        .clone()
        .unwrap()
        .trim_start_matches("berth://")
        .to_owned();
    let path = format!("{}/kubepods/burstable/pod{}/{id}", node.cgroup_parent(), pod.uid());
    let read = |v1: &str, v2: &str| {
        let v1 = std::fs::read_to_string(format!("/sys/fs/cgroup/{}", v1.replace('@', &path)));
        v1.or_else(|_| std::fs::read_to_string(format!("/sys/fs/cgroup/{}", v2.replace('@', &path)))).unwrap()
    };
    assert_eq!(read("memory@/memory.limit_in_bytes", "@/memory.max").trim(), "33554432");
    assert!(read("cpu@/cpu.cfs_quota_us", "@/cpu.max").starts_with("50000"));
    let shares = read("cpu@/cpu.shares", "@/cpu.weight");
    assert!(["256", "29", "35"].contains(&shares.trim()), "{shares}");
    let pid = node.pids(pod.uid()).unwrap()[0];
    let score: i32 =
        node.machine().shell(&format!("cat /proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap();
    assert!((900..1000).contains(&score), "oom_score_adj of a small Burstable pod is {score}");
    assert_eq!(pod.status.unwrap().qos_class.as_deref(), Some("Burstable"));
}
