//! Labels of pods on a kernel with SELinux that enforces `scripts/vm/selinux.cil`: `scripts/vm/test` boots one.
#![allow(clippy::unwrap_used)]

mod apart;
mod foreign;
mod labels;
mod refused;
mod volumes;

use berth_e2e::node::Node;

/// What makes a node label its pods.
const CONFIG: &str = "selinux: true\ncrashLoopBackOff: { maxContainerRestartPeriod: 1s }\n";

/// The label of a process, as the machine sees it.
fn process(node: &Node, pid: i32) -> String {
    let label = node.machine().shell(&format!("cat /proc/{pid}/attr/current")).unwrap();
    label.trim_end_matches(['\0', '\n']).to_owned()
}

/// The label of a file of the machine; of a link itself.
fn file(node: &Node, path: &str) -> String {
    let listed = node.machine().shell(&format!("ls -dZ '{path}'")).unwrap();
    listed.split_whitespace().next().unwrap().to_owned()
}

/// The label of a file as a container has it.
fn inside(node: &Node, pid: i32, path: &str) -> String {
    file(node, &format!("/proc/{pid}/root{path}"))
}

/// What is labelled for containers by the default contexts.
fn of_process(level: &str) -> String {
    format!("system_u:system_r:container_t:{level}")
}

/// See [`of_process`].
fn of_file(level: &str) -> String {
    format!("system_u:object_r:container_file_t:{level}")
}

/// The two categories that a pod was given, in a level of them.
fn level(label: &str) -> String {
    let level = label.splitn(4, ':').nth(3).unwrap();
    let categories: Vec<u32> =
        level.strip_prefix("s0:c").unwrap().split(",c").map(|number| number.parse().unwrap()).collect();
    assert!(categories.len() == 2 && categories[0] < categories[1] && categories[1] < 1024, "{label}");
    level.to_owned()
}

/// Gives a file of the machine a label.
fn relabel(node: &Node, label: &str, path: &std::path::Path) {
    node.machine().shell(&format!("chcon '{label}' '{}'", path.display())).unwrap();
}
