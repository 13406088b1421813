//! The rules of changing resources in place, one test each.

#![allow(clippy::unwrap_used)]

mod planner_fixture;

use std::collections::BTreeMap;

use berth_reconciler::node::Sandbox;
use berth_reconciler::planner::Action;
use k8s_openapi::api::core::v1;
use planner_fixture::{Bench, at, one};
use serde_json::{Value, json};

fn resources(cpu: &str, memory: &str) -> Value {
    json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "cpu": cpu, "memory": memory } })
}

fn typed(value: Value) -> v1::ResourceRequirements {
    serde_json::from_value(value).unwrap()
}

fn container(cpu: &str, memory: &str) -> Value {
    json!({ "resources": resources(cpu, memory) })
}

/// A pod whose container runs with 100m and 64Mi and wants what is given.
fn resized(wants: Value) -> Bench {
    let mut bench = Bench::up(one(container("100m", "64Mi"), json!({})));
    bench.running("c", 0, 1);
    assert_eq!(bench.time(2).take(), [""; 0]);
    bench.pod = one(wants, json!({}));
    bench
}

/// The node grants what the pod asks for.
fn grant(bench: &mut Bench) {
    let all = bench.pod.all_containers();
    bench.seen.allocated = all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect();
}

fn condition<'a>(status: &'a v1::PodStatus, type_: &str) -> Option<&'a v1::PodCondition> {
    status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == type_)
}

#[test]
fn resize_is_granted_by_the_node_then_brought_to_the_container() {
    let mut bench = resized(container("200m", "64Mi"));
    assert_eq!(bench.take(), ["allocate"]);
    assert!(bench.event("ResizeStarted").is_some());
    grant(&mut bench);
    let actions = bench.step();
    let wants = typed(resources("200m", "64Mi"));
    assert_eq!(
        actions,
        [Action::ResizeContainer { container: "c".into(), id: "c-0".into(), resources: wants.clone() }]
    );
    let status = bench.status(None);
    let shown = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(shown.resources, Some(typed(resources("100m", "64Mi"))), "what it has");
    assert_eq!(shown.allocated_resources, wants.requests, "what it may have");
    assert_eq!(condition(&status, "PodResizeInProgress").unwrap().status, "True");
    bench.done(&actions[0]);
    bench.running("c", 0, 1);
    assert!(bench.event("ResizeCompleted").unwrap().contains("cpu 200m/200m"));
    assert_eq!(bench.time(3).take(), [""; 0]);
    let status = bench.status(Some(&status));
    assert_eq!(status.container_statuses.as_ref().unwrap()[0].resources, Some(wants));
    assert_eq!(condition(&status, "PodResizeInProgress"), None);
}

#[test]
fn resize_that_only_spells_amounts_differently_is_none() {
    let mut bench = resized(container("0.1", "65536Ki"));
    assert_eq!(bench.take(), [""; 0]);
}

#[test]
fn resize_restarts_a_container_whose_policy_says_so_for_that_resource() {
    for (cpu, memory, first) in [("100m", "128Mi", "Stop c-0"), ("200m", "64Mi", "resize c-0")] {
        let mut wants = container(cpu, memory);
        wants["resizePolicy"] = json!([
            { "resourceName": "cpu", "restartPolicy": "NotRequired" },
            { "resourceName": "memory", "restartPolicy": "RestartContainer" },
        ]);
        let mut bench = resized(wants);
        assert_eq!(bench.take(), ["allocate"]);
        grant(&mut bench);
        assert_eq!(bench.take(), [first], "{cpu} {memory}");
    }
}

#[test]
fn resize_by_restart_starts_anew_at_once_whatever_the_restart_policy() {
    let mut wants = container("100m", "128Mi");
    wants["resizePolicy"] = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    let mut bench = resized(wants.clone());
    bench.pod = one(wants, json!({ "restartPolicy": "OnFailure" }));
    assert_eq!(bench.take(), ["allocate"]);
    grant(&mut bench);
    assert_eq!(bench.take(), ["Stop c-0"]);
    assert_eq!(bench.event("Killing"), Some("Container c resize requires restart, will be restarted"));
    let has = typed(resources("100m", "64Mi"));
    bench.exited("c", 0, 1, 3, 0).resources = Some(has);
    assert_eq!(bench.time(3).take(), ["pull c"]);
    let actions = bench.step();
    let [Action::StartContainer(start)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((start.attempt, start.delay), (1, None), "no back-off");
    assert_eq!(start.resources, typed(resources("100m", "128Mi")));
}

#[test]
fn resize_that_is_infeasible_is_told_and_not_asked_for_again() {
    let mut bench = resized(container("9000", "64Mi"));
    let actions = bench.step();
    assert_eq!(actions, [Action::Allocate]);
    bench.fail(&actions[0], "Infeasible", "the node has 8 cpus");
    assert_eq!(bench.event("ResizeInfeasible"), Some("the node has 8 cpus"));
    assert_eq!((bench.words(), bench.wake()), (vec![], None));
    let status = bench.status(None);
    let pending = condition(&status, "PodResizePending").unwrap();
    assert_eq!(
        (pending.reason.as_deref(), pending.message.as_deref()),
        (Some("Infeasible"), Some("the node has 8 cpus"))
    );
    let shown = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(shown.allocated_resources, typed(resources("100m", "64Mi")).requests);
    bench.pod = one(container("300m", "64Mi"), json!({}));
    assert_eq!(bench.words(), ["allocate"], "another wish is another question");
    assert_eq!(condition(&bench.status(None), "PodResizePending"), None);
}

#[test]
fn resize_that_replaces_one_in_flight_is_asked_for_once_that_is_refused() {
    let mut bench = resized(container("1000", "64Mi"));
    let actions = bench.step();
    assert_eq!(actions, [Action::Allocate]);
    bench.pod = one(container("200m", "64Mi"), json!({}));
    bench.fail(&actions[0], "Infeasible", "the node has 2 CPUs");
    assert_eq!(bench.take(), ["allocate"], "the refusal was about another wish");
}

#[test]
fn resize_that_is_deferred_is_tried_again_with_backoff_and_told_once() {
    let mut bench = resized(container("2", "64Mi"));
    for (now, next) in [(2, 3), (3, 5), (5, 9)] {
        let actions = bench.time(now).step();
        assert_eq!(actions, [Action::Allocate], "at {now}");
        bench.fail(&actions[0], "Deferred", "other pods have it");
        assert_eq!(bench.wake(), Some(next));
    }
    assert_eq!(bench.events.iter().filter(|event| event.reason == "ResizeDeferred").count(), 1);
    let pending = bench.status(None);
    assert_eq!(condition(&pending, "PodResizePending").unwrap().reason.as_deref(), Some("Deferred"));
}

#[test]
fn resize_that_the_kernel_refuses_is_in_progress_with_the_error_and_tried_again() {
    let mut bench = resized(container("100m", "32Mi"));
    assert_eq!(bench.take(), ["allocate"]);
    grant(&mut bench);
    let actions = bench.step();
    bench.fail(&actions[0], "Error", "the container uses 50Mi");
    assert_eq!(bench.event("ResizeError"), Some("the container uses 50Mi"));
    assert_eq!((bench.words(), bench.wake()), (vec![], Some(3)));
    let status = bench.status(None);
    let progress = condition(&status, "PodResizeInProgress").unwrap();
    assert_eq!(
        (progress.reason.as_deref(), progress.message.as_deref()),
        (Some("Error"), Some("the container uses 50Mi"))
    );
    assert_eq!(bench.time(3).words(), ["resize c-0"]);
}

#[test]
fn resize_of_a_crashed_container_ends_its_backoff() {
    let mut bench = Bench::up(one(container("100m", "64Mi"), json!({})));
    bench.exited("c", 3, 1, 2, 137).delay = Some(std::time::Duration::from_secs(80));
    assert_eq!(bench.time(3).take(), [""; 0]);
    assert_eq!(bench.wake(), Some(162));
    bench.pod = one(container("100m", "128Mi"), json!({}));
    assert_eq!(bench.step(), [Action::Allocate]);
    bench.done(&Action::Allocate);
    bench.seen.allocated = BTreeMap::from([("c".to_owned(), typed(resources("100m", "128Mi")))]);
    assert_eq!(bench.take(), ["pull c"]);
    let actions = bench.step();
    let [Action::StartContainer(start)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((start.attempt, start.delay), (4, None));
}

#[test]
fn resize_that_is_refused_lets_a_crashed_container_start_with_what_it_had() {
    let mut bench = resized(container("9000", "64Mi"));
    let actions = bench.step();
    bench.fail(&actions[0], "Infeasible", "no");
    bench.exited("c", 0, 1, 3, 1).resources = Some(typed(resources("100m", "64Mi")));
    assert_eq!(bench.time(3).take(), ["pull c"]);
    let actions = bench.step();
    let [Action::StartContainer(start)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(start.resources, typed(resources("100m", "64Mi")));
}

#[test]
fn resize_before_the_first_start_asks_for_nothing() {
    let mut bench = Bench::new(one(container("100m", "64Mi"), json!({})));
    bench.pod = one(container("200m", "64Mi"), json!({}));
    assert_eq!(bench.take(), ["sandbox", "pull c"]);
    bench.seen.sandbox = Sandbox::Ready { ips: Vec::new(), created_at: at(0) };
    let actions = bench.step();
    let [Action::StartContainer(start)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(start.resources, typed(resources("200m", "64Mi")));
}

#[test]
fn resize_waits_for_no_container_and_none_starts_while_the_node_is_asked() {
    let mut bench = resized(container("200m", "64Mi"));
    let has = typed(resources("100m", "64Mi"));
    bench.exited("c", 0, 1, 2, 1).resources = Some(has);
    assert_eq!(bench.words(), ["allocate", "pull c"]);
    let pull = Action::EnsureImage { container: "c".into(), image: "i".into() };
    bench.done(&pull);
    assert_eq!(bench.words(), [""; 0]);
    bench.done(&Action::Allocate);
    grant(&mut bench);
    assert_eq!(bench.words(), ["start c 1"]);
}
