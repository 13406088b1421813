//! Pods whose `runtimeClassName` names another OCI runtime.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::tools;

/// A node that knows crun and runc.
fn node() -> Node {
    let path = |name| tools::find(name).unwrap().display().to_string();
    let config = format!(
        "crashLoopBackOff: {{ maxContainerRestartPeriod: 1s }}\nruntimes:\n  crun: {{ path: {} }}\n  runc: {{ path: {} }}\n",
        path("crun"),
        path("runc")
    );
    let mut node = Node::prepare(&config, &[]).unwrap();
    // crun refuses a tree where v2 is mounted beside v1.
    node.machine().shell("umount /sys/fs/cgroup/unified 2>/dev/null || :").unwrap();
    node.start_agent().unwrap();
    node
}

fn a_pod_lives(name: &str) {
    let mut node = node();
    let shell = "echo up; trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done";
    let pod = Builder::new("a")
        .shell(shell)
        .grace(20)
        .with("resources: { limits: { memory: 256Mi, cpu: 500m } }")
        .with_pod(&format!("runtimeClassName: {name}"));
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "up").unwrap();
    // The runtime has made it: its state is there, and our own engine's mark is not.
    let id = node.on_machine(found.uid()).unwrap()[0].id.clone();
    let state = node.path(&format!("run/pods/{}/containers/{id}/runtime/state/{id}", found.uid()));
    assert!(state.is_dir(), "{} is missing", state.display());
    let ran =
        node.exec("a", &["sh", "-c", "echo out; echo err >&2; hostname; exit 42"]).unwrap().code(42).unwrap();
    assert_eq!(ran.stdout, "out\na-n1\n", "{ran}");
    assert!(ran.stderr.contains("err"), "{ran}");
    let absent = node.exec("a", &["/no/such/program"]).unwrap();
    assert!(absent.code != 0 && absent.stderr.contains("/no/such/program"), "{absent}");
    // Inside the pod's network, and nothing of it in the machine's mounts.
    assert!(node.exec("a", &["ip", "address"]).unwrap().ok().unwrap().contains(found.ip()));
    let mounts = node.machine().shell("cat /proc/mounts").unwrap();
    assert!(!mounts.contains("overlay"), "{mounts}");
    // It outlives the agent, and TERM and its last words are as with our own.
    let pids = node.pids(found.uid()).unwrap();
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    node.wait_running(&["a"]).unwrap();
    assert_eq!(node.pids(found.uid()).unwrap(), pids);
    // A crash is seen and the container made anew.
    node.machine().kill("KILL", &pids).unwrap();
    let again = node.wait("it runs again", Duration::from_secs(30), |pods| {
        pods.get("a")
            .is_some_and(|p| p.is_running() && p.container("main").is_some_and(|c| c.restart_count == 1))
    });
    let again = again.unwrap().remove("a").unwrap();
    let ended = again.container("main").unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, again.uid()), (137, found.uid()));
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
}

fn terminals_and_failures(name: &str) {
    let node = node();
    let class = format!("runtimeClassName: {name}");
    let tty = Builder::new("t").shell("tty; exec sleep 1000000").with("tty: true").with_pod(&class);
    node.apply("t.yaml", &tty.yaml()).unwrap();
    let bad = Builder::new("b").shell("true").with("securityContext: { runAsUser: 0 }").with_pod(&class);
    node.apply("b.yaml", &bad.yaml().replace("\"sh\"", "\"/no/such/program\"")).unwrap();
    let found = node.wait_running(&["t"]).unwrap().remove("t").unwrap();
    node.wait_log(&found, "/dev/").unwrap();
    let mut script = node.machine().command("script");
    let line = format!(
        "stty rows 33 cols 77; {} exec -it t-n1 -- sh -c 'stty size; exit 5'",
        tools::berth().display()
    );
    script.args(["-qec", &line, "/dev/null"]).env("BERTH_SOCKET", node.socket());
    let ran = tools::run(script).unwrap().code(5).unwrap();
    // crun 1.8 gives an exec no size; the caller's next change of it counts then.
    assert!(ran.stdout.contains("33 77") || ran.stdout.contains("0 0"), "{ran}");
    // The runtime's own words are the pod's.
    node.wait_event("b", "/no/such/program").unwrap();
}

#[test]
fn crun_runs_a_pod() {
    a_pod_lives("crun");
}

#[test]
fn runc_runs_a_pod() {
    a_pod_lives("runc");
}

#[test]
fn crun_gives_terminals_and_says_what_failed() {
    terminals_and_failures("crun");
}

#[test]
fn runc_gives_terminals_and_says_what_failed() {
    terminals_and_failures("runc");
}

#[test]
fn an_unknown_runtime_is_refused_on_the_pod() {
    let node = node();
    let pod = Builder::new("a").shell("true").with_pod("runtimeClassName: kata").yaml();
    let ran =
        tools::run_with(node.berth_command(&["apply", "-f", "-"]), pod.as_bytes()).unwrap().code(1).unwrap();
    assert!(ran.stderr.contains("spec.runtimeClassName") && ran.stderr.contains("crun, runc"), "{ran}");
}
