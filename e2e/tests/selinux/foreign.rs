//! Other OCI runtimes get the labels, too.

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::tools;

use super::{CONFIG, inside, level, of_file, of_process, process};

#[test]
fn crun_and_runc_label_containers_as_we_do() {
    let path = |name| tools::find(name).unwrap().display().to_string();
    let runtimes =
        format!("runtimes:\n  crun: {{ path: {} }}\n  runc: {{ path: {} }}\n", path("crun"), path("runc"));
    let node = Node::with(&format!("{CONFIG}{runtimes}"), &[]).unwrap();
    for name in ["crun", "runc"] {
        let pod = Builder::new(name)
            .shell("echo x > /data/x && echo x > /tmp/x && echo up; exec sleep 1000000")
            .with("volumeMounts: [{ name: data, mountPath: /data }]")
            .with_pod("volumes: [{ name: data, emptyDir: {} }]")
            .with_pod(&format!("runtimeClassName: {name}"));
        node.apply(&format!("{name}.yaml"), &pod.yaml()).unwrap();
    }
    for (name, found) in node.wait_running(&["crun", "runc"]).unwrap() {
        node.wait_log(&found, "up").unwrap();
        let pid = node.pids(found.uid()).unwrap()[0];
        let label = process(&node, pid);
        let level = level(&label);
        assert_eq!(label, of_process(&level), "{name}");
        for path in ["/", "/dev", "/dev/mqueue", "/data", "/data/x", "/etc/hosts"] {
            assert_eq!(inside(&node, pid, path), of_file(&level), "{name}: {path}");
        }
        let of_exec = node.exec(&name, &["cat", "/proc/self/attr/current"]).unwrap().ok().unwrap();
        assert_eq!(of_exec.trim_end_matches('\0'), label, "{name}");
    }
}
