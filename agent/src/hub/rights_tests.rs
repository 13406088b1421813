#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::super::How;
use super::*;
use crate::store::ObjectStore;

fn asked(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    Attributes {
        verb: verb.into(),
        group: group.into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

fn groups(group: &str) -> Vec<String> {
    vec![group.to_owned(), "system:authenticated".to_owned()]
}

/// A hub with a node `b` and a pod `web` on it.
fn hub(dir: &std::path::Path) -> Hub {
    let hub = Hub::new(dir, ObjectStore::starting_at(1, 1 << 20), "a");
    for name in ["b", "c"] {
        let key = Key { kind: Kind::Node, namespace: String::new(), name: name.into() };
        hub.create(&key, json!({}), How::default()).unwrap();
    }
    let account = Key { kind: Kind::ServiceAccount, namespace: "x".into(), name: "robot".into() };
    hub.create(&account, json!({}), How::default()).unwrap();
    let key = Key { kind: Kind::Pod, namespace: "x".into(), name: "web".into() };
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "x"}, "spec": {"nodeName": "b",
        "serviceAccountName": "robot", "volumes": [{"name": "s", "secret": {"secretName": "token"}}],
        "containers": [{"name": "c", "image": "i", "envFrom": [{"configMapRef": {"name": "settings"}}]}]}});
    hub.create_pod(&key, &pod, How::default()).unwrap();
    hub
}

#[test]
fn a_node_may_what_its_pods_need() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let may = |node: &str, asked: &Attributes| {
        hub.authorize(&format!("system:node:{node}"), &groups("system:nodes"), asked).is_ok()
    };
    for (verb, resource, namespace, name) in [
        ("get", "nodes", "", "b"),
        ("patch", "nodes/status", "", "b"),
        ("patch", "pods/status", "x", "web"),
        ("delete", "pods", "x", "web"),
        ("get", "secrets", "x", "token"),
        ("watch", "configmaps", "x", "settings"),
        ("create", "serviceaccounts/token", "x", "robot"),
        ("update", "leases.coordination.k8s.io", "kube-node-lease", "b"),
    ] {
        let asked = asked(verb, resource, namespace, name);
        assert!(may("b", &asked), "{asked:?}");
        assert!(!may("c", &asked), "{asked:?}");
    }
    for (verb, resource, namespace, name) in [
        ("create", "nodes", "", ""),
        ("create", "events", "x", ""),
        ("list", "services", "", ""),
        ("watch", "runtimeclasses.node.k8s.io", "", ""),
        ("create", "certificatesigningrequests.certificates.k8s.io", "", ""),
        ("create", "tokenreviews.authentication.k8s.io", "", ""),
    ] {
        assert!(may("c", &asked(verb, resource, namespace, name)), "{verb} {resource}");
    }
    for (verb, resource, namespace, name) in [
        ("delete", "nodes", "", "b"),
        ("list", "pods", "", ""),
        ("patch", "pods", "x", "web"),
        ("list", "secrets", "x", ""),
        ("get", "secrets", "x", "other"),
        ("get", "secrets", "y", "token"),
        ("update", "secrets", "x", "token"),
        ("get", "leases.coordination.k8s.io", "default", "b"),
        ("patch", "certificatesigningrequests.certificates.k8s.io/approval", "", "r"),
        ("create", "namespaces", "", ""),
    ] {
        assert!(!may("b", &asked(verb, resource, namespace, name)), "{verb} {resource}");
    }
    let mine = Attributes { on_node: "b".into(), ..asked("watch", "pods", "", "") };
    assert!(may("b", &mine) && !may("c", &mine));
    // The name alone makes no node.
    assert!(hub.authorize("system:node:b", &groups("dev"), &mine).is_err());
    assert!(hub.authorize("b", &groups("system:nodes"), &mine).is_err());
}

#[test]
fn others_may_look_around_and_ask_for_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let request = asked("create", "certificatesigningrequests.certificates.k8s.io", "", "");
    let path =
        |path: &str| Attributes { verb: "get".into(), path: Some(path.into()), ..Attributes::default() };
    for (group, request_ok) in [(BOOTSTRAPPERS, true), ("system:serviceaccounts", false)] {
        let may = |asked: &Attributes| hub.authorize("u", &groups(group), asked).is_ok();
        assert_eq!(may(&request), request_ok);
        assert!(may(&path("/apis/node.k8s.io/v1")) && may(&path("/version")));
        assert!(may(&asked("create", "selfsubjectaccessreviews.authorization.k8s.io", "", "")));
        assert!(!may(&path("/metrics")) && !may(&path("/api/../metrics")) && !may(&path("/apisx")));
        assert!(!may(&asked("get", "pods", "x", "web")));
    }
    assert!(hub.authorize("u", &groups(ADMINS), &asked("delete", "nodes", "", "b")).is_ok());
}

#[test]
fn a_node_writes_only_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let key = |kind, name: &str| Key { kind, namespace: String::new(), name: name.into() };
    let restrict = |key: &Key, old: Option<Value>, new: Option<Value>| {
        hub.restrict("b", key, false, old.as_ref(), new.as_ref()).map_err(|why| why.replace('"', ""))
    };
    let node = json!({"metadata": {"labels": {"a": "1"}}});
    assert!(restrict(&key(Kind::Node, "b"), None, Some(node.clone())).is_ok());
    assert_eq!(
        restrict(&key(Kind::Node, "c"), None, Some(node.clone())),
        Err("node b is not allowed to modify node c".into())
    );
    let tainted = json!({"metadata": {"labels": {"a": "2"}}, "spec": {"taints": []}});
    assert_eq!(
        restrict(&key(Kind::Node, "b"), Some(node.clone()), Some(tainted)),
        Err("node b is not allowed to modify taints".into())
    );
    let labelled = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "2"}}});
    assert!(restrict(&key(Kind::Node, "b"), Some(node), Some(labelled)).is_err());
    let pod = |node: &str, mirror: bool| {
        let annotations = if mirror { json!({"kubernetes.io/config.mirror": "x"}) } else { json!({}) };
        json!({"metadata": {"annotations": annotations}, "spec": {"nodeName": node, "containers": []}})
    };
    let web = key(Kind::Pod, "web");
    assert!(restrict(&web, None, Some(pod("b", true))).is_ok());
    for bad in [pod("b", false), pod("c", true)] {
        assert!(restrict(&web, None, Some(bad)).is_err());
    }
    // By a mirror that refers to it a node could read what no pod of its own uses.
    let with = |container: Value| {
        let mut mirror = pod("b", true);
        mirror["spec"]["containers"] = json!([container]);
        mirror
    };
    let from = |source: Value| json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]});
    for bad in [
        from(json!({"secretKeyRef": {"name": "s", "key": "k"}})),
        from(json!({"configMapKeyRef": {"name": "s", "key": "k"}})),
        json!({"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}),
    ] {
        let error = restrict(&web, None, Some(with(bad))).unwrap_err();
        assert!(error.contains("can not create pods that reference"), "{error}");
    }
    assert!(restrict(&web, Some(pod("c", false)), None).is_err());
    assert!(restrict(&key(Kind::Lease, "c"), None, Some(json!({}))).is_err());

    let account = Key { kind: Kind::ServiceAccount, namespace: "x".into(), name: "robot".into() };
    let uid = hub.store.get(Kind::Pod, "x", "web").unwrap().value()["metadata"]["uid"].clone();
    let token = |node: &str, bound: Value| {
        hub.restrict_token(node, &account, &json!({"spec": {"boundObjectRef": bound}})).is_ok()
    };
    let bound = json!({"kind": "Pod", "name": "web", "uid": uid});
    assert!(token("b", bound.clone()) && !token("c", bound));
    assert!(!token("b", Value::Null) && !token("b", json!({"kind": "Pod", "name": "web"})));
}

/// Nothing follows from a mirror, not even the account that every pod without another has.
#[test]
fn a_mirror_gives_its_node_no_rights() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let key = Key { kind: Kind::Pod, namespace: "y".into(), name: "static-b".into() };
    let mirror = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static-b", "namespace": "y",
        "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "b",
        "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "all"}}]}]}});
    hub.create_pod(&key, &mirror, How::default()).unwrap();
    let may = |resource: &str, verb: &str, name: &str| {
        let asked = asked(verb, resource, "y", name);
        hub.authorize("system:node:b", &groups("system:nodes"), &asked).is_ok()
    };
    assert!(!may("secrets", "get", "all") && !may("serviceaccounts/token", "create", "default"));
    assert!(may("pods/status", "patch", "static-b"));
}
