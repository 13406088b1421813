//! What a node says when it cannot label a pod.

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;

use super::{CONFIG, file, process};

#[test]
fn a_label_that_the_policy_does_not_know_is_named_with_its_field() {
    let node = Node::with(CONFIG, &[]).unwrap();
    let pod = |name: &str| Builder::new(name).shell("exec sleep 1000000");
    let options = "securityContext: { seLinuxOptions: { type: nobody_t } }";
    node.apply("a.yaml", &pod("a").with_pod(options).yaml()).unwrap();
    node.apply("b.yaml", &pod("b").with(options).yaml()).unwrap();
    let unknown = "does not know the label \"system_u:system_r:nobody_t:s0:c";
    let said = node.wait_event("a", unknown).unwrap();
    assert!(said.contains("spec.securityContext.seLinuxOptions: "), "{said}");
    let said = node.wait_event("b", unknown).unwrap();
    assert!(said.contains("spec.containers{main}.securityContext.seLinuxOptions: "), "{said}");
}

#[test]
fn a_node_that_labels_nothing_refuses_labels_and_names_the_setting() {
    let node = Node::start().unwrap();
    let pod = |name: &str| Builder::new(name).shell("exec sleep 1000000");
    let options = "securityContext: { seLinuxOptions: { level: 's0:c1,c2' } }";
    node.apply("a.yaml", &pod("a").yaml()).unwrap();
    let draft = node.path("b.yaml");
    std::fs::write(&draft, pod("b").with_pod(options).yaml()).unwrap();
    let said = node.berth(&["apply", "-f", &draft.display().to_string()]).unwrap();
    assert!(
        said.code == 1 && said.stderr.contains("spec.securityContext.seLinuxOptions: Forbidden"),
        "{said}"
    );
    assert!(said.stderr.contains("selinux: true"), "{said}");
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let pid = node.pids(found.uid()).unwrap()[0];
    assert_eq!(process(&node, pid), "system_u:system_r:kernel_t:s0");
    let hosts = node.path(&format!("run/pods/{}/etc/hosts", found.uid()));
    assert_eq!(file(&node, &hosts.display().to_string()), "system_u:object_r:tmpfs_t:s0");
}
