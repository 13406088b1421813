//! Services of the network.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::{Inner, Network};
use crate::config::Protocol;
use crate::conntrack::{self, Way};
use crate::error::{Error, Result};
use crate::nft::clients;
use crate::nft::encode::Change;
use crate::nft::pick::{self, Chains};
use crate::nft::ruleset::Chain;
use crate::nft::set::{Element, SetId};
use crate::service::{self, Service};
use crate::sys::netns::on_thread;

/// Chains without a Service that are kept, since Services mostly go back and forth between few numbers of endpoints. With
/// more of them, those that are idle go.
const MOST_CHAINS: usize = 64;

/// The Services in the table.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub services: Vec<Service>,
    /// Whether no two claim the same.
    unique: bool,
    /// The chains that the table has for them, and perhaps for others before.
    chains: Chains,
}

impl Served {
    /// Those of an earlier agent, before the table is made.
    pub fn before(services: Vec<Service>) -> Self {
        Self { unique: claims_are_unique(&services), services, chains: Chains::default() }
    }

    /// The table was made for exactly these.
    pub fn made_anew(&mut self) {
        self.chains = Chains::of(self.services.iter());
    }
}

impl Network {
    /// Makes these the Services of the network, all others are gone. What differs is changed so that no packet
    /// meets a half-made Service; connections
    /// go on, but UDP flows leave endpoints that have gone. The Services are stored a moment later, so that they stay when
    /// the network is opened again.
    ///
    /// # Errors
    /// What the kernel refused; call it again then.
    pub async fn set_services(&self, services: Vec<Service>) -> Result<()> {
        self.inner.check_open()?;
        let inner = self.inner.clone();
        // The table is reached by a socket from any namespace, so this needs no thread of its own.
        let changed = tokio::task::spawn_blocking(move || inner.set_services(services)).await;
        let ways = changed.map_err(|e| Error::Thread(io::Error::other(e)))??;
        if let Some(ways) = ways {
            let inner = self.inner.clone();
            on_thread(move |thread| {
                inner.enter_host(thread)?;
                conntrack::forget(&ways.old, &ways.new)
            })
            .await?;
        }
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.keep_services());
        Ok(())
    }
}

impl Inner {
    pub(super) fn services(&self) -> MutexGuard<'_, Served> {
        self.site.services()
    }

    /// Gives the ways of packets that have become others, if tracked flows may still take them.
    fn set_services(&self, services: Vec<Service>) -> Result<Option<Ways>> {
        let mut table = self.table();
        let (step, before) = {
            let mut known = self.services();
            if known.services == services {
                return Ok(None);
            }
            let step = Step::between(&known, &services);
            let unique = std::mem::replace(&mut known.unique, step.unique);
            let before = std::mem::replace(&mut known.services, services);
            (step, (before, unique))
        };
        // In steps of their own before what leads to them: a packet that is on its way during a change goes by the rules that
        // were there when it came, and a chain that is new with the change has none for it.
        // A table that was deleted or changed by somebody refuses the change, and is made anew.
        let done = table.change(&step.chains_first).and_then(|()| table.change(&step.change));
        if done.is_ok() {
            self.services().chains = step.chains;
        } else if let Err(error) = self.rebuild(&mut table) {
            let mut known = self.services();
            (known.services, known.unique) = before;
            return Err(error);
        }
        if step.change.gone.iter().any(|element| matches!(element.set, SetId::Members(..))) {
            let all = pick::elements(self.services().services.iter());
            clients::forget(&mut table, &all)?;
        }
        Ok(step.ways.concern_flows_without_end().then_some(step.ways))
    }

    /// Stores the Services. Not more than one does so at a time, each what there is when its turn comes.
    fn keep_services(&self) {
        let _turn = self.site.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let services = self.services().services.clone();
        if let Err(error) = service::keep(&self.config.state_dir, &services) {
            tracing::error!(%error, "cannot store the Services; they would be refused for a moment when the agent starts");
        }
    }
}

/// What leads from some Services to others.
struct Step {
    chains_first: Change,
    change: Change,
    /// The chains that there are afterwards.
    chains: Chains,
    /// Whether no two of the new ones claim the same.
    unique: bool,
    ways: Ways,
}

/// Ways of packets that are no more, and that are new.
struct Ways {
    old: Vec<Way>,
    new: Vec<Way>,
}

impl Ways {
    fn concern_flows_without_end(&self) -> bool {
        self.old.iter().chain(&self.new).any(|way| way.protocol == Protocol::Udp)
    }
}

impl Step {
    fn between(known: &Served, new: &[Service]) -> Self {
        let (before, after, unique) = changed(known, new);
        let (old_elements, new_elements) =
            (pick::elements(before.iter().copied()), pick::elements(after.iter().copied()));
        let mut change = Change::default();
        let lacks = |elements: &[Element], one: &Element| elements.binary_search(one).is_err();
        change.gone = old_elements.iter().filter(|one| lacks(&new_elements, one)).cloned().collect();
        change.new = new_elements.iter().filter(|one| lacks(&old_elements, one)).cloned().collect();
        let mut chains = known.chains.clone();
        let affinity = before.iter().chain(&after).any(|service| service.affinity.is_some());
        chains.serve(&after, new, affinity, MOST_CHAINS);
        let mut chains_first = Change::default();
        if chains != known.chains {
            let (old, new) = (known.chains.all(), chains.all());
            let lacks = |chains: &[Chain], one: &Chain| {
                chains.binary_search_by(|other| other.name.cmp(&one.name)).is_err()
            };
            change.old_chains =
                old.iter().filter(|chain| lacks(&new, chain)).map(|chain| chain.name.clone()).collect();
            chains_first.new_chains = new.iter().filter(|chain| lacks(&old, chain)).cloned().collect();
        }
        let (before, after) = (ways(&before), ways(&after));
        let only = |these: &BTreeSet<Way>, those| these.difference(those).copied().collect();
        let ways = Ways { old: only(&before, &after), new: only(&after, &before) };
        Self { chains_first, change, chains, unique, ways }
    }
}

/// The Services that differ, as they were and as they are, and whether no two of the new ones claim the same. All of them
/// if some do, for then one that stays as it is may lose or get what it claims.
fn changed<'a>(known: &'a Served, new: &'a [Service]) -> (Vec<&'a Service>, Vec<&'a Service>, bool) {
    let old = &known.services;
    let name = |service: &'a Service| (service.namespace.as_str(), service.name.as_str());
    // Mostly an endpoint comes or goes, and nothing is claimed anew.
    let same = old.len() == new.len() && old.iter().zip(new).all(|(old, new)| name(old) == name(new));
    let (before, after): (Vec<_>, Vec<_>) = if same {
        old.iter().zip(new).filter(|(old, new)| old != new).unzip()
    } else {
        let by_name = |services: &'a [Service]| -> BTreeMap<(&'a str, &'a str), &'a Service> {
            services.iter().map(|one| (name(one), one)).collect()
        };
        let (known, wanted) = (by_name(old), by_name(new));
        let differing = |these: &BTreeMap<_, &'a Service>, those: &BTreeMap<_, &Service>| {
            these.iter().filter(|(name, one)| those.get(*name) != Some(one)).map(|(_, one)| *one).collect()
        };
        (differing(&known, &wanted), differing(&wanted, &known))
    };
    let as_before = same && before.iter().zip(&after).all(|(old, new)| claims(old).eq(claims(new)));
    let unique = if as_before { known.unique } else { claims_are_unique(new) };
    if known.unique && unique {
        return (before, after, true);
    }
    (old.iter().collect(), new.iter().collect(), unique)
}

/// The addresses and node ports of a Service, with protocol and port.
fn claims(service: &Service) -> impl Iterator<Item = (Option<IpAddr>, Protocol, u16)> {
    service.ports.iter().flat_map(|port| {
        let on_node = port.node_port.map(|number| (None, port.protocol, number));
        let by_address = service.cluster_ips.iter().map(|ip| (Some(*ip), port.protocol, port.port));
        on_node.into_iter().chain(by_address)
    })
}

fn claims_are_unique(services: &[Service]) -> bool {
    let mut seen = HashSet::new();
    services.iter().flat_map(claims).all(|claim| seen.insert(claim))
}

/// The ways that Services are.
fn ways(services: &[&Service]) -> BTreeSet<Way> {
    let mut ways = BTreeSet::new();
    for service in services {
        for port in &service.ports {
            for endpoint in &port.endpoints {
                let same = |ip: &&IpAddr| ip.is_ipv4() == endpoint.is_ipv4();
                let by_address = service.cluster_ips.iter().filter(same).map(|ip| (Some(*ip), port.port));
                let by_node = port.node_port.map(|port| (None, port));
                ways.extend(by_address.chain(by_node).map(|(address, at)| Way {
                    protocol: port.protocol,
                    address,
                    port: at,
                    pod: endpoint.ip(),
                }));
            }
        }
    }
    ways
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::service::ServicePort;

    fn service(name: &str, ip: u8, endpoints: u8) -> Service {
        Service {
            namespace: "default".into(),
            name: name.into(),
            cluster_ips: vec![[10, 86, 0, ip].into()],
            ports: vec![ServicePort {
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
                endpoints: (1..=endpoints).map(|n| ([10, 85, 0, n], 80).into()).collect(),
            }],
            affinity: None,
        }
    }

    fn serve(known: &mut Served, services: Vec<Service>) -> Step {
        let step = Step::between(known, &services);
        *known = Served { services, unique: step.unique, chains: step.chains.clone() };
        step
    }

    fn names(chains: &[Chain]) -> Vec<&str> {
        chains.iter().map(|chain| chain.name.as_str()).collect()
    }

    #[test]
    fn chains_stay_for_who_comes_back_to_them() {
        let mut known = Served::before(Vec::new());
        let step = serve(&mut known, vec![service("a", 1, 2), service("b", 2, 2)]);
        assert_eq!(names(&step.chains_first.new_chains), ["pick4-of-2"]);
        let step = serve(&mut known, vec![service("a", 1, 1), service("b", 2, 2)]);
        assert_eq!(names(&step.chains_first.new_chains), ["pick4-of-1"]);
        // The address leads to another chain, and the second endpoint is no more; b is not touched.
        assert_eq!((step.change.gone.len(), step.change.new.len()), (2, 1));
        let step = serve(&mut known, vec![service("a", 1, 2), service("b", 2, 2)]);
        assert!(step.chains_first.is_empty() && step.change.old_chains.is_empty());
        assert_eq!((step.change.gone.len(), step.change.new.len()), (1, 2));
        known.made_anew();
        let step = serve(&mut known, Vec::new());
        assert!(step.change.old_chains.is_empty(), "there is room for idle ones");
    }

    #[test]
    fn idle_chains_go_when_there_are_too_many() {
        let mut known = Served::before(Vec::new());
        let most = u8::try_from(MOST_CHAINS).unwrap();
        for endpoints in 1..=most {
            assert!(serve(&mut known, vec![service("a", 1, endpoints)]).change.old_chains.is_empty());
        }
        let step = serve(&mut known, vec![service("a", 1, most + 1)]);
        assert_eq!(step.change.old_chains.len(), MOST_CHAINS);
        assert_eq!(names(&known.chains.all()), [format!("pick4-of-{}", most + 1)]);
    }

    #[test]
    fn packets_pass_the_chains_of_affinity_only_while_a_service_has_it() {
        let with = |affinity| Service { affinity, ..service("a", 1, 1) };
        let mut known = Served::before(Vec::new());
        let step = serve(&mut known, vec![with(Some(Duration::from_secs(60))), service("b", 2, 1)]);
        assert!(names(&step.chains_first.new_chains).contains(&"picked"));
        let step = serve(&mut known, vec![with(Some(Duration::from_secs(60))), service("b", 2, 2)]);
        assert!(step.change.old_chains.is_empty());
        let step = serve(&mut known, vec![with(None), service("b", 2, 2)]);
        assert_eq!(step.change.old_chains, ["picked", "picked-by-host", "remember4-for-60s"]);
    }

    #[test]
    fn who_gives_up_what_two_claim_leaves_it_to_the_other() {
        let mut known = Served::before(Vec::new());
        serve(&mut known, vec![service("a", 1, 1), service("b", 1, 2)]);
        assert!(!known.unique);
        // Only the loser changes: nothing follows from it.
        let step = serve(&mut known, vec![service("a", 1, 1), service("b", 1, 3)]);
        assert!(step.change.gone.is_empty() && step.change.new.is_empty());
        let step = serve(&mut known, vec![service("a", 9, 1), service("b", 1, 3)]);
        // The first endpoint at the address that changes hands is the same as before.
        assert_eq!(step.change.new.len(), 2 + 3, "both have their own now");
        assert!(known.unique);
        let step = serve(&mut known, vec![service("b", 1, 3)]);
        assert_eq!((step.change.gone.len(), step.change.new.len()), (2, 0));
    }

    #[test]
    fn what_is_changed_does_not_depend_on_the_order() {
        let (a, b) = (service("a", 1, 1), service("b", 2, 1));
        let mut known = Served::before(Vec::new());
        serve(&mut known, vec![a.clone(), b.clone()]);
        let step = serve(&mut known, vec![b, a]);
        assert!(step.change.is_empty() && step.chains_first.is_empty());
    }
}
