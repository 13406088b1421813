//! The bridge on the host, and what else is asked of the host's links, through rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use crate::config::{Config, Stats};
use crate::error::{Error, Result};
use crate::ipam::{LINK_PREFIX, mac};
use crate::nft::ruleset::Net;

/// MTU where no uplink tells one.
const ETHERNET: u32 = 1500;

fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// Makes the bridge or repairs it. Returns its index.
pub(crate) async fn ensure(handle: &Handle, config: &Config, mtu: u32) -> Result<u32> {
    let name = config.bridge.as_str();
    let address = mac(config.gateway()).to_vec();
    if get(handle, name).await?.is_none() {
        // A fixed hardware address: without it the bridge takes the lowest of its ports', and pods lose their gateway
        // for as long as they remember the old one.
        let message = LinkBridge::new(name).address(address.clone()).build();
        match handle.link().add(message).execute().await.map_err(cause) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::netlink("create bridge", name, e));
            }
            _ => {}
        }
    }
    let link = get(handle, name).await?.ok_or_else(|| Error::NoSuchLink(name.into()))?;
    if kind(&link) != Some(&InfoKind::Bridge) {
        return Err(Error::NotABridge(name.into()));
    }
    let index = link.header.index;
    // Not when it is made: only a change of the MTU keeps the bridge from following its ports', and tells br_netfilter, which
    // puts datagrams together and would drop those that it has to take apart again for more than 1500 bytes.
    let message = LinkUnspec::new_with_index(index).address(address).mtu(mtu).up();
    let message = message.promiscuous(config.promiscuous).build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(|e| Error::netlink("bring up bridge", name, cause(e)))?;
    for (gateway, prefix) in config.gateways() {
        let mut request = handle.address().add(index, gateway, prefix).replace();
        if gateway.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        let fail = |e| Error::netlink("set address of bridge", format!("{name} to {gateway}"), cause(e));
        request.execute().await.map_err(fail)?;
    }
    lead_to_services(handle, config, index).await?;
    Ok(index)
}

/// Takes an address off a link; done if it does not have it, or there is no such link.
pub(crate) async fn take_address(handle: &Handle, name: &str, (ip, prefix): (IpAddr, u8)) -> Result<()> {
    let Some(link) = get(handle, name).await? else { return Ok(()) };
    let fail = |e| Error::netlink("take address off bridge", format!("{name}, {ip}"), e);
    let mut message = handle.address().add(link.header.index, ip, prefix);
    let message = std::mem::take(message.message_mut());
    match handle.address().del(message).execute().await.map_err(cause) {
        Err(e) if !crate::sys::netlink::is(&e, nix::errno::Errno::EADDRNOTAVAIL) => Err(fail(e)),
        _ => Ok(()),
    }
}

/// A route to the Services' addresses: without one, a host that has no default route could send nothing to them. No
/// packet takes it, for the nft table gives it another destination or refuses it.
async fn lead_to_services(handle: &Handle, config: &Config, bridge: u32) -> Result<()> {
    for net in config.service_nets() {
        let message = match net {
            Net::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix())
                .output_interface(bridge)
                .scope(RouteScope::Link)
                .build(),
            Net::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix())
                .output_interface(bridge)
                .build(),
        };
        let fail = |e| Error::netlink("set route to Services of", net.to_string(), cause(e));
        handle.route().add(message).replace().execute().await.map_err(fail)?;
    }
    Ok(())
}

/// A link by name.
pub(crate) async fn get(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    match handle.link().get().match_name(name).execute().try_next().await.map_err(cause) {
        Ok(link) => Ok(link),
        Err(e) if crate::sys::netlink::is(&e, nix::errno::Errno::ENODEV) => Ok(None),
        Err(e) => Err(Error::netlink("look for link", name, e)),
    }
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

/// The smallest MTU of the links with a default route.
pub(crate) async fn uplink_mtu(handle: &Handle) -> Result<u32> {
    let fail = |e| Error::netlink("list routes of", "the host", cause(e));
    let mut smallest = None;
    let request = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let routes: Vec<_> = request.try_collect().await.map_err(fail)?;
    for route in routes {
        let header = &route.header;
        if header.destination_prefix_length != 0
            || header.table != RouteHeader::RT_TABLE_MAIN
            || header.address_family != AddressFamily::Inet
        {
            continue;
        }
        let uplinks = route.attributes.iter().filter_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        for index in uplinks {
            let link = handle.link().get().match_index(index).execute().try_next().await.map_err(fail)?;
            let mtu = link.and_then(|link| {
                link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Mtu(mtu) => Some(*mtu),
                    _ => None,
                })
            });
            smallest = [smallest, mtu].into_iter().flatten().min();
        }
    }
    Ok(smallest.unwrap_or(ETHERNET))
}

/// Names of the links on the bridge that were made by us, going by kind, name and alias.
pub(crate) async fn pod_links(handle: &Handle, bridge: u32) -> Result<Vec<String>> {
    let all: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|e| Error::netlink("list links of", "the host", cause(e)))?;
    let ours = all.iter().filter(|link| kind(link) == Some(&InfoKind::Veth)).filter_map(|link| {
        let (mut name, mut on_bridge, mut has_alias) = (None, false, false);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(text) if text.starts_with(LINK_PREFIX) => name = Some(text.clone()),
                LinkAttribute::Controller(index) => on_bridge = *index == bridge,
                LinkAttribute::IfAlias(alias) => has_alias = alias.contains('/'),
                _ => {}
            }
        }
        name.filter(|_| on_bridge && has_alias)
    });
    Ok(ours.collect())
}

/// The counters of the host's end, seen from the other end.
pub(crate) async fn stats(handle: &Handle, host_if: &str) -> Result<Stats> {
    let link = get(handle, host_if).await?.ok_or_else(|| Error::NoSuchLink(host_if.into()))?;
    let host = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats),
        _ => None,
    });
    let host = host.ok_or_else(|| Error::NoSuchLink(host_if.into()))?;
    Ok(Stats {
        rx_bytes: host.tx_bytes,
        rx_packets: host.tx_packets,
        rx_errors: host.tx_errors,
        rx_dropped: host.tx_dropped,
        tx_bytes: host.rx_bytes,
        tx_packets: host.rx_packets,
        tx_errors: host.rx_errors,
        tx_dropped: host.rx_dropped,
    })
}
