//! What the nft table holds, as a pure function of the settings and the host ports.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use crate::cidr::{Ipv4Cidr, Ipv6Cidr};
use crate::config::{Config, Protocol};
use crate::ipam::Lease;

/// The address families of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

/// A network of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    V4(Ipv4Cidr),
    V6(Ipv6Cidr),
}

/// The maps from host ports to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MapId {
    /// Whose addresses it leads to.
    pub family: Family,
    /// Whether the host's address is part of the key.
    pub by_address: bool,
}

impl MapId {
    /// All of them, those with the narrower key first, for they win.
    pub(crate) const ALL: [Self; 4] = [
        Self { family: Family::V4, by_address: true },
        Self { family: Family::V4, by_address: false },
        Self { family: Family::V6, by_address: true },
        Self { family: Family::V6, by_address: false },
    ];

    pub(crate) fn name(self) -> &'static str {
        match (self.family, self.by_address) {
            (Family::V4, true) => "hostport-address4",
            (Family::V4, false) => "hostport4",
            (Family::V6, true) => "hostport-address6",
            (Family::V6, false) => "hostport6",
        }
    }
}

/// One way from a host port to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub map: MapId,
    pub host_ip: Option<IpAddr>,
    pub protocol: Protocol,
    pub host_port: u16,
    pub pod_ip: IpAddr,
    pub container_port: u16,
}

/// A match or an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    InputIs(String),
    OutputIs(String),
    OutputIsNot(String),
    Source(Net),
    Destination(Net),
    DestinationNot(Net),
    /// The destination is an address of this host.
    DestinationIsLocal,
    /// The connection's destination was rewritten.
    Redirected,
    /// The packet belongs to a connection that was let through before.
    Answers,
    /// Either of the two, by the conntrack match of iptables.
    AnswersOrRedirectedXt,
    Accept,
    Drop,
    Jump(&'static str),
    Masquerade,
    /// Rewrites the destination by looking up address (if part of the key), protocol and port.
    RedirectBy(MapId),
}

/// Where a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Before connection tracking, as filter.
    Raw,
    /// Rewriting destinations of what comes in.
    Prerouting,
    /// Rewriting destinations of what the host itself sends.
    Output,
    /// Rewriting sources.
    Postrouting,
}

impl Hook {
    /// Type of chain, number of the hook, priority (linux/netfilter_ipv4.h).
    pub(crate) fn place(self) -> (&'static str, u32, i32) {
        match self {
            Self::Raw => ("filter", 0, -300),
            Self::Prerouting => ("nat", 0, -100),
            Self::Output => ("nat", 3, -100),
            Self::Postrouting => ("nat", 4, 100),
        }
    }
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub name: &'static str,
    pub hook: Option<Hook>,
    pub rules: Vec<Vec<Statement>>,
}

/// The whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ruleset {
    pub table: String,
    pub elements: Vec<Element>,
    pub chains: Vec<Chain>,
}

/// The table for these settings and leases.
pub(crate) fn ruleset<'a>(config: &Config, leases: impl Iterator<Item = &'a Lease>) -> Ruleset {
    let mut elements: Vec<Element> = leases.flat_map(|lease| elements(config, lease)).collect();
    elements.sort_unstable();
    Ruleset { table: config.table.clone(), elements, chains: chains(config) }
}

/// The host ports of one pod.
pub(crate) fn elements(config: &Config, lease: &Lease) -> Vec<Element> {
    let mut elements = Vec::new();
    for port in &lease.host_ports {
        let host_ip = port.host_ip.filter(|ip| !ip.is_unspecified());
        for pod_ip in lease.ips(config) {
            if host_ip.is_some_and(|ip| ip.is_ipv4() != pod_ip.is_ipv4()) {
                continue;
            }
            let family = if pod_ip.is_ipv4() { Family::V4 } else { Family::V6 };
            elements.push(Element {
                map: MapId { family, by_address: host_ip.is_some() },
                host_ip,
                protocol: port.protocol,
                host_port: port.host_port,
                pod_ip,
                container_port: port.container_port,
            });
        }
    }
    elements
}

const TO_PODS: &str = "hostports";

fn chains(config: &Config) -> Vec<Chain> {
    use Statement::{DestinationIsLocal, Jump, RedirectBy};
    let families = || MapId::ALL.into_iter().filter(|map| map.family == Family::V4 || config.ipv6.is_some());
    let to_local = || vec![vec![DestinationIsLocal, Jump(TO_PODS)]];
    vec![
        Chain { name: TO_PODS, hook: None, rules: families().map(|map| vec![RedirectBy(map)]).collect() },
        Chain { name: "raw", hook: Some(Hook::Raw), rules: guard(config) },
        Chain { name: "prerouting", hook: Some(Hook::Prerouting), rules: to_local() },
        Chain { name: "output", hook: Some(Hook::Output), rules: to_local() },
        Chain { name: "postrouting", hook: Some(Hook::Postrouting), rules: postrouting(config) },
    ]
}

fn loopback() -> Net {
    Net::V4(Ipv4Cidr::new([127, 0, 0, 0].into(), 8).expect("8 is a prefix length"))
}

/// `route_localnet` on the bridge would let a pod reach what listens on the host's 127.0.0.1 (CVE-2020-8558).
fn guard(config: &Config) -> Vec<Vec<Statement>> {
    vec![vec![Statement::InputIs(config.bridge.clone()), Statement::Destination(loopback()), Statement::Drop]]
}

fn postrouting(config: &Config) -> Vec<Vec<Statement>> {
    use Statement::{DestinationNot, Masquerade, OutputIs, OutputIsNot, Redirected, Source};
    let bridge = &config.bridge;
    let networks = || [Some(Net::V4(config.ipv4)), config.ipv6.map(Net::V6)].into_iter().flatten();
    // From 127.0.0.1 of the host to a host port: the pod must have an address to answer to.
    let mut rules = vec![vec![Source(loopback()), OutputIs(bridge.clone()), Masquerade]];
    for net in networks() {
        // From a pod to a host port of itself or of a neighbour: the answer has to come back through the host, or it
        // would arrive from an address that was never asked.
        rules.push(vec![Source(net), OutputIs(bridge.clone()), Redirected, Masquerade]);
    }
    if config.masquerade {
        for net in networks() {
            rules.push(vec![Source(net), DestinationNot(net), OutputIsNot(bridge.clone()), Masquerade]);
        }
    }
    rules
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(net) => net.fmt(f),
            Self::V6(net) => net.fmt(f),
        }
    }
}

impl Net {
    fn keyword(self) -> &'static str {
        match self {
            Self::V4(_) => "ip",
            Self::V6(_) => "ip6",
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InputIs(link) => write!(f, "iifname \"{link}\""),
            Self::OutputIs(link) => write!(f, "oifname \"{link}\""),
            Self::OutputIsNot(link) => write!(f, "oifname != \"{link}\""),
            Self::Source(net) => write!(f, "{} saddr {net}", net.keyword()),
            Self::Destination(net) => write!(f, "{} daddr {net}", net.keyword()),
            Self::DestinationNot(net) => write!(f, "{} daddr != {net}", net.keyword()),
            Self::DestinationIsLocal => f.write_str("fib daddr type local"),
            Self::Redirected => f.write_str("ct status dnat"),
            Self::Answers => f.write_str("ct state established,related"),
            Self::AnswersOrRedirectedXt => f.write_str("xt match conntrack"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::RedirectBy(map) => {
                let keyword = if map.family == Family::V4 { "ip" } else { "ip6" };
                let address = if map.by_address { format!("{keyword} daddr . ") } else { String::new() };
                write!(f, "dnat {keyword} to {address}meta l4proto . th dport map @{}", map.name())
            }
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ip) = self.host_ip {
            write!(f, "{ip} . ")?;
        }
        write!(f, "{} . {} : {} . {}", self.protocol, self.host_port, self.pod_ip, self.container_port)
    }
}

/// In the words of `nft`, for people and tests.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.table)?;
        for map in MapId::ALL {
            writeln!(f, "\tmap {} {{", map.name())?;
            for element in self.elements.iter().filter(|element| element.map == map) {
                writeln!(f, "\t\t{element}")?;
            }
            writeln!(f, "\t}}")?;
        }
        for chain in &self.chains {
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(hook) = chain.hook {
                let (kind, number, priority) = hook.place();
                writeln!(
                    f,
                    "\t\ttype {kind} hook {} priority {priority}",
                    ["prerouting", "input", "forward", "output", "postrouting"][number as usize]
                )?;
            }
            for rule in &chain.rules {
                let mut line = String::new();
                for statement in rule {
                    write!(line, "{}{statement}", if line.is_empty() { "" } else { " " })?;
                }
                writeln!(f, "\t\t{line}")?;
            }
            writeln!(f, "\t}}")?;
        }
        f.write_str("}\n")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::HostPort;

    fn lease(ipv4: [u8; 4], ports: &[(Option<&str>, u16, u16, Protocol)]) -> Lease {
        Lease {
            id: "u".into(),
            name: "n".into(),
            namespace: "s".into(),
            ipv4: ipv4.into(),
            host_if: "vethn-abcdefg".into(),
            host_ports: ports
                .iter()
                .map(|(ip, host_port, container_port, protocol)| HostPort {
                    host_ip: ip.map(|ip| ip.parse().unwrap()),
                    host_port: *host_port,
                    container_port: *container_port,
                    protocol: *protocol,
                })
                .collect(),
            wishes: Default::default(),
            sequence: 1,
        }
    }

    #[test]
    fn empty_ipv4() {
        let config = Config::new("/x");
        insta::assert_snapshot!(ruleset(&config, std::iter::empty()));
    }

    #[test]
    fn without_masquerade() {
        let mut config = Config::new("/x");
        config.masquerade = false;
        insta::assert_snapshot!(ruleset(&config, std::iter::empty()));
    }

    #[test]
    fn dual_stack_with_ports() {
        let mut config = Config::new("/x");
        config.ipv6 = Some("fd00:85::/64".parse().unwrap());
        let leases = [
            lease(
                [10, 85, 0, 2],
                &[(None, 8080, 80, Protocol::Tcp), (Some("0.0.0.0"), 53, 5353, Protocol::Udp)],
            ),
            lease(
                [10, 85, 0, 3],
                &[(Some("192.0.2.1"), 8080, 81, Protocol::Tcp), (Some("2001:db8::1"), 9, 9, Protocol::Sctp)],
            ),
        ];
        insta::assert_snapshot!(ruleset(&config, leases.iter()));
    }

    #[test]
    fn order_of_leases_does_not_matter() {
        let config = Config::new("/x");
        let a = lease([10, 85, 0, 2], &[(None, 1, 1, Protocol::Tcp)]);
        let b = lease([10, 85, 0, 3], &[(None, 2, 2, Protocol::Tcp)]);
        assert_eq!(ruleset(&config, [&a, &b].into_iter()), ruleset(&config, [&b, &a].into_iter()));
    }
}
