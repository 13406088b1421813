//! Whether a node and its server say what Kubernetes 1.36 says: each request and each answer is held against the OpenAPI that
//! Kubernetes publishes, for a test of Berth by Berth proves little.

mod checker;
mod recorder;
mod seen;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_e2e::manifest::{Builder, IMAGE};
use berth_e2e::node::NAME;
use berth_e2e::{poll, tools};

use crate::cluster::{Cluster, bootstrap, bound};
use recorder::{Known, Recorder};

const SECONDS_30: Duration = Duration::from_secs(30);

/// A bootstrapped node behind the proxy, and the objects of `objects.yaml`.
fn recorded() -> (Cluster, Recorder) {
    let mut cluster =
        Cluster::prepare_with("bootstrap", "--bootstrap-kubeconfig", "serverTLSBootstrap: true\n");
    let recorder = Recorder::before_server(&cluster);
    bootstrap(&cluster);
    cluster.join();
    cluster.apply(include_str!("objects.yaml"));
    (cluster, recorder)
}

const KNOWN: &[Known] = &[
    (
        "discovery offers create of pods/pause",
        "Kubernetes cannot pause pods: a path of Berth's own beside its",
    ),
    ("discovery offers create of pods/resume", "as pods/pause"),
];

/// A pod with everything.
const POD: &str = include_str!("pod.yaml");

/// It runs, and is changed.
fn a_pod_lives(cluster: &Cluster, pod: &str) {
    cluster.apply(pod);
    let wait = |condition: &str| {
        cluster.kubectl(&["wait", "-n", "shop", &format!("--for={condition}"), "--timeout=30s", "pod/full"]);
    };
    wait("jsonpath={.status.containerStatuses[0].ready}=true");
    let restarted = || {
        let pod = cluster.get(&["pod", "full", "-n", "shop"]);
        pod["status"]["containerStatuses"][1]["restartCount"].as_u64().is_some_and(|count| count > 0)
    };
    poll::until_true("the container that ends runs again", SECONDS_30, restarted).unwrap();
    let shop = |words: &[&str]| cluster.kubectl(&[&["-n", "shop"], words].concat());
    shop(&["annotate", "pod", "full", "note=second", "--overwrite"]);
    shop(&["patch", "configmap", "settings", "--type=merge", "-p", r#"{"data": {"text": "two"}}"#]);
    let gate = r#"{"status": {"conditions": [{"type": "example.org/gate", "status": "True"}]}}"#;
    shop(&["patch", "pod", "full", "--subresource=status", "-p", gate]);
    let more = r#"{"spec": {"containers": [{"name": "main", "resources": {"limits": {"cpu": "2"}}}]}}"#;
    shop(&["patch", "pod", "full", "--subresource=resize", "-p", more]);
    wait("jsonpath={.status.containerStatuses[?(@.name==\"main\")].resources.limits.cpu}=2");
    let debug = ["debug", "full", "--image", IMAGE, "--image-pull-policy=Never", "-c", "extra"];
    shop(&[&debug[..], &["--", "sh", "-c", "exec sleep 1000"]].concat());
    wait("jsonpath={.status.ephemeralContainerStatuses[0].state.running.startedAt}");
}

/// Pods that end or cannot run, and one of a manifest.
fn other_pods(cluster: &Cluster) {
    cluster.apply(&bound(&Builder::new("once").shell("exit 1").restart("Never")));
    cluster.apply(&bound(&Builder::new("big").shell("true").with("resources: {requests: {cpu: 10k}}")));
    cluster.apply(&bound(&Builder::new("lost").shell("true").image("nowhere.invalid/x", "Always")));
    for pod in ["pod/once", "pod/big"] {
        cluster.kubectl(&["wait", "--for=jsonpath={.status.phase}=Failed", "--timeout=30s", pod]);
    }
    let waiting = "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=ImagePullBackOff";
    cluster.kubectl(&["wait", waiting, "--timeout=60s", "pod/lost"]);
    cluster.node.apply("own.yaml", &Builder::new("own").shell("exec sleep 1000").yaml()).unwrap();
    let mirror = format!("own-{NAME}");
    let there = || cluster.run(&["get", "pod", &mirror]).ok().is_ok();
    poll::until_true("the cluster has the mirror", SECONDS_30, there).unwrap();
}

/// The server forgets what watches began from, and a new agent finds its Node with a label less.
fn both_begin_anew(cluster: &mut Cluster) {
    cluster.kill_server();
    cluster.start_server();
    // The node waits longer and longer between its tries to follow the pods.
    cluster.apply(&bound(&Builder::new("late").shell("exec sleep 1000")));
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=120s", "pod/late"]);
    cluster.kubectl(&["label", "node", NAME, "kubernetes.io/arch-"]);
    cluster.node.stop_agent().unwrap();
    cluster.node.start_agent().unwrap();
    let labelled = || cluster.get(&["node", NAME])["metadata"]["labels"]["kubernetes.io/arch"].is_string();
    poll::until_true("the node has its label again", SECONDS_30, labelled).unwrap();
}

/// The node is emptied, leaves, and comes again.
fn the_node_is_drained(cluster: &Cluster) {
    cluster.kubectl(&["cordon", NAME]);
    cluster.kubectl(&["taint", "node", NAME, "slow=yes:NoSchedule"]);
    cluster.node.remove("own.yaml").unwrap();
    cluster.kubectl(&["drain", NAME, "--force", "--delete-emptydir-data", "--timeout=60s"]);
    cluster.node.wait_gone("full").unwrap();
    cluster.kubectl(&["delete", "node", NAME]);
    let back = || cluster.run(&["get", "node", NAME]).ok().is_ok();
    poll::until_true("the node registers again", SECONDS_30, back).unwrap();
}

#[test]
fn a_node_says_what_kubernetes_publishes() {
    let (mut cluster, recorder) = recorded();
    a_pod_lives(&cluster, POD);
    other_pods(&cluster);
    // Of whoever calls the node's own API it asks the server.
    let token = cluster.kubectl(&["create", "token", "clerk", "-n", "shop"]);
    let mut command = cluster.node.machine().outside("curl");
    command.args(["-sk", "-H", &format!("Authorization: Bearer {}", token.trim())]);
    command.arg("https://192.0.2.1:10250/pods");
    tools::run(command).unwrap().ok().unwrap();
    both_begin_anew(&mut cluster);
    the_node_is_drained(&cluster);
    let findings = recorder.findings();
    findings.assert_good(KNOWN);
    findings.assert_seen(seen::NODE);
}

/// What is said of pods that the server runs itself.
#[test]
fn a_server_with_pods_says_what_kubernetes_publishes() {
    let mut cluster = Cluster::prepare("kubeconfig", "--kubeconfig");
    cluster.kill_server();
    cluster.server_config = "networkPolicy: true\n";
    cluster.start_server();
    let recorder = Recorder::before_server(&cluster);
    let mut import = cluster.node.machine().outside(tools::berth());
    import.args(["image", "import", "--root"]).arg(cluster.path("root"));
    tools::run(command_with(import, &[tools::demo_rootfs().unwrap().to_str().unwrap(), IMAGE]))
        .unwrap()
        .ok()
        .unwrap();
    cluster.apply(include_str!("objects.yaml"));
    // What only pods of clusters have.
    let others = ["nodeName:", "runtimeClassName:", "serviceAccountToken:"];
    let pod: String = POD
        .lines()
        .filter(|line| !others.iter().any(|word| line.contains(word)))
        .map(|line| format!("{line}\n"))
        .collect();
    a_pod_lives(&cluster, &pod);
    let front = "--for=jsonpath={.endpoints[0].addresses[0]}";
    cluster.kubectl(&[
        "wait",
        "endpointslices",
        "-n",
        "shop",
        "-l",
        "kubernetes.io/service-name=front",
        front,
        "--timeout=30s",
    ]);
    let own = Builder::new("own").shell("exec sleep 1000").yaml();
    std::fs::write(cluster.path("manifests/own.yaml"), own).unwrap();
    let there =
        || cluster.run(&["wait", "--for=condition=Ready", "--timeout=5s", "pod/own-server"]).ok().is_ok();
    poll::until_true("the pod of the manifest runs", SECONDS_30, there).unwrap();
    cluster.apply(POLICY);
    older_streams(&cluster);
    for words in OWN_PODS {
        cluster.kubectl(&words.split(' ').collect::<Vec<_>>());
    }
    let findings = recorder.findings();
    findings.assert_good(KNOWN);
    findings.assert_seen(seen::OWN_PODS);
}

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: quiet, namespace: shop}\nspec:\n  \
    podSelector: {matchLabels: {app: front}}\n  ingress: [{from: [{podSelector: {}}], ports: [{port: 80}, {port: http}]}]\n";

/// SPDY begins with POST, unlike WebSockets.
fn older_streams(cluster: &Cluster) {
    let mut exec = cluster.command(&["exec", "-n", "shop", "full", "-c", "main", "--", "true"]);
    exec.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
    tools::run(exec).unwrap().ok().unwrap();
    for websockets in ["true", "false"] {
        let mut forward = cluster.command(&["port-forward", "-n", "shop", "pod/full", ":80"]);
        forward.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
        let mut child = forward.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(line.contains("-> 80"), "{line}");
    }
}

fn command_with(mut command: Command, words: &[&str]) -> Command {
    command.args(words);
    command
}

/// What kubectl does to a server that runs the pod `full`.
const OWN_PODS: &[&str] = &[
    "get all,endpoints,endpointslices,events,pv,pvc,networkpolicies -A -o yaml",
    "get all,endpoints,endpointslices,events,pv,pvc,networkpolicies -A",
    "describe networkpolicy quiet -n shop",
    "describe pod full -n shop",
    "describe node server",
    "describe service front -n shop",
    "top node",
    "top pods -A --containers",
    "logs full -n shop -c main --since=1h",
    "exec full -n shop -c main -- true",
    "patch pod full -n shop --type=json -p [{\"op\":\"add\",\"path\":\"/metadata/labels/a\",\"value\":\"b\"}]",
    "patch service front -n shop -p {\"spec\":{\"ports\":[{\"port\":53,\"protocol\":\"UDP\",\"targetPort\":5353}]}}",
    "run once -n shop --image=docker.io/library/demo:latest --image-pull-policy=Never --restart=Never -i --rm -- cat",
    "taint node server slow=yes:NoSchedule",
    "drain server --force --delete-emptydir-data --timeout=60s",
    "uncordon server",
    "delete service front -n shop",
    "delete networkpolicy quiet -n shop",
];

#[test]
fn a_nodes_own_api_says_what_a_kubelet_says() {
    let (cluster, _recorder) = recorded();
    a_pod_lives(&cluster, POD);
    cluster.node.apply("own.yaml", &Builder::new("own").shell("exec sleep 1000").yaml()).unwrap();
    cluster.node.wait_running(&["own"]).unwrap();
    let (certificate, key) = cluster.admin();
    let recorder = Recorder::before_node(&cluster);
    let ask = |path: &str| {
        let mut command = cluster.node.machine().outside("curl");
        command.args(["-sk", "--max-time", "30", "--fail-with-body", "-A", "api-server/1", "--cert"]);
        command.arg(&certificate).arg("--key").arg(&key).arg(format!("{}{path}", recorder.url()));
        tools::run(command).unwrap()
    };
    // Until the node has the certificate of its own API nobody believes it.
    let healthy = || ask("/healthz").ok().is_ok_and(|text| text == "ok");
    poll::until_true("the node's own API answers", SECONDS_30, healthy).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&ask("/stats/summary").ok().unwrap()).unwrap();
    assert!(summary["pods"].as_array().is_some_and(|pods| pods.len() >= 2), "{summary}");
    for path in [
        "/pods",
        "/configz",
        "/metrics",
        "/metrics/cadvisor",
        "/metrics/resource",
        "/containerLogs/shop/full/main?tailLines=1&timestamps=true",
    ] {
        ask(path).ok().unwrap();
    }
    assert_ne!(ask("/containerLogs/shop/full/none").code, 0);
    cluster.kubectl(&["delete", "pod", "full", "-n", "shop", "--timeout=30s"]);
    cluster.node.wait_gone("full").unwrap();
    let findings = recorder.findings();
    findings.assert_good(&[]);
    findings.assert_seen(seen::OWN_API);
}

/// What kubectl does once to a cluster with the objects of `objects.yaml` and the pods `full` and `web`.
const KUBECTL: &[&str] = &[
    "version",
    "api-versions",
    "get --raw /readyz?verbose",
    "auth whoami",
    "auth can-i create pods",
    "get pods -A -l app=web -o wide",
    "get pods --field-selector=status.phase=Running --sort-by=.metadata.name",
    "create configmap typed --from-literal=a=1",
    "create secret generic typed --from-literal=a=1",
    "create namespace other",
    "create serviceaccount typed",
    "create service clusterip typed --tcp=80",
    "create priorityclass typed --value=5",
    "create token default --duration=1h",
    "label pod web tier=front",
    "annotate pod web note=a",
    "expose pod web --port=80 --name=exposed",
    "set image pod/web main=docker.io/library/demo:latest",
    "events --for pod/web",
    "logs web --tail=1 --timestamps",
    "logs -l app=web --prefix",
    "exec web -- true",
    "cp web:/etc/passwd /dev/null",
    "top node",
    "certificate approve typed",
    "certificate deny other",
    "delete configmap typed --dry-run=server",
    "delete service exposed --dry-run=server",
    "delete configmap typed --cascade=foreground",
    "delete secret typed --now",
    "delete service exposed typed",
    "delete priorityclass typed",
    "delete serviceaccount typed",
    "delete namespace other",
    "delete lease turn -n shop",
    "delete csr typed other",
    "delete pod web --grace-period=1",
    "delete pod full -n shop",
    "delete pvc space -n shop",
    "delete pv disk",
    "delete events --all -n default",
];

/// What a server refuses, for all sorts of reasons.
const REFUSED: &[&str] = &[
    "get pod none",
    "create namespace default",
    "run Bad_ --image=x",
    "run web --image=x",
    "label pod web a=b --resource-version=1",
    "delete node server",
    "logs web -c none",
    "create token none",
    "exec full -n none -- true",
    "delete namespace kube-system",
];

/// Requests for certificates, under these names.
fn certificate_requests(cluster: &Cluster, names: &[&str]) {
    let dir = cluster.path("");
    let make = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=bob -keyout bob.key -out bob.csr";
    let line = format!("cd {} && {make} 2>/dev/null && base64 -w0 bob.csr", dir.display());
    let request = cluster.node.machine().shell(&line).unwrap();
    let yaml = |name: &&str| {
        format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  \
             request: {request}\n  signerName: kubernetes.io/kube-apiserver-client\n  usages: [client auth]\n---\n"
        )
    };
    cluster.apply(&names.iter().map(yaml).collect::<String>());
}

#[test]
fn a_server_says_to_kubectl_what_kubernetes_publishes() {
    let (cluster, recorder) = recorded();
    certificate_requests(&cluster, &["typed", "other"]);
    let pod = cluster.path("pod.yaml");
    std::fs::write(&pod, POD).unwrap();
    let pod = pod.to_str().unwrap();
    cluster.kubectl(&["apply", "-f", pod]);
    let web = Builder::new("web").labels("{app: web}").shell("echo hello; sleep 5; exec sleep 1000");
    cluster.ready("web", &web);
    // Until the node has the certificate of its own API the server does not believe it.
    let logs = || cluster.run(&["logs", "web"]).ok().is_ok_and(|log| log == "hello\n");
    poll::until_true("the server gets the log", SECONDS_30, logs).unwrap();

    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
    for kind in kinds.lines() {
        cluster.kubectl(&["get", kind, "-A"]);
        cluster.kubectl(&["get", kind, "-A", "-o", "yaml", "--chunk-size=1"]);
        if !kind.ends_with("metrics.k8s.io") {
            cluster.kubectl(&["describe", kind, "-A"]);
        }
    }
    cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", pod]);
    cluster.kubectl(&["diff", "-f", pod]);
    // A version that is gone, a watch as a table, and one from a version on.
    cluster.kubectl(&["get", "--raw", "/api/v1/pods?watch=true&resourceVersion=1&timeoutSeconds=1"]);
    cluster.kubectl(&["get", "pods", "-A", "--watch-only", "--request-timeout=1s"]);
    // What there is as the beginning of a watch.
    for kind in ["pods", "nodes", "secrets"] {
        let stream =
            "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let said = cluster.kubectl(&["get", "--raw", &format!("/api/v1/{kind}?{stream}&timeoutSeconds=1")]);
        assert!(said.contains("k8s.io/initial-events-end"), "{said}");
    }
    let bootstrap = format!("--kubeconfig={}", cluster.path("bootstrap").display());
    let stranger = [format!("{bootstrap} get pods"), format!("{bootstrap} --token=nobodys get pods")];
    for words in REFUSED.iter().copied().chain(stranger.iter().map(String::as_str)) {
        let ran = cluster.run(&words.split(' ').collect::<Vec<_>>());
        assert_ne!(ran.code, 0, "{ran}");
    }
    for words in KUBECTL {
        cluster.kubectl(&words.split(' ').collect::<Vec<_>>());
    }
    cluster.node.wait_gone("full").unwrap();
    let findings = recorder.findings();
    findings.assert_good(KNOWN);
    findings.assert_seen(seen::KUBECTL);
}
