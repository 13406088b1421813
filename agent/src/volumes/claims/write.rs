//! What manifests and the API do with claims and volumes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_reconciler::claims::requested;
use k8s_openapi::api::core::v1;

use super::record::{Key, Object, Origin, Record, bound_claim, identify};
use super::{Claims, condemn};

/// How long another file may take to bring what a file has left out: who renames a file means to delete nothing.
pub const MOVED: Duration = Duration::from_secs(1);

/// What came of a manifest file.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What of it cannot be done.
    pub errors: Vec<String>,
    /// It has left something out; see [`Claims::ripen`].
    pub left_out: bool,
}

/// Why an object is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("not found")]
    NotFound,
    /// Only its owner may change it.
    #[error("{0}")]
    Owner(String),
    /// This field may not change, or not so.
    #[error("{field}: {why}")]
    Field {
        /// Its path.
        field: &'static str,
        /// Why.
        why: String,
    },
}

fn of_file(path: &Path) -> Refusal {
    Refusal::Owner(format!("it comes from the manifest {}; change or remove that file", path.display()))
}

impl Claims {
    /// Takes what a manifest file holds now; the rest of what it gave before is condemned, unless it is `broken`.
    pub fn file_loaded(
        &self,
        file: &Path,
        volumes: Vec<Arc<v1::PersistentVolume>>,
        claims: Vec<Arc<v1::PersistentVolumeClaim>>,
        broken: bool,
    ) -> Loaded {
        let mut state = self.lock();
        let (mut errors, mut left_out) = (Vec::new(), false);
        let from_file = Origin::File(file.to_owned());
        let had = state.claims.values().any(|claim| claim.origin == from_file)
            || state.volumes.values().any(|volume| volume.origin == from_file);
        if volumes.is_empty() && claims.is_empty() && !had {
            return Loaded::default();
        }
        let (mut kept_claims, mut kept_volumes) = (Vec::new(), Vec::new());
        // Volumes first: claims of the same file may be meant for them.
        for volume in volumes {
            let name = volume.metadata.name.clone().unwrap_or_default();
            kept_volumes.push(name.clone());
            let old = state.volumes.get(&name);
            match next_volume(&from_file, Arc::unwrap_or_clone(volume), old) {
                Ok(record) => drop(state.volumes.insert(name, record)),
                Err(refusal) => errors.push(format!("PersistentVolume {name}: {refusal}")),
            }
        }
        for claim in claims {
            let key = key_of(&claim);
            kept_claims.push(key.clone());
            let old = state.claims.get(&key);
            match next_claim(&from_file, Arc::unwrap_or_clone(claim), old) {
                Ok(record) => drop(state.claims.insert(key, record)),
                Err(refusal) => {
                    errors.push(format!("PersistentVolumeClaim {}/{}: {refusal}", key.0, key.1));
                }
            }
        }
        for (key, claim) in state.claims.iter_mut().filter(|(_, claim)| claim.origin == from_file) {
            claim.confirmed = true;
            if !broken && !kept_claims.contains(key) {
                condemn(&mut claim.object);
                claim.fresh = true;
                left_out = true;
            }
        }
        for (name, volume) in state.volumes.iter_mut().filter(|(_, volume)| volume.origin == from_file) {
            volume.confirmed = true;
            if !broken && !kept_volumes.contains(name) {
                condemn(&mut volume.object);
                volume.fresh = true;
                left_out = true;
            }
        }
        self.settle(state, None);
        Loaded { errors, left_out }
    }

    /// What files have left out is wanted by no other file: it goes. To be called [`MOVED`] after they have.
    pub fn ripen(&self) {
        let mut state = self.lock();
        state.claims.values_mut().for_each(|claim| claim.fresh = false);
        state.volumes.values_mut().for_each(|volume| volume.fresh = false);
        self.settle(state, None);
    }

    /// Creates or replaces a claim for the API; gives it as it is afterwards, or would be.
    ///
    /// # Errors
    /// What the API server would refuse.
    pub fn put_claim(
        &self,
        claim: v1::PersistentVolumeClaim,
        dry_run: bool,
    ) -> Result<v1::PersistentVolumeClaim, Refusal> {
        let key = key_of(&claim);
        let mut state = self.lock();
        let record = next_claim(&Origin::Api, claim, state.claims.get(&key))?;
        let object = record.object.clone();
        if dry_run {
            return Ok(object);
        }
        state.claims.insert(key.clone(), record);
        self.settle(state, None);
        Ok(self.lock().claims.get(&key).map_or(object, |claim| claim.object.clone()))
    }

    /// Creates or replaces a volume for the API; gives it as it is afterwards, or would be.
    ///
    /// # Errors
    /// What the API server would refuse.
    pub fn put_volume(
        &self,
        volume: v1::PersistentVolume,
        dry_run: bool,
    ) -> Result<v1::PersistentVolume, Refusal> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let mut state = self.lock();
        let mut record = next_volume(&Origin::Api, volume.clone(), state.volumes.get(&name))?;
        // Who takes the reference to a claim that is gone out of a volume gives it free.
        let released = bound_claim(&record.object).is_some_and(|key| !state.claims.contains_key(&key));
        if released && volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none()) {
            record.object.spec.get_or_insert_default().claim_ref = None;
        }
        let object = record.object.clone();
        if dry_run {
            return Ok(object);
        }
        state.volumes.insert(name.clone(), record);
        self.settle(state, None);
        Ok(self.lock().volumes.get(&name).map_or(object, |volume| volume.object.clone()))
    }

    /// Asks for a claim's deletion, which waits until no pod uses it.
    ///
    /// # Errors
    /// When there is none, or it is not the API's to delete.
    pub fn delete_claim(&self, key: &Key) -> Result<(), Refusal> {
        let mut state = self.lock();
        let claim = state.claims.get_mut(key).ok_or(Refusal::NotFound)?;
        if let Origin::File(path) = &claim.origin {
            return Err(of_file(path));
        }
        condemn(&mut claim.object);
        self.settle(state, None);
        Ok(())
    }

    /// Asks for a volume's deletion, which waits until no claim has it.
    ///
    /// # Errors
    /// When there is none, or it is not the API's to delete.
    pub fn delete_volume(&self, name: &str) -> Result<(), Refusal> {
        let mut state = self.lock();
        let volume = state.volumes.get_mut(name).ok_or(Refusal::NotFound)?;
        if let Origin::File(path) = &volume.origin {
            return Err(of_file(path));
        }
        condemn(&mut volume.object);
        self.settle(state, None);
        Ok(())
    }
}

fn key_of(claim: &v1::PersistentVolumeClaim) -> Key {
    let meta = &claim.metadata;
    (meta.namespace.clone().unwrap_or_else(|| "default".to_owned()), meta.name.clone().unwrap_or_default())
}

/// Whose the object is after `origin` has brought it again.
fn owner<T: Object>(origin: &Origin, old: Option<&Record<T>>) -> Result<Origin, Refusal> {
    match (origin, old.map(|old| &old.origin)) {
        (_, None) | (Origin::File(_), Some(Origin::Api)) => Ok(origin.clone()),
        (_, Some(same)) if same == origin => Ok(origin.clone()),
        // Folder watching has made sure that a file's objects are its own.
        (Origin::File(_), Some(Origin::File(_))) => Ok(origin.clone()),
        (Origin::Api, Some(Origin::File(path))) => Err(of_file(path)),
        (Origin::Api, Some(own)) => Ok(own.clone()),
        (_, Some(Origin::Pod(_))) => Err(Refusal::Owner("it belongs to a pod's ephemeral volume".to_owned())),
        _ => Err(Refusal::Owner("a volume of this name was made for a claim".to_owned())),
    }
}

/// The record of a claim that was brought, given the one there is.
pub(super) fn next_claim(
    origin: &Origin,
    mut claim: v1::PersistentVolumeClaim,
    old: Option<&Record<v1::PersistentVolumeClaim>>,
) -> Result<Record<v1::PersistentVolumeClaim>, Refusal> {
    let origin = owner(origin, old)?;
    identify(&mut claim, old.map(|old| &old.object));
    if let Some(old) = old {
        claim.status.clone_from(&old.object.status);
        let before = old.object.spec.clone().unwrap_or_default();
        let after = claim.spec.get_or_insert_default();
        if after.volume_name.as_deref().unwrap_or_default().is_empty() {
            after.volume_name.clone_from(&before.volume_name);
        }
        if after.storage_class_name.is_none() {
            after.storage_class_name.clone_from(&before.storage_class_name);
        }
        let mut masked = after.clone();
        masked.resources.clone_from(&before.resources);
        if before.volume_name.is_none() {
            masked.volume_name = None;
        }
        if masked != before {
            let why = "spec is immutable after creation except resources.requests; delete the claim and create it again";
            return Err(Refusal::Field { field: "spec", why: why.to_owned() });
        }
        if requested(after) < requested(&before) {
            let why = "field can not be less than previous value".to_owned();
            return Err(Refusal::Field { field: "spec.resources.requests.storage", why });
        }
    }
    if let Origin::File(_) = origin {
        // The file wants it, so whatever it was about to be deleted for is over.
        claim.metadata.deletion_timestamp = None;
    }
    Ok(Record { origin, object: claim, confirmed: true, fresh: false })
}

/// The record of a volume that was brought, given the one there is.
pub(super) fn next_volume(
    origin: &Origin,
    mut volume: v1::PersistentVolume,
    old: Option<&Record<v1::PersistentVolume>>,
) -> Result<Record<v1::PersistentVolume>, Refusal> {
    let origin = owner(origin, old)?;
    identify(&mut volume, old.map(|old| &old.object));
    if let Some(old) = old {
        volume.status.clone_from(&old.object.status);
        let before = old.object.spec.clone().unwrap_or_default();
        let after = volume.spec.get_or_insert_default();
        if after.host_path != before.host_path || after.local != before.local {
            let why = "spec.persistentvolumesource is immutable after creation".to_owned();
            return Err(Refusal::Field { field: "spec", why });
        }
        if bound_claim(&old.object).is_some() {
            after.claim_ref.clone_from(&before.claim_ref);
        }
    }
    if let Origin::File(_) = origin {
        volume.metadata.deletion_timestamp = None;
    }
    Ok(Record { origin, object: volume, confirmed: true, fresh: false })
}
