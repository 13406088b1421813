#![allow(clippy::unwrap_used)]
use super::*;

const OWN: &str = "n1";

fn hub(dir: &Path) -> Hub {
    let hub = Hub::new(dir, ObjectStore::starting_at(100, 1 << 20), OWN);
    hub.load(json!({"metadata": {"name": OWN, "uid": "u", "labels": {"kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": "10.0.0.0/24"}, "status": {"phase": "x"}}));
    hub
}

fn key(kind: Kind, namespace: &str, name: &str) -> Key {
    Key { kind, namespace: namespace.into(), name: name.into() }
}

fn now_is(hub: &Hub, key: &Key) -> Option<Value> {
    hub.store.get(key.kind, &key.namespace, &key.name).map(|object| object.value())
}

/// Changes an object by what `change` does to it.
fn change(hub: &Hub, key: &Key, how: How, change: impl FnOnce(&mut Value)) -> Result<Value, ApiError> {
    let old = hub.store.get(key.kind, &key.namespace, &key.name).unwrap();
    let mut object = old.value();
    change(&mut object);
    hub.update(key, &old, object, how)
}

#[test]
fn a_node_outlives_the_agent_and_a_lease_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = hub(dir.path());
    let (node, lease) = (key(Kind::Node, "", "n2"), key(Kind::Lease, "kube-node-lease", "n2"));
    let made = first.create(&node, json!({"status": {"phase": "y"}}), How::default()).unwrap();
    assert_eq!(made["status"]["phase"], "y");
    assert_eq!(first.create(&node, json!({}), How::default()).unwrap_err().reason, "AlreadyExists");
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": made["metadata"]["uid"]});
    let holder = json!({"metadata": {"ownerReferences": [owner]}, "spec": {"holderIdentity": "n2"}});
    first.create(&lease, holder, How::default()).unwrap();
    let own = key(Kind::Node, "", OWN);
    change(&first, &own, How::default(), |o| o["metadata"]["labels"]["disk"] = json!("fast")).unwrap();

    let second = hub(dir.path());
    let before = now_is(&first, &node).unwrap();
    let after = now_is(&second, &node).unwrap();
    assert_eq!(
        (&after["metadata"]["uid"], &after["status"]),
        (&before["metadata"]["uid"], &before["status"])
    );
    assert!(now_is(&second, &lease).is_none());
    let labels = json!({"kubernetes.io/os": "linux", "disk": "fast"});
    assert_eq!(now_is(&second, &own).unwrap()["metadata"]["labels"], labels);

    let old = first.store.get(Kind::Node, "", "n2").unwrap();
    first.delete(&node, &old).unwrap();
    assert!(now_is(&first, &node).is_none() && now_is(&first, &lease).is_none());
    assert!(now_is(&hub(dir.path()), &node).is_none());
    let old = first.store.get(Kind::Node, "", OWN).unwrap();
    assert_eq!(first.delete(&own, &old).unwrap_err().code, 403);
}

#[test]
fn each_path_of_a_node_changes_its_part() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let node = key(Kind::Node, "", "n2");
    hub.create(&node, json!({"spec": {"podCIDR": "10.1.0.0/24"}}), How::default()).unwrap();
    let both = |o: &mut Value| {
        o["spec"]["taints"] = json!([{"key": "a", "effect": "NoSchedule"}]);
        o["status"]["phase"] = json!("Running");
        o["metadata"]["uid"] = json!("mine");
    };
    let status = How { status: true, ..How::default() };
    let said = change(&hub, &node, status, both).unwrap();
    assert_eq!(
        (&said["spec"], &said["status"]),
        (&json!({"podCIDR": "10.1.0.0/24"}), &json!({"phase": "Running"}))
    );
    let wanted = change(&hub, &node, How::default(), |o| {
        both(o);
        o["status"]["phase"] = json!("Terminated");
    });
    let wanted = wanted.unwrap();
    assert_eq!(
        (&wanted["spec"]["taints"][0]["key"], &wanted["status"]["phase"]),
        (&json!("a"), &json!("Running"))
    );
    assert_ne!(wanted["metadata"]["uid"], "mine");
    let moved =
        change(&hub, &node, How::default(), |o| o["spec"]["podCIDR"] = json!("10.2.0.0/24")).unwrap_err();
    assert_eq!((moved.code, moved.causes[0].field.as_str()), (422, "spec.podCIDR"));
}

#[test]
fn a_cordoned_node_has_the_taint_of_that() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let own = key(Kind::Node, "", OWN);
    let cordoned = change(&hub, &own, How::default(), |o| o["spec"]["unschedulable"] = json!(true)).unwrap();
    assert_eq!(cordoned["spec"]["taints"][0]["key"], "node.kubernetes.io/unschedulable");
    let back =
        change(&hub, &own, How::default(), |o| typed::remove(&mut o["spec"], "unschedulable")).unwrap();
    assert_eq!(back["spec"].get("taints"), None);
    let refused = |change_of: fn(&mut Value)| change(&hub, &own, How::default(), change_of).unwrap_err();
    let field = |error: ApiError| (error.code, error.causes[0].field.clone());
    assert_eq!(field(refused(|o| o["spec"]["podCIDR"] = json!("10.9.0.0/24"))), (422, "spec".into()));
    let status = How { status: true, ..How::default() };
    let said = change(&hub, &own, status, |o| o["status"]["phase"] = json!("z")).unwrap_err();
    assert_eq!(field(said), (422, "status".into()));
    let wrong: fn(&mut Value) = |o| o["spec"]["taints"] = json!([{"key": "a", "effect": "Never"}]);
    assert_eq!(field(refused(wrong)), (422, "spec.taints[0].effect".into()));
    let label: fn(&mut Value) = |o| o["metadata"]["labels"]["a b"] = json!("x");
    assert_eq!(refused(label).code, 422);
}

#[test]
fn finalizers_hold_an_object_back() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let node = key(Kind::Node, "", "n2");
    hub.create(&node, json!({"metadata": {"finalizers": ["example.org/x"]}}), How::default()).unwrap();
    hub.delete(&node, &hub.store.get(Kind::Node, "", "n2").unwrap()).unwrap();
    assert!(now_is(&hub, &node).unwrap()["metadata"]["deletionTimestamp"].is_string());
    change(&hub, &node, How::default(), |o| typed::remove(&mut o["metadata"], "finalizers")).unwrap();
    assert!(now_is(&hub, &node).is_none());
}

#[test]
fn classes_keep_what_they_mean() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    for (kind, field, value, other) in [
        (Kind::RuntimeClass, "handler", json!("crun"), json!("runc")),
        (Kind::PriorityClass, "value", json!(5), json!(6)),
    ] {
        let key = key(kind, "", "x");
        let made = hub.create(&key, json!({field: value}), How::default()).unwrap();
        assert_eq!(made["metadata"]["generation"], 1);
        let refused = change(&hub, &key, How::default(), |o| o[field] = other).unwrap_err();
        assert_eq!((refused.code, refused.causes[0].field.as_str()), (422, field));
    }
    let class = now_is(&hub, &key(Kind::PriorityClass, "", "x")).unwrap();
    assert_eq!(class["preemptionPolicy"], "PreemptLowerPriority");
    // What every server has is the same object after a restart.
    let built_in = key(Kind::PriorityClass, "", "system-node-critical");
    let uid = |hub: &Hub| now_is(hub, &built_in).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(uid(&hub), uid(&self::hub(dir.path())));
    assert_ne!(uid(&hub), uid(&self::hub(tempfile::tempdir().unwrap().path())));
    let bare = hub.create(&key(Kind::RuntimeClass, "", "y"), json!({}), How::default()).unwrap_err();
    assert_eq!((bare.code, bare.causes[0].reason), (422, "FieldValueRequired"));
    let named = hub.create(&key(Kind::RuntimeClass, "", "../y"), json!({"handler": "a"}), How::default());
    assert_eq!(named.unwrap_err().code, 422);
}
