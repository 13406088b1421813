//! What a running pod may become: by update, by the subresources `resize` and `ephemeralcontainers`, by an edited file.

#![allow(clippy::unwrap_used)]

use berth_reconciler::manifest::{
    Cause, Context, ManifestError, changes_in_place, check_pod, pod_ephemeral_allowed, pod_resize_allowed,
    pod_update_allowed,
};
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "labels": { "a": "1" } },
        "spec": {
            "terminationGracePeriodSeconds": 30,
            "initContainers": [{ "name": "init", "image": "i:1", "resources": { "requests": { "cpu": "1" } } }],
            "containers": [{
                "name": "c", "image": "i:1",
                "resources": { "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "memory": "64Mi" } },
            }],
        },
    })
}

fn running() -> Context {
    Context { running: true, ..Context::default() }
}

/// The pod with one value changed; `null` takes it away.
fn with(path: &str, value: Value) -> v1::Pod {
    let mut pod = base();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = pod.pointer_mut(parent).unwrap();
    match (name.parse::<usize>(), value) {
        (_, Value::Null) => drop(parent.as_object_mut().unwrap().remove(name)),
        (Ok(index), value) => parent.as_array_mut().unwrap().insert(index, value),
        (Err(_), value) => parent[name] = value,
    }
    check_pod(&pod, &running()).unwrap()
}

fn pod() -> v1::Pod {
    check_pod(&base(), &running()).unwrap()
}

fn words(result: Result<(), Vec<ManifestError>>) -> Vec<String> {
    result.err().into_iter().flatten().map(|error| error.to_string()).collect()
}

const CPU: &str = "/spec/containers/0/resources/requests/cpu";
const MEMORY: &str = "/spec/containers/0/resources/requests/memory";

#[test]
fn resize_takes_cpu_memory_and_resize_policies_only() {
    assert_eq!(words(pod_resize_allowed(&pod(), &with(CPU, json!("200m")))), [""; 0]);
    assert_eq!(words(pod_resize_allowed(&pod(), &with(MEMORY, json!("32Mi")))), [""; 0]);
    let policy = json!([{ "resourceName": "cpu", "restartPolicy": "RestartContainer" }]);
    assert_eq!(words(pod_resize_allowed(&pod(), &with("/spec/containers/0/resizePolicy", policy))), [""; 0]);
    for (path, value) in [
        ("/spec/containers/0/image", json!("i:2")),
        ("/spec/initContainers/0/resources/requests/cpu", json!("2")),
        ("/spec/terminationGracePeriodSeconds", json!(3)),
    ] {
        let errors = words(pod_resize_allowed(&pod(), &with(path, value)));
        assert_eq!(errors, ["spec: Forbidden: only cpu and memory resources are mutable"], "{path}");
    }
    let storage = with("/spec/containers/0/resources/requests/ephemeral-storage", json!("1Gi"));
    assert_eq!(
        words(pod_resize_allowed(&pod(), &storage)),
        [
            "spec.containers[0].resources.requests[ephemeral-storage]: Forbidden: only cpu and memory resources are mutable"
        ]
    );
}

#[test]
fn resize_takes_nothing_away_and_keeps_the_qos_class() {
    let errors = words(pod_resize_allowed(&pod(), &with(CPU, Value::Null)));
    assert_eq!(
        errors,
        ["spec.containers[0].resources.requests[cpu]: Forbidden: resource requests cannot be removed"]
    );
    let mut guaranteed = base();
    guaranteed["spec"].as_object_mut().unwrap().remove("initContainers");
    let mut old = guaranteed.clone();
    old["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "1", "memory": "1Gi" } });
    guaranteed["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": "1", "memory": "1Gi" }, "limits": { "cpu": "1", "memory": "1Gi" } });
    let [old, new] = [old, guaranteed].map(|value| check_pod(&value, &running()).unwrap());
    let errors = words(pod_resize_allowed(&old, &new));
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("Pod QOS Class may not change as a result of resizing"), "{errors:?}");
}

#[test]
fn an_ordinary_update_changes_no_resources_and_no_ephemeral_containers() {
    assert_eq!(words(pod_update_allowed(&pod(), &with(CPU, json!("200m")))).len(), 1);
    let debugged = with("/spec/ephemeralContainers", json!([{ "name": "d", "image": "i" }]));
    assert_eq!(words(pod_update_allowed(&pod(), &debugged)).len(), 1);
    assert_eq!(words(pod_update_allowed(&debugged, &debugged)), [""; 0]);
}

#[test]
fn ephemeral_containers_can_be_added_and_nothing_else() {
    let list = |names: &[&str]| {
        let all: Vec<_> = names.iter().map(|name| json!({ "name": name, "image": "i" })).collect();
        with("/spec/ephemeralContainers", json!(all))
    };
    assert_eq!(words(pod_ephemeral_allowed(&pod(), &list(&["d"]))), [""; 0]);
    assert_eq!(words(pod_ephemeral_allowed(&list(&["d"]), &list(&["d", "e"]))), [""; 0]);
    assert_eq!(
        words(pod_ephemeral_allowed(&list(&["d"]), &list(&["e"]))),
        ["spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be removed"]
    );
    let changed = with("/spec/ephemeralContainers", json!([{ "name": "d", "image": "other" }]));
    assert_eq!(
        words(pod_ephemeral_allowed(&list(&["d"]), &changed)),
        ["spec.ephemeralContainers[0]: Forbidden: existing ephemeral containers \"d\" may not be changed"]
    );
    assert_eq!(
        words(pod_ephemeral_allowed(&pod(), &with("/spec/containers/0/image", json!("i:2")))),
        ["spec: Forbidden: only ephemeral containers can be changed here"]
    );
}

#[test]
fn ephemeral_containers_are_checked() {
    let mut value = base();
    value["spec"]["ephemeralContainers"] = json!([
        { "name": "c", "image": "i" },
        { "name": "d", "image": "i", "targetContainerName": "nobody", "ports": [{ "containerPort": 1 }] },
        { "name": "e", "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } },
          "resources": { "limits": { "cpu": "1" } } },
    ]);
    let errors: Vec<_> = check_pod(&value, &running()).unwrap_err().iter().map(ToString::to_string).collect();
    for expected in [
        "spec.ephemeralContainers[0].name: Duplicate value: \"c\"",
        "spec.ephemeralContainers[1].ports: Forbidden: cannot be set for an Ephemeral Container",
        "spec.ephemeralContainers[1].targetContainerName: Not found: \"nobody\"",
        "spec.ephemeralContainers[2].lifecycle: Forbidden: cannot be set for an Ephemeral Container",
        "spec.ephemeralContainers[2].resources: Forbidden: cannot be set for an Ephemeral Container",
    ] {
        assert!(errors.iter().any(|error| error == expected), "{expected}: {errors:#?}");
    }
    assert!(
        errors.iter().any(|e| e.starts_with("spec.ephemeralContainers[2].image: Required")),
        "{errors:#?}"
    );
    value["spec"]["ephemeralContainers"] = json!([{ "name": "d", "image": "i" }]);
    let pod = check_pod(&value, &running()).unwrap();
    let filled = &pod.spec.unwrap().ephemeral_containers.unwrap()[0];
    assert_eq!(filled.image_pull_policy.as_deref(), Some("Always"));
    let errors = check_pod(&value, &Context::default()).unwrap_err();
    assert!(errors[0].to_string().contains("cannot be set on create"), "{errors:?}");
}

#[test]
fn an_edited_file_changes_a_pod_in_place_where_kubernetes_can() {
    for (path, value) in [
        (CPU, json!("200m")),
        (MEMORY, json!("32Mi")),
        ("/spec/containers/0/image", json!("i:2")),
        ("/spec/initContainers/0/image", json!("i:2")),
        ("/spec/activeDeadlineSeconds", json!(100)),
        ("/spec/tolerations", json!([{ "key": "k", "operator": "Exists" }])),
        ("/metadata/annotations", json!({ "kubernetes.io/config.hash": "x" })),
    ] {
        assert!(changes_in_place(&pod(), &with(path, value)), "{path}");
    }
    for (path, value) in [
        (CPU, Value::Null),
        ("/spec/initContainers/0/resources/requests/cpu", json!("2")),
        ("/spec/containers/0/command", json!(["x"])),
        ("/spec/containers/1", json!({ "name": "d", "image": "i" })),
        ("/spec/hostNetwork", json!(true)),
        ("/metadata/labels", json!({ "a": "2" })),
        ("/metadata/annotations", json!({ "mine": "x" })),
    ] {
        assert!(!changes_in_place(&pod(), &with(path, value)), "{path}");
    }
}

#[test]
fn an_edited_file_keeps_ephemeral_containers() {
    let debugged = with("/spec/ephemeralContainers", json!([{ "name": "d", "image": "i" }]));
    assert!(changes_in_place(&debugged, &with("/spec/containers/0/image", json!("i:2"))));
}

#[test]
fn required_node_affinity_is_evaluated_as_a_kubelet_does() {
    let labels = [("zone", "a"), ("disk", "12")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let context = Context {
        node_name: "n".to_owned(),
        node_labels: Some(labels.into_iter().collect()),
        ..Context::default()
    };
    let one = |key: &str, operator: &str, values: &[&str]| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
    let field = |values: &[&str]| json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": values }] });
    for (terms, good) in [
        (json!([one("zone", "In", &["a", "b"])]), true),
        (json!([one("zone", "In", &["b"])]), false),
        (json!([one("zone", "In", &["b"]), one("zone", "Exists", &[])]), true),
        (json!([one("zone", "NotIn", &["b"])]), true),
        (json!([one("none", "NotIn", &["b"])]), true),
        (json!([one("none", "Exists", &[])]), false),
        (json!([one("none", "DoesNotExist", &[])]), true),
        (json!([one("disk", "Gt", &["10"])]), true),
        (json!([one("disk", "Lt", &["10"])]), false),
        (json!([one("zone", "Gt", &["10"])]), false),
        (json!([field(&["n"])]), true),
        (json!([field(&["other"])]), false),
        (json!([{}]), false),
        (
            json!([{ "matchExpressions": [
            { "key": "zone", "operator": "Exists" }, { "key": "disk", "operator": "DoesNotExist" },
        ] }]),
            false,
        ),
    ] {
        let mut value = base();
        let required = json!({ "nodeSelectorTerms": terms });
        value["spec"]["affinity"] =
            json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } });
        let result = check_pod(&value, &context);
        assert_eq!(result.is_ok(), good, "{terms}: {result:?}");
        if let Err(errors) = result {
            assert_eq!(errors[0].cause, Cause::NodeAffinity);
            assert!(errors[0].reason.contains("didn't match Pod's node affinity/selector"), "{errors:?}");
        }
        assert!(check_pod(&value, &Context::default()).is_ok(), "without a node nothing is evaluated");
    }
    let mut value = base();
    value["spec"]["nodeSelector"] = json!({ "zone": "b" });
    assert_eq!(check_pod(&value, &context).unwrap_err()[0].cause, Cause::NodeAffinity);
}

#[test]
fn required_node_affinity_must_be_well_formed() {
    let one = |requirement: Value| json!([{ "matchExpressions": [requirement] }]);
    for terms in [
        json!([]),
        one(json!({ "key": "zone", "operator": "In" })),
        one(json!({ "key": "zone", "operator": "Exists", "values": ["a"] })),
        one(json!({ "key": "zone", "operator": "Gt", "values": ["a"] })),
        one(json!({ "key": "zone", "operator": "Like", "values": ["a"] })),
        json!([{ "matchFields": [{ "key": "metadata.uid", "operator": "In", "values": ["a"] }] }]),
    ] {
        let mut value = base();
        let required = json!({ "nodeSelectorTerms": terms });
        value["spec"]["affinity"] =
            json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } });
        assert!(check_pod(&value, &Context::default()).is_err(), "{terms}");
    }
}

#[test]
fn restart_container_on_resize_needs_a_pod_that_restarts() {
    let mut value = base();
    value["spec"]["containers"][0]["resizePolicy"] =
        json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    assert!(check_pod(&value, &Context::default()).is_ok());
    value["spec"]["restartPolicy"] = json!("Never");
    let errors = check_pod(&value, &Context::default()).unwrap_err();
    assert!(errors[0].reason.contains("must be 'NotRequired' when `restartPolicy` is 'Never'"), "{errors:?}");
}

#[test]
fn a_pod_of_another_node_may_have_what_this_one_lacks() {
    let mut pod = base();
    pod["spec"]["schedulingGates"] = json!([{ "name": "example.org/a" }, { "name": "example.org/b" }]);
    pod["spec"]["volumes"] = json!([
        { "name": "n", "nfs": { "server": "s", "path": "/p" } },
        { "name": "e" },
        { "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } },
    ]);
    assert!(check_pod(&pod, &Context::default()).is_err());
    let elsewhere = Context { elsewhere: true, running: true, ..Context::default() };
    let old = check_pod(&pod, &elsewhere).unwrap();
    let volumes = json!(old.spec.as_ref().unwrap().volumes);
    assert_eq!(volumes[0], json!({ "name": "n", "nfs": { "server": "s", "path": "/p" } }));
    assert_eq!(volumes[1], json!({ "name": "e", "emptyDir": {} }));
    assert_eq!(volumes[2]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3600);
    let gated = |gates: Value| {
        let mut pod = pod.clone();
        pod["spec"]["schedulingGates"] = gates;
        pod_update_allowed(&old, &check_pod(&pod, &elsewhere).unwrap())
    };
    assert!(gated(json!([{ "name": "example.org/b" }])).is_ok() && gated(json!([])).is_ok());
    let errors = gated(json!([{ "name": "example.org/c" }])).unwrap_err();
    assert_eq!(errors[0].field.as_deref(), Some("spec.schedulingGates"));
    pod["spec"]["volumes"][0]["nfs"]["pth"] = json!(1);
    let errors = check_pod(&pod, &elsewhere).unwrap_err();
    assert_eq!((errors[0].cause, errors.len()), (Cause::FieldUnknown, 1));
}
