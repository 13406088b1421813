//! Beside the rules that firewalld, ufw, dockerd and kube-proxy make: pods have what they need, those programs' rules stay as
//! they are, and when they make them anew, pods are let through again.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::process::{Command, Stdio};

use berth_netplug::Protocol::{Tcp, Udp};
use berth_netplug::{Network, Service, ServicePort};
use common::{Machine, Ns, Pod, attach, eventually, nft, on_a_machine, run};
use tokio::runtime::Runtime;

/// A program's rules.
struct Rules {
    text: &'static str,
    /// Whether they are for `iptables-restore`, not for `nft`.
    by_iptables: bool,
}

const DOCKER: Rules = Rules { text: include_str!("firewalls/docker.rules"), by_iptables: true };
const UFW: Rules = Rules { text: include_str!("firewalls/ufw.rules"), by_iptables: true };
const KUBE_PROXY: Rules = Rules { text: include_str!("firewalls/kube-proxy.rules"), by_iptables: true };
const FIREWALLD: Rules = Rules { text: include_str!("firewalls/firewalld.nft"), by_iptables: false };

impl Rules {
    /// Loads them, as the program does when it starts or is told to begin anew.
    fn load(&self) {
        if self.by_iptables {
            feed("iptables-nft-restore", &[], self.text);
        } else {
            let anew = format!("table inet firewalld\ndelete table inet firewalld\n{}", self.text);
            feed("nft", &["-f", "-"], &anew);
        }
    }

    /// What there is of them, without the counts of packets.
    fn shown(&self) -> String {
        if self.by_iptables {
            ["filter", "nat"].map(|table| run("iptables-nft", &format!("-S -t {table}"))).concat()
        } else {
            nft("list table inet firewalld")
        }
    }
}

fn feed(program: &str, words: &[&str], text: &str) {
    use std::io::Write;
    let mut child = Command::new(program).args(words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}");
}

fn open(machine: &Machine, runtime: &Runtime) -> Network {
    let mut config = machine.config();
    config.name_server = true;
    config.service_ipv4 = Some("10.86.0.0/16".parse().unwrap());
    let network = runtime.block_on(Network::open(config)).unwrap();
    let port = ServicePort {
        protocol: Tcp,
        port: 80,
        node_port: Some(30080),
        endpoints: vec!["10.85.0.2:80".parse().unwrap()],
    };
    let service = Service {
        namespace: "default".into(),
        name: "web".into(),
        cluster_ips: vec!["10.86.0.9".parse().unwrap()],
        ports: vec![port],
        affinity: None,
    };
    runtime.block_on(network.set_services(vec![service])).unwrap();
    network
}

/// Everything that pods need, in words what does not work.
fn broken(machine: &Machine, outside: &Ns, web: &Pod, other: &Pod) -> Vec<String> {
    let ways = [
        ("out", &web.ns, "192.0.2.1:80"),
        ("host port from outside", outside, "192.0.2.2:8080"),
        ("host port from the host", &machine.host, "192.0.2.2:8080"),
        ("host port from localhost", &machine.host, "127.0.0.1:8080"),
        ("host port from another pod", &other.ns, "192.0.2.2:8080"),
        ("host port from itself", &web.ns, "192.0.2.2:8080"),
        ("pod to pod", &other.ns, "10.85.0.2:80"),
        ("Service from a pod", &other.ns, "10.86.0.9:80"),
        ("Service from the host", &machine.host, "10.86.0.9:80"),
        ("node port from outside", outside, "192.0.2.2:30080"),
        ("name server", &other.ns, "10.85.0.1:53"),
    ];
    let failed = ways.iter().filter_map(|(what, from, to)| {
        let error = from.tcp(to).err()?;
        Some(format!("{what}: {error}"))
    });
    let by_datagram = [
        ("datagrams out", &web.ns, "192.0.2.1:80"),
        ("datagrams to the host port", outside, "192.0.2.2:8080"),
        ("name server by datagram", &other.ns, "10.85.0.1:53"),
    ];
    let failed_too = by_datagram.iter().filter_map(|(what, from, to)| {
        let error = from.udp(to).err()?;
        Some(format!("{what}: {error}"))
    });
    failed.chain(failed_too).collect()
}

fn beside(rules: &'static Rules) {
    on_a_machine(move |machine, runtime| {
        let outside = machine.outside();
        rules.load();
        let theirs = rules.shown();
        let network = open(machine, runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp), (None, 8080, 80, Udp)]);
        let other = attach(runtime, &network, "other", &[]);
        let _servers = [
            web.ns.serve_tcp("0.0.0.0:80"),
            web.ns.serve_udp("0.0.0.0:80"),
            outside.serve_tcp("0.0.0.0:80"),
            outside.serve_udp("0.0.0.0:80"),
            machine.host.serve_tcp("10.85.0.1:53"),
            machine.host.serve_udp("10.85.0.1:53"),
            machine.host.serve_tcp("0.0.0.0:99"),
        ];
        assert_eq!(broken(machine, &outside, &web, &other), Vec::<String>::new());
        let refuses_guests = rules.text.contains("INPUT DROP") || !rules.by_iptables;
        assert_eq!(
            outside.tcp("192.0.2.2:99").is_err(),
            refuses_guests,
            "what is for the host is theirs to judge"
        );
        outside.run(|| common::ip("route add 10.85.0.0/16 via 192.0.2.2"));
        assert!(outside.tcp("10.85.0.2:80").is_err(), "who was not invited is theirs to judge");
        // Their rules are all there, in their order.
        let with = rules.shown();
        let mut lines = with.lines();
        for line in theirs.lines() {
            assert!(lines.any(|one| one == line), "{line:?} is gone or elsewhere: {with}");
        }

        // Started anew, they know nothing of pods; those are let through again, without anybody asking.
        rules.load();
        eventually("pods are let through again", || match broken(machine, &outside, &web, &other) {
            none if none.is_empty() => Ok(()),
            some => Err(some),
        });
        runtime.block_on(network.close_all()).unwrap();
        assert_eq!(rules.shown(), theirs);
    });
}

#[test]
fn beside_docker() {
    beside(&DOCKER);
}

#[test]
fn beside_ufw() {
    beside(&UFW);
}

#[test]
fn beside_kube_proxy() {
    beside(&KUBE_PROXY);
}

#[test]
fn beside_firewalld() {
    beside(&FIREWALLD);
}

/// A firewall that is started later, when pods run already.
#[test]
fn a_firewall_that_comes_later() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = open(machine, runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        let _servers = [web.ns.serve_tcp("0.0.0.0:80"), outside.serve_tcp("0.0.0.0:80")];
        for rules in [&DOCKER, &FIREWALLD] {
            rules.load();
            eventually("out beside a new firewall", || web.ns.tcp("192.0.2.1:80").map(drop));
            eventually("in beside a new firewall", || outside.tcp("192.0.2.2:8080").map(drop));
        }
        nft("flush ruleset");
        eventually("out once all rules were flushed", || web.ns.tcp("192.0.2.1:80").map(drop));
        eventually("in once all rules were flushed", || outside.tcp("192.0.2.2:8080").map(drop));
    });
}
