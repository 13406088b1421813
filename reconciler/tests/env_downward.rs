//! Environments and the downward API.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_reconciler::env::*;
use berth_reconciler::manifest::{Context, admit, check_pod, pod_update_allowed};
use berth_reconciler::pod::{Pod, Source};
use k8s_openapi::api::core::v1;
use serde_json::json;

#[derive(Default)]
struct Objects {
    maps: BTreeMap<String, Arc<v1::ConfigMap>>,
    secrets: BTreeMap<String, Arc<v1::Secret>>,
}

impl Lookup for Objects {
    fn config_map(&self, _: &str, name: &str) -> Option<Arc<v1::ConfigMap>> {
        self.maps.get(name).cloned()
    }
    fn secret(&self, _: &str, name: &str) -> Option<Arc<v1::Secret>> {
        self.secrets.get(name).cloned()
    }
    fn volume_file(&self, _: &Pod, volume: &str, path: &str) -> Result<Option<String>, String> {
        match (volume, path) {
            ("v", "good.env") => Ok(Some("A='from file'\nB=bare\n".to_owned())),
            ("v", "closed.env") => Err("permission denied".to_owned()),
            _ => Ok(None),
        }
    }
}

fn objects() -> Objects {
    let mut objects = Objects::default();
    let map = serde_json::from_value(json!({"data": {"A": "from-map", "B": "b"}})).unwrap();
    objects.maps.insert("map".to_owned(), Arc::new(map));
    let secret = serde_json::from_value(json!({"data": {"P": "c2VjcmV0", "X": "/w=="}})).unwrap();
    objects.secrets.insert("secret".to_owned(), Arc::new(secret));
    objects
}

fn facts() -> Facts {
    Facts {
        node_name: "n".to_owned(),
        host_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        pod_ips: vec!["10.85.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        allocatable_cpu_milli: 3500,
        allocatable_memory: 4 << 30,
        allocatable_ephemeral_storage: 10 << 30,
    }
}

fn pod(container: serde_json::Value) -> Pod {
    let mut c = json!({"name": "c", "image": "i"});
    c.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let value = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": {"a": "1", "b.c/d": "x"}, "annotations": {"note": "say \"hi\"\n\u{e9}"}},
        "spec": {"serviceAccountName": "sa", "containers": [c], "volumes": [{"name": "v", "emptyDir": {}}]}});
    admit(check_pod(&value, &Context::default()).unwrap(), Source::Api, "n")
}

fn env(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
    let pod = pod(container);
    container_env(&pod, &pod.spec().containers[0], &facts(), &objects()).map_err(|e| e.to_string())
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn later_variables_win_and_see_earlier_ones() {
    let got = env(json!({
        "envFrom": [{"configMapRef": {"name": "map"}}, {"prefix": "S_", "configMapRef": {"name": "map"}}, {"secretRef": {"name": "none", "optional": true}}],
        "env": [{"name": "A", "value": "own"}, {"name": "C", "value": "$(A) $(B) $(LATER) $$(A) $x $("}, {"name": "LATER", "value": "1"}, {"name": "E"}]
    }));
    let expected = [
        ("A", "own"),
        ("B", "b"),
        ("S_A", "from-map"),
        ("S_B", "b"),
        ("C", "own b $(LATER) $(A) $x $("),
        ("LATER", "1"),
        ("E", ""),
    ];
    assert_eq!(got.unwrap(), pairs(&expected));
}

#[test]
fn references_lead_somewhere_or_are_optional() {
    let key = |kind: &str, name: &str, key: &str, optional: bool| json!({"env": [{"name": "V", "valueFrom": {kind: {"name": name, "key": key, "optional": optional}}}]});
    assert_eq!(env(key("secretKeyRef", "secret", "P", false)).unwrap(), pairs(&[("V", "secret")]));
    assert_eq!(env(key("configMapKeyRef", "map", "B", false)).unwrap(), pairs(&[("V", "b")]));
    assert_eq!(env(key("configMapKeyRef", "none", "B", true)).unwrap(), []);
    assert_eq!(env(key("configMapKeyRef", "map", "none", true)).unwrap(), []);
    assert_eq!(env(key("configMapKeyRef", "none", "B", false)).unwrap_err(), "configmap \"none\" not found");
    assert_eq!(env(key("secretKeyRef", "none", "B", false)).unwrap_err(), "secret \"none\" not found");
    assert_eq!(
        env(key("configMapKeyRef", "map", "Z", false)).unwrap_err(),
        "couldn't find key Z in ConfigMap default/map"
    );
    assert!(env(key("secretKeyRef", "secret", "X", false)).unwrap_err().contains("not UTF-8"));
    assert_eq!(
        env(json!({"envFrom": [{"secretRef": {"name": "none"}}]})).unwrap_err(),
        "secret \"none\" not found"
    );
}

#[test]
fn files_of_volumes_give_variables() {
    let of = |path: &str, key: &str, optional: bool| {
        env(
            json!({"env": [{"name": "V", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": path, "key": key, "optional": optional}}}]}),
        )
    };
    assert_eq!(of("good.env", "A", false).unwrap(), pairs(&[("V", "from file")]));
    assert_eq!(of("none.env", "A", true).unwrap(), []);
    let error = of("none.env", "A", false).unwrap_err();
    assert_eq!(error, "environment variable \"V\": none.env in volume v: it does not exist");
    let error = of("good.env", "Z", true).unwrap_err();
    assert_eq!(
        error,
        "environment variable \"V\": good.env in volume v: line 2: a value must be in single quotes"
    );
    assert!(
        of("closed.env", "A", true).unwrap_err().contains("permission denied"),
        "optional is not any error"
    );
}

#[test]
fn file_references_are_checked() {
    let errors = |reference: serde_json::Value| {
        let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "image": "i", "env": [{"name": "V", "valueFrom": {"fileKeyRef": reference}}]}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/"}}]}});
        let errors = check_pod(&value, &Context::default()).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(errors(json!({"volumeName": "v", "path": "a/b.env", "key": "A"})), "");
    for (reference, said) in [
        (json!({"volumeName": "x", "path": "e", "key": "A"}), "volumeName: Not found: \"x\""),
        (json!({"volumeName": "h", "path": "e", "key": "A"}), "must be an emptyDir volume"),
        (json!({"volumeName": "v", "path": "../e", "key": "A"}), "must not contain '..'"),
        (json!({"volumeName": "v", "path": "/e", "key": "A"}), "must be a relative path"),
        (json!({"volumeName": "v", "path": "", "key": "A"}), "path: Required value"),
        (json!({"volumeName": "v", "path": "e", "key": ""}), "key: Required value"),
        (json!({"volumeName": "v", "path": "e", "key": "A="}), "a valid environment variable name"),
    ] {
        let found = errors(reference);
        assert!(found.contains(said), "{said}: {found}");
    }
}

#[test]
fn references_are_replaced_as_kubernetes_does() {
    let known = pairs(&[("A", "a"), ("EMPTY", "")]);
    for (text, wanted) in [
        ("$(A)", "a"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$a"),
        ("$$$$(A)", "$$(A)"),
        ("$(NONE)", "$(NONE)"),
        ("$(EMPTY)x", "x"),
        ("$A ${A}", "$A ${A}"),
        ("$(A", "$(A"),
        ("$", "$"),
        ("a$", "a$"),
        ("$()", "$()"),
        ("$($(A))", "$($(A))"),
        ("$(A)$(A)", "aa"),
    ] {
        assert_eq!(expand(text, &known), wanted, "{text}");
    }
}

#[test]
fn every_divisor_of_every_resource() {
    let pod = pod(json!({"resources": {
        "limits": {"cpu": "2500m", "memory": "5Gi", "ephemeral-storage": "3Gi", "hugepages-2Mi": "6Mi"},
        "requests": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "6Mi"}}}));
    let resource = |resource: &str, divisor: &str| {
        let selector = serde_json::from_value(json!({"resource": resource, "divisor": divisor})).unwrap();
        resource_ref(&pod, "c", &selector, &facts()).unwrap()
    };
    for (name, divisor, wanted) in [
        ("limits.cpu", "1", "3"),
        ("limits.cpu", "1m", "2500"),
        ("limits.memory", "1k", "5368710"),
        ("limits.memory", "1M", "5369"),
        ("limits.memory", "1G", "6"),
        ("limits.memory", "1T", "1"),
        ("limits.memory", "1P", "1"),
        ("limits.memory", "1E", "1"),
        ("limits.memory", "1Ki", "5242880"),
        ("limits.memory", "1Mi", "5120"),
        ("limits.memory", "1Gi", "5"),
        ("limits.memory", "1Ti", "1"),
        ("limits.ephemeral-storage", "1Mi", "3072"),
        ("requests.ephemeral-storage", "1Gi", "3"),
        ("limits.hugepages-2Mi", "1Mi", "6"),
        ("requests.hugepages-2Mi", "1", "6291456"),
        ("requests.memory", "0", "1073741824"),
    ] {
        assert_eq!(resource(name, divisor), wanted, "{name} by {divisor}");
    }
}

#[test]
fn every_field() {
    let pod = pod(json!({}));
    let field = |path: &str| field_ref(&pod, &facts(), path).unwrap();
    assert_eq!(field("metadata.name"), "p");
    assert_eq!(field("metadata.namespace"), "default");
    assert_eq!(field("metadata.uid"), pod.uid());
    assert_eq!(field("metadata.labels['b.c/d']"), "x");
    assert_eq!(field("metadata.labels['none']"), "");
    assert_eq!(field("metadata.labels"), "a=\"1\"\nb.c/d=\"x\"");
    assert!(field("metadata.annotations").contains("note=\"say \\\"hi\\\"\\n\u{e9}\""));
    assert_eq!(field("spec.nodeName"), "n");
    assert_eq!(field("spec.serviceAccountName"), "sa");
    assert_eq!(field("status.hostIP"), "192.0.2.1");
    assert_eq!(field("status.hostIPs"), "192.0.2.1,2001:db8::1");
    assert_eq!(field("status.podIP"), "10.85.0.2");
    assert_eq!(field("status.podIPs"), "10.85.0.2,fd00::2");
    assert!(field_ref(&pod, &facts(), "spec.foo").is_err());
}

#[test]
fn every_resource_with_divisors() {
    let pod = pod(
        json!({"resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}, "requests": {"cpu": "250m"}}}),
    );
    let resource = |resource: &str, divisor: &str| {
        let selector = serde_json::from_value(json!({"resource": resource, "divisor": divisor})).unwrap();
        resource_ref(&pod, "c", &selector, &facts()).unwrap()
    };
    assert_eq!(resource("limits.cpu", ""), "2");
    assert_eq!(resource("limits.cpu", "1m"), "1500");
    assert_eq!(resource("requests.cpu", "1m"), "250");
    assert_eq!(resource("limits.memory", "1"), "104857600");
    assert_eq!(resource("limits.memory", "1Gi"), "1");
    assert_eq!(resource("requests.memory", "1Mi"), "100");
    assert_eq!(resource("limits.ephemeral-storage", "1Gi"), "10");
    assert_eq!(resource("requests.ephemeral-storage", "1"), "0");
    assert_eq!(resource("limits.hugepages-2Mi", "1"), "0");
    let plain = self::pod(json!({}));
    let selector = serde_json::from_value(json!({"resource": "limits.cpu"})).unwrap();
    assert_eq!(resource_ref(&plain, "c", &selector, &facts()).unwrap(), "4", "allocatable, rounded up");
}

#[test]
fn a_limit_of_the_pod_comes_before_what_the_node_can_give() {
    let object = json!({"metadata": {"name": "p"}, "spec": {
        "resources": {"limits": {"cpu": "3", "memory": "64Mi"}},
        "containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]}});
    let pod = Pod::new(serde_json::from_value(object).unwrap(), Source::Api);
    let resource = |resource: &str| {
        let selector = serde_json::from_value(json!({"resource": resource})).unwrap();
        resource_ref(&pod, "c", &selector, &facts()).unwrap()
    };
    assert_eq!(resource("limits.cpu"), "2", "its own");
    assert_eq!(resource("limits.memory"), (64 << 20).to_string(), "the pod's");
    assert_eq!(resource("limits.ephemeral-storage"), (10_u64 << 30).to_string(), "the node's");
    assert_eq!(resource("requests.memory"), "0", "requests have no such default");
}

#[test]
fn strict_expansion_wants_every_variable() {
    let env = pairs(&[("A", "a")]);
    assert_eq!(expand_strict("x/$(A)", &env).unwrap(), "x/a");
    assert_eq!(expand_strict("x/$(B)", &env).unwrap_err().to_string(), "missing value for \"B\"");
}

#[test]
fn updates_keep_to_the_mutable_fields() {
    let old = pod(json!({})).object;
    let mut new = old.clone();
    new.spec.as_mut().unwrap().containers[0].image = Some("j".to_owned());
    new.spec.as_mut().unwrap().active_deadline_seconds = Some(5);
    assert_eq!(pod_update_allowed(&old, &new), Ok(()));
    new.spec.as_mut().unwrap().containers[0].args = Some(vec!["x".to_owned()]);
    let errors = pod_update_allowed(&old, &new).unwrap_err();
    assert!(
        errors[0].to_string().starts_with("spec: Forbidden: pod updates may not change fields other than"),
        "{errors:?}"
    );
}

#[test]
fn identity_of_file_and_api_pods() {
    let raw = check_pod(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}), &Context::default()).unwrap();
    let file = |path: &str, node: &str| admit(raw.clone(), Source::File(path.into()), node);
    let a = file("/m/a.yaml", "Node-1");
    assert_eq!(a.name(), "p-node-1");
    assert_eq!(a.uid(), file("/m/a.yaml", "Node-1").uid());
    assert_ne!(a.uid(), file("/m/b.yaml", "Node-1").uid());
    assert_ne!(a.uid(), file("/m/a.yaml", "Node-2").uid());
    assert!(uuid::Uuid::parse_str(a.uid()).is_ok());
    assert_eq!(a.object.metadata.annotations.as_ref().unwrap()["kubernetes.io/config.source"], "file");
    let api = |value: &v1::Pod| admit(value.clone(), Source::Api, "n");
    assert_ne!(api(&raw).uid(), api(&raw).uid());
    let mut generated = raw.clone();
    generated.metadata.name = None;
    generated.metadata.generate_name = Some("job-".to_owned());
    assert!(api(&generated).name().starts_with("job-") && api(&generated).name().len() == 9);
}
