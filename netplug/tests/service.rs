//! Services from every side.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use berth_netplug::Protocol::{self, Tcp, Udp};
use berth_netplug::{Config, Network, Service, ServicePort};
use common::{Machine, Ns, Pod, Server, attach, ip, nft, on_a_machine};
use tokio::runtime::Runtime;

fn config(machine: &Machine) -> Config {
    let mut config = machine.config();
    config.ipv6 = Some("fd00:85::/64".parse().unwrap());
    config.service_ipv4 = Some("10.96.0.0/16".parse().unwrap());
    config.service_ipv6 = Some("fd00:96::/112".parse().unwrap());
    config
}

fn open(machine: &Machine, runtime: &Runtime) -> Network {
    runtime.block_on(Network::open(config(machine))).unwrap()
}

/// A Service `web` with port 80 of TCP and UDP, on the node 30080.
fn web(endpoints: &[&str]) -> Service {
    let port = |protocol| ServicePort {
        protocol,
        port: 80,
        node_port: Some(30080),
        endpoints: endpoints.iter().map(|to| to.parse().unwrap()).collect(),
    };
    Service {
        namespace: "default".into(),
        name: "web".into(),
        cluster_ips: vec!["10.96.0.10".parse().unwrap(), "fd00:96::10".parse().unwrap()],
        ports: vec![port(Tcp), port(Udp)],
        affinity: None,
    }
}

fn set(runtime: &Runtime, network: &Network, services: &[Service]) {
    runtime.block_on(network.set_services(services.to_vec())).unwrap();
}

/// Servers of both protocols and families on port 8080.
fn serve(ns: &Ns) -> [Server; 2] {
    [ns.serve_tcp("[::]:8080"), ns.serve_udp("[::]:8080")]
}

/// A server that says its name.
fn named(ns: &Ns, name: &'static str) -> Server {
    ns.serve_tcp_with("[::]:8080", move |_| name.into())
}

#[test]
fn from_everywhere() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = open(machine, runtime);
        let (pod, other) = (attach(runtime, &network, "web", &[]), attach(runtime, &network, "other", &[]));
        let _servers = serve(&pod.ns);
        set(runtime, &network, &[web(&["10.85.0.2:8080", "[fd00:85::2]:8080"])]);
        // (from whom, to where, whom the pod sees)
        let ways = [
            ("host", &machine.host, "10.96.0.10:80", "10.85.0.1"),
            ("host", &machine.host, "[fd00:96::10]:80", "fd00:85::1"),
            ("another pod", &other.ns, "10.96.0.10:80", "10.85.0.1"),
            ("another pod", &other.ns, "[fd00:96::10]:80", "fd00:85::1"),
            ("itself", &pod.ns, "10.96.0.10:80", "10.85.0.1"),
            ("itself", &pod.ns, "[fd00:96::10]:80", "fd00:85::1"),
            ("outside by node port", &outside, "192.0.2.2:30080", "192.0.2.1"),
            ("outside by node port", &outside, "[2001:db8::2]:30080", "2001:db8::1"),
            ("host by node port", &machine.host, "192.0.2.2:30080", "192.0.2.2"),
            ("host by localhost", &machine.host, "127.0.0.1:30080", "10.85.0.1"),
            ("another pod by node port", &other.ns, "192.0.2.2:30080", "10.85.0.1"),
            ("itself by node port", &pod.ns, "10.85.0.1:30080", "10.85.0.1"),
        ];
        for (who, from, to, seen) in ways {
            let same = |answer: std::io::Result<String>| {
                answer.map(|ip| ip.trim_start_matches("::ffff:").to_owned()).map_err(|e| e.to_string())
            };
            assert_eq!(same(from.tcp(to)), Ok(seen.into()), "tcp from {who} to {to}");
            assert_eq!(same(from.udp(to)), Ok(seen.into()), "udp from {who} to {to}");
        }
        outside.run(|| ip("route add 10.96.0.0/16 via 192.0.2.2"));
        assert!(outside.tcp("10.96.0.10:80").is_ok(), "from outside, who knows the way to Services");
    });
}

#[test]
fn a_host_without_any_route_reaches_services() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let pod = attach(runtime, &network, "web", &[]);
        let _servers = serve(&pod.ns);
        set(runtime, &network, &[web(&["10.85.0.2:8080", "[fd00:85::2]:8080"])]);
        assert!(machine.host.tcp("10.96.0.10:80").is_ok());
        assert!(machine.host.tcp("[fd00:96::10]:80").is_ok());
    });
}

/// Also "operation not permitted", as the kernel says it to a sender of the host itself whose datagram is refused.
fn refused(answer: std::io::Result<String>) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, PermissionDenied};
    answer.is_err_and(|e| [ConnectionRefused, PermissionDenied].contains(&e.kind()))
}

#[test]
fn what_leads_nowhere_is_refused_at_once() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = open(machine, runtime);
        let pod = attach(runtime, &network, "web", &[]);
        let _servers = serve(&pod.ns);
        set(runtime, &network, &[web(&[])]);
        for to in ["10.96.0.10:80", "[fd00:96::10]:80", "10.96.0.10:81", "10.96.77.77:80"] {
            for (who, from) in [("host", &machine.host), ("pod", &pod.ns)] {
                assert!(refused(from.tcp(to)), "tcp from {who} to {to}");
                assert!(refused(from.udp(to)), "udp from {who} to {to}");
            }
        }
        assert!(refused(outside.tcp("192.0.2.2:30080")));
        set(runtime, &network, &[web(&["10.85.0.2:8080"])]);
        assert!(pod.ns.tcp("10.96.0.10:80").is_ok());
        assert!(refused(pod.ns.tcp("10.96.0.10:81")));
        set(runtime, &network, &[]);
        assert!(refused(pod.ns.tcp("10.96.0.10:80")));
    });
}

fn three(runtime: &Runtime, network: &Network) -> ([Pod; 3], [Server; 3]) {
    let names = ["a", "b", "c"];
    let pods = names.map(|name| attach(runtime, network, name, &[]));
    let servers = [0, 1, 2].map(|i| named(&pods[i].ns, names[i]));
    (pods, servers)
}

const ALL: [&str; 3] = ["10.85.0.2:8080", "10.85.0.3:8080", "10.85.0.4:8080"];

/// Who answers that many times.
fn answers(from: &Ns, to: &str, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| from.tcp(to).unwrap()).collect()
}

fn names(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The chance that one of three is never drawn in 100 times is below 10^-17.
#[test]
fn connections_spread_over_the_endpoints() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let (_pods, _servers) = three(runtime, &network);
        for to in ["10.96.0.10:80", "10.85.0.1:30080"] {
            set(runtime, &network, &[web(&ALL)]);
            assert_eq!(answers(&machine.host, to, 100), names("a b c"));
            set(runtime, &network, &[web(&ALL[1..])]);
            assert_eq!(answers(&machine.host, to, 100), names("b c"));
            set(runtime, &network, &[web(&ALL[..1])]);
            assert_eq!(answers(&machine.host, to, 10), names("a"));
        }
    });
}

#[test]
fn a_client_with_affinity_gets_the_same_endpoint_while_it_is_there() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let (_pods, _servers) = three(runtime, &network);
        let sticky =
            |endpoints: &[&str]| Service { affinity: Some(Duration::from_secs(10_800)), ..web(endpoints) };
        for to in ["10.96.0.10:80", "10.85.0.1:30080"] {
            set(runtime, &network, &[sticky(&ALL)]);
            let chosen = answers(&machine.host, to, 50);
            assert_eq!(chosen.len(), 1, "{chosen:?}");
            let index = "abc".find(chosen.first().unwrap().as_str()).unwrap();
            // Fewer endpoints, and other numbers for them; he stays.
            set(runtime, &network, &[sticky(&[ALL[index], ALL[(index + 1) % 3]])]);
            assert_eq!(answers(&machine.host, to, 20), chosen);
            let rest: Vec<&str> = ALL.iter().filter(|one| **one != ALL[index]).copied().collect();
            set(runtime, &network, &[sticky(&rest)]);
            let next = answers(&machine.host, to, 50);
            assert!(next.len() == 1 && next != chosen, "{next:?} after {chosen:?}");
        }
    });
}

#[test]
fn affinity_ends_after_its_time() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let (_pods, _servers) = three(runtime, &network);
        let service = Service { affinity: Some(Duration::from_secs(1)), ..web(&ALL) };
        set(runtime, &network, &[service]);
        let mut seen = answers(&machine.host, "10.96.0.10:80", 1);
        common::eventually_within(Duration::from_secs(30), "another endpoint", || {
            // Each connection begins the time anew, so it is asked for only when it has gone.
            if nft("list map inet berth client4").contains("elements") {
                return Err(seen.clone());
            }
            seen.extend(answers(&machine.host, "10.96.0.10:80", 1));
            if seen.len() > 1 { Ok(()) } else { Err(seen.clone()) }
        });
    });
}

/// A chatty UDP client leaves an endpoint that has gone, and finds a Service that was not there when it began.
#[test]
fn udp_flows_follow_the_endpoints() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let pods = ["a", "b"].map(|name| attach(runtime, &network, name, &[]));
        let _servers = [serve(&pods[0].ns), serve(&pods[1].ns)];
        for to in ["10.96.0.10:80", "10.85.0.1:30080"] {
            let client = std::net::UdpSocket::bind("10.85.0.1:0").unwrap();
            client.set_read_timeout(Some(common::PATIENCE)).unwrap();
            let ask = || {
                client.send_to(b"x", to).unwrap();
                let mut said = [0; 64];
                client.recv(&mut said).map(|_| ())
            };
            for pod in ["10.85.0.2:8080", "10.85.0.3:8080", "10.85.0.2:8080"] {
                set(runtime, &network, &[web(&[pod])]);
                ask().unwrap();
                // Only the flow to that pod is left.
                let flows = ip_conntrack();
                assert!(flows.iter().any(|line| line.contains(&format!("src={}", &pod[..9]))), "{flows:?}");
                let others = ["10.85.0.2", "10.85.0.3"].into_iter().filter(|one| !pod.starts_with(one));
                for other in others {
                    assert!(!flows.iter().any(|line| line.contains(&format!("src={other} "))), "{flows:?}");
                }
            }
            set(runtime, &network, &[]);
        }
    });
}

/// What connection tracking of this namespace knows of UDP.
fn ip_conntrack() -> Vec<String> {
    let all = common::run("conntrack", "-L -p udp");
    all.lines().map(str::to_owned).collect()
}

#[test]
fn an_open_connection_outlives_its_endpoint() {
    on_a_machine(|machine, runtime| {
        use std::io::{Read, Write};
        let network = open(machine, runtime);
        let pod = attach(runtime, &network, "web", &[]);
        let listener = pod.ns.run(|| std::net::TcpListener::bind("0.0.0.0:8080").unwrap());
        set(runtime, &network, &[web(&["10.85.0.2:8080"])]);
        let mut client = std::net::TcpStream::connect("10.96.0.10:80").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        set(runtime, &network, &[web(&[])]);
        client.write_all(b"ping").unwrap();
        let mut said = [0; 4];
        server.read_exact(&mut said).unwrap();
        server.write_all(b"pong").unwrap();
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"pong");
        assert!(refused(machine.host.tcp("10.96.0.10:80")));
    });
}

#[test]
fn services_outlive_the_agent_and_the_table() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let pod = attach(runtime, &network, "web", &[]);
        let _servers = serve(&pod.ns);
        set(runtime, &network, &[web(&["10.85.0.2:8080"])]);
        // It is stored a moment after it took effect.
        common::eventually("the record", || {
            let text = std::fs::read_to_string(machine.dir.path().join("net/services.json"));
            text.is_ok_and(|text| text.contains("10.85.0.2")).then_some(()).ok_or("not there yet")
        });
        drop(network);
        assert!(pod.ns.tcp("10.96.0.10:80").is_ok(), "without the agent");
        let network = open(machine, runtime);
        assert!(pod.ns.tcp("10.96.0.10:80").is_ok(), "opened again");
        nft("delete table inet berth");
        common::eventually("the table again", || pod.ns.tcp("10.96.0.10:80").map(|_| ()));
        // A change of a table that somebody spoilt.
        drop(network);
        let network = open(machine, runtime);
        nft("flush map inet berth service-endpoint4");
        set(runtime, &network, &[web(&["10.85.0.2:8080", "10.85.0.2:8080"])]);
        set(runtime, &network, &[web(&["10.85.0.2:8080", "10.85.0.9:8080"])]);
        set(runtime, &network, &[web(&["10.85.0.2:8080"])]);
        assert!(pod.ns.tcp("10.96.0.10:80").is_ok());
        runtime.block_on(network.close_all()).unwrap();
        common::assert_clean(machine.dir.path());
    });
}

/// Only what differs is touched: a rule's handle stays while the Services around it change.
#[test]
fn a_change_leaves_the_rest_alone() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let mut second = web(&ALL[..1]);
        second.name = "second".into();
        second.cluster_ips = vec!["10.96.0.11".parse().unwrap()];
        second.ports.iter_mut().for_each(|port| port.node_port = None);
        set(runtime, &network, &[web(&ALL), second.clone()]);
        let table = || nft("-a list table inet berth");
        let handle = |chain: &str| {
            let listed = table();
            let line =
                listed.lines().find(|line| line.contains(&format!("chain {chain} "))).map(str::to_owned);
            line.unwrap_or_else(|| panic!("{chain} is missing in {listed}"))
        };
        let before = (handle("pick4-of-1"), handle("postrouting"));
        let of_three = handle("pick4-of-3");
        set(runtime, &network, &[web(&ALL[..2]), second.clone()]);
        assert_eq!((handle("pick4-of-1"), handle("postrouting")), before);
        assert!(table().contains("pick4-of-2"));
        assert_eq!(handle("pick4-of-3"), of_three, "it waits for who has three endpoints again");
        set(runtime, &network, &[web(&ALL), second]);
        assert_eq!(handle("pick4-of-3"), of_three);
    });
}

/// `nft` can list what we made, all of it.
#[test]
fn the_table_as_nft_lists_it() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let mut sticky = web(&ALL);
        sticky.affinity = Some(Duration::from_secs(60));
        let endpoints = vec!["10.85.0.2:5000".parse().unwrap()];
        sticky.ports.push(ServicePort { protocol: Protocol::Sctp, port: 7, node_port: None, endpoints });
        let mut plain = web(&ALL[..2]);
        plain.name = "web2".into();
        plain.cluster_ips.truncate(1);
        plain.cluster_ips[0] = "10.96.0.12".parse().unwrap();
        set(runtime, &network, &[sticky, plain]);
        let listed = nft("-n list table inet berth");
        let expected = [
            "10.96.0.10 . 6 . 80 : goto pick4-of-3-or-again",
            "10.96.0.12 . 17 . 80 : goto pick4-of-2",
            "10.96.0.10 . 132 . 7 : goto pick4-of-1-or-again",
            "17 . 30080 : goto pick4-of-3-or-again",
            "6 . 30080 . 0x00000002 : 10.85.0.4 . 8080",
            "10.96.0.12 . 6 . 80 . 0x00000001 : 10.85.0.3 . 8080",
            "10.96.0.10 . 6 . 80 . 10.85.0.4 . 8080 : goto remember4-for-60s",
            "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @service-endpoint4",
            "dnat ip to ip saddr . ip daddr . meta l4proto . th dport map @client4",
            "ct original ip daddr . meta l4proto . ct original proto-dst . ip daddr . th dport vmap @service-member4",
            "update @client4 { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 60s : ip daddr . th dport }",
            "ip daddr . meta l4proto . th dport vmap @service4",
            "ip daddr 10.96.0.0/16 jump unserved",
            "reject with tcp reset",
        ];
        for words in expected {
            assert!(listed.contains(words), "{words} is missing in {listed}");
        }
    });
}
