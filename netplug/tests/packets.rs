//! What passes the wire: whose addresses are seen outside, and packets of every size.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use berth_netplug::Protocol::{Tcp, Udp};
use berth_netplug::{Config, Network};
use common::capture::{Capture, Packet};
use common::{Machine, Ns, attach, eventually, ip, on_a_machine, run};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use std::os::fd::AsRawFd;

fn config(machine: &Machine) -> Config {
    let mut config = machine.config();
    config.ipv6 = Some("fd00:85::/64".parse().unwrap());
    config
}

fn of_pods(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [10, 85],
        IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0x85],
    }
}

fn leaks(capture: &Capture) -> Vec<Packet> {
    capture.packets().into_iter().filter(|one| of_pods(one.source) || of_pods(one.destination)).collect()
}

#[test]
fn no_address_of_a_pod_is_seen_outside() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = runtime.block_on(Network::open(config(machine))).unwrap();
        let pod = attach(runtime, &network, "pod", &[(None, 8080, 80, Tcp), (None, 8080, 80, Udp)]);
        let _servers = [
            outside.serve_tcp("[::]:80"),
            outside.serve_udp("[::]:80"),
            pod.ns.serve_tcp("[::]:80"),
            pod.ns.serve_udp("[::]:80"),
        ];
        let capture = Capture::start(&outside);
        for to in ["192.0.2.1:80", "[2001:db8::1]:80"] {
            pod.ns.tcp(to).unwrap();
            pod.ns.udp(to).unwrap();
            // Nobody is there: the error comes back through the host.
            pod.ns.tcp(&to.replace(":80", ":81")).unwrap_err();
            pod.ns.udp(&to.replace(":80", ":81")).unwrap_err();
        }
        for to in ["192.0.2.2:8080", "[2001:db8::2]:8080"] {
            let seen = outside.tcp(to).unwrap();
            assert!(
                ["::ffff:192.0.2.1", "2001:db8::1"].contains(&seen.as_str()),
                "the client's address: {seen}"
            );
            outside.udp(to).unwrap();
        }
        let all = capture.packets();
        let has = |source: &str| all.iter().any(|one| one.source == source.parse::<IpAddr>().unwrap());
        assert!(has("192.0.2.2") && has("2001:db8::2"), "{all:?}");
        let leaked: Vec<_> =
            all.iter().filter(|one| of_pods(one.source) || of_pods(one.destination)).collect();
        assert!(leaked.is_empty(), "{leaked:?}");
    });
}

/// Packets that belong to no connection are not rewritten by the kernel: they must stay here.
#[test]
fn what_belongs_to_no_connection_does_not_leave() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = runtime.block_on(Network::open(config(machine))).unwrap();
        let pod = attach(runtime, &network, "pod", &[]);
        let capture = Capture::start(&outside);
        let from: Ipv4Addr = pod.ip.parse().unwrap();
        pod.ns.run(|| send_reset(from, [192, 0, 2, 1].into()));
        // What comes after it has come when this has.
        let _server = outside.serve_udp("0.0.0.0:80");
        pod.ns.udp("192.0.2.1:80").unwrap();
        assert_eq!(leaks(&capture), []);

        // A connection goes on although the kernel has forgotten it, and is never seen with the pod's address.
        let listener = outside.run(|| TcpListener::bind("0.0.0.0:90").unwrap());
        let mut there = pod.ns.run(|| TcpStream::connect("192.0.2.1:90").unwrap());
        let (mut here, _) = listener.accept().unwrap();
        run("conntrack", "-F");
        there.write_all(b"x").unwrap();
        there.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        here.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        here.read_exact(&mut [0]).unwrap();
        drop((there, here));
        pod.ns.udp("192.0.2.1:80").unwrap();
        assert_eq!(leaks(&capture), []);
    });
}

/// A TCP reset out of nowhere.
fn send_reset(from: Ipv4Addr, to: Ipv4Addr) {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&40000u16.to_be_bytes());
    segment[2..4].copy_from_slice(&80u16.to_be_bytes());
    segment[4..8].copy_from_slice(&1u32.to_be_bytes());
    segment[12..14].copy_from_slice(&[5 << 4, 0x04]);
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6, 0, 20], &segment].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    segment[16..18]
        .copy_from_slice(&(!u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()).to_be_bytes());
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp).unwrap();
    let [a, b, c, d] = to.octets();
    sendto(raw.as_raw_fd(), &segment, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty()).unwrap();
}

/// Sends datagrams of that size until one has come. The first ones may be lost: what the way takes is learned by them.
fn datagram(from: &Ns, to: &Ns, address: &str, size: usize) {
    let address: SocketAddr = address.parse().unwrap();
    let server = to.run(|| UdpSocket::bind(address).unwrap());
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let client =
        from.run(|| UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap());
    eventually(&format!("{size} bytes to {address}"), || {
        client.send_to(&vec![7; size], address).map_err(|e| e.to_string())?;
        match server.recv(&mut vec![0; 1 << 17]) {
            Ok(got) if got == size => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Sends so much by TCP, and waits until all is there.
fn stream(from: &Ns, to: &Ns, address: &str) -> usize {
    const SIZE: usize = 3 << 20;
    let address: SocketAddr = address.parse().unwrap();
    let listener = to.run(|| TcpListener::bind(address).unwrap());
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.len()
    });
    from.run(|| TcpStream::connect(address).unwrap().write_all(&vec![1; SIZE]).unwrap());
    let got = reader.join().unwrap();
    assert_eq!(got, SIZE);
    got
}

#[test]
fn packets_of_every_size_arrive() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let mut config = config(machine);
        config.mtu = Some(9000);
        let network = runtime.block_on(Network::open(config)).unwrap();
        let one = attach(runtime, &network, "one", &[]);
        let two = attach(runtime, &network, "two", &[]);
        assert!(one.ns.run(|| ip("link show eth0")).contains("mtu 9000"));
        let six = "fd00:85::3";
        let capture = Capture::start(&two.ns);
        // In one packet, then in pieces.
        for (address, size) in [
            (format!("{}:90", two.ip), 8900),
            (format!("{}:90", two.ip), 60_000),
            (format!("[{six}]:90"), 8900),
            (format!("[{six}]:90"), 60_000),
        ] {
            datagram(&one.ns, &two.ns, &address, size);
        }
        assert!(capture.packets().iter().any(|one| one.protocol == 17 && one.size == 8928), "whole packets");
        // The way out takes no more than 1500: the host says so, and senders follow.
        for address in ["192.0.2.1:90", "[2001:db8::1]:90"] {
            datagram(&one.ns, &outside, address, 8900);
            stream(&one.ns, &outside, address);
        }
        stream(&one.ns, &two.ns, &format!("{}:91", two.ip));
        stream(&one.ns, &two.ns, &format!("[{six}]:91"));
    });
}

/// Two nodes beside each other, each with pods of its own and a route to the other's.
#[test]
fn pods_of_two_nodes_reach_each_other() {
    on_a_machine(|machine, runtime| {
        let there = machine.outside();
        let mut here = config(machine);
        here.masquerade = false;
        let mut other = Config::new(machine.dir.path().join("other"));
        other.ipv4 = "10.95.0.0/16".parse().unwrap();
        other.ipv6 = Some("fd00:95::/64".parse().unwrap());
        other.masquerade = false;
        let network = runtime.block_on(Network::open(here)).unwrap();
        let beyond = there.run(|| runtime.block_on(Network::open(other))).unwrap();
        ip("route add 10.95.0.0/16 via 192.0.2.1");
        ip("route add fd00:95::/64 via 2001:db8::1");
        there.run(|| {
            ip("route add 10.85.0.0/16 via 192.0.2.2");
            ip("route add fd00:85::/64 via 2001:db8::2");
        });
        let near = attach(runtime, &network, "near", &[]);
        let far = attach(runtime, &beyond, "far", &[(None, 8080, 80, Tcp)]);
        let _servers =
            [far.ns.serve_tcp("[::]:80"), far.ns.serve_udp("[::]:80"), near.ns.serve_tcp("[::]:80")];
        let plain =
            |seen: std::io::Result<String>| seen.map(|ip| ip.trim_start_matches("::ffff:").to_owned());
        // The nodes' own IPv6 addresses are not usable at once.
        eventually("by IPv6", || near.ns.tcp("[fd00:95::2]:80").map(drop));
        eventually("back by IPv6", || far.ns.tcp("[fd00:85::2]:80").map(drop));
        for (to, seen) in [("10.95.0.2:80", "10.85.0.2"), ("[fd00:95::2]:80", "fd00:85::2")] {
            assert_eq!(plain(near.ns.tcp(to)).unwrap(), seen, "tcp {to}");
            assert_eq!(plain(near.ns.udp(to)).unwrap(), seen, "udp {to}");
        }
        assert_eq!(plain(far.ns.tcp("[fd00:85::2]:80")).unwrap(), "fd00:95::2");
        assert_eq!(
            plain(near.ns.tcp("192.0.2.1:8080")).unwrap(),
            "10.85.0.2",
            "by the other node's host port"
        );
        stream(&near.ns, &far.ns, "10.95.0.2:91");
        stream(&far.ns, &near.ns, "[fd00:85::2]:91");
        // The bridge of one goes while they talk; the other side notices nothing but a pause.
        let listener = far.ns.run(|| TcpListener::bind("0.0.0.0:92").unwrap());
        let mut talk = near.ns.run(|| TcpStream::connect("10.95.0.2:92").unwrap());
        let (mut answer, _) = listener.accept().unwrap();
        answer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        for _ in 0..3 {
            ip("link del berth0");
            talk.write_all(b"still here").unwrap();
            let mut said = [0; 10];
            answer.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"still here");
        }
        eventually("new connections", || near.ns.tcp("10.95.0.2:80").map(drop));
    });
}
