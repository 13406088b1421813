//! A node of a cluster, whose API server is another Berth on the other end of the machine's link.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_e2e::leftovers;
use berth_e2e::machine::OUTSIDE;
use berth_e2e::manifest::Builder;
use berth_e2e::node::{NAME, Node};
use berth_e2e::pods::PodExt as _;
use berth_e2e::poll;
use berth_e2e::tools::{self, Ran};
use serde_json::Value;
use tempfile::TempDir;

mod shortage;

const SECONDS_30: Duration = Duration::from_secs(30);

/// A node whose pods come from a server, the server, and kubectl for it.
pub(super) struct Cluster {
    pub(super) node: Node,
    dir: TempDir,
    server: Option<Child>,
    /// More of the server's configuration, for its next start.
    pub(super) server_config: &'static str,
}

impl Cluster {
    /// A server, and a node that has joined it with the rights of an administrator.
    pub(super) fn new() -> Self {
        let mut cluster = Self::prepare("kubeconfig", "--kubeconfig");
        cluster.join();
        cluster
    }

    /// A server, and a node that is to join it with a kubeconfig of this name in the server's folder.
    pub(super) fn prepare(kubeconfig: &str, flag: &str) -> Self {
        Self::prepare_with(kubeconfig, flag, "")
    }

    /// The same with more in the node's configuration.
    pub(super) fn prepare_with(kubeconfig: &str, flag: &str, more: &str) -> Self {
        Self::prepare_flags(&[(flag, kubeconfig)], more)
    }

    /// The same with several flags that name files in the server's folder.
    fn prepare_flags(flags: &[(&str, &str)], more: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("berth-e2e-server-").tempdir_in("/var/tmp").unwrap();
        let words =
            flags.iter().flat_map(|(flag, file)| [flag.to_string(), path_text(&dir.path().join(file))]);
        let words: Vec<String> = words.collect();
        let config =
            "crashLoopBackOff:\n  maxContainerRestartPeriod: 1s\nevictionHard: {memory.available: 1Mi}\n";
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let node = Node::prepare(&format!("{config}{more}"), &words).unwrap();
        let mut cluster = Self { node, dir, server: None, server_config: "" };
        cluster.start_server();
        let made = tools::run(cluster.server_command(&["kubeconfig"])).unwrap().ok().unwrap();
        std::fs::write(cluster.path("kubeconfig"), made).unwrap();
        cluster
    }

    pub(super) fn join(&mut self) {
        self.node.start_agent().unwrap();
        let there = poll::until_true("the node is registered", SECONDS_30, || {
            self.run(&["get", "node", NAME]).ok().is_ok()
        });
        there.unwrap_or_else(|error| panic!("{error}\n{}", self.server_log()));
        self.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", &format!("node/{NAME}")]);
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A berth that talks to the server as its owner.
    fn server_command(&self, words: &[&str]) -> Command {
        let mut command = self.node.machine().outside(tools::berth());
        command.arg("--socket").arg(self.path("berth.sock")).args(words);
        command
    }

    pub(super) fn start_server(&mut self) {
        let address = format!("{OUTSIDE}:6443");
        let flags = ["--node-name", "server", "--bridge", "brserver0", "--nft-table", "berth_server"];
        let more = ["--pod-cidr", "10.99.0.0/16", "--api-address", &address];
        self.server = Some(self.start_outside("", self.server_config, &[&flags[..], &more].concat()));
    }

    /// Starts an agent on the other end of the link, with its folders in one of the server's folder, and waits for it.
    fn start_outside(&self, folder: &str, config: &str, flags: &[&str]) -> Child {
        let dir = self.path(folder);
        std::fs::create_dir_all(dir.join("manifests")).unwrap();
        let config = format!("evictionHard: {{memory.available: 1Mi}}\nlocalDNS: false\n{config}");
        std::fs::write(dir.join("config.yaml"), config).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command = self.node.machine().outside("sh");
        // Its PID on its own machine is what ends it.
        command.args(["-c", "echo $$ > $0/pid; exec \"$@\""]).arg(&dir).arg(tools::berth()).arg("agent");
        for (flag, name) in [
            ("--config", "config.yaml"),
            ("--manifests", "manifests"),
            ("--root", "root"),
            ("--run", "run"),
            ("--log-dir", "logs"),
            ("--socket", "berth.sock"),
        ] {
            command.arg(flag).arg(dir.join(name));
        }
        command.args([
            "--cgroup-parent",
            &self.cgroup(folder),
            "--node-ip",
            OUTSIDE,
            "--read-only-address",
            "none",
        ]);
        command.args(flags).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let ready = poll::until_true("the agent outside answers", SECONDS_30, || {
            let mut command = self.node.machine().outside(tools::berth());
            command.arg("--socket").arg(dir.join("berth.sock")).args(["get", "nodes"]);
            tools::run(command).is_ok_and(|ran| ran.ok().is_ok())
        });
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        ready.unwrap_or_else(|error| panic!("{error}\n{}", log()));
        child
    }

    /// Ends an agent outside by its folder.
    fn end_outside(&self, signal: &str, folder: &str, mut child: Child) {
        let mut command = self.node.machine().outside("sh");
        command.args(["-c", "kill -$1 $(cat $0/pid)"]).arg(self.path(folder)).arg(signal);
        let _ = tools::run(command);
        let _ = child.wait();
    }

    fn server_log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The cgroups of an agent outside, by its folder.
    fn cgroup(&self, folder: &str) -> String {
        format!("{}-server{folder}", self.node.cgroup_parent())
    }

    /// `kill -9` of the server.
    pub(super) fn kill_server(&mut self) {
        let Some(child) = self.server.take() else { return };
        self.end_outside("KILL", "", child);
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.node.machine().outside(tools::unpacked("kubectl").unwrap());
        command.env("HOME", self.dir.path()).env("KUBECONFIG", self.path("kubeconfig")).args(words);
        command
    }

    pub(super) fn run(&self, words: &[&str]) -> Ran {
        tools::run(self.command(words)).unwrap()
    }

    pub(super) fn kubectl(&self, words: &[&str]) -> String {
        match self.run(words).ok() {
            Ok(text) => text,
            Err(error) => panic!("{words:?}: {error}\nthe server's log:\n{}", self.server_log()),
        }
    }

    pub(super) fn apply(&self, yaml: &str) {
        let file = self.path("applied.yaml");
        std::fs::write(&file, yaml).unwrap();
        self.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    }

    /// The administrator's certificate and key, in files.
    pub(super) fn admin(&self) -> (PathBuf, PathBuf) {
        let save = |name: &str, field: &str| {
            let template =
                format!("--template={{{{index (index .users 0).user \"{field}\" | base64decode}}}}");
            let text = self.kubectl(&["config", "view", "--raw", "-o", "go-template", &template]);
            std::fs::write(self.path(name), text).unwrap();
            self.path(name)
        };
        (save("admin.crt", "client-certificate-data"), save("admin.key", "client-key-data"))
    }

    /// A pod for the node, ready there.
    pub(super) fn ready(&self, name: &str, builder: &Builder) {
        self.apply(&bound(builder));
        self.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", &format!("pod/{name}")]);
    }

    pub(super) fn get(&self, what: &[&str]) -> Value {
        let words = [&["get", "-o", "json"], what].concat();
        serde_json::from_str(&self.kubectl(&words)).unwrap()
    }

    pub(super) fn delete(&self, pods: &[&str]) {
        for pod in pods {
            self.kubectl(&["delete", "pod", pod, "--timeout=30s"]);
            self.node.wait_gone(pod).unwrap();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_server();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.server_log());
        }
        for folder in ["", "second"] {
            leftovers::remove_cgroups(&self.cgroup(folder));
        }
    }
}

fn path_text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The pod's manifest, bound to the node.
pub(super) fn bound(builder: &Builder) -> String {
    builder.clone().with_pod(&format!("nodeName: {NAME}")).yaml()
}

fn config_map(text: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{text: {text}}}\n")
}

/// Waits until a file of a container says something.
fn wait_file(node: &Node, pod: &str, path: &str, text: &str) {
    wait_output(node, &["exec", pod, "--", "cat", path], text);
}

fn wait_output(node: &Node, words: &[&str], text: &str) {
    let seen = poll::until(&format!("{words:?} says {text:?}"), SECONDS_30, || {
        let ran = node.berth(words).map_err(|error| error.to_string())?;
        if ran.stdout == text { Ok(Some(())) } else { Err(format!("{ran:?}")) }
    });
    seen.unwrap();
}

#[test]
fn pods_of_a_cluster_run_here_and_the_cluster_sees_how_they_are() {
    let cluster = Cluster::new();
    let node = cluster.get(&["node", NAME]);
    assert_eq!(node["status"]["nodeInfo"]["operatingSystem"], "linux");
    assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    let lease = cluster.get(&["lease", NAME, "-n", "kube-node-lease"]);
    assert_eq!(lease["spec"]["holderIdentity"], NAME);
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);

    cluster.apply(&config_map("one"));
    let builder = Builder::new("web")
        .shell("echo up; exec sleep 1000")
        .with("volumeMounts: [{name: settings, mountPath: /settings}, {name: about, mountPath: /about}]")
        .with_pod(
            "volumes: [{name: settings, configMap: {name: settings}}, {name: about, downwardAPI: {items: \
            [{path: tier, fieldRef: {fieldPath: \"metadata.annotations['tier']\"}}]}}]",
        );
    cluster.ready("web", &builder);
    let pod = cluster.get(&["pod", "web"]);
    let here = cluster.node.pod("web").unwrap();
    assert_eq!(pod["status"]["podIP"].as_str(), here.status.as_ref().unwrap().pod_ip.as_deref());
    assert_eq!(pod["metadata"]["uid"].as_str(), here.metadata.uid.as_deref());
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!((&status["ready"], &status["restartCount"]), (&true.into(), &0.into()));
    wait_file(&cluster.node, "web", "/settings/text", "one");
    // As a kubelet that has not been told otherwise.
    wait_output(&cluster.node, &["exec", "web", "--", "grep", "Seccomp:", "/proc/1/status"], "Seccomp:\t0\n");

    // A change of the cluster's object comes through.
    cluster.apply(&config_map("two"));
    wait_file(&cluster.node, "web", "/settings/text", "two");
    // So does one of the pod's own annotations.
    cluster.kubectl(&["annotate", "pod", "web", "tier=front"]);
    wait_file(&cluster.node, "web", "/about/tier", "front");

    // What comes from the cluster is changed there.
    let refused = cluster.node.berth(&["delete", "pod", "web"]).unwrap();
    assert!(refused.stderr.contains("it comes from the cluster"), "{}", refused.stderr);

    cluster.delete(&["web"]);
    let events = cluster.kubectl(&["get", "events", "-o", "custom-columns=:.reason,:.involvedObject.name"]);
    for reason in ["Started", "Killing"] {
        assert!(events.lines().any(|line| line.starts_with(reason) && line.ends_with("web")), "{events}");
    }
}

#[test]
fn a_pod_that_the_node_cannot_run_fails_with_the_reason() {
    let cluster = Cluster::new();
    let big = Builder::new("big").shell("sleep 1000").with("resources: {requests: {cpu: 10k}}");
    cluster.apply(&bound(&big));
    let odd =
        Builder::new("odd").shell("sleep 1000").with_pod("volumes: [{name: v, nfs: {server: a, path: /}}]");
    cluster.apply(&bound(&odd));
    for (pod, reason, text) in
        [("big", "OutOfcpu", "requested: 10000000"), ("odd", "UnsupportedPodSpec", "spec.volumes[0].nfs")]
    {
        cluster.kubectl(&[
            "wait",
            "--for=jsonpath={.status.phase}=Failed",
            "--timeout=30s",
            &format!("pod/{pod}"),
        ]);
        let status = &cluster.get(&["pod", pod])["status"];
        assert_eq!(status["reason"], reason);
        assert!(status["message"].as_str().unwrap().contains(text), "{status}");
    }
    assert!(cluster.node.pods().unwrap().is_empty());
    // Nothing of them is here, so nothing holds their end up.
    cluster.kubectl(&["delete", "pod", "big", "odd", "--timeout=30s"]);
}

#[test]
fn pods_go_on_while_the_server_is_away() {
    let mut cluster = Cluster::new();
    cluster.apply(&config_map("kept"));
    let from_map = "env: [{name: TEXT, valueFrom: {configMapKeyRef: {name: settings, key: text}}}]";
    let builder = Builder::new("web").shell("echo $TEXT; exec sleep 1000").with(from_map);
    cluster.ready("web", &builder);
    let pod = cluster.node.pod("web").unwrap();
    let uid = pod.metadata.uid.clone().unwrap();
    let first = cluster.node.pids(&uid).unwrap();
    cluster.kill_server();

    // A new agent knows its pods without the server.
    cluster.node.kill9_agent().unwrap();
    cluster.node.start_agent().unwrap();
    cluster.node.wait_running(&["web"]).unwrap();
    assert_eq!(cluster.node.pids(&uid).unwrap(), first, "the same processes");

    // An end is dealt with here, and what the new container needs is known too.
    let main = cluster.node.on_machine(&uid).unwrap()[0].pid;
    cluster.node.machine().kill("KILL", &[main]).unwrap();
    let restarted = |pods: &berth_e2e::pods::Pods| {
        let status = pods
            .get("web")
            .and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref()?.first().cloned());
        status.is_some_and(|status| status.restart_count == 1 && status.ready)
    };
    cluster.node.wait("the container runs again", SECONDS_30, restarted).unwrap();
    let said = poll::until("the new container has its variable", SECONDS_30, || {
        let log = cluster.node.log(&pod, "main", 1).map_err(|error| error.to_string())?;
        Ok(log.into_iter().next())
    });
    let said = said.unwrap();
    assert!(said.ends_with("kept"), "{said}");

    // The server is told when it is back, and nothing begins anew.
    cluster.start_server();
    cluster.kubectl(&[
        "wait",
        "--for=jsonpath={.status.containerStatuses[0].restartCount}=1",
        "--timeout=120s",
        "pod/web",
    ]);
    assert_eq!(cluster.node.pod("web").unwrap().metadata.uid, Some(uid));
    cluster.delete(&["web"]);
}

#[test]
fn the_cluster_sees_pods_of_manifests_as_mirrors() {
    let cluster = Cluster::new();
    cluster.node.apply("own.yaml", &Builder::new("own").shell("sleep 1000").yaml()).unwrap();
    let name = format!("own-{NAME}");
    cluster.node.wait_running(&["own"]).unwrap();
    let pod = format!("pod/{name}");
    let shown = || {
        let seen = poll::until_true("the cluster has the mirror", SECONDS_30, || {
            cluster.run(&["get", &pod]).ok().is_ok()
        });
        seen.unwrap();
        cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", &pod]);
        cluster.get(&[&pod])
    };
    let mirror = shown();
    let annotations = &mirror["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.mirror"], annotations["kubernetes.io/config.hash"]);
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["kind"], "Node");

    // Who deletes it deletes the picture, not the pod.
    let uid = cluster.node.pod("own").unwrap().metadata.uid.unwrap();
    let pids = cluster.node.pids(&uid).unwrap();
    cluster.kubectl(&["delete", &pod, "--grace-period=0", "--force"]);
    let again = shown();
    assert_ne!(again["metadata"]["uid"], mirror["metadata"]["uid"]);
    assert_eq!(cluster.node.pids(&uid).unwrap(), pids);

    cluster.node.remove("own.yaml").unwrap();
    let gone = poll::until_true("the mirror goes with its pod", SECONDS_30, || {
        cluster.run(&["get", &pod]).stderr.contains("not found")
    });
    gone.unwrap();
}

#[test]
fn a_runtime_class_says_which_runtime_a_pod_gets() {
    let cluster = Cluster::new();
    cluster.apply(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: plain}\nhandler: berth\n---\n\
        apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: other}\nhandler: kata\n",
    );
    let seen = poll::until_true("the node runs pods of the class", SECONDS_30, || {
        cluster.kubectl(&["delete", "pod", "one", "--ignore-not-found", "--timeout=30s"]);
        cluster
            .apply(&bound(&Builder::new("one").shell("exec sleep 1000").with_pod("runtimeClassName: plain")));
        cluster.run(&["wait", "--for=condition=Ready", "--timeout=5s", "pod/one"]).ok().is_ok()
    });
    seen.unwrap();
    cluster.apply(&bound(&Builder::new("two").shell("exec sleep 1000").with_pod("runtimeClassName: other")));
    cluster.kubectl(&["wait", "--for=jsonpath={.status.phase}=Failed", "--timeout=30s", "pod/two"]);
    let status = &cluster.get(&["pod", "two"])["status"];
    assert!(status["message"].as_str().unwrap().contains("spec.runtimeClassName"), "{status}");
    cluster.kubectl(&["delete", "pod", "two", "--timeout=30s"]);
    cluster.delete(&["one"]);
}

/// A second node, beside the server; it leaves with what was its own.
#[test]
fn nodes_of_one_server_have_their_own_pods() {
    let cluster = Cluster::new();
    let kubeconfig = cluster.path("kubeconfig");
    let flags =
        ["--node-name", "n2", "--bridge", "brsecond0", "--nft-table", "berth_second", "--cleanup-on-exit"];
    let more = ["--pod-cidr", "10.98.0.0/16", "--kubeconfig", kubeconfig.to_str().unwrap()];
    let second = cluster.start_outside("second", "port: 10251\n", &[&flags[..], &more].concat());
    let import = tools::demo_rootfs().unwrap();
    let mut command = cluster.node.machine().outside(tools::berth());
    command.args(["image", "import", "--root"]).arg(cluster.path("second/root"));
    command.arg(import).arg(berth_e2e::manifest::IMAGE);
    tools::run(command).unwrap().ok().unwrap();
    let there = poll::until_true("the second node is registered", SECONDS_30, || {
        cluster.run(&["wait", "--for=condition=Ready", "--timeout=5s", "node/n2"]).ok().is_ok()
    });
    there.unwrap();

    cluster.apply(&bound(&Builder::new("first").shell("exec sleep 1000")));
    cluster.apply(&Builder::new("second").shell("exec sleep 1000").with_pod("nodeName: n2").yaml());
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", "pod/first", "pod/second"]);
    assert_eq!(cluster.get(&["pod", "second"])["status"]["hostIP"], OUTSIDE);
    let here = cluster.node.pods().unwrap();
    assert!(here.contains_key("first") && !here.contains_key("second"), "{here:?}");

    // The second one goes with its Node, and the server lets its pods go with that.
    cluster.end_outside("TERM", "second", second);
    let gone = poll::until_true("the second node and its pod are gone", SECONDS_30, || {
        cluster.run(&["get", "node/n2"]).stderr.contains("not found")
            && cluster.run(&["get", "pod/second"]).stderr.contains("not found")
    });
    gone.unwrap();
    assert_eq!(cluster.get(&["pod", "first"])["status"]["phase"], "Running");
    cluster.delete(&["first"]);
}

/// As a controller of nodes that do not answer does it.
fn claim(name: &str, volume: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  accessModes: [ReadWriteOnce]\n  \
         resources: {{requests: {{storage: 1Mi}}}}\n  storageClassName: ''\n  volumeName: {volume}\n"
    )
}

fn volume(name: &str, source: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  accessModes: [ReadWriteOnce]\n  \
         capacity: {{storage: 1Mi}}\n  storageClassName: ''\n  {source}\n"
    )
}

/// A pod that counts its lives in a file of a claim, and tells how many there were.
fn user(name: &str, claim: &str) -> Builder {
    Builder::new(name)
        .shell("echo life >>/data/lives; wc -l </data/lives; exec sleep 1000")
        .with("volumeMounts: [{name: data, mountPath: /data}]")
        .with_pod(&format!("volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]"))
}

#[test]
fn claims_of_the_cluster_are_mounted_where_their_volume_says() {
    let mut cluster = Cluster::new();
    let (local, host) = (cluster.node.path("local"), cluster.node.path("host"));
    std::fs::create_dir(&local).unwrap();
    // The pod comes before its claim, as only without a scheduler.
    cluster.apply(&bound(&user("web", "data")));
    cluster.node.wait_event("web", "persistentvolumeclaim \"data\" not found").unwrap();
    cluster.apply(&volume("disk", &format!("local: {{path: {}}}", local.display())));
    cluster.apply(&claim("data", "disk"));
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", "pod/web"]);
    assert_eq!(std::fs::read_to_string(local.join("lives")).unwrap(), "life\n");
    // How full it is.
    let metrics = cluster.node.page("/metrics").unwrap();
    let labels = "{namespace=\"default\",persistentvolumeclaim=\"data\"}";
    let line =
        metrics.lines().find(|l| l.starts_with(&format!("kubelet_volume_stats_capacity_bytes{labels}")));
    assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
    let summary: Value = serde_json::from_str(&cluster.node.page("/stats/summary").unwrap()).unwrap();
    for figure in ["availableBytes", "workingSetBytes", "rssBytes", "pageFaults", "majorPageFaults"] {
        assert!(summary["node"]["memory"][figure].is_u64(), "{figure}: {}", summary["node"]["memory"]);
    }
    let pods = summary["pods"].as_array().unwrap();
    let web = pods.iter().find(|pod| pod["podRef"]["name"] == "web").unwrap();
    assert_eq!(web["volume"][0]["pvcRef"], serde_json::json!({"name": "data", "namespace": "default"}));

    // A container that begins again needs nobody's word for what its pod has, nor does one after a restart of the agent.
    cluster.kill_server();
    cluster.node.kill9_agent().unwrap();
    cluster.node.start_agent().unwrap();
    let pod = cluster.node.wait_running(&["web"]).unwrap().remove("web").unwrap();
    cluster.node.machine().kill("KILL", &cluster.node.pids(pod.uid()).unwrap()).unwrap();
    let second = || cluster.node.log(&pod, "main", 1).is_ok_and(|lines| lines == ["2"]);
    poll::until_true("it lives again with its data", SECONDS_30, second).unwrap();
    cluster.start_server();

    // A path of the host, made for it.
    cluster
        .apply(&volume("path", &format!("hostPath: {{path: {}, type: DirectoryOrCreate}}", host.display())));
    cluster.apply(&claim("files", "path"));
    cluster.ready("reader", &user("reader", "files"));
    assert!(host.join("lives").exists());

    // The server's own disk is not this machine's.
    let there = claim("there", "").replace("  storageClassName: ''\n  volumeName: \n", "");
    cluster.apply(&there);
    cluster.apply(&bound(&user("stranger", "there")));
    cluster.node.wait_event("stranger", "its nodeAffinity does not match this node").unwrap();
    cluster.delete(&["web", "reader", "stranger"]);
    assert_eq!(std::fs::read_to_string(local.join("lives")).unwrap(), "life\nlife\n", "the data stays");
}

#[test]
fn a_pod_that_the_cluster_has_given_up_ends() {
    let cluster = Cluster::new();
    cluster.ready("web", &Builder::new("web").shell("exec sleep 1000"));
    let failed = r#"{"status": {"phase": "Failed", "reason": "NodeLost"}}"#;
    cluster.kubectl(&["patch", "pod", "web", "--subresource=status", "-p", failed]);
    cluster.node.wait_gone("web").unwrap();
    assert_eq!(cluster.get(&["pod", "web"])["status"]["reason"], "NodeLost");
    cluster.kubectl(&["delete", "pod", "web", "--timeout=30s"]);
}

/// Asks the node's own API from outside of its machine.
pub(super) fn ask(cluster: &Cluster, path: &str, certificate: Option<(&Path, &Path)>) -> String {
    let mut command = cluster.node.machine().outside("curl");
    command.args(["-sk", "--max-time", "30", "-w", "\n%{http_code}"]);
    if let Some((certificate, key)) = certificate {
        command.arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    command.arg(format!("https://192.0.2.1:10250{path}"));
    tools::run(command).unwrap().ok().unwrap()
}

#[test]
fn the_nodes_own_api_is_for_whom_the_cluster_knows() {
    let cluster = Cluster::new();
    cluster.ready("web", &Builder::new("web").shell("echo hello; exec sleep 1000"));
    let (certificate, key) = cluster.admin();
    let known = Some((certificate.as_path(), key.as_path()));
    assert!(ask(&cluster, "/healthz", None).ends_with("\n401"));
    assert_eq!(ask(&cluster, "/healthz", known), "ok\n200");
    assert_eq!(ask(&cluster, "/containerLogs/default/web/main", known), "hello\n\n200");
    // API servers pass the text on.
    let none = ask(&cluster, "/containerLogs/default/web/none", known);
    assert_eq!(none, "container none is not valid for pod web\n400");
    assert!(ask(&cluster, "/pods", known).contains(r#""name":"web""#));
    let running: Value =
        serde_json::from_str(ask(&cluster, "/runningpods/", known).trim_end_matches("\n200")).unwrap();
    assert_eq!(running["items"][0]["metadata"]["name"], "web");
    assert_eq!(running["items"][0]["spec"]["containers"][0]["name"], "main");
    assert!(ask(&cluster, "/metrics/cadvisor", known).contains("container_cpu_usage_seconds_total"));
    assert!(ask(&cluster, "/configz", known).contains("KubeletConfiguration"));
    assert!(ask(&cluster, "/nothing", known).ends_with("\n404"));
    cluster.delete(&["web"]);
}

/// A kubeconfig with a bootstrap token, as `kubeadm join` makes it.
pub(super) fn bootstrap(cluster: &Cluster) {
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: bootstrap-token-abcdef, namespace: kube-system}\n\
        type: bootstrap.kubernetes.io/token\nstringData: {token-id: abcdef, token-secret: 0123456789abcdef, \
        usage-bootstrap-authentication: 'true'}\n";
    cluster.apply(secret);
    let path = cluster.path("bootstrap");
    std::fs::copy(cluster.path("kubeconfig"), &path).unwrap();
    let file = path.to_str().unwrap();
    for words in [
        &["config", "unset", "users"][..],
        &["config", "set-credentials", "token", "--token=abcdef.0123456789abcdef"],
        &["config", "set-context", "--current", "--user=token"],
    ] {
        cluster.kubectl(&[&["--kubeconfig", file], words].concat());
    }
}

/// The subject of the certificate in a kubeconfig.
fn subject(cluster: &Cluster, kubeconfig: &Path) -> String {
    let line = format!(
        "sed -n 's/.*client-certificate-data: //p' {} | base64 -d | openssl x509 -noout -subject -nameopt RFC2253",
        kubeconfig.display()
    );
    cluster.node.machine().shell(&line).unwrap()
}

#[test]
fn a_node_with_a_bootstrap_token_gets_a_certificate_of_its_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut cluster = Cluster::prepare("bootstrap", "--bootstrap-kubeconfig");
    bootstrap(&cluster);
    cluster.join();
    let own = cluster.node.path("root/kubeconfig");
    assert_eq!(subject(&cluster, &own).trim(), format!("subject=CN=system:node:{NAME},O=system:nodes"));
    assert_eq!(std::fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o600);
    let request = &cluster.get(&["csr"])["items"][0];
    assert_eq!(request["spec"]["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(request["spec"]["username"], "system:bootstrap:abcdef");

    // With the rights of a node: its pods, with what they use and a token of their account.
    cluster.apply(&config_map("one"));
    let builder = Builder::new("web")
        .shell("exec sleep 1000")
        .with("env: [{name: TEXT, valueFrom: {configMapKeyRef: {name: settings, key: text}}}]");
    cluster.ready("web", &builder);
    let inside =
        |line: &str| cluster.node.berth(&["exec", "web", "--", "sh", "-c", line]).unwrap().ok().unwrap();
    assert_eq!(inside("echo $TEXT"), "one\n");
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(inside(&format!("cat {account}/namespace")), "default");
    assert!(inside(&format!("cat {account}/ca.crt")).contains("BEGIN CERTIFICATE"));
    let token = inside(&format!("cat {account}/token"));
    let answer = |path: &str, header: &str| {
        let mut command = cluster.node.machine().outside("curl");
        command.args(["-sk", "--max-time", "30", "-o", "/dev/null", "-w", "%{http_code}", "-H", header]);
        tools::run(command_with(command, path)).unwrap().ok().unwrap()
    };
    let header = format!("Authorization: Bearer {token}");
    // The server knows whose it is; so does the node's own API, by asking the server.
    assert_eq!(answer(&format!("https://{OUTSIDE}:6443/version"), &header), "200");
    assert_eq!(answer("https://192.0.2.1:10250/metrics", &header), "403");
    assert_eq!(answer("https://192.0.2.1:10250/metrics", "Authorization: Bearer nobodys"), "401");
    cluster.delete(&["web"]);

    // The next agent has its certificate already.
    cluster.node.kill9_agent().unwrap();
    cluster.node.start_agent().unwrap();
    cluster.ready("again", &Builder::new("again").shell("exec sleep 1000"));
    assert_eq!(cluster.get(&["csr"])["items"].as_array().unwrap().len(), 1);
    cluster.delete(&["again"]);

    // What the agent has written and somebody has broken it can have again.
    cluster.node.stop_agent().unwrap();
    std::fs::write(&own, "garbage").unwrap();
    cluster.node.start_agent().unwrap();
    poll::until_true("the node has another certificate", SECONDS_30, || {
        std::fs::read_to_string(&own).is_ok_and(|text| text.contains("client-certificate-data"))
    })
    .unwrap();
    assert_eq!(cluster.get(&["csr"])["items"].as_array().unwrap().len(), 2);
    cluster.ready("mended", &Builder::new("mended").shell("exec sleep 1000"));
    cluster.delete(&["mended"]);
}

#[test]
fn a_full_disk_costs_one_certificate_and_the_node_joins_once_there_is_room() {
    let flags = [("--bootstrap-kubeconfig", "bootstrap"), ("--kubeconfig", "full/kubeconfig")];
    let mut cluster = Cluster::prepare_flags(&flags, "");
    bootstrap(&cluster);
    let full = path_text(&cluster.path("full"));
    let fill = format!(
        "mkdir {full} && mount -t tmpfs -o size=64k tmpfs {full} && ! cat /dev/zero 2>/dev/null >{full}/fill"
    );
    cluster.node.machine().shell(&fill).unwrap();
    cluster.node.start_agent().unwrap();
    let refused = || cluster.node.agent_log().contains("cannot store the node's certificate");
    poll::until_true("the disk does not take the certificate", SECONDS_30, refused).unwrap();
    cluster.node.machine().shell(&format!("rm {full}/fill")).unwrap();
    let registered = || cluster.run(&["get", "node", NAME]).ok().is_ok();
    poll::until_true("the node is registered", SECONDS_30, registered).unwrap();
    assert_eq!(cluster.get(&["csr"])["items"].as_array().unwrap().len(), 1);
    cluster.ready("web", &Builder::new("web").shell("exec sleep 1000"));
    cluster.delete(&["web"]);
    // The node finds it again at its next start.
    cluster.node.stop_agent().unwrap();
    cluster.node.start_agent().unwrap();
    cluster.ready("again", &Builder::new("again").shell("exec sleep 1000"));
    cluster.delete(&["again"]);
    cluster.node.stop_agent().unwrap();
    cluster.node.machine().shell(&format!("umount {full}")).unwrap();
}

fn command_with(mut command: Command, word: &str) -> Command {
    command.arg(word);
    command
}

#[test]
fn the_server_passes_on_what_only_the_node_of_a_pod_can_say() {
    let mut cluster =
        Cluster::prepare_with("bootstrap", "--bootstrap-kubeconfig", "serverTLSBootstrap: true\n");
    bootstrap(&cluster);
    cluster.join();
    cluster.ready("web", &Builder::new("web").shell("echo hello; exec sleep 1000").grace(0));
    // Until the node has the certificate of its own API it has one that it made itself, which the server does not believe.
    poll::until_true("the server gets the log", SECONDS_30, || {
        cluster.run(&["logs", "web"]).ok().is_ok_and(|log| log == "hello\n")
    })
    .unwrap();
    let ran = cluster.run(&["exec", "web", "--", "sh", "-c", "echo \"a&b\"; echo c >&2; exit 3"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "a&b\n"), "{ran}");
    assert!(ran.stderr.contains("c\n"), "{ran}");
    let none = cluster.run(&["exec", "web", "--", "no-such-program"]);
    assert_eq!(none.code, 1, "{none}");
    assert!(cluster.run(&["logs", "web", "-c", "none"]).code != 0);
    // By SPDY and by WebSockets: what is attached to, and ports.
    let shell =
        "mkdir -p /w; echo made >/w/index.html; httpd -p 80 -h /w; while read l; do echo got $l; done";
    for (name, websockets) in [("spdy", "false"), ("ws", "true")] {
        let greeter = Builder::new(name).shell(shell).with("stdin: true").with("stdinOnce: true");
        let greeter = greeter.restart("Never").grace(0);
        cluster.ready(name, &greeter);
        let with = |words: &[&str]| {
            let mut command = cluster.command(words);
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
            command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
            command
        };
        let mut forward = cluster.node.machine().outside("bash");
        forward.args(["-c", FORWARD, name]).env("KUBECTL", tools::unpacked("kubectl").unwrap());
        for (key, value) in with(&[]).get_envs() {
            forward.env(key, value.unwrap());
        }
        assert_eq!(tools::run(forward).unwrap().ok().unwrap(), "made\n", "{name}");
        let ran = tools::run_with(with(&["attach", "-i", name]), b"hello\n").unwrap();
        assert!(ran.code == 0 && ran.stdout.contains("got hello\n"), "{name}: {ran}");
    }
    cluster.delete(&["web", "spdy", "ws"]);
}

/// What a port of the pod `$0` answers, by `kubectl port-forward`.
const FORWARD: &str = "coproc F { exec $KUBECTL port-forward pod/$0 :80; }\nread -r line <&${F[0]}\nport=${line#*:}\n\
    curl -s --max-time 20 http://127.0.0.1:${port%% *}/; code=$?\nkill $F_PID; exit $code";

#[test]
fn bad_settings_of_a_cluster_are_told_at_once() {
    let mut node = Node::prepare("{}", &["--kubeconfig", "/nowhere/kubeconfig"]).unwrap();
    let error = node.start_agent().unwrap_err().to_string();
    assert!(error.contains("/nowhere/kubeconfig is not there; with --bootstrap-kubeconfig"), "{error}");
}
