//! What the chart makes and Berth's own API serves, and the commands of docs/deploy.md.

use berth_e2e::node::Node;
use berth_e2e::tools;
use serde_json::json;

use super::{installed, read};

/// A line of shell with the real kubectl, whose kubeconfig is the node's.
fn shell(node: &Node, line: &str) -> String {
    let kubectl = tools::unpacked("kubectl").unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = node.machine().command("sh");
    command.args(["-ec", line]).env("PATH", format!("{}:{path}", kubectl.parent().unwrap().display()));
    command.env("HOME", node.path("")).env("KUBECONFIG", node.path("kubeconfig"));
    tools::run(command).unwrap().ok().unwrap()
}

fn node() -> Node {
    let node = Node::with("apiAddress: 127.0.0.1:6443\n", &[]).unwrap();
    let kubeconfig = node.berth(&["kubeconfig"]).unwrap().ok().unwrap();
    std::fs::write(node.path("kubeconfig"), kubeconfig).unwrap();
    node
}

#[test]
fn berth_takes_the_charts_objects_that_it_serves() {
    let node = node();
    let step = installed(&json!({"bootstrap": {"token": "abcdef.0123456789abcdef"}}));
    let served = [
        "ConfigMap/berth",
        "Secret/bootstrap-token-abcdef",
        "Secret/berth-bootstrap",
        "ServiceAccount/berth",
    ];
    for name in served {
        let mut object = step.ok().object(name).clone();
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.retain(|key, _| ["name", "namespace", "labels"].contains(&key.as_str()));
        let file = node.path("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        let said = shell(&node, &format!("kubectl apply --validate=strict -f {}", file.display()));
        assert!(said.contains("created"), "{name}: {said}");
    }
    let id =
        "kubectl -n kube-system get secret bootstrap-token-abcdef -o jsonpath='{.type} {.data.token-id}'";
    assert_eq!(shell(&node, id), "bootstrap.kubernetes.io/token YWJjZGVm");
}

/// The commands that make the token, but for the DaemonSet, which a node does not serve.
#[test]
fn the_documented_token_is_the_one_that_is_mounted() {
    let node = node();
    let docs = read("docs/deploy.md");
    let block = docs.split("```sh\n").find(|b| b.contains("berth-bootstrap")).unwrap();
    let (block, rest) = block.split_once("```").unwrap();
    assert!(rest.contains("## A machine that only Berth makes a node"), "the block is that of cluster.yaml");
    let (token, apply) = block.split_once("kubectl apply").unwrap();
    assert_eq!(apply, " -f manifests/deploy/cluster.yaml\n");
    let get = "kubectl -n kube-system get secret bootstrap-token-$id -o jsonpath='{.type} {.data.token-secret} {.data.auth-extra-groups}'";
    let shown = shell(&node, &format!("{token}\n{get}"));
    let last = shown.lines().last().unwrap();
    let mounted =
        shell(&node, "kubectl -n kube-system get secret berth-bootstrap -o jsonpath='{.data.token-secret}'");
    let group = "c3lzdGVtOmJvb3RzdHJhcHBlcnM6YmVydGg=";
    assert_eq!(last, format!("bootstrap.kubernetes.io/token {mounted} {group}"));
    assert!(read("manifests/deploy/cluster.yaml").contains("secretName: berth-bootstrap\n"));
    node.finish().unwrap();
}
