//! Objects of one kind that come from manifest files or by the API, are stored, and are shown in the API.

use berth_reconciler::status::time;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::objects::Objects;
use crate::store::{Kind, ObjectStore};

/// Namespace, empty for kinds that have none, and name.
pub(super) type Key = (String, String);

/// Why an object is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("not found")]
    NotFound,
    /// There is one.
    #[error("already exists")]
    Exists,
    /// It may not be changed or not be here, and this says why.
    #[error("{0}")]
    Forbidden(String),
    /// It cannot be stored.
    #[error("store the object: {0}")]
    Storage(std::io::Error),
    /// A manifest file's object is in force, but not stored; the next reading of the file tries again.
    #[error("it is in force, but cannot be stored, so a new agent will take it for a new object: {0}")]
    Unstored(std::io::Error),
}

/// What a kind has to be for being kept.
pub(super) trait Object:
    Metadata<Ty = ObjectMeta> + Clone + PartialEq + Serialize + DeserializeOwned
{
    const STORE_KIND: Kind;

    /// Whether the other one wants the same, whatever its metadata says.
    fn wants_the_same(&self, other: &Self) -> bool;
}

/// An object as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record<T> {
    object: T,
    /// The manifest file that it comes from; none if it came by the API.
    file: Option<PathBuf>,
    /// Whether this agent has seen its file.
    #[serde(skip)]
    confirmed: bool,
    /// Whether it could not be stored.
    #[serde(skip)]
    unstored: bool,
}

/// The objects of a kind.
pub(super) struct Kept<T> {
    objects: Objects,
    store: ObjectStore,
    records: BTreeMap<Key, Record<T>>,
}

pub(super) fn key_of<T: Object>(object: &T) -> Key {
    let meta = object.metadata();
    let namespace =
        if T::STORE_KIND.namespaced() { meta.namespace.clone().unwrap_or_default() } else { String::new() };
    (namespace, meta.name.clone().unwrap_or_default())
}

impl<T: Object> Kept<T> {
    /// None yet; they are stored below `root` and shown in `store`.
    pub fn new(root: &Path, store: ObjectStore) -> Self {
        Self { objects: Objects::new(root), store, records: BTreeMap::new() }
    }

    /// Reads what an earlier agent has stored.
    pub fn load(&mut self) {
        for record in self.objects.all::<Record<T>>(T::STORE_KIND) {
            let key = key_of(&record.object);
            self.store.put(T::STORE_KIND, &key.0, &key.1, &record.object);
            self.records.insert(key, record);
        }
    }

    /// All of them, in the order of namespaces and names.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.records.values().map(|record| &record.object)
    }

    /// The keys of those that come from files, and of which it is not known yet whether the files still have them.
    fn of_file(&self, file: &Path) -> Vec<Key> {
        let here = self.records.iter().filter(|(_, record)| record.file.as_deref() == Some(file));
        here.map(|(key, _)| key.clone()).collect()
    }

    /// Takes what a manifest file holds now; the rest of what it gave before goes, unless it is `broken`. Gives what of it
    /// cannot be done.
    pub fn file_loaded(&mut self, file: &Path, objects: &[Arc<T>], broken: bool) -> Vec<String> {
        let kept: Vec<Key> = objects.iter().map(|object| key_of(object.as_ref())).collect();
        for key in self.of_file(file).into_iter().filter(|key| !broken && !kept.contains(key)) {
            self.remove(&key);
        }
        let mut errors = Vec::new();
        for (object, key) in objects.iter().zip(&kept) {
            let put = match self.records.get(key) {
                Some(Record { file: None, .. }) => {
                    Err(Refusal::Forbidden("it was made by the API; delete it there first".into()))
                }
                _ => self.put(object.as_ref().clone(), Some(file), false).map(drop),
            };
            if let Err(refusal) = put {
                let slash = if key.0.is_empty() { "" } else { "/" };
                errors.push(format!("{} {}{slash}{}: {refusal}", T::STORE_KIND, key.0, key.1));
            }
        }
        for record in self.records.values_mut().filter(|record| record.file.as_deref() == Some(file)) {
            record.confirmed = true;
        }
        errors
    }

    /// Every manifest has been read: what no file wants any more goes.
    pub fn synced(&mut self) {
        let unwanted = self.records.iter().filter(|(_, record)| record.file.is_some() && !record.confirmed);
        let unwanted: Vec<Key> = unwanted.map(|(key, _)| key.clone()).collect();
        unwanted.iter().for_each(|key| self.remove(key));
    }

    /// Creates or replaces an object for the API; gives it as it is afterwards, or would be.
    ///
    /// # Errors
    /// It is somebody else's, or there already, or the disk cannot be written.
    pub fn put_from_api(&mut self, object: T, create_only: bool, dry_run: bool) -> Result<T, Refusal> {
        if let Some(known) = self.records.get(&key_of(&object)) {
            if create_only {
                return Err(Refusal::Exists);
            }
            owned_by_api(known)?;
        }
        self.put(object, None, dry_run)
    }

    /// Removes an object for the API.
    ///
    /// # Errors
    /// There is none, or it comes from a file.
    pub fn delete(&mut self, key: &Key) -> Result<(), Refusal> {
        owned_by_api(self.records.get(key).ok_or(Refusal::NotFound)?)?;
        self.remove(key);
        Ok(())
    }

    fn put(&mut self, mut object: T, file: Option<&Path>, dry_run: bool) -> Result<T, Refusal> {
        let key = key_of(&object);
        identify(&mut object, self.records.get(&key).map(|record| &record.object));
        let mut record = Record { object, file: file.map(Path::to_owned), confirmed: true, unstored: false };
        if dry_run || self.records.get(&key) == Some(&record) {
            return Ok(record.object);
        }
        let saved = self.objects.save(T::STORE_KIND, &key.0, &key.1, &record);
        if file.is_none() {
            saved.map_err(Refusal::Storage)?;
            return Ok(self.insert(key, record));
        }
        // What a file says is known without the copy: a full disk must not leave a pod without its policy.
        record.unstored = saved.is_err();
        let object = self.insert(key, record);
        saved.map_err(Refusal::Unstored)?;
        Ok(object)
    }

    fn insert(&mut self, key: Key, record: Record<T>) -> T {
        let object = record.object.clone();
        self.store.put(T::STORE_KIND, &key.0, &key.1, &object);
        self.records.insert(key, record);
        object
    }

    fn remove(&mut self, key: &Key) {
        self.records.remove(key);
        self.objects.remove(T::STORE_KIND, &key.0, &key.1);
        self.store.delete(T::STORE_KIND, &key.0, &key.1);
    }
}

fn owned_by_api<T>(record: &Record<T>) -> Result<(), Refusal> {
    match &record.file {
        None => Ok(()),
        Some(path) => {
            let path = path.display();
            Err(Refusal::Forbidden(format!("it comes from the manifest {path}; change or remove that file")))
        }
    }
}

/// Gives an object its uid, creation time and generation, or those that follow from the one that it replaces.
fn identify<T: Object>(object: &mut T, old: Option<&T>) {
    let now = || time(Timestamp::now());
    let changed = old.is_some_and(|old| !old.wants_the_same(object));
    let before = old.map(Metadata::metadata);
    let meta = object.metadata_mut();
    meta.uid = before.and_then(|old| old.uid.clone()).or_else(|| Some(uuid::Uuid::new_v4().to_string()));
    meta.creation_timestamp = before.and_then(|old| old.creation_timestamp.clone()).or_else(|| Some(now()));
    if T::STORE_KIND.namespaced() {
        let generation = before.and_then(|old| old.generation);
        meta.generation = Some(generation.map_or(1, |number| number + i64::from(changed)));
    }
}
