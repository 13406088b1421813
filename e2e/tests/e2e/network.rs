//! Addresses, ports and who reaches whom.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use berth_e2e::machine::ADDRESS;
use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{poll, tools};

/// What a web server says, asked from a place of the machine.
fn fetch(mut curl: Command, url: &str) -> Result<String> {
    curl.args(["-sS", "--fail", "--max-time", "5", url]);
    tools::run(curl)?.ok()
}

fn web(name: &str) -> Builder {
    Builder::new(name).shell(&format!("echo I am {name} > /www/index.html; exec httpd -f -p 80 -h /www"))
}

/// Waits until the server in the pod listens. (Here and below without `wget -T`, with which Debian 12's busybox crashes.)
fn listens(node: &Node, pod: &str) {
    let what = format!("{pod} listens");
    poll::until_true(&what, Duration::from_secs(10), || {
        node.exec(pod, &["wget", "-q", "-O", "-", "http://127.0.0.1:80/"]).is_ok_and(|r| r.code == 0)
    })
    .unwrap();
}

#[test]
fn pods_reach_each_other_and_the_host_and_the_host_reaches_them() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &web("a").yaml()).unwrap();
    node.apply("b.yaml", &web("b").yaml()).unwrap();
    let pods = node.wait_running(&["a", "b"]).unwrap();
    listens(&node, "a");
    listens(&node, "b");
    let (a, b) = (pods["a"].ip().to_owned(), pods["b"].ip().to_owned());
    assert_ne!(a, b);
    assert_eq!(fetch(node.machine().command("curl"), &format!("http://{a}/")).unwrap(), "I am a\n");
    let peer = node.exec("a", &["timeout", "5", "wget", "-q", "-O", "-", &format!("http://{b}/")]).unwrap();
    assert_eq!(peer.ok().unwrap(), "I am b\n");
    node.exec("a", &["ping", "-c1", "-W5", ADDRESS]).unwrap().ok().unwrap();
    // Out of the node the pod appears under the node's address, which the outside can answer.
    node.exec("a", &["ping", "-c1", "-W5", berth_e2e::machine::OUTSIDE]).unwrap().ok().unwrap();
}

#[test]
fn a_host_port_is_reached_from_outside_from_the_host_and_from_a_pod() {
    let node = Node::start().unwrap();
    let port = "ports: [{ containerPort: 80, hostPort: 8080 }]";
    node.apply("a.yaml", &web("a").with(port).yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    listens(&node, "a");
    let url = format!("http://{ADDRESS}:8080/");
    assert_eq!(fetch(node.machine().outside("curl"), &url).unwrap(), "I am a\n");
    assert_eq!(fetch(node.machine().command("curl"), &url).unwrap(), "I am a\n");
    assert_eq!(fetch(node.machine().command("curl"), "http://127.0.0.1:8080/").unwrap(), "I am a\n");
    let own = node.exec("a", &["timeout", "5", "wget", "-q", "-O", "-", &url]).unwrap();
    assert_eq!(own.ok().unwrap(), "I am a\n");
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    assert!(fetch(node.machine().outside("curl"), &url).is_err(), "the port is still open");
}

#[test]
fn a_host_port_that_is_taken_is_refused_with_the_other_pods_name() {
    let node = Node::start().unwrap();
    let port = "ports: [{ containerPort: 80, hostPort: 8080 }]";
    node.apply("a.yaml", &web("a").with(port).yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    node.apply("b.yaml", &web("b").with(port).yaml()).unwrap();
    let event = node.wait_event("b", "8080").unwrap();
    assert!(event.contains("a-n1"), "{event}");
    // The port becomes free: b takes it.
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    node.wait_running(&["b"]).unwrap();
}

#[test]
fn host_network_is_the_hosts_own() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a").shell("exec httpd -f -p 8081 -h /www").with_pod("hostNetwork: true").yaml();
    node.apply("a.yaml", &pod).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(pod.ip(), ADDRESS);
    let links = node.exec("a", &["ls", "/sys/class/net"]).unwrap().ok().unwrap();
    assert!(links.contains("up0"), "{links}");
    poll::until_true("it answers on the host's address", Duration::from_secs(10), || {
        fetch(node.machine().outside("curl"), &format!("http://{ADDRESS}:8081/")).is_ok()
    })
    .unwrap();
}

#[test]
fn an_address_stays_with_its_pod_through_container_restarts() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.machine().kill("KILL", &node.pids(pod.uid()).unwrap()).unwrap();
    let pods = node
        .wait("it restarts", Duration::from_secs(20), |pods| {
            pods["a"].restarts() == 1 && pods["a"].is_running()
        })
        .unwrap();
    assert_eq!(pods["a"].ip(), pod.ip());
    node.machine().shell(&format!("busybox ping -c1 -W5 {}", pod.ip())).unwrap();
}

#[test]
fn a_pod_that_finds_no_free_address_says_so() {
    let node = Node::with("podCIDR: 10.85.0.0/29\n", &[]).unwrap();
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        node.apply(&format!("{name}.yaml"), &manifest::pod(name, "exec sleep 1000000")).unwrap();
    }
    node.wait_running(&names).unwrap();
    node.apply("f.yaml", &manifest::pod("f", "exec sleep 1000000")).unwrap();
    let event = node.wait_event("f", "no free pod address").unwrap();
    let words = "no free pod address in 10.85.0.0/29: 5 in use, 0 in quarantine";
    assert!(event.contains("FailedCreatePodSandBox") && event.contains(words), "{event}");
}

/// A pod with annotations.
fn asking(name: &str, annotations: &str) -> String {
    let pod = manifest::pod(name, "exec sleep 1000000");
    pod.replacen("metadata:", &format!("metadata:\n  annotations: {{ {annotations} }}"), 1)
}

#[test]
fn a_pod_asks_for_an_address_and_for_limits_on_its_traffic() {
    let node = Node::start().unwrap();
    let wishes = "berth.dev/ips: 10.85.7.7, berth.dev/mac: '02:00:00:00:07:07', \
                  kubernetes.io/ingress-bandwidth: 10M, kubernetes.io/egress-bandwidth: 1M";
    node.apply("a.yaml", &asking("a", wishes)).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(pod.ip(), "10.85.7.7");
    let queues = node.machine().shell("tc qdisc show").unwrap();
    assert!(queues.contains("tbf") && queues.contains("rate 10Mbit"), "{queues}");
    let shim = node.shim(pod.uid()).unwrap();
    let inside =
        node.machine().shell(&format!("nsenter -t {shim} -n sh -c 'tc qdisc show; ip link'")).unwrap();
    assert!(inside.contains("rate 1Mbit") && inside.contains("02:00:00:00:07:07"), "{inside}");

    node.apply("b.yaml", &asking("b", "berth.dev/ips: 10.85.7.7")).unwrap();
    let event = node.wait_event("b", "10.85.7.7").unwrap();
    assert!(event.contains("address 10.85.7.7 cannot be had: pod default/a-n1 has it"), "{event}");
    node.remove("b.yaml").unwrap();
    node.wait_gone("b").unwrap();
    // A successor of the same name has it at once, in spite of the quarantine.
    node.apply("a.yaml", &asking("a", "berth.dev/ips: 10.85.7.7")).unwrap();
    let next = node
        .wait("the pod is replaced", Duration::from_secs(30), |pods| {
            pods.get("a").is_some_and(|next| next.uid() != pod.uid() && next.is_running())
        })
        .unwrap();
    assert_eq!(next["a"].ip(), "10.85.7.7");

    let wrong = node.path("wrong.yaml");
    std::fs::write(&wrong, asking("c", "kubernetes.io/egress-bandwidth: '10'")).unwrap();
    let said = node.berth(&["check", wrong.to_str().unwrap()]).unwrap().code(1).unwrap();
    let words = "metadata.annotations[kubernetes.io/egress-bandwidth]: Invalid value: \"10\": resource is unreasonably small";
    assert!(said.stdout.contains(words), "{said}");
}
