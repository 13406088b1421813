//! PersistentVolumeClaims and PersistentVolumes: kept, bound to each other, given to pods, taken away when nobody uses
//! them any more.
//!
//! [`record`] is how they are kept, [`settle`] decides the next step, [`attach`] gives a pod its claims, [`write`] is what
//! manifests and the API do. This file carries the steps out. The state on disk is as in memory: a claim is bound to its
//! volume before a pod sees it, and stays so over restarts of the agent.

mod attach;
mod record;
mod settle;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use berth_reconciler::pod::{Pod, Source};
use k8s_openapi::api::core::v1;

pub use attach::{Attached, claim_of, is_used_by};
pub use record::{Key, Origin};
pub use write::{MOVED, Refusal};

use crate::backend::objects::Objects;
use crate::cluster::ClusterClaims;
use crate::events::{Recorder, Regarding};
use crate::store::{Kind, ObjectStore};
use record::{Object, Record, State};
use settle::Step;

/// Who knows all pods and wakes those that wait.
pub trait Pods: Send + Sync {
    /// Every pod that is not gone.
    fn all(&self) -> Vec<Arc<Pod>>;
    /// A pod may have waited for what has just changed.
    fn wake(&self, uid: &str);
}

/// The claims and volumes of this node. Clones share.
#[derive(Clone)]
pub struct Claims {
    /// The claims of pods of a cluster, which its API server keeps.
    pub cluster: ClusterClaims,
    inner: Arc<Inner>,
}

struct Inner {
    /// Where volumes are made: `<root>/pv`.
    dir: PathBuf,
    node_name: String,
    objects: Objects,
    store: ObjectStore,
    events: Arc<Recorder>,
    pods: OnceLock<Arc<dyn Pods>>,
    state: Mutex<State>,
}

impl Claims {
    /// None yet. What is put here is stored in the state folder, and shown in `store`.
    pub fn new(root: &Path, node_name: &str, store: ObjectStore, events: Arc<Recorder>) -> Self {
        let (dir, node_name, objects) = (root.join("pv"), node_name.to_owned(), Objects::new(root));
        let inner =
            Inner { dir, node_name, objects, store, events, pods: OnceLock::new(), state: Mutex::default() };
        Self { cluster: ClusterClaims::default(), inner: Arc::new(inner) }
    }

    /// Tells who knows the pods. Called once, at the start.
    pub fn connect(&self, pods: Arc<dyn Pods>) {
        let _ = self.inner.pods.set(pods);
    }

    /// Reads what an earlier agent has stored, and finishes the removals that it had begun.
    pub fn load(&self) {
        let mut state = self.lock();
        for claim in self.inner.objects.all::<Record<v1::PersistentVolumeClaim>>(Kind::PersistentVolumeClaim)
        {
            let meta = &claim.object.metadata;
            let key = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
            self.inner.store.put(Kind::PersistentVolumeClaim, &key.0, &key.1, &claim.object);
            state.claims.insert(key, claim);
        }
        for volume in self.inner.objects.all::<Record<v1::PersistentVolume>>(Kind::PersistentVolume) {
            let name = volume.object.metadata.name.clone().unwrap_or_default();
            self.inner.store.put(Kind::PersistentVolume, "", &name, &volume.object);
            state.volumes.insert(name, volume);
        }
        drop(state);
        for entry in std::fs::read_dir(&self.inner.dir).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(DOOMED.as_bytes()) {
                remove_later(entry.path());
            }
        }
    }

    /// Every manifest has been read: what no file wants any more goes, and volumes are made from now on.
    pub fn synced(&self) {
        let mut state = self.lock();
        state.synced = true;
        let known: BTreeSet<String> = self.pods().iter().map(|pod| pod.uid().to_owned()).collect();
        let stale = |origin: &Origin, confirmed: bool| match origin {
            Origin::File(_) => !confirmed,
            Origin::Pod(uid) => !known.contains(uid),
            Origin::Api | Origin::Provisioned => false,
        };
        let claims = state.claims.values_mut().filter(|claim| stale(&claim.origin, claim.confirmed));
        claims.for_each(|claim| condemn(&mut claim.object));
        let volumes = state.volumes.values_mut().filter(|volume| stale(&volume.origin, volume.confirmed));
        volumes.for_each(|volume| condemn(&mut volume.object));
        self.settle(state, None);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every step leaves the state whole.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods that may use claims of this node.
    fn pods(&self) -> Vec<Arc<Pod>> {
        let mut all = self.inner.pods.get().map(|pods| pods.all()).unwrap_or_default();
        all.retain(|pod| pod.source != Source::Cluster);
        all
    }

    /// Takes every step that can be taken, shows the result and wakes the pods that it concerns. `gone` is the uid of a pod
    /// that counts no more.
    fn settle(&self, mut state: MutexGuard<'_, State>, gone: Option<&str>) {
        let changed = self.take_steps(&mut state, gone);
        drop(state);
        if changed.is_empty() {
            return;
        }
        for pod in self.pods() {
            if changed.iter().any(|key| is_used_by(key, &pod))
                && let Some(pods) = self.inner.pods.get()
            {
                pods.wake(pod.uid());
            }
        }
    }

    /// The claims of which something has changed.
    fn take_steps(&self, state: &mut State, gone: Option<&str>) -> BTreeSet<Key> {
        let pods = self.pods();
        let used = |key: &Key| pods.iter().any(|pod| Some(pod.uid()) != gone && is_used_by(key, pod));
        let (mut failed, mut changed) = (BTreeSet::new(), BTreeSet::new());
        while let Some(step) = settle::next(state, &used, &failed) {
            let claim = match &step {
                Step::RemoveClaim(key) | Step::Provision(key) | Step::Bind { claim: key, .. } => {
                    Some(key.clone())
                }
                Step::RemoveVolume { .. } | Step::Follow { .. } => None,
            };
            if let Err(error) = self.take(state, &step) {
                tracing::error!(?step, %error, "cannot take a step with a claim or a volume");
                let Some(key) = claim else { break };
                self.tell(
                    state,
                    &key,
                    true,
                    "ProvisioningFailed",
                    &format!("cannot make the volume: {error}"),
                );
                failed.insert(key);
                continue;
            }
            changed.extend(claim);
        }
        self.show(state);
        let waiting: Vec<Key> = state
            .claims
            .keys()
            .filter(|key| settle::bound(state, key).is_none() && !failed.contains(*key))
            .cloned()
            .collect();
        for key in waiting {
            if let Some((reason, message)) = settle::waiting(state, &key) {
                self.tell(state, &key, false, reason, &message);
            }
        }
        changed
    }

    fn take(&self, state: &mut State, step: &Step) -> io::Result<()> {
        match step {
            Step::RemoveClaim(key) => {
                self.inner.objects.remove(Kind::PersistentVolumeClaim, &key.0, &key.1);
                self.inner.store.delete(Kind::PersistentVolumeClaim, &key.0, &key.1);
                state.claims.remove(key);
                state.saved.claims.remove(key);
                state.wanted.remove(key);
                state.told.remove(key);
            }
            Step::RemoveVolume { name, data } => {
                if *data && let Some(volume) = state.volumes.get(name) {
                    self.remove_data(&volume.object)?;
                }
                self.inner.objects.remove(Kind::PersistentVolume, "", name);
                self.inner.store.delete(Kind::PersistentVolume, "", name);
                state.volumes.remove(name);
                state.saved.volumes.remove(name);
            }
            Step::Provision(key) => self.provision(state, key)?,
            Step::Bind { claim, volume } => bind(state, claim, volume),
            Step::Follow { claim, volume } => bind(state, claim, volume),
        }
        Ok(())
    }

    /// The folder of the volume that is made for a claim.
    fn folder(&self, key: &Key) -> PathBuf {
        self.inner.dir.join(&key.0).join(&key.1)
    }

    /// Makes the volume of a claim; a folder that an earlier claim of this name has left is its own again.
    fn provision(&self, state: &mut State, key: &Key) -> io::Result<()> {
        let Some(claim) = state.claims.get(key) else { return Ok(()) };
        let folder = self.folder(key);
        let volume = record::provisioned(key, claim, &folder, &self.inner.node_name);
        if !folder.is_dir() {
            std::fs::create_dir_all(&folder)?;
            // Any user of a container may write, as in the folders of other provisioners; the way there is root's alone.
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
        }
        let name = record::provisioned_name(key);
        self.tell(
            state,
            key,
            false,
            "ProvisioningSucceeded",
            &format!("Successfully provisioned volume {name}"),
        );
        let record = Record { origin: Origin::Provisioned, object: volume, confirmed: true, fresh: false };
        state.volumes.insert(name.clone(), record);
        bind(state, key, &name);
        Ok(())
    }

    /// Takes a volume's folder out of the way at once and deletes it in the background.
    fn remove_data(&self, volume: &v1::PersistentVolume) -> io::Result<()> {
        let local = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
        // Only what lies below our own folder is ever deleted.
        let Some(path) =
            local.map(|l| PathBuf::from(&l.path)).filter(|path| path.starts_with(&self.inner.dir))
        else {
            return Ok(());
        };
        let doomed = self.inner.dir.join(format!("{DOOMED}{}", uuid::Uuid::new_v4()));
        match std::fs::rename(&path, &doomed) {
            Ok(()) => remove_later(doomed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // The namespace's folder, if this was the last in it.
        let _ = path.parent().map(std::fs::remove_dir);
        Ok(())
    }

    /// Brings every object's status up to date; what has changed, on disk and in the API, too.
    fn show(&self, state: &mut State) {
        let claims: Vec<Key> = state.claims.keys().cloned().collect();
        for key in claims {
            let status = settle::claim_status(state, &key);
            let Some(claim) = state.claims.get_mut(&key) else { continue };
            claim.object.status = Some(status);
            if !state.saved.claims.get(&key).is_some_and(|saved| saved.same(claim)) {
                self.save(Kind::PersistentVolumeClaim, &key.0, &key.1, claim);
                state.saved.claims.insert(key, claim.clone());
            }
        }
        let volumes: Vec<String> = state.volumes.keys().cloned().collect();
        for name in volumes {
            let status = state.volumes.get(&name).map(|volume| settle::volume_status(state, &volume.object));
            let Some(volume) = state.volumes.get_mut(&name) else { continue };
            volume.object.status = status;
            if !state.saved.volumes.get(&name).is_some_and(|saved| saved.same(volume)) {
                self.save(Kind::PersistentVolume, "", &name, volume);
                state.saved.volumes.insert(name, volume.clone());
            }
        }
    }

    fn save<T: Object>(&self, kind: Kind, namespace: &str, name: &str, record: &Record<T>) {
        if let Err(error) = self.inner.objects.save(kind, namespace, name, record) {
            tracing::error!(kind = %kind, namespace, name, %error, "cannot store an object; it would be lost with the agent");
        }
        self.inner.store.put(kind, namespace, name, &record.object);
    }

    /// Records an event about a claim, unless it is what was said last.
    fn tell(&self, state: &mut State, key: &Key, warning: bool, reason: &str, message: &str) {
        if state.told.get(key).is_some_and(|last| last == message) {
            return;
        }
        state.told.insert(key.clone(), message.to_owned());
        let uid = state.claims.get(key).and_then(|claim| claim.object.metadata.uid.clone());
        let about = Regarding {
            kind: "PersistentVolumeClaim",
            namespace: key.0.clone(),
            name: key.1.clone(),
            uid: uid.unwrap_or_default(),
            field: String::new(),
        };
        self.inner.events.record(&about, warning, reason, message);
    }
}

/// What the name of a folder that is being deleted begins with. No namespace begins with a dot.
const DOOMED: &str = ".deleted-";

fn remove_later(path: PathBuf) {
    std::thread::spawn(move || {
        if let Err(error) = super::remove_tree(&path) {
            tracing::error!(path = %path.display(), %error, "cannot delete the data of a volume");
        }
    });
}

/// Asks for an object's deletion; it goes when nobody uses it any more.
fn condemn<T: Object>(object: &mut T) {
    object.meta_mut().deletion_timestamp.get_or_insert_with(record::now);
}

/// Makes claim and volume name each other.
fn bind(state: &mut State, key: &Key, name: &str) {
    let (Some(claim), Some(volume)) = (state.claims.get_mut(key), state.volumes.get_mut(name)) else {
        return;
    };
    let made = berth_reconciler::claims::is_provisioned(&volume.object);
    let reference = record::reference(&claim.object);
    let policy = record::asked_policy(&claim.object);
    let (claim, volume) =
        (claim.object.spec.get_or_insert_default(), volume.object.spec.get_or_insert_default());
    claim.volume_name = Some(name.to_owned());
    if claim.storage_class_name.is_none() {
        claim.storage_class_name.clone_from(&volume.storage_class_name);
    }
    volume.claim_ref = Some(reference);
    if made {
        // It is as large, and as shared, as whoever has it now wants.
        volume.capacity = claim.resources.as_ref().and_then(|resources| resources.requests.clone());
        volume.access_modes.clone_from(&claim.access_modes);
        if policy.is_some() {
            volume.persistent_volume_reclaim_policy = policy;
        }
    }
}
