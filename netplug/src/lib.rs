//! The pod network of one node: a bridge, a veth pair per pod, addresses that are handed out and kept, masquerading
//! and host ports. It knows nothing of pods beyond an id, a name and a network namespace.
//!
//! A tour:
//!
//! * [`config`]: what the caller says ([`Config`], [`PodNetwork`]) and what it gets back ([`Attachment`]).
//! * [`network`]: the verbs ([`Network`]): open, attach, detach, gc, stats, close. Start reading here.
//! * [`service`]: Services, whose addresses and node ports lead to pods ([`Network::set_services`]).
//! * [`policy`]: who may talk to whom ([`Network::set_policies`]).
//! * `ipam`: leases on disk, one file per pod, with address, interface name and host ports.
//! * `bridge`, `veth`, `macvlan`: links, addresses and routes over rtnetlink.
//! * `nft`: the ruleset as a pure function of config, leases and Services, and its encoding as nfnetlink messages.
//! * `record`: JSON files that are whole, whenever they are read.
//! * `conntrack`: forgets UDP flows whose host port or endpoint went away.
//! * `shaping`: limits on a pod's traffic.
//! * [`cni`]: all of this as a CNI plugin, one process per request, over the same files.
//! * `monitor`: wakes the network when somebody else deletes the bridge or the table.
//! * `sysctl`, `sys`: files below /proc/sys/net, network namespaces and netlink sockets.
//!
//! No program (`ip`, `nft`, `iptables`) is run. A namespace is entered only by threads made for it, which end there.

mod bridge;
pub mod cidr;
pub mod cni;
pub mod config;
mod conntrack;
pub mod error;
mod ipam;
mod macvlan;
mod monitor;
pub mod network;
mod nft;
pub mod policy;
mod record;
pub mod service;
mod shaping;
mod sys;
mod sysctl;
mod veth;

pub use cidr::{Ipv4Cidr, Ipv6Cidr};
pub use config::{Attachment, Config, HostPort, PodNetwork, Protocol, Rate, Stats, Wishes, mac_text};
pub use error::{Error, Result};
pub use network::{Network, bring_up_loopback};
pub use policy::Policies;
pub use service::{Service, ServicePort};
