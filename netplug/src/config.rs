//! What the caller says and what it gets back.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cidr::{Ipv4Cidr, Ipv6Cidr};
use crate::error::{Error, Result};

/// The longest name a link can have (IFNAMSIZ without the closing zero).
pub(crate) const LINK_NAME_MAX: usize = 15;

/// Settings of one pod network. Two networks with different bridge, table, ranges and folder live side by side.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the bridge, at most 15 characters.
    pub bridge: String,
    /// Range of pod addresses. The first one belongs to the bridge and is the pods' gateway.
    pub ipv4: Ipv4Cidr,
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
}

impl Config {
    /// The settings of DESIGN: bridge `berth0`, `10.85.0.0/16`, table `berth`, masquerading, 30 s of quarantine.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            bridge: "berth0".into(),
            ipv4: Ipv4Cidr::new([10, 85, 0, 0].into(), 16).expect("16 is a prefix length"),
            ipv6: None,
            mtu: None,
            table: "berth".into(),
            state_dir: state_dir.into(),
            masquerade: true,
            quarantine: Duration::from_secs(30),
        }
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the setting.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::InvalidConfig(text));
        if !link_name_ok(&self.bridge) {
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
        match self.mtu {
            Some(mtu) if !(576..=65535).contains(&mtu) => {
                refuse(format!("MTU {mtu} is not from 576 to 65535"))
            }
            _ => Ok(()),
        }
    }
}

fn link_name_ok(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LINK_NAME_MAX
        && name != "."
        && name != ".."
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
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

/// A pod as the network sees it.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    /// What identifies the pod (its uid); the key of its lease. Letters, digits, `-`, `_` and `.` only.
    pub id: String,
    /// Name, for the interface's name and alias and for error messages.
    pub name: String,
    /// Namespace, for the same.
    pub namespace: String,
    /// File of the pod's network namespace, such as `/proc/<pid>/ns/net`.
    pub netns: PathBuf,
    /// Ports of the host that lead into the pod.
    pub host_ports: Vec<HostPort>,
}

/// What a pod has got. The interface inside is always `eth0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod's addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Hardware address of `eth0`, as `0a:58:0a:55:00:02`.
    pub mac: String,
    /// Name of the link on the host's side.
    pub host_if: String,
    /// The IPv4 gateway.
    pub gateway: IpAddr,
    /// MTU of `eth0` in bytes.
    pub mtu: u32,
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
        assert!(refusal(|c| c.mtu = Some(100)).contains("MTU 100"));
    }
}
