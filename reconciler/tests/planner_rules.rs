//! The lifecycle rules, one test each.

#![allow(clippy::unwrap_used)]

mod planner_fixture;

use std::time::Duration;

use berth_reconciler::node::{Eviction, Sandbox};
use berth_reconciler::planner::{Action, Limits, Memory, spec_hash};
use berth_reconciler::shutdown::{TERMINATED, TERMINATED_MESSAGE};
use planner_fixture::{Bench, at, delay, one, pod};
use serde_json::{Value, json};

fn plain() -> Bench {
    Bench::up(one(json!({}), json!({})))
}

/// A pod with init containers `a` (regular), `s` (sidecar), `b` (regular) and the main container `c`.
fn with_inits(fields: Value) -> Bench {
    let mut spec = json!({
        "initContainers": [
            { "name": "a", "image": "i" },
            { "name": "s", "image": "i", "restartPolicy": "Always" },
            { "name": "b", "image": "i" },
        ],
        "containers": [{ "name": "c", "image": "i" }],
    });
    for (key, value) in fields.as_object().unwrap() {
        spec[key] = value.clone();
    }
    Bench::up(pod(spec))
}

/// Starts of the container `c`, given how it ended.
fn restarts(container: Value, fields: Value, code: i32) -> bool {
    let mut bench = Bench::up(one(container, fields));
    bench.exited("c", 0, 1, 2, code);
    bench.time(3).words().contains(&"pull c".to_owned())
}

#[test]
fn planner_makes_the_sandbox_first_and_pulls_meanwhile() {
    let mut bench = Bench::new(one(json!({}), json!({})));
    assert_eq!(bench.take(), ["sandbox", "pull c"]);
    bench.sandbox(0);
    assert_eq!(bench.take(), ["start c 0"]);
}

#[test]
fn planner_retries_a_failed_sandbox_with_backoff() {
    let mut bench = Bench::new(one(json!({}), json!({})));
    for (now, next) in [(0, 1), (1, 3), (3, 7)] {
        let actions = bench.time(now).step();
        assert!(actions.contains(&Action::CreateSandbox), "at {now}");
        bench.fail(&Action::CreateSandbox, "FailedCreatePodSandBox", "no address left");
        assert_eq!(bench.wake(), Some(next));
    }
    assert_eq!(bench.event("FailedCreatePodSandBox"), Some("Failed to create pod sandbox: no address left"));
}

#[test]
fn planner_remakes_a_dead_sandbox_and_runs_init_containers_again() {
    let mut bench = with_inits(json!({}));
    bench.exited("a", 0, 1, 2, 0);
    bench.exited("s", 0, 3, 9, 137);
    bench.exited("b", 0, 4, 5, 0);
    bench.exited("c", 0, 6, 9, 137);
    bench.seen.sandbox = Sandbox::Dead;
    assert_eq!(bench.time(9).take(), ["sandbox"]);
    assert!(bench.event("SandboxChanged").is_some());
    bench.sandbox(10);
    assert_eq!(bench.time(10).take(), ["pull a"]);
    assert_eq!(bench.take(), ["start a 1"], "restart counts go on");
}

#[test]
fn planner_leaves_a_dead_sandbox_of_a_pod_that_never_restarts() {
    let mut bench = Bench::up(one(json!({}), json!({ "restartPolicy": "Never" })));
    bench.exited("c", 0, 1, 2, 137);
    bench.seen.sandbox = Sandbox::Dead;
    assert_eq!(bench.take(), ["stop sandbox"]);
}

#[test]
fn planner_runs_init_containers_one_after_another() {
    let mut bench = with_inits(json!({}));
    assert_eq!(bench.take(), ["pull a"]);
    assert_eq!(bench.take(), ["start a 0"]);
    bench.running("a", 0, 1);
    assert_eq!(bench.take(), [""; 0]);
    bench.exited("a", 0, 1, 2, 0);
    assert_eq!(bench.take(), ["pull s"]);
    bench.running("s", 0, 3);
    assert_eq!(bench.take(), ["pull b"]);
    bench.exited("b", 0, 4, 5, 0);
    assert_eq!(bench.take(), ["pull c"]);
}

#[test]
fn planner_waits_for_a_sidecars_startup_probe() {
    let sidecar = json!({ "name": "s", "image": "i", "restartPolicy": "Always",
        "startupProbe": { "periodSeconds": 5, "exec": {} } });
    let mut bench =
        Bench::up(pod(json!({ "initContainers": [sidecar], "containers": [{ "name": "c", "image": "i" }] })));
    bench.running("s", 0, 1);
    let actions = bench.time(1).step();
    assert_eq!(actions.len(), 1, "{actions:?}");
    bench.probed(&actions[0], false);
    assert_eq!(bench.time(2).words(), [""; 0]);
    let actions = bench.time(6).step();
    bench.probed(&actions[0], true);
    assert_eq!(bench.take(), ["pull c"]);
}

#[test]
fn planner_restarts_a_sidecar_while_main_containers_run() {
    let mut bench = with_inits(json!({}));
    bench.exited("a", 0, 1, 2, 0);
    bench.exited("b", 0, 4, 5, 0);
    bench.running("c", 0, 6);
    bench.exited("s", 0, 3, 7, 0);
    bench.time(7);
    assert_eq!(bench.take(), ["pull s"]);
    assert_eq!(bench.take(), ["start s 1"]);
}

#[test]
fn planner_ends_a_pod_whose_init_container_failed_for_good() {
    let mut bench = with_inits(json!({ "restartPolicy": "Never" }));
    bench.exited("a", 0, 1, 2, 1);
    assert_eq!(bench.time(2).take(), ["stop sandbox"]);
    bench.seen.sandbox = Sandbox::Absent;
    assert_eq!(bench.plan().actions, []);
}

#[test]
fn planner_restarts_as_the_policy_says() {
    let rules = json!([{ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } }]);
    let not_in = json!([{ "action": "Restart", "exitCodes": { "operator": "NotIn", "values": [42] } }]);
    let table = [
        (json!({}), json!({}), 0, true),
        (json!({}), json!({ "restartPolicy": "Always" }), 1, true),
        (json!({}), json!({ "restartPolicy": "OnFailure" }), 0, false),
        (json!({}), json!({ "restartPolicy": "OnFailure" }), 1, true),
        (json!({}), json!({ "restartPolicy": "Never" }), 1, false),
        (json!({ "restartPolicy": "Never" }), json!({}), 1, false),
        (json!({ "restartPolicy": "Always" }), json!({ "restartPolicy": "Never" }), 0, true),
        (json!({ "restartPolicy": "Never", "restartPolicyRules": rules }), json!({}), 42, true),
        (json!({ "restartPolicy": "Never", "restartPolicyRules": rules }), json!({}), 1, false),
        (json!({ "restartPolicy": "Never", "restartPolicyRules": not_in }), json!({}), 42, false),
        (json!({ "restartPolicy": "Never", "restartPolicyRules": not_in }), json!({}), 1, true),
    ];
    for (container, fields, code, expected) in table {
        let label = format!("{container} {fields} exit {code}");
        assert_eq!(restarts(container, fields, code), expected, "{label}");
    }
}

#[test]
fn planner_backs_off_at_once_then_10s_doubling_to_300s() {
    let expected = [None, Some(0), Some(10), Some(20), Some(40), Some(80), Some(160), Some(300), Some(300)];
    let mut before = None;
    let mut now = 0;
    for (attempt, expected) in expected.into_iter().enumerate() {
        let mut bench = plain();
        if let Some(attempt) = u32::try_from(attempt).unwrap().checked_sub(1) {
            bench.exited("c", attempt, now, now + 1, 1).delay = before;
            now += 1;
            let due = now + expected.map_or(0, |e| i64::try_from(e).unwrap());
            if due > now {
                assert_eq!(bench.time(due - 1).words(), [""; 0], "too early");
                assert_eq!(bench.wake(), Some(due));
                let text = "Back-off restarting failed container c in pod web_default(u1)";
                assert_eq!(bench.event("BackOff"), Some(text));
            }
            now = due;
        }
        assert_eq!(bench.time(now).take(), ["pull c"]);
        let started = delay(&bench.step()).unwrap();
        assert_eq!(started, expected.map(Duration::from_secs));
        before = started;
    }
}

#[test]
fn planner_resets_the_backoff_after_600s_of_running() {
    let mut bench = plain();
    bench.exited("c", 5, 0, 600, 1).delay = Some(Duration::from_secs(160));
    assert_eq!(bench.time(600).take(), ["pull c"]);
    assert_eq!(delay(&bench.step()), Some(Some(Duration::ZERO)));
}

#[test]
fn planner_pulls_with_backoff_10s_doubling_to_300s() {
    let mut bench = plain();
    let mut now = 0;
    for wait in [10, 20, 40, 80, 160, 300, 300] {
        let actions = bench.time(now).step();
        assert!(matches!(actions[..], [Action::EnsureImage { .. }]), "at {now}: {actions:?}");
        bench.fail(&actions[0], "ErrImagePull", "no such host");
        assert_eq!(bench.time(now + wait - 1).words(), [""; 0]);
        now += wait;
        assert_eq!(bench.wake(), Some(now));
    }
    assert_eq!(bench.event("BackOff"), Some("Back-off pulling image \"i\""));
    assert!(bench.events.iter().any(|e| e.message == "Failed to pull image \"i\": no such host"));
    assert!(bench.events.iter().any(|e| e.message == "Error: ErrImagePull"));
}

#[test]
fn planner_retries_a_failed_creation_at_once_when_configuration_changes() {
    let mut bench = plain();
    bench.take();
    let actions = bench.step();
    bench.fail(&actions[0], "CreateContainerConfigError", "configmap \"x\" not found");
    assert_eq!(bench.words(), [""; 0]);
    assert_eq!(bench.wake(), Some(1));
    bench.memory.config_changed(at(0));
    assert_eq!(bench.take(), ["pull c"]);
    assert_eq!(bench.take(), ["start c 0"], "no instance was made, so the attempt is the same");
}

#[test]
fn planner_removes_what_was_created_and_never_started() {
    let mut bench = plain();
    bench.created("c", 0, 1);
    assert_eq!(bench.take(), ["remove c-0"]);
    bench.seen.containers.clear();
    assert_eq!(bench.take(), ["pull c"]);
    assert_eq!(bench.take(), ["start c 0"]);
}

#[test]
fn planner_kills_instances_that_nobody_wants() {
    let mut bench = plain();
    bench.running("c", 0, 1);
    bench.running("ghost", 0, 1);
    assert_eq!(bench.take(), ["Kill ghost-0"]);
    assert_eq!(bench.words(), [""; 0]);
    assert_eq!(bench.time(5).words(), ["Kill ghost-0"]);
}

#[test]
fn planner_replaces_a_container_whose_spec_changed_at_once() {
    let mut bench = Bench::up(one(json!({}), json!({ "restartPolicy": "Never" })));
    bench.running("c", 0, 1);
    assert_eq!(bench.take(), [""; 0]);
    bench.pod = one(json!({ "image": "j" }), json!({ "restartPolicy": "Never" }));
    assert_eq!(bench.time(5).take(), ["Stop c-0"]);
    assert_eq!(bench.event("Killing"), Some("Container c definition changed, will be restarted"));
    let hash = spec_hash(one(json!({}), json!({})).container("c").unwrap());
    bench.exited("c", 0, 1, 6, 143).spec_hash = hash;
    assert_eq!(bench.time(6).take(), ["pull c"]);
    assert_eq!(delay(&bench.step()), Some(None));
}

#[test]
fn planner_keeps_a_container_whose_resources_or_probes_changed() {
    let before = one(json!({}), json!({}));
    let resources = json!({ "limits": { "memory": "1Gi" } });
    let after = one(json!({ "resources": resources, "livenessProbe": { "exec": {} } }), json!({}));
    assert_eq!(spec_hash(before.container("c").unwrap()), spec_hash(after.container("c").unwrap()));
    for change in [
        json!({ "image": "j" }),
        json!({ "command": ["x"] }),
        json!({ "args": ["x"] }),
        json!({ "env": [{ "name": "X", "value": "1" }] }),
    ] {
        let changed = one(change.clone(), json!({}));
        assert_ne!(
            spec_hash(before.container("c").unwrap()),
            spec_hash(changed.container("c").unwrap()),
            "{change}"
        );
    }
}

#[test]
fn planner_drops_a_pull_whose_image_is_not_wanted_any_more() {
    let mut bench = plain();
    assert_eq!(bench.words(), ["pull c"]);
    bench.pod = one(json!({ "image": "j" }), json!({}));
    assert_eq!(bench.words(), ["drop c", "pull c"]);
}

#[test]
fn planner_runs_post_start_before_later_containers_and_probes() {
    let hook = json!({ "postStart": { "sleep": { "seconds": 1 } } });
    let first = json!({ "name": "c", "image": "i", "lifecycle": hook, "readinessProbe": { "exec": {} } });
    let mut bench = Bench::up(pod(json!({ "containers": [first, { "name": "d", "image": "i" }] })));
    assert_eq!(bench.take(), ["pull c", "pull d"]);
    assert_eq!(bench.words(), ["start c 0"]);
    bench.done(&Action::StartContainer(start("c")));
    bench.running("c", 0, 1);
    let hook = bench.time(1).step();
    assert_eq!(hook.len(), 1);
    bench.done(&hook[0]);
    assert_eq!(bench.words(), ["Readiness c-0", "start d 0"]);
}

fn start(name: &str) -> berth_reconciler::node::StartContainer {
    let name = name.to_owned();
    let resources = Default::default();
    berth_reconciler::node::StartContainer {
        name,
        attempt: 0,
        delay: None,
        spec_hash: String::new(),
        resources,
        round: None,
    }
}

#[test]
fn planner_does_not_repeat_a_post_start_that_is_on_record() {
    let hook = json!({ "lifecycle": { "postStart": { "sleep": { "seconds": 1 } } } });
    let mut bench = Bench::up(one(hook, json!({})));
    bench.running("c", 0, 1).post_start_done = true;
    assert_eq!(bench.take(), [""; 0]);
}

#[test]
fn planner_kills_a_container_whose_post_start_failed() {
    let hook = json!({ "lifecycle": { "postStart": { "sleep": { "seconds": 1 } } } });
    let mut bench = Bench::up(one(hook, json!({})));
    bench.running("c", 0, 1);
    let actions = bench.step();
    bench.fail(&actions[0], "PostStartHookError", "exit code 1");
    assert_eq!(bench.words(), ["Stop c-0"]);
    assert_eq!(bench.event("FailedPostStartHook"), Some("PostStartHook failed: exit code 1"));
}

#[test]
fn planner_heeds_a_failed_post_start_of_a_later_instance_too() {
    let lifecycle = json!({ "postStart": { "exec": {} }, "preStop": { "exec": {} } });
    let mut bench = Bench::up(one(json!({ "lifecycle": lifecycle }), json!({})));
    bench.running("c", 0, 1);
    assert_eq!(bench.time(2).take(), ["PostStart c-0"]);
    bench.exited("c", 0, 1, 3, 1);
    bench.running("c", 1, 4);
    let actions = bench.time(4).step();
    bench.fail(&actions[0], "Failed", "exit status 1");
    assert_eq!(bench.take(), ["PreStop c-1"], "stopped, not hooked again");
    assert!(bench.event("FailedPostStartHook").is_some());
}

#[test]
fn planner_restarts_after_the_liveness_threshold() {
    let probe = json!({ "exec": {}, "periodSeconds": 10, "initialDelaySeconds": 5, "failureThreshold": 2,
        "terminationGracePeriodSeconds": 3 });
    let mut bench = Bench::up(one(json!({ "livenessProbe": probe }), json!({})));
    bench.running("c", 0, 0);
    assert_eq!(bench.words(), [""; 0]);
    assert_eq!(bench.wake(), Some(5));
    let actions = bench.time(5).step();
    bench.probed(&actions[0], false);
    assert_eq!(bench.event("Unhealthy"), Some("Liveness probe failed: no answer"));
    assert_eq!(bench.words(), [""; 0]);
    assert_eq!(bench.wake(), Some(15));
    let actions = bench.time(15).step();
    bench.probed(&actions[0], false);
    assert_eq!(bench.take(), ["Stop c-0"]);
    assert_eq!(bench.event("Killing"), Some("Container c failed liveness probe, will be restarted"));
    assert_eq!(bench.wake(), Some(18), "the probe's own grace period");
    assert_eq!(bench.time(18).take(), ["Kill c-0"]);
}

#[test]
fn planner_holds_liveness_and_readiness_until_startup_succeeded() {
    let probes = json!({ "startupProbe": { "exec": {} }, "livenessProbe": { "exec": {} },
        "readinessProbe": { "exec": {} } });
    let mut bench = Bench::up(one(probes, json!({})));
    bench.running("c", 0, 0);
    assert_eq!(bench.take(), ["Startup c-0"]);
    assert_eq!(bench.take(), ["Liveness c-0", "Readiness c-0"]);
}

#[test]
fn planner_goes_on_with_readiness_only_during_deletion() {
    let probes = json!({ "livenessProbe": { "exec": {} }, "readinessProbe": { "exec": {} } });
    let mut bench = Bench::up(one(probes, json!({})));
    bench.running("c", 0, 0);
    bench.delete(0, 30);
    assert_eq!(bench.take(), ["Stop c-0", "Readiness c-0"]);
}

#[test]
fn planner_terminates_with_stop_signal_grace_and_kill() {
    let mut bench = plain();
    bench.running("c", 0, 0);
    bench.delete(10, 30);
    assert_eq!(bench.time(10).take(), ["Stop c-0"]);
    assert_eq!(bench.event("Killing"), Some("Stopping container c"));
    assert_eq!(bench.wake(), Some(15));
    assert_eq!(bench.time(15).take(), [""; 0]);
    let slow = "Container c still runs 5s after its stop signal; it will be killed in 25s";
    assert_eq!(bench.event("StoppingSlowly"), Some(slow));
    assert_eq!(bench.wake(), Some(40));
    assert_eq!(bench.time(40).take(), ["Kill c-0"]);
    assert_eq!(bench.time(45).take(), ["Kill c-0"], "KILL is repeated");
    bench.exited("c", 0, 0, 46, 137);
    assert_eq!(bench.time(46).take(), ["remove pod"]);
    assert!(bench.memory.removed());
    assert_eq!(bench.plan().actions, []);
}

#[test]
fn planner_kills_at_once_without_grace_and_when_grace_is_shortened() {
    let mut bench = plain();
    bench.running("c", 0, 0);
    bench.delete(0, 0);
    assert_eq!(bench.take(), ["Kill c-0"]);
    let mut bench = plain();
    bench.running("c", 0, 0);
    bench.delete(0, 300);
    assert_eq!(bench.take(), ["Stop c-0"]);
    bench.delete(0, 4);
    assert_eq!(bench.time(3).words(), [""; 0]);
    assert_eq!(bench.time(4).take(), ["Kill c-0"]);
}

#[test]
fn planner_runs_pre_stop_inside_the_grace_period_and_leaves_2s() {
    let hook = json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } } });
    let mut bench = Bench::up(one(hook, json!({})));
    bench.running("c", 0, 0);
    bench.delete(0, 10);
    assert_eq!(bench.words(), ["PreStop c-0"]);
    assert_eq!(bench.time(9).words(), [""; 0]);
    assert_eq!(bench.wake(), Some(10));
    assert_eq!(bench.time(10).words(), ["Stop c-0"], "the hook has used up the grace period");
    bench.done(&bench_stop());
    assert_eq!(bench.wake(), Some(12));
    assert_eq!(bench.time(12).words(), ["Kill c-0"]);
}

fn bench_stop() -> Action {
    let (container, id) = ("c".to_owned(), "c-0".to_owned());
    Action::StopContainer { container, id, signal: berth_reconciler::node::StopSignal::Stop }
}

#[test]
fn planner_stops_sidecars_after_the_main_containers_in_reverse_order() {
    let sidecar = |name| json!({ "name": name, "image": "i", "restartPolicy": "Always" });
    let mut bench = Bench::up(pod(json!({
        "initContainers": [sidecar("s"), sidecar("t")],
        "containers": [{ "name": "c", "image": "i" }, { "name": "d", "image": "i" }],
    })));
    for name in ["s", "t", "c", "d"] {
        bench.running(name, 0, 0);
    }
    bench.delete(0, 30);
    assert_eq!(bench.take(), ["Stop c-0", "Stop d-0"]);
    bench.exited("c", 0, 0, 1, 0);
    assert_eq!(bench.time(1).take(), [""; 0]);
    bench.exited("d", 0, 0, 2, 0);
    assert_eq!(bench.time(2).take(), ["Stop t-0"]);
    bench.exited("t", 0, 0, 3, 0);
    assert_eq!(bench.time(3).take(), ["Stop s-0"]);
    bench.exited("s", 0, 0, 4, 0);
    assert_eq!(bench.time(4).take(), ["remove pod"]);
}

#[test]
fn planner_retries_a_failed_removal_until_it_is_gone() {
    let mut bench = plain();
    bench.delete(0, 30);
    assert_eq!(bench.words(), ["remove pod"]);
    bench.fail(&Action::RemovePod, "Failed", "device busy");
    assert_eq!(bench.wake(), Some(1));
    assert_eq!(bench.time(1).take(), ["remove pod"]);
}

#[test]
fn planner_does_not_remove_a_pod_under_a_start_in_flight() {
    let mut bench = plain();
    bench.take();
    let start = bench.step();
    bench.delete(0, 0);
    assert_eq!(bench.words(), [""; 0]);
    bench.running("c", 0, 0);
    bench.done(&start[0]);
    assert_eq!(bench.take(), ["Kill c-0"]);
}

#[test]
fn planner_fails_a_pod_at_its_active_deadline() {
    let mut bench = Bench::up(one(json!({}), json!({ "activeDeadlineSeconds": 60 })));
    bench.running("c", 0, 0);
    assert_eq!(bench.take(), [""; 0]);
    assert_eq!(bench.wake(), Some(60));
    assert_eq!(bench.time(60).take(), ["Stop c-0"]);
    assert!(bench.event("DeadlineExceeded").is_some());
    bench.exited("c", 0, 0, 61, 0);
    assert_eq!(bench.time(61).take(), ["stop sandbox"]);
    assert_eq!(bench.status(None).reason.as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn planner_stops_sidecars_and_sandbox_of_a_finished_pod_once() {
    let sidecar = json!({ "name": "s", "image": "i", "restartPolicy": "Always" });
    let mut bench = Bench::up(pod(json!({ "restartPolicy": "Never", "initContainers": [sidecar],
        "containers": [{ "name": "c", "image": "i" }] })));
    bench.running("s", 0, 0);
    bench.exited("c", 0, 1, 2, 0);
    assert_eq!(bench.time(2).take(), ["Stop s-0"]);
    bench.exited("s", 0, 0, 3, 143);
    assert_eq!(bench.time(3).take(), ["stop sandbox"]);
    bench.seen.sandbox = Sandbox::Absent;
    assert_eq!(bench.plan().actions, []);
    assert_eq!(bench.wake(), None);
}

#[test]
fn planner_rests_when_all_is_well() {
    let mut bench = plain();
    bench.running("c", 0, 0);
    let plan = bench.plan();
    assert_eq!((plan.actions.len(), plan.wake_at), (0, None));
}

#[test]
fn planner_ends_an_evicted_pod_as_soon_as_containers_may_be_killed_and_keeps_it_failed() {
    let mut bench = Bench::up(one(json!({}), json!({ "terminationGracePeriodSeconds": 600 })));
    bench.running("c", 0, 0);
    let message = "Container c exceeded its local ephemeral storage limit \"1Mi\". ".to_owned();
    bench.seen.evicted = Some(Eviction::at_once(message.clone(), at(60)));
    assert_eq!(bench.time(60).take(), ["Stop c-0"]);
    // Two seconds are the least that a process gets after its stop signal.
    assert_eq!(bench.time(62).take(), ["Kill c-0"]);
    bench.exited("c", 0, 0, 62, 137);
    assert_eq!(bench.time(62).take(), ["stop sandbox"]);
    let status = bench.status(None);
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref(), status.message),
        (Some("Failed"), Some("Evicted"), Some(message))
    );
    bench.seen.sandbox = Sandbox::Absent;
    assert_eq!(bench.plan().actions, [], "it is not started again");
}

#[test]
fn planner_gives_a_pod_that_ends_with_the_machine_no_more_than_its_turn() {
    for (own, turn, killed_at) in [(600, 20, 80), (5, 20, 65)] {
        let grace = json!({ "terminationGracePeriodSeconds": own });
        let mut bench = Bench::up(one(json!({ "lifecycle": { "preStop": { "exec": {} } } }), grace));
        bench.running("c", 0, 0);
        let (reason, message) = (TERMINATED.to_owned(), TERMINATED_MESSAGE.to_owned());
        bench.seen.evicted = Some(Eviction { reason, message, since: at(60), grace_seconds: turn });
        assert_eq!(bench.time(60).take(), ["PreStop c-0"]);
        assert_eq!(bench.take(), ["Stop c-0"]);
        assert_eq!(bench.time(killed_at - 1).take(), [""; 0]);
        assert_eq!(bench.time(killed_at).take(), ["Kill c-0"]);
        bench.exited("c", 0, 0, killed_at, 137);
        let status = bench.status(None);
        assert_eq!(
            (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref()),
            (Some("Failed"), Some("Terminated"), Some(TERMINATED_MESSAGE))
        );
        let target = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget").unwrap();
        assert_eq!(target.reason.as_deref(), Some("TerminationByKubelet"));
    }
}

#[test]
fn planner_grants_the_whole_grace_period_from_when_the_end_is_known() {
    let mut bench = Bench::up(one(json!({}), json!({ "activeDeadlineSeconds": 100 })));
    bench.running("c", 0, 1);
    // The deadline passed while no agent was there.
    assert_eq!(bench.time(150).take(), ["Stop c-0"]);
    assert_eq!(bench.time(179).take(), [""; 0]);
    assert_eq!(bench.time(180).take(), ["Kill c-0"]);
}

#[test]
fn planner_caps_the_crash_backoff_at_what_the_node_says() {
    let mut bench = plain();
    let limits = Limits { max_restart_period: Duration::from_secs(15) };
    bench.memory = Memory::new(limits, None, at(0));
    bench.exited("c", 4, 1, 2, 1).delay = Some(Duration::from_secs(10));
    assert_eq!(bench.time(3).take(), [""; 0]);
    assert_eq!(bench.wake(), Some(17), "15 s from its end, not 20");
}

#[test]
fn planner_grants_a_probes_own_grace_period() {
    for (kind, field) in [("Liveness", "livenessProbe"), ("Startup", "startupProbe")] {
        let probe = json!({ "exec": {}, "periodSeconds": 5, "failureThreshold": 1, "terminationGracePeriodSeconds": 7 });
        let mut bench = Bench::up(one(json!({ field: probe }), json!({})));
        bench.running("c", 0, 1);
        let actions = bench.time(1).step();
        assert_eq!(actions.len(), 1, "{kind}");
        bench.probed(&actions[0], false);
        assert_eq!(bench.take(), ["Stop c-0"], "{kind}");
        assert_eq!(bench.time(7).take(), [""; 0], "{kind}");
        assert_eq!(bench.time(8).take(), ["Kill c-0"], "{kind}");
    }
}

#[test]
fn planner_counts_consecutive_results_only() {
    let probe = json!({ "exec": {}, "periodSeconds": 1, "failureThreshold": 2, "successThreshold": 2 });
    let mut bench = Bench::up(one(json!({ "readinessProbe": probe }), json!({})));
    bench.running("c", 0, 0);
    let mut ready = Vec::new();
    for (second, result) in [true, false, true, true, false, true, false, false].into_iter().enumerate() {
        let actions = bench.time(i64::try_from(second).unwrap() + 1).step();
        bench.probed(&actions[0], result);
        ready.push(bench.status(None).container_statuses.unwrap()[0].ready);
    }
    assert_eq!(ready, [false, false, false, true, true, true, true, false]);
}

#[test]
fn planner_force_deletes_without_hook_or_stop_signal() {
    let lifecycle = json!({ "preStop": { "exec": {} } });
    let containers =
        json!([{ "name": "c", "image": "i", "lifecycle": lifecycle }, { "name": "d", "image": "i" }]);
    let sidecar = json!([{ "name": "s", "image": "i", "restartPolicy": "Always" }]);
    let mut bench = Bench::up(pod(json!({ "initContainers": sidecar, "containers": containers })));
    for name in ["s", "c", "d"] {
        bench.running(name, 0, 1);
    }
    bench.delete(5, 0);
    assert_eq!(bench.time(5).take(), ["Kill s-0", "Kill c-0", "Kill d-0"], "all at once");
    for name in ["s", "c", "d"] {
        bench.exited(name, 0, 1, 5, 137);
    }
    assert_eq!(bench.take(), ["remove pod"]);
}

#[test]
fn planner_stops_all_main_containers_at_once() {
    let containers = json!([{ "name": "c", "image": "i" }, { "name": "d", "image": "i" }]);
    let mut bench = Bench::up(pod(json!({ "containers": containers })));
    bench.running("c", 0, 1);
    bench.running("d", 0, 1);
    bench.delete(5, 30);
    assert_eq!(bench.time(5).take(), ["Stop c-0", "Stop d-0"]);
    bench.exited("c", 0, 1, 6, 143);
    assert_eq!(bench.time(7).take(), [""; 0], "nothing goes before the other has ended");
}

#[test]
fn planner_tells_events_in_kubelets_words() {
    let hooks = json!({ "lifecycle": { "preStop": { "exec": {} } } });
    let mut bench = Bench::new(one(hooks, json!({})));
    let actions = bench.step();
    bench.fail(&actions[0], "FailedMount", "configmap \"web\" not found");
    assert_eq!(bench.event("FailedMount"), Some("configmap \"web\" not found"));
    bench.fail(&actions[1], "InvalidImageName", "couldn't parse image name");
    assert_eq!(bench.event("InspectFailed"), Some("couldn't parse image name"));
    assert_eq!(bench.event("Failed"), Some("Error: InvalidImageName"));
    bench.sandbox(1);
    bench.running("c", 0, 1);
    bench.delete(5, 30);
    let actions = bench.time(5).step();
    assert_eq!(bench.event("Killing"), Some("Stopping container c"));
    bench.fail(&actions[0], "Failed", "exit status 1");
    assert_eq!(bench.event("FailedPreStopHook"), Some("PreStopHook failed: exit status 1"));
    assert_eq!(bench.take(), ["Stop c-0"], "a failed hook stops nothing");
}
