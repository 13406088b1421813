//! From policies and leases to tables: pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::chains::{End, Payload, Sender, Statement};
use super::{Chain, Contents, Datum, Element, Form, Hook, Part, Set, Verdict, ranges, table_name};
use crate::config::Config;
use crate::ipam::{Lease, mac};
use crate::nft::set::Family;
use crate::policy::{Guard, Peers, Policies, Ports, Rule};

const PORTS: &str = "ports";
const KNOWN: &str = "known";
/// Followed by the name of the bridge.
const FROM_POD: &str = "from-";
const FROM_POD6: &str = "from6-";
const EGRESS: &str = "egress";
const INGRESS: &str = "ingress";
const TORN: &str = "torn";

/// Types of ICMPv6 messages that go on within a link, and mean nothing to who is beyond: of listeners to groups (RFC 2710,
/// 3810) and neighbours (RFC 4861).
const LINK_TALK: [(u8, u8); 3] = [(130, 133), (135, 136), (143, 143)];

fn digit(family: Family) -> char {
    if family == Family::V4 { '4' } else { '6' }
}

fn named(name: &str, family: Family) -> String {
    format!("{name}{}", digit(family))
}

fn chain(hook: Option<Hook>, rules: Vec<Vec<Statement>>) -> Chain {
    Chain { hook, rules }
}

/// The table that watches what pods send, of all networks; each lease comes with the settings of its own.
pub(crate) fn gate<'a>(config: &Config, leases: impl Iterator<Item = (&'a Config, &'a Lease)>) -> Contents {
    let known =
        |family| Set { form: Form::Plain, key: vec![Part::Link, Part::Hardware, Part::Address(family)] };
    let sets = [
        (PORTS.to_owned(), Set { form: Form::Verdicts, key: vec![Part::Link] }),
        (named(KNOWN, Family::V4), known(Family::V4)),
        (named(KNOWN, Family::V6), known(Family::V6)),
    ];
    let mut chains: BTreeMap<String, Chain> = config.bridged().flat_map(from_pods).collect();
    let first = vec![vec![Statement::JudgeLink(PORTS.into())]];
    chains.insert("prerouting".into(), chain(Some(Hook::FromPort), first));
    Contents {
        bridge: true,
        name: table_name(&config.table),
        sets: sets.into(),
        chains,
        elements: leases.flat_map(|(of, lease)| gate_elements(of, lease)).collect(),
    }
}

/// The chain for what pods of a network send, and that for IPv6.
fn from_pods(config: &Config) -> [(String, Chain); 2] {
    use Statement::{Accept, Carries, Drop, Goto, Icmp6, SenderWithin, ToBridge};
    const ADVERTISEMENT: u8 = 136;
    /// Advertisements of routers, and redirections.
    const ROUTER: (u8, u8) = (134, 137);
    let (known4, known6) = (named(KNOWN, Family::V4), named(KNOWN, Family::V6));
    let name = format!("{FROM_POD}{}", config.bridge);
    let name6 = format!("{FROM_POD6}{}", config.bridge);
    let to_bridge = || vec![ToBridge(mac(config.gateway())), Accept];
    let ip = |family, then| {
        let set = if family == Family::V4 { &known4 } else { &known6 };
        [vec![Carries(Payload::Ip(family)), SenderWithin(Sender::Ip(family), set.clone())], then].concat()
    };
    let arp = vec![
        Carries(Payload::Arp),
        SenderWithin(Sender::Arp, known4.clone()),
        SenderWithin(Sender::InArp, known4.clone()),
        Accept,
    ];
    let all = vec![arp, ip(Family::V4, to_bridge()), ip(Family::V6, vec![Goto(name6.clone())]), vec![Drop]];
    // Looking for neighbours and for listeners goes on between pods themselves; a router no pod is.
    let mut all6 = vec![
        vec![Icmp6(ADVERTISEMENT, ADVERTISEMENT), SenderWithin(Sender::Advertised, known6.clone()), Accept],
        vec![Icmp6(ADVERTISEMENT, ADVERTISEMENT), Drop],
    ];
    all6.extend(LINK_TALK.map(|(first, last)| vec![Icmp6(first, last), Accept]));
    all6.extend([vec![Icmp6(ROUTER.0, ROUTER.1), Drop], to_bridge()]);
    [(name, chain(None, all)), (name6, chain(None, all6))]
}

/// The link-local address that an interface makes from its hardware address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// What one pod is in that table: its port of the bridge, and who it may say to be. Before it has an address, an interface
/// looks for neighbours as nobody (`::`).
fn gate_elements(config: &Config, lease: &Lease) -> Vec<Element> {
    let hardware = lease.mac();
    let own = lease.ips(config).into_iter();
    let addresses = own.chain([IpAddr::V6(link_local(hardware)), Ipv6Addr::UNSPECIFIED.into()]);
    let link = || Datum::Link(lease.host_if.clone());
    let known = addresses.map(|ip| Element {
        set: named(KNOWN, Family::of(ip)),
        key: vec![link(), Datum::Hardware(hardware), Datum::Address(ip)],
        last: None,
        verdict: None,
    });
    let port = Element {
        set: PORTS.into(),
        key: vec![link()],
        last: None,
        verdict: Some(Verdict::Goto(format!("{FROM_POD}{}", config.bridge))),
    };
    [port].into_iter().chain(known).collect()
}

/// The table that says what is allowed.
pub(crate) fn rules(config: &Config, policies: &Policies) -> Contents {
    let mut contents = Contents {
        bridge: false,
        name: table_name(&config.table),
        sets: BTreeMap::new(),
        chains: frame(config),
        elements: BTreeSet::new(),
    };
    for family in Family::ALL {
        let address = || vec![Part::Address(family)];
        contents.set(named(EGRESS, family), Form::Verdicts, address());
        contents.set(named(INGRESS, family), Form::Verdicts, address());
        contents.set(named("isolated", family), Form::Plain, address());
        contents.set(named("itself", family), Form::Plain, [address(), address()].concat());
    }
    for (ip, guard) in &policies.pods {
        let family = Family::of(*ip);
        let address = || vec![Datum::Address(*ip)];
        contents.add(named("itself", family), [address(), address()].concat(), None);
        if guard.isolates() {
            contents.add(named("isolated", family), address(), None);
        }
        for (map, names) in [(EGRESS, &guard.egress), (INGRESS, &guard.ingress)] {
            let verdict = match names {
                None => Verdict::Accept,
                Some(names) => Verdict::Goto(contents.group(map, names)),
            };
            contents.add(named(map, family), address(), Some(verdict));
        }
    }
    let used = |names: fn(&Guard) -> &Option<BTreeSet<String>>| -> BTreeSet<&String> {
        policies.pods.values().flat_map(|guard| names(guard).iter().flatten()).collect()
    };
    // A rule that concerns no pod has no chain.
    for (names, end) in
        [(used(|guard| &guard.egress), End::Destination), (used(|guard| &guard.ingress), End::Source)]
    {
        for name in names {
            // One that is not there allows nothing.
            let nothing = Rule { peers: Some(Peers::default()), ports: None };
            contents.rule(name, policies.rules.get(name).unwrap_or(&nothing), end);
        }
    }
    contents
}

/// The chains that there always are.
fn frame(config: &Config) -> BTreeMap<String, Chain> {
    use Statement::{
        Accept, BothAre, Drop, Icmp6, InputIsNot, IsIp6, Judge, Jump, NotRedirected, OutputIsNot, PairWithin,
        Related, Reply, Reset, Torn, Within,
    };
    let way = |elsewhere: fn(String) -> Statement, end, map: &str| {
        let elsewhere = config.bridged().map(|net| elsewhere(net.bridge.clone())).chain([Accept]).collect();
        let mut rules = vec![elsewhere, vec![Reply, Accept], vec![Related, Accept]];
        // br_netfilter brings it here although it is not routed.
        rules.extend(LINK_TALK.map(|(first, last)| vec![IsIp6, Icmp6(first, last), Accept]));
        rules.extend(Family::ALL.map(|family| vec![PairWithin(family, named("itself", family)), Accept]));
        // What the bridge keeps apart is not to meet by way of the host.
        let apart = config.bridged().filter(|net| net.port_isolation);
        rules.extend(apart.map(|net| vec![BothAre(net.bridge.clone()), NotRedirected, Drop]));
        rules.extend(Family::ALL.map(|family| vec![Judge(family, end, named(map, family))]));
        // Nobody knows this address, or not yet.
        rules.push(vec![Drop]);
        rules
    };
    let mut egress = way(InputIsNot, End::Source, EGRESS);
    // The rest of a connection that was cut, and whose end may not be isolated at all, must not pass for a new one.
    egress.insert(0, vec![Torn, Jump(TORN.into())]);
    let ingress = way(OutputIsNot, End::Destination, INGRESS);
    let torn = Family::ALL.into_iter().flat_map(|family| {
        [End::Source, End::Destination].map(|end| vec![Within(family, end, named("isolated", family)), Reset])
    });
    [
        (EGRESS.to_owned(), chain(Some(Hook::Egress), egress)),
        (INGRESS.to_owned(), chain(Some(Hook::Ingress), ingress)),
        (TORN.to_owned(), chain(None, torn.collect())),
    ]
    .into()
}

impl Contents {
    fn set(&mut self, name: String, form: Form, key: Vec<Part>) {
        self.sets.insert(name, Set { form, key });
    }

    fn add(&mut self, set: String, key: Vec<Datum>, verdict: Option<Verdict>) {
        self.elements.insert(Element { set, key, last: None, verdict });
    }

    /// The chain that asks these rules one after the other; pods with the same rules have the same.
    fn group(&mut self, way: &str, names: &BTreeSet<String>) -> String {
        let group = format!("{way}-{:016x}", hash(names.iter().map(String::as_str)));
        let ask = || {
            let jumps = names.iter().map(|name| vec![Statement::Jump(name.clone())]);
            chain(None, jumps.chain([vec![Statement::Drop]]).collect())
        };
        self.chains.entry(group.clone()).or_insert_with(ask);
        group
    }

    /// A rule's chain, which returns if it does not allow, with its sets.
    fn rule(&mut self, name: &str, rule: &Rule, end: End) {
        use Statement::{Accept, Goto};
        let peers = rule.peers.as_ref().map(|peers| self.peers(name, peers, end));
        let rows = match (peers, &rule.ports) {
            (None, None) => vec![vec![Accept]],
            (Some(peers), None) => peers,
            (None, Some(ports)) => self.ports(name, ports, &Accept),
            (Some(peers), Some(ports)) => {
                let of_peers = format!("{name}-peers");
                self.chains.insert(of_peers.clone(), chain(None, peers));
                self.ports(name, ports, &Goto(of_peers))
            }
        };
        self.chains.insert(name.to_owned(), chain(None, rows));
    }

    fn peers(&mut self, name: &str, peers: &Peers, end: End) -> Vec<Vec<Statement>> {
        let mut rows = Vec::new();
        for family in Family::ALL {
            if let Some(pods) = &peers.pods {
                let set = named(&format!("{name}-pods"), family);
                self.set(set.clone(), Form::Plain, vec![Part::Address(family)]);
                for ip in pods.iter().filter(|ip| Family::of(**ip) == family) {
                    self.add(set.clone(), vec![Datum::Address(*ip)], None);
                }
                rows.push(vec![Statement::Within(family, end, set), Statement::Accept]);
            }
            let ranges = ranges::ranges(family, &peers.blocks);
            if ranges.is_empty() {
                continue;
            }
            // Named after what is in it: ranges are never changed, but replaced as a whole.
            let text: Vec<String> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
            let set = named(&format!("{name}-nets-{:016x}-", hash(text.iter().map(String::as_str))), family);
            self.set(set.clone(), Form::Ranges, vec![Part::Address(family)]);
            for (first, last) in ranges {
                let key = vec![Datum::Address(first)];
                self.elements.insert(Element { set: set.clone(), key, last: Some(last), verdict: None });
            }
            rows.push(vec![Statement::Within(family, end, set), Statement::Accept]);
        }
        rows
    }

    fn ports(&mut self, name: &str, ports: &Ports, then: &Statement) -> Vec<Vec<Statement>> {
        let mut rows = Vec::new();
        let (single, wide): (Vec<_>, Vec<_>) =
            ports.ranges.iter().partition(|(_, first, last)| first == last);
        if !single.is_empty() {
            let set = format!("{name}-ports");
            self.set(set.clone(), Form::Plain, vec![Part::Protocol, Part::Port]);
            for (protocol, port, _) in single {
                self.add(set.clone(), vec![Datum::Protocol(protocol), Datum::Port(port)], None);
            }
            rows.push(vec![Statement::PortWithin(set), then.clone()]);
        }
        for (protocol, first, last) in wide {
            let of = match (first, last) {
                (0 | 1, u16::MAX) => Statement::ProtocolIs(protocol),
                (first, last) => Statement::PortFrom(protocol, first, last),
            };
            rows.push(vec![of, then.clone()]);
        }
        let Some(targets) = &ports.named else { return rows };
        for family in Family::ALL {
            let set = named(&format!("{name}-named"), family);
            self.set(set.clone(), Form::Plain, vec![Part::Address(family), Part::Protocol, Part::Port]);
            for (ip, protocol, port) in targets.iter().filter(|(ip, ..)| Family::of(*ip) == family) {
                let key = vec![Datum::Address(*ip), Datum::Protocol(*protocol), Datum::Port(*port)];
                self.add(set.clone(), key, None);
            }
            rows.push(vec![Statement::TargetWithin(family, set), then.clone()]);
        }
        rows
    }
}

/// FNV-1a, which stays the same in every version of this program.
fn hash<'a>(words: impl Iterator<Item = &'a str>) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for byte in words.flat_map(|word| word.bytes().chain([0])) {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state
}
