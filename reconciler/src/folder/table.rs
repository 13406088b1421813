//! What every file gave, and which file owns which object.
//!
//! Two files may name the same object. The first one by path owns it; the other one shows an error until the owner goes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::load::{self, Stamp};
use super::{FolderEvent, NetworkRules};
use crate::manifest::{self, Cause, Context, ManifestError, Object, ObjectRef};
use crate::pod::{Pod, Source};

/// Kind, namespace and name.
type Key = (&'static str, String, String);

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Pod(Arc<Pod>),
    ConfigMap(Arc<v1::ConfigMap>),
    Secret(Arc<v1::Secret>),
    Volume(Arc<v1::PersistentVolume>),
    Claim(Arc<v1::PersistentVolumeClaim>),
    Service(Arc<v1::Service>),
    Namespace(Arc<v1::Namespace>),
    NetworkPolicy(Arc<NetworkPolicy>),
}

struct Entry {
    stamp: Stamp,
    /// Objects with the name as written and their lines.
    items: Vec<(Key, usize, Item)>,
    errors: Vec<ManifestError>,
    /// What the file claims: its objects and, while it is broken, also those that it had before.
    claims: BTreeSet<Key>,
    /// The claims it lost to earlier files, as last told.
    lost: Vec<(Key, PathBuf)>,
}

impl Entry {
    /// Whether another reading of the file gave the same objects at the same places, and the same mistakes.
    fn says_the_same(&self, other: &Entry) -> bool {
        self.items == other.items && self.errors == other.errors
    }
}

pub(super) struct Table {
    context: Context,
    files: BTreeMap<PathBuf, Entry>,
    /// Which files claim an object; the first one owns it.
    claims: BTreeMap<Key, BTreeSet<PathBuf>>,
}

impl Table {
    pub fn new(context: Context) -> Table {
        Table { context, files: BTreeMap::new(), claims: BTreeMap::new() }
    }

    pub fn knows(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    pub fn files(&self) -> Vec<PathBuf> {
        self.files.keys().cloned().collect()
    }

    /// The known files of a folder.
    pub fn files_in(&self, dir: &Path) -> Vec<PathBuf> {
        self.files.keys().filter(|path| path.parent() == Some(dir)).cloned().collect()
    }

    /// Whether the file differs from what was read last.
    pub fn is_stale(&self, path: &Path) -> bool {
        self.files.get(path).is_none_or(|entry| entry.stamp != load::stamp(path))
    }

    /// Reads the file again and gives the events that follow, for this file and for those that it takes objects from or
    /// leaves objects to. A file that says what it said before gives none: it may have been read by a scan already when
    /// the event of its writing comes in, and a `touch` is no change.
    pub fn update(&mut self, path: &Path) -> Vec<FolderEvent> {
        // The stamp is taken first: a change during the reading makes it stale.
        let stamp = load::stamp(path);
        let mut before = self.files.remove(path);
        let Some(parsed) = load::load(path, &self.context) else {
            let Some(before) = before else { return Vec::new() };
            self.unclaim(path, &before.claims);
            let mut events = vec![FolderEvent::Removed { file: path.to_owned() }];
            events.extend(self.tell_others(&before.claims, path));
            return events;
        };
        let mut entry = Entry {
            stamp,
            items: Vec::new(),
            errors: parsed.errors,
            claims: BTreeSet::new(),
            lost: Vec::new(),
        };
        let known = before.as_ref().map(|entry| &entry.items[..]).unwrap_or_default();
        let mut seen = HashSet::new();
        for located in parsed.objects {
            let key = key_of(&located.value);
            if !seen.insert(key.clone()) {
                let reason = "the file has another object of this kind and name".to_owned();
                entry.errors.push(duplicate(path, located.line, &key, reason));
                continue;
            }
            let item = self.item(located.value, path, known, &key);
            entry.items.push((key, located.line, item));
        }
        entry.claims = entry.items.iter().map(|(key, ..)| key.clone()).collect();
        if let Some(mut before) = before.take_if(|before| before.says_the_same(&entry)) {
            before.stamp = entry.stamp;
            self.files.insert(path.to_owned(), before);
            return Vec::new();
        }
        let old_claims = before.map(|entry| entry.claims).unwrap_or_default();
        if !entry.errors.is_empty() {
            entry.claims.extend(old_claims.iter().cloned());
        }
        self.unclaim(path, &old_claims);
        for key in &entry.claims {
            self.claims.entry(key.clone()).or_default().insert(path.to_owned());
        }
        let touched: BTreeSet<_> = old_claims.union(&entry.claims).cloned().collect();
        self.files.insert(path.to_owned(), entry);
        let mut events = self.tell(path);
        events.extend(self.tell_others(&touched, path));
        events
    }

    /// The object as it is handed out. A pod that is the same as before stays the same, with its time of creation.
    fn item(&self, object: Object, path: &Path, known: &[(Key, usize, Item)], key: &Key) -> Item {
        match object {
            Object::Pod(pod) => {
                let pod = manifest::admit(*pod, Source::File(path.to_owned()), &self.context.node_name);
                let same = known.iter().find_map(|(known_key, _, item)| match item {
                    Item::Pod(known) if known_key == key && known.uid() == pod.uid() => Some(known.clone()),
                    _ => None,
                });
                Item::Pod(same.unwrap_or_else(|| Arc::new(pod)))
            }
            Object::ConfigMap(map) => Item::ConfigMap(Arc::new(*map)),
            Object::Secret(secret) => Item::Secret(Arc::new(*secret)),
            Object::PersistentVolume(volume) => Item::Volume(Arc::new(*volume)),
            Object::PersistentVolumeClaim(claim) => Item::Claim(Arc::new(*claim)),
            Object::Service(service) => Item::Service(Arc::new(*service)),
            Object::Namespace(namespace) => Item::Namespace(Arc::new(*namespace)),
            Object::NetworkPolicy(policy) => Item::NetworkPolicy(Arc::new(*policy)),
        }
    }

    fn unclaim(&mut self, path: &Path, keys: &BTreeSet<Key>) {
        for key in keys {
            if let Some(files) = self.claims.get_mut(key) {
                files.remove(path);
                if files.is_empty() {
                    self.claims.remove(key);
                }
            }
        }
    }

    /// Claims of a file that an earlier file has.
    fn lost(&self, path: &Path, entry: &Entry) -> Vec<(Key, PathBuf)> {
        let owner = |key: &Key| {
            self.claims.get(key).and_then(BTreeSet::first).filter(|owner| *owner != path).cloned()
        };
        entry.items.iter().filter_map(|(key, ..)| Some((key.clone(), owner(key)?))).collect()
    }

    /// Events for other files whose view has changed with these claims.
    fn tell_others(&mut self, keys: &BTreeSet<Key>, path: &Path) -> Vec<FolderEvent> {
        let others: BTreeSet<PathBuf> = keys
            .iter()
            .filter_map(|key| self.claims.get(key))
            .flatten()
            .filter(|other| *other != path)
            .cloned()
            .collect();
        let mut events = Vec::new();
        for other in others {
            let changed = self.files.get(&other).is_some_and(|entry| self.lost(&other, entry) != entry.lost);
            if changed {
                events.extend(self.tell(&other));
            }
        }
        events
    }

    /// The event that tells what a file gives now.
    fn tell(&mut self, path: &Path) -> Vec<FolderEvent> {
        let Some(entry) = self.files.get(path) else { return Vec::new() };
        let lost = self.lost(path, entry);
        let (mut pods, mut config_maps, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
        let (mut volumes, mut claims, mut services) = (Vec::new(), Vec::new(), Vec::new());
        let mut rules = NetworkRules::default();
        let mut errors = entry.errors.clone();
        for (key, line, item) in &entry.items {
            if let Some((_, owner)) = lost.iter().find(|(lost, _)| lost == key) {
                let reason = format!("{} already has a {} {}/{}", owner.display(), key.0, key.1, key.2);
                errors.push(duplicate(path, *line, key, reason));
                continue;
            }
            match item {
                Item::Pod(pod) => pods.push(pod.clone()),
                Item::ConfigMap(map) => config_maps.push(map.clone()),
                Item::Secret(secret) => secrets.push(secret.clone()),
                Item::Volume(volume) => volumes.push(volume.clone()),
                Item::Claim(claim) => claims.push(claim.clone()),
                Item::Service(service) => services.push(service.clone()),
                Item::Namespace(namespace) => rules.namespaces.push(namespace.clone()),
                Item::NetworkPolicy(policy) => rules.policies.push(policy.clone()),
            }
        }
        let broken = !errors.is_empty();
        if let Some(entry) = self.files.get_mut(path) {
            entry.lost = lost;
        }
        let file = path.to_owned();
        vec![FolderEvent::Loaded {
            file,
            pods,
            config_maps,
            secrets,
            volumes,
            claims,
            services,
            rules: Box::new(rules),
            errors,
            broken,
        }]
    }
}

fn key_of(object: &Object) -> Key {
    let key = |kind, meta: &ObjectMeta| {
        (
            kind,
            meta.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            meta.name.clone().unwrap_or_default(),
        )
    };
    match object {
        Object::Pod(pod) => key("Pod", &pod.metadata),
        Object::ConfigMap(map) => key("ConfigMap", &map.metadata),
        Object::Secret(secret) => key("Secret", &secret.metadata),
        Object::Service(service) => key("Service", &service.metadata),
        Object::NetworkPolicy(policy) => key("NetworkPolicy", &policy.metadata),
        Object::Namespace(namespace) => {
            ("Namespace", String::new(), namespace.metadata.name.clone().unwrap_or_default())
        }
        Object::PersistentVolumeClaim(claim) => key("PersistentVolumeClaim", &claim.metadata),
        Object::PersistentVolume(volume) => {
            ("PersistentVolume", String::new(), volume.metadata.name.clone().unwrap_or_default())
        }
    }
}

fn duplicate(path: &Path, line: usize, key: &Key, reason: String) -> ManifestError {
    ManifestError {
        file: Some(path.to_owned()),
        line: Some(line),
        field: Some("metadata.name".to_owned()),
        reason,
        hint: Some("rename or remove one of them".to_owned()),
        object: Some(ObjectRef { kind: key.0.to_owned(), namespace: key.1.clone(), name: key.2.clone() }),
        cause: Cause::FieldValueDuplicate,
        ..ManifestError::default()
    }
}
