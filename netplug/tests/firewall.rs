//! Beside firewalls of others.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use berth_netplug::Protocol::Tcp;
use common::{attach, nft, on_a_machine, run};

/// As docker and ufw do it.
#[test]
fn pods_pass_a_forward_chain_that_drops() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        run("iptables-nft", "-P FORWARD DROP");
        run("iptables-nft", "-A FORWARD -i docker0 -j ACCEPT");
        let before = run("iptables-nft", "-S");
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        let other = attach(runtime, &network, "other", &[]);
        let _servers = (web.ns.serve_tcp("0.0.0.0:80"), outside.serve_tcp("0.0.0.0:80"));
        assert!(web.ns.tcp("192.0.2.1:80").is_ok(), "out");
        assert!(outside.tcp("192.0.2.2:8080").is_ok(), "in by host port");
        assert!(other.ns.tcp(&format!("{}:80", web.ip)).is_ok(), "pod to pod");
        assert!(web.ns.tcp("192.0.2.2:8080").is_ok(), "itself");
        outside.run(|| common::ip("route add 10.85.0.0/16 via 192.0.2.2"));
        assert!(
            outside.tcp(&format!("{}:80", web.ip)).is_err(),
            "uninvited traffic is still theirs to judge"
        );

        let with = run("iptables-nft", "-S FORWARD");
        let comment = "-m comment --comment \"pod network berth\" -j ACCEPT";
        for words in ["-i berth0", "-o berth0 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT"] {
            let rule = format!("-A FORWARD {words} {comment}");
            assert!(with.contains(&rule), "iptables can read our rules: {with}");
        }
        runtime.block_on(network.gc(&["web".into(), "other".into()])).unwrap();
        assert_eq!(run("iptables-nft", "-S FORWARD"), with, "they are not added twice");
        runtime.block_on(network.close_all()).unwrap();
        assert_eq!(run("iptables-nft", "-S"), before);
    });
}

/// The same in a hand-made table of nft.
#[test]
fn pods_pass_an_nft_chain_that_drops() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        nft("add table inet mine");
        nft("add chain inet mine passage { type filter hook forward priority 10 ; policy drop ; }");
        let before = nft("list ruleset");
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        let _servers = (web.ns.serve_tcp("0.0.0.0:80"), outside.serve_tcp("0.0.0.0:80"));
        assert!(web.ns.tcp("192.0.2.1:80").is_ok(), "out");
        assert!(outside.tcp("192.0.2.2:8080").is_ok(), "in by host port");
        outside.run(|| common::ip("route add 10.85.0.0/16 via 192.0.2.2"));
        assert!(outside.tcp(&format!("{}:80", web.ip)).is_err());
        runtime.block_on(network.close_all()).unwrap();
        assert_eq!(nft("list ruleset"), before);
    });
}

/// ufw and hand-made firewalls drop what is for the host; pods ask its name server all the same, and nothing else.
#[test]
fn questions_to_the_name_server_pass_an_input_chain_that_drops() {
    on_a_machine(|machine, runtime| {
        run("iptables-nft", "-P INPUT DROP");
        nft("add table inet mine");
        nft("add chain inet mine input { type filter hook input priority 10 ; policy drop ; }");
        let before = (run("iptables-nft", "-S"), nft("list table inet mine"));
        let mut config = machine.config();
        config.name_server = true;
        let network = runtime.block_on(berth_netplug::Network::open(config)).unwrap();
        let pod = attach(runtime, &network, "pod", &[]);
        let _servers = (
            machine.host.serve_udp("10.85.0.1:53"),
            machine.host.serve_tcp("10.85.0.1:53"),
            machine.host.serve_tcp("10.85.0.1:54"),
        );
        assert!(pod.ns.udp("10.85.0.1:53").is_ok() && pod.ns.tcp("10.85.0.1:53").is_ok());
        assert!(pod.ns.tcp("10.85.0.1:54").is_err(), "the rest is still theirs to judge");
        let with = run("iptables-nft", "-S INPUT");
        for protocol in ["udp", "tcp"] {
            let rule = format!("-A INPUT -i berth0 -p {protocol}");
            assert!(
                with.contains(&rule) && with.contains("--dport 53"),
                "iptables can read our rules: {with}"
            );
        }
        runtime.block_on(network.close_all()).unwrap();
        assert_eq!((run("iptables-nft", "-S"), nft("list table inet mine")), before);
        let silent = runtime.block_on(berth_netplug::Network::open(machine.config())).unwrap();
        assert_eq!(run("iptables-nft", "-S"), before.0, "without a name server nothing is let through");
        drop(silent);
    });
}

#[test]
fn chains_that_accept_are_left_alone() {
    on_a_machine(|machine, runtime| {
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0 ; policy accept ; }");
        let before = nft("list table ip filter");
        let network = machine.open(runtime);
        assert_eq!(nft("list table ip filter"), before);
        drop(network);
    });
}
