//! The end of the machine.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pid1;
use berth_e2e::pods::PodExt;
use berth_e2e::poll::until_true;
use serde_json::Value;

/// A node on a machine that is in that state, as its PID 1 says.
fn node(state: &'static str, config: &str) -> Node {
    let mut node = Node::prepare(config, &[]).unwrap();
    let bus = node.path("bus");
    pid1::serve(&bus, state).unwrap();
    node.set_env("DBUS_SYSTEM_BUS_ADDRESS", &format!("unix:path={}", bus.display()));
    node.start_agent().unwrap();
    node
}

#[test]
fn pods_end_before_the_machine_by_priority_and_come_back_with_their_data() {
    let mut node = node("stopping", "shutdownGracePeriod: 40s\nshutdownGracePeriodCriticalPods: 30s\n");
    let out = node.path("said");
    std::fs::create_dir(&out).unwrap();
    let pod = |name: &str, trap: &str| {
        Builder::new(name)
            .shell(&format!("{trap}; echo up >>/out/up; while :; do sleep 0.1; done"))
            .grace(600)
            .with("volumeMounts: [{ name: out, mountPath: /out }, { name: data, mountPath: /data }]")
            .with_pod(&format!(
                "volumes: [{{ name: out, hostPath: {{ path: {} }} }}, {{ name: data, emptyDir: {{}} }}]",
                out.display()
            ))
    };
    let told = |name: &str| format!("trap 'echo {name} >>/out/order; echo {name} >/data/last; exit 0' TERM");
    node.apply("early.yaml", &pod("early", &told("early")).yaml()).unwrap();
    // In its first life it ignores its signal, so it has the ten seconds that are there for ordinary pods, and not 600.
    let deaf_once = "if [ -e /data/life ]; then trap 'exit 0' TERM; else touch /data/life; trap '' TERM; fi";
    node.apply("deaf.yaml", &pod("deaf", deaf_once).yaml()).unwrap();
    let late = pod("late", &told("late")).with_pod("priorityClassName: system-node-critical");
    node.apply("late.yaml", &late.yaml()).unwrap();
    let names = ["early", "deaf", "late"];
    let before = node.wait_running(&names).unwrap();
    let are_up = |lives: usize| {
        let up = || std::fs::read_to_string(out.join("up")).is_ok_and(|text| text.lines().count() == lives);
        until_true("all handle their signals", Duration::from_secs(30), up).unwrap();
    };
    are_up(3);
    node.stop_agent().unwrap();
    assert_eq!(std::fs::read_to_string(out.join("order")).unwrap(), "early\nlate\n");
    for name in names {
        let uid = before[name].uid();
        let status = std::fs::read_to_string(node.path(&format!("run/pods/{uid}/status.json"))).unwrap();
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(
            (status["phase"].as_str(), status["reason"].as_str()),
            (Some("Failed"), Some("Terminated"))
        );
        let conditions = status["conditions"].as_array().unwrap();
        let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
        assert_eq!(target["status"], "True", "{name}");
        let code = &status["containerStatuses"][0]["state"]["terminated"]["exitCode"];
        assert_eq!(*code, if name == "deaf" { 137 } else { 0 }, "{name}");
    }
    // The agent has waited for the end of the sandboxes, too.
    let left = node.processes().unwrap();
    assert!(left.is_empty(), "{left:?}");
    // The machine is up again; its run folder need not be in memory.
    node.start_agent().unwrap();
    let after = node.wait_running(&names).unwrap();
    assert_eq!(after["early"].uid(), before["early"].uid());
    assert_eq!(after["early"].restarts(), 0);
    assert_eq!(node.exec("early", &["cat", "/data/last"]).unwrap().ok().unwrap(), "early\n");
    are_up(6);
    node.finish().unwrap();
}

#[test]
fn pods_go_on_when_only_the_agent_ends_or_nothing_is_said_about_the_machines_end() {
    for (state, config) in
        [("running", "shutdownGracePeriod: 30s\n"), ("stopping", "shutdownGracePeriod: 0s\n")]
    {
        let mut node = node(state, config);
        node.apply("a.yaml", &Builder::new("a").shell("exec sleep 1000000").yaml()).unwrap();
        let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
        let pids = node.pids(pod.uid()).unwrap();
        node.stop_agent().unwrap();
        assert!(node.machine().alive(pids[0]), "{state}");
        node.start_agent().unwrap();
        node.wait("it is taken over", Duration::from_secs(30), |pods| {
            pods.get("a").is_some_and(PodExt::is_running)
        })
        .unwrap();
        assert_eq!(node.pids(pod.uid()).unwrap(), pids);
        node.finish().unwrap();
    }
}
