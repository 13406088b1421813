//! ConfigMaps and Secrets from the same folder as the pods that use them.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;

const OBJECTS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  COLOUR: blue\n---\n\
                       apiVersion: v1\nkind: Secret\nmetadata:\n  name: keys\nstringData:\n  password: hush\n";

fn user() -> String {
    Builder::new("a")
        .shell("echo colour=$COLOUR prefixed=$C_COLOUR password=$PASSWORD; cat /conf/COLOUR; echo; exec sleep 1000000")
        .with("env:\n        - { name: COLOUR, valueFrom: { configMapKeyRef: { name: settings, key: COLOUR } } }")
        .with("  - { name: PASSWORD, valueFrom: { secretKeyRef: { name: keys, key: password } } }")
        .with("envFrom: [{ prefix: C_, configMapRef: { name: settings } }]")
        .with("volumeMounts: [{ name: conf, mountPath: /conf }]")
        .with_pod("volumes: [{ name: conf, configMap: { name: settings } }]")
        .yaml()
}

#[test]
fn a_pod_waits_for_its_config_map_says_so_and_then_uses_it() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &user()).unwrap();
    node.wait("a is not started", Duration::from_secs(20), |pods| {
        pods.get("a").is_some_and(|p| !p.is_running())
    })
    .unwrap();
    node.wait_event("a", "settings").unwrap();

    node.apply("objects.yaml", OBJECTS).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let lines = node.wait_log(&pod, "colour").unwrap();
    assert_eq!(lines[0], "colour=blue prefixed=blue password=hush");
    assert_eq!(node.exec("a", &["cat", "/conf/COLOUR"]).unwrap().ok().unwrap(), "blue");
    let objects = node.berth(&["get", "configmaps"]).unwrap().ok().unwrap();
    assert!(objects.contains("settings"), "{objects}");
}

#[test]
fn a_secret_is_not_shown_by_logs_events_or_the_agents_log() {
    let node = Node::start().unwrap();
    node.apply("objects.yaml", OBJECTS).unwrap();
    node.apply("a.yaml", &user().replace(" password=$PASSWORD", "")).unwrap();
    node.wait_running(&["a"]).unwrap();
    let describe = node.berth(&["describe", "pod", "a-n1"]).unwrap().ok().unwrap();
    for text in [describe, node.agent_log(), node.events("a").unwrap().join("\n")] {
        assert!(!text.contains("hush"), "{text}");
    }
}
