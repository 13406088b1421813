//! What is done when a node runs short, rule by rule (kubelet's `pkg/kubelet/eviction`).
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use berth_reconciler::eviction::{
    Amount, Candidate, Manager, Pressure, Settings, Shortage, Signal, Signals, Taken, Threshold, admit,
    allocatable, first, message,
};
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn hard(signal: Signal, threshold: Threshold) -> Settings {
    Settings { hard: [(signal, threshold)].into(), transition: seconds(300), ..Settings::default() }
}

fn left(signal: Signal, available: u64) -> Signals {
    [(signal, Amount { available, capacity: 1000 })].into()
}

fn under(pressures: &[Pressure]) -> Vec<&'static str> {
    pressures.iter().filter(|one| one.under).map(|one| one.condition).collect()
}

#[test]
fn a_hard_threshold_counts_at_once_and_its_condition_stays_for_a_while() {
    for threshold in [Threshold::Amount(100), Threshold::Part(0.1)] {
        let (settings, mut manager) = (hard(Signal::Memory, threshold), Manager::default());
        let mut look =
            |at: u64, available: u64| manager.look(&settings, &left(Signal::Memory, available), seconds(at));
        let enough = look(0, 100);
        assert_eq!((enough.short.as_slice(), under(&enough.pressures).as_slice()), (&[][..], &[][..]));
        let short = look(10, 99);
        let wanted = Shortage { signal: Signal::Memory, threshold: 100, available: 99, grace_seconds: 1 };
        assert_eq!(short.short, [wanted]);
        assert_eq!(under(&short.pressures), ["MemoryPressure"]);
        // Nothing goes any more, but nothing new comes yet either.
        let after = look(20, 100);
        assert_eq!(
            (after.short.as_slice(), under(&after.pressures).as_slice()),
            (&[][..], &["MemoryPressure"][..])
        );
        assert_eq!(under(&look(309, 100).pressures), ["MemoryPressure"]);
        assert!(under(&look(310, 100).pressures).is_empty());
    }
}

#[test]
fn without_a_transition_period_a_condition_goes_with_its_cause() {
    let settings = Settings { transition: Duration::ZERO, ..hard(Signal::Pids, Threshold::Amount(5)) };
    let mut manager = Manager::default();
    assert_eq!(
        under(&manager.look(&settings, &left(Signal::Pids, 4), seconds(0)).pressures),
        ["PIDPressure"]
    );
    assert!(under(&manager.look(&settings, &left(Signal::Pids, 5), seconds(10)).pressures).is_empty());
}

#[test]
fn a_soft_threshold_has_to_be_crossed_for_its_grace_period_without_a_break() {
    let soft = [(Signal::Memory, (Threshold::Amount(200), seconds(60)))].into();
    let settings = Settings { soft, max_pod_grace: 30, ..hard(Signal::Memory, Threshold::Amount(100)) };
    let mut manager = Manager::default();
    let mut look = |at: u64, available: u64| {
        let verdict = manager.look(&settings, &left(Signal::Memory, available), seconds(at));
        (under(&verdict.pressures), verdict.short.first().map(|short| (short.threshold, short.grace_seconds)))
    };
    assert_eq!(look(0, 150), (vec!["MemoryPressure"], None), "the condition comes at once");
    assert_eq!(look(59, 150).1, None);
    assert_eq!(look(60, 150).1, Some((200, 30)));
    assert_eq!(look(70, 50).1, Some((100, 1)), "the hard one is the more urgent");
    assert_eq!(look(80, 200).1, None);
    assert_eq!(look(90, 150).1, None, "it begins anew");
}

#[test]
fn once_crossed_a_threshold_is_met_until_the_minimum_is_reclaimed() {
    let minimum_reclaim = [(Signal::Disk, Threshold::Amount(50))].into();
    let settings = Settings { minimum_reclaim, ..hard(Signal::Disk, Threshold::Amount(100)) };
    let mut manager = Manager::default();
    let mut short = |available: u64| {
        !manager.look(&settings, &left(Signal::Disk, available), seconds(0)).short.is_empty()
    };
    assert!(!short(120));
    assert!(short(99));
    assert!(short(149));
    assert!(!short(150));
    assert!(!short(120));
}

#[test]
fn memory_comes_first_and_what_is_not_named_or_not_known_is_not_looked_at() {
    let mut settings = hard(Signal::Disk, Threshold::Part(0.5));
    settings.hard.insert(Signal::Memory, Threshold::Part(0.5));
    let mut signals = left(Signal::Disk, 1);
    signals.extend(left(Signal::Memory, 1));
    signals.extend(left(Signal::Pids, 0));
    let verdict = Manager::default().look(&settings, &signals, seconds(0));
    let found: Vec<Signal> = verdict.short.iter().map(|short| short.signal).collect();
    assert_eq!(found, [Signal::Memory, Signal::Disk]);
    assert_eq!(under(&verdict.pressures), ["MemoryPressure", "DiskPressure"]);
    let verdict = Manager::default().look(&settings, &left(Signal::Pids, 0), seconds(0));
    assert!(verdict.short.is_empty() && under(&verdict.pressures).is_empty());
}

fn spec(priority: i32, requests: Value) -> v1::PodSpec {
    serde_json::from_value(json!({
        "priority": priority,
        "containers": [{"name": "c", "resources": {"requests": requests}}, {"name": "quiet"}],
    }))
    .unwrap()
}

fn candidate(spec: &v1::PodSpec, taken: u64) -> Candidate<'_> {
    Candidate { spec, taken: Taken { containers: [("c".to_owned(), taken)].into(), shared: 0 } }
}

#[test]
fn the_pod_goes_first_that_takes_more_than_it_asked_for_then_by_priority_then_by_how_much() {
    let nothing = |priority| spec(priority, json!({}));
    let asks = |priority| spec(priority, json!({"memory": "100", "ephemeral-storage": "100"}));
    let critical = nothing(2_000_000_000);
    let specs = [asks(0), asks(5), nothing(5), nothing(9), asks(-1), critical];
    let order = |signal: Signal, taken: [u64; 6]| {
        let mut left: Vec<(usize, Candidate<'_>)> =
            specs.iter().zip(taken).map(|(spec, taken)| candidate(spec, taken)).enumerate().collect();
        let mut order = Vec::new();
        loop {
            let candidates: Vec<Candidate<'_>> =
                left.iter().map(|(_, candidate)| candidate.clone()).collect();
            let Some(at) = first(signal, &candidates) else { return order };
            order.push(left.remove(at).0);
        }
    };
    // 0 and 4 keep to what they asked for; 1 takes 80 more than that, 2 takes 90, 3 most of all but has a higher priority.
    assert_eq!(order(Signal::Memory, [90, 180, 90, 500, 50, 900]), [2, 1, 3, 4, 0]);
    assert_eq!(order(Signal::Disk, [90, 180, 90, 500, 50, 900]), [2, 1, 3, 4, 0]);
    // Nobody asks for inodes or processes: whoever has the lowest priority and the most of them.
    assert_eq!(order(Signal::Inodes, [90, 180, 90, 500, 50, 900]), [4, 0, 1, 2, 3]);
    assert_eq!(order(Signal::Pids, [90, 0, 90, 500, 50, 900]), [4, 0, 2, 1, 3]);
}

#[test]
fn a_critical_pod_never_goes() {
    let critical = spec(2_000_001_000, json!({}));
    let named: v1::PodSpec =
        serde_json::from_value(json!({"priorityClassName": "system-cluster-critical", "containers": []}))
            .unwrap();
    assert_eq!(first(Signal::Memory, &[candidate(&critical, 1000), candidate(&named, 1000)]), None);
    assert_eq!(first(Signal::Memory, &[]), None);
}

#[test]
fn the_message_is_kubelets() {
    let pod = spec(0, json!({"memory": "1Mi"}));
    let short =
        Shortage { signal: Signal::Memory, threshold: 100 << 20, available: 51_200 << 10, grace_seconds: 1 };
    assert_eq!(
        message(&short, &candidate(&pod, 3 << 20)),
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
         Container c was using 3Mi, request is 1Mi, has larger consumption of memory. "
    );
    assert_eq!(
        message(&short, &candidate(&pod, 1 << 20)),
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
    );
    let inodes = Shortage { signal: Signal::Inodes, threshold: 2048, available: 1024, grace_seconds: 1 };
    assert_eq!(
        message(&inodes, &candidate(&pod, 7)),
        "The node was low on resource: inodes. Threshold quantity: 2048, available: 1024. \
         Container c was using 7, request is 0, has larger consumption of inodes. "
    );
}

#[test]
fn a_node_that_runs_short_takes_no_pods_but_those_that_can_be_borne() {
    let pressure = |conditions: &[&'static str]| -> Vec<Pressure> {
        conditions.iter().map(|condition| Pressure { condition, under: true }).collect()
    };
    let plain = spec(0, json!({}));
    let takes = |spec: &v1::PodSpec, nothing: bool, conditions: &[&'static str]| {
        admit(spec, nothing, &pressure(conditions)).map_err(|rejection| (rejection.reason, rejection.message))
    };
    assert_eq!(takes(&plain, true, &[]), Ok(()));
    assert_eq!(takes(&plain, false, &["MemoryPressure"]), Ok(()), "who asks for memory may come");
    let refused =
        ("Evicted".to_owned(), "Pod was rejected: The node had condition: [MemoryPressure]. ".to_owned());
    assert_eq!(takes(&plain, true, &["MemoryPressure"]), Err(refused));
    assert!(takes(&plain, false, &["DiskPressure"]).is_err());
    let both = takes(&plain, false, &["MemoryPressure", "PIDPressure"]).unwrap_err().1;
    assert!(both.contains("[MemoryPressure PIDPressure]"), "{both}");
    assert_eq!(takes(&spec(2_000_000_000, json!({})), true, &["DiskPressure"]), Ok(()));
    let mut bears = plain.clone();
    let toleration =
        json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}]);
    bears.tolerations = serde_json::from_value(toleration).unwrap();
    assert_eq!(takes(&bears, true, &["MemoryPressure"]), Ok(()));
    assert!(takes(&bears, true, &["DiskPressure"]).is_err());
}

#[test]
fn pods_may_have_what_is_not_reserved_and_need_not_be_left() {
    let settings = hard(Signal::Memory, Threshold::Part(0.1));
    assert_eq!(allocatable(1000, 0, Signal::Memory, None), 1000);
    assert_eq!(allocatable(1000, 50, Signal::Memory, Some(&settings)), 850);
    assert_eq!(allocatable(1000, 50, Signal::Disk, Some(&settings)), 950);
    assert_eq!(allocatable(1000, 2000, Signal::Memory, Some(&settings)), 0);
}
