//! Who reaches a host port: from every place, by every protocol and family.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use berth_netplug::Network;
use berth_netplug::Protocol::{Sctp, Tcp, Udp};
use common::capture::Capture;
use common::{Machine, Ns, Pod, addr, attach, eventually, on_a_machine};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use tokio::runtime::Runtime;

const SCTP: u8 = 132;

fn open(machine: &Machine, runtime: &Runtime) -> (Network, Pod, Pod) {
    let mut config = machine.config();
    config.ipv6 = Some("fd00:85::/64".parse().unwrap());
    let network = runtime.block_on(Network::open(config)).unwrap();
    let ports = [(None, 8080, 80, Tcp), (None, 8080, 80, Udp), (None, 8080, 80, Sctp)];
    let web = attach(runtime, &network, "web", &ports);
    let other = attach(runtime, &network, "other", &[]);
    (network, web, other)
}

#[test]
fn by_tcp_and_udp_of_both_families() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let (_network, web, other) = open(machine, runtime);
        let _servers = [web.ns.serve_tcp("[::]:80"), web.ns.serve_udp("[::]:80")];
        // (from where, to where, whom the pod sees)
        let ways: [(&str, &Ns, &str, &str); 11] = [
            ("outside", &outside, "192.0.2.2:8080", "192.0.2.1"),
            ("outside", &outside, "[2001:db8::2]:8080", "2001:db8::1"),
            ("host", &machine.host, "192.0.2.2:8080", "192.0.2.2"),
            ("host", &machine.host, "[2001:db8::2]:8080", "2001:db8::2"),
            ("host by localhost", &machine.host, "127.0.0.1:8080", "10.85.0.1"),
            ("host by the gateway's", &machine.host, "[fd00:85::1]:8080", "fd00:85::1"),
            ("another pod", &other.ns, "192.0.2.2:8080", "10.85.0.1"),
            ("another pod", &other.ns, "[2001:db8::2]:8080", "fd00:85::1"),
            ("itself", &web.ns, "192.0.2.2:8080", "10.85.0.1"),
            ("itself", &web.ns, "[2001:db8::2]:8080", "fd00:85::1"),
            ("itself by the gateway", &web.ns, "[fd00:85::1]:8080", "fd00:85::1"),
        ];
        for (who, from, to, seen) in ways {
            let plain = |answer: std::io::Result<String>| {
                answer.map(|ip| ip.trim_start_matches("::ffff:").to_owned()).map_err(|e| e.to_string())
            };
            eventually(&format!("tcp from {who} to {to}"), || from.tcp(to).map(drop));
            assert_eq!(plain(from.tcp(to)), Ok(seen.into()), "tcp from {who} to {to}");
            assert_eq!(plain(from.udp(to)), Ok(seen.into()), "udp from {who} to {to}");
        }
        // There is no `route_localnet` for IPv6: the kernel sends nothing from ::1 to another link. It is refused at once.
        let refused = machine.host.tcp("[::1]:8080").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

/// The kernel of a test machine need not have SCTP sockets, so the first packet of a connection is made by hand.
#[test]
fn by_sctp() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let (_network, web, other) = open(machine, runtime);
        let capture = Capture::start(&web.ns);
        let ways: [(&str, &Ns, [u8; 4], &str); 5] = [
            ("outside", &outside, [192, 0, 2, 2], "192.0.2.1"),
            ("host", &machine.host, [192, 0, 2, 2], "192.0.2.2"),
            ("host by localhost", &machine.host, [127, 0, 0, 1], "10.85.0.1"),
            ("another pod", &other.ns, [192, 0, 2, 2], "10.85.0.1"),
            ("itself", &web.ns, [192, 0, 2, 2], "10.85.0.1"),
        ];
        for (port, (who, from, to, seen)) in (40_000..).zip(ways) {
            capture.packets();
            from.run(|| begin(port, to.into(), 8080));
            eventually(&format!("an SCTP packet from {who}"), || {
                let all = capture.packets();
                let arrived = all.iter().any(|one| {
                    one.protocol == SCTP
                        && one.source == addr(seen)
                        && one.destination == IpAddr::from([10, 85, 0, 2])
                });
                if arrived { Ok(()) } else { Err(all) }
            });
        }
    });
}

/// Sends the INIT of an association (RFC 9260, 3.3.2).
fn begin(from: u16, to: Ipv4Addr, port: u16) {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(port.to_be_bytes());
    // No tag yet; the checksum comes last.
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend(0x1234_5678u32.to_be_bytes());
    packet.extend(65_536u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1u32.to_be_bytes());
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    let flags = SockFlag::SOCK_CLOEXEC;
    let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw).unwrap();
    let [a, b, c, d] = to.octets();
    // With `IPPROTO_RAW` the header is ours, too; the kernel fills in source, id and checksum (raw(7)).
    let size = u16::try_from(packet.len() + 20).unwrap().to_be_bytes();
    let header = [0x45, 0, size[0], size[1], 0, 0, 0, 0, 64, SCTP, 0, 0, 0, 0, 0, 0, a, b, c, d];
    let whole = [&header[..], &packet].concat();
    sendto(raw.as_raw_fd(), &whole, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty()).unwrap();
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 * (sum & 1)))
    };
    !bytes.iter().fold(!0, step)
}
