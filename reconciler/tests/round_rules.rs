//! The rules of ephemeral containers and of restarting all containers, one test each.

#![allow(clippy::unwrap_used)]

mod planner_fixture;

use berth_reconciler::node::{ContainerState, Sandbox};
use berth_reconciler::planner::Action;
use planner_fixture::{Bench, at, one, pod};
use serde_json::{Value, json};

fn debugged(fields: Value) -> Bench {
    let mut spec = json!({
        "initContainers": [{ "name": "a", "image": "i" }],
        "containers": [{ "name": "c", "image": "i" }],
        "ephemeralContainers": [{ "name": "d", "image": "i", "targetContainerName": "c" }],
    });
    for (key, value) in fields.as_object().unwrap() {
        spec[key] = value.clone();
    }
    Bench::up(pod(spec))
}

#[test]
fn ephemeral_containers_start_before_init_is_done() {
    let mut bench = debugged(json!({}));
    bench.running("a", 0, 1);
    assert_eq!(bench.take(), ["pull d"]);
    assert_eq!(bench.take(), ["start d 0"]);
    assert_eq!(bench.pod.target_of("d"), Some("c"));
}

#[test]
fn ephemeral_containers_are_never_started_again() {
    for code in [0, 1, 137] {
        let mut bench = debugged(json!({}));
        bench.exited("a", 0, 1, 2, 0);
        bench.running("c", 0, 3);
        bench.exited("d", 0, 3, 4, code);
        assert_eq!(bench.time(1000).take(), [""; 0], "{code}");
        bench.seen.sandbox = Sandbox::Dead;
        bench.exited("c", 0, 3, 1000, 137);
        assert_eq!(bench.take(), ["sandbox"]);
        bench.sandbox(1001);
        assert_eq!(bench.time(1001).take(), ["pull a"], "{code}");
    }
}

#[test]
fn ephemeral_containers_do_not_keep_a_pod_from_its_end_and_are_stopped_with_it() {
    let mut bench = debugged(json!({ "restartPolicy": "Never" }));
    bench.exited("a", 0, 1, 2, 0);
    bench.exited("c", 0, 3, 4, 0);
    bench.running("d", 0, 3);
    assert_eq!(bench.time(5).take(), ["Stop d-0"]);
    bench.exited("d", 0, 3, 6, 143);
    assert_eq!(bench.status(None).phase.as_deref(), Some("Succeeded"), "its exit code does not count");
    assert_eq!(bench.time(6).take(), ["stop sandbox"]);
}

#[test]
fn ephemeral_containers_do_not_hold_up_a_sidecars_end() {
    let mut bench = Bench::up(pod(json!({
        "initContainers": [{ "name": "s", "image": "i", "restartPolicy": "Always" }],
        "containers": [{ "name": "c", "image": "i" }],
        "ephemeralContainers": [{ "name": "d", "image": "i" }],
    })));
    bench.running("s", 0, 1);
    bench.exited("c", 0, 2, 3, 0);
    bench.running("d", 0, 3);
    bench.delete(4, 30);
    assert_eq!(bench.time(4).take(), ["Stop s-0", "Stop d-0"]);
}

#[test]
fn ephemeral_containers_have_statuses_of_their_own() {
    let mut bench = debugged(json!({}));
    bench.exited("a", 0, 1, 2, 0);
    bench.running("c", 0, 3);
    let waiting = bench.status(None).ephemeral_container_statuses.unwrap();
    let state = waiting[0].state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(state.reason.as_deref(), Some("ContainerCreating"));
    bench.running("d", 0, 4);
    let status = bench.status(None);
    let ephemeral = &status.ephemeral_container_statuses.as_ref().unwrap()[0];
    assert!(ephemeral.state.as_ref().unwrap().running.is_some());
    assert_eq!((ephemeral.ready, ephemeral.started), (false, None), "nobody asks that of them");
    assert_eq!(status.container_statuses.as_ref().unwrap().len(), 1);
    let ready = status.conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.status, "True", "they do not count");
}

/// Init container `a`, sidecar `s`, main containers `b` and `c`; an exit of `c` with 42 restarts all.
fn pod_of_rules() -> Value {
    let codes = json!({ "operator": "In", "values": [42] });
    let rules = json!([{ "action": "RestartAllContainers", "exitCodes": codes }]);
    json!({
        "restartPolicy": "Never",
        "initContainers": [
            { "name": "a", "image": "i" },
            { "name": "s", "image": "i", "restartPolicy": "Always" },
        ],
        "containers": [
            { "name": "b", "image": "i", "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } } },
            { "name": "c", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules },
        ],
        "ephemeralContainers": [{ "name": "d", "image": "i" }],
    })
}

fn restarting() -> Bench {
    let mut bench = Bench::up(pod(pod_of_rules()));
    bench.exited("a", 0, 1, 2, 0);
    bench.running("s", 0, 3);
    bench.running("b", 0, 4);
    bench.running("d", 0, 4);
    bench.exited("c", 0, 4, 100, 42);
    bench.time(100);
    bench
}

#[test]
fn restart_all_ends_all_containers_without_pre_stop_hooks() {
    let mut bench = restarting();
    assert_eq!(bench.take(), ["Stop s-0", "Stop b-0", "Stop d-0"]);
    assert_eq!(bench.status(None).phase.as_deref(), Some("Running"));
    let conditions = bench.status(None).conditions.unwrap();
    assert!(conditions.iter().any(|c| c.type_ == "AllContainersRestarting" && c.status == "True"));
    bench.exited("s", 0, 3, 101, 143);
    bench.exited("d", 0, 4, 101, 143);
    assert_eq!(bench.time(101).take(), [""; 0], "one still runs");
    assert_eq!(bench.wake(), Some(105), "it is named then");
    assert_eq!(bench.time(130).take(), ["Kill b-0"]);
}

#[test]
fn restart_all_runs_init_containers_again_and_then_the_others_in_order() {
    let mut bench = restarting();
    bench.exited("s", 0, 3, 101, 143);
    bench.exited("b", 0, 4, 101, 143);
    bench.exited("d", 0, 4, 101, 143);
    assert_eq!(bench.time(101).take(), ["pull a"]);
    let actions = bench.step();
    let [Action::StartContainer(start)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((start.name.as_str(), start.attempt, start.round), ("a", 1, Some(at(100))));
    bench.done(&actions[0]);
    let round = start.round;
    bench.exited("a", 1, 102, 103, 0).round = round;
    assert_eq!(bench.time(103).take(), ["pull s"]);
    bench.running("s", 1, 104).round = round;
    assert_eq!(bench.time(104).take(), ["pull b", "pull c"]);
    assert_eq!(bench.take(), ["start b 1", "start c 1"]);
    bench.running("b", 1, 105).round = round;
    bench.running("c", 1, 105).round = round;
    assert_eq!(bench.time(106).take(), [""; 0]);
    let conditions = bench.status(None).conditions.unwrap();
    assert!(!conditions.iter().any(|c| c.type_ == "AllContainersRestarting"));
}

#[test]
fn restart_all_is_not_forgotten_with_the_record_of_the_exit() {
    let mut bench = restarting();
    let round = Some(at(100));
    bench.exited("s", 0, 3, 101, 143);
    bench.exited("d", 0, 4, 101, 143);
    // `c` has been started twice since and ended well; `b` has not been started yet and may not stay away.
    bench.exited("b", 0, 4, 101, 143);
    bench.exited("a", 1, 102, 103, 0).round = round;
    bench.running("s", 1, 104).round = round;
    bench.exited("c", 1, 105, 106, 0).round = round;
    bench.exited("c", 2, 107, 108, 0).round = round;
    bench.seen.containers.retain(|record| record.id != "c-0");
    assert_eq!(bench.time(109).take(), ["pull b"]);
}

#[test]
fn restart_all_stops_what_was_ordered_before_and_appears_after() {
    let mut bench = restarting();
    bench.exited("s", 0, 3, 101, 143);
    bench.exited("d", 0, 4, 101, 143);
    let late = bench.running("b", 0, 102);
    assert!(late.created_at > at(100) && late.round.is_none());
    assert_eq!(bench.time(102).take(), ["Stop b-0"]);
}

#[test]
fn restart_rules_are_tried_in_order_and_the_first_match_decides() {
    let rule = |action: &str, operator: &str, code: i32| json!({ "action": action, "exitCodes": { "operator": operator, "values": [code] } });
    for (rules, code, all) in [
        ([rule("Restart", "In", 1), rule("RestartAllContainers", "NotIn", 0)], 1, false),
        ([rule("Restart", "In", 1), rule("RestartAllContainers", "NotIn", 0)], 2, true),
        ([rule("RestartAllContainers", "NotIn", 0), rule("Restart", "In", 1)], 1, true),
    ] {
        let container = json!({ "restartPolicy": "Never", "restartPolicyRules": rules });
        let mut bench = Bench::up(one(container, json!({})));
        bench.exited("c", 0, 1, 2, code);
        assert_eq!(bench.time(3).take(), ["pull c"], "either starts it again");
        let actions = bench.step();
        let [Action::StartContainer(start)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(start.round.is_some(), all, "{code}");
    }
}

#[test]
fn restart_all_backs_off_as_every_restart() {
    let codes = json!({ "operator": "In", "values": [42] });
    let rules = json!([{ "action": "RestartAllContainers", "exitCodes": codes }]);
    let container = json!({ "restartPolicy": "Never", "restartPolicyRules": rules });
    let mut bench = Bench::up(one(container, json!({})));
    let record = bench.exited("c", 3, 1, 2, 42);
    record.delay = Some(std::time::Duration::from_secs(20));
    assert!(matches!(record.state, ContainerState::Exited(_)));
    assert_eq!(bench.time(3).take(), [""; 0]);
    assert_eq!(bench.wake(), Some(42));
}
