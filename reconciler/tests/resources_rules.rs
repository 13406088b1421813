//! The formulas of quantities and cgroup values, one test per rule.
#![allow(clippy::unwrap_used)]

use berth_reconciler::quantity::Quantity;
use berth_reconciler::resources::*;
use k8s_openapi::api::core::v1;
use proptest::prelude::*;
use serde_json::json;

fn q(text: &str) -> Quantity {
    Quantity::parse(text).unwrap_or_else(|_| panic!("{text}"))
}

fn spec(value: serde_json::Value) -> v1::PodSpec {
    serde_json::from_value(value).unwrap()
}

fn one(resources: serde_json::Value) -> v1::PodSpec {
    spec(json!({"containers": [{"name": "c", "resources": resources}]}))
}

#[test]
fn quantities_are_exact_and_canonical() {
    let table = [
        ("1", 1000, "1"),
        ("0.5", 500, "500m"),
        ("1.5Gi", 1610612736000, "1536Mi"),
        ("100m", 100, "100m"),
        ("1000m", 1000, "1"),
        ("1e3", 1_000_000, "1e3"),
        ("1E", 1_000_000_000_000_000_000 * 9, "1E"),
        ("1E3", 1_000_000, "1e3"),
        ("1024", 1_024_000, "1024"),
        ("1024Ki", 1_048_576_000, "1Mi"),
        ("0.1Ki", 102_400, "102400m"),
        (".5", 500, "500m"),
        ("5.", 5000, "5"),
        ("+1", 1000, "1"),
        ("-1.5", -1500, "-1500m"),
        ("1n", 1, "1n"),
        ("0.0000000001", 1, "1n"),
        ("1k", 1_000_000, "1k"),
        ("12e-3", 12, "12e-3"),
        ("0Gi", 0, "0"),
    ];
    for (text, milli, shown) in table {
        if !text.ends_with('E') {
            assert_eq!(q(text).milli(), milli, "{text}");
        }
        assert_eq!(q(text).to_string(), shown, "{text}");
    }
    assert_eq!(q("99999999999999999999Ei").value(), i64::MAX);
    assert_eq!(q("1e999999999999").value(), i64::MAX);
    assert_eq!(q("1e-999").milli(), 1);
    for bad in ["", "Gi", ".", "1GB", "1 Gi", "1..2", "--1", "1e", "1e+", "0x1", "1K", "1mi", "١"] {
        assert!(Quantity::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(q("1001m").div_ceil(&q("1")), Some(2));
    assert_eq!(q("1").div_ceil(&q("1m")), Some(1000));
    assert_eq!(q("1").div_ceil(&q("0")), None);
}

proptest! {
    #[test]
    fn quantities_survive_a_round_trip(number in "[+-]?[0-9]{1,12}(\\.[0-9]{0,12})?", suffix in prop::sample::select(vec!["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "E-4"])) {
        let first = q(&format!("{number}{suffix}"));
        prop_assert_eq!(q(&first.to_string()), first);
        prop_assert_eq!(q(&first.to_string()).to_string(), first.to_string());
    }

    #[test]
    fn arbitrary_quantities_never_panic(text in "\\PC{0,40}") {
        let _ = Quantity::parse(&text);
    }
}

#[test]
fn shares_quota_and_weights() {
    for (milli, shares) in [(0, 2), (1, 2), (2, 2), (100, 102), (1000, 1024), (1_000_000, 262_144)] {
        assert_eq!(cpu_shares(milli), shares, "{milli}");
    }
    for (milli, quota) in
        [(0, None), (1, Some(1000)), (10, Some(1000)), (50, Some(5000)), (1500, Some(150_000))]
    {
        assert_eq!(cpu_quota(milli), quota, "{milli}");
    }
    for (shares, pod, container) in [(2, 1, 1), (102, 4, 17), (1024, 39, 100), (262_144, 10_000, 10_000)] {
        assert_eq!((pod_weight(shares), container_weight(shares)), (pod, container), "{shares}");
    }
}

#[test]
fn a_missing_request_takes_the_limit() {
    let s = one(json!({"limits": {"cpu": "500m", "memory": "64Mi"}}));
    let expected = CpuMem { shares: 512, quota: Some(50_000), period: 100_000, memory_limit: Some(64 << 20) };
    assert_eq!(container_values(&s.containers[0]), expected);
    assert_eq!(pod_values(&s), expected);
    assert_eq!(qos_class(&s), QosClass::Guaranteed);
}

#[test]
fn qos_classes() {
    assert_eq!(qos_class(&one(json!({}))), QosClass::BestEffort);
    assert_eq!(qos_class(&one(json!({"requests": {"cpu": "0"}}))), QosClass::BestEffort);
    assert_eq!(qos_class(&one(json!({"requests": {"ephemeral-storage": "1Gi"}}))), QosClass::BestEffort);
    assert_eq!(qos_class(&one(json!({"requests": {"cpu": "1m"}}))), QosClass::Burstable);
    assert_eq!(
        qos_class(&one(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}))),
        QosClass::Burstable
    );
    assert_eq!(
        qos_class(&one(
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}})
        )),
        QosClass::Guaranteed
    );
    let with_init = spec(
        json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1"}}}]}),
    );
    assert_eq!(qos_class(&with_init), QosClass::Burstable);
}

#[test]
fn pod_limits_need_a_limit_in_every_container() {
    let s = spec(json!({"containers": [
        {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
        {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Mi"}}}]}));
    assert_eq!(
        pod_values(&s),
        CpuMem { shares: 2048, quota: Some(200_000), period: 100_000, memory_limit: None }
    );
    assert_eq!(
        pod_values(&one(json!({}))),
        CpuMem { shares: 2, quota: None, period: 100_000, memory_limit: None }
    );
}

#[test]
fn pod_requests_are_the_peak_of_init_and_running() {
    let c = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
    let sidecar = |name: &str, cpu: &str| json!({"name": name, "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
    let sum = |init: serde_json::Value| {
        pod_requests(&spec(json!({"initContainers": init, "containers": [c("a", "1"), c("b", "2")]})))
            .cpu_milli
    };
    assert_eq!(sum(json!([])), 3000);
    assert_eq!(sum(json!([c("i", "2"), c("j", "1")])), 3000);
    assert_eq!(sum(json!([c("i", "5")])), 5000);
    assert_eq!(sum(json!([sidecar("s", "1")])), 4000);
    assert_eq!(sum(json!([sidecar("s", "1"), c("i", "5")])), 6000);
    assert_eq!(sum(json!([c("i", "5"), sidecar("s", "1")])), 5000);
}

#[test]
fn oom_scores() {
    const GI: u64 = 1 << 30;
    let score = |s: &v1::PodSpec| oom_score_adj(s, &s.containers[0], 4 * GI);
    assert_eq!(score(&one(json!({}))), 1000);
    assert_eq!(score(&one(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), -997);
    assert_eq!(score(&one(json!({"requests": {"memory": "1Gi"}}))), 750);
    assert_eq!(score(&one(json!({"requests": {"memory": "8Gi"}}))), 3);
    assert_eq!(score(&one(json!({"requests": {"cpu": "1"}}))), 999);
    let mut critical = one(json!({}));
    critical.priority_class_name = Some("system-node-critical".to_owned());
    assert_eq!(score(&critical), -997);
    let s = spec(json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [
        {"name": "a", "resources": {"requests": {"memory": "1Gi"}}}, {"name": "b", "resources": {"requests": {"memory": "2Gi"}}}]}));
    assert_eq!(oom_score_adj(&s, &s.init_containers.as_ref().unwrap()[0], 4 * GI), 750);
}

#[test]
fn memory_volumes_take_the_least() {
    let limited = one(json!({"limits": {"memory": "64Mi"}}));
    let size = |text: &str| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
    assert_eq!(memory_volume_size(None, &one(json!({})), 1 << 30), 1 << 30);
    assert_eq!(memory_volume_size(None, &limited, 1 << 30), 64 << 20);
    assert_eq!(memory_volume_size(Some(&size("1Mi")), &limited, 1 << 30), 1 << 20);
}
