//! `hostUsers: false`: a pod whose root is nobody special on the machine.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use k8s_openapi::api::core::v1::Pod;

/// Where the ranges of pods begin unless the settings say otherwise.
const FIRST: u32 = 0x7000_0000;
const COUNT: u32 = 65536;

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Runs a line in a container and gives its words.
fn inside(node: &Node, pod: &str, container: &str, line: &str) -> String {
    let name = format!("{pod}-{}", berth_e2e::node::NAME);
    node.berth(&["exec", &name, "-c", container, "--", "sh", "-c", line]).unwrap().ok().unwrap()
}

fn owner(node: &Node, pod: &Pod) -> (u32, u32) {
    let pid = node.pids(pod.uid()).unwrap()[0];
    let text = node.machine().shell(&format!("stat -c '%u %g' /proc/{pid}")).unwrap();
    let ids: Vec<u32> = words(&text).iter().map(|id| id.parse().unwrap()).collect();
    (ids[0], ids[1])
}

fn two_containers(host_path: &Path) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{ name: settings }}
data: {{ key: value }}
---
apiVersion: v1
kind: Pod
metadata: {{ name: a }}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  securityContext:
    fsGroup: 2000
    sysctls: [{{ name: net.ipv4.ip_unprivileged_port_start, value: \"7\" }}]
  volumes:
    - {{ name: data, emptyDir: {{}} }}
    - {{ name: memory, emptyDir: {{ medium: Memory }} }}
    - {{ name: settings, configMap: {{ name: settings }} }}
    - {{ name: own, downwardAPI: {{ items: [{{ path: name, fieldRef: {{ fieldPath: metadata.name }} }}] }} }}
    - {{ name: host, hostPath: {{ path: {host}, type: Directory }} }}
  containers:
    - name: one
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, 'echo started; echo made > /data/one; exec sleep 1000000']
      readinessProbe: {{ exec: {{ command: [cat, /data/one] }}, periodSeconds: 1 }}
      volumeMounts: &mounts
        - {{ name: data, mountPath: /data }}
        - {{ name: memory, mountPath: /memory }}
        - {{ name: settings, mountPath: /settings }}
        - {{ name: own, mountPath: /own }}
        - {{ name: host, mountPath: /host }}
    - name: two
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, 'exec sleep 1000000']
      securityContext: {{ runAsUser: 1000, runAsGroup: 3000 }}
      volumeMounts: *mounts
",
        host = host_path.display(),
        image = manifest::IMAGE
    )
}

#[test]
fn root_inside_is_an_unprivileged_user_outside_and_files_have_their_owners() {
    let node = Node::start().unwrap();
    let host = node.path("shared");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "").unwrap();
    chown(host.join("file"), Some(1234), Some(4321)).unwrap();
    node.apply("a.yaml", &two_containers(&host)).unwrap();
    let pod = node
        .wait("a is ready", std::time::Duration::from_secs(30), |pods| {
            pods.get("a")
                .is_some_and(|pod| pod.statuses().iter().all(|c| c.ready) && pod.statuses().len() == 2)
        })
        .unwrap()
        .remove("a")
        .unwrap();

    // Who it is inside and outside.
    assert_eq!(inside(&node, "a", "one", "id -u; id -g").trim(), "0\n0");
    let map = format!("0 {FIRST} {COUNT}");
    for file in ["uid_map", "gid_map"] {
        let text = inside(&node, "a", "one", &format!("cat /proc/1/{file}"));
        assert_eq!(words(&text).join(" "), map);
    }
    let owners: Vec<(u32, u32)> = node
        .pids(pod.uid())
        .unwrap()
        .iter()
        .map(|pid| {
            let text = node.machine().shell(&format!("stat -c '%u %g' /proc/{pid}")).unwrap();
            let ids = words(&text);
            (ids[0].parse().unwrap(), ids[1].parse().unwrap())
        })
        .collect();
    assert!(owners.contains(&(FIRST, FIRST)), "{owners:?}");
    assert!(owners.contains(&(FIRST + 1000, FIRST + 3000)), "{owners:?}");

    // One namespace for the pod, not the machine's; the network belongs to it.
    let namespaces = "readlink /proc/self/ns/user; readlink /proc/self/ns/net";
    let one = inside(&node, "a", "one", namespaces);
    assert_eq!(one, inside(&node, "a", "two", namespaces));
    let machine = node.machine().shell(namespaces).unwrap();
    assert!(words(&one).iter().all(|ns| !machine.contains(ns)), "{one} {machine}");
    assert!(
        inside(&node, "a", "one", "ls /sys/class/net").contains("eth0"),
        "sysfs is that of the pod's network"
    );
    assert_eq!(inside(&node, "a", "one", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").trim(), "7");
    assert_eq!(inside(&node, "a", "one", "stat -c %u /dev/mqueue /dev/shm /etc/hosts").trim(), "0\n0\n0");
    let root = node.machine().shell("cat /proc/sys/kernel/hostname").unwrap();
    assert_ne!(inside(&node, "a", "one", "hostname"), root);

    // Files: what root makes is root's on the disk, too; what others own is theirs.
    let data = node.path(&format!("root/volumes/{}/data", pod.uid()));
    let made = std::fs::metadata(data.join("one")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 2000));
    assert_eq!(
        inside(&node, "a", "one", "stat -c %u:%g /data /data/one /memory").trim(),
        "0:2000\n0:2000\n0:2000"
    );
    inside(&node, "a", "two", "echo x > /data/two; echo x > /memory/two");
    assert_eq!(std::fs::metadata(data.join("two")).unwrap().uid(), 1000);
    assert_eq!(
        inside(&node, "a", "one", "stat -c %u:%g /data/two /memory/two").trim(),
        "1000:2000\n1000:2000"
    );
    assert_eq!(inside(&node, "a", "two", "cat /settings/key; cat /own/name"), "valuea-n1");
    assert_eq!(inside(&node, "a", "one", "stat -c %u:%g /host/file").trim(), "1234:4321");
    inside(&node, "a", "one", "touch /host/new");
    assert_eq!(std::fs::metadata(host.join("new")).unwrap().uid(), 0);

    // What reaches over the pod's edge works.
    node.machine().shell(&format!("busybox ping -c1 -W5 {}", pod.ip())).unwrap();
    let log = node.berth(&["logs", "a-n1", "-c", "one"]).unwrap().ok().unwrap();
    assert_eq!(log.trim(), "started");

    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    assert_eq!(std::fs::read_dir(node.path("root/users")).unwrap().count(), 0, "its ids are free again");
}

#[test]
fn pods_have_ranges_of_their_own_which_outlive_the_agent() {
    let mut node = Node::start().unwrap();
    let sleeper = |name: &str| Builder::new(name).shell("exec sleep 1000000").with_pod("hostUsers: false");
    node.apply("a.yaml", &sleeper("a").yaml()).unwrap();
    let a = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.kill9_agent().unwrap();
    node.apply("b.yaml", &sleeper("b").yaml()).unwrap();
    node.start_agent().unwrap();
    let b = node.wait_running(&["b"]).unwrap().remove("b").unwrap();
    let (first, second) = (owner(&node, &a), owner(&node, &b));
    assert_eq!([first, second], [(FIRST, FIRST), (FIRST + COUNT, FIRST + COUNT)]);
    // A container that is made anew by the next agent is in the same namespace.
    let namespace = "readlink /proc/self/ns/user";
    let before = inside(&node, "a", "main", namespace);
    let pid = node.pids(a.uid()).unwrap()[0];
    node.machine().kill("KILL", &[pid]).unwrap();
    node.wait("a runs again", std::time::Duration::from_secs(30), |pods| {
        pods.get("a").is_some_and(|pod| pod.is_running() && pod.statuses()[0].restart_count == 1)
    })
    .unwrap();
    assert_eq!(inside(&node, "a", "main", namespace), before);
    assert_eq!(owner(&node, &a), first);
}

#[test]
fn processes_can_be_shared_and_procfs_unmasked() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with("securityContext: { procMount: Unmasked }")
        .with_pod("hostUsers: false")
        .with_pod("shareProcessNamespace: true");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    assert_eq!(inside(&node, "a", "main", "grep -c ' /proc/' /proc/self/mountinfo || true").trim(), "0");
    assert!(inside(&node, "a", "main", "ps").contains("sleep 1000000"));
    assert_eq!(inside(&node, "a", "main", "cat /proc/1/comm").trim(), "berth-pod");
}

#[test]
fn what_does_not_go_together_is_refused_by_field() {
    let node = Node::prepare("", &[]).unwrap();
    for (line, said) in [
        ("hostNetwork: true", "spec.hostNetwork: Forbidden: when `hostUsers` is false"),
        ("hostPID: true", "spec.hostPID: Forbidden: when `hostUsers` is false"),
        ("hostIPC: true", "spec.hostIPC: Forbidden: when `hostUsers` is false"),
    ] {
        let file = node.path("bad.yaml");
        let pod = Builder::new("a").shell("true").with_pod("hostUsers: false").with_pod(line);
        std::fs::write(&file, pod.yaml()).unwrap();
        let ran = node.berth(&["check", &file.to_string_lossy()]).unwrap().code(1).unwrap();
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(said), "{line}: {ran}");
    }
}

#[test]
fn a_user_without_a_place_in_the_namespace_is_named() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("true")
        .with_pod("hostUsers: false")
        .with_pod("securityContext: { runAsUser: 70000 }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_event("a", "70000 is not among the 65536 ids").unwrap();
}
