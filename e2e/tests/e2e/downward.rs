//! The downward API in environment variables.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_e2e::machine::ADDRESS;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;

#[test]
fn every_field_and_resource_reaches_the_environment() {
    let node = Node::start().unwrap();
    let example =
        std::fs::read_to_string(berth_e2e::tools::checkout().join("manifests/examples/downward-env.yaml"))
            .unwrap();
    node.apply("downward.yaml", &example).unwrap();
    let pods = node
        .wait("it has printed", Duration::from_secs(20), |pods| {
            pods.get("downward-env").is_some_and(|p| p.phase() == "Succeeded")
        })
        .unwrap();
    let pod = &pods["downward-env"];
    let lines = node.log(pod, "print", 0).unwrap();
    let env: BTreeMap<&str, &str> = lines.iter().filter_map(|l| l.split_once('=')).collect();
    let name = pod.metadata.name.as_deref().unwrap();
    let expected = [
        ("NAME", name),
        ("NAMESPACE", "default"),
        ("UID", pod.uid()),
        ("LABEL", "downward"),
        ("ANNOTATION", "harbour"),
        ("NODE", "n1"),
        // A file pod has none: nobody admits it.
        ("SERVICE_ACCOUNT", ""),
        ("HOST_IP", ADDRESS),
        ("HOST_IPS", ADDRESS),
        // Half a CPU is rounded up to one.
        ("CPU_LIMIT", "1"),
        ("CPU_LIMIT_MILLI", "500"),
        ("CPU_REQUEST_MILLI", "100"),
        ("MEMORY_LIMIT", "33554432"),
        ("MEMORY_LIMIT_MI", "32"),
        ("MEMORY_REQUEST_KI", "16384"),
        ("HOSTNAME", name),
    ];
    for (key, value) in expected {
        assert_eq!(env.get(key), Some(&value), "{key} in {env:#?}");
    }
    assert_eq!(env["GREETING"], format!("I am default/{name}, and $(this) stays as it is"));
    assert!(env["POD_IP"].starts_with("10.85."), "{env:#?}");
    assert_eq!(env["POD_IPS"].split(',').next(), Some(env["POD_IP"]));
}
