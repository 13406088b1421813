//! Pods reach each other, the host and the world; the host reaches pods.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use berth_netplug::Network;
use common::{addr, assert_clean, attach, ip, nft, on_a_machine};

#[test]
fn pods_and_host_reach_each_other() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let a = attach(runtime, &network, "a", &[]);
        let b = attach(runtime, &network, "b", &[]);
        let _a = (a.ns.serve_tcp("0.0.0.0:80"), a.ns.serve_udp("0.0.0.0:80"));
        let _host = machine.host.serve_tcp("0.0.0.0:90");
        let to_a = format!("{}:80", a.ip);
        assert_eq!(b.ns.tcp(&to_a).unwrap(), b.ip);
        assert_eq!(b.ns.udp(&to_a).unwrap(), b.ip);
        assert_eq!(a.ns.tcp(&to_a).unwrap(), a.ip);
        assert_eq!(machine.host.tcp(&to_a).unwrap(), "10.85.0.1");
        assert_eq!(machine.host.udp(&to_a).unwrap(), "10.85.0.1");
        assert_eq!(a.ns.tcp("10.85.0.1:90").unwrap(), a.ip);
        let _lo = a.ns.serve_tcp("127.0.0.1:81");
        assert_eq!(a.ns.tcp("127.0.0.1:81").unwrap(), "127.0.0.1");
        runtime.block_on(network.close_all()).unwrap();
        assert_clean(machine.dir.path());
    });
}

#[test]
fn what_leaves_the_pod_network_has_the_hosts_address() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = machine.open(runtime);
        let a = attach(runtime, &network, "a", &[]);
        let _servers = (outside.serve_tcp("0.0.0.0:80"), outside.serve_udp("0.0.0.0:80"));
        assert_eq!(a.ns.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
        assert_eq!(a.ns.udp("192.0.2.1:80").unwrap(), "192.0.2.2");
    });
}

#[test]
fn without_masquerade_pods_keep_their_address() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        outside.run(|| ip("route add 10.85.0.0/16 via 192.0.2.2"));
        let mut config = machine.config();
        config.masquerade = false;
        let network = runtime.block_on(Network::open(config)).unwrap();
        let a = attach(runtime, &network, "a", &[]);
        let _server = outside.serve_tcp("0.0.0.0:80");
        assert_eq!(a.ns.tcp("192.0.2.1:80").unwrap(), a.ip);
    });
}

#[test]
fn both_families() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let mut config = machine.config();
        config.ipv6 = Some("fd00:85::/64".parse().unwrap());
        let network = runtime.block_on(Network::open(config)).unwrap();
        let a = attach(runtime, &network, "a", &[(None, 8080, 80, berth_netplug::Protocol::Tcp)]);
        let b = attach(runtime, &network, "b", &[]);
        let again = runtime.block_on(network.attach(&a.network)).unwrap();
        assert_eq!(again.ips, [addr("10.85.0.2"), addr("fd00:85::2")]);
        let _servers = (a.ns.serve_tcp("[::]:80"), outside.serve_tcp("[::]:90"));
        assert_eq!(b.ns.tcp("[fd00:85::2]:80").unwrap(), "fd00:85::3");
        assert_eq!(machine.host.tcp("[fd00:85::2]:80").unwrap(), "fd00:85::1");
        assert_eq!(a.ns.tcp("[2001:db8::1]:90").unwrap(), "2001:db8::2");
        assert_eq!(outside.tcp("[2001:db8::2]:8080").unwrap(), "2001:db8::1");
        assert_eq!(machine.host.tcp("[2001:db8::2]:8080").unwrap(), "2001:db8::2");
        assert_eq!(b.ns.tcp("[fd00:85::1]:8080").unwrap(), "fd00:85::1");
        assert_eq!(a.ns.tcp("[fd00:85::1]:8080").unwrap(), "fd00:85::1");
    });
}

#[test]
fn links_are_as_promised() {
    on_a_machine(|machine, runtime| {
        let _outside = machine.outside();
        ip("link set up0 mtu 1400");
        let network = machine.open(runtime);
        let a = attach(runtime, &network, "a", &[]);
        let inside = a.ns.run(|| ip("-d addr show eth0"));
        assert!(inside.contains("mtu 1400") && inside.contains("0a:58:0a:55:00:02"), "{inside}");
        assert!(inside.contains("inet 10.85.0.2/16 brd 10.85.255.255"), "{inside}");
        assert_eq!(
            a.ns.run(|| ip("route show default")).trim_end(),
            "default via 10.85.0.1 dev eth0 proto static"
        );
        let outside = ip(&format!("-d link show {}", a.host_if));
        assert!(outside.contains("hairpin on") && outside.contains("alias default/pod-a"), "{outside}");
        assert!(outside.contains("master berth0") && outside.contains("mtu 1400"), "{outside}");
        assert!(a.host_if.starts_with("vethpoda") && a.host_if.len() <= 15, "{}", a.host_if);
        let bridge = ip("-d addr show berth0");
        assert!(bridge.contains("0a:58:0a:55:00:01") && bridge.contains("inet 10.85.0.1/16"), "{bridge}");
    });
}

#[test]
fn counters_are_the_pods() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let a = attach(runtime, &network, "a", &[]);
        let _server = a.ns.serve_udp("0.0.0.0:80");
        let before = runtime.block_on(network.stats(&a.host_if)).unwrap();
        let payload = vec![0; 1000];
        let socket = std::net::UdpSocket::bind("10.85.0.1:0").unwrap();
        for _ in 0..10 {
            socket.send_to(&payload, format!("{}:80", a.ip)).unwrap();
        }
        // The first packet waits for the pod's hardware address, and the others with it.
        common::eventually("ten packets counted", || {
            let after = runtime.block_on(network.stats(&a.host_if)).unwrap();
            let counted =
                after.rx_bytes - before.rx_bytes >= 10_000 && after.rx_packets - before.rx_packets >= 10;
            assert!(after.tx_bytes - before.tx_bytes < 5_000);
            if counted { Ok(()) } else { Err(after) }
        });
        let error = runtime.block_on(network.stats("nothing")).unwrap_err();
        assert_eq!(error.to_string(), "no link nothing");
    });
}

/// `nft` reads the table as it was meant.
#[test]
fn the_table_as_nft_lists_it() {
    on_a_machine(|machine, runtime| {
        use berth_netplug::Protocol::{Tcp, Udp};
        let mut config = machine.config();
        config.ipv6 = Some("fd00:85::/64".parse().unwrap());
        let network = runtime.block_on(Network::open(config)).unwrap();
        let _a = attach(runtime, &network, "a", &[(None, 8080, 80, Tcp), (Some("192.0.2.2"), 53, 5353, Udp)]);
        let listed = nft("-n list table inet berth");
        // In words that every version of nft agrees on.
        let expected = [
            "192.0.2.2 . 17 . 53 : 10.85.0.2 . 5353",
            "6 . 8080 : 10.85.0.2 . 80",
            "6 . 8080 : fd00:85::2 . 80",
            "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service",
            "dnat ip to ip daddr . meta l4proto . th dport map @hostport-address4",
            "dnat ip6 to meta l4proto . th dport map @hostport6",
            "iifname \"berth0\" ip daddr 127.0.0.0/8 drop",
            "type nat hook prerouting priority -100; policy accept;",
            "jump hostports",
            "ip saddr 127.0.0.0/8 oifname \"berth0\" masquerade",
            "ip6 saddr fd00:85::/64 ip6 daddr != fd00:85::/64 oifname != \"berth0\" masquerade",
        ];
        for words in expected {
            assert!(listed.contains(words), "{words} is missing in {listed}");
        }
    });
}

#[test]
fn a_foreign_eth0_is_refused_and_left_alone() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let ns = common::Ns::new();
        ns.run(|| ip("link add eth0 type bridge"));
        let error = runtime.block_on(network.attach(&common::pod("a", &ns, &[]))).unwrap_err();
        assert_eq!(error.to_string(), "network namespace of pod default/pod-a already has an interface eth0");
        assert!(ns.run(|| ip("-d link show eth0")).contains("bridge"));
        assert!(!ip("-o link").contains("veth"));
        assert_eq!(attach(runtime, &network, "b", &[]).ip, "10.85.0.3");
    });
}

#[test]
fn a_link_in_the_bridges_place_is_refused() {
    on_a_machine(|machine, runtime| {
        ip("link add berth0 type veth peer name other");
        let error = runtime.block_on(Network::open(machine.config())).unwrap_err();
        assert_eq!(error.to_string(), "link berth0 exists and is not a bridge");
    });
}
