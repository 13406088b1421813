//! A pod's link in the network of one of the host's own links (macvlan): made straight in the pod, with no other end.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::MacVlanMode;
use nix::errno::Errno;
use rtnetlink::LinkMacVlan;

use crate::config::Stats;
use crate::error::{Error, Result};
use crate::sys::netlink::{self, CREATE, EXCL, attribute};
use crate::sys::netns::Traveller;
use crate::veth::{Batch, Plan, announce, dump_link, fill, open, shape};
use crate::{sysctl, veth};

/// Puts the namespace `pod` into the network of the link `parent` of the namespace `host`; repairs what is there already. The MTU is
/// that of `parent` unless another one is said.
pub(crate) fn connect(
    thread: &Traveller,
    host: &OwnedFd,
    pod: &OwnedFd,
    plan: &Plan,
    parent: &str,
    mtu: Option<u32>,
) -> Result<()> {
    let mut outside = open(thread, host, parent)?;
    let lower = veth::link(&mut outside, parent)?.ok_or_else(|| Error::NoSuchLink(parent.into()))?;
    let mut inside = open(thread, pod, &plan.pod)?;
    let mut message = LinkMacVlan::new(&plan.interface, lower.index, MacVlanMode::Bridge)
        .address(plan.mac.to_vec())
        .setns_by_fd(pod.as_raw_fd());
    if let Some(mtu) = mtu {
        message = message.mtu(mtu);
    }
    let message = message.build();
    let made = Batch::default()
        .add("create macvlan link", RouteNetlinkMessage::NewLink(message), CREATE | EXCL)
        .send(&mut outside, &format!("{} on {parent}", plan.interface));
    let is_new = match made {
        Err(Error::Netlink { source, .. }) if netlink::is(&source, Errno::EEXIST) => {
            let found = veth::link(&mut inside, &plan.interface)?;
            if found.is_none_or(|found| found.peer != Some(lower.index)) {
                let owner = format!("pod {}", plan.pod);
                return Err(Error::InterfaceTaken { owner, interface: plan.interface.clone() });
            }
            false
        }
        other => other.map(|()| true)?,
    };
    sysctl::pod(thread, &plan.interface, plan.addresses.len() > 1)?;
    fill(&mut inside, plan)?;
    if is_new {
        announce(&mut inside, plan)?;
    }
    if is_new && plan.egress.is_none() {
        return Ok(());
    }
    shape(&mut inside, &plan.interface, plan.egress, &plan.pod, plan.mtu)
}

/// The counters of an interface in a pod.
pub(crate) fn stats(thread: &Traveller, pod: &OwnedFd, interface: &str) -> Result<Stats> {
    /// `IFLA_STATS64`: `struct rtnl_link_stats64` of linux/if_link.h.
    const STATS: u16 = 23;
    /// Bytes of the header (`struct ifinfomsg`).
    const INFO: usize = 16;
    let mut inside = open(thread, pod, interface)?;
    let mut counters = None;
    dump_link(&mut inside, interface, |body| {
        let attributes = body.get(INFO..).unwrap_or_default();
        counters = attribute(attributes, STATS).map(|bytes| {
            let mut numbers = [0_u64; 8];
            for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
                *number = bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes);
            }
            numbers
        });
    })?;
    let [rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped] =
        counters.ok_or_else(|| Error::NoSuchLink(interface.into()))?;
    Ok(Stats { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped })
}
