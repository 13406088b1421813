//! A node whose pods are connected by Debian's CNI plugins in place of its own network.

use std::process::Command;
use std::time::Duration;

use berth_e2e::machine::ADDRESS;
use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{poll, tools};
use serde_json::json;

/// A folder with one network: `bridge` with `host-local`, then `portmap` and `bandwidth`.
struct Network(tempfile::TempDir);

impl Network {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("berth-e2e-cni-").tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir(dir.path().join("net.d")).unwrap();
        let network = Self(dir);
        let list = json!({"cniVersion": "1.0.0", "name": "theirs", "plugins": [
            {"type": "bridge", "bridge": "cni7", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.97.0.0/24"}]], "dataDir": network.path("ipam")}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ]});
        network.write("10-theirs.conflist", &list.to_string());
        network
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join("net.d").join(name), text).unwrap();
    }

    fn config(&self) -> String {
        format!("cniConfDir: {}\ncniBinDir: /nowhere,/usr/lib/cni\n", self.path("net.d"))
    }

    /// The addresses that `host-local` has given out.
    fn addresses(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path().join("ipam/theirs")).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("10.")).collect()
    }
}

/// `bridge` leaves its bridge behind, which is no leftover of ours.
fn end(node: &Node, pods: &[&str]) {
    for pod in pods {
        node.remove(&format!("{pod}.yaml")).unwrap();
        node.wait_gone(pod).unwrap();
    }
    // A pod's folder goes last. Until then one that lost its sandbox may be given another, and with it the bridge.
    let folders = node.socket().with_file_name("pods");
    poll::until_true("no pod is left", Duration::from_secs(30), || {
        std::fs::read_dir(&folders).is_ok_and(|mut pods| pods.next().is_none())
    })
    .unwrap();
    node.machine().shell("ip link del cni7").unwrap();
}

fn fetch(mut curl: Command, url: &str) -> Result<String, String> {
    curl.args(["-sS", "--fail", "--max-time", "5", url]);
    tools::run(curl).and_then(tools::Ran::ok).map_err(|e| e.to_string())
}

fn wait_for(node: &Node, url: &str, said: &str) {
    poll::until_true(&format!("{url} answers"), Duration::from_secs(30), || {
        fetch(node.machine().command("curl"), url).is_ok_and(|text| text == said)
    })
    .unwrap();
}

const SERVE: &str = "echo me >/www/index.html; exec httpd -f -p 80 -h /www";

#[test]
fn pods_are_connected_by_the_plugins_of_a_folder_and_disconnected_by_them() {
    let network = Network::new();
    let mut node = Node::with(&network.config(), &[]).unwrap();
    let web = Builder::new("web").shell(SERVE).with("ports: [{ containerPort: 80, hostPort: 8080 }]").yaml();
    node.apply("web.yaml", &web).unwrap();
    node.apply("other.yaml", &Builder::new("other").shell("exec sleep 1000000").yaml()).unwrap();
    let pods = node.wait_running(&["web", "other"]).unwrap();
    let ip = pods["web"].ip().to_owned();
    assert!(ip.starts_with("10.97.0."), "{ip}");
    wait_for(&node, &format!("http://{ip}/"), "me\n");
    wait_for(&node, &format!("http://{ADDRESS}:8080/"), "me\n");
    assert_eq!(fetch(node.machine().outside("curl"), &format!("http://{ADDRESS}:8080/")).unwrap(), "me\n");
    let url = format!("http://{ip}/");
    let got = node.exec("other", &["timeout", "20", "wget", "-q", "-O", "-", &url]).unwrap().ok().unwrap();
    assert_eq!(got, "me\n");
    let own = node.exec("web", &["wget", "-q", "-O", "-", "http://127.0.0.1/"]).unwrap();
    assert_eq!(own.ok().unwrap(), "me\n", "lo is up");
    assert!(node.page("/metrics/cadvisor").unwrap().contains("container_network_receive_bytes_total"));
    let links = node.machine().shell("ip -o link; nft list tables").unwrap();
    assert!(links.contains("cni7") && !links.contains("berth"), "nothing of our own is made: {links}");

    // Neither a restart of the agent nor a change of the folder touches who is connected.
    node.kill9_agent().unwrap();
    std::fs::remove_file(network.0.path().join("net.d/10-theirs.conflist")).unwrap();
    node.start_agent().unwrap();
    assert_eq!(node.wait_running(&["web"]).unwrap()["web"].ip(), ip);
    node.apply("late.yaml", &Builder::new("late").shell("exec sleep 1000000").yaml()).unwrap();
    let event = node.wait_event("late", "FailedCreatePodSandBox").unwrap();
    assert!(event.contains("no network is configured in"), "{event}");

    for name in ["web", "other", "late"] {
        node.remove(&format!("{name}.yaml")).unwrap();
        node.wait_gone(name).unwrap();
    }
    assert_eq!(network.addresses(), [""; 0], "addresses are given back");
    let rules = node.machine().shell("iptables-save -t nat").unwrap();
    assert!(!rules.contains(&ip) && !rules.contains("8080"), "{rules}");
    assert!(!node.machine().shell("ip -o link").unwrap().contains("veth"));
    end(&node, &[]);
}

#[test]
fn a_pod_whose_agent_and_shim_were_killed_is_disconnected_all_the_same() {
    let network = Network::new();
    let mut node = Node::with(&network.config(), &[]).unwrap();
    node.apply("a.yaml", &Builder::new("a").shell("exec sleep 1000000").yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(network.addresses(), [pod.ip()]);
    let shim = node.shim(pod.uid()).unwrap();
    node.kill9_agent().unwrap();
    node.machine().kill("KILL", &[shim]).unwrap();
    node.remove("a.yaml").unwrap();
    node.start_agent().unwrap();
    node.wait_gone("a").unwrap();
    poll::until_true("the address is given back", Duration::from_secs(30), || network.addresses().is_empty())
        .unwrap();
    end(&node, &[]);
}

#[test]
fn a_plugin_that_fails_is_named_in_the_pods_event() {
    let network = Network::new();
    let node = Node::with(&network.config(), &[]).unwrap();
    network.write(
        "00-broken.conflist",
        r#"{"cniVersion": "1.0.0", "name": "b", "plugins": [{"type": "no-such"}]}"#,
    );
    node.apply("a.yaml", &Builder::new("a").shell("exec sleep 1000000").yaml()).unwrap();
    let event = node.wait_event("a", "no-such").unwrap();
    assert!(
        event.contains("FailedCreatePodSandBox") && event.contains("no such program in /nowhere"),
        "{event}"
    );
    std::fs::remove_file(network.0.path().join("net.d/00-broken.conflist")).unwrap();
    node.wait_running(&["a"]).unwrap();
    let asked = Builder::new("b").shell("exec sleep 1000000").yaml();
    let asked = asked.replacen("metadata:", "metadata:\n  annotations: {berth.dev/ips: 10.97.0.9}", 1);
    node.apply("b.yaml", &asked).unwrap();
    let event = node.wait_event("b", "capability").unwrap();
    assert!(event.contains("network theirs has no plugin with the capability ips"), "{event}");
    end(&node, &["a", "b"]);
}
