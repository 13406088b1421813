//! What the checks say about Services, rule by rule.
#![allow(clippy::unwrap_used)]

use berth_reconciler::manifest::{Context, Object, parse};
use k8s_openapi::api::core::v1;
use serde_json::json;

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}\n")
}

fn errors(spec: &str) -> Vec<String> {
    let parsed = parse(&service(spec), None, &Context::default());
    parsed.errors.iter().map(ToString::to_string).collect()
}

fn good(spec: &str) -> v1::Service {
    let parsed = parse(&service(spec), None, &Context::default());
    assert_eq!(parsed.errors, [], "{spec}");
    match parsed.objects.into_iter().next().unwrap().value {
        Object::Service(service) => *service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_left_open_is_filled_in() {
    let web = good(
        "selector: {app: web}, ports: [{port: 80}, {name: b, port: 53, protocol: UDP, targetPort: dns}]"
            .replace("[{port", "[{name: a, port")
            .as_str(),
    );
    let spec = serde_json::to_value(web.spec).unwrap();
    let expected = json!({
        "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "selector": {"app": "web"},
        "ports": [
            {"name": "a", "port": 80, "protocol": "TCP", "targetPort": 80},
            {"name": "b", "port": 53, "protocol": "UDP", "targetPort": "dns"},
        ],
    });
    assert_eq!(spec, expected);
    assert_eq!(web.metadata.namespace.as_deref(), Some("default"));
    let sticky = good("type: NodePort, sessionAffinity: ClientIP, selector: {a: b}, ports: [{port: 1}]");
    let spec = serde_json::to_value(sticky.spec).unwrap();
    assert_eq!(spec["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10800}}));
    assert_eq!(spec["externalTrafficPolicy"], "Cluster");
}

#[test]
fn what_a_cluster_prints_is_read_again() {
    good(
        "clusterIP: 10.86.0.9, clusterIPs: [10.86.0.9], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, \
          internalTrafficPolicy: Local, externalTrafficPolicy: Local, type: NodePort, sessionAffinity: None, \
          selector: {a: b}, ports: [{port: 80, targetPort: 80, protocol: TCP, nodePort: 30080, appProtocol: http}]",
    );
    good("clusterIP: None, clusterIPs: [None], selector: {a: b}, publishNotReadyAddresses: true");
    good(
        "clusterIP: 10.86.0.9, clusterIPs: [10.86.0.9, 'fd00:86::9'], ipFamilies: [IPv4, IPv6], \
         ipFamilyPolicy: RequireDualStack, selector: {a: b}, ports: [{port: 80}], externalIPs: [192.0.2.1], \
         externalTrafficPolicy: Local",
    );
    let alias = good("type: ExternalName, externalName: db.example.org").spec.unwrap();
    assert_eq!((alias.cluster_ip, alias.internal_traffic_policy), (None, None));
}

#[test]
fn what_cannot_be_is_refused_by_its_field() {
    let ports = "selector: {a: b}, ports: [{port: 80}]";
    let cases = [
        ("ports: [{port: 80}]", "spec.selector: Required value"),
        ("selector: {a: b}", "spec.ports: Required value"),
        ("selector: {a: '-'}, ports: [{port: 80}]", "spec.selector[a]: Invalid value: \"-\""),
        (&format!("{ports}, type: LoadBalancer"), "spec.type: Unsupported value: \"LoadBalancer\""),
        ("type: ExternalName", "spec.externalName: Required value"),
        ("type: ExternalName, externalName: a_b", "spec.externalName: Invalid value: \"a_b\""),
        ("type: ExternalName, externalName: a, clusterIP: None", "spec.clusterIP: Forbidden"),
        (&format!("{ports}, type: NodePort, clusterIP: None"), "spec.clusterIP: Invalid value: \"None\""),
        (&format!("{ports}, clusterIP: x"), "spec.clusterIP: Invalid value: \"x\""),
        (
            &format!("{ports}, clusterIP: 10.1.1.1, clusterIPs: [10.1.1.2]"),
            "spec.clusterIPs[0]: Invalid value",
        ),
        (
            &format!("{ports}, loadBalancerIP: 192.0.2.1"),
            "spec.loadBalancerIP: Forbidden: a node without a cluster",
        ),
        (&format!("{ports}, sessionAffinity: Cookie"), "spec.sessionAffinity: Unsupported value: \"Cookie\""),
        (
            &format!(
                "{ports}, sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 86401}}}}"
            ),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401",
        ),
        (
            &format!("{ports}, externalTrafficPolicy: Local"),
            "spec.externalTrafficPolicy: Invalid value: \"Local\"",
        ),
        ("selector: {a: b}, ports: [{port: 0, targetPort: 1}]", "spec.ports[0].port: Invalid value: 0"),
        ("selector: {a: b}, ports: [{port: 1}, {name: b, port: 2}]", "spec.ports[0].name: Required value"),
        (
            "selector: {a: b}, ports: [{name: a, port: 1}, {name: a, port: 2}]",
            "spec.ports[1].name: Duplicate value",
        ),
        (
            "selector: {a: b}, ports: [{name: a, port: 1}, {name: b, port: 1}]",
            "spec.ports[1]: Duplicate value",
        ),
        ("selector: {a: b}, ports: [{port: 1, protocol: ICMP}]", "spec.ports[0].protocol: Unsupported value"),
        (
            "selector: {a: b}, ports: [{port: 1, targetPort: 'a_b'}]",
            "spec.ports[0].targetPort: Invalid value",
        ),
        ("selector: {a: b}, ports: [{port: 1, nodePort: 30000}]", "spec.ports[0].nodePort: Forbidden"),
        (
            "type: NodePort, selector: {a: b}, ports: [{port: 1, nodePort: 80}]",
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range",
        ),
        (
            "type: NodePort, selector: {a: b}, ports: [{name: a, port: 1, nodePort: 30001}, {name: b, port: 2, nodePort: 30001}]",
            "spec.ports[1].nodePort: Duplicate value: 30001",
        ),
    ];
    assert_refused(&cases);
}

#[test]
fn addresses_that_do_not_fit_together_are_refused() {
    let ports = "selector: {a: b}, ports: [{port: 80}]";
    assert_refused(&[
        (
            &format!("{ports}, clusterIPs: [10.1.1.1, 10.1.1.2]"),
            "spec.clusterIPs: Invalid value: \"10.1.1.1,10.1.1.2\": may specify no more than one IP for each IP family",
        ),
        (
            &format!("{ports}, clusterIPs: [None, 'fd00::1']"),
            "spec.clusterIPs[0]: Invalid value: \"None\": 'None' must be the first and only value",
        ),
        (
            &format!("{ports}, clusterIPs: [10.1.1.1, 'fd00::1'], ipFamilyPolicy: SingleStack"),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs",
        ),
        (
            &format!("{ports}, clusterIP: 10.1.1.1, clusterIPs: [10.1.1.1], ipFamilies: [IPv6]"),
            "spec.clusterIPs[0]: Invalid value: \"10.1.1.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (&format!("{ports}, ipFamilies: [IPv6, IPv6]"), "spec.ipFamilies[1]: Duplicate value: \"IPv6\""),
        (&format!("{ports}, ipFamilies: [IPv5]"), "spec.ipFamilies[0]: Unsupported value: \"IPv5\""),
        (&format!("{ports}, ipFamilyPolicy: DualStack"), "spec.ipFamilyPolicy: Unsupported value"),
        (
            &format!("{ports}, externalIPs: [127.0.0.1]"),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range",
        ),
        (&format!("{ports}, externalIPs: [x]"), "spec.externalIPs[0]: Invalid value: \"x\""),
    ]);
}

/// Each has one error, with this text.
fn assert_refused(cases: &[(&str, &str)]) {
    for (spec, expected) in cases {
        let errors = errors(spec);
        assert!(errors.len() == 1 && errors[0].contains(expected), "{spec}: {errors:?} lacks {expected}");
    }
}

#[test]
fn a_services_name_begins_with_a_letter() {
    let text = service("selector: {a: b}, ports: [{port: 1}]").replace("name: web", "name: 1web");
    let errors = parse(&text, None, &Context::default()).errors;
    assert!(errors[0].to_string().contains("DNS-1035"), "{errors:?}");
}
