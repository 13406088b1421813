//! What one pod holds.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::config::{Config, FIRST_INTERFACE, HostPort, LINK_NAME_MAX, PodNetwork, Wishes};
use crate::error::{Error, Result};

/// What a pod holds from its first attach to its detach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// The pod's id.
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub ipv4: Ipv4Addr,
    /// Name of the link on the host's side.
    pub host_if: String,
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    #[serde(default)]
    pub wishes: Wishes,
    /// Leases are numbered as they are made, so that the ring of addresses goes on after a restart.
    pub sequence: u64,
}

impl Lease {
    /// `namespace/name`.
    pub(crate) fn pod(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The pod's addresses, IPv4 first. The IPv6 one has the same place in its network.
    pub(crate) fn ips(&self, config: &Config) -> Vec<IpAddr> {
        let offset = config.ipv4.offset(self.ipv4);
        let ipv6 = config.ipv6.zip(offset).and_then(|(net, offset)| net.nth(offset));
        [Some(IpAddr::V4(self.ipv4)), ipv6.map(IpAddr::V6)].into_iter().flatten().collect()
    }

    /// The pod's hardware address: made from its address as the CNI plugins do, so that a neighbour's memory of the
    /// address is never wrong about the hardware; or the one it asked for.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.wishes.mac.unwrap_or_else(|| mac(self.ipv4))
    }

    /// Where its default routes lead.
    pub(crate) fn default_routes(&self, config: &Config) -> Vec<IpAddr> {
        match &self.wishes.default_routes {
            Some(gateways) => gateways.clone(),
            None if config.default_route && !config.internal => config.gateways().map(|(ip, _)| ip).collect(),
            None => Vec::new(),
        }
    }

    /// Name of the interface inside.
    pub(crate) fn interface(&self) -> &str {
        self.wishes.interface.as_deref().unwrap_or(FIRST_INTERFACE)
    }
}

/// The hardware address that goes with an IPv4 address.
pub(crate) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Refuses ids that cannot be file names.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let letters = id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
    if id.is_empty() || id.len() > 200 || id.starts_with('.') || !letters {
        return Err(Error::InvalidId(id.into()));
    }
    Ok(())
}

/// Whether two host ports cannot both be had.
pub(crate) fn overlap(a: &HostPort, b: &HostPort) -> bool {
    let any = |port: &HostPort| port.host_ip.is_none_or(|ip| ip.is_unspecified());
    a.host_port == b.host_port && a.protocol == b.protocol && (any(a) || any(b) || a.host_ip == b.host_ip)
}

/// What the names of all our links begin with.
pub(crate) const LINK_PREFIX: &str = "veth";
const HASH_LENGTH: usize = 5;

/// A name for the pod's link: `veth`, as much of the pod's name as fits, and a hash of its id and of `scope`, which keeps
/// apart the links of several networks.
pub(crate) fn link_name(scope: &str, pod: &PodNetwork, taken: impl Fn(&str) -> bool) -> String {
    let room = LINK_NAME_MAX - LINK_PREFIX.len() - HASH_LENGTH;
    let short: String = pod.name.chars().filter(char::is_ascii_alphanumeric).take(room).collect();
    let mut salt = 0;
    loop {
        let name = format!("{LINK_PREFIX}{}{}", short.to_ascii_lowercase(), hash(scope, &pod.id, salt));
        if !taken(&name) {
            return name;
        }
        salt += 1;
    }
}

/// Five letters or digits: FNV-1a, which stays the same in every version of this program.
fn hash(scope: &str, id: &str, salt: u64) -> String {
    let mut state = 0xcbf2_9ce4_8422_2325_u64 ^ salt;
    for byte in scope.bytes().chain([0]).chain(id.bytes()) {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state ^= state >> 32;
    let digit = |place: u32| char::from_digit((state >> (5 * place)) as u32 & 31, 32).unwrap_or('0');
    (0..HASH_LENGTH as u32).map(digit).collect()
}
