//! The Pod status, one test per rule.

#![allow(clippy::unwrap_used)]

mod planner_fixture;

use std::time::Duration;

use berth_reconciler::node::{Eviction, Sandbox};
use berth_reconciler::planner::{Limits, Memory};
use k8s_openapi::api::core::v1;
use planner_fixture::{Bench, at, one, pod};
use serde_json::json;

fn condition<'a>(status: &'a v1::PodStatus, type_: &str) -> &'a v1::PodCondition {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_).unwrap()
}

fn truth(status: &v1::PodStatus, type_: &str) -> (String, String) {
    let condition = condition(status, type_);
    (condition.status.clone(), condition.reason.clone().unwrap_or_default())
}

fn main_status(status: &v1::PodStatus) -> &v1::ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

fn waiting(status: &v1::PodStatus) -> (String, String) {
    let waiting = main_status(status).state.as_ref().unwrap().waiting.as_ref().unwrap();
    (waiting.reason.clone().unwrap(), waiting.message.clone().unwrap_or_default())
}

fn phase(bench: &Bench) -> String {
    bench.status(None).phase.unwrap()
}

#[test]
fn status_of_a_new_pod_is_pending_and_creating() {
    let bench = Bench::new(one(json!({}), json!({})));
    let status = bench.status(None);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting(&status), ("ContainerCreating".to_owned(), String::new()));
    assert_eq!(truth(&status, "PodScheduled").0, "True");
    assert_eq!(truth(&status, "PodReadyToStartContainers").0, "False");
    assert_eq!(truth(&status, "Initialized").0, "True");
    assert_eq!(truth(&status, "Ready"), ("False".to_owned(), "ContainersNotReady".to_owned()));
    let message = condition(&status, "ContainersReady").message.as_deref();
    assert_eq!(message, Some("containers with unready status: [c]"));
    assert_eq!(status.start_time.unwrap().0, at(0));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn status_of_a_running_pod_is_ready_with_address_and_ids() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.running("c", 2, 5);
    let status = bench.status(None);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.85.0.9"));
    assert_eq!(truth(&status, "Ready"), ("True".to_owned(), String::new()));
    let container = main_status(&status);
    assert_eq!(container.container_id.as_deref(), Some("berth://c-2"));
    assert_eq!((container.ready, container.started, container.restart_count), (true, Some(true), 2));
    let running = container.state.as_ref().unwrap().running.as_ref().unwrap();
    assert_eq!(running.started_at.as_ref().unwrap().0, at(5));
}

#[test]
fn status_waits_for_init_containers() {
    let mut bench = Bench::up(pod(json!({
        "initContainers": [{ "name": "a", "image": "i" }],
        "containers": [{ "name": "c", "image": "i" }],
    })));
    bench.running("a", 0, 1);
    let status = bench.status(None);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting(&status).0, "PodInitializing");
    assert_eq!(truth(&status, "Initialized").1, "ContainersNotInitialized");
    let message = condition(&status, "Initialized").message.as_deref();
    assert_eq!(message, Some("containers with incomplete status: [a]"));
    bench.exited("a", 0, 1, 2, 0);
    let status = bench.status(None);
    assert_eq!(truth(&status, "Initialized").0, "True");
    assert!(status.init_container_statuses.unwrap()[0].ready);
}

#[test]
fn status_shows_crash_loop_backoff_with_the_last_state() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.exited("c", 1, 0, 3, 7).delay = Some(Duration::ZERO);
    bench.time(4);
    let status = bench.status(None);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let text = "back-off 10s restarting failed container=c pod=web_default(u1)";
    assert_eq!(waiting(&status), ("CrashLoopBackOff".to_owned(), text.to_owned()));
    let last = main_status(&status).last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (7, Some("Error")));
    assert_eq!(last.container_id.as_deref(), Some("berth://c-1"));
}

#[test]
fn status_shows_a_failed_pull_then_its_backoff() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    let pull = bench.step();
    bench.fail(&pull[0], "ErrImagePull", "no such host");
    assert_eq!(waiting(&bench.status(None)), ("ErrImagePull".to_owned(), "no such host".to_owned()));
    bench.time(2);
    let text = "Back-off pulling image \"i\": ErrImagePull: no such host";
    assert_eq!(waiting(&bench.status(None)), ("ImagePullBackOff".to_owned(), text.to_owned()));
}

#[test]
fn status_shows_why_a_container_cannot_be_made() {
    for (reason, step) in
        [("InvalidImageName", 0), ("ErrImageNeverPull", 0), ("CreateContainerConfigError", 1)]
    {
        let mut bench = Bench::up(one(json!({}), json!({})));
        for _ in 0..step {
            bench.take();
        }
        let actions = bench.step();
        bench.fail(&actions[0], reason, "why");
        bench.time(600);
        assert_eq!(waiting(&bench.status(None)), (reason.to_owned(), "why".to_owned()));
    }
}

#[test]
fn status_of_ended_pods_is_final() {
    for (codes, expected) in [([0, 0], "Succeeded"), ([0, 3], "Failed")] {
        let containers = json!([{ "name": "c", "image": "i" }, { "name": "d", "image": "i" }]);
        let mut bench = Bench::up(pod(json!({ "restartPolicy": "Never", "containers": containers })));
        bench.exited("c", 0, 1, 2, codes[0]);
        bench.running("d", 0, 1);
        assert_eq!(phase(&bench), "Running");
        bench.exited("d", 0, 1, 3, codes[1]);
        let status = bench.status(None);
        assert_eq!(status.phase.as_deref(), Some(expected));
        let reason = if expected == "Succeeded" { "PodCompleted" } else { "PodFailed" };
        assert_eq!(truth(&status, "Ready"), ("False".to_owned(), reason.to_owned()));
        let mut next = Bench::new(bench.pod);
        next.memory = Memory::new(Limits::default(), Some(&status), at(99));
        assert_eq!(next.status(Some(&status)).phase.as_deref(), Some(expected));
        assert_eq!(next.plan().actions, []);
        let kept = next.status(Some(&status)).container_statuses;
        assert_eq!(kept, status.container_statuses, "even if the machine has forgotten them");
    }
}

#[test]
fn status_of_a_job_to_be_repeated_stays_running() {
    let mut bench = Bench::up(one(json!({}), json!({ "restartPolicy": "OnFailure" })));
    bench.exited("c", 0, 1, 2, 1);
    assert_eq!(phase(&bench), "Running");
    bench.exited("c", 0, 1, 2, 0);
    assert_eq!(phase(&bench), "Succeeded");
}

#[test]
fn status_keeps_transition_times_and_foreign_conditions() {
    let gate = json!({ "readinessGates": [{ "conditionType": "example.org/gate" }] });
    let mut bench = Bench::up(one(json!({}), gate));
    bench.running("c", 0, 1);
    let mut first = bench.status(None);
    let text = "corresponding condition of pod readiness gate \"example.org/gate\" does not exist.";
    assert_eq!(condition(&first, "Ready").message.as_deref(), Some(text));
    first.conditions.as_mut().unwrap().push(v1::PodCondition {
        type_: "example.org/gate".to_owned(),
        status: "True".to_owned(),
        ..v1::PodCondition::default()
    });
    bench.time(50);
    let second = bench.status(Some(&first));
    assert_eq!(truth(&second, "Ready").0, "True");
    assert_eq!(condition(&second, "Ready").last_transition_time.as_ref().unwrap().0, at(50));
    assert_eq!(condition(&second, "PodScheduled").last_transition_time.as_ref().unwrap().0, at(0));
    assert_eq!(condition(&second, "example.org/gate").status, "True");
}

#[test]
fn status_does_not_regress_when_the_agent_starts_anew() {
    let probes = json!({ "readinessProbe": { "exec": {} }, "startupProbe": { "exec": {} } });
    let mut bench = Bench::up(one(probes, json!({})));
    bench.running("c", 1, 1);
    bench.time(1).take();
    bench.take();
    let before = bench.status(None);
    assert!(main_status(&before).ready);
    bench.memory = Memory::new(Limits::default(), Some(&before), at(500));
    bench.time(500);
    assert_eq!(bench.status(Some(&before)), before);
    assert_eq!((bench.plan().actions, bench.wake()), (Vec::new(), Some(501)), "probes keep their time");
    assert_eq!(bench.time(501).words(), ["Readiness c-1"]);
}

#[test]
fn status_shows_unready_containers_by_probe() {
    let mut bench = Bench::up(one(json!({ "readinessProbe": { "exec": {} } }), json!({})));
    bench.running("c", 0, 1);
    let container = main_status(&bench.status(None)).clone();
    assert_eq!((container.ready, container.started), (false, Some(true)));
}

#[test]
fn status_keeps_the_address_of_a_sandbox_that_is_gone() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    let before = bench.status(None);
    bench.seen.sandbox = Sandbox::Dead;
    let after = bench.status(Some(&before));
    assert_eq!(after.pod_ips, before.pod_ips);
    assert_eq!(truth(&after, "PodReadyToStartContainers").0, "False");
}

#[test]
fn status_shows_resources_and_mounts() {
    let container = json!({
        "resources": { "requests": { "cpu": "100m" }, "limits": { "cpu": "1" } },
        "volumeMounts": [{ "name": "v", "mountPath": "/v", "readOnly": true }],
    });
    let mut bench = Bench::up(one(container, json!({})));
    bench.running("c", 0, 1);
    let status = bench.status(None);
    let container = main_status(&status);
    assert_eq!(container.allocated_resources.as_ref().unwrap()["cpu"].0, "100m");
    assert_eq!(container.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "1");
    let mount = &container.volume_mounts.as_ref().unwrap()[0];
    assert_eq!((mount.read_only, mount.recursive_read_only.as_deref()), (Some(true), Some("Disabled")));
}

#[test]
fn status_of_a_pod_whose_sandbox_is_remade_falls_back_only_while_an_init_container_runs() {
    let spec = json!({
        "initContainers": [{ "name": "a", "image": "i" }],
        "containers": [{ "name": "c", "image": "i" }],
    });
    let mut bench = Bench::up(pod(spec));
    bench.exited("c", 0, 3, 9, 137);
    bench.sandbox(10);
    bench.running("a", 1, 11);
    assert_eq!(phase(&bench), "Pending");
    bench.exited("a", 1, 11, 12, 1);
    assert_eq!(phase(&bench), "Running", "a failed one that waits does not count, says kubelet");
}

#[test]
fn status_of_a_pod_that_ended_in_a_backoff_shows_how_its_containers_ended() {
    let mut bench = Bench::up(one(json!({}), json!({ "activeDeadlineSeconds": 100 })));
    bench.exited("c", 3, 90, 95, 7).delay = Some(Duration::from_secs(40));
    assert_eq!(waiting(&bench.time(96).status(None)).0, "CrashLoopBackOff");
    let status = bench.time(100).status(None);
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    let state = main_status(&status).state.as_ref().unwrap();
    assert_eq!(
        state.terminated.as_ref().map(|t| (t.exit_code, t.reason.as_deref())),
        Some((7, Some("Error")))
    );
}

#[test]
fn status_of_a_container_that_never_ran_in_a_pod_that_ended_is_unknown() {
    let fields = json!({ "activeDeadlineSeconds": 100 });
    let mut bench = Bench::up(one(json!({}), fields));
    let status = bench.time(100).status(None);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    let terminated = main_status(&status).state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((terminated.exit_code, terminated.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    // Containers whose turn never came are left as they were.
    let spec = json!({ "activeDeadlineSeconds": 100, "initContainers": [{ "name": "a", "image": "i" }],
        "containers": [{ "name": "c", "image": "i" }] });
    let mut bench = Bench::up(pod(spec));
    bench.exited("a", 0, 1, 90, 1);
    let status = bench.time(100).status(None);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(waiting(&status).0, "PodInitializing");
}

#[test]
fn status_of_an_evicted_pod_has_the_condition_disruption_target_for_ever() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.running("c", 0, 1);
    let message = "The node was low on resource: memory. ".to_owned();
    bench.seen.evicted = Some(Eviction::at_once(message.clone(), at(60)));
    let during = bench.time(60).status(None);
    let target = condition(&during, "DisruptionTarget");
    assert_eq!((target.status.as_str(), target.reason.as_deref()), ("True", Some("TerminationByKubelet")));
    assert_eq!(target.message, Some(message));
    bench.exited("c", 0, 1, 61, 137);
    let after = bench.time(90).status(Some(&during));
    assert_eq!(condition(&after, "DisruptionTarget"), target, "with its time");
    bench.seen.evicted = None;
    assert_eq!(condition(&bench.status(Some(&after)), "DisruptionTarget"), target);
}

#[test]
fn status_before_any_probe_is_ready_only_without_a_readiness_probe() {
    let probe = json!({ "exec": {}, "initialDelaySeconds": 60, "periodSeconds": 5 });
    for (field, expected) in
        [("livenessProbe", (true, true)), ("readinessProbe", (false, true)), ("startupProbe", (false, false))]
    {
        let mut bench = Bench::up(one(json!({ field: probe }), json!({})));
        bench.running("c", 0, 1);
        let status = bench.time(2).status(None);
        let container = main_status(&status);
        assert_eq!((container.ready, container.started == Some(true)), expected, "{field}");
    }
}

#[test]
fn status_of_conditions_names_the_generation_they_are_about() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.pod.object.metadata.generation = Some(7);
    let status = bench.status(None);
    assert_eq!(status.observed_generation, Some(7));
    let of_all = status.conditions.unwrap();
    assert!(of_all.iter().all(|condition| condition.observed_generation == Some(7)), "{of_all:?}");
}

#[test]
fn status_of_a_terminated_pod_follows_its_exits_while_it_is_deleted() {
    for (code, expected) in [(0, "Succeeded"), (143, "Failed")] {
        let mut bench = Bench::up(one(json!({}), json!({})));
        bench.exited("c", 0, 1, 5, code);
        assert_eq!(phase(&bench), "Running", "it is to be started again");
        bench.delete(6, 30);
        assert_eq!(phase(&bench), expected, "it will not be any more");
    }
}

#[test]
fn status_counts_a_sidecar_that_still_runs_as_running() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "s", "image": "i", "restartPolicy": "Always" }],
        "containers": [{ "name": "c", "image": "i" }],
    });
    let mut bench = Bench::up(pod(spec));
    bench.running("s", 0, 1);
    bench.exited("c", 0, 2, 3, 0);
    assert_eq!(phase(&bench), "Running");
    bench.exited("s", 0, 1, 4, 143);
    assert_eq!(phase(&bench), "Succeeded", "how a sidecar ends does not matter");
}

#[test]
fn status_of_a_pod_that_is_removed_says_to_the_end_how_its_containers_ended() {
    let spec = json!({
        "restartPolicy": "OnFailure",
        "initContainers": [{ "name": "i", "image": "i" }, { "name": "s", "image": "i", "restartPolicy": "Always" }],
        "containers": [{ "name": "c", "image": "i" }],
    });
    let mut bench = Bench::up(pod(spec));
    bench.exited("i", 0, 1, 2, 0);
    bench.exited("s", 0, 2, 9, 137);
    bench.exited("c", 2, 3, 9, 137);
    bench.delete(8, 1);
    let ended = bench.time(10).status(None);
    assert_eq!(ended.phase.as_deref(), Some("Failed"));
    // API servers refuse the status of an init container that has ended and then waits.
    bench.seen.containers.clear();
    bench.memory.note_status(&ended);
    let gone = bench.time(11).status(Some(&ended));
    assert_eq!(gone.phase, ended.phase);
    assert_eq!(gone.init_container_statuses, ended.init_container_statuses);
    assert_eq!(gone.container_statuses, ended.container_statuses);
    assert_eq!(truth(&gone, "Initialized"), truth(&ended, "Initialized"));
    // Of a sidecar that was only seen to run nobody knows how it ended.
    let mut running = ended.clone();
    let sidecar = &mut running.init_container_statuses.as_mut().unwrap()[1];
    let since = v1::ContainerStateRunning::default();
    sidecar.state = Some(v1::ContainerState { running: Some(since), ..v1::ContainerState::default() });
    let unknown = bench.status(Some(&running)).init_container_statuses.unwrap().remove(1);
    let reason = unknown.state.unwrap().terminated.unwrap().reason;
    assert_eq!(reason.as_deref(), Some("ContainerStatusUnknown"));
}

#[test]
fn status_of_a_pod_that_is_removed_before_its_turn_came_keeps_what_has_ended() {
    let spec = json!({ "initContainers": [{ "name": "i", "image": "i" }], "containers": [{ "name": "c", "image": "i" }] });
    let mut bench = Bench::up(pod(spec));
    bench.exited("i", 0, 1, 2, 0);
    bench.delete(8, 1);
    let before = bench.time(10).status(None);
    assert_eq!(before.phase.as_deref(), Some("Pending"), "the main container could not be made");
    bench.seen.containers.clear();
    let gone = bench.time(11).status(Some(&before));
    assert_eq!(gone.init_container_statuses, before.init_container_statuses);
}
