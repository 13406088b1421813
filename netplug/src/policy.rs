//! Policies: who may talk to whom. This is what Kubernetes' NetworkPolicies come to once it is known which pods have which
//! labels and addresses; this crate knows neither.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cidr::{Ipv4Cidr, Ipv6Cidr};
use crate::config::Protocol;
use crate::error::{Error, Result};
use crate::record;

/// Who may talk to whom. A pod whose address is not in here can talk to nobody but its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// What pods may receive and send, by each of their addresses.
    pub pods: BTreeMap<IpAddr, Guard>,
    /// The rules by their names, which are of letters, digits, `-`, `_`, `.` and `/`, begin with a letter and are at most 200
    /// long.
    pub rules: BTreeMap<String, Rule>,
}

/// What a pod may receive and send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Names of the rules one of which must allow what is sent to the pod; `None` lets everything through.
    pub ingress: Option<BTreeSet<String>>,
    /// The same for what the pod sends.
    pub egress: Option<BTreeSet<String>>,
}

/// Something that is allowed: to talk to these peers at these ports. A rule serves either what pods receive or what they
/// send, not both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The other side; `None` is everybody.
    pub peers: Option<Peers>,
    /// The ports of whoever is asked for something; `None` is all ports and all protocols.
    pub ports: Option<Ports>,
}

/// The other side of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// Addresses of pods; `None` if pods are not among the peers, whichever there are.
    pub pods: Option<BTreeSet<IpAddr>>,
    /// Ranges of addresses.
    pub blocks: Vec<Block>,
}

/// A range of addresses with holes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The range.
    pub net: Net,
    /// Its parts that are left out.
    pub except: Vec<Net>,
}

/// A range of addresses of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Net {
    /// IPv4.
    V4(Ipv4Cidr),
    /// IPv6.
    V6(Ipv6Cidr),
}

impl Net {
    /// Whether the address is in the range.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self, ip) {
            (Self::V4(net), IpAddr::V4(ip)) => net.contains(ip),
            (Self::V6(net), IpAddr::V6(ip)) => net.contains(ip),
            _ => false,
        }
    }
}

impl std::str::FromStr for Net {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self::V4).or_else(|_| text.parse().map(Self::V6))
    }
}

/// Ports that may be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// First and last, of a protocol.
    pub ranges: BTreeSet<(Protocol, u16, u16)>,
    /// Ports that are allowed by their names, of each pod that has such ones; `None` if no name is allowed.
    pub named: Option<BTreeSet<(IpAddr, Protocol, u16)>>,
}

/// The first packet of a connection, its destination rewritten where it had to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who asks.
    pub from: IpAddr,
    /// Who is asked.
    pub to: IpAddr,
    /// The protocol and the port asked for, if it is one that has ports.
    pub port: Option<(Protocol, u16)>,
}

impl Policies {
    /// Whether the policies allow a flow. What a pod's node sends and gets is no matter of policies.
    pub fn allow(&self, flow: &Flow) -> bool {
        let guard = |ip| self.pods.get(&ip);
        let passes = |names: Option<&BTreeSet<String>>, peer| {
            let mut rules = names.into_iter().flatten().filter_map(|name| self.rules.get(name));
            names.is_none() || rules.any(|rule| rule.allows(peer, flow))
        };
        flow.from == flow.to
            || (passes(guard(flow.from).and_then(|pod| pod.egress.as_ref()), flow.to)
                && passes(guard(flow.to).and_then(|pod| pod.ingress.as_ref()), flow.from))
    }
}

impl Guard {
    /// Whether anything is forbidden to the pod.
    pub(crate) fn isolates(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }
}

impl Rule {
    fn allows(&self, peer: IpAddr, flow: &Flow) -> bool {
        let in_block =
            |block: &Block| block.net.contains(peer) && !block.except.iter().any(|hole| hole.contains(peer));
        let is_peer = self.peers.as_ref().is_none_or(|peers| {
            peers.pods.as_ref().is_some_and(|pods| pods.contains(&peer)) || peers.blocks.iter().any(in_block)
        });
        is_peer
            && self.ports.as_ref().is_none_or(|ports| {
                let Some((protocol, port)) = flow.port else { return false };
                let in_range = |(of, first, last): &(Protocol, u16, u16)| {
                    *of == protocol && (*first..=*last).contains(&port)
                };
                ports.ranges.iter().any(in_range)
                    || ports.named.as_ref().is_some_and(|named| named.contains(&(flow.to, protocol, port)))
            })
    }
}

/// Name of their record.
const RECORD: &str = "policies";

/// The policies as they were when they were last kept: they stay in force while the agent is being replaced.
pub(crate) fn load(state_dir: &Path) -> Result<Option<Policies>> {
    // Of what cannot be read it is only certain that there were policies: no pod reaches another until they are known again.
    Ok(record::read(state_dir, RECORD)?.map(|read| {
        read.unwrap_or_else(|error| {
            let path = record::path(state_dir, RECORD);
            tracing::warn!(path = %path.display(), %error, "policies begin anew: their record cannot be read");
            Policies::default()
        })
    }))
}

/// Keeps them for the next agent.
pub(crate) fn keep(state_dir: &Path, policies: &Policies) -> Result<()> {
    record::write(state_dir, RECORD, policies)
}

/// Removes the record.
pub(crate) fn forget(state_dir: &Path) -> Result<()> {
    record::remove(&record::path(state_dir, RECORD))
}
