//! The ConfigMaps and Secrets that pods may use, from manifest folders and from the API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use berth_reconciler::env::Lookup;
use berth_reconciler::pod::Pod;
use k8s_openapi::api::core::v1;

use crate::cluster::Tokens;
use crate::store::{Kind, ObjectStore};

/// Who put an object here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A manifest file.
    File(PathBuf),
    /// The API.
    Api,
    /// The agent itself.
    Agent,
    /// The API server of the cluster.
    Cluster,
}

/// A ConfigMap or a Secret.
#[derive(Clone, Debug)]
pub enum Object {
    /// A ConfigMap.
    ConfigMap(Arc<v1::ConfigMap>),
    /// A Secret.
    Secret(Arc<v1::Secret>),
}

/// Names an object: kind, namespace, name.
pub type ObjectKey = (Kind, String, String);

impl Object {
    /// Its key.
    pub fn key(&self) -> ObjectKey {
        let (kind, meta) = match self {
            Object::ConfigMap(o) => (Kind::ConfigMap, &o.metadata),
            Object::Secret(o) => (Kind::Secret, &o.metadata),
        };
        let namespace = meta.namespace.clone().unwrap_or_else(|| "default".into());
        (kind, namespace, meta.name.clone().unwrap_or_default())
    }

    fn same_data(&self, other: &Object) -> bool {
        match (self, other) {
            (Object::ConfigMap(a), Object::ConfigMap(b)) => a == b,
            (Object::Secret(a), Object::Secret(b)) => a == b,
            _ => false,
        }
    }
}

/// All of them. Clones share.
#[derive(Clone)]
pub struct Configs {
    objects: Arc<RwLock<BTreeMap<ObjectKey, (Owner, Object)>>>,
    store: ObjectStore,
    /// Tokens of service accounts, which a cluster gives.
    pub tokens: Tokens,
}

impl Configs {
    /// None yet; what is put here is shown in `store`.
    pub fn new(store: ObjectStore) -> Self {
        Self { objects: Arc::default(), store, tokens: Tokens::default() }
    }

    /// Puts an object in place of the one with its key; true if that changed anything.
    pub fn put(&self, owner: Owner, object: Object) -> bool {
        let key = object.key();
        {
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            if let Some((old_owner, old)) = objects.get(&key)
                && *old_owner == owner
                && old.same_data(&object)
            {
                return false;
            }
            objects.insert(key.clone(), (owner, object.clone()));
        }
        match &object {
            Object::ConfigMap(o) => self.store.put(key.0, &key.1, &key.2, o.as_ref()),
            Object::Secret(o) => self.store.put(key.0, &key.1, &key.2, o.as_ref()),
        };
        true
    }

    /// Which field of an object may not change because the one there is has `immutable: true`; none if it may be put.
    pub fn frozen(&self, object: &Object) -> Option<&'static str> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        match (&objects.get(&object.key())?.1, object) {
            (Object::ConfigMap(old), Object::ConfigMap(new)) if old.immutable == Some(true) => first([
                ("immutable", new.immutable == Some(true)),
                ("data", old.data == new.data),
                ("binaryData", old.binary_data == new.binary_data),
            ]),
            (Object::Secret(old), Object::Secret(new)) if old.immutable == Some(true) => {
                first([("immutable", new.immutable == Some(true)), ("data", old.data == new.data)])
            }
            _ => None,
        }
    }

    /// Removes an object if it is there and is that owner's.
    pub fn remove(&self, owner: &Owner, key: &ObjectKey) -> bool {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        if objects.get(key).is_none_or(|(o, _)| o != owner) {
            return false;
        }
        objects.remove(key);
        self.store.delete(key.0, &key.1, &key.2);
        true
    }

    /// The owner of an object.
    pub fn owner(&self, key: &ObjectKey) -> Option<Owner> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).get(key).map(|(o, _)| o.clone())
    }

    /// What a file has put here.
    pub fn of_file(&self, file: &std::path::Path) -> BTreeSet<ObjectKey> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects
            .iter()
            .filter(|(_, (owner, _))| matches!(owner, Owner::File(f) if f == file))
            .map(|(key, _)| key.clone())
            .collect()
    }
}

/// The first field that is not the same.
fn first<const N: usize>(same: [(&'static str, bool); N]) -> Option<&'static str> {
    same.into_iter().find(|(_, same)| !same).map(|(field, _)| field)
}

impl Lookup for Configs {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<v1::ConfigMap>> {
        let key = (Kind::ConfigMap, namespace.to_owned(), name.to_owned());
        match self.objects.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            Some((_, Object::ConfigMap(o))) => Some(o.clone()),
            _ => None,
        }
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<v1::Secret>> {
        let key = (Kind::Secret, namespace.to_owned(), name.to_owned());
        match self.objects.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            Some((_, Object::Secret(o))) => Some(o.clone()),
            _ => None,
        }
    }

    fn token(&self, pod: &Pod, source: &v1::ServiceAccountTokenProjection) -> Result<String, String> {
        self.tokens.get(pod, source)
    }
}

/// Whether the pod refers to that object anywhere.
pub fn uses(pod: &Pod, key: &ObjectKey) -> bool {
    if pod.namespace() != key.1 {
        return false;
    }
    let mut found = false;
    each_reference(pod, |kind, name| found |= kind == key.0 && name == key.2);
    found
}

/// The ConfigMaps and Secrets that a pod refers to.
pub fn references(pod: &Pod) -> BTreeSet<ObjectKey> {
    let mut keys = BTreeSet::new();
    each_reference(pod, |kind, name| {
        keys.insert((kind, pod.namespace().to_owned(), name.to_owned()));
    });
    keys
}

fn each_reference(pod: &Pod, mut visit: impl FnMut(Kind, &str)) {
    for container in pod.all_containers() {
        for from in container.env_from.iter().flatten() {
            from.config_map_ref.iter().for_each(|r| visit(Kind::ConfigMap, &r.name));
            from.secret_ref.iter().for_each(|r| visit(Kind::Secret, &r.name));
        }
        for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            from.config_map_key_ref.iter().for_each(|r| visit(Kind::ConfigMap, &r.name));
            from.secret_key_ref.iter().for_each(|r| visit(Kind::Secret, &r.name));
        }
    }
    for volume in pod.spec().volumes.iter().flatten() {
        volume.config_map.iter().for_each(|s| visit(Kind::ConfigMap, &s.name));
        volume
            .secret
            .iter()
            .filter_map(|s| s.secret_name.as_deref())
            .for_each(|name| visit(Kind::Secret, name));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            source.config_map.iter().for_each(|s| visit(Kind::ConfigMap, &s.name));
            source.secret.iter().for_each(|s| visit(Kind::Secret, &s.name));
        }
    }
    pod.spec().image_pull_secrets.iter().flatten().for_each(|r| visit(Kind::Secret, &r.name));
}
