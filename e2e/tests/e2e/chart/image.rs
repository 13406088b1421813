//! The image of the chart, built in both ways, and the pods of the chart on a node of Berth: what they put on a machine, they
//! put on the test's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_e2e::node::Node;
use berth_e2e::pods::{PodExt, Pods};
use berth_e2e::tools::Ran;
use berth_e2e::{poll, tools};
use serde_json::{Value, json};

use super::{Step, script, steps};

const IMAGE: &str = "localhost/berth:0.1.0";
const SOON: Duration = Duration::from_secs(60);

/// The tar that `make image` writes, of the program under test.
fn rootfs(dir: &Path) -> PathBuf {
    let tar = dir.join("berth-image.tar");
    let mut image = script("image");
    image.arg(tools::berth()).stdout(std::fs::File::create(&tar).unwrap());
    assert!(image.status().unwrap().success(), "scripts/image failed");
    tar
}

/// An archive of the image that podman builds of it by the Containerfile.
fn built(dir: &Path) -> PathBuf {
    let podman = || {
        let mut podman = Command::new(tools::find("podman").unwrap());
        podman.arg("--root").arg(dir.join("storage")).arg("--runroot").arg(dir.join("storage-run"));
        podman.args(["--storage-driver", "vfs"]);
        podman
    };
    let mut build = podman();
    build
        .args(["build", "-q", "-t", IMAGE, "-f"])
        .arg(tools::checkout().join("charts/Containerfile"))
        .arg(dir);
    tools::run(build).unwrap().ok().unwrap();
    let archive = dir.join("image.tar");
    let mut save = podman();
    save.args(["save", "-q", "--format", "oci-archive", "-o"]).arg(&archive).arg(IMAGE);
    tools::run(save).unwrap().ok().unwrap();
    archive
}

/// In place of systemd on the machine: does what `systemctl` passes on by a fifo, for the one unit that is there.
const SYSTEMD: &str = r#"
pid=
unit() { cat host/units/berth.service host/units/berth.service.d/*.conf 2>/dev/null | sed -n 's/^ExecStart=//p' | tail -n 1; }
stop() { [ -z "$pid" ] || { kill -TERM $pid; wait $pid; pid=; }; }
start() {
  $(unit) --cgroup-parent "$CGROUP" >>second.log 2>&1 </dev/null & pid=$!
  # Type=notify: started is what is ready.
  until curl -sf -o /dev/null "http://127.0.0.1:$PORT/readyz"; do kill -0 $pid || break; sleep 0.1; done
}
# Both stay open: who opens a fifo just as another lets go of it would find its end instead of the answer.
exec 3<>ask 4<>answer
while read -r words <&3; do
  echo "$words" >>told
  case $words in
    "restart berth.service") stop; start ;;
    "start berth.service") [ -n "$pid" ] || start ;;
    "stop berth.service") stop ;;
    quit) exit ;;
  esac
  echo done >&4
done
"#;

/// The chart's pods on a node, and a systemd on its machine that starts what they put there: a second agent.
struct Chart {
    node: Node,
    values: Value,
    systemd: Child,
}

/// The node is also the API server that the second one joins.
const CONFIG: &str = "apiAddress: 192.0.2.1:6443\ncrashLoopBackOff: { maxContainerRestartPeriod: 1s }\n";

/// The second agent's read-only port: the chart's default.
const PORT: &str = "11255";

impl Chart {
    fn new() -> Self {
        let node = Node::with(CONFIG, &[]).unwrap();
        rootfs(&node.path(""));
        let archive = built(&node.path(""));
        node.berth(&["image", "load", "-i", &archive.to_string_lossy()]).unwrap().ok().unwrap();
        for folder in ["host/units", "second/cni"] {
            std::fs::create_dir_all(node.path(folder)).unwrap();
        }
        let systemctl = node.path("systemctl");
        let dir = node.path("").display().to_string();
        let passed_on = format!("#!/bin/sh\ncd {dir}\necho \"$*\" >ask\nread -r _ <answer\n");
        std::fs::write(&systemctl, passed_on).unwrap();
        std::fs::set_permissions(&systemctl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let real = tools::find("systemctl").unwrap();
        let machine = node.machine();
        machine.shell(&format!("cd {dir} && mkfifo ask answer")).unwrap();
        machine.shell(&format!("mount --bind {} {}", systemctl.display(), real.display())).unwrap();
        let mut systemd = machine.command("sh");
        systemd.args(["-c", &format!("cd {dir}\n{SYSTEMD}")]).stdin(Stdio::null());
        systemd.env("PORT", PORT).env("CGROUP", format!("{}-second", node.cgroup_parent()));
        let systemd = systemd.spawn().unwrap();
        let path = |name: &str| node.path(name).to_string_lossy().into_owned();
        let values = json!({
            "apiServer": "https://192.0.2.1:6443",
            "bootstrap": {"token": "abcdef.0123456789abcdef"},
            // There is no systemd to ask.
            "cgroupDriver": "cgroupfs",
            "network": {"cniConfDir": path("second/cni")},
            // The disk of the machine that runs this test may be nearly full.
            "config": {"evictionHard": {"memory.available": "1Mi"}, "imageGCHighThresholdPercent": 100},
            "hostPaths": {
                "bin": path("host/bin"), "config": path("host/config"), "units": path("host/units"),
                "root": path("second/root"), "run": path("second/run"), "logs": path("second/log"),
            },
        });
        Self { node, values, systemd }
    }

    fn rendered(&self, more: &Value) -> Step {
        let mut values = self.values.clone();
        let more = more.as_object().unwrap().clone();
        values.as_object_mut().unwrap().extend(more);
        let mut steps = steps(&[], &json!([["install", values], ["test"]]));
        steps[0].ok();
        steps.remove(1)
    }

    /// Runs the DaemonSet's pod as this node's, with the objects that it mounts.
    fn run(&self, name: &str, step: &Step) {
        let root = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "kube-root-ca.crt", "namespace": "kube-system"},
            "data": {"ca.crt": self.read("root/pki/ca.crt")},
        });
        let template = &step.object("DaemonSet/berth")["spec"]["template"];
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "kube-system"}, "spec": template["spec"],
        });
        self.apply("root.yaml", &root);
        for object in ["ConfigMap/berth", "Secret/berth-bootstrap", "Secret/bootstrap-token-abcdef"] {
            let mut object = step.object(object).clone();
            let metadata = object["metadata"].as_object_mut().unwrap();
            metadata.retain(|key, _| ["name", "namespace", "labels"].contains(&key.as_str()));
            self.apply(&format!("{}.yaml", object["metadata"]["name"].as_str().unwrap()), &object);
        }
        self.apply(&format!("{name}.yaml"), &pod);
    }

    fn apply(&self, file: &str, object: &Value) {
        self.node.apply(file, &object.to_string()).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.node.path(name)).unwrap_or_default()
    }

    /// Whether the second agent says that it is well.
    fn second_is_ready(&self) -> bool {
        let asked =
            format!("curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{PORT}/readyz || true");
        self.node.machine().shell(&asked).unwrap() == "200"
    }

    fn wait_ready(&self, name: &str) {
        let ready = |pods: &Pods| pods.get(name).is_some_and(|p| p.has("Ready"));
        if let Err(error) = self.node.wait("the pod is ready", SOON, ready) {
            panic!("{error}\nthe second agent: {}", self.read("second.log"));
        }
    }

    /// What `helm test` runs, on a node that is not the chart's: it is the test that must notice.
    fn test_on_first(&self, step: &Step) {
        let mut spec = step.object("Pod/berth-test")["spec"].clone();
        spec.as_object_mut().unwrap().remove("nodeSelector").unwrap();
        let metadata = json!({"name": "bad", "namespace": "kube-system"});
        self.apply(
            "bad.yaml",
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
        );
        let failed = |pods: &Pods| pods.get("bad").is_some_and(|p| p.phase() == "Failed");
        let pods = self.node.wait("the test has failed", SOON, failed).unwrap();
        let log = self.node.log(&pods["bad"], "test", 0).unwrap().join("\n");
        assert!(log.contains("n1 is not a node of Berth"), "{log}");
    }

    /// What `helm test` runs, put onto the second node as a scheduler would.
    fn test_on_second(&self, step: &Step) {
        let second = self.node.path("second/run/berth.sock");
        let tar = self.node.path("berth-image.tar");
        let mut import = self.node.machine().command(tools::berth());
        import.args(["image", "import", "--socket"]).arg(second).arg(tar).arg(IMAGE);
        tools::run(import).unwrap().ok().unwrap();
        let mut spec = step.object("Pod/berth-test")["spec"].clone();
        spec["nodeName"] = json!("berth-n1");
        // There are no CNI plugins here.
        spec["hostNetwork"] = json!(true);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "helm-test"}, "spec": spec});
        let file = self.node.path("helm-test.json");
        std::fs::write(&file, pod.to_string()).unwrap();
        self.node.berth(&["apply", "-f", &file.to_string_lossy()]).unwrap().ok().unwrap();
        let ended = poll::until("the test has passed on the second node", SOON, || {
            let words = ["get", "pod", "helm-test", "-o", "json"];
            let shown = self.node.berth(&words).and_then(Ran::ok).map_err(|e| e.to_string())?;
            let pod: Value = serde_json::from_str(&shown).map_err(|e| e.to_string())?;
            match pod["status"]["phase"].as_str() {
                Some("Succeeded") => Ok(Some(())),
                _ => Err(pod["status"].to_string()),
            }
        });
        ended.unwrap_or_else(|e| panic!("{e}\nthe second agent: {}", self.read("second.log")));
    }

    fn finish(mut self) {
        std::fs::write(self.node.path("ask"), "quit\n").unwrap();
        self.systemd.wait().unwrap();
        let real = tools::find("systemctl").unwrap();
        self.node.machine().shell(&format!("umount {}", real.display())).unwrap();
        self.node.finish().unwrap();
    }
}

/// From the image and the DaemonSet's pod to an agent that joins as a second node of the machine, and back.
#[test]
fn the_charts_pods_install_a_second_node_and_take_it_away() {
    let chart = Chart::new();
    let step = chart.rendered(&json!({}));
    chart.run("installer", step.ok());
    chart.wait_ready("installer");
    assert!(chart.second_is_ready(), "as the pod's probe says: {}", chart.read("second.log"));
    let config = chart.read("host/config/config.yaml");
    assert!(config.contains("nodeName: berth-n1\n"), "{config}");
    assert!(config.contains("clusterDomain: cluster.local\n"), "as this node gives its pods: {config}");
    assert!(chart.read("told").contains("restart berth.service"), "{}", chart.read("told"));
    let log = chart.read("second.log");
    assert!(log.contains("ready node=\"berth-n1\""), "{log}");

    // By the token, with the names, the port and the taint that the chart gives it.
    let joined = poll::until("the second node is ready", SOON, || {
        let listed =
            chart.node.berth(&["get", "node", "berth-n1", "-o", "json"]).map_err(|e| e.to_string())?;
        let node: Value = serde_json::from_str(&listed.stdout).map_err(|e| format!("{listed}: {e}"))?;
        let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
        Ok(node["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(ready)).then_some(node))
    });
    let node = joined.unwrap_or_else(|e| panic!("{e}\nthe second agent: {}", chart.read("second.log")));
    assert_eq!(node["metadata"]["labels"]["berth.dev/node"], "true");
    assert_eq!(node["spec"]["taints"], json!([{"key": "berth.dev/node", "effect": "NoSchedule"}]));
    assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 11250);
    chart.test_on_first(&step);
    chart.test_on_second(&step);

    let cleaning = chart.rendered(&json!({"cleanup": true}));
    chart.run("cleaner", cleaning.ok());
    chart.wait_ready("cleaner");
    assert!(!chart.node.path("host/bin/berth").exists());
    assert!(!chart.second_is_ready());
    assert!(chart.read("told").contains("stop berth.service"), "{}", chart.read("told"));
    chart.finish();
}
