//! Other nodes at this one's API, played by kubectl.

use std::process::Stdio;
use std::time::Duration;

use berth_e2e::poll;
use berth_e2e::tools::{self, Ran};

use crate::kubectl::Kubectl;

const PATIENCE: Duration = Duration::from_secs(30);

/// A node that is ready, and a pod on it.
const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: other, labels: {disk: fast}}\nstatus:\n  \
                    addresses: [{type: InternalIP, address: 10.0.0.9}]\n  capacity: {cpu: 4, memory: 8Gi, pods: 110}\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec:\n  nodeName: other\n  \
                   containers: [{name: main, image: 'demo:1'}]\n";

impl Kubectl {
    fn apply(&self, name: &str, yaml: &str) -> Ran {
        let file = self.node.path(name);
        std::fs::write(&file, yaml).unwrap();
        self.run(&["create", "-f", file.to_str().unwrap()])
    }

    fn status(&self, what: &str, status: &str) -> String {
        let patch = format!("{{\"status\":{status}}}");
        self.ok(&["patch", what, "--subresource=status", "--type=strategic", "-p", &patch])
    }

    fn path(&self, what: &str, path: &str) -> String {
        self.ok(&["get", what, "-o", &format!("jsonpath={path}")])
    }

    /// kubectl as somebody else, who has only these flags.
    fn with(&self, flags: &[&str], words: &[&str]) -> Ran {
        let mut command = self.node.machine().command(tools::unpacked("kubectl").unwrap());
        command.env("HOME", self.node.path("")).env("KUBECONFIG", "/dev/null");
        command
            .args(["--server=https://127.0.0.1:6443", "--insecure-skip-tls-verify"])
            .args(flags)
            .args(words);
        tools::run(command).unwrap()
    }
}

#[test]
fn kubectl_plays_a_node() {
    let k = Kubectl::new();
    k.apply("node.yaml", NODE).ok().unwrap();
    assert!(k.ok(&["get", "nodes"]).contains("other   Unknown"));
    k.status("node/other", r#"{"conditions":[{"type":"Ready","status":"True","reason":"Up"}]}"#);
    assert!(k.ok(&["get", "nodes"]).contains("other   Ready"));
    k.apply("pod.yaml", POD).ok().unwrap();
    assert_eq!(k.path("pod/web", "{.status.phase} {.spec.serviceAccountName}"), "Pending default");
    k.status(
        "pod/web",
        r#"{"phase":"Running","podIP":"10.9.0.2","podIPs":[{"ip":"10.9.0.2"}],
        "conditions":[{"type":"Ready","status":"True"}],
        "containerStatuses":[{"name":"main","image":"demo:1","imageID":"","ready":true,"restartCount":0,
          "state":{"running":{"startedAt":"2026-01-01T00:00:00Z"}}}]}"#,
    );
    let wide = k.ok(&["get", "pods", "-o", "wide"]);
    assert!(wide.contains("1/1     Running") && wide.contains("10.9.0.2   other"), "{wide}");

    k.ok(&["label", "node", "other", "zone=a"]);
    k.ok(&["annotate", "node", "other", "note=x"]);
    k.ok(&["taint", "node", "other", "dedicated=db:NoSchedule"]);
    k.ok(&["cordon", "other"]);
    assert!(k.ok(&["get", "node", "other"]).contains("Ready,SchedulingDisabled"));
    let told = k.ok(&["describe", "node", "other"]);
    for part in
        ["zone=a", "dedicated=db:NoSchedule", "unschedulable:NoSchedule", "Unschedulable:      true", "web"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    k.ok(&["uncordon", "other"]);
    k.ok(&["taint", "node", "other", "dedicated-"]);
    assert_eq!(k.path("node/other", "{.spec}"), "{}");

    // Drained, the node ends the pod, which takes it away.
    let mut drain = k.command(&["drain", "other", "--force"]);
    let drain = drain.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    poll::until_true("the pod is asked to end", PATIENCE, || {
        !k.path("pod/web", "{.metadata.deletionTimestamp}").is_empty()
    })
    .unwrap();
    k.ok(&["delete", "pod", "web", "--grace-period=0", "--force"]);
    let drained = drain.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&drained.stdout).into_owned();
    assert!(drained.status.success() && text.contains("node/other drained"), "{text}");

    k.apply("again.yaml", POD).ok().unwrap();
    k.ok(&["delete", "node", "other"]);
    assert!(k.run(&["get", "pod", "web"]).code(1).unwrap().stderr.contains("NotFound"));
    let refused = k.run(&["delete", "node", "n1"]).code(1).unwrap();
    assert!(refused.stderr.contains("serves this API"), "{refused}");
}

#[test]
fn what_others_write_outlives_the_agent() {
    let mut k = Kubectl::new();
    k.apply("node.yaml", NODE).ok().unwrap();
    k.apply("pod.yaml", POD).ok().unwrap();
    k.ok(&["cordon", "n1"]);
    k.ok(&["label", "node", "n1", "disk=slow"]);
    let words = k.run(&["label", "node", "n1", "kubernetes.io/os-"]);
    words.ok().unwrap();
    let before = (k.path("pod/web", "{.metadata.uid}"), k.path("node/other", "{.metadata.uid}"));
    k.node.kill9_agent().unwrap();
    k.node.start_agent().unwrap();
    assert_eq!((k.path("pod/web", "{.metadata.uid}"), k.path("node/other", "{.metadata.uid}")), before);
    assert_eq!(k.path("node/n1", "{.spec.unschedulable} {.metadata.labels.disk}"), "true slow");
    assert_eq!(k.path("node/n1", "{.metadata.labels.kubernetes\\.io/os}"), "linux");
    k.ok(&["uncordon", "n1"]);

    // A token is known again, too.
    let token = format!("--token={}", k.ok(&["create", "token", "default"]).trim());
    assert!(
        k.with(&[&token], &["auth", "whoami"])
            .ok()
            .unwrap()
            .contains("system:serviceaccount:default:default")
    );
    k.node.kill9_agent().unwrap();
    k.node.start_agent().unwrap();
    let refused = k.with(&[&token], &["get", "pods"]).code(1).unwrap();
    let text = "User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API group \"\" in the namespace \
                \"default\"";
    assert!(refused.stderr.contains(text), "{refused}");
    assert!(k.with(&["--token=x"], &["get", "pods"]).code(1).unwrap().stderr.contains("Unauthorized"));
    assert!(
        k.ok(&["get", "cm", "kube-root-ca.crt", "-n", "kube-system", "-o", "yaml"])
            .contains("BEGIN CERTIFICATE")
    );
    // What each namespace is given does not keep it.
    k.ok(&["create", "namespace", "shop"]);
    poll::until_true("the namespace has its account", PATIENCE, || {
        k.run(&["get", "sa", "default", "-n", "shop"]).code == 0
    })
    .unwrap();
    k.ok(&["delete", "namespace", "shop"]);
    k.ok(&["delete", "sa,cm", "--all"]);
    assert!(k.ok(&["get", "sa,cm", "-o", "name"]).contains("configmap/kube-root-ca.crt"));
    // Nobody ends its pods but it.
    k.ok(&["delete", "node", "other"]);
}

#[test]
fn a_machine_with_a_bootstrap_token_becomes_a_node() {
    let k = Kubectl::new();
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: bootstrap-token-abcdef, namespace: kube-system}\n\
                  type: bootstrap.kubernetes.io/token\nstringData: {token-id: abcdef, token-secret: 0123456789abcdef, \
                  usage-bootstrap-authentication: 'true'}\n";
    k.apply("secret.yaml", secret).ok().unwrap();
    let joins = ["--token=abcdef.0123456789abcdef"];
    assert!(
        k.with(&["--token=abcdef.0123456789abcdee"], &["get", "csr"])
            .code(1)
            .unwrap()
            .stderr
            .contains("Unauthorized")
    );
    assert!(k.with(&joins, &["get", "nodes"]).code(1).unwrap().stderr.contains("Forbidden"));

    let dir = k.node.path("");
    let make = "openssl ecparam -name prime256v1 -genkey -noout -out n.key && \
         openssl req -new -key n.key -subj /O=system:nodes/CN=system:node:third -out n.csr && base64 -w0 n.csr";
    let request = k.node.machine().shell(&format!("cd {} && ({make}) 2>/dev/null", dir.display())).unwrap();
    let csr = |name: &str, signer: &str, usage: &str| {
        let yaml = format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  \
             request: {}\n  signerName: kubernetes.io/{signer}\n  usages: [digital signature, {usage}]\n",
            request.trim()
        );
        let file = k.node.path(&format!("{name}.yaml"));
        std::fs::write(&file, yaml).unwrap();
        file.to_str().unwrap().to_owned()
    };
    k.with(&joins, &["create", "-f", &csr("third", "kube-apiserver-client-kubelet", "client auth")])
        .ok()
        .unwrap();
    assert!(k.ok(&["get", "csr"]).contains("Approved,Issued"));
    // One for users is not given to whoever asks.
    k.with(&joins, &["create", "-f", &csr("user", "kube-apiserver-client", "client auth")]).ok().unwrap();
    assert_eq!(k.path("csr/user", "{.status}"), "");

    let certificate =
        k.ok(&["get", "csr", "third", "-o", "go-template={{.status.certificate | base64decode}}"]);
    std::fs::write(k.node.path("n.crt"), certificate).unwrap();
    let [crt, key] = ["n.crt", "n.key"].map(|name| k.node.path(name).to_str().unwrap().to_owned());
    let node = [format!("--client-certificate={crt}"), format!("--client-key={key}")];
    let node = [node[0].as_str(), node[1].as_str()];
    let create = |name: &str, yaml: &str| {
        let file = k.node.path(name);
        std::fs::write(&file, yaml).unwrap();
        k.with(&node, &["create", "-f", file.to_str().unwrap()])
    };
    let made = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let refused = create("other.yaml", &made("other")).code(1).unwrap();
    assert!(refused.stderr.contains("node \"third\" is not allowed to modify node \"other\""), "{refused}");
    create("third.yaml", &made("third")).ok().unwrap();
    k.apply("pod.yaml", &POD.replace("other", "third")).ok().unwrap();
    assert!(
        k.with(&node, &["get", "pods", "--field-selector=spec.nodeName=third"]).ok().unwrap().contains("web")
    );
    assert!(k.with(&node, &["get", "pods"]).code(1).unwrap().stderr.contains("spec.nodeName field selector"));
    let status = ["patch", "pod/web", "--subresource=status", "-p", r#"{"status":{"phase":"Failed"}}"#];
    k.with(&node, &status).ok().unwrap();
    assert!(k.with(&node, &["get", "secrets", "-A"]).code(1).unwrap().stderr.contains("Forbidden"));
    k.with(&node, &["get", "cm", "kube-root-ca.crt"]).ok().unwrap();
    let refused = k.with(&node, &["delete", "node", "n1"]).code(1).unwrap();
    assert!(refused.stderr.contains("Forbidden"), "{refused}");
    k.with(&node, &["delete", "pod", "web", "--grace-period=0", "--force"]).ok().unwrap();
}
