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
    let memory = 64 << 20;
    let (quota, memory_limit) = (Some(50_000), Some(memory));
    let expected = CpuMem { shares: 512, quota, period: 100_000, memory_request: memory, memory_limit };
    assert_eq!(container_values(&s, &s.containers[0]), expected);
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
        CpuMem {
            shares: 2048,
            quota: Some(200_000),
            period: 100_000,
            memory_request: (1 << 30) + (1 << 20),
            memory_limit: None
        }
    );
    assert_eq!(
        pod_values(&one(json!({}))),
        CpuMem { shares: 2, quota: None, period: 100_000, memory_request: 0, memory_limit: None }
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

/// A pod with resources of its own and one container with these.
fn whole(pods: serde_json::Value, container: serde_json::Value) -> v1::PodSpec {
    spec(json!({"resources": pods, "containers": [{"name": "c", "resources": container}, {"name": "d"}]}))
}

#[test]
fn the_class_of_a_pod_with_resources_of_its_own_follows_from_them_alone() {
    let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
    let class = |pods: serde_json::Value| qos_class(&whole(pods, json!({"requests": {"cpu": "1m"}})));
    assert_eq!(class(full), QosClass::Guaranteed);
    assert_eq!(class(json!({"limits": {"cpu": "1"}})), QosClass::Burstable);
    assert_eq!(class(json!({"requests": {"cpu": "0"}})), QosClass::BestEffort);
    assert_eq!(class(json!({})), QosClass::Burstable, "empty ones are none");
}

#[test]
fn resources_of_the_pod_count_instead_of_the_containers_sums() {
    let s = whole(
        json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"memory": "512Mi"}}),
        json!({"requests": {"cpu": "500m"}, "limits": {"memory": "64Mi"}}),
    );
    let pod = pod_values(&s);
    // A request that only containers make is theirs; a limit that only the pod has is the container's, too.
    assert_eq!((pod.shares, pod.quota, pod.memory_limit), (512, Some(200_000), Some(1 << 30)));
    let first = container_values(&s, &s.containers[0]);
    assert_eq!((first.shares, first.quota, first.memory_limit), (512, Some(200_000), Some(64 << 20)));
    let second = container_values(&s, &s.containers[1]);
    assert_eq!((second.shares, second.quota, second.memory_limit), (2048, Some(200_000), Some(1 << 30)));
    // Nobody requests cpu but by the pod's limit.
    let s = whole(json!({"limits": {"cpu": "2"}}), json!({}));
    assert_eq!(pod_requests(&s).cpu_milli, 2000);
}

#[test]
fn memory_that_only_the_pod_requests_is_shared_among_its_containers_scores() {
    let s = whole(json!({"requests": {"memory": "3Gi"}}), json!({"requests": {"memory": "1Gi"}}));
    let score = |n: usize| oom_score_adj(&s, &s.containers[n], 8 << 30);
    assert_eq!((score(0), score(1)), (750, 875));
}

#[test]
fn overhead_is_added_to_requests_and_to_limits_that_there_are() {
    let mut s = one(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m", "memory": "64Mi"}}));
    s.overhead = Some(serde_json::from_value(json!({"cpu": "250m", "memory": "16Mi"})).unwrap());
    let requests = pod_requests(&s);
    assert_eq!((requests.cpu_milli, requests.memory), (750, 80 << 20));
    let pod = pod_values(&s);
    assert_eq!((pod.shares, pod.quota, pod.memory_limit), (768, Some(125_000), None));
    assert_eq!(container_values(&s, &s.containers[0]).quota, Some(100_000), "it is the pod's");
}

#[test]
fn the_quota_follows_the_period_and_can_be_turned_off() {
    let s = one(json!({"limits": {"cpu": "500m"}}));
    let values = container_values(&s, &s.containers[0]);
    let of = |quota, period| (values.under(quota, period).quota, values.under(quota, period).period);
    assert_eq!(of(true, 100_000), (Some(50_000), 100_000));
    assert_eq!(of(true, 10_000), (Some(5_000), 10_000));
    assert_eq!(of(true, 1_000), (Some(1_000), 1_000), "1 ms is the least");
    assert_eq!(of(false, 100_000), (None, 100_000));
    assert_eq!(values.under(false, 100_000).shares, 512);
}

#[test]
fn huge_pages_are_the_peak_by_size() {
    let c = |name: &str, two: &str| json!({"name": name, "resources": {"limits": {"hugepages-2Mi": two}}});
    let s = spec(json!({
        "initContainers": [
            {"name": "s", "restartPolicy": "Always", "resources": {"limits": {"hugepages-2Mi": "2Mi"}}},
            c("i", "16Mi"),
        ],
        "containers": [c("a", "4Mi"), {"name": "b", "resources": {"limits": {"hugepages-1Gi": "1Gi", "memory": "1Gi"}}}],
    }));
    assert_eq!(pod_huge_pages(&s).into_iter().collect::<Vec<_>>(), [(2 << 20, 18 << 20), (1 << 30, 1 << 30)]);
    assert_eq!(huge_pages(&s, &s.containers[1]).into_iter().collect::<Vec<_>>(), [(1 << 30, 1 << 30)]);
}

#[test]
fn huge_pages_of_the_pod_are_its_containers() {
    let s = spec(json!({
        "resources": {"limits": {"hugepages-2Mi": "8Mi", "memory": "1Gi"}},
        "containers": [
            {"name": "a", "resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "1Gi"}}},
            {"name": "b"},
        ],
    }));
    let all = |list: std::collections::BTreeMap<u64, u64>| list.into_iter().collect::<Vec<_>>();
    assert_eq!(all(pod_huge_pages(&s)), [(2 << 20, 8 << 20)]);
    assert_eq!(all(huge_pages(&s, &s.containers[0])), [(2 << 20, 4 << 20)], "its own");
    assert_eq!(all(huge_pages(&s, &s.containers[1])), [(2 << 20, 8 << 20)], "the pod's");
}

#[test]
fn a_medium_of_huge_pages_has_the_size_that_is_asked_for() {
    let c = |limits: serde_json::Value| json!({"name": "c", "resources": {"limits": limits}});
    let two = c(json!({"hugepages-2Mi": "4Mi", "memory": "1Gi"}));
    let both = c(json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "memory": "1Gi"}));
    let of = |medium: &str, pod: serde_json::Value| page_size_of_medium(medium, &spec(pod));
    let one = |container: &serde_json::Value| json!({"containers": [container]});
    assert_eq!(of("HugePages", one(&two)), Ok(Some(2 << 20)));
    assert_eq!(of("HugePages-2Mi", one(&both)), Ok(Some(2 << 20)));
    assert_eq!(of("HugePages-1Gi", one(&both)), Ok(Some(1 << 30)));
    let init = json!({"initContainers": [two], "containers": [{"name": "d"}]});
    assert_eq!(of("HugePages", init), Ok(Some(2 << 20)), "init containers count");
    let pods = json!({"resources": {"limits": {"hugepages-2Mi": "2Mi"}}, "containers": [{"name": "d"}]});
    assert_eq!(of("HugePages-2Mi", pods), Ok(Some(2 << 20)), "and the pod's own");
    assert_eq!(of("Memory", one(&two)), Ok(None));
    for (medium, container, said) in [
        ("HugePages", json!({"name": "c"}), "there is no resource request for huge pages"),
        ("HugePages-1Gi", two.clone(), "there is no resource request for huge pages"),
        ("HugePages", both, "can't be used if container requests multiple huge page sizes"),
        ("HugePages-x", two.clone(), "its size is not one of a page"),
        ("HugePages2Mi", two, "its size is not one of a page"),
    ] {
        let error = of(medium, one(&container)).unwrap_err();
        assert!(error.contains(said) && error.contains(medium), "{error}");
    }
}

#[test]
fn overhead_is_what_the_nodes_runtime_costs() {
    use berth_reconciler::manifest::{Context, check_pod};
    let cost: std::collections::BTreeMap<_, _> =
        serde_json::from_value(json!({"cpu": "0.25", "memory": "64Mi"})).unwrap();
    let context = Context {
        runtimes: Some(vec!["kata".to_owned(), "crun".to_owned()]),
        overheads: [("kata".to_owned(), cost)].into(),
        ..Context::default()
    };
    let check = |runtime: &str, overhead: serde_json::Value, context: &Context| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "runtimeClassName": runtime, "overhead": overhead, "containers": [{"name": "c", "image": "i"}]}});
        match check_pod(&pod, context) {
            Ok(pod) => json!(pod.spec.unwrap().overhead).to_string(),
            Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }
    };
    let filled = r#"{"cpu":"250m","memory":"64Mi"}"#;
    assert_eq!(check("kata", json!(null), &context), filled);
    assert_eq!(check("kata", json!({"cpu": "250m", "memory": "65536Ki"}), &context), filled);
    assert_eq!(check("crun", json!(null), &context), "null");
    assert_eq!(check("", json!({}), &context), "{}");
    assert!(
        check("kata", json!({"cpu": "1"}), &context)
            .contains("spec.overhead: Forbidden: Pod's Overhead doesn't match")
    );
    for runtime in ["crun", ""] {
        let said = check(runtime, json!({"cpu": "1"}), &context);
        assert!(said.contains("spec.overhead: Forbidden: Pod Overhead set without"), "{said}");
    }
    assert_eq!(check("kata", json!({"cpu": "1"}), &Context::default()), r#"{"cpu":"1"}"#, "no node is known");
}

#[test]
fn resources_of_the_pod_must_hold_those_of_its_containers() {
    use berth_reconciler::manifest::{Context, check_pod};
    let errors = |pods: serde_json::Value| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"resources": pods,
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "64Mi"}}}]}});
        let errors = check_pod(&pod, &Context::default()).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(errors(json!({"limits": {"cpu": "2", "memory": "1Gi"}})), "");
    for (pods, said) in [
        (
            json!({"requests": {"cpu": "500m"}}),
            "spec.resources.requests[cpu]: Invalid value: \"500m\": must be greater than or equal to aggregate container requests of 1",
        ),
        (
            json!({"limits": {"memory": "32Mi"}}),
            "spec.containers[0].resources.limits[memory]: Invalid value: \"64Mi\": must be less than or equal to pod limits of 32Mi",
        ),
        (
            json!({"limits": {"ephemeral-storage": "1Gi"}}),
            "spec.resources.limits[ephemeral-storage]: Unsupported value",
        ),
        (
            json!({"limits": {"hugepages-2Mi": "2Mi", "memory": "1Gi"}, "requests": {"hugepages-2Mi": "4Mi"}}),
            "spec.resources.requests[hugepages-2Mi]: Invalid value: \"4Mi\": must be equal to hugepages-2Mi limit of 2Mi",
        ),
        (
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
            "spec.resources.requests[cpu]: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
    ] {
        assert!(errors(pods.clone()).contains(said), "{pods}: {}", errors(pods.clone()));
    }
    // What a pod cannot ask for as a whole is said once, whether a container could or nobody.
    for name in ["pids", "ephemeral-storage"] {
        let said = errors(json!({"limits": {name: "100", "memory": "1Gi"}}));
        assert_eq!(said.matches(&format!("limits[{name}]")).count(), 1, "{said}");
        assert!(!said.contains("; "), "{said}");
    }
    let pages = json!({"limits": {"hugepages-2Mi": "2Mi", "memory": "1Gi"}});
    assert_eq!(errors(pages.clone()), "");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"resources": pages,
        "containers": [{"name": "c", "image": "i", "resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "64Mi"}}}]}});
    let errors = check_pod(&pod, &Context::default()).unwrap_err();
    assert!(
        errors[0].to_string().contains("spec.resources.limits[hugepages-2Mi]: Invalid value"),
        "{errors:?}"
    );
}
