//! Forgetting tracked flows: those that policies do not allow any more, and UDP flows. A UDP flow has no end, so one that began before a host port or Service came, or that
//! leads to a pod that has gone, would keep its old way for as long as packets arrive.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use crate::config::{Config, Protocol};
use crate::error::{Error, Result};
use crate::ipam::Lease;
use crate::nft::wire::message;
use crate::policy::{Flow, Policies};
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
    /// 0 if the protocol has no ports, like the next.
    source_port: u16,
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
    forget_if("UDP ports", |frame| is_stale(frame, &gone, &new) == Some(true))
}

/// Forgets the flows that policies do not allow, so that what is left of them is judged as what begins. What this host
/// itself, which has `own` addresses, sends and gets is no matter of policies. The thread must be in the host's namespace.
pub(crate) fn cut(policies: &Policies, own: &HashSet<IpAddr>) -> Result<()> {
    let is_own = |ip: &IpAddr| ip.is_loopback() || own.contains(ip);
    forget_if("policies", |frame| {
        let flow = frame.body.get(4..).and_then(flow);
        flow.is_some_and(|flow| !is_own(&flow.from) && !is_own(&flow.to) && !policies.allow(&flow))
    })
}

/// Who really asked whom.
fn flow(body: &[u8]) -> Option<Flow> {
    let original = tuple(attribute(body, ORIGINAL)?)?;
    let reply = tuple(attribute(body, REPLY)?)?;
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = protocols.into_iter().find(|protocol| protocol.number() == original.protocol);
    Some(Flow {
        from: original.source,
        to: reply.source,
        port: protocol.map(|protocol| (protocol, reply.source_port)),
    })
}

/// The addresses of this host. The thread must be in the host's namespace.
pub(crate) fn own_addresses() -> Result<HashSet<IpAddr>> {
    const GET_ADDRESS: u16 = 22;
    const HEADER: usize = 8;
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    let fail = |e| Error::netlink("list addresses of", "the host", e);
    let mut socket = Socket::open(netlink::ROUTE).map_err(fail)?;
    let mut own = HashSet::new();
    let [low, high] = GET_ADDRESS.to_ne_bytes();
    // Of whatever family; the header of a request about addresses is longer than that of one to netfilter.
    let mut request = message(0, 0, DUMP, 0, |_| {});
    request.resize(16 + HEADER, 0);
    request[..4].copy_from_slice(&24_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&[low, high]);
    let outcome = socket.dump(&request, |frame| {
        let Some(attributes) = frame.body.get(HEADER..) else { return };
        let bytes = attribute(attributes, LOCAL).or_else(|| attribute(attributes, ADDRESS));
        let v4 = bytes.and_then(|b| <[u8; 4]>::try_from(b).ok()).map(IpAddr::from);
        own.extend(v4.or_else(|| bytes.and_then(|b| <[u8; 16]>::try_from(b).ok()).map(IpAddr::from)));
    });
    outcome.map_err(fail)?;
    Ok(own)
}

fn forget_if(of: &str, unwanted: impl Fn(&Frame<'_>) -> bool) -> Result<()> {
    let fail = |e| Error::netlink("forget tracked flows of", of, e);
    let mut socket = Socket::open(netlink::NETFILTER).map_err(fail)?;
    let mut stale = Vec::new();
    for family in [2, 10] {
        let request = message(SUBSYSTEM, GET, DUMP, family, |_| {});
        let outcome = socket.dump(&request, |frame| {
            if unwanted(&frame) {
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
    let port = |kind| {
        let bytes = attribute(transport, kind).and_then(|port| port.first_chunk().copied());
        u16::from_be_bytes(bytes.unwrap_or_default())
    };
    Some(Tuple {
        protocol: *attribute(transport, 1)?.first()?,
        source: ip(1, 3)?,
        destination: ip(2, 4)?,
        source_port: port(2),
        destination_port: port(3),
    })
}
