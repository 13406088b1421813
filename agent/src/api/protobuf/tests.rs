#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Writes a field: a number, or anything that has a length.
fn field(number: u32, value: &[u8]) -> Vec<u8> {
    let mut out = varint(u64::from(number) << 3 | 2);
    out.extend(varint(value.len() as u64));
    out.extend(value);
    out
}

fn number(field: u32, value: i64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value as u64)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn object(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let of_type = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
    [&MAGIC[..], &field(1, &of_type), &field(2, raw), &field(3, b""), &field(4, b"")].concat()
}

#[test]
fn a_config_map() {
    let metadata = [
        field(1, b"cm"),
        field(2, b""),
        field(8, b""),
        field(11, &[field(1, b"a"), field(2, b"b")].concat()),
    ];
    let raw = [
        field(1, &metadata.concat()),
        field(2, &[field(1, b"k"), field(2, "ü".as_bytes())].concat()),
        field(2, &field(1, b"empty")),
        field(3, &[field(1, b"bin"), field(2, &[0, 255])].concat()),
        number(4, 0),
    ];
    assert_eq!(
        decode(&object("v1", "ConfigMap", &raw.concat())).unwrap(),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm", "labels": {"a": "b"}},
            "data": {"k": "ü", "empty": ""}, "binaryData": {"bin": "AP8="}, "immutable": false})
    );
}

#[test]
fn a_pod_with_what_json_writes_in_its_own_way() {
    let port = [number(2, 8080), number(3, 80), field(4, b"")];
    let probe = [field(1, &field(2, &field(2, &[number(1, 1), field(3, b"http")].concat()))), number(2, -5)];
    let resources = field(1, &[field(1, b"cpu"), field(2, &field(1, b"250m"))].concat());
    let secret = field(2, &field(6, &field(1, b"s")));
    let container = [
        field(1, b"main"),
        field(3, b"sh"),
        field(3, b"-c"),
        field(6, &port.concat()),
        field(8, &resources),
        field(10, &probe.concat()),
    ];
    let spec = [field(1, &[field(1, b"vol"), secret].concat()), field(2, &container.concat()), number(4, 30)];
    let created = field(8, &[number(1, 1_700_000_000), number(2, 0)].concat());
    let raw = [field(1, &[field(1, b"p"), created].concat()), field(2, &spec.concat())];
    let pod = decode(&object("v1", "Pod", &raw.concat())).unwrap();
    assert_eq!(pod["metadata"]["creationTimestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "vol", "secret": {"secretName": "s"}}]));
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["command"], json!(["sh", "-c"]));
    assert_eq!(container["ports"], json!([{"hostPort": 8080, "containerPort": 80}]));
    assert_eq!(container["resources"], json!({"limits": {"cpu": "250m"}}));
    assert_eq!(container["livenessProbe"], json!({"httpGet": {"port": "http"}, "initialDelaySeconds": -5}));
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
}

#[test]
fn options_and_reviews_of_other_groups() {
    let raw = [number(1, 0), field(4, b"Background")].concat();
    let options = decode(&object("v1", "DeleteOptions", &raw)).unwrap();
    assert_eq!(options["gracePeriodSeconds"], 0);
    assert_eq!(options["propagationPolicy"], "Background");
    let raw = field(2, &field(1, &[field(2, b"get"), field(5, b"pods")].concat()));
    let review = decode(&object("authorization.k8s.io/v1", "SelfSubjectAccessReview", &raw)).unwrap();
    assert_eq!(review["spec"]["resourceAttributes"], json!({"verb": "get", "resource": "pods"}));
    let bound = [field(1, b"Pod"), field(2, b"v1"), field(3, b"web"), field(4, b"u")].concat();
    let raw = field(2, &[field(1, b"vault"), field(3, &bound), number(4, 600)].concat());
    let request = decode(&object("authentication.k8s.io/v1", "TokenRequest", &raw)).unwrap();
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "u"});
    let spec = json!({"audiences": ["vault"], "boundObjectRef": bound, "expirationSeconds": 600});
    assert_eq!(request["spec"], spec);
    for (group, kind) in [
        ("v1", "Binding"),
        ("v1", "ServiceAccount"),
        ("authentication.k8s.io/v1", "TokenReview"),
        ("authorization.k8s.io/v1", "SubjectAccessReview"),
        ("node.k8s.io/v1", "RuntimeClass"),
        ("scheduling.k8s.io/v1", "PriorityClass"),
        ("coordination.k8s.io/v1", "Lease"),
        ("policy/v1", "Eviction"),
    ] {
        let named = decode(&object(group, kind, &field(1, &field(1, b"x")))).unwrap();
        assert_eq!((&named["kind"], &named["metadata"]["name"]), (&json!(kind), &json!("x")));
    }
}

#[test]
fn what_is_not_known_is_said() {
    let refused = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert!(refused(b"{}").contains("does not begin"));
    assert!(refused(&object("apps/v1", "Deployment", b"")).starts_with("apps/v1 Deployment is not taken"));
    assert!(refused(&object("v1beta1", "Pod", b"")).starts_with("v1beta1 Pod"));
    assert!(
        refused(&object("v1", "ConfigMap", &field(77, b"")))
            .contains("core.v1.ConfigMap has a field number 77")
    );
    assert!(refused(&object("v1", "ConfigMap", &number(1, 7))).contains("metadata is no message"));
    assert!(refused(&object("v1", "ConfigMap", &[0x0a, 0x7f])).contains("cut short"));
    let deep = (0..100).fold(Vec::new(), |inner, _| field(1, &inner));
    assert!(decode(&object("v1", "Pod", &field(2, &deep))).is_err());
}

proptest! {
    #[test]
    fn nothing_that_is_received_panics(raw in proptest::collection::vec(any::<u8>(), 0..128)) {
        let _ = decode(&raw);
        let _ = decode(&object("v1", "Pod", &raw));
        let _ = decode(&object("v1", "Secret", &field(1, &raw)));
    }
}
