//! Paused pods, shared processes, and kills for want of memory.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::poll;
use k8s_openapi::api::core::v1::Pod;

fn is_paused(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "berth.dev/Paused" && c.status == "True"))
}

#[test]
fn a_paused_pod_stands_still_is_not_probed_and_outlives_the_agent() {
    let mut node = Node::start().unwrap();
    // Without the pause this probe would have it killed within two seconds.
    let pod = Builder::new("a")
        .shell("while :; do date +%s >/tmp/alive; echo tick; sleep 0.05; done")
        .with("livenessProbe: { exec: { command: [sh, -c, 'test $(($(date +%s)-$(cat /tmp/alive))) -lt 2'] }, periodSeconds: 1, failureThreshold: 1 }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "tick").unwrap();
    node.berth(&["pause", "pod", "a-n1"]).unwrap().ok().unwrap();
    node.wait("the status shows the pause", Duration::from_secs(20), |p| p.get("a").is_some_and(is_paused))
        .unwrap();
    let row = node.berth(&["get", "pods"]).unwrap().ok().unwrap();
    assert!(row.contains("Paused"), "{row}");
    let before = node.log(&found, "main", 0).unwrap().len();
    let refused = node.exec("a", &["true"]).unwrap().code(1).unwrap();
    assert!(refused.stderr.contains("paused"), "{refused}");
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    // The agent that comes back knows, and leaves it alone for longer than its probe would.
    let again =
        node.wait("it is still paused", Duration::from_secs(20), |p| p.get("a").is_some_and(is_paused));
    assert_eq!(again.unwrap().remove("a").unwrap().uid(), found.uid());
    poll::pause(Duration::from_secs(3));
    assert_eq!(node.log(&found, "main", 0).unwrap().len(), before);
    node.berth(&["resume", "pod/a-n1"]).unwrap().ok().unwrap();
    node.wait("the pause is over", Duration::from_secs(20), |p| p.get("a").is_some_and(|p| !is_paused(p)))
        .unwrap();
    poll::until("it goes on", Duration::from_secs(20), || {
        let now = node.log(&found, "main", 0).map_err(|e| e.to_string())?.len();
        if now > before { Ok(Some(())) } else { Err(format!("{now} lines")) }
    })
    .unwrap();
    assert_eq!(node.pod("a").unwrap().statuses()[0].restart_count, 0);
    // A pod that is paused can be deleted, and its preStop hook and TERM reach it.
    node.berth(&["pause", "pod", "a-n1"]).unwrap().ok().unwrap();
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    let absent = node.berth(&["pause", "pod", "a-n1"]).unwrap().code(1).unwrap();
    assert!(absent.stderr.contains("not found"), "{absent}");
}

#[test]
fn a_paused_pod_whose_shim_is_killed_leaves_no_frozen_process_and_runs_again() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &Builder::new("a").shell("exec sleep 1000000").yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let (shim, frozen) = (node.shim(found.uid()).unwrap(), node.pids(found.uid()).unwrap());
    node.berth(&["pause", "pod", "a-n1"]).unwrap().ok().unwrap();
    node.machine().kill("KILL", &[shim]).unwrap();
    node.wait("it runs again", Duration::from_secs(30), |p| {
        p.get("a").is_some_and(|p| p.is_running() && !is_paused(p))
            && node.shim(found.uid()).is_ok_and(|now| now != shim)
    })
    .unwrap();
    assert!(node.processes().unwrap().iter().all(|p| !frozen.contains(&p.pid)), "{frozen:?}");
    node.finish().unwrap();
}

#[test]
fn containers_with_a_shared_process_namespace_see_and_signal_each_other() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a").shell("exec sleep 1000000").with_pod("shareProcessNamespace: true");
    let second = "    - { name: second, image: 'docker.io/library/demo:latest', imagePullPolicy: Never, \
                  command: [sh, -c, 'exec sleep 2000000'] }\n";
    node.apply("a.yaml", &(pod.yaml() + second)).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let seen = node.exec("a", &["ps", "-o", "args"]).unwrap().ok().unwrap();
    assert!(seen.contains("sleep 1000000") && seen.contains("sleep 2000000"), "{seen}");
    // One ends, is started again, and the other does not notice.
    node.exec(
        "a",
        &["sh", "-c", "kill $(ps -o pid,args | awk '/sleep 2000000/ && !/awk/ {print $1; exit}')"],
    )
    .unwrap()
    .ok()
    .unwrap();
    let pods = node.wait("second runs again", Duration::from_secs(30), |pods| {
        pods.get("a")
            .is_some_and(|p| p.is_running() && p.container("second").is_some_and(|c| c.restart_count == 1))
    });
    let pod = pods.unwrap().remove("a").unwrap();
    assert_eq!((pod.uid(), pod.container("main").unwrap().restart_count), (found.uid(), 0));
    let ended = pod.container("second").unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.exit_code, 143);
    let seen = node.exec("a", &["ps", "-o", "args"]).unwrap().ok().unwrap();
    assert!(seen.contains("sleep 1000000") && seen.contains("sleep 2000000"), "{seen}");
}

#[test]
fn a_kill_for_want_of_memory_is_an_event_and_a_figure_also_when_pid_1_survives() {
    let node = Node::start().unwrap();
    let shell = "yes | tr -d '\\n' | tail -n 1 >/dev/null; echo survived; exec sleep 1000000";
    let pod = Builder::new("a").shell(shell).with("resources: { limits: { memory: 24Mi } }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let event = node.wait_event("a", "OOMKilling").unwrap();
    assert!(event.contains("main"), "{event}");
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        // On v2 a container is killed as a whole.
        return;
    }
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "survived").unwrap();
    let page = node.page("/metrics/cadvisor").unwrap();
    let line =
        page.lines().find(|l| l.starts_with("container_oom_events_total{") && l.contains("main")).unwrap();
    assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 1.0, "{line}");
}
