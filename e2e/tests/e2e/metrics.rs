//! What the node says of itself over HTTP.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{poll, tools};
use serde_json::Value;

/// A figure of the pod's container.
fn value(page: &str, name: &str) -> Option<f64> {
    let line = page.lines().find(|l| l.starts_with(&format!("{name}{{")) && l.contains("pod=\"a-n1\""))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn promtool_accepts_the_metrics_and_they_tell_of_the_containers() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("while :; do :; done")
        .with("resources: { requests: { cpu: 50m, memory: 16Mi }, limits: { cpu: 100m, memory: 32Mi } }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    let page = poll::until("the container has used CPU", Duration::from_secs(20), || {
        let page = node.page("/metrics").map_err(|e| e.to_string())?;
        let line = page
            .lines()
            .find(|l| l.starts_with("container_cpu_usage_seconds_total{") && l.contains("pod=\"a-n1\""));
        let used = line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
        if used > 0.0 { Ok(Some(page)) } else { Err(page) }
    })
    .unwrap();
    for name in [
        "container_memory_working_set_bytes",
        "container_cpu_cfs_throttled_periods_total",
        "container_network_receive_bytes_total",
        "container_processes",
        "container_last_seen",
    ] {
        assert!(value(&page, name).is_some(), "{name} is not there: {page}");
    }
    for (name, wanted) in [
        ("container_spec_cpu_period", 100_000.0),
        ("container_spec_cpu_quota", 10_000.0),
        ("container_spec_cpu_shares", 51.0),
        ("container_spec_memory_limit_bytes", f64::from(32 << 20)),
        ("container_spec_memory_reservation_limit_bytes", f64::from(16 << 20)),
        ("container_threads", 1.0),
    ] {
        assert_eq!(value(&page, name), Some(wanted), "{name}");
    }
    let resource = node.page("/metrics/resource").unwrap();
    let words = |name: &str| {
        let line = resource.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{name} is not there: {resource}")).split_whitespace().count()
    };
    for name in
        ["node_cpu_usage_seconds_total", "pod_memory_working_set_bytes", "container_cpu_usage_seconds_total"]
    {
        assert_eq!(words(name), 3, "{name} says when that was: {resource}");
    }
    for name in ["container_start_time_seconds", "resource_scrape_error"] {
        assert_eq!(words(name), 2, "{name}");
    }
    for page in [page, resource] {
        let mut check = std::process::Command::new(tools::find("promtool").unwrap());
        check.args(["check", "metrics"]);
        let ran = tools::run_with(check, page.as_bytes()).unwrap();
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    }
}

#[test]
fn healthz_and_readyz_answer_ok() {
    let node = Node::start().unwrap();
    assert_eq!(node.page("/healthz").unwrap().trim(), "ok");
    poll::until_true("the node is ready", Duration::from_secs(10), || {
        node.page("/readyz").is_ok_and(|t| t.trim() == "ok")
    })
    .unwrap();
    assert!(node.page("/nowhere").is_err());
}

#[test]
fn metrics_of_a_removed_pod_are_gone() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &Builder::new("a").shell("exec sleep 1000000").yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    assert!(node.page("/metrics").unwrap().contains("pod=\"a-n1\""));
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    assert!(!node.page("/metrics").unwrap().contains("pod=\"a-n1\""));
}

#[test]
fn an_idle_node_uses_no_cpu() {
    let node = Node::start().unwrap();
    for i in 0..5 {
        node.apply(&format!("p{i}.yaml"), &Builder::new(&format!("p{i}")).shell("exec sleep 1000000").yaml())
            .unwrap();
    }
    node.wait("all are ready", Duration::from_secs(30), |pods| {
        pods.len() == 5 && pods.values().all(|p| p.has("Ready"))
    })
    .unwrap();
    poll::pause(Duration::from_secs(2));
    let processes = node.machine().processes().unwrap();
    let ours: Vec<i32> =
        processes.into_iter().filter(|p| !p.command.starts_with("sleep")).map(|p| p.pid).collect();
    assert_eq!(ours.len(), 7, "an agent, 5 shims and one that waits");
    let before = node.machine().cpu(&ours).unwrap();
    poll::pause(Duration::from_secs(10));
    let spent = node.machine().cpu(&ours).unwrap().since(&before);
    assert!(spent < Duration::from_millis(20), "the agent and 5 shims used {spent:?} of CPU in 10 s");
}

#[test]
fn the_summary_tells_who_uses_what() {
    let node = Node::start().unwrap();
    node.apply("busy.yaml", &Builder::new("busy").shell("while :; do :; done").yaml()).unwrap();
    node.apply("idle.yaml", &Builder::new("idle").shell("exec sleep 1000").yaml()).unwrap();
    let pods = node.wait_running(&["busy", "idle"]).unwrap();
    let summary: Value = serde_json::from_str(&node.page("/stats/summary").unwrap()).unwrap();
    assert_eq!(summary["node"]["nodeName"], "n1");
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64() > Some(0), "{summary}");
    let of = |name: &str| {
        let all = summary["pods"].as_array().unwrap();
        all.iter().find(|pod| pod["podRef"]["uid"] == pods[name].uid()).unwrap()
    };
    let cores = |name: &str| of(name)["containers"][0]["cpu"]["usageNanoCores"].as_u64().unwrap();
    assert!(cores("busy") > 10_000_000 && cores("busy") > cores("idle"), "{summary}");
    assert_eq!(of("busy")["network"]["name"], "eth0");
    assert!(of("idle")["memory"]["workingSetBytes"].as_u64() > Some(0), "{summary}");
}
