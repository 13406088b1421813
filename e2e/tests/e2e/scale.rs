//! Many at once.

use std::time::{Duration, Instant};

use berth_e2e::manifest;
use berth_e2e::node::Node;
use berth_e2e::pods::{PodExt, Pods};
use berth_e2e::poll;

#[test]
fn a_hundred_pods_at_once_run_and_go() {
    let node = Node::start().unwrap();
    let start = Instant::now();
    for i in 0..100 {
        node.apply(&format!("p{i}.yaml"), &manifest::pod(&format!("p{i}"), "exec sleep 1000000")).unwrap();
    }
    let all = |pods: &Pods| pods.len() == 100 && pods.values().all(PodExt::is_running);
    let pods = node.wait("all 100 run", Duration::from_secs(90), all).unwrap();
    eprintln!("100 pods ran after {:?}", start.elapsed());
    let mut ips: Vec<&str> = pods.values().map(PodExt::ip).collect();
    ips.sort_unstable();
    ips.dedup();
    assert_eq!(ips.len(), 100, "two pods share an address");
    for i in 0..100 {
        node.remove(&format!("p{i}.yaml")).unwrap();
    }
    node.wait("all are gone", Duration::from_secs(90), Pods::is_empty).unwrap();
    node.finish().unwrap();
}

/// Kilobytes of the agent's memory: of its heap, and of its own program.
fn memory(node: &Node) -> (u64, u64) {
    let path = node.machine().root().join(format!("proc/{}/smaps", node.agent().unwrap()));
    let (mut heap, mut program, mut name) = (0, 0, String::new());
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Rss:"), Some(size)) if name == "[heap]" => heap += size.parse::<u64>().unwrap(),
            (Some("Rss:"), Some(size)) if name.ends_with("/berth") => program += size.parse::<u64>().unwrap(),
            (Some(first), Some(_)) if !first.ends_with(':') => {
                name = words.nth(3).unwrap_or_default().to_owned()
            }
            _ => {}
        }
    }
    assert!(heap > 0 && program > 0);
    (heap, program)
}

#[test]
fn the_agent_gives_back_what_pods_and_requests_took() {
    const PODS: usize = 40;
    const PATIENCE: Duration = Duration::from_secs(60);
    let node = Node::start().unwrap();
    let (before, _) = memory(&node);
    let all = |pods: &Pods| pods.len() == PODS && pods.values().all(PodExt::is_running);
    for i in 0..PODS {
        node.apply(&format!("p{i}.yaml"), &manifest::pod(&format!("p{i}"), "exec sleep 1000000")).unwrap();
    }
    node.wait("all run", Duration::from_secs(90), all).unwrap();
    let (with_pods, _) = memory(&node);
    for i in 0..PODS {
        node.remove(&format!("p{i}.yaml")).unwrap();
    }
    node.wait("all are gone", Duration::from_secs(90), Pods::is_empty).unwrap();
    // Events of an hour and tables that have grown are kept.
    let most = before + 1024;
    assert!(with_pods > most, "{with_pods} KB with pods, {before} KB before");
    poll::until("the heap is small again", PATIENCE, || match memory(&node).0 {
        heap if heap <= most => Ok(Some(())),
        heap => Err(format!("{heap} KB, {before} KB before")),
    })
    .unwrap();
    // What was packed is there for who asks.
    let events = node.berth(&["get", "events"]).unwrap().ok().unwrap();
    let (_, program) = memory(&node);
    assert_eq!(events.lines().filter(|line| line.contains("Container started")).count(), PODS, "{events}");
    poll::until_true("the code of the request is forgotten", PATIENCE, || memory(&node).1 < program).unwrap();
    node.finish().unwrap();
}

#[test]
fn two_nodes_on_one_kernel_do_not_touch_each_other() {
    let (one, two) = (Node::start().unwrap(), Node::start().unwrap());
    one.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    two.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    one.wait_running(&["a"]).unwrap();
    let pod = two.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let pids = two.pids(pod.uid()).unwrap();
    one.finish().unwrap();
    assert_eq!(two.pids(pod.uid()).unwrap(), pids);
}
