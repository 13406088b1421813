//! The command line: exit codes, messages, and the verbs that other tests do not use.

use std::time::Duration;

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{poll, tools};

#[test]
fn wrong_words_end_with_2_and_failures_with_1() {
    let node = Node::start().unwrap();
    for words in [
        &["no-such-verb"][..],
        &["get"],
        &["logs"],
        &["get", "pods", "-o", "xml"],
        &["agent", "--no-such-flag"],
    ] {
        let ran = node.berth(words).unwrap().code(2).unwrap();
        assert!(!ran.stderr.is_empty(), "{ran}");
    }
    let absent = node.berth(&["get", "pod", "nobody"]).unwrap().code(1).unwrap();
    assert!(absent.stderr.contains("nobody") && absent.stderr.contains("not found"), "{absent}");
    assert!(node.berth(&["version"]).unwrap().ok().unwrap().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn without_an_agent_the_error_names_the_socket() {
    let node = Node::prepare("", &[]).unwrap();
    let ran = node.berth(&["get", "pods"]).unwrap().code(1).unwrap();
    assert!(ran.stderr.contains("berth.sock"), "{ran}");
    assert_eq!(ran.stderr.trim().lines().filter(|l| l.contains("panicked")).count(), 0);
}

#[test]
fn apply_get_describe_and_delete_a_pod_by_the_api() {
    let node = Node::start().unwrap();
    let file = node.path("pod.yaml");
    std::fs::write(&file, manifest::pod("by-hand", "echo hi; exec sleep 1000000")).unwrap();
    let applied = node.berth(&["apply", "-f", &file.to_string_lossy()]).unwrap().ok().unwrap();
    assert!(applied.contains("by-hand"), "{applied}");
    node.wait_running(&["by-hand"]).unwrap();
    let wide = node.berth(&["get", "pods", "-o", "wide"]).unwrap().ok().unwrap();
    let row = wide.lines().find(|l| l.starts_with("by-hand")).unwrap();
    assert!(
        row.contains("1/1") && row.contains("Running") && row.contains(node.pod("by-hand").unwrap().ip()),
        "{wide}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&node.berth(&["get", "pod", "by-hand", "-o", "json"]).unwrap().ok().unwrap())
            .unwrap();
    assert_eq!((json["kind"].as_str(), json["status"]["phase"].as_str()), (Some("Pod"), Some("Running")));
    let yaml = node.berth(&["get", "pod", "by-hand", "-o", "yaml"]).unwrap().ok().unwrap();
    assert!(yaml.contains("kind: Pod") && yaml.contains("phase: Running"), "{yaml}");
    let describe = node.berth(&["describe", "pod", "by-hand"]).unwrap().ok().unwrap();
    assert!(describe.contains("Started") && describe.contains("by-hand"), "{describe}");
    let nodes = node.berth(&["get", "nodes"]).unwrap().ok().unwrap();
    assert!(nodes.contains("n1") && nodes.contains("Ready"), "{nodes}");
    node.berth(&["get", "events"]).unwrap().ok().unwrap();
    node.berth(&["delete", "pod", "by-hand"]).unwrap().ok().unwrap();
    node.wait_gone("by-hand").unwrap();
}

#[test]
fn apply_refuses_a_bad_manifest_with_its_place() {
    let node = Node::start().unwrap();
    let input = manifest::pod("x", "true").replace("      image: ", "      imagee: ");
    let ran = tools::run_with(node.berth_command(&["apply", "-f", "-"]), input.as_bytes())
        .unwrap()
        .code(1)
        .unwrap();
    assert!(ran.stderr.contains("spec.containers[0].imagee"), "{ran}");
    assert!(node.pods().unwrap().is_empty());
}

#[test]
fn an_applied_pod_survives_the_agent() {
    let mut node = Node::start().unwrap();
    let ran = tools::run_with(
        node.berth_command(&["apply", "-f", "-"]),
        manifest::pod("kept", "exec sleep 1000000").as_bytes(),
    );
    ran.unwrap().ok().unwrap();
    let pod = node.wait_running(&["kept"]).unwrap().remove("kept").unwrap();
    let pids = node.pids(pod.uid()).unwrap();
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    let again = node.wait_running(&["kept"]).unwrap().remove("kept").unwrap();
    assert_eq!((again.uid(), node.pids(pod.uid()).unwrap()), (pod.uid(), pids));
}

#[test]
fn delete_with_grace_zero_kills_at_once() {
    let node = Node::start().unwrap();
    let deaf =
        Builder::new("deaf").grace(60).shell("trap '' TERM; echo up; while :; do sleep 0.1; done").yaml();
    tools::run_with(node.berth_command(&["apply", "-f", "-"]), deaf.as_bytes()).unwrap().ok().unwrap();
    let pod = node.wait_running(&["deaf"]).unwrap().remove("deaf").unwrap();
    node.wait_log(&pod, "up").unwrap();
    let start = std::time::Instant::now();
    node.berth(&["delete", "pod", "deaf", "--grace-period", "0"]).unwrap().ok().unwrap();
    node.wait_gone("deaf").unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn cleanup_on_exit_removes_everything_but_images() {
    let mut node = Node::with("", &["--cleanup-on-exit"]).unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    node.wait_running(&["a"]).unwrap();
    node.stop_agent().unwrap();
    // The shim that waited for another pod notices that nobody will ask for it.
    poll::until_true("no process is left", Duration::from_secs(30), || {
        node.machine().processes().unwrap().is_empty()
    })
    .unwrap();
    assert_eq!(node.machine().links().unwrap(), ["lo", "up0"]);
    assert_eq!(node.machine().shell("nft list tables").unwrap(), "");
    assert_eq!(berth_e2e::leftovers::cgroups(node.cgroup_parent()), Vec::<std::path::PathBuf>::new());
    assert_eq!(berth_e2e::leftovers::of_pods(&node).unwrap(), Vec::<String>::new());
}
