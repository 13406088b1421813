//! When a pod takes too much of the disk, rule by rule.
#![allow(clippy::unwrap_used)]

use berth_reconciler::storage::{Usage, exceeded, is_limited};
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

fn spec(value: Value) -> v1::PodSpec {
    let mut spec = json!({"containers": [{"name": "a"}]});
    spec.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn container(name: &str, limit: &str) -> Value {
    json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
}

fn usage(containers: &[(&str, u64)], volumes: &[(&str, u64)]) -> Usage {
    let all = |list: &[(&str, u64)]| list.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
    Usage { containers: all(containers), volumes: all(volumes) }
}

const MI: u64 = 1 << 20;

#[test]
fn only_pods_that_state_a_limit_are_watched() {
    let empty_dir = |value: Value| spec(json!({"volumes": [{"name": "v", "emptyDir": value}]}));
    let cases = [
        (spec(json!({})), false),
        (empty_dir(json!({})), false),
        (empty_dir(json!({"sizeLimit": "0"})), false),
        (empty_dir(json!({"sizeLimit": "1Mi"})), true),
        (empty_dir(json!({"sizeLimit": "1Mi", "medium": "Memory"})), false),
        (spec(json!({"containers": [container("a", "1Mi")]})), true),
        (spec(json!({"initContainers": [container("i", "1Mi")]})), true),
    ];
    for (spec, watched) in cases {
        assert_eq!(is_limited(&spec), watched, "{spec:?}");
    }
}

#[test]
fn an_empty_dir_over_its_size_limit() {
    let spec = spec(json!({"volumes": [
        {"name": "none", "emptyDir": {}}, {"name": "v", "emptyDir": {"sizeLimit": "10Mi"}}]}));
    assert_eq!(exceeded(&spec, &usage(&[], &[("none", 100 * MI), ("v", 10 * MI)])), None);
    assert_eq!(
        exceeded(&spec, &usage(&[], &[("v", 10 * MI + 1)])).unwrap(),
        "Usage of EmptyDir volume \"v\" exceeds the limit \"10Mi\". "
    );
}

#[test]
fn a_container_over_its_limit() {
    let spec = spec(json!({"containers": [container("a", "10Mi"), container("b", "90Mi")]}));
    assert_eq!(exceeded(&spec, &usage(&[("a", 10 * MI), ("b", 90 * MI)], &[])), None);
    assert_eq!(
        exceeded(&spec, &usage(&[("a", 11 * MI), ("b", 1)], &[])).unwrap(),
        "Container a exceeded its local ephemeral storage limit \"10Mi\". "
    );
}

#[test]
fn a_pod_over_the_sum_of_its_containers_limits() {
    let spec = spec(json!({
        "containers": [container("a", "10Mi"), container("b", "20Mi")],
        "volumes": [{"name": "v", "emptyDir": {}}]}));
    assert_eq!(exceeded(&spec, &usage(&[("a", 10 * MI)], &[("v", 20 * MI)])), None);
    assert_eq!(
        exceeded(&spec, &usage(&[("a", 10 * MI)], &[("v", 21 * MI)])).unwrap(),
        "Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. "
    );
}

#[test]
fn the_pods_limit_is_its_peak() {
    let mut sidecar = container("s", "5Mi");
    sidecar["restartPolicy"] = json!("Always");
    let spec = spec(json!({
        "initContainers": [sidecar, container("i", "50Mi")],
        "containers": [container("a", "10Mi")],
        "volumes": [{"name": "v", "emptyDir": {}}]}));
    assert_eq!(exceeded(&spec, &usage(&[], &[("v", 55 * MI)])), None);
    let message = exceeded(&spec, &usage(&[], &[("v", 55 * MI + 1)])).unwrap();
    assert!(message.ends_with("total limit of containers 55Mi. "), "{message}");
}
