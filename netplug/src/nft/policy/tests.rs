#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::chains::{End, Statement};
use super::*;
use crate::config::Config;
use crate::ipam::Lease;
use crate::policy::{Block, Flow, Guard, Peers, Policies, Ports, Rule};

fn config() -> Config {
    let mut config = Config::new("/x");
    config.ipv6 = Some("fd00:85::/64".parse().unwrap());
    config
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn names(names: &[&str]) -> Option<BTreeSet<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

fn lease(ipv4: [u8; 4]) -> Lease {
    Lease {
        id: "u".into(),
        name: "n".into(),
        namespace: "s".into(),
        ipv4: ipv4.into(),
        host_if: format!("vethn-{}", ipv4[3]),
        host_ports: Vec::new(),
        wishes: Default::default(),
        sequence: 1,
    }
}

fn example() -> Policies {
    let web = Rule {
        peers: Some(Peers {
            pods: Some([ip("10.85.0.3"), ip("fd00:85::3")].into()),
            blocks: vec![Block {
                net: "192.0.2.0/24".parse().unwrap(),
                except: vec!["192.0.2.7/32".parse().unwrap()],
            }],
        }),
        ports: Some(Ports {
            ranges: [(Protocol::Tcp, 80, 80), (Protocol::Udp, 4000, 4100), (Protocol::Sctp, 0, u16::MAX)]
                .into(),
            named: Some([(ip("10.85.0.2"), Protocol::Tcp, 8080)].into()),
        }),
    };
    let out = Rule { peers: Some(Peers { pods: Some(BTreeSet::new()), blocks: Vec::new() }), ports: None };
    let guarded = Guard { ingress: names(&["in/web", "in/all"]), egress: names(&["out/none"]) };
    Policies {
        pods: [
            (ip("10.85.0.2"), guarded.clone()),
            (ip("fd00:85::2"), guarded),
            (ip("10.85.0.3"), Guard::default()),
            (ip("fd00:85::3"), Guard { ingress: names(&[]), egress: None }),
        ]
        .into(),
        rules: [
            ("in/web".to_owned(), web),
            (
                "in/all".to_owned(),
                Rule {
                    peers: None,
                    ports: Some(Ports { ranges: [(Protocol::Tcp, 22, 22)].into(), named: None }),
                },
            ),
            ("out/none".to_owned(), out),
            ("in/unused".to_owned(), Rule::default()),
        ]
        .into(),
    }
}

#[test]
fn the_gate_knows_every_pod() {
    let leases = [lease([10, 85, 0, 2]), lease([10, 85, 0, 3])];
    let config = config();
    insta::assert_snapshot!(gate(&config, leases.iter().map(|lease| (&config, lease))));
}

#[test]
fn rules_of_both_families() {
    insta::assert_snapshot!(rules(&config(), &example()));
}

#[test]
fn without_policies_every_known_pod_is_open() {
    let pods = [(ip("10.85.0.2"), Guard::default())].into();
    insta::assert_snapshot!(rules(&config(), &Policies { pods, rules: BTreeMap::new() }));
}

#[test]
fn networks_beside_each_other() {
    let mut config = config();
    let mut front = config.another("front", "br-front", "10.90.0.0/24".parse().unwrap());
    front.port_isolation = true;
    config.beside = vec![front];
    let on_front = lease([10, 90, 0, 2]);
    let leases = [(&config.beside[0], &on_front)];
    let tables = [gate(&config, leases.into_iter()), rules(&config, &Policies::default())];
    insta::assert_snapshot!(tables.map(|table| table.to_string()).concat());
}

/// What happens to the first packet of a flow between pods, or between a pod and somebody outside, by the text of the
/// table: a second reading of it beside the kernel's.
struct Packet<'a> {
    contents: &'a Contents,
    flow: Flow,
}

/// What became of the packet in a chain.
#[derive(PartialEq)]
enum Fate {
    Accept,
    Drop,
    /// The chain ended.
    Return,
}

impl Packet<'_> {
    fn passes(&self) -> bool {
        ["egress", "ingress"].into_iter().all(|name| self.chain(name) != Fate::Drop)
    }

    fn chain(&self, name: &str) -> Fate {
        for rule in &self.contents.chains[name].rules {
            let fate = self.rule(rule);
            if let Some(fate) = fate {
                return fate;
            }
        }
        Fate::Return
    }

    /// None if the chain goes on.
    fn rule(&self, rule: &[Statement]) -> Option<Fate> {
        for statement in rule {
            match statement {
                Statement::Accept => return Some(Fate::Accept),
                Statement::Drop => return Some(Fate::Drop),
                Statement::Goto(chain) => return Some(self.chain(chain)),
                Statement::Jump(chain) => match self.chain(chain) {
                    Fate::Return => return None,
                    fate => return Some(fate),
                },
                Statement::Judge(family, end, map) => {
                    let found = self.element(map, *family, *end);
                    return match found?.verdict.as_ref()? {
                        Verdict::Accept => Some(Fate::Accept),
                        Verdict::Goto(chain) => Some(self.chain(chain)),
                    };
                }
                other if self.matches(other) => {}
                _ => return None,
            }
        }
        None
    }

    fn element(&self, set: &str, family: Family, end: End) -> Option<&Element> {
        let ip = if end == End::Source { self.flow.from } else { self.flow.to };
        let form = self.contents.sets[set].form;
        self.contents.elements.iter().filter(|element| element.set == set).find(|element| {
            let [Datum::Address(first)] = element.key[..] else { return false };
            let last = if form == Form::Ranges { element.last.unwrap() } else { first };
            Family::of(ip) == family && first <= ip && ip <= last
        })
    }

    fn holds(&self, set: &str, key: &[Datum]) -> bool {
        self.contents.elements.iter().any(|element| element.set == set && element.key == key)
    }

    fn matches(&self, statement: &Statement) -> bool {
        let pods = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => config().ipv4.contains(ip),
            IpAddr::V6(ip) => config().ipv6.unwrap().contains(ip),
        };
        let port = self.flow.port.map(|(protocol, port)| vec![Datum::Protocol(protocol), Datum::Port(port)]);
        let to = Datum::Address(self.flow.to);
        match statement {
            Statement::InputIsNot(_) => !pods(self.flow.from),
            Statement::OutputIsNot(_) => !pods(self.flow.to),
            // It is the first of its flow, with SYN.
            Statement::Reply | Statement::Related | Statement::Torn => false,
            Statement::BothAre(_) => pods(self.flow.from) && pods(self.flow.to),
            Statement::NotRedirected => true,
            Statement::IsIp6 => !self.flow.to.is_ipv4(),
            // What has no ports here is none of these.
            Statement::Icmp6(..) => false,
            Statement::Within(family, end, set) => self.element(set, *family, *end).is_some(),
            Statement::PairWithin(_, set) => self.holds(set, &[Datum::Address(self.flow.from), to]),
            Statement::PortWithin(set) => port.is_some_and(|port| self.holds(set, &port)),
            Statement::TargetWithin(_, set) => {
                port.is_some_and(|port| self.holds(set, &[vec![to], port].concat()))
            }
            Statement::PortFrom(protocol, first, last) => {
                self.flow.port.is_some_and(|(of, port)| of == *protocol && (*first..=*last).contains(&port))
            }
            Statement::ProtocolIs(protocol) => self.flow.port.is_some_and(|(of, _)| of == *protocol),
            other => panic!("{other} is of the other table"),
        }
    }
}

/// Few addresses and ports, so that they meet. The last is no pod's.
const ADDRESSES: [&str; 6] = ["10.85.0.2", "10.85.0.3", "10.85.0.4", "fd00:85::2", "fd00:85::3", "192.0.2.9"];
const NETS: [&str; 5] = ["10.85.0.0/24", "10.85.0.2/31", "0.0.0.0/0", "192.0.2.0/24", "fd00:85::/64"];
const RULES: [&str; 3] = ["in/a", "in/b", "in/c"];
const OUT_RULES: [&str; 3] = ["out/a", "out/b", "out/c"];

fn address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&ADDRESSES[..]).prop_map(ip)
}

fn pod() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&ADDRESSES[..5]).prop_map(ip)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn net() -> impl Strategy<Value = crate::policy::Net> {
    prop::sample::select(&NETS[..]).prop_map(|net| net.parse().unwrap())
}

fn rule() -> impl Strategy<Value = Rule> {
    let block = (net(), prop::collection::vec(net(), 0..2)).prop_map(|(net, except)| Block { net, except });
    let pods = prop::option::of(prop::collection::btree_set(pod(), 0..3));
    let peers = (pods, prop::collection::vec(block, 0..2)).prop_map(|(pods, blocks)| Peers { pods, blocks });
    let ranges = prop::collection::btree_set(
        (protocol(), 1..4_u16, 0..3_u16).prop_map(|(protocol, first, more)| match more {
            2 => (protocol, 0, u16::MAX),
            more => (protocol, first, first + more),
        }),
        0..3,
    );
    let named = prop::option::of(prop::collection::btree_set((pod(), protocol(), 1..5_u16), 0..3));
    let ports = (ranges, named).prop_map(|(ranges, named)| Ports { ranges, named });
    (prop::option::of(peers), prop::option::of(ports)).prop_map(|(peers, ports)| Rule { peers, ports })
}

fn guard() -> impl Strategy<Value = Guard> {
    let some = |names: &'static [&'static str]| {
        let name = prop::sample::select(names).prop_map(str::to_owned);
        prop::option::of(prop::collection::btree_set(name, 0..3))
    };
    (some(&RULES), some(&OUT_RULES)).prop_map(|(ingress, egress)| Guard { ingress, egress })
}

fn policies() -> impl Strategy<Value = Policies> {
    let pods = prop::collection::vec(guard(), 5)
        .prop_map(|guards| ADDRESSES[..5].iter().map(|one| ip(one)).zip(guards).collect());
    let rules = prop::collection::vec(rule(), 6)
        .prop_map(|all| RULES.into_iter().chain(OUT_RULES).map(str::to_owned).zip(all).collect());
    (pods, rules).prop_map(|(pods, rules)| Policies { pods, rules })
}

fn flow() -> impl Strategy<Value = Flow> {
    let port = prop::option::of((protocol(), 1..6_u16));
    let both = (address(), address(), port).prop_map(|(from, to, port)| Flow { from, to, port });
    both.prop_filter("of one family, and a pod's", |flow| {
        flow.from.is_ipv4() == flow.to.is_ipv4() && (flow.from != ip("192.0.2.9") || flow.from != flow.to)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The table says of every flow what the policies say.
    #[test]
    fn the_table_allows_what_the_policies_allow(policies in policies(), flows in prop::collection::vec(flow(), 16)) {
        let contents = rules(&config(), &policies);
        for flow in flows {
            let packet = Packet { contents: &contents, flow };
            prop_assert_eq!(packet.passes(), policies.allow(&flow), "{:?}\n{}", flow, contents);
        }
    }

    /// Whatever a chain or a map refers to is there.
    #[test]
    fn nothing_is_missing(policies in policies()) {
        let contents = rules(&config(), &policies);
        for element in &contents.elements {
            prop_assert!(contents.sets.contains_key(&element.set));
            if let Some(Verdict::Goto(chain)) = &element.verdict {
                prop_assert!(contents.chains.contains_key(chain));
            }
        }
        for statement in contents.chains.values().flat_map(|chain| &chain.rules).flatten() {
            match statement {
                Statement::Goto(chain) | Statement::Jump(chain) => prop_assert!(contents.chains.contains_key(chain)),
                Statement::Judge(_, _, set) | Statement::Within(_, _, set) | Statement::PairWithin(_, set)
                | Statement::PortWithin(set) | Statement::TargetWithin(_, set) => {
                    prop_assert!(contents.sets.contains_key(set));
                }
                _ => {}
            }
        }
    }
}

/// A pod that nobody knows reaches nobody and is reached by nobody.
#[test]
fn who_is_unknown_is_shut_in() {
    let contents = rules(&config(), &example());
    let passes = |from: &str, to: &str| {
        Packet { contents: &contents, flow: Flow { from: ip(from), to: ip(to), port: None } }.passes()
    };
    assert!(!passes("10.85.0.99", "10.85.0.3"));
    assert!(!passes("10.85.0.3", "10.85.0.99"));
    assert!(!passes("192.0.2.9", "10.85.0.99"));
    assert!(passes("10.85.0.3", "192.0.2.9"));
}

/// The order of messages matters to the kernel; that they say what they should is for the tests with a kernel.
#[test]
fn a_pod_that_comes_is_a_small_change() {
    let before = rules(&config(), &example());
    let mut policies = example();
    let like = policies.pods[&ip("10.85.0.2")].clone();
    policies.pods.insert(ip("10.85.0.9"), like);
    let after = rules(&config(), &policies);
    assert_eq!(before.chains, after.chains);
    assert_eq!(before.sets, after.sets);
    let new: Vec<String> =
        after.elements.difference(&before.elements).map(|e| format!("{} {e}", e.set)).collect();
    assert_eq!(new.len(), 4, "{new:?}");
    assert!(change(&before, &before).is_none());
    assert!(change(&before, &after).unwrap().len() < 1000);
}
