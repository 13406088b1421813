//! A release from its installation to its end, and what must stay in step with the chart.

use std::process::Command;

use berth_e2e::tools;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{chart, life, life_of, read, script, steps};

#[test]
fn helm_has_no_complaints() {
    let mut lint = script("helm");
    lint.arg("lint").arg(chart());
    assert_eq!(tools::run(lint).unwrap().ok().unwrap(), "no complaints\n");
}

/// The chart with one word changed in one file.
fn broken(file: &str, word: &str, by: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(chart()).arg(dir.path().join("berth"));
    tools::run(copy).unwrap().ok().unwrap();
    let path = dir.path().join("berth").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(word), "{file} has no {word:?}");
    std::fs::write(&path, text.replace(word, by)).unwrap();
    dir
}

/// What the tests here stand on finds mistakes.
#[test]
fn mistakes_in_a_chart_are_found() {
    let chart = broken("templates/daemonset.yaml", "hostPID: true", "hostPid: true");
    let steps = life_of(&chart.path().join("berth"), &json!({"steps": [["install"]]}));
    let error = steps[0].error().unwrap();
    assert!(
        error.contains("DaemonSet berth: spec.template.spec") && error.contains("'hostPid' was unexpected"),
        "{error}"
    );

    let chart = broken("templates/tests/node.yaml", "restartPolicy: Never", "restartPolice: Never");
    let steps = life_of(&chart.path().join("berth"), &json!({"steps": [["install"], ["test"]]}));
    let error = steps[1].error().unwrap();
    assert!(error.contains("'restartPolice' was unexpected"), "{error}");

    let chart = broken("Chart.yaml", "version: 0.1.0", "version: first");
    let mut lint = script("helm");
    lint.arg("lint").arg(chart.path().join("berth"));
    let ran = tools::run(lint).unwrap().code(1).unwrap();
    assert!(ran.stdout.contains("error: Chart.yaml"), "{ran}");
}

const OBJECTS: [&str; 6] = [
    "ClusterRoleBinding/berth:approve",
    "ClusterRoleBinding/berth:approve-renewal",
    "ClusterRoleBinding/berth:bootstrap",
    "ConfigMap/berth",
    "DaemonSet/berth",
    "ServiceAccount/berth",
];

#[test]
fn a_release_is_installed_tested_changed_cleaned_up_and_uninstalled() {
    let plan = json!([["install"], ["test"], ["upgrade", {"port": 12000}], ["upgrade", {"cleanup": true}], ["uninstall"]]);
    let steps = steps(&[], &plan);
    let [installed, tested, changed, cleaning, gone] = &steps[..] else { panic!("not five steps") };
    for step in &steps {
        step.ok();
    }
    let names = installed.names();
    for name in OBJECTS {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
    assert_eq!(names.len(), OBJECTS.len() + 2, "and two Secrets: {names:?}");
    assert!(installed.notes().contains("berth-<its name>"), "{}", installed.notes());
    assert_eq!(tested.object("Pod/berth-test")["spec"]["nodeSelector"], json!({"berth.dev/node": "true"}));

    // The token that the first installation made is kept.
    let token = |step: &super::Step| step.object("Secret/berth-bootstrap")["data"].clone();
    assert_eq!(token(changed), token(installed));
    assert_ne!(
        token(installed),
        token(&life(&json!({"steps": [["install"]]}))[0]),
        "two clusters have two tokens"
    );
    assert!(changed.config().contains("port: 12000\n"));
    let roll_out = |step: &super::Step| {
        step.object("DaemonSet/berth")["spec"]["template"]["metadata"]["annotations"]["checksum/files"]
            .clone()
    };
    assert_ne!(roll_out(changed), roll_out(installed));

    let pod = &cleaning.object("DaemonSet/berth")["spec"]["template"]["spec"];
    assert_eq!(
        pod["initContainers"][0]["command"],
        json!(["/bin/busybox", "sh", "/files/install.sh", "cleanup"])
    );
    assert_eq!(pod["containers"][0]["readinessProbe"], Value::Null, "there is no agent any more");
    assert!(cleaning.notes().contains("helm -n kube-system uninstall berth"), "{}", cleaning.notes());
    assert_eq!(gone.names(), ["Pod/berth-test"], "hooks are Helm's own business");
}

#[test]
fn the_token_is_one_that_kubernetes_takes() {
    let steps = steps(&[], &json!([["install"]]));
    let names = steps[0].ok().names();
    let name = names.iter().find_map(|n| n.strip_prefix("Secret/bootstrap-token-")).unwrap();
    let secret = steps[0].object(&format!("Secret/bootstrap-token-{name}"));
    let mounted = steps[0].object("Secret/berth-bootstrap");
    assert_eq!(secret["type"], "bootstrap.kubernetes.io/token");
    assert_eq!(secret["metadata"]["namespace"], "kube-system");
    for (key, length) in [("token-id", 6), ("token-secret", 16)] {
        // Four characters of base64 for three bytes.
        let word = secret["data"][key].as_str().unwrap();
        assert_eq!(word.trim_end_matches('=').len(), (length * 8_usize).div_ceil(6), "{key}: {word}");
        assert_eq!(mounted["data"][key], secret["data"][key]);
    }
    assert_eq!(
        secret["data"]["auth-extra-groups"], "c3lzdGVtOmJvb3RzdHJhcHBlcnM6YmVydGg=",
        "system:bootstrappers:berth"
    );
}

/// Nothing is given to nodes that Kubernetes does not give to kubelets while they join.
#[test]
fn what_is_bound_is_what_joining_takes() {
    let steps = steps(&[], &json!([["install"]]));
    let bound = |name: &str| {
        let binding = steps[0].object(&format!("ClusterRoleBinding/berth:{name}"));
        assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
        let word = |v: &Value| v.as_str().unwrap().to_owned();
        (word(&binding["subjects"][0]["name"]), word(&binding["roleRef"]["name"]))
    };
    let csr = |role: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{role}");
    assert_eq!(bound("bootstrap"), ("system:bootstrappers:berth".into(), "system:node-bootstrapper".into()));
    assert_eq!(bound("approve"), ("system:bootstrappers:berth".into(), csr("nodeclient")));
    assert_eq!(bound("approve-renewal"), ("system:nodes".into(), csr("selfnodeclient")));
    assert_eq!(steps[0].object("ServiceAccount/berth")["automountServiceAccountToken"], false);
}

#[test]
fn names_follow_the_release_and_its_namespace() {
    let plan = json!({"name": "edge", "namespace": "nodes", "steps": [["install"], ["upgrade", {"fullnameOverride": "shore"}]]});
    let steps = life(&plan);
    let first = steps[0].ok();
    assert_eq!(first.object("DaemonSet/edge-berth")["metadata"]["namespace"], "nodes");
    assert_eq!(first.object("Secret/edge-berth-bootstrap")["metadata"]["namespace"], "nodes");
    let token = first.names().into_iter().find(|n| n.starts_with("Secret/bootstrap-token-")).unwrap();
    assert_eq!(first.object(&token)["metadata"]["namespace"], "kube-system");
    let group = &first.object("ClusterRoleBinding/edge-berth:bootstrap")["subjects"][0]["name"];
    assert_eq!(group, "system:bootstrappers:edge-berth");
    assert!(steps[1].ok().names().contains(&"DaemonSet/shore".into()));
}

#[test]
fn the_manifests_without_helm_are_the_chart() {
    let rendered = tools::run(script("deploy-manifests")).unwrap().ok().unwrap();
    let kept = read("manifests/deploy/cluster.yaml");
    assert!(rendered == kept, "run scripts/deploy-manifests >manifests/deploy/cluster.yaml");
}

#[test]
fn the_readme_knows_every_value() {
    let schema: Value = serde_json::from_str(&read("charts/berth/values.schema.json")).unwrap();
    let readme = read("charts/berth/README.md");
    for (name, value) in schema["properties"].as_object().unwrap() {
        let inner = value["properties"].as_object().filter(|_| value["additionalProperties"] == false);
        let names: Vec<String> = match inner {
            Some(inner) if !["resources", "updateStrategy"].contains(&name.as_str()) => {
                inner.keys().map(|k| format!("`{name}.{k}`")).collect()
            }
            _ => vec![format!("`{name}`")],
        };
        for name in names.iter().filter(|n| *n != "`global`") {
            assert!(readme.contains(name.as_str()), "{name} is not in charts/berth/README.md");
        }
    }
}
