#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn patched(mut object: Value, patch: Value) -> Value {
    merge(&mut object, patch).unwrap();
    object
}

fn pod() -> Value {
    json!({
        "metadata": {"labels": {"a": "1"}, "finalizers": ["x/a"]},
        "spec": {
            "containers": [
                {"name": "a", "image": "one", "command": ["x", "y"], "env": [{"name": "E", "value": "1"}],
                 "ports": [{"containerPort": 80, "hostPort": 8080}]},
                {"name": "b", "image": "two"},
            ],
            "tolerations": [{"key": "k"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
    })
}

#[test]
fn lists_with_keys_are_merged() {
    let patch = json!({"spec": {"containers": [
        {"name": "b", "image": "three"},
        {"name": "a", "env": [{"name": "F", "value": "2"}], "command": ["z"], "ports": [{"containerPort": 80, "hostPort": 9}]},
    ]}});
    let out = patched(pod(), patch);
    let a = &out["spec"]["containers"][0];
    assert_eq!(a["image"], "one");
    assert_eq!(a["command"], json!(["z"]));
    assert_eq!(a["env"], json!([{"name": "E", "value": "1"}, {"name": "F", "value": "2"}]));
    assert_eq!(a["ports"], json!([{"containerPort": 80, "hostPort": 9}]));
    assert_eq!(out["spec"]["containers"][1]["image"], "three");
}

#[test]
fn elements_are_deleted_and_ordered() {
    let patch = json!({"spec": {
        "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
        "containers": [{"name": "b", "$patch": "delete"}, {"name": "c", "image": "new"}],
    }});
    let out = patched(pod(), patch);
    let names: Vec<&str> =
        out["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c", "a"]);
}

#[test]
fn directives() {
    let replaced = patched(pod(), json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}));
    assert_eq!(replaced["spec"]["containers"], json!([{"name": "z"}]));
    let kept = patched(
        pod(),
        json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}, "$retainKeys": ["name", "hostPath"]}]}}),
    );
    assert_eq!(kept["spec"]["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
    let whole = patched(pod(), json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}));
    assert_eq!(whole["metadata"]["labels"], json!({"b": "2"}));
    let set = patched(pod(), json!({"metadata": {"finalizers": ["x/b", "x/a"]}}));
    assert_eq!(set["metadata"]["finalizers"], json!(["x/a", "x/b"]));
    let removed = patched(pod(), json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/a"]}}));
    assert_eq!(removed["metadata"]["finalizers"], json!([]));
    let gone = patched(pod(), json!({"metadata": {"labels": null}, "spec": {"tolerations": []}}));
    assert_eq!(gone["metadata"].get("labels"), None);
    assert_eq!(gone["spec"]["tolerations"], json!([]));
}

#[test]
fn malformed_patches_are_refused() {
    for patch in [
        json!({"$patch": "x"}),
        json!({"spec": {"containers": [{"image": "no name"}]}}),
        json!({"$what": []}),
        json!({"spec": {"$setElementOrder/containers": 1}}),
        json!({"$retainKeys": 1}),
    ] {
        assert_eq!(merge(&mut pod(), patch.clone()).unwrap_err().code, 400, "{patch}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        "[a-c]".prop_map(Value::from)
    ];
    let key = prop_oneof![
        Just("name"),
        Just("containers"),
        Just("spec"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("ports"),
        Just("$setElementOrder/containers"),
        Just("env"),
        Just("finalizers"),
        Just("metadata"),
        Just("x"),
    ];
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #[test]
    fn never_panics(mut object in any_json(), patch in any_json()) {
        let _ = merge(&mut object, patch);
    }

    /// Applying the same patch again changes nothing more.
    #[test]
    fn a_merge_is_idempotent(image in "[a-z]{1,3}", names in prop::collection::vec("[ab]", 0..3)) {
        let env: Vec<Value> = names.iter().map(|name| json!({"name": name, "value": image})).collect();
        let patch = json!({"spec": {"containers": [{"name": "a", "image": image, "env": env}]}});
        let once = patched(pod(), patch.clone());
        prop_assert_eq!(patched(once.clone(), patch), once);
    }
}
