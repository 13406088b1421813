//! Services: kept, given addresses, and led to the ready pods of this node.
//!
//! [`allocate`] gives a Service its addresses and node ports, of the families that [`families`] says; [`derive`] and
//! [`slices`] say what follows from it and its pods. This file keeps all that, and [`Services::run`] brings every change into the network and the API at once.

mod allocate;
mod derive;
mod families;
mod ranges;
mod slices;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_netplug::Network;
use berth_reconciler::pod::Pod;
use berth_reconciler::services::{Candidate, Endpoint, endpoints, is_alias};
use berth_reconciler::status::time;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::backend::objects::Objects;
use crate::store::{Kind, ObjectStore};
use allocate::Taken;
pub use ranges::Ranges;

/// Namespace and name.
type Key = (String, String);

/// How long after a failure the network is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Why a Service is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("not found")]
    NotFound,
    /// There is one.
    #[error("already exists")]
    Exists,
    /// Only its owner may change it.
    #[error("{0}")]
    Owner(String),
    /// This field may not be so.
    #[error("{field}: {why}")]
    Field {
        /// Its path.
        field: String,
        /// Why.
        why: String,
    },
    /// It cannot be stored.
    #[error("store the object: {0}")]
    Storage(std::io::Error),
    /// A manifest file's object is in force, but not stored; the next reading of the file tries again.
    #[error(
        "it is in force, but cannot be stored, so a new agent will take it for a new one, perhaps with another address: {0}"
    )]
    Unstored(std::io::Error),
}

/// A Service as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    #[serde(with = "crate::shared")]
    object: Arc<v1::Service>,
    /// The manifest file that it comes from; none if it came by the API.
    file: Option<PathBuf>,
    /// Whether this agent has seen its file.
    #[serde(skip)]
    confirmed: bool,
    /// Whether it could not be stored.
    #[serde(skip)]
    unstored: bool,
}

/// A pod as it was published last.
struct Seen {
    pod: Arc<Pod>,
    status: Arc<v1::PodStatus>,
    ending: bool,
}

#[derive(Default)]
struct State {
    services: BTreeMap<Key, Record>,
    pods: HashMap<String, Seen>,
    /// Who is behind each.
    endpoints: BTreeMap<Key, Vec<Endpoint>>,
    /// What the API shows of that.
    shown: Shown,
}

/// Objects that follow from Services and pods, by their own names.
#[derive(Default)]
struct Shown {
    endpoints: BTreeMap<Key, v1::Endpoints>,
    slices: BTreeMap<Key, EndpointSlice>,
}

/// The Services of this node. Clones share.
#[derive(Clone)]
pub struct Services(Arc<Inner>);

struct Inner {
    /// Of their addresses; none if the pods' network is not our own, where nobody leads packets to pods.
    ranges: Option<Ranges>,
    node: String,
    objects: Objects,
    store: ObjectStore,
    state: Mutex<State>,
    changed: Notify,
}

fn key_of(service: &v1::Service) -> Key {
    let meta = &service.metadata;
    (meta.namespace.clone().unwrap_or_else(|| "default".into()), meta.name.clone().unwrap_or_default())
}

impl Services {
    /// None yet. They get addresses of `ranges` (without them all must be headless), are stored below `root` and shown in `store`.
    pub fn new(root: &Path, ranges: Option<Ranges>, node: &str, store: ObjectStore) -> Self {
        Self(Arc::new(Inner {
            ranges,
            node: node.to_owned(),
            objects: Objects::new(root),
            store,
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every step leaves the state whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what an earlier agent has stored.
    pub fn load(&self) {
        let mut state = self.lock();
        for record in self.0.objects.all::<Record>(Kind::Service) {
            let key = key_of(&record.object);
            self.0.store.put(Kind::Service, &key.0, &key.1, record.object.as_ref());
            state.services.insert(key, record);
        }
    }

    /// Takes what a manifest file holds now; the rest of what it gave before goes, unless it is `broken`. Gives what of
    /// it cannot be done.
    pub fn file_loaded(&self, file: &Path, services: Vec<Arc<v1::Service>>, broken: bool) -> Vec<String> {
        let mut state = self.lock();
        let mut errors = Vec::new();
        let kept: Vec<Key> = services.iter().map(|service| key_of(service)).collect();
        let left_out: Vec<Key> = state
            .services
            .iter()
            .filter(|(key, record)| record.file.as_deref() == Some(file) && !broken && !kept.contains(key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in left_out {
            self.remove(&mut state, &key);
        }
        for service in services {
            let key = key_of(&service);
            let put = match state.services.get(&key) {
                Some(Record { file: None, .. }) => {
                    Err(Refusal::Owner("it was made by the API; delete it there first".into()))
                }
                _ => self.put(&mut state, Arc::unwrap_or_clone(service), Some(file), false).map(drop),
            };
            if let Err(refusal) = put {
                errors.push(format!("Service {}/{}: {refusal}", key.0, key.1));
            }
        }
        for record in state.services.values_mut().filter(|record| record.file.as_deref() == Some(file)) {
            record.confirmed = true;
        }
        errors
    }

    /// Every manifest has been read: what no file wants any more goes.
    pub fn synced(&self) {
        let mut state = self.lock();
        let unwanted = state.services.iter().filter(|(_, record)| record.file.is_some() && !record.confirmed);
        let unwanted: Vec<Key> = unwanted.map(|(key, _)| key.clone()).collect();
        for key in unwanted {
            self.remove(&mut state, &key);
        }
    }

    /// Creates or replaces a Service for the API; gives it as it is afterwards, or would be.
    ///
    /// # Errors
    /// What the API server would refuse, or a disk that cannot be written.
    pub fn put_from_api(
        &self,
        service: v1::Service,
        create_only: bool,
        dry_run: bool,
    ) -> Result<Arc<v1::Service>, Refusal> {
        let key = key_of(&service);
        let mut state = self.lock();
        if let Some(known) = state.services.get(&key) {
            if create_only {
                return Err(Refusal::Exists);
            }
            owned_by_api(known)?;
            addresses_stay(&known.object, &service)?;
        }
        self.put(&mut state, service, None, dry_run)
    }

    /// Removes a Service for the API.
    ///
    /// # Errors
    /// There is none, or it comes from a file.
    pub fn delete(&self, namespace: &str, name: &str) -> Result<(), Refusal> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut state = self.lock();
        owned_by_api(state.services.get(&key).ok_or(Refusal::NotFound)?)?;
        self.remove(&mut state, &key);
        Ok(())
    }

    fn put(
        &self,
        state: &mut State,
        mut service: v1::Service,
        file: Option<&Path>,
        dry_run: bool,
    ) -> Result<Arc<v1::Service>, Refusal> {
        let key = key_of(&service);
        let old = state.services.get(&key).map(|record| record.object.clone());
        let others = state.services.iter().filter(|(other, _)| **other != key);
        let taken = Taken::by(others.map(|(_, record)| record.object.as_ref()));
        // A file says all there is, while the API is told what is to be different.
        allocate::fill_in(&mut service, old.as_deref(), file.is_none(), &taken, self.0.ranges.as_ref())?;
        identify(&mut service, old.as_deref());
        let object = Arc::new(service);
        let file = file.map(Path::to_owned);
        let mut record = Record { object: object.clone(), file, confirmed: true, unstored: false };
        if dry_run || state.services.get(&key) == Some(&record) {
            return Ok(object);
        }
        let saved = self.0.objects.save(Kind::Service, &key.0, &key.1, &record);
        let saved = if record.file.is_none() {
            saved.map_err(Refusal::Storage)?;
            Ok(())
        } else {
            // What a file says is known without the copy.
            saved.map_err(Refusal::Unstored)
        };
        record.unstored = saved.is_err();
        self.0.store.put(Kind::Service, &key.0, &key.1, object.as_ref());
        state.services.insert(key, record);
        self.0.changed.notify_one();
        saved.map(|()| object)
    }

    fn remove(&self, state: &mut State, key: &Key) {
        state.services.remove(key);
        self.0.objects.remove(Kind::Service, &key.0, &key.1);
        self.0.store.delete(Kind::Service, &key.0, &key.1);
        self.0.changed.notify_one();
    }

    /// A pod's status is this now.
    pub fn pod_changed(&self, pod: &Arc<Pod>, ending: bool, status: &Arc<v1::PodStatus>) {
        let seen = Seen { pod: pod.clone(), status: status.clone(), ending };
        let mut state = self.lock();
        state.pods.insert(pod.uid().to_owned(), seen);
        self.pods_differ(&state);
    }

    /// A pod is no more.
    pub fn pod_gone(&self, uid: &str) {
        let mut state = self.lock();
        state.pods.remove(uid);
        self.pods_differ(&state);
    }

    /// Without any Service nothing follows from the pods.
    fn pods_differ(&self, state: &State) {
        if !state.services.is_empty() {
            self.0.changed.notify_one();
        }
    }

    /// The Services of a namespace, by name.
    pub fn of(&self, namespace: &str) -> Vec<Arc<v1::Service>> {
        let state = self.lock();
        let here = state.services.iter().filter(|(key, _)| key.0 == namespace);
        here.map(|(_, record)| record.object.clone()).collect()
    }

    /// Shows every Service to `visit`, with who is behind it.
    pub fn each(&self, mut visit: impl FnMut(&v1::Service, &[Endpoint])) {
        let state = self.lock();
        for (key, record) in &state.services {
            visit(&record.object, state.endpoints.get(key).map_or(&[], Vec::as_slice));
        }
    }

    /// Brings changes into the network and the API, for ever. To be called once all pods and Services are known that an
    /// earlier agent has left: until then the network goes on with what that one told it.
    pub async fn run(self, network: Network) {
        loop {
            let wanted = self.derive();
            // The network first: to tell takes longer, and does not matter as much.
            let led = network.set_services(wanted).await;
            self.show();
            if let Err(error) = led {
                tracing::error!(%error, "cannot bring Services into the pod network; trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            self.0.changed.notified().await;
        }
    }

    /// Finds who is behind each Service, and gives what the network is to do.
    fn derive(&self) -> Vec<berth_netplug::Service> {
        let mut state = self.lock();
        let (mut wanted, mut behind) = (Vec::new(), BTreeMap::new());
        for (key, record) in &state.services {
            let candidates = state.pods.values().map(|seen| Candidate {
                pod: &seen.pod.object,
                status: &seen.status,
                ending: seen.ending,
            });
            let found = endpoints(&record.object, candidates);
            if self.0.ranges.is_some() {
                wanted.extend(derive::for_network(&record.object, &found));
            }
            behind.insert(key.clone(), found);
        }
        state.endpoints = behind;
        wanted
    }

    /// Brings what [`Self::derive`] found into the API.
    fn show(&self) {
        let mut state = self.lock();
        let mut shown = Shown::default();
        for (key, found) in &state.endpoints {
            let Some(service) = state.services.get(key).map(|record| &record.object) else { continue };
            for slice in slices::of(service, found, &self.0.node) {
                let name = slice.metadata.name.clone().unwrap_or_default();
                shown.slices.insert((key.0.clone(), name), slice);
            }
            if !service.spec.as_ref().is_some_and(is_alias) {
                shown.endpoints.insert(key.clone(), derive::shown(service, found, &self.0.node));
            }
        }
        self.replace(Kind::Endpoints, &state.shown.endpoints, &shown.endpoints);
        self.replace(Kind::EndpointSlice, &state.shown.slices, &shown.slices);
        state.shown = shown;
    }

    fn replace<T: PartialEq + Serialize>(&self, kind: Kind, old: &BTreeMap<Key, T>, new: &BTreeMap<Key, T>) {
        for (key, object) in new.iter().filter(|(key, object)| old.get(*key) != Some(object)) {
            self.0.store.put(kind, &key.0, &key.1, object);
        }
        for key in old.keys().filter(|key| !new.contains_key(*key)) {
            self.0.store.delete(kind, &key.0, &key.1);
        }
    }
}

fn owned_by_api(record: &Record) -> Result<(), Refusal> {
    match &record.file {
        None => Ok(()),
        Some(path) => Err(Refusal::Owner(format!(
            "it comes from the manifest {}; change or remove that file",
            path.display()
        ))),
    }
}

/// Addresses that are given away cannot be changed; the second one can be given up.
fn addresses_stay(old: &v1::Service, new: &v1::Service) -> Result<(), Refusal> {
    let addresses = |service: &v1::Service| -> Vec<String> {
        let Some(spec) = &service.spec else { return Vec::new() };
        let first = spec.cluster_ip.iter().filter(|ip| !ip.is_empty()).take(1);
        let others = spec.cluster_ips.iter().flatten().skip(1);
        first.chain(others).cloned().collect()
    };
    if new.spec.as_ref().is_some_and(is_alias) {
        return Ok(());
    }
    for (i, (old, new)) in addresses(old).iter().zip(addresses(new)).enumerate() {
        if *old != new {
            let why = format!("Invalid value: {new:?}: field is immutable");
            return Err(Refusal::Field { field: format!("spec.clusterIPs[{i}]"), why });
        }
    }
    Ok(())
}

/// Gives a Service its uid and creation time, or those of the one it replaces, and the status that it always has.
fn identify(service: &mut v1::Service, old: Option<&v1::Service>) {
    let now = || time(Timestamp::now());
    let meta = &mut service.metadata;
    let before = old.map(|old| &old.metadata);
    meta.uid = before.and_then(|old| old.uid.clone()).or_else(|| Some(uuid::Uuid::new_v4().to_string()));
    meta.creation_timestamp = before.and_then(|old| old.creation_timestamp.clone()).or_else(|| Some(now()));
    service.status = Some(v1::ServiceStatus {
        load_balancer: Some(v1::LoadBalancerStatus::default()),
        ..Default::default()
    });
}
