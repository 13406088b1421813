//! What is labelled how, for as long as the pod lives.

use std::time::Duration;

use berth_e2e::manifest::{Builder, IMAGE};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::poll::until_true;

use super::{CONFIG, inside, level, of_file, of_process, process};

/// Not the latest of anything, so that nobody asks a registry for it.
const TOOLS: &str = "docker.io/library/tools:1";
const SOON: Duration = Duration::from_secs(60);

fn settings(value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: settings }}\ndata: {{ key: {value} }}\n")
}

const VOLUMES: &str = "volumes: [
    { name: data, emptyDir: {} }, { name: memory, emptyDir: { medium: Memory } },
    { name: settings, configMap: { name: settings } },
    { name: own, downwardAPI: { items: [{ path: name, fieldRef: { fieldPath: metadata.name } }] } },
    { name: all, projected: { sources: [{ configMap: { name: settings } }] } }]";

const MOUNTS: &str = "volumeMounts: [{ name: data, mountPath: /data }, { name: memory, mountPath: /memory },
        { name: settings, mountPath: /settings }, { name: own, mountPath: /own }, { name: all, mountPath: /all },
        { name: data, mountPath: /sub, subPath: made/here }]";

/// Everything that a container has mounted, as it is with a pod of its own.
const FILES: [&str; 22] = [
    "/",
    "/bin/sh",
    "/dev",
    "/dev/null",
    "/dev/shm",
    "/dev/pts",
    "/dev/mqueue",
    "/dev/termination-log",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/data",
    "/data/made",
    "/sub",
    "/memory",
    "/settings",
    "/settings/..data",
    "/settings/key",
    "/settings/..data/key",
    "/own",
    "/own/..data/name",
    "/all/..data/key",
];

#[test]
fn a_container_and_all_that_it_has_are_labelled_for_as_long_as_the_pod_lives() {
    let mut node = Node::with(CONFIG, &[]).unwrap();
    node.berth(&["image", "tag", IMAGE, TOOLS]).unwrap().ok().unwrap();
    node.apply("settings.yaml", &settings("one")).unwrap();
    let shell = "cat /proc/1/attr/current > /data/first; for d in /data /memory /tmp /dev/shm /sub; do echo x > $d/written || exit 9; \
                 done; cat /settings/key /own/name /etc/hosts >/dev/null || exit 8; echo up; exec sleep 1000000";
    let pod = Builder::new("a")
        .shell(shell)
        .with("readinessProbe: { exec: { command: [sh, -c, 'cat /proc/self/attr/current >/data/probe'] }, periodSeconds: 1 }")
        .with("lifecycle: { postStart: { exec: { command: [sh, -c, 'cat /proc/self/attr/current >/data/hook'] } } }")
        .with(MOUNTS)
        .with_pod(VOLUMES);
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "up").unwrap();
    let pid = node.pids(found.uid()).unwrap()[0];
    let label = process(&node, pid);
    let level = level(&label);
    assert_eq!(label, of_process(&level));
    for path in FILES {
        assert_eq!(inside(&node, pid, path), of_file(&level), "{path}");
    }
    // What it makes itself is its own, too.
    for path in ["/data/written", "/memory/written", "/tmp/written", "/dev/shm/written", "/sub/written"] {
        assert_eq!(inside(&node, pid, path), of_file(&level), "{path}");
    }
    // The kernel's file systems keep theirs, and the shim is none of the pod's.
    assert_eq!(inside(&node, pid, "/sys"), "system_u:object_r:sysfs_t:s0");
    assert_eq!(process(&node, node.shim(found.uid()).unwrap()), "system_u:system_r:kernel_t:s0");

    // Whatever else runs in it.
    let read =
        |file: &str| node.exec("a", &["cat", file]).unwrap().ok().unwrap().trim_end_matches('\0').to_owned();
    assert_eq!((read("/proc/self/attr/current"), read("/data/first")), (label.clone(), label.clone()));
    until_true("the probe has run", SOON, || {
        node.exec("a", &["test", "-s", "/data/probe"]).unwrap().code == 0
    })
    .unwrap();
    assert_eq!((read("/data/probe"), read("/data/hook")), (label.clone(), label.clone()));
    node.berth(&["debug", "a-n1", "--image", TOOLS, "--container", "more", "--", "sleep", "1000000"])
        .unwrap()
        .ok()
        .unwrap();
    let running = || node.pids(found.uid()).unwrap().len() == 2;
    until_true("a second container runs", SOON, running).unwrap();
    for pid in node.pids(found.uid()).unwrap() {
        assert_eq!(process(&node, pid), label);
    }

    // What the agent writes later.
    node.apply("settings.yaml", &settings("two")).unwrap();
    until_true("the volume follows", SOON, || read("/settings/key") == "two").unwrap();
    for path in ["/settings/..data", "/settings/..data/key", "/settings/..data/.", "/all/..data/key"] {
        assert_eq!(inside(&node, pid, path), of_file(&level), "{path}");
    }

    // A container that starts again, under another agent, too.
    node.kill9_agent().unwrap();
    node.machine().kill("KILL", &[pid]).unwrap();
    node.start_agent().unwrap();
    node.wait("it runs again", SOON, |pods| {
        pods.get("a")
            .is_some_and(|p| p.is_running() && p.container("main").is_some_and(|c| c.restart_count == 1))
    })
    .unwrap();
    for pid in node.pids(found.uid()).unwrap() {
        assert_eq!(process(&node, pid), label);
    }
    let lease = node.path(&format!("root/selinux/{}", found.uid()));
    assert!(std::fs::read_to_string(&lease).unwrap().contains(&level));
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    assert!(!lease.exists(), "the level is free again");
    node.finish().unwrap();
}

#[test]
fn containers_of_a_pod_share_one_level_unless_they_name_another() {
    let node = Node::with(CONFIG, &[]).unwrap();
    let container = |name: &str, more: &str| {
        format!(
            "    - name: {name}\n      image: {IMAGE}\n      imagePullPolicy: Never\n      command: [sh, -c, 'echo x > /dev/shm/{name} && echo x > \
             /v/{name}; exec sleep 1000000']\n      volumeMounts: [{{ name: v, mountPath: /v }}]\n{more}"
        )
    };
    let pod = |name: &str, containers: &[String]| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec:\n  shareProcessNamespace: true\n  terminationGracePeriodSeconds: 1\n  \
             volumes: [{{ name: v, emptyDir: {{}} }}]\n  containers:\n{}",
            containers.concat()
        )
    };
    node.apply("a.yaml", &pod("a", &[container("one", ""), container("two", "")])).unwrap();
    let own = "      securityContext: { seLinuxOptions: { level: 's0:c900,c901' } }\n";
    let privileged = "      securityContext: { privileged: true }\n";
    node.apply("b.yaml", &pod("b", &[container("one", own), container("two", privileged)])).unwrap();
    let pods = node.wait_running(&["a", "b"]).unwrap();

    // By the names of the processes: PID 1 of the pod, the reaper, is none of its containers.
    let labels: Vec<String> =
        node.pids(pods["a"].uid()).unwrap().iter().map(|pid| process(&node, *pid)).collect();
    let level = level(&labels[0]);
    assert_eq!(labels, [of_process(&level), of_process(&level)]);
    let pid = node.pids(pods["a"].uid()).unwrap()[0];
    assert_eq!(inside(&node, pid, "/dev/shm"), of_file(&level));
    let n1 = |pod: &str, container: &str, line: &str| {
        node.berth(&["exec", &format!("{pod}-n1"), "-c", container, "--", "sh", "-c", line]).unwrap()
    };
    for (container, other) in [("one", "two"), ("two", "one")] {
        n1("a", container, &format!("cat /dev/shm/{other} /v/{other}")).ok().unwrap();
    }

    // Files that only confined containers have to agree about have what the one here names.
    let mut labels: Vec<String> =
        node.pids(pods["b"].uid()).unwrap().iter().map(|pid| process(&node, *pid)).collect();
    labels.sort_unstable();
    assert_eq!(labels, [of_process("s0:c900,c901"), "system_u:system_r:spc_t:s0".to_owned()]);
    let pid = node.pids(pods["b"].uid()).unwrap()[0];
    for path in ["/v", "/dev/shm", "/etc/hosts"] {
        assert_eq!(inside(&node, pid, path), of_file("s0:c900,c901"), "{path}");
    }
    n1("b", "one", "cat /dev/shm/two /v/two").ok().unwrap();
    n1("b", "two", "cat /dev/shm/one /v/one").ok().unwrap();
}

#[test]
fn pods_with_users_of_their_own_are_labelled_too() {
    let node = Node::with(CONFIG, &[]).unwrap();
    let pod = Builder::new("a")
        .shell("echo x > /data/x && echo x > /dev/shm/x && echo x > /tmp/x && echo up; exec sleep 1000000")
        .with("volumeMounts: [{ name: data, mountPath: /data }]")
        .with_pod("hostUsers: false")
        .with_pod("volumes: [{ name: data, emptyDir: {} }]");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "up").unwrap();
    let pid = node.pids(found.uid()).unwrap()[0];
    let label = process(&node, pid);
    assert_eq!(label, of_process(&level(&label)));
    for path in ["/", "/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/data", "/data/x", "/etc/hosts"] {
        assert_eq!(inside(&node, pid, path), of_file(&level(&label)), "{path}");
    }
}
