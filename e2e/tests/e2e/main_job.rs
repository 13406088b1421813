//! The main job: a file in the folder becomes running containers, follows the file, and goes with it.

use std::time::Duration;

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::poll;

#[test]
fn a_file_becomes_a_pod_follows_its_changes_and_goes_with_it() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "echo one; exec sleep 1000000")).unwrap();
    let first = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&first, "one").unwrap();
    let pid = node.pids(first.uid()).unwrap()[0];

    node.apply("a.yaml", &manifest::pod("a", "echo two; exec sleep 1000000")).unwrap();
    let pods = node
        .wait("the changed pod replaces the first", Duration::from_secs(30), |pods| {
            pods.get("a").is_some_and(|p| p.uid() != first.uid() && p.is_running())
        })
        .unwrap();
    let second = &pods["a"];
    node.wait_log(second, "two").unwrap();
    assert!(!node.machine().alive(pid), "the first process still runs");

    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    node.finish().unwrap();
}

#[test]
fn the_same_text_written_again_changes_nothing() {
    let node = Node::start().unwrap();
    let text = manifest::pod("a", "exec sleep 1000000");
    node.apply("a.yaml", &text).unwrap();
    let first = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let pids = node.pids(first.uid()).unwrap();
    node.apply("a.yaml", &text).unwrap();
    node.apply("b.yaml", &manifest::pod("b", "exec sleep 1000000")).unwrap();
    node.wait_running(&["a", "b"]).unwrap();
    assert_eq!(node.pids(first.uid()).unwrap(), pids);
}

#[test]
fn lists_documents_json_and_several_files_all_count() {
    let node = Node::start().unwrap();
    let many = format!(
        "{}---\n{}",
        manifest::pod("doc1", "exec sleep 1000000"),
        manifest::pod("doc2", "exec sleep 1000000")
    );
    node.apply("many.yml", &many).unwrap();
    let item = |name: &str| {
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": manifest::IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "1000000"]}]}})
    };
    let list =
        serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [item("item1"), item("item2")]});
    node.apply("list.json", &list.to_string()).unwrap();
    node.apply("single.json", &item("single").to_string()).unwrap();
    node.wait_running(&["doc1", "doc2", "item1", "item2", "single"]).unwrap();

    // One document of the file goes; the other stays as it is.
    let doc1 = node.pod("doc1").unwrap();
    node.apply("many.yml", &manifest::pod("doc1", "exec sleep 1000000")).unwrap();
    node.wait_gone("doc2").unwrap();
    assert_eq!(node.pod("doc1").unwrap().uid(), doc1.uid());
}

#[test]
fn dot_files_and_editors_files_are_ignored() {
    let node = Node::start().unwrap();
    for name in [".hidden.yaml", ".a.yaml.swp", "a.yaml~", "#a.yaml#", "4913", "a.yaml.bak"] {
        node.apply(name, &manifest::pod("wrong", "exec sleep 1000000")).unwrap();
    }
    node.apply("right.yaml", &manifest::pod("right", "exec sleep 1000000")).unwrap();
    let pods = node.wait_running(&["right"]).unwrap();
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["right"]);
}

#[test]
fn a_status_has_the_conditions_addresses_and_times_that_kubernetes_defines() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    let pods = node
        .wait("a is ready", Duration::from_secs(20), |pods| pods.get("a").is_some_and(|p| p.has("Ready")))
        .unwrap();
    let pod = &pods["a"];
    for condition in ["PodScheduled", "Initialized", "ContainersReady", "Ready", "PodReadyToStartContainers"]
    {
        assert!(pod.has(condition), "{condition} is not True: {:?}", pod.status);
    }
    let status = pod.status.as_ref().unwrap();
    assert!(status.start_time.is_some());
    assert_eq!(status.host_ip.as_deref(), Some(berth_e2e::machine::ADDRESS));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let container = pod.container("main").unwrap();
    assert!(container.ready && container.started == Some(true), "{container:?}");
    assert!(container.container_id.as_deref().unwrap().starts_with("berth://"), "{container:?}");
    assert!(container.image_id.contains("sha256:"), "{container:?}");
    assert!(pod.metadata.annotations.as_ref().unwrap()["kubernetes.io/config.source"] == "file");
}

#[test]
fn deletion_sends_term_waits_for_the_grace_period_and_kills() {
    let node = Node::start().unwrap();
    let polite = Builder::new("polite")
        .grace(30)
        .shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done");
    let deaf = Builder::new("deaf").grace(2).shell("trap '' TERM; echo up; while :; do sleep 0.1; done");
    node.apply("polite.yaml", &polite.yaml()).unwrap();
    node.apply("deaf.yaml", &deaf.yaml()).unwrap();
    let pods = node.wait_running(&["polite", "deaf"]).unwrap();
    node.wait_log(&pods["polite"], "up").unwrap();
    node.wait_log(&pods["deaf"], "up").unwrap();

    let start = std::time::Instant::now();
    node.remove("polite.yaml").unwrap();
    node.remove("deaf.yaml").unwrap();
    node.wait_gone("polite").unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(25),
        "a polite pod was waited for until its grace was over"
    );
    node.wait_gone("deaf").unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(1900), "a deaf pod was killed before its time: {took:?}");
}

#[test]
fn a_pod_that_is_removed_while_its_image_is_missing_goes_at_once() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a").image("docker.io/library/nowhere:latest", "Never").yaml();
    node.apply("a.yaml", &pod).unwrap();
    node.wait("it says what is wrong", Duration::from_secs(20), |pods| {
        pods.get("a").is_some_and(|p| p.reason() == "ErrImageNeverPull")
    })
    .unwrap();
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
}

#[test]
fn an_agent_that_ends_on_term_leaves_its_pods_running() {
    let mut node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let pids = node.pids(pod.uid()).unwrap();
    node.stop_agent().unwrap();
    assert_eq!(node.pids(pod.uid()).unwrap(), pids);
    // The folder may change while nobody looks.
    node.remove("a.yaml").unwrap();
    node.apply("b.yaml", &manifest::pod("b", "exec sleep 1000000")).unwrap();
    node.start_agent().unwrap();
    node.wait_running(&["b"]).unwrap();
    node.wait_gone("a").unwrap();
    poll::until_true("a's process is gone", Duration::from_secs(5), || {
        pids.iter().all(|p| !node.machine().alive(*p))
    })
    .unwrap();
}

#[test]
fn an_address_that_cannot_be_had_is_told_before_anything_is_made() {
    // Nobody's here.
    let mut node = Node::prepare("apiAddress: 192.0.2.7:1000\n", &[]).unwrap();
    let why = node.start_agent().unwrap_err().to_string();
    assert!(why.contains("listen on 192.0.2.7:1000; choose another with --api-address"), "{why}");
    assert_eq!(node.machine().shell("nft list tables").unwrap(), "");
    for top in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
        let cgroup = format!("{top}{}", node.cgroup_parent());
        assert!(!std::path::Path::new(&cgroup).exists(), "{cgroup}");
    }
}

#[test]
fn an_address_of_the_pods_bridge_is_listened_at_once_that_is_there() {
    let node = Node::with("podCIDR: 10.91.0.0/16\napiAddress: 10.91.0.1:6443\n", &[]).unwrap();
    node.machine().shell("busybox nc -w 5 10.91.0.1 6443 </dev/null").unwrap();
    node.finish().unwrap();
}
