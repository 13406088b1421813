//! Restart policies, back-off, and how an end is reported.

use std::time::Duration;

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use k8s_openapi::api::core::v1::Pod;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn never_runs_once_and_the_phase_tells_how_it_went() {
    let node = Node::start().unwrap();
    node.apply("good.yaml", &Builder::new("good").restart("Never").shell("exit 0").yaml()).unwrap();
    node.apply("bad.yaml", &Builder::new("bad").restart("Never").shell("exit 7").yaml()).unwrap();
    let pods = node
        .wait("both end", SOON, |pods| {
            pods.get("good").is_some_and(|p| p.phase() == "Succeeded")
                && pods.get("bad").is_some_and(|p| p.phase() == "Failed")
        })
        .unwrap();
    let (good, bad) = (pods["good"].ended().unwrap(), pods["bad"].ended().unwrap());
    assert_eq!((good.exit_code, good.reason.as_deref()), (0, Some("Completed")));
    assert_eq!((bad.exit_code, bad.reason.as_deref()), (7, Some("Error")));
    assert!(good.started_at.is_some() && good.finished_at.is_some());
    assert_eq!((pods["good"].restarts(), pods["bad"].restarts()), (0, 0));
}

#[test]
fn on_failure_restarts_until_it_succeeds() {
    let node = Node::start().unwrap();
    // Fails twice: an emptyDir outlives the container.
    let job = Builder::new("job")
        .restart("OnFailure")
        .shell("echo x >> /state/runs; [ $(wc -l < /state/runs) -ge 3 ]")
        .with("volumeMounts: [{ name: state, mountPath: /state }]")
        .with_pod("volumes: [{ name: state, emptyDir: {} }]");
    node.apply("job.yaml", &job.yaml()).unwrap();
    let pods = node
        .wait("job succeeds", SOON, |pods| pods.get("job").is_some_and(|p| p.phase() == "Succeeded"))
        .unwrap();
    assert_eq!(pods["job"].restarts(), 2);
}

#[test]
fn always_restarts_even_what_succeeded() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exit 0")).unwrap();
    node.wait("a restarts", SOON, |pods| pods.get("a").is_some_and(|p| p.restarts() >= 2)).unwrap();
}

#[test]
fn a_crash_is_restarted_at_once_then_after_ten_seconds() {
    let node = Node::with("", &[]).unwrap();
    node.apply("a.yaml", &manifest::pod("a", "date +%s.%N; exit 4")).unwrap();
    let pods = node
        .wait("a waits in CrashLoopBackOff", SOON, |pods| {
            pods.get("a").is_some_and(|p| p.reason() == "CrashLoopBackOff" && p.restarts() == 1)
        })
        .unwrap();
    let pod = &pods["a"];
    let waiting = pod.container("main").unwrap().state.as_ref().unwrap().waiting.as_ref().unwrap();
    let message = waiting.message.as_deref().unwrap();
    assert!(message.contains("back-off 10s restarting failed container"), "{message}");
    assert_eq!(pod.phase(), "Running", "a pod whose container will run again is not Failed");
    assert_eq!(pod.ended().unwrap().exit_code, 4);
    let ended = pod.ended().unwrap().finished_at.clone().unwrap().0;
    let pods = node
        // Not while it runs: its end would still be that of the run before.
        .wait("a has crashed a third time", SOON, |pods| {
            pods.get("a").is_some_and(|p| p.restarts() == 2 && p.reason() == "CrashLoopBackOff")
        })
        .unwrap();
    let began = pods["a"].ended().unwrap().started_at.clone().unwrap().0;
    let waited = (began.as_millisecond() - ended.as_millisecond()) / 1000;
    assert!(waited >= 9, "the second restart came {waited} s after the first one's end");
    let events = node.events("a").unwrap();
    assert!(
        events.iter().any(|e| e.starts_with("BackOff: Back-off restarting failed container")),
        "{events:#?}"
    );
}

#[test]
fn signals_and_missing_programs_are_told_apart() {
    let node = Node::start().unwrap();
    let never = |name: &str, shell: &str| Builder::new(name).restart("Never").shell(shell).yaml();
    // Kubernetes reads `$$` in a command as `$`; the first shell, PID 1, passes its child's end on.
    node.apply("termed.yaml", &never("termed", "sh -c 'kill -15 $$$$'; exit $?")).unwrap();
    node.apply(
        "absent.yaml",
        &Builder::new("absent").restart("Never").with("command: [/no/such/program]").yaml(),
    )
    .unwrap();
    let pods = node
        .wait("all fail", SOON, |pods| {
            ["termed", "absent"].iter().all(|n| pods.get(*n).is_some_and(|p| p.phase() == "Failed"))
        })
        .unwrap();
    assert_eq!(pods["termed"].ended().unwrap().exit_code, 143);
    let absent = pods["absent"].ended().unwrap();
    assert_eq!((absent.exit_code, absent.reason.as_deref()), (128, Some("StartError")));
    assert!(absent.message.as_deref().unwrap().contains("/no/such/program"), "{absent:?}");
}

#[test]
fn a_process_killed_from_outside_reports_its_signal() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &Builder::new("a").restart("Never").shell("exec sleep 1000000").yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let pids = node.pids(pod.uid()).unwrap();
    node.machine().kill("KILL", &pids).unwrap();
    let pods =
        node.wait("a failed", SOON, |pods| pods.get("a").is_some_and(|p| p.phase() == "Failed")).unwrap();
    let end = pods["a"].ended().unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("Error")));
}

#[test]
fn a_container_that_needs_too_much_memory_is_oomkilled() {
    let node = Node::start().unwrap();
    // tail keeps the endless last line in memory.
    let hungry = Builder::new("hungry")
        .restart("Never")
        .shell("exec tail -n 1 /dev/zero")
        .with("resources: { limits: { memory: 16Mi } }");
    node.apply("hungry.yaml", &hungry.yaml()).unwrap();
    let pods = node
        .wait("it fails", SOON, |pods| pods.get("hungry").is_some_and(|p| p.phase() == "Failed"))
        .unwrap();
    let end = pods["hungry"].ended().unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("OOMKilled")), "{end:?}");
}

#[test]
fn init_containers_run_in_order_before_the_main_one() {
    let node = Node::start().unwrap();
    let mounts = "volumeMounts: [{ name: w, mountPath: /w }]";
    let init = |name: &str| {
        format!(
            "    - {{ name: {name}, image: '{}', imagePullPolicy: Never, command: [sh, -c, 'echo {name} >> /w/order'], {mounts} }}",
            manifest::IMAGE
        )
    };
    let pod = Builder::new("a")
        .shell("cat /w/order; exec sleep 1000000")
        .with(mounts)
        .with_pod("volumes: [{ name: w, emptyDir: {} }]")
        .with_pod(&format!("initContainers:\n{}\n{}", init("first"), init("second")));
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(node.wait_log(&pod, "second").unwrap(), ["first", "second"]);
    let first = pod.container("first").unwrap().state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(first.reason.as_deref(), Some("Completed"));
}

#[test]
fn the_termination_message_is_in_the_status() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a").restart("Never").shell("echo the reef > /dev/termination-log; exit 1").yaml();
    node.apply("a.yaml", &pod).unwrap();
    let pods =
        node.wait("a failed", SOON, |pods| pods.get("a").is_some_and(|p| p.phase() == "Failed")).unwrap();
    assert_eq!(pods["a"].ended().unwrap().message.as_deref().map(str::trim), Some("the reef"));
}

#[test]
fn a_termination_message_comes_from_where_the_spec_says() {
    let node = Node::start().unwrap();
    let cases = [
        (
            "path",
            "echo the reef >/tmp/why; echo chatter; exit 1",
            "terminationMessagePath: /tmp/why",
            Some("the reef"),
        ),
        (
            "log",
            "exec >&2; echo first; echo the log; exit 1",
            "terminationMessagePolicy: FallbackToLogsOnError",
            Some("first\nthe log"),
        ),
        ("fine", "echo no news; exit 0", "terminationMessagePolicy: FallbackToLogsOnError", None),
        (
            "both",
            "echo the file >/dev/termination-log; echo chatter; exit 1",
            "terminationMessagePolicy: FallbackToLogsOnError",
            Some("the file"),
        ),
    ];
    for (name, line, field, _) in cases {
        let pod = Builder::new(name).restart("Never").shell(line).with(field);
        node.apply(&format!("{name}.yaml"), &pod.yaml()).unwrap();
    }
    let over = |pod: &Pod| matches!(pod.phase(), "Failed" | "Succeeded");
    let pods = node
        .wait("all have ended", SOON, |pods| cases.iter().all(|(name, ..)| pods.get(*name).is_some_and(over)))
        .unwrap();
    for (name, _, _, message) in cases {
        assert_eq!(pods[name].ended().unwrap().message.as_deref().map(str::trim), message, "{name}");
    }
}

#[test]
fn a_pod_past_its_deadline_fails_with_deadline_exceeded() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a").shell("exec sleep 1000000").with_pod("activeDeadlineSeconds: 2").yaml();
    node.apply("a.yaml", &pod).unwrap();
    let pods =
        node.wait("a failed", SOON, |pods| pods.get("a").is_some_and(|p| p.phase() == "Failed")).unwrap();
    assert_eq!(pods["a"].status.as_ref().unwrap().reason.as_deref(), Some("DeadlineExceeded"));
}

/// The pod's word counts, then the image's, then TERM.
#[test]
fn a_container_is_stopped_with_the_signal_of_its_spec_or_of_its_image() {
    let node = Node::start().unwrap();
    let tar = berth_e2e::tools::demo_rootfs().unwrap();
    let import = [
        "image",
        "import",
        "--change",
        "STOPSIGNAL SIGUSR2",
        tar.to_str().unwrap(),
        "docker.io/library/usr2:1",
    ];
    node.berth(&import).unwrap().ok().unwrap();
    let out = node.path("said");
    std::fs::create_dir(&out).unwrap();
    // 37 is RTMIN+3.
    let traps = "for s in TERM USR1 USR2 37; do trap \"echo $s >/out/$HOSTNAME; exit 0\" $s; done; echo up; \
                 while :; do sleep 0.1; done";
    let pods = [
        ("plain", manifest::IMAGE, None, "TERM"),
        ("spec", manifest::IMAGE, Some("SIGUSR1"), "USR1"),
        ("image", "docker.io/library/usr2:1", None, "USR2"),
        ("both", "docker.io/library/usr2:1", Some("SIGRTMIN+3"), "37"),
    ];
    for (name, image, signal, _) in pods {
        let mut pod = Builder::new(name).image(image, "Never").grace(60).shell(traps);
        if let Some(signal) = signal {
            pod = pod.with(&format!("lifecycle: {{ stopSignal: {signal} }}"));
        }
        let pod = pod
            .with("volumeMounts: [{ name: out, mountPath: /out }]")
            .with_pod(&format!("volumes: [{{ name: out, hostPath: {{ path: {} }} }}]", out.display()))
            .with_pod(&format!("hostname: {name}"))
            .with_pod("os: { name: linux }");
        node.apply(&format!("{name}.yaml"), &pod.yaml()).unwrap();
    }
    let found = node.wait_running(&pods.map(|(name, ..)| name)).unwrap();
    for (name, _, signal, said) in pods {
        assert_eq!(found[name].container("main").unwrap().stop_signal.as_deref(), signal, "{name}");
        node.wait_log(&found[name], "up").unwrap();
        node.remove(&format!("{name}.yaml")).unwrap();
        node.wait_gone(name).unwrap();
        assert_eq!(std::fs::read_to_string(out.join(name)).unwrap().trim(), said, "{name}");
    }
    node.finish().unwrap();
}
