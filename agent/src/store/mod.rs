//! The versioned objects that the API serves: the newest state of each, and a bounded history of changes to watch.
//!
//! Objects are kept as the JSON text that goes over the wire, not as trees: a node has few objects but must be small.
//! What nobody looks at for long, events and the history, is put away in fewer bytes still ([`ObjectStore::settle`]).
//! Versions begin at the clock's milliseconds, so that a version from before an agent's restart is
//! recognised as too old instead of being taken for one of this life.

mod packed;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use packed::{Chapter, Shelf};

/// Bytes of JSON that the history may hold on to. A watcher that falls behind further lists again.
const HISTORY_BYTES: usize = 1 << 20;

/// Of this kind objects that have not changed for long are packed: many are kept, and few are read again.
const PACKED: Kind = Kind::Event;

/// A group of the API, with the one version of it that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name, such as `networking.k8s.io`; empty for the core group.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
}

impl Group {
    /// Pods, nodes and whatever else has an `apiVersion` without a group.
    pub const CORE: Group = Group { name: "", version: "v1" };

    /// What is behind Services.
    pub const DISCOVERY: Group = Group { name: "discovery.k8s.io", version: "v1" };

    /// Who is who.
    pub const CERTIFICATES: Group = Group { name: "certificates.k8s.io", version: "v1" };

    /// Who may talk to whom.
    pub const NETWORKING: Group = Group { name: "networking.k8s.io", version: "v1" };

    /// Who holds what for how long.
    pub const COORDINATION: Group = Group { name: "coordination.k8s.io", version: "v1" };

    /// What nodes can run pods with.
    pub const NODE: Group = Group { name: "node.k8s.io", version: "v1" };

    /// Which pods matter more.
    pub const SCHEDULING: Group = Group { name: "scheduling.k8s.io", version: "v1" };

    /// The groups of stored kinds beside the core one, in the order of discovery.
    pub const NAMED: [Group; 6] = [
        Group::CERTIFICATES,
        Group::COORDINATION,
        Group::DISCOVERY,
        Group::NETWORKING,
        Group::NODE,
        Group::SCHEDULING,
    ];

    /// Where its objects are: `/api/v1`, `/apis/networking.k8s.io/v1`.
    pub fn path(self) -> String {
        if self == Group::CORE { "/api/v1".to_owned() } else { format!("/apis/{self}") }
    }
}

impl fmt::Display for Group {
    /// As `apiVersion` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            "" => f.write_str(self.version),
            name => write!(f, "{name}/{}", self.version),
        }
    }
}

/// The kinds of objects this node keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1 Pod`.
    Pod,
    /// `v1 Event`.
    Event,
    /// `v1 Node`, not in a namespace.
    Node,
    /// `v1 ConfigMap`.
    ConfigMap,
    /// `v1 Secret`.
    Secret,
    /// `v1 Namespace`, not in a namespace.
    Namespace,
    /// `v1 PersistentVolume`, not in a namespace.
    PersistentVolume,
    /// `v1 PersistentVolumeClaim`.
    PersistentVolumeClaim,
    /// `v1 Service`.
    Service,
    /// `v1 Endpoints`.
    Endpoints,
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice,
    /// `certificates.k8s.io/v1 CertificateSigningRequest`, not in a namespace.
    CertificateSigningRequest,
    /// `networking.k8s.io/v1 NetworkPolicy`.
    NetworkPolicy,
    /// `coordination.k8s.io/v1 Lease`.
    Lease,
    /// `v1 ServiceAccount`.
    ServiceAccount,
    /// `node.k8s.io/v1 RuntimeClass`, not in a namespace.
    RuntimeClass,
    /// `scheduling.k8s.io/v1 PriorityClass`, not in a namespace.
    PriorityClass,
}

impl Kind {
    /// Every kind, in the order of discovery.
    pub const ALL: [Kind; 17] = [
        Kind::ConfigMap,
        Kind::Endpoints,
        Kind::Event,
        Kind::Namespace,
        Kind::Node,
        Kind::PersistentVolumeClaim,
        Kind::PersistentVolume,
        Kind::Pod,
        Kind::Secret,
        Kind::ServiceAccount,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::CertificateSigningRequest,
        Kind::NetworkPolicy,
        Kind::Lease,
        Kind::RuntimeClass,
        Kind::PriorityClass,
    ];

    /// The `kind` field.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Pod => "Pod",
            Kind::Event => "Event",
            Kind::Node => "Node",
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
            Kind::Namespace => "Namespace",
            Kind::PersistentVolume => "PersistentVolume",
            Kind::PersistentVolumeClaim => "PersistentVolumeClaim",
            Kind::Service => "Service",
            Kind::Endpoints => "Endpoints",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::CertificateSigningRequest => "CertificateSigningRequest",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::Lease => "Lease",
            Kind::ServiceAccount => "ServiceAccount",
            Kind::RuntimeClass => "RuntimeClass",
            Kind::PriorityClass => "PriorityClass",
        }
    }

    /// The group it belongs to.
    pub fn group(self) -> Group {
        match self {
            Kind::EndpointSlice => Group::DISCOVERY,
            Kind::CertificateSigningRequest => Group::CERTIFICATES,
            Kind::NetworkPolicy => Group::NETWORKING,
            Kind::Lease => Group::COORDINATION,
            Kind::RuntimeClass => Group::NODE,
            Kind::PriorityClass => Group::SCHEDULING,
            _ => Group::CORE,
        }
    }

    /// The name in error messages: `pods`, `networkpolicies.networking.k8s.io`.
    pub fn qualified(self) -> String {
        match self.group().name {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    /// The type in error messages: `Pod`, `NetworkPolicy.networking.k8s.io`.
    pub fn typed(self) -> String {
        match self.group().name {
            "" => self.as_str().to_owned(),
            group => format!("{}.{group}", self.as_str()),
        }
    }

    /// The name in URLs.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Pod => "pods",
            Kind::Event => "events",
            Kind::Node => "nodes",
            Kind::ConfigMap => "configmaps",
            Kind::Secret => "secrets",
            Kind::Namespace => "namespaces",
            Kind::PersistentVolume => "persistentvolumes",
            Kind::PersistentVolumeClaim => "persistentvolumeclaims",
            Kind::Service => "services",
            Kind::Endpoints => "endpoints",
            Kind::EndpointSlice => "endpointslices",
            Kind::CertificateSigningRequest => "certificatesigningrequests",
            Kind::NetworkPolicy => "networkpolicies",
            Kind::Lease => "leases",
            Kind::ServiceAccount => "serviceaccounts",
            Kind::RuntimeClass => "runtimeclasses",
            Kind::PriorityClass => "priorityclasses",
        }
    }

    /// What a person types for it.
    pub fn short_names(self) -> &'static [&'static str] {
        match self {
            Kind::Pod => &["po"],
            Kind::Event => &["ev"],
            Kind::Node => &["no"],
            Kind::ConfigMap => &["cm"],
            Kind::Secret | Kind::EndpointSlice | Kind::Lease | Kind::RuntimeClass => &[],
            Kind::ServiceAccount => &["sa"],
            Kind::PriorityClass => &["pc"],
            Kind::CertificateSigningRequest => &["csr"],
            Kind::Namespace => &["ns"],
            Kind::NetworkPolicy => &["netpol"],
            Kind::PersistentVolume => &["pv"],
            Kind::PersistentVolumeClaim => &["pvc"],
            Kind::Service => &["svc"],
            Kind::Endpoints => &["ep"],
        }
    }

    /// Whether its objects live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(
            self,
            Kind::Node
                | Kind::Namespace
                | Kind::PersistentVolume
                | Kind::CertificateSigningRequest
                | Kind::RuntimeClass
                | Kind::PriorityClass
        )
    }

    /// The kind with that name in a group's URLs.
    pub fn from_plural(group: Group, plural: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.group() == group && kind.plural() == plural)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One version of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds that have none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.resourceVersion` as a number.
    pub version: u64,
    /// The whole object as JSON text.
    pub json: Bytes,
}

impl Object {
    /// The object as a tree.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("the store holds only JSON that it wrote itself")
    }
}

/// What happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The version of the change; changes of all kinds are numbered in one sequence.
    pub version: u64,
    /// The object before, none if it is new.
    pub before: Option<Arc<Object>>,
    /// The object after, none if it is gone.
    pub after: Option<Arc<Object>>,
    /// For a deletion the last state, with the deletion's version.
    pub last: Arc<Object>,
}

/// The version asked for is not in the history any more (or was never given out): list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Gone {
    /// What was asked for.
    pub asked: u64,
    /// The oldest that can be watched from.
    pub oldest: u64,
}

type Key = (Kind, String, String);

fn key(object: &Object) -> Key {
    (object.kind, object.namespace.clone(), object.name.clone())
}

#[derive(Debug)]
struct State {
    version: u64,
    /// What is not on a shelf.
    objects: BTreeMap<Key, Arc<Object>>,
    /// Objects of the kind [`PACKED`] that are not in `objects`.
    shelves: Vec<Arc<Shelf>>,
    /// Changes before those in `history`.
    chapters: VecDeque<Chapter>,
    history: VecDeque<Change>,
    /// Bytes of JSON in both.
    history_bytes: usize,
    /// Every change after this version is in one of both.
    oldest: u64,
    limit: usize,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// The objects. Clones share one store.
#[derive(Clone, Debug)]
pub struct ObjectStore(Arc<Inner>);

impl Default for ObjectStore {
    fn default() -> Self {
        Self::new()
    }
}

impl ObjectStore {
    /// An empty store whose versions begin at the clock's milliseconds.
    pub fn new() -> ObjectStore {
        let now = jiff::Timestamp::now().as_millisecond();
        Self::starting_at(u64::try_from(now).unwrap_or(1), HISTORY_BYTES)
    }

    /// An empty store at a given version that keeps up to `history_bytes` of JSON as history.
    pub fn starting_at(version: u64, history_bytes: usize) -> ObjectStore {
        let state = State {
            version,
            objects: BTreeMap::new(),
            shelves: Vec::new(),
            chapters: VecDeque::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            oldest: version,
            limit: history_bytes,
        };
        ObjectStore(Arc::new(Inner { state: Mutex::new(state), changed: watch::channel(version).0 }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole, so a panic elsewhere does not spoil it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `value` the newest state of an object and returns its version. An object that does not differ keeps
    /// its version, and nobody is told. `apiVersion`, `kind`, name, namespace and version are filled in.
    ///
    /// # Panics
    /// When `value` does not serialise to a JSON object: objects are Kubernetes types.
    pub fn put(&self, kind: Kind, namespace: &str, name: &str, value: &impl Serialize) -> u64 {
        self.put_if(kind, namespace, name, value, |_| true).unwrap_or_default()
    }

    /// The same if the object there is has this uid: none if it is gone, or another.
    pub fn replace(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        value: &impl Serialize,
    ) -> Option<u64> {
        let is_it = |before: Option<&Object>| before.is_some_and(|o| o.value()["metadata"]["uid"] == uid);
        self.put_if(kind, namespace, name, value, is_it)
    }

    fn put_if(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        value: &impl Serialize,
        wanted: impl Fn(Option<&Object>) -> bool,
    ) -> Option<u64> {
        let mut value = serde_json::to_value(value).expect("Kubernetes types serialise");
        let namespace = if kind.namespaced() { namespace } else { "" };
        complete(&mut value, kind, namespace, name);
        let mut state = self.lock();
        state.unpack(kind, namespace, name);
        let key = (kind, namespace.to_owned(), name.to_owned());
        let before = state.objects.get(&key).cloned();
        if !wanted(before.as_deref()) {
            return None;
        }
        if let Some(before) = &before {
            set_version(&mut value, before.version);
            if text(&value) == before.json {
                return Some(before.version);
            }
        }
        state.version += 1;
        let version = state.version;
        set_version(&mut value, version);
        let json = text(&value);
        let object = Arc::new(Object { kind, namespace: key.1.clone(), name: key.2.clone(), version, json });
        state.objects.insert(key, object.clone());
        state.record(Change { version, before, after: Some(object.clone()), last: object });
        drop(state);
        self.0.changed.send_replace(version);
        Some(version)
    }

    /// Removes an object; false if there was none.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        let mut state = self.lock();
        let namespace = if kind.namespaced() { namespace } else { "" };
        state.unpack(kind, namespace, name);
        let Some(before) = state.objects.remove(&(kind, namespace.to_owned(), name.to_owned())) else {
            return false;
        };
        state.version += 1;
        let version = state.version;
        let mut value = before.value();
        set_version(&mut value, version);
        let last = Object { version, json: text(&value), ..Object::clone(&before) };
        state.record(Change { version, before: Some(before), after: None, last: Arc::new(last) });
        drop(state);
        self.0.changed.send_replace(version);
        true
    }

    /// The newest state of one object.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let namespace = if kind.namespaced() { namespace } else { "" };
        let state = self.lock();
        let there = state.objects.get(&(kind, namespace.to_owned(), name.to_owned())).cloned();
        if there.is_some() || kind != PACKED {
            return there;
        }
        let shelves: Vec<_> = state.shelves.iter().filter(|s| s.may_have(namespace, name)).cloned().collect();
        drop(state);
        shelves.iter().flat_map(|shelf| shelf.look()).find(|o| o.namespace == namespace && o.name == name)
    }

    /// All objects of a kind, in one namespace or all, ordered by namespace and name, and the version of this list.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> (Vec<Arc<Object>>, u64) {
        let state = self.lock();
        let mut objects = state.unpacked(kind, namespace);
        let version = state.version;
        let shelves = if kind == PACKED { state.shelves.clone() } else { Vec::new() };
        drop(state);
        if !shelves.is_empty() {
            let packed = shelves.iter().flat_map(|shelf| shelf.look());
            objects.extend(packed.filter(|o| namespace.is_none_or(|ns| ns == o.namespace)));
            objects.sort_unstable_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        }
        (objects, version)
    }

    /// Puts what is hardly ever asked for, events and the history, into as little memory as it can be in. Worth its few
    /// milliseconds whenever nothing has changed for some seconds.
    pub fn settle(&self) {
        let (found, changes, events) = {
            let state = self.lock();
            (state.settled(), state.history.clone(), state.unpacked(PACKED, None))
        };
        let (shelf, chapter) = (Shelf::of(&events), Chapter::of(&changes));
        let mut state = self.lock();
        // Otherwise it is not quiet: the next time will do.
        if state.settled() != found {
            return;
        }
        if let Some(shelf) = shelf {
            state.shelves.push(Arc::new(shelf));
            for event in events {
                state.objects.remove(&key(&event));
            }
        }
        if let Some(chapter) = chapter {
            state.chapters.push_back(chapter);
            state.history = VecDeque::new();
        }
    }

    /// Forgets the changes so far: who has not seen them all must list again.
    pub fn forget_history(&self) {
        let mut state = self.lock();
        state.chapters = VecDeque::new();
        state.history = VecDeque::new();
        state.history_bytes = 0;
        state.oldest = state.version;
    }

    /// The version of the newest change.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Is told the version of every change, of all kinds.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Changes of one kind after a version.
    ///
    /// # Errors
    /// [`Gone`] when the history does not reach back that far, or the version lies in the future.
    pub fn watch(&self, kind: Kind, since: u64) -> Result<Watch, Gone> {
        let state = self.lock();
        state.reachable(since)?;
        Ok(Watch { store: self.clone(), kind, cursor: since, changed: self.0.changed.subscribe() })
    }
}

impl State {
    fn record(&mut self, change: Change) {
        self.history_bytes += change.last.json.len();
        self.history.push_back(change);
        while self.history_bytes > self.limit {
            if let Some(old) = self.chapters.pop_front() {
                (self.oldest, self.history_bytes) = (old.last, self.history_bytes - old.bytes);
            } else if self.history.len() > 1
                && let Some(old) = self.history.pop_front()
            {
                (self.oldest, self.history_bytes) = (old.version, self.history_bytes - old.last.json.len());
            } else {
                return;
            }
        }
    }

    /// The objects of a kind, in one namespace or all, that are not on a shelf.
    fn unpacked(&self, kind: Kind, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let from = (kind, namespace.unwrap_or_default().to_owned(), String::new());
        self.objects
            .range(from..)
            .map(|(_, object)| object)
            .take_while(|o| o.kind == kind && namespace.is_none_or(|ns| ns == o.namespace))
            .cloned()
            .collect()
    }

    /// Differs whenever something has changed, been forgotten or been taken out again.
    fn settled(&self) -> [u64; 4] {
        [self.version, self.oldest, self.shelves.len() as u64, self.chapters.len() as u64]
    }

    /// An object of that name, if there is one, is in `objects` from then on.
    fn unpack(&mut self, kind: Kind, namespace: &str, name: &str) {
        if kind != PACKED {
            return;
        }
        let objects = &mut self.objects;
        self.shelves.retain(|shelf| {
            let stays = !shelf.may_have(namespace, name);
            if !stays {
                objects.extend(shelf.take().map(|object| (key(&object), object)));
            }
            stays
        });
    }

    /// All changes after a version are in `history` from then on.
    fn reopen(&mut self, since: u64) {
        while let Some(chapter) = self.chapters.pop_back() {
            if chapter.last <= since {
                self.chapters.push_back(chapter);
                return;
            }
            for change in chapter.changes().rev() {
                self.history.push_front(change);
            }
        }
    }

    fn reachable(&self, since: u64) -> Result<(), Gone> {
        if since < self.oldest || since > self.version {
            return Err(Gone { asked: since, oldest: self.oldest });
        }
        Ok(())
    }
}

/// A position in the sequence of changes of one kind.
#[derive(Debug)]
pub struct Watch {
    store: ObjectStore,
    kind: Kind,
    cursor: u64,
    changed: watch::Receiver<u64>,
}

impl Watch {
    /// The version up to which every change has been seen.
    pub fn version(&self) -> u64 {
        self.cursor
    }

    /// The next change, if there is one already.
    ///
    /// # Errors
    /// [`Gone`] when this watcher has fallen behind the history.
    pub fn try_next(&mut self) -> Result<Option<Change>, Gone> {
        let mut state = self.store.lock();
        state.reachable(self.cursor)?;
        state.reopen(self.cursor);
        let start = state.history.partition_point(|change| change.version <= self.cursor);
        let found = state.history.iter().skip(start).find(|change| change.last.kind == self.kind);
        self.cursor = found.map_or(state.version, |change| change.version);
        Ok(found.cloned())
    }

    /// The next change; waits for one. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Gone`] when this watcher has fallen behind the history.
    pub async fn next(&mut self) -> Result<Change, Gone> {
        loop {
            self.changed.mark_unchanged();
            if let Some(change) = self.try_next()? {
                return Ok(change);
            }
            // The sender lives in the store that this watcher holds, so it cannot be gone.
            let _ = self.changed.changed().await;
        }
    }
}

fn complete(value: &mut Value, kind: Kind, namespace: &str, name: &str) {
    if !value.get("metadata").is_some_and(Value::is_object) {
        value["metadata"] = json!({});
    }
    value["apiVersion"] = json!(kind.group().to_string());
    value["kind"] = json!(kind.as_str());
    value["metadata"]["name"] = json!(name);
    if kind.namespaced() {
        value["metadata"]["namespace"] = json!(namespace);
    }
}

/// The JSON text of a tree, in no more memory than it needs.
fn text(value: &Value) -> Bytes {
    Bytes::from(value.to_string().into_boxed_str().into_boxed_bytes())
}

fn set_version(value: &mut Value, version: u64) {
    value["metadata"]["resourceVersion"] = json!(version.to_string());
}

#[cfg(test)]
mod tests;
