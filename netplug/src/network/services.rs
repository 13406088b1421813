//! Services of the network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{MutexGuard, PoisonError};

use super::{Inner, Network};
use crate::conntrack::{self, Way};
use crate::error::Result;
use crate::nft::clients;
use crate::nft::encode::Change;
use crate::nft::pick::{Picks, picks};
use crate::nft::set::SetId;
use crate::service::{self, Service};
use crate::sys::netns::{Traveller, on_thread};

impl Network {
    /// Makes these the Services of the network, all others are gone. What differs is changed in one step; connections
    /// go on, but UDP flows leave endpoints that have gone. The Services stay when the network is opened again.
    ///
    /// # Errors
    /// What the kernel or the file system refused; call it again then.
    pub async fn set_services(&self, services: Vec<Service>) -> Result<()> {
        self.inner.check_open()?;
        let inner = self.inner.clone();
        on_thread(move |thread| inner.set_services(thread, services)).await
    }
}

impl Inner {
    pub(super) fn services(&self) -> MutexGuard<'_, Vec<Service>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_services(&self, thread: &Traveller, services: Vec<Service>) -> Result<()> {
        let mut table = self.table();
        let old = std::mem::replace(&mut *self.services(), services.clone());
        if old == services {
            return Ok(());
        }
        let wanted = picks(&services);
        let change = difference(&picks(&old), &wanted);
        // A table that was deleted or changed by somebody refuses the change, and is made anew.
        if table.change(&change).is_err()
            && let Err(error) = self.rebuild(&mut table)
        {
            *self.services() = old;
            return Err(error);
        }
        if change.gone.iter().any(|element| matches!(element.set, SetId::Members(..))) {
            clients::forget(&mut table, &wanted.elements)?;
        }
        drop(table);
        self.enter_host(thread)?;
        let (before, after) = (ways(&old), ways(&services));
        let only = |these: &BTreeSet<Way>, those| these.difference(those).copied().collect::<Vec<_>>();
        conntrack::forget(&only(&before, &after), &only(&after, &before))?;
        service::keep(&self.config.state_dir, &services)
    }
}

/// What leads from one to the other. Both are sorted.
fn difference(old: &Picks, new: &Picks) -> Change {
    let mut change = Change::default();
    let kept = |chain: &str| new.chains.binary_search_by(|one| one.name.as_str().cmp(chain)).is_ok();
    change.old_chains =
        old.chains.iter().map(|chain| chain.name.clone()).filter(|name| !kept(name)).collect();
    change.new_chains = new
        .chains
        .iter()
        .filter(|chain| old.chains.binary_search_by(|one| one.name.cmp(&chain.name)).is_err())
        .cloned()
        .collect();
    change.gone =
        old.elements.iter().filter(|one| new.elements.binary_search(one).is_err()).cloned().collect();
    change.new =
        new.elements.iter().filter(|one| old.elements.binary_search(one).is_err()).cloned().collect();
    change
}

/// The ways that Services are.
fn ways(services: &[Service]) -> BTreeSet<Way> {
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
