//! Services of the network.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::{Inner, Network};
use crate::conntrack::{self, Way};
use crate::error::Result;
use crate::nft::clients;
use crate::nft::encode::Change;
use crate::nft::pick::{self, Chains};
use crate::nft::ruleset::Chain;
use crate::nft::set::{Element, SetId};
use crate::service::{self, Service};
use crate::sys::netns::{Traveller, on_thread};

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
        on_thread(move |thread| inner.set_services(thread, services)).await?;
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.keep_services());
        Ok(())
    }
}

impl Inner {
    pub(super) fn services(&self) -> MutexGuard<'_, Vec<Service>> {
        self.site.services()
    }

    fn set_services(&self, thread: &Traveller, services: Vec<Service>) -> Result<()> {
        let mut table = self.table();
        let old = {
            let mut known = self.services();
            if *known == services {
                return Ok(());
            }
            std::mem::replace(&mut *known, services)
        };
        let mut step = Step::between(&old, &self.services());
        // In steps of their own before what leads to them: a packet that is on its way during a change goes by the rules that
        // were there when it came, and a chain that is new with the change has none for it.
        let chains = Change { new_chains: std::mem::take(&mut step.change.new_chains), ..Change::default() };
        // A table that was deleted or changed by somebody refuses the change, and is made anew.
        if table.change(&chains).and_then(|()| table.change(&step.change)).is_err()
            && let Err(error) = self.rebuild(&mut table)
        {
            *self.services() = old;
            return Err(error);
        }
        if step.change.gone.iter().any(|element| matches!(element.set, SetId::Members(..))) {
            let all = pick::elements(self.services().iter());
            clients::forget(&mut table, &all)?;
        }
        drop(table);
        self.enter_host(thread)?;
        conntrack::forget(&step.old_ways, &step.new_ways)
    }

    /// Stores the Services. Not more than one does so at a time, each what there is when its turn comes.
    fn keep_services(&self) {
        let _turn = self.site.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let services = self.services().clone();
        if let Err(error) = service::keep(&self.config.state_dir, &services) {
            tracing::error!(%error, "cannot store the Services; they would be refused for a moment when the agent starts");
        }
    }
}

/// What leads from some Services to others.
struct Step {
    change: Change,
    old_ways: Vec<Way>,
    new_ways: Vec<Way>,
}

impl Step {
    fn between(old: &[Service], new: &[Service]) -> Self {
        let (before, after) = changed(old, new);
        let (old_elements, new_elements) =
            (pick::elements(before.iter().copied()), pick::elements(after.iter().copied()));
        let (old_chains, new_chains) = (Chains::of(old.iter()), Chains::of(new.iter()));
        let mut change = Change::default();
        if old_chains != new_chains {
            let (old, new) = (old_chains.all(), new_chains.all());
            let lacks = |chains: &[Chain], one: &Chain| {
                chains.binary_search_by(|other| other.name.cmp(&one.name)).is_err()
            };
            change.old_chains =
                old.iter().filter(|chain| lacks(&new, chain)).map(|chain| chain.name.clone()).collect();
            change.new_chains = new.iter().filter(|chain| lacks(&old, chain)).cloned().collect();
        }
        let lacks = |elements: &[Element], one: &Element| elements.binary_search(one).is_err();
        change.gone = old_elements.iter().filter(|one| lacks(&new_elements, one)).cloned().collect();
        change.new = new_elements.iter().filter(|one| lacks(&old_elements, one)).cloned().collect();
        let (before, after) = (ways(&before), ways(&after));
        let only = |these: &BTreeSet<Way>, those| these.difference(those).copied().collect();
        Self { change, old_ways: only(&before, &after), new_ways: only(&after, &before) }
    }
}

/// The Services that differ, as they were and as they are; all of them if two claim the same, for then one that stays as
/// it is may lose or get what it claims.
fn changed<'a>(old: &'a [Service], new: &'a [Service]) -> (Vec<&'a Service>, Vec<&'a Service>) {
    let by_name = |services: &'a [Service]| -> BTreeMap<(&'a str, &'a str), &'a Service> {
        services.iter().map(|one| ((one.namespace.as_str(), one.name.as_str()), one)).collect()
    };
    let (known, wanted) = (by_name(old), by_name(new));
    if !claims_are_unique(old) || !claims_are_unique(new) {
        return (old.iter().collect(), new.iter().collect());
    }
    let differing = |these: &BTreeMap<(&str, &str), &'a Service>,
                     those: &BTreeMap<(&str, &str), &Service>| {
        these.iter().filter(|(name, one)| those.get(*name) != Some(one)).map(|(_, one)| *one).collect()
    };
    (differing(&known, &wanted), differing(&wanted, &known))
}

fn claims_are_unique(services: &[Service]) -> bool {
    let mut claims = HashSet::new();
    services.iter().all(|service| {
        service.ports.iter().all(|port| {
            let on_node = port.node_port.is_none_or(|number| claims.insert((None, port.protocol, number)));
            on_node
                && service.cluster_ips.iter().all(|ip| claims.insert((Some(*ip), port.protocol, port.port)))
        })
    })
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
