//! Who has which address: one lease per pod, kept on disk so that a restart or a crash forgets nothing.
//!
//! Addresses are given out in a ring: the next one after the last, as host-local does, so that a released one comes
//! back as late as possible, and never before its quarantine is over. A pod may ask for an address instead, also outside
//! of the range that the ring goes through; one in quarantine it gets only if a pod of its name had it. The files are written by [`store`]; memory and
//! disk change together, under the caller's lock, which is held for no longer than that.

mod lease;
mod shared;
mod store;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::SystemTime;

pub(crate) use lease::{LINK_PREFIX, Lease, mac};
pub(crate) use shared::{Guard, Shared};
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
    config: Config,
    store: Store,
    leases: BTreeMap<String, Lease>,
    /// Released addresses, and when each may be used again. Who had it is in its file only: that is seldom asked for, and a name
    /// of a few bytes for each would keep as many pages of memory.
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
            config: config.clone(),
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
            self.last = self.cidr().offset(address).unwrap_or(1);
        }
    }

    fn cidr(&self) -> Ipv4Cidr {
        self.config.ipv4
    }

    /// Whether a pod may have this address: not the network's, not the gateway's, not the broadcast address.
    fn usable(&self, address: Ipv4Addr) -> bool {
        self.config.is_for_pods(address)
    }

    /// Whether the ring goes through this address.
    fn in_range(&self, address: Ipv4Addr) -> bool {
        self.config.range.is_none_or(|(first, last)| (first..=last).contains(&address))
    }

    /// The lease of `pod`, with an address of its own and the host ports it asks for now.
    ///
    /// # Errors
    /// [`Error::HostPortConflict`], [`Error::AddressesExhausted`], [`Error::AddressRefused`], [`Error::InvalidId`] or a
    /// file error; nothing has changed then.
    pub(crate) fn claim(&mut self, pod: &PodNetwork, now: SystemTime) -> Result<Claim> {
        lease::check_id(&pod.id)?;
        let host_ports = self.host_ports(pod)?;
        let before = self.leases.get(&pod.id).cloned();
        let wishes = pod.wishes.clone();
        let wanted = self.wanted(pod)?;
        let lease = match &before {
            Some(old) if wanted.is_some_and(|wanted| wanted != old.ipv4) => {
                let address = wanted.map_or(IpAddr::V4(old.ipv4), IpAddr::V4);
                let reason = format!("the pod has {} until it is made anew", old.ipv4);
                return Err(Error::AddressRefused { address, reason });
            }
            Some(old) if old.host_ports == host_ports && old.wishes == wishes => {
                return Ok(Claim { lease: old.clone(), before });
            }
            Some(old) => Lease { host_ports, wishes, ..old.clone() },
            None => Lease {
                id: pod.id.clone(),
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                ipv4: match wanted {
                    Some(wanted) => self.reserve(wanted, pod, now)?,
                    None => self.pick(now)?,
                },
                host_if: lease::link_name(&self.config.bridge, pod, |name| {
                    self.leases.values().any(|lease| lease.host_if == name)
                }),
                host_ports,
                wishes,
                sequence: self.sequence + 1,
            },
        };
        self.store.keep(&lease)?;
        if self.in_range(lease.ipv4) {
            self.note_sequence(lease.sequence, lease.ipv4);
        } else {
            self.sequence = self.sequence.max(lease.sequence);
        }
        self.leases.insert(lease.id.clone(), lease.clone());
        if self.quarantined.remove(&lease.ipv4).is_some() {
            self.store.end_quarantine(lease.ipv4)?;
        }
        Ok(Claim { lease, before })
    }

    /// The IPv4 address that goes with the addresses a pod asks for, if it does.
    fn wanted(&self, pod: &PodNetwork) -> Result<Option<Ipv4Addr>> {
        let mut wanted: Option<Ipv4Addr> = None;
        for address in &pod.wishes.ips {
            let refuse = |reason: String| Err(Error::AddressRefused { address: *address, reason });
            let place = match (address, self.config.ipv6) {
                (IpAddr::V4(ip), _) => self.cidr().contains(*ip).then_some(*ip),
                (IpAddr::V6(ip), Some(net)) => net.offset(*ip).and_then(|offset| self.cidr().nth(offset)),
                (IpAddr::V6(_), None) => return refuse("the pod network has no IPv6 addresses".into()),
            };
            let Some(ip) = place.filter(|ip| self.usable(*ip)) else {
                let of = self.config.ipv6.filter(|_| address.is_ipv6());
                let net = of.map_or_else(|| self.cidr().to_string(), |net| net.to_string());
                return refuse(format!("it is none of {net} that a pod may have"));
            };
            if wanted.is_some_and(|other| other != ip) {
                return refuse("a pod's addresses have the same place in their networks".into());
            }
            wanted = Some(ip);
        }
        Ok(wanted)
    }

    /// Checks that the address which `pod` asks for is free.
    fn reserve(&self, wanted: Ipv4Addr, pod: &PodNetwork, now: SystemTime) -> Result<Ipv4Addr> {
        let refuse = |reason: String| Err(Error::AddressRefused { address: IpAddr::V4(wanted), reason });
        if let Some(other) = self.leases.values().find(|lease| lease.ipv4 == wanted) {
            return refuse(format!("pod {} has it", other.pod()));
        }
        let Some(until) = self.quarantined.get(&wanted).filter(|until| **until > now) else {
            return Ok(wanted);
        };
        let before = self.store.had(wanted)?;
        if before.as_ref().is_some_and(|before| *before == format!("{}/{}", pod.namespace, pod.name)) {
            return Ok(wanted);
        }
        let before = before.map_or("another pod".to_owned(), |before| format!("pod {before}"));
        let left = until.duration_since(now).unwrap_or_default().as_secs_f64().ceil();
        refuse(format!("it is in quarantine for {left} s after {before} had it"))
    }

    /// The next free address after the last one given out.
    fn pick(&self, now: SystemTime) -> Result<Ipv4Addr> {
        let used: HashSet<Ipv4Addr> = self.leases.values().map(|lease| lease.ipv4).collect();
        let size = u32::try_from(self.cidr().size())
            .map_err(|_| Error::InvalidConfig("pod network too large".into()))?;
        let first =
            (1..=size).map(|step| (self.last + step) % size).filter_map(|offset| self.cidr().nth(offset));
        let free = |address: &Ipv4Addr| {
            self.usable(*address)
                && self.in_range(*address)
                && !used.contains(address)
                && self.quarantined.get(address).is_none_or(|until| *until <= now)
        };
        let found = first.into_iter().find(free);
        found.ok_or_else(|| Error::AddressesExhausted {
            cidr: match self.config.range {
                Some((first, last)) => format!("{first} to {last}"),
                None => self.cidr().to_string(),
            },
            leased: used.iter().filter(|address| self.in_range(**address)).count(),
            quarantined: self.resting(now),
        })
    }

    /// How many addresses of the ring are in quarantine.
    fn resting(&self, now: SystemTime) -> usize {
        let resting = |(address, until): &(&Ipv4Addr, &SystemTime)| **until > now && self.in_range(**address);
        self.quarantined.iter().filter(resting).count()
    }

    /// Whether an address could be given out now.
    ///
    /// # Errors
    /// [`Error::AddressesExhausted`].
    pub(crate) fn has_room(&self, now: SystemTime) -> Result<()> {
        self.pick(now).map(drop)
    }

    /// Checks that no pod here has a host port which `pod`, that is not here, asks for.
    ///
    /// # Errors
    /// [`Error::HostPortConflict`].
    pub(crate) fn check_ports_free(&self, pod: &PodNetwork) -> Result<()> {
        self.host_ports(pod).map(drop)
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
        let until = now + self.config.quarantine;
        self.store.release(&Quarantined::new(lease, until))?;
        self.quarantined.insert(lease.ipv4, until);
        let lease = self.leases.remove(id);
        self.end_quarantines(now)?;
        Ok(lease)
    }

    /// Forgets addresses whose quarantine is over, but for the last one given out, which keeps the place in the ring.
    fn end_quarantines(&mut self, now: SystemTime) -> Result<()> {
        let last = self.cidr().nth(self.last);
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

/// The links of all leases in the folder of a network that nobody has open.
pub(crate) fn links(folder: &Path) -> Result<Vec<String>> {
    let leases = Store::open(folder)?.leases()?;
    Ok(leases.into_iter().map(|lease| lease.host_if).collect())
}

#[cfg(test)]
mod tests;
