//! What the nft table holds, as a pure function of the settings, the host ports and the Services.

use std::fmt::{self, Write as _};
use std::net::Ipv6Addr;
use std::time::Duration;

use super::set::{Data, Element, Entry, Family, Field, MapId, SetId};
use super::{apart, pick};
use crate::cidr::{Ipv4Cidr, Ipv6Cidr};
use crate::config::{Config, Protocol};
use crate::ipam::Lease;
use crate::service::Service;

/// A network of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    V4(Ipv4Cidr),
    V6(Ipv6Cidr),
}

/// A match or an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    InputIs(String),
    InputIsNot(String),
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
    ProtocolIs(Protocol),
    /// The packet is for this port.
    PortIs(u16),
    /// Goes on in the chain of the Service that the packet is for.
    Serve(Family, Entry),
    /// Rewrites the destination to one of so many endpoints.
    Pick(Family, Entry, u32),
    /// Rewrites the destination to the endpoint that the client had.
    Again(Family),
    /// The packet begins a connection.
    IsNew,
    /// The packet belongs to no connection and begins none.
    IsStray,
    /// Goes on in the chain that remembers the endpoint which the packet was given.
    Member(Family, Entry),
    /// Remembers the endpoint for the client, for so long.
    Remember(Family, Duration),
    /// Ends a TCP connection that cannot be.
    Reset,
    /// Says that nobody is there (ICMP port unreachable).
    Reject,
}

/// Where a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Before connection tracking, as filter.
    Raw,
    /// What comes in once its destination had its chance to be rewritten, as filter. Before it is routed: the host would
    /// tell a pod of a better way (an ICMP redirect), and not so soon after that, that nobody is there.
    In,
    /// What the host itself sends, likewise.
    Out,
    /// Rewriting destinations of what comes in.
    Prerouting,
    /// Rewriting destinations of what the host itself sends.
    Output,
    /// After destinations of what comes in were rewritten, as filter.
    Picked,
    /// After destinations of what the host itself sends were rewritten, as filter.
    PickedByHost,
    /// What passes from one link to another, as filter.
    Forward,
    /// Rewriting sources.
    Postrouting,
}

impl Hook {
    /// Type of chain, number of the hook, priority (linux/netfilter_ipv4.h).
    pub(crate) fn place(self) -> (&'static str, u32, i32) {
        match self {
            Self::Raw => ("filter", 0, -300),
            Self::In => ("filter", 0, 0),
            Self::Out => ("filter", 3, 0),
            Self::Prerouting => ("nat", 0, -100),
            Self::Output => ("nat", 3, -100),
            Self::Picked => ("filter", 0, -90),
            Self::PickedByHost => ("filter", 3, -90),
            Self::Forward => ("filter", 2, 0),
            Self::Postrouting => ("nat", 4, 100),
        }
    }
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub name: String,
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

/// The table for these settings, leases (each with the settings of its network) and Services.
pub(crate) fn ruleset<'a>(
    config: &Config,
    leases: impl Iterator<Item = (&'a Config, &'a Lease)>,
    services: &[Service],
) -> Ruleset {
    let mut elements: Vec<Element> = leases.flat_map(|(of, lease)| elements(of, lease)).collect();
    elements.extend(pick::elements(services.iter()));
    elements.sort_unstable();
    let mut chains = chains(config);
    chains.splice(..0, pick::Chains::of(services.iter()).all());
    Ruleset { table: config.table.clone(), elements, chains }
}

/// The host ports of one pod.
pub(crate) fn elements(config: &Config, lease: &Lease) -> Vec<Element> {
    let mut elements = Vec::new();
    for port in &lease.host_ports {
        let host_ip = port.bound_ip();
        for pod_ip in lease.ips(config) {
            if host_ip.is_some_and(|ip| ip.is_ipv4() != pod_ip.is_ipv4()) {
                continue;
            }
            let map = MapId { family: Family::of(pod_ip), by_address: host_ip.is_some() };
            let address = host_ip.map(Field::Address);
            let port_key = [Field::Protocol(port.protocol), Field::Port(port.host_port)];
            elements.push(Element {
                set: SetId::HostPorts(map),
                key: address.into_iter().chain(port_key).collect(),
                data: Data::Fields(vec![Field::Address(pod_ip), Field::Port(port.container_port)]),
            });
        }
    }
    elements
}

const TO_PODS: &str = "hostports";
const TO_SERVICES: &str = "services";
const UNSERVED: &str = "unserved";

fn chains(config: &Config) -> Vec<Chain> {
    use Statement::{DestinationIsLocal, Jump, RedirectBy};
    let families = || MapId::ALL.into_iter().filter(|map| map.family == Family::V4 || has_ipv6(config));
    let redirect = || vec![vec![DestinationIsLocal, Jump(TO_PODS)], vec![Jump(TO_SERVICES)]];
    let chain = |name: &str, hook, rules| Chain { name: name.into(), hook, rules };
    let mut all = vec![
        chain(TO_PODS, None, families().map(|map| vec![RedirectBy(map)]).collect()),
        chain(TO_SERVICES, None, services(config)),
        chain(UNSERVED, None, refuse()),
        chain("raw", Some(Hook::Raw), guard(config)),
        chain("prerouting", Some(Hook::Prerouting), redirect()),
        chain("output", Some(Hook::Output), stays(config).into_iter().chain(redirect()).collect()),
        chain("postrouting", Some(Hook::Postrouting), postrouting(config)),
        chain("strays", Some(Hook::Forward), strays(config)),
        chain("in", Some(Hook::In), unserved(config)),
        chain("out", Some(Hook::Out), unserved(config)),
    ];
    all.extend(apart::chains(config));
    all
}

/// Whether any of the networks has IPv6 addresses.
fn has_ipv6(config: &Config) -> bool {
    config.bridged().any(|net| net.ipv6.is_some())
}

/// What the host sends to its `::1` is for itself. There is no `route_localnet` for IPv6: led to a pod it would never arrive,
/// and who asks for `localhost` would wait for it before trying 127.0.0.1.
fn stays(config: &Config) -> Vec<Vec<Statement>> {
    let this = Ipv6Cidr::new(Ipv6Addr::LOCALHOST, 128).expect("128 is a prefix length");
    let rule = || vec![Statement::Destination(Net::V6(this)), Statement::Accept];
    has_ipv6(config).then(rule).into_iter().collect()
}

/// To the chains that pick endpoints.
fn services(config: &Config) -> Vec<Vec<Statement>> {
    let families = Family::ALL.into_iter().filter(|family| *family == Family::V4 || has_ipv6(config));
    let ways = |family| {
        [
            vec![Statement::Serve(family, Entry::Address)],
            vec![Statement::DestinationIsLocal, Statement::Serve(family, Entry::NodePort)],
        ]
    };
    families.flat_map(ways).collect()
}

/// What is still for an address of a Service after destinations were rewritten found no endpoint: the Service has none,
/// or no such port, or does not exist.
fn unserved(config: &Config) -> Vec<Vec<Statement>> {
    config.service_nets().map(|net| vec![Statement::Destination(net), Statement::Jump(UNSERVED)]).collect()
}

fn refuse() -> Vec<Vec<Statement>> {
    vec![vec![Statement::ProtocolIs(Protocol::Tcp), Statement::Reset], vec![Statement::Reject]]
}

fn loopback() -> Net {
    Net::V4(Ipv4Cidr::new([127, 0, 0, 0].into(), 8).expect("8 is a prefix length"))
}

/// `route_localnet` on the bridge would let a pod reach what listens on the host's 127.0.0.1 (CVE-2020-8558).
fn guard(config: &Config) -> Vec<Vec<Statement>> {
    let of = |net: &Config| {
        vec![Statement::InputIs(net.bridge.clone()), Statement::Destination(loopback()), Statement::Drop]
    };
    config.bridged().map(of).collect()
}

fn postrouting(config: &Config) -> Vec<Vec<Statement>> {
    config.bridged().flat_map(postrouting_of).collect()
}

/// The kernel rewrites only what belongs to a connection. The rest would leave with a pod's address.
fn strays(config: &Config) -> Vec<Vec<Statement>> {
    use Statement::{DestinationNot, Drop, InputIs, IsStray, OutputIsNot, Source};
    let hidden = config.bridged().filter(|net| net.masquerade && !net.internal);
    let of_network = |config: &Config| -> Vec<Vec<Statement>> {
        let bridge = || config.bridge.clone();
        let networks = [Some(Net::V4(config.ipv4)), config.ipv6.map(Net::V6)].into_iter().flatten();
        let rule = |net| {
            vec![IsStray, InputIs(bridge()), Source(net), DestinationNot(net), OutputIsNot(bridge()), Drop]
        };
        networks.map(rule).collect()
    };
    hidden.flat_map(of_network).collect()
}

fn postrouting_of(config: &Config) -> Vec<Vec<Statement>> {
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
    if config.masquerade && !config.internal {
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
            Self::InputIsNot(link) => write!(f, "iifname != \"{link}\""),
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
                let keyword = map.family.keyword();
                let address = if map.by_address { format!("{keyword} daddr . ") } else { String::new() };
                let name = SetId::HostPorts(*map).name();
                write!(f, "dnat {keyword} to {address}meta l4proto . th dport map @{name}")
            }
            Self::ProtocolIs(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::PortIs(port) => write!(f, "th dport {port}"),
            Self::Serve(family, entry) => {
                write!(f, "{} vmap @{}", target(*family, *entry), SetId::Services(*family, *entry).name())
            }
            Self::Pick(family, entry, count) => {
                let (to, map) = (target(*family, *entry), SetId::Endpoints(*family, *entry).name());
                write!(f, "dnat {} to {to} . numgen random mod {count} map @{map}", family.keyword())
            }
            Self::Again(family) => {
                let (word, map) = (family.keyword(), SetId::Clients(*family).name());
                write!(f, "dnat {word} to {word} saddr . {} map @{map}", target(*family, Entry::Address))
            }
            Self::IsNew => f.write_str("ct state new"),
            Self::IsStray => f.write_str("ct state invalid"),
            Self::Member(family, entry) => {
                let word = family.keyword();
                let address = if *entry == Entry::Address {
                    format!("ct original {word} daddr . ")
                } else {
                    String::new()
                };
                let map = SetId::Members(*family, *entry).name();
                write!(
                    f,
                    "{address}meta l4proto . ct original proto-dst . {word} daddr . th dport vmap @{map}"
                )
            }
            Self::Remember(family, time) => {
                let (word, map) = (family.keyword(), SetId::Clients(*family).name());
                let key =
                    format!("{word} saddr . ct original {word} daddr . meta l4proto . ct original proto-dst");
                write!(f, "update @{map} {{ {key} timeout {}s : {word} daddr . th dport }}", time.as_secs())
            }
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::Reject => f.write_str("reject"),
        }
    }
}

/// What a packet asks for: address (if part of the key), protocol and port.
fn target(family: Family, entry: Entry) -> String {
    let address =
        if entry == Entry::Address { format!("{} daddr . ", family.keyword()) } else { String::new() };
    format!("{address}meta l4proto . th dport")
}

/// In the words of `nft`, for people and tests.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.table)?;
        for set in SetId::all() {
            writeln!(f, "\tmap {} {{", set.name())?;
            for element in self.elements.iter().filter(|element| element.set == set) {
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
    use crate::service::ServicePort;

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
        insta::assert_snapshot!(ruleset(&config, std::iter::empty(), &[]));
    }

    #[test]
    fn without_masquerade() {
        let mut config = Config::new("/x");
        config.masquerade = false;
        insta::assert_snapshot!(ruleset(&config, std::iter::empty(), &[]));
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
        insta::assert_snapshot!(ruleset(&config, leases.iter().map(|lease| (&config, lease)), &[]));
    }

    #[test]
    fn services_of_both_families() {
        let mut config = Config::new("/x");
        config.ipv6 = Some("fd00:85::/64".parse().unwrap());
        config.service_ipv4 = Some("10.96.0.0/16".parse().unwrap());
        config.service_ipv6 = Some("fd00:96::/112".parse().unwrap());
        let port = |protocol, port, node_port, endpoints: &[&str]| ServicePort {
            protocol,
            port,
            node_port,
            endpoints: endpoints.iter().map(|to| to.parse().unwrap()).collect(),
        };
        let service = |name: &str, ips: &[&str], ports, affinity| Service {
            namespace: "default".into(),
            name: name.into(),
            cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ports,
            affinity,
        };
        let web = ["10.85.0.3:8080", "10.85.0.2:8080", "[fd00:85::2]:8080"];
        let services = [
            service(
                "web",
                &["10.96.0.10", "fd00:96::10"],
                vec![port(Protocol::Tcp, 80, Some(30080), &web)],
                None,
            ),
            service(
                "sticky",
                &["10.96.0.11"],
                vec![port(Protocol::Udp, 53, None, &["10.85.0.2:5353", "10.85.0.3:5353"])],
                Some(Duration::from_secs(10_800)),
            ),
            service("idle", &["10.96.0.12"], vec![port(Protocol::Sctp, 7, Some(30007), &[])], None),
            service("zombie", &["10.96.0.10"], vec![port(Protocol::Tcp, 80, Some(30080), &web[1..])], None),
        ];
        insta::assert_snapshot!(ruleset(&config, std::iter::empty(), &services));
    }

    #[test]
    fn networks_beside_each_other() {
        let mut config = Config::new("/x");
        let net = |text: &str| text.parse().unwrap();
        let mut front = config.another("front", "br-front", net("10.90.0.0/24"));
        front.ipv6 = Some("fd00:90::/64".parse().unwrap());
        let mut back = config.another("back", "br-back", net("10.90.1.0/24"));
        back.internal = true;
        let mut open = config.another("open", "br-open", net("10.90.2.0/24"));
        open.isolated = false;
        open.masquerade = false;
        config.beside = vec![front, back, open];
        let on_front = lease([10, 90, 0, 2], &[(None, 8080, 80, Protocol::Tcp)]);
        let leases = [(&config.beside[0], &on_front)];
        insta::assert_snapshot!(ruleset(&config, leases.into_iter(), &[]));
    }

    /// Without others beside it, a network that keeps its pods to themselves still does.
    #[test]
    fn one_internal_network() {
        let mut config = Config::new("/x");
        config.internal = true;
        insta::assert_snapshot!(ruleset(&config, std::iter::empty(), &[]));
    }

    #[test]
    fn order_of_leases_does_not_matter() {
        let config = Config::new("/x");
        let a = lease([10, 85, 0, 2], &[(None, 1, 1, Protocol::Tcp)]);
        let b = lease([10, 85, 0, 3], &[(None, 2, 2, Protocol::Tcp)]);
        let of =
            |leases: [&Lease; 2]| ruleset(&config, leases.map(|lease| (&config, lease)).into_iter(), &[]);
        assert_eq!(of([&a, &b]), of([&b, &a]));
    }
}
