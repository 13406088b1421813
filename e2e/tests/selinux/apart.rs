//! What the labels are for.

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;

use super::{CONFIG, file, of_file, of_process, process, relabel};

/// A pod with the machine's folder, at `/host`.
fn pod(name: &str, host: &std::path::Path) -> Builder {
    Builder::new(name)
        .shell("exec sleep 1000000")
        .with("volumeMounts: [{ name: host, mountPath: /host }]")
        .with_pod(&format!(
            "volumes: [{{ name: host, hostPath: {{ path: {}, type: Directory }} }}]",
            host.display()
        ))
}

#[test]
fn pods_of_different_levels_do_not_reach_each_others_files() {
    let node = Node::with(CONFIG, &[]).unwrap();
    let host = node.path("shared");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("machine"), "").unwrap();
    relabel(&node, &of_file("s0"), &host);
    for (name, level) in [("a", "s0:c1,c2"), ("b", "s0:c3,c4"), ("all", "s0")] {
        std::fs::write(host.join(name), name).unwrap();
        relabel(&node, &of_file(level), &host.join(name));
    }
    for (name, level) in [("a", "s0:c1,c2"), ("b", "s0:c3,c4")] {
        let options = format!("securityContext: {{ seLinuxOptions: {{ level: '{level}' }} }}");
        let text =
            if name == "a" { pod(name, &host).with_pod(&options) } else { pod(name, &host).with(&options) };
        node.apply(&format!("{name}.yaml"), &text.yaml()).unwrap();
    }
    let pods = node.wait_running(&["a", "b"]).unwrap();
    for (name, level, other) in [("a", "s0:c1,c2", "b"), ("b", "s0:c3,c4", "a")] {
        assert_eq!(process(&node, node.pids(pods[name].uid()).unwrap()[0]), of_process(level));
        for mine in [name, "all"] {
            node.exec(name, &["cat", &format!("/host/{mine}")]).unwrap().ok().unwrap();
        }
        for theirs in [other, "machine"] {
            for line in [format!("cat /host/{theirs}"), format!("echo x > /host/{theirs}")] {
                let ran = node.exec(name, &["sh", "-c", &line]).unwrap();
                assert!(ran.code != 0 && ran.stderr.contains("Permission denied"), "{name}: {line}: {ran}");
            }
        }
    }
    // A path of the machine keeps its labels.
    assert_eq!(file(&node, &host.join("b").display().to_string()), of_file("s0:c3,c4"));
    assert_eq!(file(&node, &host.join("machine").display().to_string()), "system_u:object_r:tmpfs_t:s0");
}

#[test]
fn two_pods_have_two_levels() {
    let node = Node::with(CONFIG, &[]).unwrap();
    for (name, more) in [("a", "tty: true"), ("b", "tty: false")] {
        let pod = Builder::new(name).shell("echo up; exec sleep 1000000").with(more);
        node.apply(&format!("{name}.yaml"), &pod.yaml()).unwrap();
    }
    let pods = node.wait_running(&["a", "b"]).unwrap();
    // Its output is its own, by a terminal as by a pipe of the shim.
    for pod in pods.values() {
        node.wait_log(pod, "up").unwrap();
    }
    let label = |name: &str| process(&node, node.pids(pods[name].uid()).unwrap()[0]);
    let (one, other) = (super::level(&label("a")), super::level(&label("b")));
    assert_ne!(one, other);
}

#[test]
fn what_is_privileged_is_not_confined() {
    let node = Node::with(CONFIG, &[]).unwrap();
    let host = node.path("shared");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("machine"), "").unwrap();
    let cases = [
        ("privileged", pod("privileged", &host).with("securityContext: { privileged: true }"), "spc_t:s0"),
        ("pids", pod("pids", &host).with_pod("hostPID: true"), "spc_t:s0"),
        ("ipc", pod("ipc", &host).with_pod("hostIPC: true"), "spc_t:s0"),
        (
            "asked",
            pod("asked", &host).with("securityContext: { seLinuxOptions: { type: spc_t, level: s0 } }"),
            "spc_t:s0",
        ),
    ];
    for (name, pod, _) in &cases {
        node.apply(&format!("{name}.yaml"), &pod.yaml()).unwrap();
    }
    let pods = node.wait_running(&cases.each_ref().map(|(name, ..)| *name)).unwrap();
    for (name, _, label) in &cases {
        let pid = node.pids(pods[*name].uid()).unwrap()[0];
        assert_eq!(process(&node, pid), format!("system_u:system_r:{label}"), "{name}");
        node.exec(name, &["sh", "-c", "cat /host/machine && touch /host/made"]).unwrap().ok().unwrap();
    }
    // The queues of the machine stay the machine's.
    let queues = node
        .machine()
        .shell("mkdir -p /dev/mqueue; mount -t mqueue none /dev/mqueue; ls -dZ /dev/mqueue")
        .unwrap();
    assert!(queues.starts_with("system_u:object_r:tmpfs_t:s0"), "{queues}");
    node.machine().shell("umount /dev/mqueue").unwrap();
}
