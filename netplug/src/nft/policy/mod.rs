//! The tables of policies: what is allowed between pods, and that pods do not pretend to be others.
//!
//! There are two, beside the one of [`super::ruleset`] and named after it, of the families that their work needs:
//!
//! * `inet`, whose chains see what is routed. Two chains of the forward hook ask what a pod may send, and then what a pod
//!   may receive. Each takes one look into a map from addresses to the chain of the pod's rules; pods with the same rules
//!   share one. A rule asks for its peers and ports in sets. So no packet is compared with a list of pods, and a pod that
//!   comes or goes, or changes its labels, is elements put in or taken out.
//! * `bridge`, whose chain sees what pods send before anybody else does. It lets pass only what has the pod's own hardware
//!   and network address, so that addresses can be relied on. Packets are then addressed to the bridge itself: pods think
//!   that they talk to each other directly, but the host routes between them, and the chains above see all of it. This needs
//!   neither br_netfilter nor any setting in pods.

mod chains;
mod derive;
mod encode;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

pub(crate) use chains::Statement;
pub(crate) use derive::{gate, rules};
pub(crate) use encode::{change, rebuild};

use super::set::Family;
use crate::config::Protocol;

/// Name of the tables of policies that belong to a network's table.
pub(crate) fn table_name(table: &str) -> String {
    format!("{table}-policy")
}

/// A part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The name of a link.
    Link,
    /// A hardware address.
    Hardware,
    Address(Family),
    Protocol,
    Port,
}

/// What a set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Its elements are what is in it.
    Plain,
    /// Its elements are first and last of ranges.
    Ranges,
    /// A map to what shall be done.
    Verdicts,
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub form: Form,
    pub key: Vec<Part>,
}

/// A part of an element's key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Datum {
    Link(String),
    Hardware([u8; 6]),
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
}

/// What an element of a map says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Accept,
    Goto(String),
}

/// An element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    /// The set that it is in.
    pub set: String,
    pub key: Vec<Datum>,
    /// The last of the range that begins with the key, in a set of ranges.
    pub last: Option<IpAddr>,
    pub verdict: Option<Verdict>,
}

/// Where a chain is called from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Frames that come to a bridge, before br_netfilter gets them.
    FromPort,
    /// What is routed; the second is asked after the first.
    Egress,
    Ingress,
}

impl Hook {
    /// Number of the hook, priority.
    fn place(self) -> (u32, i32) {
        match self {
            Self::FromPort => (0, -300),
            Self::Egress => (2, 0),
            Self::Ingress => (2, 1),
        }
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Vec<Statement>>,
}

/// A whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Whether it is of family bridge, not inet.
    pub bridge: bool,
    pub name: String,
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Chain>,
    pub elements: BTreeSet<Element>,
}

impl fmt::Display for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "\"{name}\""),
            Self::Hardware(bytes) => {
                let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                f.write_str(&text.join(":"))
            }
            Self::Address(ip) => ip.fmt(f),
            Self::Protocol(protocol) => protocol.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key: Vec<String> = self.key.iter().map(Datum::to_string).collect();
        f.write_str(&key.join(" . "))?;
        if let Some(last) = self.last {
            write!(f, "-{last}")?;
        }
        match &self.verdict {
            None => Ok(()),
            Some(Verdict::Accept) => f.write_str(" : accept"),
            Some(Verdict::Goto(chain)) => write!(f, " : goto {chain}"),
        }
    }
}

/// In the words of `nft`, for people and tests.
impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", if self.bridge { "bridge" } else { "inet" }, self.name)?;
        for (name, set) in &self.sets {
            let word = if set.form == Form::Verdicts { "map" } else { "set" };
            writeln!(f, "\t{word} {name} {{")?;
            for element in self.elements.iter().filter(|element| element.set == *name) {
                writeln!(f, "\t\t{element}")?;
            }
            writeln!(f, "\t}}")?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "\tchain {name} {{")?;
            if let Some(hook) = chain.hook {
                let (number, priority) = hook.place();
                let word = if number == 0 { "prerouting" } else { "forward" };
                writeln!(f, "\t\ttype filter hook {word} priority {priority}")?;
            }
            for rule in &chain.rules {
                let words: Vec<String> = rule.iter().map(Statement::to_string).collect();
                writeln!(f, "\t\t{}", words.join(" "))?;
            }
            writeln!(f, "\t}}")?;
        }
        f.write_str("}\n")
    }
}
