//! Many at once.

use std::time::{Duration, Instant};

use berth_e2e::manifest;
use berth_e2e::node::Node;
use berth_e2e::pods::{PodExt, Pods};

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
