//! The pair of links between the host and a pod.
//!
//! This goes round rtnetlink's connection, but not its messages, for a measured reason: an attach is a handful of
//! requests in two namespaces, and sending each alone through a task costs more than the kernel's work. Here one
//! RTM_NEWLINK makes the pair with its peer already in the pod's namespace, and one batch does all that is to do
//! inside: 0.8 ms, against 28 ms for making, moving and renaming step by step.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::{
    AddressMessageBuilder, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::config::Rate;
use crate::error::{Error, Result};
use crate::shaping;
use crate::sys::netlink::{self, ACK, CREATE, EXCL, REPLACE, REQUEST, Socket, attribute, text};
use crate::sys::netns::Traveller;
use crate::sysctl;

/// What a pod's links shall be.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// `namespace/name`; the alias of the host's link.
    pub pod: String,
    pub host_if: String,
    /// Name of the interface inside.
    pub interface: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    /// Index of the bridge.
    pub bridge: u32,
    /// Addresses with the prefix lengths of their networks.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Gateways of default routes, one per family.
    pub gateways: Vec<IpAddr>,
    pub port: PortFlags,
    pub ingress: Option<Rate>,
    pub egress: Option<Rate>,
}

/// What the bridge does at a pod's link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortFlags {
    /// Whether it may send a packet back by the port it came from.
    pub hairpin: bool,
    /// Whether it hands nothing from one such port to another.
    pub isolated: bool,
    /// Whether it takes only what comes from the pod's own hardware address.
    pub locked: bool,
}

/// Requests that are sent together.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// What each is for, for error messages.
    purposes: Vec<&'static str>,
}

impl Batch {
    pub(crate) fn add(
        &mut self,
        purpose: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> &mut Self {
        self.purposes.push(purpose);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags | REQUEST | ACK;
        request.header.sequence_number = u32::try_from(self.purposes.len()).unwrap_or(u32::MAX);
        request.finalize();
        let start = self.bytes.len();
        self.bytes.resize(start + request.buffer_len(), 0);
        request.serialize(&mut self.bytes[start..]);
        self
    }

    /// Sends all; the first refusal is the error.
    pub(crate) fn send(&self, socket: &mut Socket, object: &str) -> Result<()> {
        let refused = socket
            .exchange(&self.bytes, |_| {})
            .map_err(|e| Error::netlink("send requests for", object, e))?;
        let Some(first) = refused.into_iter().next() else { return Ok(()) };
        let index = usize::try_from(first.seq).unwrap_or_default().saturating_sub(1);
        let purpose = self.purposes.get(index).copied().unwrap_or("change");
        Err(Error::netlink(purpose, object, first.error))
    }
}

/// Connects the namespace `pod` with the bridge of the namespace `host`; repairs what is there already.
pub(crate) fn connect(thread: &Traveller, host: &OwnedFd, pod: &OwnedFd, plan: &Plan) -> Result<()> {
    let mut outside = open(thread, host, &plan.host_if)?;
    let mut inside = open(thread, pod, &plan.pod)?;
    let is_new = match create(&mut outside, pod, plan) {
        Err(Error::Netlink { source, .. }) if netlink::is(&source, Errno::EEXIST) => {
            adopt(&mut outside, &mut inside, pod, plan)?;
            false
        }
        other => other.map(|()| true)?,
    };
    // Before the interface is up, which is when the kernel tells the neighbours of its addresses.
    sysctl::pod(thread, &plan.interface, plan.addresses.len() > 1)?;
    fill(&mut inside, plan)?;
    if is_new {
        // Whoever asks for a link makes the kernel see its carrier now, which lets the bridge forward.
        link(&mut outside, &plan.host_if)?;
        announce(&mut inside, plan)?;
    }
    for (socket, interface, rate, object) in [
        (&mut outside, &plan.host_if, plan.ingress, &plan.host_if),
        (&mut inside, &plan.interface, plan.egress, &plan.pod),
    ] {
        // What was made just now has no limit to take away.
        if is_new && rate.is_none() {
            continue;
        }
        shape(socket, interface, rate, object, plan.mtu)?;
    }
    Ok(())
}

/// A socket in a namespace, where the thread is from then on; `object` is for errors.
pub(crate) fn open(thread: &Traveller, namespace: &OwnedFd, object: &str) -> Result<Socket> {
    let open = || -> io::Result<Socket> {
        thread.enter(namespace)?;
        Socket::open(netlink::ROUTE)
    };
    open().map_err(|e| Error::netlink("open a netlink socket for", object, e))
}

/// Limits what is sent by a link, or ends its limit.
pub(crate) fn shape(
    socket: &mut Socket,
    interface: &str,
    rate: Option<Rate>,
    object: &str,
    mtu: u32,
) -> Result<()> {
    let link = link(socket, interface)?.ok_or_else(|| Error::NoSuchLink(object.into()))?;
    shaping::limit(socket, object, link.index, link.shaped, mtu, rate)
}

/// Makes the pair: peer in the pod, host's end up and on the bridge. (The peer cannot be up in the same request.)
fn create(outside: &mut Socket, pod: &OwnedFd, plan: &Plan) -> Result<()> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(plan.interface.clone())
        .mtu(plan.mtu)
        .address(plan.mac.to_vec())
        .setns_by_fd(pod.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(plan.host_if.clone())
        .mtu(plan.mtu)
        .controller(plan.bridge)
        .up()
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    Batch::default()
        .add("create veth pair", RouteNetlinkMessage::NewLink(pair), CREATE | EXCL)
        .send(outside, &plan.host_if)?;
    // Not in the same batch: if the name is somebody else's, this would change their link.
    Batch::default()
        .add(
            "set up bridge port",
            RouteNetlinkMessage::NewLink(port(&plan.host_if, &plan.pod, plan.port).build()),
            0,
        )
        .send(outside, &plan.host_if)?;
    if plan.port.locked { know(outside, &plan.host_if, plan.mac) } else { Ok(()) }
}

/// Settings of the host's end: the alias, and hairpin, for with br_netfilter a pod's packets to its own host port turn
/// round inside the bridge.
fn port(host_if: &str, pod: &str, flags: PortFlags) -> LinkMessageBuilder<LinkBridgePort> {
    let message = LinkBridgePort::new(0).name(host_if).alias(pod);
    message.hairpin(flags.hairpin).isolated(flags.isolated).locked(flags.locked).learning(!flags.locked)
}

/// Tells the bridge which hardware address is behind a port; a locked one takes nothing from others.
fn know(outside: &mut Socket, host_if: &str, mac: [u8; 6]) -> Result<()> {
    let Some(link) = link(outside, host_if)? else { return Ok(()) };
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link.index;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    Batch::default()
        .add("tell the bridge the address of", RouteNetlinkMessage::NewNeighbour(message), CREATE | REPLACE)
        .send(outside, host_if)
}

/// A link of either name exists: repairs the pair if it is ours, replaces it if its peer is elsewhere (the pod was made
/// anew and the old namespace lingers), refuses if it is somebody else's.
fn adopt(outside: &mut Socket, inside: &mut Socket, pod: &OwnedFd, plan: &Plan) -> Result<()> {
    let ours = link(outside, &plan.host_if)?;
    let theirs = link(inside, &plan.interface)?;
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs.peer == Some(ours.index) => {
            let ours = [(plan.host_if.as_str(), plan.pod.as_str(), plan.mac)];
            reattach(outside, plan.bridge, plan.port, ours.into_iter())
        }
        (_, Some(_)) => Err(Error::InterfaceTaken {
            owner: format!("pod {}", plan.pod),
            interface: plan.interface.clone(),
        }),
        (Some(ours), None) if ours.alias.as_ref().is_some_and(|alias| *alias != plan.pod) => {
            Err(Error::InterfaceTaken { owner: "the host".into(), interface: plan.host_if.clone() })
        }
        (Some(_), None) => {
            delete(outside, &plan.host_if)?;
            create(outside, pod, plan)
        }
        // Gone in the meantime.
        (None, None) => create(outside, pod, plan),
    }
}

/// Everything inside the pod, in one batch.
pub(crate) fn fill(inside: &mut Socket, plan: &Plan) -> Result<()> {
    let missing = || Error::NoSuchLink(format!("{} of pod {}", plan.interface, plan.pod));
    let index = link(inside, &plan.interface)?.ok_or_else(missing)?.index;
    let up = |message: LinkMessageBuilder<LinkUnspec>| RouteNetlinkMessage::NewLink(message.up().build());
    let mut batch = Batch::default();
    batch.add("bring up lo of pod", up(LinkUnspec::new_with_name("lo")), 0);
    for (address, prefix) in &plan.addresses {
        let message = match address {
            IpAddr::V4(ip) => {
                AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(*ip, *prefix).build()
            }
            IpAddr::V6(ip) => {
                let builder = AddressMessageBuilder::<std::net::Ipv6Addr>::new();
                let mut message = builder.index(index).address(*ip, *prefix).build();
                // Nobody else has it, and detection would keep it unusable for a second.
                message.header.flags |= AddressHeaderFlags::Nodad;
                message
            }
        };
        batch.add("set address of pod", RouteNetlinkMessage::NewAddress(message), CREATE | REPLACE);
    }
    batch.add("bring up interface of pod", up(LinkUnspec::new_with_index(index)), 0);
    for gateway in &plan.gateways {
        let message = match gateway {
            IpAddr::V4(ip) => {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(*ip).output_interface(index).build()
            }
            IpAddr::V6(ip) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(*ip).output_interface(index).build()
            }
        };
        batch.add("set default route of pod", RouteNetlinkMessage::NewRoute(message), CREATE | REPLACE);
    }
    batch.send(inside, &plan.pod)
}

/// Tells the neighbours of the pod's addresses. The kernel does so when the interface comes up, but the bridge forwards nothing
/// before the carrier was seen, which on a busy machine is later. Setting the hardware address that it has makes it do so again.
pub(crate) fn announce(inside: &mut Socket, plan: &Plan) -> Result<()> {
    let missing = || Error::NoSuchLink(format!("{} of pod {}", plan.interface, plan.pod));
    let index = link(inside, &plan.interface)?.ok_or_else(missing)?.index;
    let same = LinkUnspec::new_with_index(index).address(plan.mac.to_vec()).build();
    Batch::default()
        .add("announce addresses of pod", RouteNetlinkMessage::NewLink(same), 0)
        .send(inside, &plan.pod)
}

/// Brings up `lo` in `namespace`.
pub(crate) fn bring_up_loopback(thread: &Traveller, namespace: &OwnedFd) -> Result<()> {
    let open = || {
        thread.enter(namespace)?;
        Socket::open(netlink::ROUTE)
    };
    let mut socket = open().map_err(|e| Error::netlink("open a netlink socket in", "a pod", e))?;
    let message = RouteNetlinkMessage::NewLink(LinkUnspec::new_with_name("lo").up().build());
    Batch::default().add("bring up lo of", message, 0).send(&mut socket, "a pod")
}

/// Puts existing links, given as host's name, pod and hardware address, on the bridge again. Those that have gone are left out.
pub(crate) fn reattach<'a>(
    outside: &mut Socket,
    bridge: u32,
    flags: PortFlags,
    links: impl Iterator<Item = (&'a str, &'a str, [u8; 6])>,
) -> Result<()> {
    for (host_if, pod, mac) in links {
        let onto = LinkUnspec::new_with_name(host_if).controller(bridge).up().build();
        let mut batch = Batch::default();
        batch.add("put link on the bridge", RouteNetlinkMessage::NewLink(onto), 0);
        batch.add("set up bridge port", RouteNetlinkMessage::NewLink(port(host_if, pod, flags).build()), 0);
        match batch.send(outside, host_if) {
            Err(Error::Netlink { source, .. }) if netlink::is(&source, Errno::ENODEV) => continue,
            other => other?,
        }
        if flags.locked {
            know(outside, host_if, mac)?;
        }
    }
    Ok(())
}

/// A link as far as we want to know it.
pub(crate) struct Link {
    pub(crate) index: u32,
    /// Index of the other end, or of the link that this one is on, in its own namespace.
    pub(crate) peer: Option<u32>,
    alias: Option<String>,
    /// Whether it has a queue as [`shaping`] makes it.
    shaped: bool,
}

/// The link of this name, if there is one.
pub(crate) fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    const INFO: usize = 16;
    const PEER: u16 = 5;
    const QUEUE: u16 = 6;
    const ALIAS: u16 = 20;
    let mut found = None;
    let there = dump_link(socket, name, |body| {
        let Some((header, attributes)) = body.split_at_checked(INFO) else { return };
        let number = |bytes: &[u8]| bytes.first_chunk().copied().map(u32::from_ne_bytes);
        found = number(&header[4..]).map(|index| Link {
            index,
            peer: attribute(attributes, PEER).and_then(number),
            alias: attribute(attributes, ALIAS).map(|alias| text(alias).to_owned()),
            shaped: attribute(attributes, QUEUE).map(text) == Some(shaping::KIND),
        });
    })?;
    Ok(found.filter(|_| there))
}

/// Hands the description of a link, its header and its attributes, to `visit`; says whether there is one.
pub(crate) fn dump_link(socket: &mut Socket, name: &str, mut visit: impl FnMut(&[u8])) -> Result<bool> {
    let mut message = LinkMessage::default();
    message.attributes.push(netlink_packet_route::link::LinkAttribute::IfName(name.into()));
    let mut batch = Batch::default();
    batch.add("look for link", RouteNetlinkMessage::GetLink(message), 0);
    let refused = socket
        .exchange(&batch.bytes, |frame| visit(frame.body))
        .map_err(|e| Error::netlink("look for link", name, e))?;
    match refused.into_iter().next() {
        Some(refusal) if netlink::is(&refusal.error, Errno::ENODEV) => Ok(false),
        Some(refusal) => Err(Error::netlink("look for link", name, refusal.error)),
        None => Ok(true),
    }
}

/// Deletes a link; done if there is none. Slow: the kernel waits for everybody who might still use it.
pub(crate) fn delete(socket: &mut Socket, name: &str) -> Result<()> {
    let message = LinkUnspec::new_with_name(name).build();
    let outcome =
        Batch::default().add("delete link", RouteNetlinkMessage::DelLink(message), 0).send(socket, name);
    match outcome {
        Err(Error::Netlink { source, .. }) if netlink::is(&source, Errno::ENODEV) => Ok(()),
        other => other,
    }
}

/// Deletes many links for the time of one: they are put into a group, which is deleted at once. Links that have gone
/// are left out.
pub(crate) fn delete_all<'a>(socket: &mut Socket, names: impl Iterator<Item = &'a str>) -> Result<()> {
    /// Any number that nobody uses; "brth".
    const GROUP: u32 = 0x6272_7468;
    for name in names {
        let message = LinkUnspec::new_with_name(name).link_group(GROUP).build();
        let mut batch = Batch::default();
        match batch.add("mark for deletion link", RouteNetlinkMessage::NewLink(message), 0).send(socket, name)
        {
            Err(Error::Netlink { source, .. }) if netlink::is(&source, Errno::ENODEV) => {}
            other => other?,
        }
    }
    let message = LinkMessageBuilder::<LinkUnspec>::new().link_group(GROUP).build();
    let outcome = Batch::default()
        .add("delete links of", RouteNetlinkMessage::DelLink(message), 0)
        .send(socket, "pod network");
    match outcome {
        Err(Error::Netlink { source, .. }) if netlink::is(&source, Errno::ENODEV) => Ok(()),
        other => other,
    }
}
