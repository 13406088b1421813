//! Forgetting tracked UDP flows. A UDP flow has no end, so one that began before a host port or Service came, or that
//! leads to a pod that has gone, would keep its old way for as long as packets arrive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use crate::config::{Config, Protocol};
use crate::error::{Error, Result};
use crate::ipam::Lease;
use crate::nft::wire::message;
use crate::sys::netlink::{self, ACK, DUMP, Frame, Socket, attribute};

const SUBSYSTEM: u8 = 1;
const GET: u8 = 1;
const DELETE: u8 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const UDP: u8 = 17;

/// One direction of a flow.
#[derive(Debug)]
struct Tuple {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    destination_port: u16,
}

/// A way on which packets get to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    pub protocol: Protocol,
    /// The address asked for; `None` is every one of the host.
    pub address: Option<IpAddr>,
    /// The port asked for.
    pub port: u16,
    /// Where the packets get.
    pub pod: IpAddr,
}

/// The ways that a pod's host ports are.
pub(crate) fn host_port_ways(config: &Config, lease: &Lease) -> Vec<Way> {
    let ports = lease.host_ports.iter();
    ports
        .flat_map(|port| {
            let way =
                |pod| Way { protocol: port.protocol, address: port.bound_ip(), port: port.host_port, pod };
            lease.ips(config).into_iter().map(way)
        })
        .filter(|way| way.address.is_none_or(|ip| ip.is_ipv4() == way.pod.is_ipv4()))
        .collect()
}

/// Forgets the UDP flows that take a way they should not: to the pods of `gone`, and past the pods of `new`. The thread
/// must be in the host's namespace.
pub(crate) fn forget(gone: &[Way], new: &[Way]) -> Result<()> {
    let udp = |way: &&Way| way.protocol == Protocol::Udp;
    let (gone, new): (Vec<_>, Vec<_>) = (gone.iter().filter(udp).collect(), new.iter().filter(udp).collect());
    if gone.is_empty() && new.is_empty() {
        return Ok(());
    }
    let fail = |e| Error::netlink("forget tracked flows of", "UDP ports", e);
    let mut socket = Socket::open(netlink::NETFILTER).map_err(fail)?;
    let mut stale = Vec::new();
    for family in [2, 10] {
        let request = message(SUBSYSTEM, GET, DUMP, family, |_| {});
        let outcome = socket.dump(&request, |frame| {
            if is_stale(&frame, &gone, &new) == Some(true) {
                stale.extend(attribute(&frame.body[4..], ORIGINAL).map(|tuple| (family, tuple.to_vec())));
            }
        });
        outcome.map_err(fail)?;
    }
    for (family, tuple) in stale {
        let request = message(SUBSYSTEM, DELETE, ACK, family, |a| {
            a.put(ORIGINAL | 0x8000, &tuple);
        });
        match socket.execute(&request) {
            Err(e) if !netlink::is(&e, Errno::ENOENT) => return Err(fail(e)),
            _ => {}
        }
    }
    Ok(())
}

fn is_stale(frame: &Frame<'_>, gone: &[&Way], new: &[&Way]) -> Option<bool> {
    let body = frame.body.get(4..)?;
    let original = tuple(attribute(body, ORIGINAL)?)?;
    let reply = tuple(attribute(body, REPLY)?)?;
    if original.protocol != UDP {
        return Some(false);
    }
    let port = |way: &&&Way| way.port == original.destination_port;
    let led_there = gone.iter().filter(port).any(|way| reply.source == way.pod);
    // Not redirected although it should be: it began before the port led anywhere. A flow to the same port of another
    // machine can look the same; forgetting it does no harm, for nothing about it was rewritten.
    let untouched = reply.source == original.destination && reply.destination == original.source;
    let passed_by = untouched
        && new.iter().filter(port).any(|way| way.address.is_none_or(|ip| ip == original.destination));
    Some(led_there || passed_by)
}

fn tuple(attributes: &[u8]) -> Option<Tuple> {
    let address = attribute(attributes, 1)?;
    let transport = attribute(attributes, 2)?;
    let ip = |v4, v6| match (attribute(address, v4), attribute(address, v6)) {
        (Some(ip), _) => Some(IpAddr::from(Ipv4Addr::from(*ip.first_chunk::<4>()?))),
        (_, Some(ip)) => Some(IpAddr::from(Ipv6Addr::from(*ip.first_chunk::<16>()?))),
        _ => None,
    };
    let [high, low] =
        attribute(transport, 3).and_then(|port| port.first_chunk().copied()).unwrap_or_default();
    Some(Tuple {
        protocol: *attribute(transport, 1)?.first()?,
        source: ip(1, 3)?,
        destination: ip(2, 4)?,
        destination_port: u16::from_be_bytes([high, low]),
    })
}
