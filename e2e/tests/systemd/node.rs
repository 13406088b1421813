//! A node whose pods are in slices and scopes that systemd makes.

use std::time::Duration;

use berth_e2e::bundle::is_v2;
use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::poll::until_true;

use crate::unit::systemctl;

/// A property of a unit.
pub fn property(unit: &str, name: &str) -> String {
    let shown = systemctl(&["show", "-p", name, unit]).ok().unwrap();
    shown.trim().split_once('=').unwrap().1.to_owned()
}

/// Stops a slice, with all that is in it, also when the test has failed.
struct Slice(String);

impl Drop for Slice {
    fn drop(&mut self) {
        systemctl(&["stop", &self.0]);
    }
}

#[test]
fn pods_are_slices_and_containers_scopes() {
    let config = "cgroupDriver: systemd\nshutdownGracePeriod: 10s\ncrashLoopBackOff: { maxContainerRestartPeriod: 1s }\n";
    let mut node = Node::prepare(config, &[]).unwrap();
    let parent = node.cgroup_parent().trim_start_matches('/').replace('-', "_");
    let _slice = Slice(format!("{parent}.slice"));
    node.start_agent().unwrap();
    let limits = if is_v2() { "{ cpu: 500m, memory: 32Mi }" } else { "{ cpu: 500m }" };
    let pod = Builder::new("a")
        .shell("echo up; trap 'exit 0' TERM; while :; do sleep 0.1; done")
        .with(&format!("resources: {{ requests: {{ cpu: 250m }}, limits: {limits} }}"))
        .yaml();
    node.apply("a.yaml", &pod).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "up").unwrap();

    let tier = format!("{parent}-kubepods-burstable");
    let slice = format!("{tier}-pod{}.slice", found.uid().replace('-', "_"));
    let pids = node.pids(found.uid()).unwrap();
    let own = node.machine().shell(&format!("cat /proc/{}/cgroup", pids[0])).unwrap();
    let place = own.lines().find(|l| l.contains(".scope")).unwrap();
    let scope = place.rsplit('/').next().unwrap();
    assert!(
        place.contains(&format!("/{parent}.slice/{parent}-kubepods.slice/{tier}.slice/{slice}/")),
        "{own}"
    );
    assert_eq!(property(scope, "ActiveState"), "active");
    assert_eq!((property(scope, "Delegate"), property(scope, "Slice")), ("yes".to_owned(), slice.clone()));
    for unit in [scope, &slice] {
        assert_eq!(property(unit, "CPUQuotaPerSecUSec"), "500ms", "{unit}");
        if is_v2() {
            assert_eq!(property(unit, "MemoryMax"), (32 << 20).to_string(), "{unit}");
        }
    }
    // A reload and an agent that comes back find everything as it was.
    systemctl(&["daemon-reload"]).ok().unwrap();
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    node.wait_running(&["a"]).unwrap();
    assert_eq!(node.pids(found.uid()).unwrap(), pids);
    // PID 1 says that the machine goes on, and so do the pods.
    node.stop_agent().unwrap();
    node.start_agent().unwrap();
    node.wait_running(&["a"]).unwrap();
    assert_eq!(node.pids(found.uid()).unwrap(), pids);
    let log = node.agent_log();
    assert!(log.contains("ending; pods go on running") && !log.contains("cannot tell whether"), "{log}");
    assert_eq!(node.exec("a", &["echo", "hello"]).unwrap().ok().unwrap(), "hello\n");

    // A container that ends takes its scope along, and the next one gets another.
    node.machine().kill("KILL", &pids).unwrap();
    let gone = || property(scope, "LoadState") == "not-found" || property(scope, "ActiveState") == "inactive";
    until_true("the scope is gone", Duration::from_secs(30), gone).unwrap();
    node.wait("it runs again", Duration::from_secs(30), |pods| {
        pods.get("a")
            .is_some_and(|p| p.is_running() && p.container("main").is_some_and(|c| c.restart_count == 1))
    })
    .unwrap();
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    let gone = || property(&slice, "ActiveState") == "inactive";
    until_true("the slice is gone", Duration::from_secs(30), gone).unwrap();
    node.finish().unwrap();
}

/// An agent whose PIDs are those that systemd knows, which other runtimes tell it. Dropped, it ends with all that it has started.
struct OuterAgent {
    child: std::process::Child,
    run: std::path::PathBuf,
}

impl OuterAgent {
    fn start(node: &Node) -> OuterAgent {
        let log = std::fs::File::create(node.path("agent.log")).unwrap();
        let mut command = node.outer_agent();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let agent = OuterAgent { child, run: node.path("run") };
        let answers = || node.berth(&["get", "pods"]).is_ok_and(|ran| ran.code == 0);
        until_true("the agent answers", Duration::from_secs(30), answers).unwrap();
        agent
    }
}

impl Drop for OuterAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A shim takes its pod along.
        for pod in std::fs::read_dir(self.run.join("pods")).into_iter().flatten().flatten() {
            if let Ok(pid) = std::fs::read_to_string(pod.path().join("shim.pid")) {
                let _ = std::process::Command::new("kill").args(["-KILL", pid.trim()]).status();
            }
        }
    }
}

/// A handler of a RuntimeClass asks systemd for the scope itself, in the pod's slice.
fn a_pod_of_another_runtime(name: &str) {
    let program = berth_e2e::tools::find(name).unwrap().display().to_string();
    let config = format!("cgroupDriver: systemd\nruntimes: {{ {name}: {{ path: {program} }} }}\n");
    let node = Node::prepare(&config, &[]).unwrap();
    let parent = node.cgroup_parent().trim_start_matches('/').replace('-', "_");
    let _slice = Slice(format!("{parent}.slice"));
    let agent = OuterAgent::start(&node);
    let limits = if is_v2() { "{ cpu: 500m, memory: 64Mi }" } else { "{ cpu: 500m }" };
    let pod = Builder::new("a")
        .shell("echo up; trap 'exit 0' TERM; while :; do sleep 0.1; done")
        .with(&format!("resources: {{ requests: {{ cpu: 250m }}, limits: {limits} }}"))
        .with_pod(&format!("runtimeClassName: {name}"));
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "up").unwrap();
    let one = node.on_machine(found.uid()).unwrap().remove(0);
    let id = one.id;
    let slice = format!("{parent}-kubepods-burstable-pod{}.slice", found.uid().replace('-', "_"));
    let scope = format!("berth-{id}.scope");
    assert_eq!(property(&scope, "ActiveState"), "active");
    assert_eq!((property(&scope, "Delegate"), property(&scope, "Slice")), ("yes".to_owned(), slice.clone()));
    assert_eq!(property(&scope, "CPUQuotaPerSecUSec"), "500ms");
    if is_v2() {
        assert_eq!(property(&scope, "MemoryMax"), (64 << 20).to_string());
    }
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", one.pid)).unwrap();
    assert!(own.lines().any(|line| line.ends_with(&format!("/{slice}/{scope}"))), "{own}");
    systemctl(&["daemon-reload"]).ok().unwrap();
    let path = own.lines().find(|line| line.ends_with(&scope)).unwrap().split(':').nth(2).unwrap();
    let file = |v1: &str, v2: &str| {
        let file = if is_v2() {
            format!("/sys/fs/cgroup{path}/{v2}")
        } else {
            format!("/sys/fs/cgroup/cpu{path}/{v1}")
        };
        std::fs::read_to_string(&file).unwrap().trim().to_owned()
    };
    assert_eq!(file("cpu.cfs_quota_us", "cpu.max").split(' ').next(), Some("50000"));
    assert_eq!(node.exec("a", &["echo", "hello"]).unwrap().ok().unwrap(), "hello\n");
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    let gone =
        || property(&slice, "ActiveState") == "inactive" && property(&scope, "ActiveState") == "inactive";
    until_true("scope and slice are gone", Duration::from_secs(30), gone).unwrap();
    drop(agent);
}

mod a_pod_of_another_runtime {
    #[test]
    fn crun() {
        super::a_pod_of_another_runtime("crun");
    }

    #[test]
    fn runc() {
        super::a_pod_of_another_runtime("runc");
    }
}
