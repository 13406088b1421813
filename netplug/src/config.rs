//! What the caller says and what it gets back.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cidr::{Ipv4Cidr, Ipv6Cidr};
use crate::error::{Error, Result};
use crate::nft::ruleset::Net;

pub(crate) mod beside;

/// The longest name a link can have (IFNAMSIZ without the closing zero).
pub(crate) const LINK_NAME_MAX: usize = 15;

/// Settings of one pod network. Two networks with different bridge, table, ranges and folder live side by side.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the bridge, at most 15 characters.
    pub bridge: String,
    /// Range of pod addresses. One belongs to the bridge and is the pods' gateway.
    pub ipv4: Ipv4Cidr,
    /// The bridge's address; by default the first of the range.
    pub gateway: Option<Ipv4Addr>,
    /// First and last of the addresses that pods get which ask for none; by default all of `ipv4`. What is left of `ipv4`
    /// can be asked for.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Range of IPv6 pod addresses, if pods are to have them. A pod's place in it is that of its IPv4 address.
    pub ipv6: Option<Ipv6Cidr>,
    /// MTU of bridge and pod interfaces in bytes; by default that of the link with the default route, or 1500.
    pub mtu: Option<u32>,
    /// Name of the nft table in family `inet`.
    pub table: String,
    /// Folder of the leases; made if missing.
    pub state_dir: PathBuf,
    /// Whether traffic leaving the pod network takes the host's address.
    pub masquerade: bool,
    /// How long a released address is not given out again.
    pub quarantine: Duration,
    /// Whether the host is a name server at the bridge's address, which its firewall is told then.
    pub name_server: bool,
    /// Whether a pod gets its default routes here.
    pub default_route: bool,
    /// Whether the bridge sends a packet back by the port it came from, which a pod that uses its own host port needs.
    pub hairpin: bool,
    /// Whether the bridge takes every packet, whomever it is for.
    pub promiscuous: bool,
    /// Range of the Services' addresses, if there are Services. What is sent to an address in it that leads nowhere is
    /// refused, and the host itself reaches them even without a default route.
    pub service_ipv4: Option<Ipv4Cidr>,
    /// Range of the Services' IPv6 addresses.
    pub service_ipv6: Option<Ipv6Cidr>,
    /// Whether nothing leaves the network nor comes into it, but for the host itself.
    pub internal: bool,
    /// Whether pods of this network and of those beside it do not reach each other, but by host ports and Services.
    pub isolated: bool,
    /// Whether the pods of this network do not reach each other.
    pub port_isolation: bool,
    /// Whether the bridge takes from a pod only what has the pod's own hardware address as its sender.
    pub mac_spoof_check: bool,
    /// The host's link in whose network the pods are, each with a link of its own there (macvlan), in place of a bridge. For
    /// networks beside the first one only. The kernel lets host and pods not reach each other there.
    pub parent: Option<String>,
    /// By what pods ask for this network, if it is one beside another.
    pub name: Option<String>,
    /// Further networks. Table and folder are those of this one, each has a bridge and leases of its own.
    pub beside: Vec<Config>,
    /// Whether policies say which pods may talk to whom. Then pods can use no addresses but their own, and the host routes
    /// between them.
    pub policies: bool,
}

impl Config {
    /// The settings of DESIGN: bridge `berth0`, `10.85.0.0/16`, table `berth`, masquerading, 30 s of quarantine.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            bridge: "berth0".into(),
            ipv4: Ipv4Cidr::new([10, 85, 0, 0].into(), 16).expect("16 is a prefix length"),
            gateway: None,
            range: None,
            ipv6: None,
            mtu: None,
            table: "berth".into(),
            state_dir: state_dir.into(),
            masquerade: true,
            quarantine: Duration::from_secs(30),
            name_server: false,
            default_route: true,
            hairpin: true,
            promiscuous: false,
            service_ipv4: None,
            service_ipv6: None,
            internal: false,
            isolated: true,
            port_isolation: false,
            mac_spoof_check: false,
            parent: None,
            name: None,
            beside: Vec::new(),
            policies: false,
        }
    }

    /// The settings of a network beside this one, with its own range and bridge, and what else they share.
    #[must_use]
    pub fn another(&self, name: &str, bridge: &str, ipv4: Ipv4Cidr) -> Self {
        Self {
            bridge: bridge.into(),
            table: self.table.clone(),
            mtu: self.mtu,
            quarantine: self.quarantine,
            name_server: self.name_server,
            ipv4,
            name: Some(name.into()),
            ..Self::new(beside::folder(&self.state_dir, name))
        }
    }

    /// This network and those beside it.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.beside)
    }

    /// The bridge's address: the one that was given, or the first.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.gateway.or_else(|| self.ipv4.nth(1)).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Whether an address is of the network; the bridge's are, too.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.ipv4.contains(ip),
            IpAddr::V6(ip) => self.ipv6.is_some_and(|net| net.contains(ip)),
        }
    }

    /// Those of them that have a bridge.
    pub(crate) fn bridged(&self) -> impl Iterator<Item = &Self> {
        self.all().filter(|net| net.parent.is_none())
    }

    /// The bridge's addresses with their prefix lengths, IPv4 first: the gateways of the pods.
    pub fn gateways(&self) -> impl Iterator<Item = (IpAddr, u8)> + use<> {
        let v4 = self.gateway();
        let place = self.ipv4.offset(v4).unwrap_or(1);
        let v6 = self.ipv6.and_then(|net| net.nth(place).map(|ip| (IpAddr::V6(ip), net.prefix())));
        [Some((IpAddr::V4(v4), self.ipv4.prefix())), v6].into_iter().flatten()
    }

    /// Whether an address of the range can be somebody's: neither the network's own nor that of broadcasts.
    fn is_host(&self, address: Ipv4Addr) -> bool {
        let offset = self.ipv4.offset(address);
        offset.is_some_and(|offset| offset >= 1 && u64::from(offset) + 1 < self.ipv4.size())
    }

    /// Whether a pod may have this address.
    pub(crate) fn is_for_pods(&self, address: Ipv4Addr) -> bool {
        self.is_host(address) && address != self.gateway()
    }

    fn check_addresses(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::InvalidConfig(text));
        if let Some(gateway) = self.gateway.filter(|gateway| !self.is_host(*gateway)) {
            return refuse(format!("gateway {gateway} is no address for a host of {}", self.ipv4));
        }
        let Some((first, last)) = self.range else { return Ok(()) };
        if !self.is_host(first) || !self.is_host(last) || first > last {
            return refuse(format!("{first} to {last} is no range of addresses for hosts of {}", self.ipv4));
        }
        if first == last && first == self.gateway() {
            return refuse(format!("the range of {} has no address but the gateway's", self.ipv4));
        }
        Ok(())
    }

    /// The ranges of the Services' addresses.
    pub(crate) fn service_nets(&self) -> impl Iterator<Item = Net> {
        [self.service_ipv4.map(Net::V4), self.service_ipv6.map(Net::V6)].into_iter().flatten()
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the setting.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::InvalidConfig(text));
        if let Some(parent) = self.parent.as_ref().filter(|parent| !link_name_ok(parent)) {
            return refuse(format!("parent {parent:?} is not the name of a link"));
        }
        if self.parent.is_none() && !link_name_ok(&self.bridge) {
            return refuse(format!(
                "bridge name {:?} is not 1 to {LINK_NAME_MAX} letters, digits, - _ .",
                self.bridge
            ));
        }
        let name_ok = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if !self.table.starts_with(|c: char| c.is_ascii_alphabetic())
            || self.table.len() > 64
            || !self.table.chars().all(name_ok)
        {
            return refuse(format!("nft table name {:?} is not usable", self.table));
        }
        if !(8..=30).contains(&self.ipv4.prefix()) {
            return refuse(format!("pod network {} needs a prefix length from 8 to 30", self.ipv4));
        }
        let widest = 128 - (32 - self.ipv4.prefix());
        if let Some(ipv6) = self.ipv6.filter(|ipv6| ipv6.prefix() > widest) {
            return refuse(format!("pod network {ipv6} is smaller than {}", self.ipv4));
        }
        self.check_addresses()?;
        beside::check(self)?;
        if let Some(net) = self.service_ipv4.filter(|net| net.overlaps(self.ipv4)) {
            return refuse(format!("service network {net} overlaps pod network {}", self.ipv4));
        }
        if let (Some(net), Some(pods)) = (self.service_ipv6, self.ipv6)
            && net.overlaps(pods)
        {
            return refuse(format!("service network {net} overlaps pod network {pods}"));
        }
        match self.mtu {
            Some(mtu) if !(576..=65535).contains(&mtu) => {
                refuse(format!("MTU {mtu} is not from 576 to 65535"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a link can have this name.
pub(crate) fn link_name_ok(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LINK_NAME_MAX
        && name != "."
        && name != ".."
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// A hardware address as it is written: `0a:58:0a:55:00:02`.
pub fn mac_text(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}

/// A transport protocol that a host port can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, the default of Kubernetes.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// That of a port, as Kubernetes spells it (`TCP`, `UDP`, `SCTP`); without one it is TCP.
    pub fn of_port(name: Option<&str>) -> Self {
        match name {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }

    /// The protocol number of the IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// The host address to listen on; `None`, `0.0.0.0` and `::` mean every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The port on the host.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// The protocol of both.
    pub protocol: Protocol,
}

impl HostPort {
    /// The one address that the port is bound to, if it is not every one.
    pub(crate) fn bound_ip(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

/// A pod as the network sees it.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    /// What identifies the pod (its uid); the key of its lease. Letters, digits, `-`, `_`, `.` and `:` only.
    pub id: String,
    /// Name, for the interface's name and alias and for error messages.
    pub name: String,
    /// Namespace, for the same.
    pub namespace: String,
    /// File of the pod's network namespace, such as `/proc/<pid>/ns/net`.
    pub netns: PathBuf,
    /// Ports of the host that lead into the pod.
    pub host_ports: Vec<HostPort>,
    /// What else it wants.
    pub wishes: Wishes,
}

/// What a pod may ask for beside what every pod gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wishes {
    /// Name of the interface inside; by default `eth0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The addresses to have: at most one per family, both at the same place in their ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// The hardware address to have; by default it is made from the IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<[u8; 6]>,
    /// How much may be sent to the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// How much the pod may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
    /// Where its default routes lead, at most one per family; by default to the network's gateways, if it has a way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_routes: Option<Vec<IpAddr>>,
}

/// A limit on traffic in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits per second in the long run, at least 8.
    pub bits_per_second: u64,
    /// Bytes that may pass at once after a pause; by default what passes in a tenth of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_bytes: Option<u32>,
}

/// What a pod has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod's addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Name of the interface inside.
    #[serde(default = "first_interface")]
    pub interface: String,
    /// Hardware address of the interface inside, as `0a:58:0a:55:00:02`.
    pub mac: String,
    /// Name of the link on the host's side.
    pub host_if: String,
    /// The IPv4 gateway.
    pub gateway: IpAddr,
    /// MTU of the interface inside, in bytes.
    pub mtu: u32,
}

/// The name of a pod's interface that asks for no other.
pub(crate) const FIRST_INTERFACE: &str = "eth0";

fn first_interface() -> String {
    FIRST_INTERFACE.into()
}

/// Counters of a pod's interface since it was made, from the pod's point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes the pod received.
    pub rx_bytes: u64,
    /// Packets the pod received.
    pub rx_packets: u64,
    /// Packets to the pod that were broken.
    pub rx_errors: u64,
    /// Packets to the pod that were dropped.
    pub rx_dropped: u64,
    /// Bytes the pod sent.
    pub tx_bytes: u64,
    /// Packets the pod sent.
    pub tx_packets: u64,
    /// Packets from the pod that were broken.
    pub tx_errors: u64,
    /// Packets from the pod that were dropped.
    pub tx_dropped: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::new("/x");
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_good() {
        Config::new("/x").check().unwrap();
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        assert!(refusal(|c| c.bridge = "a-name-of-16-char".into()).contains("bridge name"));
        assert!(refusal(|c| c.bridge = "a/b".into()).contains("bridge name"));
        assert!(refusal(|c| c.table = "0x".into()).contains("nft table name"));
        assert!(refusal(|c| c.ipv4 = "10.0.0.0/31".parse().unwrap()).contains("prefix length"));
        assert!(
            refusal(|c| c.ipv6 = Some("fd00::/120".parse().unwrap())).contains("smaller than 10.85.0.0/16")
        );
        let overlap = refusal(|c| c.service_ipv4 = Some("10.85.128.0/20".parse().unwrap()));
        assert!(overlap.contains("service network 10.85.128.0/20 overlaps pod network 10.85.0.0/16"));
        assert!(refusal(|c| c.mtu = Some(100)).contains("MTU 100"));
        for gateway in ["10.86.0.1", "10.85.0.0", "10.85.255.255"] {
            let text = refusal(|c| c.gateway = Some(gateway.parse().unwrap()));
            assert!(text.contains(&format!("gateway {gateway} is no address")), "{text}");
        }
        let range = |first: &str, last: &str| Some((first.parse().unwrap(), last.parse().unwrap()));
        for (first, last) in
            [("10.85.0.9", "10.85.0.2"), ("10.85.0.0", "10.85.0.9"), ("10.85.0.2", "10.86.0.2")]
        {
            assert!(refusal(|c| c.range = range(first, last)).contains("is no range of addresses"));
        }
        assert!(
            refusal(|c| c.range = range("10.85.0.1", "10.85.0.1")).contains("no address but the gateway's")
        );
    }
}
