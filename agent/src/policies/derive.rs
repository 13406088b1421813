//! From NetworkPolicies, namespaces and pods to what the network is told: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_netplug::Protocol;
use berth_netplug::policy::{Block, Guard, Peers, Policies, Ports, Rule};
use berth_reconciler::claims::selector_matches;
use berth_reconciler::manifest::NAMESPACE_NAME;
use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

type Labels = BTreeMap<String, String>;

/// A pod with a network of its own.
#[derive(Clone, Debug)]
pub(super) struct Member<'a> {
    pub pod: &'a v1::Pod,
    pub ips: Vec<IpAddr>,
}

impl Member<'_> {
    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn labels(&self) -> &Labels {
        static NONE: Labels = Labels::new();
        self.pod.metadata.labels.as_ref().unwrap_or(&NONE)
    }

    /// Its port of that name and protocol; sidecars have ports, too.
    fn port(&self, name: &str, protocol: &str) -> Option<u16> {
        let spec = self.pod.spec.as_ref()?;
        let init = spec.init_containers.iter().flatten();
        let sidecars = init.filter(|init| init.restart_policy.as_deref() == Some("Always"));
        let mut ports = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
        let named = ports.find(|port| {
            port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
        })?;
        u16::try_from(named.container_port).ok()
    }
}

/// What follows for the pods. `namespaces` are the labels of those that have objects; any other has that of its name.
pub(super) fn derive<'a>(
    policies: impl Iterator<Item = &'a NetworkPolicy>,
    namespaces: &BTreeMap<String, Labels>,
    members: &[Member<'a>],
) -> Policies {
    let mut all = Policies::default();
    for ip in members.iter().flat_map(|member| &member.ips) {
        all.pods.insert(*ip, Guard::default());
    }
    for policy in policies {
        Derivation { policy, namespaces, members }.add_to(&mut all);
    }
    all
}

struct Derivation<'s, 'a> {
    policy: &'s NetworkPolicy,
    namespaces: &'s BTreeMap<String, Labels>,
    members: &'s [Member<'a>],
}

/// Which way a rule looks.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Ingress,
    Egress,
}

/// A rule of either way.
type Said<'a> = (&'a [NetworkPolicyPeer], &'a [NetworkPolicyPort]);

impl Derivation<'_, '_> {
    fn add_to(&self, all: &mut Policies) {
        let Some(spec) = &self.policy.spec else { return };
        let ingress = spec.ingress.iter().flatten();
        let ingress = ingress.map(|rule| {
            (rule.from.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default())
        });
        let egress = spec.egress.iter().flatten();
        let egress = egress
            .map(|rule| (rule.to.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default()));
        self.add_way(Way::Ingress, spec, ingress, all);
        self.add_way(Way::Egress, spec, egress, all);
    }

    fn add_way<'r>(
        &self,
        way: Way,
        spec: &NetworkPolicySpec,
        rules: impl Iterator<Item = Said<'r>>,
        all: &mut Policies,
    ) {
        let word = if way == Way::Ingress { "Ingress" } else { "Egress" };
        if !spec.policy_types.iter().flatten().any(|kind| kind == word) {
            return;
        }
        let selector = spec.pod_selector.clone().unwrap_or_default();
        let selected = |member: &&Member<'_>| {
            member.namespace() == self.namespace() && selector_matches(&selector, member.labels())
        };
        let selected: Vec<&Member<'_>> = self.members.iter().filter(selected).collect();
        if selected.is_empty() {
            return;
        }
        // A port's name is one of whoever is asked.
        let everybody: Vec<&Member<'_>> = self.members.iter().collect();
        let asked = if way == Way::Ingress { &selected } else { &everybody };
        let mut names = BTreeSet::new();
        for (number, said) in rules.enumerate() {
            let name = self.rule_name(way, number);
            all.rules.insert(name.clone(), self.rule(said, asked));
            names.insert(name);
        }
        for ip in selected.iter().flat_map(|member| &member.ips) {
            let Some(guard) = all.pods.get_mut(ip) else { continue };
            let allowed = if way == Way::Ingress { &mut guard.ingress } else { &mut guard.egress };
            allowed.get_or_insert_default().extend(names.iter().cloned());
        }
    }

    fn namespace(&self) -> &str {
        self.policy.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// `in/shop/db/0`; the kernel's names are not as long as those of policies can be.
    fn rule_name(&self, way: Way, number: usize) -> String {
        const LONGEST: usize = 100;
        let way = if way == Way::Ingress { "in" } else { "out" };
        let policy = self.policy.metadata.name.as_deref().unwrap_or_default();
        let name = format!("{way}/{}/{policy}/{number}", self.namespace());
        if name.len() <= LONGEST {
            return name;
        }
        // FNV-1a, which stays the same in every version of this program.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{}-{hash:016x}", &name[..LONGEST - 17])
    }

    fn rule(&self, (peers, ports): Said<'_>, asked: &[&Member<'_>]) -> Rule {
        Rule {
            peers: (!peers.is_empty()).then(|| self.peers(peers)),
            ports: (!ports.is_empty()).then(|| ports_of(ports, asked)),
        }
    }

    fn peers(&self, peers: &[NetworkPolicyPeer]) -> Peers {
        let mut all = Peers::default();
        for peer in peers {
            if let Some(block) = &peer.ip_block {
                all.blocks.extend(range(block));
                continue;
            }
            let chosen = self.members.iter().filter(|member| self.is_peer(peer, member));
            all.pods.get_or_insert_default().extend(chosen.flat_map(|member| &member.ips));
        }
        all
    }

    fn is_peer(&self, peer: &NetworkPolicyPeer, member: &Member<'_>) -> bool {
        let in_namespace = match &peer.namespace_selector {
            None => member.namespace() == self.namespace(),
            Some(selector) => self.selects_namespace(selector, member.namespace()),
        };
        in_namespace
            && peer.pod_selector.as_ref().is_none_or(|selector| selector_matches(selector, member.labels()))
    }

    fn selects_namespace(&self, selector: &LabelSelector, name: &str) -> bool {
        let implied = || Labels::from([(NAMESPACE_NAME.to_owned(), name.to_owned())]);
        match self.namespaces.get(name) {
            Some(labels) => selector_matches(selector, labels),
            None => selector_matches(selector, &implied()),
        }
    }
}

/// An ipBlock; what it holds has been checked.
fn range(block: &IPBlock) -> Option<Block> {
    let except = block.except.iter().flatten().filter_map(|part| part.parse().ok()).collect();
    Some(Block { net: block.cidr.parse().ok()?, except })
}

fn ports_of(ports: &[NetworkPolicyPort], asked: &[&Member<'_>]) -> Ports {
    let mut all = Ports::default();
    for port in ports {
        let word = port.protocol.as_deref().unwrap_or("TCP");
        let protocol = match word {
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let number = |number: i32| u16::try_from(number).unwrap_or(u16::MAX);
        match &port.port {
            None => drop(all.ranges.insert((protocol, 0, u16::MAX))),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                all.ranges.insert((protocol, number(*first), number(last)));
            }
            Some(IntOrString::String(name)) => {
                let named = all.named.get_or_insert_default();
                for (member, number) in asked.iter().filter_map(|one| Some((one, one.port(name, word)?))) {
                    named.extend(member.ips.iter().map(|ip| (*ip, protocol, number)));
                }
            }
        }
    }
    all
}
