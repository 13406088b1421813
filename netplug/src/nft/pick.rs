//! Services in the table: which elements and chains they need.
//!
//! kube-proxy makes a chain for each port of a Service and one for each endpoint. Here a Service is nothing but
//! elements of maps. The chains are shared by all Services that have the same number of endpoints and the same
//! affinity, so that most changes touch no chain:
//!
//! * `service4` leads from a Service's address, protocol and port to the chain that picks one of so many endpoints,
//!   and `nodeport4` leads there from a node port.
//! * That chain draws a number and looks the endpoint up in `service-endpoint4` or `nodeport-endpoint4`, whose key is
//!   the same with the number.
//! * With affinity, it first looks in `client4` for the endpoint that the client had. What puts it there sees the
//!   packet after its destination was rewritten, and `service-member4` or `nodeport-member4` tell it for how long.
//!
//! (One could do with fewer maps if one looked up in a map what another map gave. The kernel does, but `nft` of 2023
//! aborts when it lists such a rule.)
//!
//! A Service without endpoints has no element; what its packets meet is the rule that refuses the rest.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ruleset::{Chain, Hook, Statement};
use super::set::{Data, Element, Entry, Family, Field, SetId};
use crate::service::Service;

/// What picks an endpoint: one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Picker {
    family: Family,
    endpoints: u32,
    affinity: bool,
}

impl Picker {
    fn of(service: &Service, family: Family, endpoints: usize) -> Self {
        let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX);
        Self { family, endpoints, affinity: service.affinity.is_some() }
    }

    fn name(&self) -> String {
        let again = if self.affinity { "-or-again" } else { "" };
        format!("pick{}-of-{}{again}", digit(self.family), self.endpoints)
    }

    fn chain(&self) -> Chain {
        let again = self.affinity.then(|| vec![Statement::Again(self.family)]);
        let pick = |endpoints| Entry::ALL.map(|entry| vec![Statement::Pick(self.family, entry, endpoints)]);
        // A packet that is on its way while the endpoints become fewer may have come by the old chain and find that what it
        // draws has gone. The first one is there for as long as there is any.
        let first = (self.endpoints > 1).then(|| pick(1)).into_iter().flatten();
        Chain {
            name: self.name(),
            hook: None,
            rules: again.into_iter().chain(pick(self.endpoints)).chain(first).collect(),
        }
    }
}

fn digit(family: Family) -> u8 {
    if family == Family::V4 { 4 } else { 6 }
}

/// What remembers a client's endpoint for so long.
fn memory_name((family, time): (Family, Duration)) -> String {
    format!("remember{}-for-{}s", digit(family), time.as_secs())
}

/// The chains of affinity: none if no Service has it, so that packets do not pass them in vain.
fn memory(times: &BTreeSet<(Family, Duration)>) -> Vec<Chain> {
    let remember = |(family, time): (Family, Duration)| Chain {
        name: memory_name((family, time)),
        hook: None,
        rules: vec![vec![Statement::Remember(family, time)]],
    };
    let families: BTreeSet<Family> = times.iter().map(|(family, _)| *family).collect();
    if families.is_empty() {
        return Vec::new();
    }
    let ask = |family| {
        Entry::ALL
            .map(|entry| vec![Statement::IsNew, Statement::Redirected, Statement::Member(family, entry)])
    };
    let rules: Vec<_> = families.into_iter().flat_map(ask).collect();
    let watch = [("picked", Hook::Picked), ("picked-by-host", Hook::PickedByHost)];
    let watching =
        watch.map(|(name, hook)| Chain { name: name.into(), hook: Some(hook), rules: rules.clone() });
    times.iter().copied().map(remember).chain(watching).collect()
}

/// The elements of these Services, sorted. If two claim the same address or node port, the first one in order of names
/// has it.
pub(crate) fn elements<'a>(services: impl Iterator<Item = &'a Service>) -> Vec<Element> {
    let mut order: Vec<&Service> = services.collect();
    order.sort_by_key(|service| (&service.namespace, &service.name));
    let mut claimed = BTreeSet::new();
    let mut elements = Vec::new();
    for service in order {
        for way in ways_in(service) {
            // Claimed also without endpoints: who comes later does not get an address for as long as this one idles.
            if !claimed.insert((way.entry, way.key.clone(), way.family)) || way.endpoints.is_empty() {
                continue;
            }
            let picker = Picker::of(service, way.family, way.endpoints.len());
            elements.push(Element {
                set: SetId::Services(way.family, way.entry),
                key: way.key.clone(),
                data: Data::Goto(picker.name()),
            });
            way.lead_to_endpoints(&mut elements);
            if let Some(time) = service.affinity {
                way.name_members(&memory_name((way.family, time)), &mut elements);
            }
        }
    }
    elements.sort_unstable();
    elements
}

/// Which chains there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chains {
    pickers: BTreeSet<Picker>,
    /// Of affinity.
    times: BTreeSet<(Family, Duration)>,
}

impl Chains {
    /// Those that these Services lead to, or would if nobody else claimed their addresses.
    pub(crate) fn of<'a>(services: impl Iterator<Item = &'a Service>) -> Self {
        let mut chains = Self::default();
        // All Services are asked at each change, so this takes no detour by the elements.
        let mut endpoints: Vec<&SocketAddr> = Vec::new();
        for service in services {
            for address in &service.cluster_ips {
                for port in &service.ports {
                    endpoints.clear();
                    endpoints.extend(port.endpoints.iter().filter(|to| to.is_ipv4() == address.is_ipv4()));
                    endpoints.sort_unstable();
                    endpoints.dedup();
                    if endpoints.is_empty() {
                        continue;
                    }
                    let family = Family::of(*address);
                    chains.pickers.insert(Picker::of(service, family, endpoints.len()));
                    chains.times.extend(service.affinity.map(|time| (family, time)));
                }
            }
        }
        chains
    }

    /// Those that `changed` need besides, which are some of `all`. What was needed before stays, unless there are more than
    /// `most`; but packets pass the chains of affinity only while some Service has it, which may be others with `affinity`.
    pub(crate) fn serve(&mut self, changed: &[&Service], all: &[Service], affinity: bool, most: usize) {
        self.pickers.extend(Self::of(changed.iter().copied()).pickers);
        if self.pickers.len() > most || affinity {
            let needed = Self::of(all.iter());
            self.times = needed.times;
            if self.pickers.len() > most {
                self.pickers = needed.pickers;
            }
        }
    }

    /// The chains, sorted by name.
    pub(crate) fn all(&self) -> Vec<Chain> {
        let mut chains: Vec<Chain> =
            self.pickers.iter().map(Picker::chain).chain(memory(&self.times)).collect();
        chains.sort_by(|a, b| a.name.cmp(&b.name));
        chains
    }
}

/// One port of a Service at one of its addresses, or at the node.
struct WayIn {
    family: Family,
    entry: Entry,
    key: Vec<Field>,
    endpoints: BTreeSet<(IpAddr, u16)>,
}

impl WayIn {
    fn lead_to_endpoints(&self, elements: &mut Vec<Element>) {
        elements.extend(self.endpoints.iter().zip(0..).map(|((ip, port), number)| Element {
            set: SetId::Endpoints(self.family, self.entry),
            key: self.key.iter().copied().chain([Field::Number(number)]).collect(),
            data: Data::Fields(vec![Field::Address(*ip), Field::Port(*port)]),
        }));
    }

    fn name_members(&self, memory: &str, elements: &mut Vec<Element>) {
        elements.extend(self.endpoints.iter().map(|(ip, port)| Element {
            set: SetId::Members(self.family, self.entry),
            key: self.key.iter().copied().chain([Field::Address(*ip), Field::Port(*port)]).collect(),
            data: Data::Goto(memory.to_owned()),
        }));
    }
}

/// The ways into a Service.
fn ways_in(service: &Service) -> impl Iterator<Item = WayIn> {
    service.cluster_ips.iter().flat_map(|address| {
        service.ports.iter().flat_map(|port| {
            let endpoints = port.endpoints.iter().filter(|to| to.is_ipv4() == address.is_ipv4());
            let endpoints: BTreeSet<_> = endpoints.map(|to| (to.ip(), to.port())).collect();
            let protocol = Field::Protocol(port.protocol);
            let by_address =
                (Entry::Address, vec![Field::Address(*address), protocol, Field::Port(port.port)]);
            let by_node = port.node_port.map(|port| (Entry::NodePort, vec![protocol, Field::Port(port)]));
            let family = Family::of(*address);
            let way = move |(entry, key)| WayIn { family, entry, key, endpoints: endpoints.clone() };
            [Some(by_address), by_node].into_iter().flatten().map(way)
        })
    })
}
