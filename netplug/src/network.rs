//! The verbs of the pod network.

mod heal;
mod policies;
mod remove;
mod services;
mod site;
mod stale;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use rtnetlink::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::config::{Attachment, Config, PodNetwork, Stats, mac_text};
use crate::error::{Error, Result};
use crate::ipam::{Claim, Guard, Lease};
use crate::monitor::Monitor;
use crate::nft::admission;
use crate::nft::encode::Change;
use crate::nft::ruleset::elements;
use crate::nft::table::Table;
use crate::sys::netlink::{self, Socket};
use crate::sys::netns::{self, Traveller, on_thread};
use crate::veth::{self, Plan, PortFlags};
use crate::{bridge, conntrack, macvlan};
use heal::Repair;
use site::Site;

/// How long a detach waits for the kernel to remove the link of a namespace that is going, before it does so itself,
/// which is slower and in everybody's way.
const LINK_GRACE: Duration = Duration::from_millis(150);

/// The pod network of this node. Clones share it; when the last one is dropped nothing is removed from the system.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Inner>,
    /// The networks beside this one, for the first.
    beside: Arc<[Network]>,
    _tasks: Arc<Tasks>,
}

/// The networks of one node.
struct Inners {
    first: Arc<Inner>,
    beside: Vec<Arc<Inner>>,
}

impl Inners {
    fn all(&self) -> impl Iterator<Item = &Arc<Inner>> {
        std::iter::once(&self.first).chain(&self.beside)
    }
}

/// Tasks that end with the network.
#[derive(Debug)]
struct Tasks(Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

#[derive(Debug)]
struct Inner {
    /// What it shares with the networks beside it.
    site: Arc<Site>,
    /// Its number among them; 0 is the first, which looks after what they share.
    place: usize,
    config: Config,
    /// Whether other processes change the leases, too: see [`Network::visit`].
    visiting: bool,
    mtu: u32,
    /// The namespace where the network was opened.
    host: OwnedFd,
    handle: Handle,
    /// Index of the bridge, 0 before it was made.
    bridge: AtomicU32,
    /// Some link was deleted.
    link_gone: Notify,
    /// Held while bridge or table are repaired.
    repair: tokio::sync::Mutex<()>,
    closed: AtomicBool,
    /// A namespace for the next pod.
    spare: Mutex<Option<OwnedFd>>,
}

impl Network {
    /// Opens the network, and those beside it, in the namespace of the calling thread: loads the leases, makes or repairs
    /// bridges, kernel settings and nft table, puts the pods' links back on the bridges, and removes networks that are no
    /// more. From then on bridges and table are made anew whenever somebody deletes them.
    ///
    /// Must be called on a tokio runtime, whose tasks it uses for as long as the network lives.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::NotABridge`], or what the kernel or the file system refused.
    pub async fn open(config: Config) -> Result<Self> {
        config.check()?;
        stale::remove(&config).await?;
        let (inners, mut tasks) = Inner::open(config, false).await?;
        for inner in inners.all() {
            if inner.config.parent.is_some() {
                // Nothing of it is on the host.
                stale::note(inner).await?;
                continue;
            }
            let port = inner.table().port();
            let monitor = Monitor::open(&inner.config.bridge, &inner.config.table, port)?;
            stale::note(inner).await?;
            inner.repair(Repair::All).await?;
            tasks.0.push(tokio::spawn(inner.clone().watch(monitor)).abort_handle());
        }
        Ok(Self::of(inners, tasks))
    }

    fn of(inners: Inners, tasks: Tasks) -> Self {
        let tasks = Arc::new(tasks);
        let one = |inner| Self { inner, beside: Arc::default(), _tasks: tasks.clone() };
        Self { beside: inners.beside.into_iter().map(one).collect(), ..one(inners.first) }
    }

    /// Opens the network for one request in a process of its own, beside others that do the same: leases are read anew
    /// under a lock on their folder each time they are needed, nothing is watched, and bridge and table are made when a
    /// pod is attached and they are not there.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], or what the kernel or the file system refused.
    pub(crate) async fn visit(config: Config) -> Result<Self> {
        let (inners, tasks) = Inner::open(config, true).await?;
        let inner = &inners.first;
        if let Some(bridge) = bridge::get(&inner.handle, &inner.config.bridge).await? {
            inner.bridge.store(bridge.header.index, Ordering::Relaxed);
        }
        Ok(Self::of(inners, tasks))
    }

    /// What a pod has got, if it has a lease.
    ///
    /// # Errors
    /// The leases cannot be read.
    pub fn attached(&self, id: &str) -> Result<Option<Attachment>> {
        Ok(self.inner.ipam()?.get(id).map(|lease| self.inner.attachment(lease)))
    }

    /// Ids of all pods that have a lease.
    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        Ok(self.inner.ipam()?.leases().map(|lease| lease.id.clone()).collect())
    }

    /// Whether another pod could be attached: an address is free and the table can be asked for.
    pub(crate) fn has_room(&self) -> Result<()> {
        self.inner.ipam()?.has_room(SystemTime::now())?;
        self.inner.table().exists().map(drop)
    }

    /// Opens the network for an agent whose pods are connected by somebody else: neither bridge nor table is made, and
    /// nothing is watched. Leases of pods that were connected here before can be detached.
    ///
    /// # Errors
    /// As [`Network::open`].
    pub async fn dormant(config: Config) -> Result<Self> {
        let (inners, tasks) = Inner::open(config, false).await?;
        Ok(Self::of(inners, tasks))
    }

    /// A new network namespace for a pod, with nothing in it. It is gone when nobody is in it or holds the descriptor.
    /// One is kept ready, for making it takes the kernel as long as all the rest of an attach.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn namespace(&self) -> Result<OwnedFd> {
        let spare = self.inner.spare().take();
        match spare {
            Some(namespace) => Ok(namespace),
            None => netns::new().await,
        }
    }

    /// Makes the namespace that is kept ready, if there is none. Should it fail, the next [`Network::namespace`] says why.
    pub async fn prepare_namespace(&self) {
        if self.inner.spare().is_some() {
            return;
        }
        if let Ok(namespace) = netns::new().await {
            *self.inner.spare() = Some(namespace);
        }
    }

    /// Connects a pod: address, link, routes, host ports. Called again for the same pod it repairs what is broken,
    /// takes over changed host ports and returns the same address.
    ///
    /// # Errors
    /// [`Error::Namespace`] if the pod has gone, [`Error::HostPortConflict`], [`Error::AddressesExhausted`],
    /// [`Error::InterfaceTaken`], or what the kernel or the file system refused. A pod that had no lease before has
    /// none after an error.
    pub async fn attach(&self, pod: &PodNetwork) -> Result<Attachment> {
        self.inner.check_open()?;
        if self.inner.visiting {
            self.inner.repair(Repair::Bridge).await?;
        }
        let bridge = self.inner.bridge.load(Ordering::Relaxed);
        let first = self.inner.clone().attach(pod.clone()).await;
        if !matches!(first, Err(Error::Netlink { .. })) {
            return first;
        }
        // The bridge may have been deleted in between. If it is as it was, the first error stands.
        self.inner.repair(Repair::Bridge).await?;
        if self.inner.bridge.load(Ordering::Relaxed) == bridge {
            return first;
        }
        self.inner.clone().attach(pod.clone()).await
    }

    /// Disconnects pod `id` from this network and those beside it: host ports, links, addresses (which go into quarantine).
    /// Repeatable; an unknown id is fine.
    ///
    /// # Errors
    /// What the kernel or the file system refused; call it again then.
    pub async fn detach(&self, id: &str) -> Result<()> {
        let all = join_all(self.all().map(|network| network.leave(id))).await;
        all.into_iter().collect()
    }

    /// Disconnects it from this network.
    async fn leave(&self, id: &str) -> Result<()> {
        self.inner.check_open()?;
        let Some(lease) = self.inner.ipam()?.get(id).cloned() else { return Ok(()) };
        if !self.inner.visiting {
            self.inner.wait_for_link(&lease.host_if).await?;
        }
        let inner = self.inner.clone();
        on_thread(move |thread| inner.detach(thread, &lease)).await
    }

    /// Detaches every pod that is not in `live`, removes links that belong to no pod, and sets bridge and table right.
    /// Returns the ids of the pods detached. No pod may be attached meanwhile that `live` does not name.
    ///
    /// # Errors
    /// The first of what was refused; the rest is done all the same.
    pub async fn gc(&self, live: &[String]) -> Result<Vec<String>> {
        let mut outcome = self.detach_all_but(live).await;
        for network in self.all() {
            let inner = &network.inner;
            let repaired = inner.repair(Repair::All).await.and(inner.sweep().await);
            outcome = outcome.and_then(|leaked| repaired.map(|()| leaked));
        }
        outcome
    }

    /// Detaches every pod that is not in `live`; gives their ids.
    ///
    /// # Errors
    /// The first of what was refused; the rest is done all the same.
    pub async fn detach_all_but(&self, live: &[String]) -> Result<Vec<String>> {
        self.inner.check_open()?;
        let mut known = Vec::new();
        for network in self.all() {
            known.extend(network.ids()?);
        }
        known.sort_unstable();
        known.dedup();
        let leaked: Vec<String> = known.into_iter().filter(|id| !live.contains(id)).collect();
        let mut outcome = Ok(());
        for detached in join_all(leaked.iter().map(|id| self.detach(id))).await {
            outcome = outcome.and(detached);
        }
        outcome.map(|()| leaked)
    }

    /// Removes bridge, pods' links, nft table and leases. The network is of no use afterwards.
    ///
    /// # Errors
    /// The first of what was refused; the rest is done all the same.
    pub async fn close_all(&self) -> Result<()> {
        let mut outcome = Ok(());
        // The first one last, for it has what they share, and the folder that theirs are in.
        for network in self.beside.iter().chain([self]) {
            let _repair = network.inner.repair.lock().await;
            network.inner.closed.store(true, Ordering::Relaxed);
            let inner = network.inner.clone();
            outcome = outcome.and(on_thread(move |thread| inner.remove_all(thread)).await);
        }
        outcome
    }

    /// This network and those beside it.
    pub fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.beside.iter())
    }

    /// The network beside this one that has this name.
    pub fn named(&self, name: &str) -> Option<&Self> {
        self.beside.iter().find(|network| network.name() == Some(name))
    }

    /// Its name, if it is a network beside another.
    pub fn name(&self) -> Option<&str> {
        self.inner.config.name.as_deref()
    }

    /// Its settings.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The bridge's addresses, IPv4 first.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.inner.config.gateways().map(|(ip, _)| ip).collect()
    }

    /// Whether an address is of this network; the bridge's are, too.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.inner.config.contains(ip)
    }

    /// Counters of a pod's interface, by the name of the host's side.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`] if there is none.
    pub async fn stats(&self, host_if: &str) -> Result<Stats> {
        bridge::stats(&self.inner.handle, host_if).await
    }

    /// Counters of an interface that has no other end on the host, by its name in the pod's namespace.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`] if there is none.
    pub async fn stats_inside(&self, netns: OwnedFd, interface: &str) -> Result<Stats> {
        let interface = interface.to_owned();
        on_thread(move |thread| macvlan::stats(thread, &netns, &interface)).await
    }
}

/// Brings up `lo` of a namespace, for pods that somebody else connects.
///
/// # Errors
/// The namespace has gone, or what the kernel refused.
pub async fn bring_up_loopback(netns: &Path) -> Result<()> {
    let namespace = netns::open(netns)?;
    on_thread(move |thread| veth::bring_up_loopback(thread, &namespace)).await
}

impl Inner {
    /// Everything in memory; bridges and table are left as they are.
    async fn open(config: Config, visiting: bool) -> Result<(Inners, Tasks)> {
        config.check()?;
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|e| Error::netlink("open a netlink connection for", &config.bridge, e))?;
        let tasks = Tasks(vec![tokio::spawn(connection).abort_handle()]);
        let site = Arc::new(Site::open(config, visiting)?);
        let uplink = match site.config.all().all(|net| net.mtu.is_some()) {
            true => 0,
            false => bridge::uplink_mtu(&handle).await?,
        };
        let first = Self::new(&site, 0, &site.config, uplink, handle.clone(), visiting)?;
        let others = site.config.beside.iter().zip(1..);
        let beside =
            others.map(|(one, place)| Self::new(&site, place, one, uplink, handle.clone(), visiting));
        Ok((Inners { beside: beside.collect::<Result<_>>()?, first }, tasks))
    }

    fn new(
        site: &Arc<Site>,
        place: usize,
        config: &Config,
        uplink: u32,
        handle: Handle,
        visiting: bool,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            site: site.clone(),
            place,
            mtu: config.mtu.unwrap_or(uplink),
            config: config.clone(),
            visiting,
            host: netns::current()?,
            handle,
            bridge: AtomicU32::new(0),
            link_gone: Notify::new(),
            repair: tokio::sync::Mutex::new(()),
            closed: AtomicBool::new(false),
            spare: Mutex::new(None),
        }))
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) { Err(Error::Closed) } else { Ok(()) }
    }

    fn ipam(&self) -> Result<Guard<'_>> {
        self.site.leases(self.place)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.site.table()
    }

    fn spare(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn attach(self: Arc<Self>, pod: PodNetwork) -> Result<Attachment> {
        on_thread(move |thread| {
            let namespace = netns::open(&pod.netns)?;
            let claim = self.site.claim(self.place, &pod, SystemTime::now())?;
            let outcome = self.connect(thread, &namespace, &claim);
            if outcome.is_err()
                && claim.before.is_none()
                && let Err(error) = self.detach(thread, &claim.lease)
            {
                tracing::warn!(pod = claim.lease.pod(), %error, "could not take back a failed attach");
            }
            outcome.map(|()| self.attachment(&claim.lease))
        })
        .await
    }

    fn connect(&self, thread: &Traveller, namespace: &OwnedFd, claim: &Claim) -> Result<()> {
        // Before it can send anything.
        self.watch_port(claim.before.as_ref(), Some(&claim.lease))?;
        let plan = self.plan(&claim.lease);
        match &self.config.parent {
            Some(parent) => {
                return macvlan::connect(thread, &self.host, namespace, &plan, parent, self.config.mtu);
            }
            None => veth::connect(thread, &self.host, namespace, &plan)?,
        }
        let new = elements(&self.config, &claim.lease);
        let mut gone = claim.before.as_ref().map(|old| elements(&self.config, old)).unwrap_or_default();
        gone.retain(|element| !new.contains(element));
        let ways = conntrack::host_port_ways(&self.config, &claim.lease);
        let mut old_ways =
            claim.before.as_ref().map(|old| conntrack::host_port_ways(&self.config, old)).unwrap_or_default();
        old_ways.retain(|way| !ways.contains(way));
        {
            let mut table = self.table();
            let change = Change { gone, new, ..Change::default() };
            // A table that was deleted or changed by somebody refuses the change, and is made anew from all leases.
            let changed = if table.exists()? { table.change(&change) } else { self.rebuild(&mut table) };
            if changed.is_err() {
                self.rebuild(&mut table)?;
            }
            if self.visiting {
                admission::admit(&mut table, &self.config)?;
            }
        }
        self.enter_host(thread)?;
        conntrack::forget(&old_ways, &ways)
    }

    fn plan(&self, lease: &Lease) -> Plan {
        let prefix = |ip: &IpAddr| match (ip, self.config.ipv6) {
            (IpAddr::V6(_), Some(net)) => net.prefix(),
            _ => self.config.ipv4.prefix(),
        };
        Plan {
            pod: lease.pod(),
            host_if: lease.host_if.clone(),
            interface: lease.interface().to_owned(),
            mac: lease.mac(),
            mtu: self.mtu,
            bridge: self.bridge.load(Ordering::Relaxed),
            addresses: lease.ips(&self.config).into_iter().map(|ip| (ip, prefix(&ip))).collect(),
            gateways: lease.default_routes(&self.config),
            port: self.port(),
            ingress: lease.wishes.ingress,
            egress: lease.wishes.egress,
        }
    }

    /// What the bridge does at the pods' links.
    fn port(&self) -> PortFlags {
        let Config { hairpin, port_isolation: isolated, mac_spoof_check: locked, .. } = self.config;
        PortFlags { hairpin, isolated, locked }
    }

    fn attachment(&self, lease: &Lease) -> Attachment {
        Attachment {
            ips: lease.ips(&self.config),
            interface: lease.interface().to_owned(),
            mac: mac_text(&lease.mac()),
            host_if: if self.config.parent.is_none() { lease.host_if.clone() } else { String::new() },
            gateway: IpAddr::V4(self.config.gateway()),
            mtu: self.mtu,
        }
    }

    fn enter_host(&self, thread: &Traveller) -> Result<()> {
        thread.enter(&self.host).map_err(|source| Error::Namespace { path: "of the host".into(), source })
    }

    fn host_socket(&self, thread: &Traveller) -> Result<Socket> {
        self.enter_host(thread)?;
        Socket::open(netlink::ROUTE)
            .map_err(|e| Error::netlink("open a netlink socket for", &self.config.bridge, e))
    }

    /// Link, lease, host ports; in this order, so that a lease stands for whatever is still to be removed.
    fn detach(&self, thread: &Traveller, lease: &Lease) -> Result<()> {
        veth::delete(&mut self.host_socket(thread)?, &lease.host_if)?;
        self.ipam()?.release(&lease.id, SystemTime::now())?;
        self.watch_port(Some(lease), None)?;
        let gone = elements(&self.config, lease);
        if gone.is_empty() {
            return Ok(());
        }
        {
            let mut table = self.table();
            if table.change(&Change { gone, ..Change::default() }).is_err() {
                self.rebuild(&mut table)?;
            }
        }
        conntrack::forget(&conntrack::host_port_ways(&self.config, lease), &[])
    }

    /// Waits for a link to vanish with its pod's namespace, but not for long.
    async fn wait_for_link(&self, host_if: &str) -> Result<()> {
        let deadline = Instant::now() + LINK_GRACE;
        loop {
            let gone = self.link_gone.notified();
            tokio::pin!(gone);
            gone.as_mut().enable();
            if bridge::get(&self.handle, host_if).await?.is_none() {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, gone).await.is_err() {
                return Ok(());
            }
        }
    }
}
