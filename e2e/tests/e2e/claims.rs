//! PersistentVolumeClaims: what pods find in them, who keeps them, and what becomes of the data.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{http, poll};

const SOON: Duration = Duration::from_secs(30);

fn claim(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{ name: {name} }}\nspec:\n  \
         accessModes: [ReadWriteOnce]\n  resources: {{ requests: {{ storage: 1Gi }} }}\n{more}"
    )
}

fn user(name: &str, claim: &str, shell: &str) -> String {
    Builder::new(name)
        .shell(shell)
        .with("volumeMounts: [{ name: v, mountPath: /v }]")
        .with_pod(&format!("volumes: [{{ name: v, persistentVolumeClaim: {{ claimName: {claim} }} }}]"))
        .yaml()
}

/// The phase of an object, `Terminating` while it is being deleted; none if it does not exist.
fn phase(node: &Node, path: &str) -> Option<String> {
    let object = http::get(&node.socket(), path).ok()?;
    if object["metadata"]["deletionTimestamp"].is_string() {
        return Some("Terminating".to_owned());
    }
    object["status"]["phase"].as_str().map(str::to_owned)
}

fn wait_phase(node: &Node, path: &str, wanted: Option<&str>) {
    poll::until(&format!("{path} is {wanted:?}"), SOON, || {
        let phase = phase(node, path);
        if phase.as_deref() == wanted { Ok(Some(())) } else { Err(format!("{phase:?}")) }
    })
    .unwrap();
}

const CLAIM: &str = "/api/v1/namespaces/default/persistentvolumeclaims/data";
const VOLUME: &str = "/api/v1/persistentvolumes/default.data";

#[test]
fn a_pod_waits_for_its_claim_and_its_data_outlives_pod_agent_and_claim() {
    let mut node = Node::start().unwrap();
    let shell = "echo line >> /v/file; wc -l < /v/file; exec sleep 1000000";
    node.apply("a.yaml", &user("a", "data", shell)).unwrap();
    node.wait_event("a", "persistentvolumeclaim \"data\" not found").unwrap();
    node.apply("data.yaml", &claim("data", "")).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(node.wait_log(&pod, "1").unwrap(), ["1"]);
    assert_eq!(std::fs::read_to_string(node.path("root/pv/default/data/file")).unwrap(), "line\n");

    let table = node.berth(&["get", "pvc,pv"]).unwrap().ok().unwrap();
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(
        words.iter().any(|w| w.first().is_some_and(|n| n.ends_with("data"))
            && w[1..6] == ["Bound", "default.data", "1Gi", "RWO", "local"]),
        "{table}"
    );
    assert!(words.iter().any(|w| w.contains(&"Retain") && w.contains(&"default/data")), "{table}");
    let text = node.berth(&["describe", "pvc", "data"]).unwrap().ok().unwrap();
    assert!(
        text.contains("Used By:") && text.contains("a-n1") && text.contains("ProvisioningSucceeded"),
        "{text}"
    );
    let text = node.berth(&["describe", "pv", "default.data"]).unwrap().ok().unwrap();
    assert!(text.contains("LocalVolume") && text.contains("default/data"), "{text}");

    // The claim's file goes, but the pod still has it, also after the agent was killed.
    node.remove("data.yaml").unwrap();
    wait_phase(&node, CLAIM, Some("Terminating"));
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    wait_phase(&node, CLAIM, Some("Terminating"));
    node.wait_running(&["a"]).unwrap();
    assert_eq!(node.exec("a", &["cat", "/v/file"]).unwrap().ok().unwrap(), "line\n");
    node.remove("a.yaml").unwrap();
    wait_phase(&node, CLAIM, None);
    wait_phase(&node, VOLUME, Some("Released"));

    // And comes back with its data.
    node.apply("data.yaml", &claim("data", "")).unwrap();
    node.apply("a.yaml", &user("a", "data", shell)).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(node.wait_log(&pod, "2").unwrap(), ["2"]);
}

#[test]
fn the_command_line_makes_claims_and_deletes_their_data_when_told_to() {
    let node = Node::start().unwrap();
    let text = claim("data", "")
        .replace("{ name: data }", "{ name: data, annotations: { berth.dev/reclaim-policy: Delete } }");
    let file = node.path("claim.yaml");
    std::fs::write(&file, &text).unwrap();
    let file = file.to_string_lossy().into_owned();
    let made = node.berth(&["apply", "-f", &file]).unwrap().ok().unwrap();
    assert_eq!(made, "persistentvolumeclaim/data created\n");
    assert_eq!(
        node.berth(&["apply", "-f", &file]).unwrap().ok().unwrap(),
        "persistentvolumeclaim/data unchanged\n"
    );
    node.apply("a.yaml", &user("a", "data", "touch /v/file; exec sleep 1000000")).unwrap();
    node.wait_running(&["a"]).unwrap();
    node.berth(&["delete", "pvc", "data", "--wait=false"]).unwrap().ok().unwrap();
    wait_phase(&node, CLAIM, Some("Terminating"));
    node.remove("a.yaml").unwrap();
    wait_phase(&node, CLAIM, None);
    wait_phase(&node, VOLUME, None);
    poll::until_true("the data is gone", SOON, || !berth_e2e::node::any_file(&node.path("root/pv"))).unwrap();
}

#[test]
fn volumes_that_somebody_brought_are_claimed_by_label_and_may_be_read_only() {
    let node = Node::start().unwrap();
    let disk = node.path("disk");
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(disk.join("file"), "brought").unwrap();
    let volume = format!(
        "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {{ name: disk, labels: {{ disk: ssd }} }}\nspec:\n  \
         accessModes: [ReadWriteOnce]\n  capacity: {{ storage: 5Gi }}\n  storageClassName: disks\n  local: {{ path: {} }}\n  \
         nodeAffinity: {{ required: {{ nodeSelectorTerms: [{{ matchExpressions: [{{ key: kubernetes.io/hostname, operator: In, values: [n1] }}] }}] }} }}\n",
        disk.display()
    );
    let wanted = claim("data", "  storageClassName: disks\n  selector: { matchLabels: { disk: ssd } }\n");
    let pod = user("a", "data", "cat /v/file; echo; touch /v/x || echo refused; exec sleep 1000000")
        .replace("claimName: data", "claimName: data, readOnly: true");
    node.apply("a.yaml", &format!("{wanted}{volume}---\n{pod}")).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let lines = node.wait_log(&pod, "refused").unwrap();
    assert!(lines.iter().any(|line| line == "brought"), "{lines:?}");
    wait_phase(&node, "/api/v1/persistentvolumes/disk", Some("Bound"));
}

#[test]
fn a_claim_for_one_pod_is_handed_on_and_fs_group_owns_what_is_in_it() {
    let node = Node::start().unwrap();
    node.apply("data.yaml", &claim("data", "").replace("ReadWriteOnce", "ReadWriteOncePod")).unwrap();
    let grouped = |name: &str, group: u32| {
        user(name, "data", "touch /v/$HOSTNAME; stat -c '%g %a' /v; exec sleep 1000000").replace(
            "  volumes:",
            &format!(
                "  securityContext: {{ runAsUser: 1000, runAsGroup: 1000, fsGroup: {group} }}\n  volumes:"
            ),
        )
    };
    node.apply("a.yaml", &grouped("a", 2000)).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(node.wait_log(&pod, "2000").unwrap(), ["2000 2777"]);
    node.apply("b.yaml", &grouped("b", 3000)).unwrap();
    node.wait_event("b", "has access mode ReadWriteOncePod and is in use by pod \"a-n1\"").unwrap();
    assert!(!node.pod("b").unwrap().is_running());
    node.remove("a.yaml").unwrap();
    let pod = node.wait_running(&["b"]).unwrap().remove("b").unwrap();
    assert_eq!(node.wait_log(&pod, "3000").unwrap(), ["3000 2777"]);
    assert_eq!(node.exec("b", &["stat", "-c", "%g", "/v/a-n1"]).unwrap().ok().unwrap(), "3000\n");
}

#[test]
fn an_ephemeral_volume_comes_and_goes_with_its_pod() {
    let node = Node::start().unwrap();
    let pod = user("a", "x", "touch /v/file; exec sleep 1000000").replace(
        "persistentVolumeClaim: { claimName: x }",
        "ephemeral: { volumeClaimTemplate: { spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 1Mi } } } } }",
    );
    node.apply("a.yaml", &pod).unwrap();
    node.wait_running(&["a"]).unwrap();
    wait_phase(&node, "/api/v1/namespaces/default/persistentvolumeclaims/a-n1-v", Some("Bound"));
    node.remove("a.yaml").unwrap();
    wait_phase(&node, "/api/v1/namespaces/default/persistentvolumeclaims/a-n1-v", None);
    wait_phase(&node, "/api/v1/persistentvolumes/default.a-n1-v", None);
    poll::until_true("the data is gone", SOON, || !berth_e2e::node::any_file(&node.path("root/pv"))).unwrap();
}
