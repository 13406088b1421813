//! User-defined networks, pods on several of them and pods on none.

use std::time::Duration;

use berth_e2e::machine::OUTSIDE;
use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{http, poll};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const FIRST: &str = "v1.multus-cni.io/default-network";
const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

const CONFIG: &str = "resolvConf: /dev/null
crashLoopBackOff: { maxContainerRestartPeriod: 1s }
networks:
  - { name: front, subnets: [10.90.1.0/24, 'fd00:90:1::/64'] }
  - { name: back, subnets: [10.90.2.0/24] }
  - { name: inside, bridge: br-hidden, subnets: [10.90.3.0/24], internal: true }
";

/// A pod that serves its name, with these annotations.
fn web(name: &str, annotations: &[(&str, &str)]) -> String {
    let shell = format!("echo I am {name} > /www/index.html; exec httpd -f -p 80 -h /www");
    let lines: String = annotations.iter().map(|(key, value)| format!("\n    {key}: '{value}'")).collect();
    let pod = Builder::new(name).shell(&shell).yaml();
    if lines.is_empty() {
        pod
    } else {
        pod.replacen("metadata:", &format!("metadata:\n  annotations:{lines}"), 1)
    }
}

/// What a pod gets from another, by address or name; nothing if nobody answers.
fn fetch(node: &Node, from: &str, to: &str) -> Option<String> {
    let url = format!("http://{to}/");
    let ran = node.exec(from, &["timeout", "3", "wget", "-q", "-O", "-", &url]).ok()?;
    (ran.code == 0).then_some(ran.stdout)
}

fn fetches(node: &Node, from: &str, to: &str, said: &str) {
    poll::until_true(&format!("{from} reaches {to}"), SOON, || {
        fetch(node, from, to).is_some_and(|text| text == format!("I am {said}\n"))
    })
    .unwrap();
}

/// What the API says that a pod has got in its networks.
fn status(pod: &Pod) -> Vec<Value> {
    let text = annotation(pod, STATUS).unwrap_or_else(|| panic!("no {STATUS}"));
    serde_json::from_str(text).unwrap()
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    Some(pod.metadata.annotations.as_ref()?.get(key)?.as_str())
}

fn inside(node: &Node, pod: &Pod, command: &str) -> String {
    let shim = node.shim(pod.uid()).unwrap();
    node.machine().shell(&format!("nsenter -t {shim} -n {command}")).unwrap()
}

#[test]
fn networks_are_apart_and_a_pod_on_two_reaches_both_by_name() {
    let mut node = Node::with(CONFIG, &[]).unwrap();
    let on = |name, network| node.apply(&format!("{name}.yaml"), &web(name, &[(FIRST, network)])).unwrap();
    on("f", "front");
    on("b", "back");
    node.apply("both.yaml", &web("both", &[(NETWORKS, "front,back@db0")])).unwrap();
    node.apply("plain.yaml", &web("plain", &[])).unwrap();
    let names = ["f", "b", "both", "plain"];
    let pods = node.wait_running(&names).unwrap();
    for (name, begin) in [("f", "10.90.1."), ("b", "10.90.2."), ("both", "10.85."), ("plain", "10.85.")] {
        assert!(pods[name].ip().starts_with(begin), "{name}: {}", pods[name].ip());
    }
    for name in names {
        fetches(&node, name, "127.0.0.1", name);
    }
    // Who is on both is reached by everybody, each by the network that they share, and by one name.
    for from in ["f", "b", "plain"] {
        fetches(&node, from, "both", "both");
    }
    for to in ["f", "b", "plain"] {
        fetches(&node, "both", to, to);
    }
    // The others do not know each other, nor do they get there by address.
    for (from, to) in [("f", "b"), ("b", "f"), ("plain", "f"), ("f", "plain")] {
        assert_eq!(fetch(&node, from, to), None, "{from} found {to} by name");
        assert_eq!(fetch(&node, from, pods[to].ip()), None, "{from} reached {to}");
    }
    // All have a way out.
    for name in names {
        node.exec(name, &["ping", "-c1", "-W5", OUTSIDE]).unwrap().ok().unwrap();
    }

    let has = status(&pods["both"]);
    let shown: Vec<_> = has.iter().map(|one| (one["name"].as_str(), one["interface"].as_str())).collect();
    let expected = [("default", "eth0"), ("front", "net1"), ("back", "db0")].map(|(n, i)| (Some(n), Some(i)));
    assert_eq!(shown, expected);
    assert_eq!(has[0]["ips"][0], pods["both"].ip());
    assert_eq!((&has[0]["default"], has[1]["ips"].as_array().unwrap().len()), (&Value::Bool(true), 2));
    let links = inside(&node, &pods["both"], "ip -br -4 addr");
    for (interface, begin) in [("eth0", "10.85."), ("net1", "10.90.1."), ("db0", "10.90.2.")] {
        assert!(links.lines().any(|line| line.starts_with(interface) && line.contains(begin)), "{links}");
    }
    assert!(annotation(&pods["plain"], STATUS).is_none(), "nobody asked");

    let page = node.page("/metrics/cadvisor").unwrap();
    for interface in ["eth0", "net1", "db0"] {
        let counted = page.lines().any(|line| {
            let of_it = line.starts_with("container_network_receive_bytes_total{");
            of_it && line.contains(&format!("interface=\"{interface}\"")) && line.contains("both-n1")
        });
        assert!(counted, "{interface}");
    }

    // The next agent finds all as it is, and a pod that comes then gets other addresses.
    node.kill9_agent().unwrap();
    node.machine().shell("ip link del br-front").unwrap();
    node.start_agent().unwrap();
    let after = node.wait_running(&names).unwrap();
    for name in names {
        assert_eq!((after[name].uid(), after[name].restarts()), (pods[name].uid(), 0), "{name}");
    }
    assert_eq!(status(&after["both"]), has);
    fetches(&node, "both", "f", "f");
    node.apply("later.yaml", &web("later", &[(FIRST, "front")])).unwrap();
    let later = node.wait_running(&["later"]).unwrap();
    assert_ne!(later["later"].ip(), pods["f"].ip());
    fetches(&node, "later", "both", "both");
    node.finish().unwrap();
}

#[test]
fn an_internal_network_has_no_way_out_and_the_default_route_goes_where_it_is_told() {
    let node = Node::with(CONFIG, &[]).unwrap();
    node.apply("db.yaml", &web("db", &[(FIRST, "inside")])).unwrap();
    node.apply("app.yaml", &web("app", &[(FIRST, "inside"), (NETWORKS, "front")])).unwrap();
    let chosen = "[{\"name\": \"front\", \"default-route\": [\"10.90.1.1\"], \"ips\": [\"10.90.1.77\"]}]";
    node.apply("routed.yaml", &web("routed", &[(NETWORKS, chosen)])).unwrap();
    let pods = node.wait_running(&["db", "app", "routed"]).unwrap();
    fetches(&node, "app", "db", "db");
    fetches(&node, "db", "app", "app");
    assert_ne!(node.exec("db", &["ping", "-c1", "-W2", OUTSIDE]).unwrap().code, 0);
    // By the first of its networks that leads out.
    node.exec("app", &["ping", "-c1", "-W5", OUTSIDE]).unwrap().ok().unwrap();
    assert_eq!(inside(&node, &pods["db"], "ip route show default"), "");
    assert!(inside(&node, &pods["app"], "ip route show default").contains("via 10.90.1.1 dev net1"));
    let route = inside(&node, &pods["routed"], "ip route show default");
    assert!(route.contains("via 10.90.1.1 dev net1") && route.lines().count() == 1, "{route}");
    assert_eq!(status(&pods["routed"])[1]["ips"][0], "10.90.1.77");
    node.exec("routed", &["ping", "-c1", "-W5", OUTSIDE]).unwrap().ok().unwrap();

    // Taken, outside, not of the network, and nothing that leads in.
    for (name, networks, said) in [
        (
            "taken",
            "[{\"name\": \"front\", \"ips\": [\"10.90.1.77\"]}]",
            "network front: address 10.90.1.77 cannot be had: pod default/routed-n1 has it",
        ),
        (
            "outside",
            "[{\"name\": \"front\", \"ips\": [\"10.99.0.1\"]}]",
            "address 10.99.0.1 cannot be had: it is none of 10.90.1.0/24",
        ),
        (
            "astray",
            "[{\"name\": \"front\", \"default-route\": [\"10.99.0.1\"]}]",
            "network front: default-route 10.99.0.1 is no address of this network",
        ),
    ] {
        node.apply(&format!("{name}.yaml"), &web(name, &[(NETWORKS, networks)])).unwrap();
        let event = node.wait_event(name, said).unwrap();
        assert!(
            event.contains("FailedCreatePodSandBox") && event.contains(&format!("annotation {NETWORKS}")),
            "{event}"
        );
        node.remove(&format!("{name}.yaml")).unwrap();
    }
    let closed =
        web("closed", &[(FIRST, "inside")]) + "      ports: [{ containerPort: 80, hostPort: 8080 }]\n";
    node.apply("closed.yaml", &closed).unwrap();
    node.wait_event("closed", "host port 8080: the pod's first network inside is internal").unwrap();
    node.finish().unwrap();
}

#[test]
fn a_pod_without_networks_has_only_lo() {
    let node = Node::with(CONFIG, &[]).unwrap();
    node.apply("alone.yaml", &web("alone", &[(FIRST, "none")])).unwrap();
    node.apply("plain.yaml", &web("plain", &[])).unwrap();
    let pods = node.wait_running(&["alone", "plain"]).unwrap();
    assert_eq!(pods["alone"].ip(), "");
    let links = inside(&node, &pods["alone"], "ip -br link");
    assert!(links.lines().count() == 1 && links.starts_with("lo") && links.contains("UP"), "{links}");
    fetches(&node, "alone", "127.0.0.1", "alone");
    assert_eq!(fetch(&node, "alone", pods["plain"].ip()), None);
    node.finish().unwrap();
}

#[test]
fn what_cannot_be_is_said_with_the_annotation() {
    let node = Node::with(CONFIG, &[]).unwrap();
    node.apply("lost.yaml", &web("lost", &[(NETWORKS, "front,nowhere")])).unwrap();
    let said = poll::until("the manifest is refused", SOON, || {
        let text = node.berth(&["get", "pods"]).map_err(|e| e.to_string())?.stdout;
        Ok::<_, String>(text.contains("nowhere").then_some(text))
    });
    let log = node.agent_log();
    let words = "metadata.annotations[k8s.v1.cni.cncf.io/networks]: Invalid value: \"nowhere\": \
                 the node's networks are default, front, back, inside";
    assert!(said.is_ok() || log.contains(words), "{log}");
    assert!(log.contains(words), "{log}");

    // A running pod keeps its networks by the API, and by its file gets others by being replaced.
    let file = node.path("api.yaml");
    std::fs::write(&file, web("api", &[(NETWORKS, "front")])).unwrap();
    node.berth(&["apply", "-f", file.to_str().unwrap()]).unwrap().ok().unwrap();
    node.apply("p.yaml", &web("p", &[(NETWORKS, "front")])).unwrap();
    let pods = node.wait_running(&["api", "p"]).unwrap();
    std::fs::write(&file, web("api", &[(NETWORKS, "back")])).unwrap();
    let refused = node.berth(&["apply", "-f", file.to_str().unwrap()]).unwrap().code(1).unwrap();
    assert!(refused.stderr.contains("may not change while the pod runs"), "{refused}");
    node.apply("p.yaml", &web("p", &[(NETWORKS, "back")])).unwrap();
    let next = node
        .wait("the pod is replaced", SOON, |now| {
            now.get("p").is_some_and(|p| p.uid() != pods["p"].uid() && p.is_running())
        })
        .unwrap();
    assert_eq!(status(&next["p"])[1]["name"], "back");
    // The answer to a read and a write is the same.
    let (code, read) =
        http::json(&node.socket(), "GET", "/api/v1/namespaces/default/pods/api", None).unwrap();
    assert_eq!(code, 200);
    let dry = "/api/v1/namespaces/default/pods/api?dryRun=All";
    let (code, written) = http::json(&node.socket(), "PUT", dry, Some(&read)).unwrap();
    assert_eq!(code, 200, "{written}");
    assert_eq!(written["metadata"]["annotations"], read["metadata"]["annotations"]);

    let wrong = node.path("wrong.yaml");
    std::fs::write(&wrong, web("w", &[(NETWORKS, "front@eth0")])).unwrap();
    let said = node.berth(&["check", wrong.to_str().unwrap()]).unwrap().code(1).unwrap();
    assert!(said.stdout.contains("interface eth0 is that of the pod's first network"), "{said}");
    node.finish().unwrap();
}

#[test]
fn a_network_that_is_no_more_goes_and_its_pods_say_so() {
    let mut node = Node::with(CONFIG, &[]).unwrap();
    node.apply("f.yaml", &web("f", &[(FIRST, "front")])).unwrap();
    node.apply("both.yaml", &web("both", &[(NETWORKS, "front")])).unwrap();
    node.apply("plain.yaml", &web("plain", &[])).unwrap();
    let pods = node.wait_running(&["f", "both", "plain"]).unwrap();
    node.kill9_agent().unwrap();
    let fewer: String =
        CONFIG.lines().filter(|line| !line.contains("front")).map(|line| format!("{line}\n")).collect();
    std::fs::write(node.path("config.yaml"), fewer).unwrap();
    node.start_agent().unwrap();
    let event = node.wait_event("both", "this node has no network front").unwrap();
    assert!(event.contains("there are default, back, inside"), "{event}");
    assert!(!node.machine().shell("ip link").unwrap().contains("br-front"));
    assert!(!node.machine().shell("nft list ruleset").unwrap().contains("br-front"));
    let now = node.wait_running(&["plain"]).unwrap();
    assert_eq!(now["plain"].uid(), pods["plain"].uid());
    // It comes back with its network.
    node.stop_agent().unwrap();
    std::fs::write(node.path("config.yaml"), CONFIG).unwrap();
    node.start_agent().unwrap();
    node.wait_running(&["f", "both", "plain"]).unwrap();
    fetches(&node, "both", "f", "f");
    node.finish().unwrap();
}

/// Names of the leases of a network; the node's own has none.
fn leases(node: &Node, network: &str) -> usize {
    let folder = match network {
        "" => node.path("root/net/leases"),
        name => node.path(&format!("root/net/networks/{name}/leases")),
    };
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn an_agent_killed_while_pods_join_and_leave_several_networks_leaves_nothing() {
    let mut node = Node::with(CONFIG, &[]).unwrap();
    for round in 0..10_u64 {
        for number in 0..3_u64 {
            let name = format!("p{number}");
            if (round + number) % 3 == 2 {
                let _ = node.remove(&format!("{name}.yaml"));
            } else {
                // Another text each time, so that the pod is replaced.
                let networks = if round % 2 == 0 { "front,back" } else { "back,front,inside" };
                node.apply(&format!("{name}.yaml"), &web(&name, &[(NETWORKS, networks)])).unwrap();
            }
        }
        // From before the first step to after the last.
        poll::pause(Duration::from_millis(round * 7));
        node.kill9_agent().unwrap();
        if round % 4 == 1 {
            node.machine().shell("ip link del br-back").unwrap();
        }
        node.start_agent().unwrap();
    }
    for number in 0..3 {
        let name = format!("p{number}");
        node.apply(&format!("{name}.yaml"), &web(&name, &[(NETWORKS, "front,back")])).unwrap();
    }
    node.wait("the last texts run", Duration::from_secs(60), |pods| {
        let of_last = |pod: &Pod| annotation(pod, NETWORKS) == Some("front,back") && pod.is_running();
        pods.len() == 3 && pods.values().all(of_last)
    })
    .unwrap();
    poll::until("what is there is what runs", SOON, || {
        let links = node.machine().links().map_err(|e| e.to_string())?;
        let pairs = links.iter().filter(|link| link.starts_with("veth")).count();
        let held = ["", "front", "back", "inside"].map(|network| leases(&node, network));
        if (pairs, held) == (9, [3, 3, 3, 0]) { Ok(Some(())) } else { Err(format!("{links:?} {held:?}")) }
    })
    .unwrap();
    for (from, to) in [("p0", "p1"), ("p2", "p0")] {
        fetches(&node, from, to, to);
    }
    node.finish().unwrap();
}

#[test]
fn a_pod_of_a_macvlan_network_is_a_neighbour_of_the_node() {
    let lan = "{ name: lan, driver: macvlan, parent: up0, subnets: [ADDRESSES], gateway: OUTSIDE, rangeStart: FIRST }";
    let [a, b, c, _] = OUTSIDE.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let lan = lan
        .replace("ADDRESSES", &format!("{a}.{b}.{c}.0/24"))
        .replace("OUTSIDE", OUTSIDE)
        .replace("FIRST", &format!("{a}.{b}.{c}.200"));
    let mut node = Node::with(&format!("networks: [{lan}]\n"), &[]).unwrap();
    node.apply("wire.yaml", &web("wire", &[(FIRST, "lan")])).unwrap();
    node.apply("both.yaml", &web("both", &[(NETWORKS, "lan")])).unwrap();
    let pods = node.wait_running(&["wire", "both"]).unwrap();
    let ip = pods["wire"].ip().to_owned();
    assert!(ip.starts_with(&format!("{a}.{b}.{c}.2")), "{ip}");
    fetches(&node, "wire", "127.0.0.1", "wire");
    fetches(&node, "both", &ip, "wire");
    // A name leads to the network that both are on.
    fetches(&node, "both", "wire", "wire");
    node.exec("wire", &["ping", "-c1", "-W5", OUTSIDE]).unwrap().ok().unwrap();
    // From outside it is reached like any machine.
    let mut curl = node.machine().outside("curl");
    curl.args(["-sS", "--fail", "--max-time", "5", &format!("http://{ip}/")]);
    assert_eq!(berth_e2e::tools::run(curl).unwrap().ok().unwrap(), "I am wire\n");
    let conf = node.exec("wire", &["cat", "/etc/resolv.conf"]).unwrap().ok().unwrap();
    assert!(!conf.contains("10.85."), "the bridge's name server is not to be reached: {conf}");
    let page = node.page("/metrics/cadvisor").unwrap();
    let counted = |line: &&str| {
        line.starts_with("container_network_receive_packets_total{")
            && line.contains("wire-n1")
            && !line.ends_with(" 0")
    };
    assert!(page.lines().any(|line| counted(&line)), "the interface in the pod is counted");

    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    let after = node.wait_running(&["wire", "both"]).unwrap();
    assert_eq!((after["wire"].uid(), after["wire"].restarts()), (pods["wire"].uid(), 0));
    let closed = web("closed", &[(FIRST, "lan")]) + "      ports: [{ containerPort: 80, hostPort: 8080 }]\n";
    node.apply("closed.yaml", &closed).unwrap();
    node.wait_event("closed", "host port 8080: the pod's first network lan is of driver macvlan").unwrap();
    node.finish().unwrap();
}

#[test]
fn settings_that_cannot_be_are_named_at_start() {
    for (networks, said) in [
        (
            "[{ name: a, subnets: [10.85.3.0/24] }]",
            "network a: 10.85.3.0/24 overlaps 10.85.0.0/16 of the pod network",
        ),
        (
            "[{ name: a, subnets: [10.86.3.0/24] }]",
            "network a: 10.86.3.0/24 overlaps 10.86.0.0/16 of the Services",
        ),
        (
            "[{ name: a, subnets: [10.90.0.0/24], gateway: 10.91.0.1 }]",
            "network a: gateway 10.91.0.1 is no address",
        ),
        (
            "[{ name: with-a-long-name, subnets: [10.90.0.0/24] }]",
            "network with-a-long-name: bridge name \"br-with-a-long-name\"",
        ),
        (
            "[{ name: a, subnets: [10.90.0.0/24], bridge: brtest0 }]",
            "bridge brtest0 is that of the pod network, too",
        ),
        ("[{ name: a, subnets: [10.90.0.0/24], vlan: 7 }]", "networks[0]: a: vlan: is not supported"),
    ] {
        let error = Node::with(&format!("networks: {networks}\n"), &[]).map(drop).unwrap_err().to_string();
        assert!(error.contains(said), "{networks}: {error}");
    }
}
