//! Who has which address: one lease per pod, kept on disk so that a restart or a crash forgets nothing.
//!
//! Addresses are given out in a ring: the next one after the last, as host-local does, so that a released one comes
//! back as late as possible, and never before its quarantine is over. The files are written by [`store`]; memory and
//! disk change together, under the caller's lock, which is held for no longer than that.

mod lease;
mod store;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

pub(crate) use lease::{LINK_PREFIX, Lease, mac};
use store::{Quarantined, Store};

use crate::cidr::Ipv4Cidr;
use crate::config::{Config, HostPort, PodNetwork};
use crate::error::{Error, Result};

/// The lease a pod got and what it replaces.
#[derive(Debug)]
pub(crate) struct Claim {
    pub lease: Lease,
    /// The pod's lease before, if it had one.
    pub before: Option<Lease>,
}

/// All leases of a pod network.
#[derive(Debug)]
pub(crate) struct Ipam {
    cidr: Ipv4Cidr,
    quarantine: Duration,
    /// Name of the bridge; goes into the names of links.
    scope: String,
    store: Store,
    leases: BTreeMap<String, Lease>,
    /// Released addresses and when they may be used again.
    quarantined: HashMap<Ipv4Addr, SystemTime>,
    /// Number of the lease made last.
    sequence: u64,
    /// Offset in the network of the address given out last.
    last: u32,
}

impl Ipam {
    /// Loads the leases from the state folder, which is made if missing. Files that make no sense are reported and removed.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let store = Store::open(&config.state_dir)?;
        let cidr = config.ipv4;
        let mut ipam = Self {
            cidr,
            quarantine: config.quarantine,
            scope: config.bridge.clone(),
            store,
            leases: BTreeMap::new(),
            quarantined: HashMap::new(),
            sequence: 0,
            last: 1,
        };
        let mut used = HashSet::new();
        for lease in ipam.store.leases()? {
            if ipam.usable(lease.ipv4) && used.insert(lease.ipv4) {
                ipam.note_sequence(lease.sequence, lease.ipv4);
                ipam.leases.insert(lease.id.clone(), lease);
            } else {
                tracing::warn!(pod = lease.pod(), address = %lease.ipv4, %cidr, "dropped a lease that does not fit");
                ipam.store.forget(&lease.id)?;
            }
        }
        for released in ipam.store.quarantined()? {
            // A lease wins: the crash came between giving the address out again and forgetting its quarantine.
            if ipam.usable(released.ipv4) && !used.contains(&released.ipv4) {
                ipam.note_sequence(released.sequence, released.ipv4);
                ipam.quarantined.insert(released.ipv4, released.until());
            } else {
                ipam.store.end_quarantine(released.ipv4)?;
            }
        }
        Ok(ipam)
    }

    fn note_sequence(&mut self, sequence: u64, address: Ipv4Addr) {
        if sequence >= self.sequence {
            self.sequence = sequence;
            self.last = self.cidr.offset(address).unwrap_or(1);
        }
    }

    /// Whether a pod may have this address: not the network's, not the gateway's, not the broadcast address.
    fn usable(&self, address: Ipv4Addr) -> bool {
        self.cidr
            .offset(address)
            .is_some_and(|offset| offset >= 2 && u64::from(offset) + 1 < self.cidr.size())
    }

    /// The lease of `pod`, with an address of its own and the host ports it asks for now.
    ///
    /// # Errors
    /// [`Error::HostPortConflict`], [`Error::AddressesExhausted`], [`Error::InvalidId`] or a file error; nothing has
    /// changed then.
    pub(crate) fn claim(&mut self, pod: &PodNetwork, now: SystemTime) -> Result<Claim> {
        lease::check_id(&pod.id)?;
        let host_ports = self.host_ports(pod)?;
        let before = self.leases.get(&pod.id).cloned();
        let lease = match &before {
            Some(old) if old.host_ports == host_ports => return Ok(Claim { lease: old.clone(), before }),
            Some(old) => Lease { host_ports, ..old.clone() },
            None => Lease {
                id: pod.id.clone(),
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                ipv4: self.pick(now)?,
                host_if: lease::link_name(&self.scope, pod, |name| {
                    self.leases.values().any(|lease| lease.host_if == name)
                }),
                host_ports,
                sequence: self.sequence + 1,
            },
        };
        self.store.keep(&lease)?;
        self.note_sequence(lease.sequence, lease.ipv4);
        self.leases.insert(lease.id.clone(), lease.clone());
        if self.quarantined.remove(&lease.ipv4).is_some() {
            self.store.end_quarantine(lease.ipv4)?;
        }
        Ok(Claim { lease, before })
    }

    /// The next free address after the last one given out.
    fn pick(&mut self, now: SystemTime) -> Result<Ipv4Addr> {
        let used: HashSet<Ipv4Addr> = self.leases.values().map(|lease| lease.ipv4).collect();
        let size = u32::try_from(self.cidr.size())
            .map_err(|_| Error::InvalidConfig("pod network too large".into()))?;
        let first =
            (1..=size).map(|step| (self.last + step) % size).filter_map(|offset| self.cidr.nth(offset));
        let free = |address: &Ipv4Addr| {
            self.usable(*address)
                && !used.contains(address)
                && self.quarantined.get(address).is_none_or(|until| *until <= now)
        };
        let found = first.into_iter().find(free);
        found.ok_or_else(|| Error::AddressesExhausted {
            cidr: self.cidr.to_string(),
            leased: used.len(),
            quarantined: self.quarantined.values().filter(|until| **until > now).count(),
        })
    }

    /// The host ports of `pod` without repetitions, if nobody else has them.
    fn host_ports(&self, pod: &PodNetwork) -> Result<Vec<HostPort>> {
        let mut wanted: Vec<HostPort> = Vec::with_capacity(pod.host_ports.len());
        for port in &pod.host_ports {
            let conflict = |holder: String| Error::HostPortConflict {
                port: port.host_port,
                protocol: port.protocol,
                host_ip: port.host_ip,
                holder,
            };
            let others = self.leases.values().filter(|lease| lease.id != pod.id);
            if let Some(other) =
                others.into_iter().find(|o| o.host_ports.iter().any(|p| lease::overlap(p, port)))
            {
                return Err(conflict(other.pod()));
            }
            match wanted.iter().find(|earlier| lease::overlap(earlier, port)) {
                Some(earlier) if earlier == port => {}
                Some(_) => return Err(conflict(format!("{}/{} itself", pod.namespace, pod.name))),
                None => wanted.push(port.clone()),
            }
        }
        Ok(wanted)
    }

    /// Takes the lease of pod `id` back; its address goes into quarantine.
    pub(crate) fn release(&mut self, id: &str, now: SystemTime) -> Result<Option<Lease>> {
        let Some(lease) = self.leases.get(id) else { return Ok(None) };
        self.store.release(&Quarantined::new(lease, now + self.quarantine))?;
        self.quarantined.insert(lease.ipv4, now + self.quarantine);
        let lease = self.leases.remove(id);
        self.end_quarantines(now)?;
        Ok(lease)
    }

    /// Forgets addresses whose quarantine is over, but for the last one given out, which keeps the place in the ring.
    fn end_quarantines(&mut self, now: SystemTime) -> Result<()> {
        let last = self.cidr.nth(self.last);
        let over: Vec<Ipv4Addr> = self
            .quarantined
            .iter()
            .filter(|(address, until)| **until <= now && Some(**address) != last)
            .map(|(address, _)| *address)
            .collect();
        for address in over {
            self.store.end_quarantine(address)?;
            self.quarantined.remove(&address);
        }
        Ok(())
    }

    /// The lease of pod `id`.
    pub(crate) fn get(&self, id: &str) -> Option<&Lease> {
        self.leases.get(id)
    }

    /// All leases, by pod id.
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Forgets everything and removes the folder.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.leases.clear();
        self.quarantined.clear();
        self.store.remove_all()
    }
}

#[cfg(test)]
mod tests;
