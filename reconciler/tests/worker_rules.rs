//! The workers, under paused time.

#![allow(clippy::unwrap_used)]

mod worker_node;

use std::time::Duration;

use berth_reconciler::worker::Reconciler;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodCondition;
use serde_json::json;
use worker_node::{Script, pass, pod, reconciler};

#[tokio::test(start_paused = true)]
async fn worker_starts_a_pod_and_then_rests() {
    let pods = reconciler();
    pods.apply(pod("u", "web", json!({})));
    pass(1).await;
    let node = pods.node();
    assert_eq!(node.calls(), ["u sandbox", "u pull c", "u pulled", "u start c 0"]);
    assert_eq!(node.phase("u").as_deref(), Some("Running"));
    let observed = node.lock().observed;
    let published = node.lock().published.len();
    pass(24 * 3600).await;
    assert_eq!(node.lock().observed, observed, "an idle pod is not looked at");
    pods.wake("u");
    pass(1).await;
    assert_eq!(node.lock().observed, observed + 1);
    assert_eq!(node.lock().published.len(), published, "nothing new, nothing published");
}

#[tokio::test(start_paused = true)]
async fn worker_restarts_an_exited_container_on_wake() {
    let pods = reconciler();
    pods.apply(pod("u", "web", json!({})));
    pass(1).await;
    pods.node().calls();
    pods.node().exit("u", 1, Timestamp::from_second(1_800_000_001).unwrap());
    pods.wake("u");
    pass(1).await;
    assert_eq!(pods.node().calls(), ["u pull c", "u pulled", "u start c 1"]);
    pods.node().exit("u", 1, Timestamp::from_second(1_800_000_002).unwrap());
    pods.wake("u");
    pass(8).await;
    assert_eq!(pods.node().calls(), [""; 0], "back-off");
    pass(4).await;
    assert_eq!(pods.node().calls().last().unwrap(), "u start c 2", "the timer wakes it");
}

#[tokio::test(start_paused = true)]
async fn worker_deletes_with_signals_and_drains() {
    let pods = reconciler();
    pods.apply(pod("u", "web", json!({ "terminationGracePeriodSeconds": 4 })));
    pass(1).await;
    pods.node().calls();
    assert!(pods.delete("u", None));
    pass(5).await;
    assert_eq!(pods.node().calls(), ["u stop c-0 Stop", "u stop c-0 Kill"]);
    pods.node().exit("u", 137, Timestamp::from_second(1_800_000_006).unwrap());
    pods.wake("u");
    pods.drained().await;
    assert_eq!(pods.node().calls(), ["u remove"]);
    assert_eq!(pods.node().lock().gone, ["u"]);
    assert!(pods.pods().is_empty());
    assert!(!pods.delete("u", None));
}

#[tokio::test(start_paused = true)]
async fn worker_shortens_but_never_lengthens_the_grace_period() {
    let pods = reconciler();
    pods.apply(pod("u", "web", json!({})));
    pass(1).await;
    pods.delete("u", Some(20));
    pods.delete("u", Some(100));
    assert_eq!(pods.get("u").unwrap().deletion.unwrap().grace_seconds, 20);
    pods.delete("u", Some(0));
    pass(1).await;
    assert_eq!(pods.node().calls().last().unwrap(), "u stop c-0 Kill");
}

#[tokio::test(start_paused = true)]
async fn worker_lets_a_new_uid_wait_for_the_name_and_the_latest_wins() {
    let pods = reconciler();
    pods.apply(pod("old", "web", json!({})));
    pass(1).await;
    pods.delete("old", None);
    pods.apply(pod("lost", "web", json!({})));
    pods.apply(pod("new", "web", json!({})));
    pass(1).await;
    assert!(!pods.node().calls().iter().any(|call| call.starts_with("new")));
    assert_eq!(pods.pods().len(), 2);
    pods.node().exit("old", 0, Timestamp::from_second(1_800_000_002).unwrap());
    pods.wake("old");
    pass(1).await;
    assert_eq!(pods.node().phase("new").as_deref(), Some("Running"));
    assert_eq!(pods.node().lock().gone, ["lost", "old"]);
}

#[tokio::test(start_paused = true)]
async fn worker_starts_the_same_uid_anew_after_its_end() {
    let pods = reconciler();
    pods.apply(pod("u", "web", json!({})));
    pass(1).await;
    pods.delete("u", Some(0));
    pods.apply(pod("u", "web", json!({})));
    pods.node().exit("u", 137, Timestamp::from_second(1_800_000_002).unwrap());
    pods.wake("u");
    pass(1).await;
    let calls = pods.node().calls();
    assert_eq!(calls[calls.len() - 5..], ["u remove", "u sandbox", "u pull c", "u pulled", "u start c 0"]);
    assert!(pods.get("u").unwrap().deletion.is_none());
}

#[tokio::test(start_paused = true)]
async fn worker_begins_nothing_for_a_change_of_a_pod_that_is_deleted_or_gone() {
    let pods = reconciler();
    pods.apply(pod("u", "web", json!({})));
    pass(1).await;
    assert!(pods.delete("u", Some(1)));
    pass(1).await;
    // As `kubectl label` does while the pod ends.
    assert!(pods.update(pod("u", "web", json!({}))));
    pods.node().exit("u", 137, Timestamp::from_second(1_800_000_002).unwrap());
    pods.wake("u");
    pods.drained().await;
    pods.node().calls();
    assert!(!pods.update(pod("u", "web", json!({}))), "nobody knows it any more");
    pass(3600).await;
    assert_eq!(pods.node().calls(), [""; 0]);
    assert!(pods.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn worker_survives_a_panic_and_adopts_what_runs() {
    let pods = reconciler();
    pods.node().lock().panics = Some("start");
    pods.apply(pod("u", "web", json!({})));
    pass(1).await;
    assert!(pods.node().lock().machine["u"].containers.is_empty());
    pass(10).await;
    assert_eq!(pods.node().phase("u").as_deref(), Some("Running"));
    let calls = pods.node().calls();
    assert_eq!(calls.iter().filter(|call| *call == "u sandbox").count(), 1, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn worker_adopts_running_containers_without_touching_them() {
    let pods = reconciler();
    pods.apply(pod("u", "web", json!({})));
    pass(1).await;
    let status = pods.get("u").unwrap().status;
    pods.shutdown().await;
    pods.node().calls();
    let next = berth_reconciler::worker::Reconciler::new(
        pods.node().clone(),
        berth_reconciler::worker::Options::default(),
    );
    next.adopt(pod("u", "web", json!({})), None, Some((*status).clone()));
    pass(1).await;
    assert_eq!(next.node().calls(), [""; 0]);
    assert_eq!(next.get("u").unwrap().status, status);
}

#[tokio::test(start_paused = true)]
async fn worker_retries_at_once_when_configuration_changes() {
    let pods = reconciler();
    pods.node().lock().failing.insert("start".to_owned(), "CreateContainerConfigError");
    pods.apply(pod("u", "web", json!({})));
    pass(40).await;
    pods.node().lock().failing.clear();
    pods.node().calls();
    pods.config_changed("u");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(pods.node().calls(), ["u pull c", "u pulled", "u start c 0"]);
}

#[tokio::test(start_paused = true)]
async fn worker_drops_a_pull_when_the_pod_is_deleted() {
    let pods = reconciler();
    pods.node().lock().pull = Duration::from_secs(3600);
    pods.apply(pod("u", "web", json!({})));
    pass(1).await;
    pods.delete("u", None);
    pods.drained().await;
    assert_eq!(pods.node().calls(), ["u sandbox", "u pull c", "u remove"]);
}

#[tokio::test(start_paused = true)]
async fn worker_probes_by_exact_timers() {
    let pods = reconciler();
    let container = json!([{ "name": "c", "image": "i",
        "readinessProbe": { "exec": {}, "initialDelaySeconds": 5, "periodSeconds": 10 } }]);
    pods.apply(pod("u", "web", json!({ "containers": container })));
    pass(4).await;
    pods.node().calls();
    pass(32).await;
    assert_eq!(pods.node().calls(), ["u probe c-0"; 4]);
    assert!(pods.get("u").unwrap().status.container_statuses.as_ref().unwrap()[0].ready);
}

#[tokio::test(start_paused = true)]
async fn worker_runs_pods_side_by_side() {
    let pods = reconciler();
    for index in 0..50 {
        pods.apply(pod(&format!("u{index}"), &format!("web{index}"), json!({})));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for index in 0..50 {
        assert_eq!(pods.node().phase(&format!("u{index}")).as_deref(), Some("Running"));
    }
}

#[tokio::test(start_paused = true)]
async fn worker_makes_a_pod_ready_when_its_readiness_gates_are_opened() {
    const GATE: &str = "example.org/gate";
    let pods = reconciler();
    pods.apply(pod("u", "web", json!({ "readinessGates": [{ "conditionType": GATE }] })));
    pass(1).await;
    let truth = |type_: &str| {
        let status = pods.get("u").unwrap().status.clone();
        let found = status.conditions.iter().flatten().find(|c| c.type_ == type_).map(|c| c.status.clone());
        found.unwrap_or_default()
    };
    assert_eq!((truth("Ready"), truth("ContainersReady")), ("False".to_owned(), "True".to_owned()));
    for status in ["True", "False", "True"] {
        let gate = PodCondition { type_: GATE.to_owned(), status: status.to_owned(), ..Default::default() };
        pods.set_conditions("u", vec![gate]);
        pass(1).await;
        assert_eq!((truth(GATE), truth("Ready")), (status.to_owned(), status.to_owned()));
    }
    // What is said once stays, and what is withdrawn goes.
    pods.wake("u");
    pass(1).await;
    assert_eq!(truth("Ready"), "True");
    pods.set_conditions("u", Vec::new());
    pass(1).await;
    assert_eq!((truth(GATE), truth("Ready")), (String::new(), "False".to_owned()));
}

/// A pod whose container is probed each second and each seven seconds. Gives how often it was looked at by then.
async fn probed(pods: &Reconciler<Script>) -> usize {
    let container = json!([{ "name": "c", "image": "i",
        "livenessProbe": { "exec": { "command": ["alive"] }, "periodSeconds": 1 },
        "readinessProbe": { "exec": { "command": ["ready"] }, "periodSeconds": 7 },
        "lifecycle": { "preStop": { "exec": { "command": ["bye"] } } } }]);
    pods.apply(pod("u", "web", json!({ "containers": container })));
    pass(10).await;
    pods.node().calls();
    pods.node().lock().observed
}

#[tokio::test(start_paused = true)]
async fn worker_has_probes_repeated_by_who_can_and_keeps_their_beat() {
    let pods = reconciler();
    pods.node().lock().repeats = 10;
    let looks = probed(&pods).await;
    let count = |calls: &[String], call: &str| calls.iter().filter(|other| *other == call).count();
    pass(700).await;
    let calls = pods.node().calls();
    assert_eq!(count(&calls, "u probe c-0"), 800);
    assert_eq!(count(&calls, "u ask c-0"), 80);
    assert_eq!(pods.node().lock().observed, looks, "nothing has changed that was to be looked at");
    // A look ends that, and nothing is left out or made twice for it.
    for _ in 0..70 {
        tokio::time::sleep(Duration::from_millis(9_700)).await;
        pods.wake("u");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(count(&pods.node().calls(), "u probe c-0"), 800);
    pods.node().lock().failing.insert("probe".to_owned(), "Unhealthy");
    pass(5).await;
    let calls = pods.node().calls();
    assert!(calls.iter().any(|call| call.starts_with("u stop c-0")), "{calls:?}");
    assert_eq!(count(&calls, "u ask c-0"), 0, "what fails is looked at each time");
}

#[tokio::test(start_paused = true)]
async fn worker_has_readiness_repeated_while_the_container_ends() {
    let pods = reconciler();
    pods.node().lock().repeats = 10;
    probed(&pods).await;
    pods.node().lock().hook = Duration::from_secs(60);
    pods.node().lock().failing.insert("alive".to_owned(), "Unhealthy");
    pass(5).await;
    let calls = pods.node().calls();
    assert!(calls.iter().any(|call| call == "u hook PreStop c-0"), "{calls:?}");
    pass(21).await;
    assert_eq!(pods.node().calls(), ["u probe c-0"; 3]);
}

#[tokio::test(start_paused = true)]
async fn worker_only_repeats_probes_that_go_as_they_went() {
    let pods = reconciler();
    let looks = probed(&pods).await;
    pass(700).await;
    assert_eq!(pods.node().calls(), ["u probe c-0"; 800]);
    assert_eq!(pods.node().lock().observed, looks, "nothing has changed that was to be looked at");
    // Three failures are one too many, however many successes there have been.
    pods.node().lock().failing.insert("probe".to_owned(), "Unhealthy");
    pass(5).await;
    let calls = pods.node().calls();
    assert!(calls.iter().any(|call| call.starts_with("u stop c-0")), "{calls:?}");
}
