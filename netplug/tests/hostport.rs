//! Host ports from every side.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use berth_netplug::Protocol::{Sctp, Tcp, Udp};
use common::{Machine, Ns, Pod, attach, nft, on_a_machine, pod};

/// Asks from everywhere, and says who the server thinks it was.
fn ask_all(machine: &Machine, outside: &Ns, web: &Pod, other: &Pod) {
    // (from whom, to where, whom the pod sees)
    let ways = [
        ("outside", outside, "192.0.2.2:8080", "192.0.2.1"),
        ("host by its address", &machine.host, "192.0.2.2:8080", "192.0.2.2"),
        ("host by the gateway's", &machine.host, "10.85.0.1:8080", "10.85.0.1"),
        ("host by localhost", &machine.host, "127.0.0.1:8080", "10.85.0.1"),
        ("another pod", &other.ns, "192.0.2.2:8080", "10.85.0.1"),
        ("another pod by the gateway", &other.ns, "10.85.0.1:8080", "10.85.0.1"),
        ("itself", &web.ns, "192.0.2.2:8080", "10.85.0.1"),
        ("itself by the gateway", &web.ns, "10.85.0.1:8080", "10.85.0.1"),
    ];
    for (who, from, to, seen) in ways {
        assert_eq!(from.tcp(to).map_err(|e| e.to_string()), Ok(seen.into()), "tcp from {who}");
        assert_eq!(from.udp(to).map_err(|e| e.to_string()), Ok(seen.into()), "udp from {who}");
    }
}

#[test]
fn from_everywhere() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp), (None, 8080, 80, Udp)]);
        let other = attach(runtime, &network, "other", &[]);
        let _servers = (web.ns.serve_tcp("0.0.0.0:80"), web.ns.serve_udp("0.0.0.0:80"));
        ask_all(machine, &outside, &web, &other);
    });
}

/// The same when bridged packets do not pass iptables: other kernels and settings.
#[test]
fn from_everywhere_without_br_netfilter() {
    on_a_machine(|machine, runtime| {
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if std::fs::exists(switch).unwrap() {
            std::fs::write(switch, "0").unwrap();
        }
        let outside = machine.outside();
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp), (None, 8080, 80, Udp)]);
        let other = attach(runtime, &network, "other", &[]);
        let _servers = (web.ns.serve_tcp("0.0.0.0:80"), web.ns.serve_udp("0.0.0.0:80"));
        ask_all(machine, &outside, &web, &other);
        // A redirect from the host would have led the next connection astray.
        let _host = machine.host.serve_tcp("192.0.2.2:90");
        assert_eq!(other.ns.tcp("192.0.2.2:90").unwrap(), other.ip);
    });
}

#[test]
fn strict_reverse_path_filters_do_not_matter() {
    on_a_machine(|machine, runtime| {
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        let outside = machine.outside();
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp), (None, 8080, 80, Udp)]);
        let other = attach(runtime, &network, "other", &[]);
        let _servers = (web.ns.serve_tcp("0.0.0.0:80"), web.ns.serve_udp("0.0.0.0:80"));
        ask_all(machine, &outside, &web, &other);
    });
}

#[test]
fn at_one_address_only() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = machine.open(runtime);
        let ports = [(Some("127.0.0.1"), 8080, 80, Tcp), (Some("192.0.2.2"), 8081, 80, Tcp)];
        let web = attach(runtime, &network, "web", &ports);
        let _server = web.ns.serve_tcp("0.0.0.0:80");
        assert!(machine.host.tcp("127.0.0.1:8080").is_ok());
        assert!(outside.tcp("192.0.2.2:8080").is_err());
        assert!(outside.tcp("192.0.2.2:8081").is_ok());
        assert!(machine.host.tcp("127.0.0.1:8081").is_err());
    });
}

/// A port of the world is not a port of the host.
#[test]
fn ports_elsewhere_are_left_alone() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[(None, 80, 80, Tcp)]);
        let _world = outside.serve_tcp("0.0.0.0:80");
        assert_eq!(web.ns.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
        assert_eq!(machine.host.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
    });
}

/// `route_localnet` does not open the host's loopback to pods (CVE-2020-8558).
#[test]
fn pods_do_not_reach_the_hosts_loopback() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let evil = attach(runtime, &network, "evil", &[(None, 8080, 80, Tcp)]);
        let _secret = machine.host.serve_udp("127.0.0.1:99");
        evil.ns.run(|| {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            common::ip("addr del 127.0.0.1/8 dev lo");
            common::ip("route add 127.0.0.1 via 10.85.0.1 dev eth0 src 10.85.0.2");
        });
        assert!(evil.ns.udp("127.0.0.1:99").is_err());
        // The same without our guard, so that this test is known to try hard enough.
        drop(network);
        nft("flush chain inet berth raw");
        assert!(evil.ns.udp("127.0.0.1:99").is_ok());
    });
}

#[test]
fn sctp_and_many_ports_are_in_the_table() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let mut ports = vec![(None, 5000, 5000, Sctp)];
        ports.extend((10_000..12_000).map(|port| (None, port, port, Tcp)));
        let web = attach(runtime, &network, "web", &ports);
        let listed = nft("-nn list map inet berth hostport4");
        assert!(listed.contains("132 . 5000 : 10.85.0.2 . 5000"), "{listed}");
        assert!(listed.contains("6 . 11999 : 10.85.0.2 . 11999"));
        runtime.block_on(network.detach(&web.network.id)).unwrap();
        assert!(!nft("list map inet berth hostport4").contains("elements"));
    });
}

#[test]
fn ports_change_with_the_pod() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = machine.open(runtime);
        let mut web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        let _server = web.ns.serve_tcp("0.0.0.0:80");
        web.network = pod("web", &web.ns, &[(None, 8081, 80, Tcp)]);
        runtime.block_on(network.attach(&web.network)).unwrap();
        assert!(outside.tcp("192.0.2.2:8080").is_err());
        assert!(outside.tcp("192.0.2.2:8081").is_ok());
    });
}

#[test]
fn a_conflict_names_the_other_pod_and_leaves_nothing() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let _web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        let ns = Ns::new();
        let error =
            runtime.block_on(network.attach(&pod("late", &ns, &[(None, 8080, 80, Tcp)]))).unwrap_err();
        assert_eq!(error.to_string(), "host port 8080/tcp is already used by pod default/pod-web");
        assert!(!ns.run(|| common::ip("link")).contains("eth0"));
        let network = {
            drop(network);
            machine.open(runtime)
        };
        assert!(runtime.block_on(network.attach(&pod("late", &ns, &[(None, 8080, 80, Tcp)]))).is_err());
        runtime.block_on(network.detach("web")).unwrap();
        runtime.block_on(network.attach(&pod("late", &ns, &[(None, 8080, 80, Tcp)]))).unwrap();
    });
}

/// A chatty UDP client gets to the new pod when its old one has gone, and to the first one when it was there before.
#[test]
fn udp_flows_follow_the_port() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = machine.open(runtime);
        outside.run(|| {
            let client = std::net::UdpSocket::bind("192.0.2.1:4444").unwrap();
            client.connect("192.0.2.2:8080").unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
            let ask = || client.send(b"x").is_ok() && client.recv(&mut [0; 64]).is_ok();
            assert!(!ask());
            for id in ["first", "second"] {
                let web = attach(runtime, &network, id, &[(None, 8080, 80, Udp)]);
                let _server = web.ns.serve_udp("0.0.0.0:80");
                common::eventually("an answer", || if ask() { Ok(()) } else { Err("none") });
                runtime.block_on(network.detach(id)).unwrap();
                assert!(!ask());
            }
        });
    });
}
