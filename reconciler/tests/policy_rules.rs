//! What the checks say about NetworkPolicies and Namespaces, rule by rule.
#![allow(clippy::unwrap_used)]

use berth_reconciler::manifest::{Context, Object, parse};
use serde_json::{Value, json};

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{{spec}}}\n"
    )
}

fn errors_of(text: &str) -> Vec<String> {
    parse(text, None, &Context::default()).errors.iter().map(ToString::to_string).collect()
}

fn good(text: &str) -> Value {
    let parsed = parse(text, None, &Context::default());
    assert_eq!(parsed.errors, [], "{text}");
    match parsed.objects.into_iter().next().unwrap().value {
        Object::NetworkPolicy(policy) => serde_json::to_value(policy).unwrap(),
        Object::Namespace(namespace) => serde_json::to_value(namespace).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn policy_types_follow_from_the_rules() {
    let types = |spec: &str| good(&policy(spec))["spec"]["policyTypes"].clone();
    assert_eq!(types("podSelector: {}"), json!(["Ingress"]));
    assert_eq!(types("podSelector: {}, egress: []"), json!(["Ingress"]));
    assert_eq!(types("podSelector: {}, egress: [{}]"), json!(["Ingress", "Egress"]));
    assert_eq!(types("podSelector: {}, egress: [{}], policyTypes: [Egress]"), json!(["Egress"]));
    assert_eq!(types("podSelector: {}, ingress: [{}], policyTypes: [Egress]"), json!(["Egress"]));
}

#[test]
fn ports_are_of_tcp_if_nothing_is_said() {
    let policy = good(&policy(
        "podSelector: {}, ingress: [{ports: [{port: 80}, {}]}], egress: [{ports: [{port: dns, protocol: UDP}]}]",
    ));
    assert_eq!(policy["metadata"]["namespace"], "default");
    assert_eq!(
        policy["spec"]["ingress"][0]["ports"],
        json!([{"port": 80, "protocol": "TCP"}, {"protocol": "TCP"}])
    );
    assert_eq!(policy["spec"]["egress"][0]["ports"], json!([{"port": "dns", "protocol": "UDP"}]));
}

#[test]
fn everything_that_a_policy_can_say_is_read() {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a"]}]},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{
            "from": [
                {"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}},
                {"namespaceSelector": {"matchLabels": {"project": "x"}}},
                {"podSelector": {"matchLabels": {"role": "frontend"}}},
                {"namespaceSelector": {}, "podSelector": {}},
            ],
            "ports": [{"protocol": "TCP", "port": 6379}, {"protocol": "SCTP", "port": 1, "endPort": 65535}],
        }],
        "egress": [{"to": [{"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:1::/48"]}}], "ports": [{"protocol": "TCP", "port": "http"}]}],
    });
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "n"}, "spec": spec});
    assert_eq!(good(&object.to_string())["spec"], spec);
}

#[test]
fn what_cannot_be_is_refused_by_its_field() {
    let rule = |ports: &str| format!("podSelector: {{}}, ingress: [{{ports: [{ports}]}}]");
    let from = |peer: &str| format!("podSelector: {{}}, ingress: [{{from: [{peer}]}}]");
    let to = |peer: &str| format!("podSelector: {{}}, egress: [{{to: [{peer}]}}]");
    let cases = [
        (rule("{port: 0}"), "spec.ingress[0].ports[0].port: Invalid value: 0"),
        (rule("{port: 65536}"), "spec.ingress[0].ports[0].port: Invalid value: 65536"),
        (rule("{port: 'a--b'}"), "spec.ingress[0].ports[0].port: Invalid value: \"a--b\""),
        (
            rule("{port: 80, protocol: ICMP}"),
            "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\"",
        ),
        (
            rule("{endPort: 80}"),
            "spec.ingress[0].ports[0].port: Required value: must be specified when `endPort`",
        ),
        (
            rule("{port: 81, endPort: 80}"),
            "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
        ),
        (
            rule("{port: a, endPort: 80}"),
            "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
        ),
        (rule("{port: 80, endPort: 70000}"), "spec.ingress[0].ports[0].endPort: Invalid value: 70000"),
        (from("{}"), "spec.ingress[0].from[0]: Required value: must specify a peer"),
        (
            from("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"),
            "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
        ),
        (to("{ipBlock: {cidr: ''}}"), "spec.egress[0].to[0].ipBlock.cidr: Required value"),
        (to("{ipBlock: {cidr: 10.0.0.0}}"), "spec.egress[0].to[0].ipBlock.cidr: Invalid value: \"10.0.0.0\""),
        (
            to("{ipBlock: {cidr: 10.0.0.0/33}}"),
            "spec.egress[0].to[0].ipBlock.cidr: Invalid value: \"10.0.0.0/33\"",
        ),
        (
            to("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}"),
            "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr` 10.0.0.0/8",
        ),
        (
            to("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"),
            "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset",
        ),
        (
            to("{ipBlock: {cidr: '::/0', except: [10.0.0.0/8]}}"),
            "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset",
        ),
        (
            from("{podSelector: {matchExpressions: [{key: a, operator: In}]}}"),
            "spec.ingress[0].from[0].podSelector.matchExpressions[0].values: Required value",
        ),
        (
            from("{namespaceSelector: {matchLabels: {'-': x}}}"),
            "spec.ingress[0].from[0].namespaceSelector.matchLabels[-]: Invalid value",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}".to_owned(),
            "spec.podSelector.matchExpressions[0].operator: Unsupported value: \"Gt\"",
        ),
        (
            "podSelector: {}, policyTypes: [ingress]".to_owned(),
            "spec.policyTypes[0]: Unsupported value: \"ingress\"",
        ),
        (
            "podSelector: {}, policyTypes: [Ingress, Egress, Ingress]".to_owned(),
            "spec.policyTypes: Invalid value: \"Ingress, Egress, Ingress\": may not specify more than two policyTypes",
        ),
        ("podSelector: {}, ingres: []".to_owned(), "spec.ingres: unknown field (did you mean \"ingress\"?)"),
        ("podSelector: {}, ingress: [{to: []}]".to_owned(), "spec.ingress[0].to: unknown field"),
    ];
    for (spec, expected) in cases {
        let errors = errors_of(&policy(&spec));
        assert!(errors.len() == 1 && errors[0].contains(expected), "{spec}: {errors:?}");
    }
    let bare = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    assert!(errors_of(bare)[0].contains("spec: Required value"), "{:?}", errors_of(bare));
    let old = "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {}\n";
    assert!(errors_of(old)[0].contains("a NetworkPolicy has `apiVersion: networking.k8s.io/v1`"));
}

#[test]
fn a_namespace_has_the_label_of_its_name() {
    let namespace = good(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: web, labels: {team: a, kubernetes.io/metadata.name: x}}\n\
         spec: {finalizers: [kubernetes]}\nstatus: {phase: Active}\n",
    );
    let labels = json!({"team": "a", "kubernetes.io/metadata.name": "web"});
    assert_eq!(
        namespace,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "web", "labels": labels}})
    );
    for (meta, expected) in [
        ("name: a.b", "metadata.name: Invalid value: \"a.b\": a lowercase RFC 1123 label"),
        ("name: a, namespace: b", "metadata.namespace: Forbidden: a Namespace is in no namespace"),
        ("name: a, labels: {'-': x}", "metadata.labels[-]: Invalid value"),
    ] {
        let errors = errors_of(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{{meta}}}\n"));
        assert!(errors.len() == 1 && errors[0].contains(expected), "{meta}: {errors:?}");
    }
}
