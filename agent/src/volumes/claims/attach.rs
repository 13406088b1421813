//! Giving a pod its claims.

use std::path::PathBuf;

use berth_reconciler::claims::is_provisioned;
use berth_reconciler::pod::{Pod, Source};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::record::{Key, Origin, Record, State, identify};
use super::{Claims, condemn, settle};

/// Where the files of a claim are.
#[derive(Clone, Debug, PartialEq)]
pub enum Attached {
    /// A folder whose owner and permissions the pod's fsGroup decides.
    Folder(PathBuf),
    /// A path of the host, which stays as it is.
    Host(v1::HostPathVolumeSource),
}

/// The claim behind a volume of a pod: the one that it names, or the one that belongs to the pod.
pub fn claim_of(pod: &Pod, volume: &v1::Volume) -> Option<Key> {
    let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => claim.claim_name.clone(),
        (None, Some(_)) => format!("{}-{}", pod.name(), volume.name),
        (None, None) => return None,
    };
    Some((pod.namespace().to_owned(), name))
}

/// Whether a pod refers to a claim.
pub fn is_used_by(key: &Key, pod: &Pod) -> bool {
    pod.namespace() == key.0
        && pod.spec().volumes.iter().flatten().any(|volume| claim_of(pod, volume).as_ref() == Some(key))
}

impl State {
    fn holds(&self, key: &Key, pod: &Pod) -> bool {
        self.users.get(key).is_some_and(|users| users.contains_key(pod.uid()))
    }

    /// A pod has the claim from now on; fails if another has it for itself alone.
    fn hand_out(&mut self, key: &Key, pod: &Pod, claim: &v1::PersistentVolumeClaim) -> Result<(), String> {
        let users = self.users.entry(key.clone()).or_default();
        let exclusive = is_exclusive(claim);
        if let Some(other) = users.iter().find(|(uid, _)| exclusive && *uid != pod.uid()) {
            return Err(format!(
                "persistentvolumeclaim {:?} has access mode ReadWriteOncePod and is in use by pod {:?}",
                key.1, other.1
            ));
        }
        users.insert(pod.uid().to_owned(), pod.name().to_owned());
        Ok(())
    }
}

impl Claims {
    /// Gives a pod the claim behind one of its volumes; makes it for an ephemeral volume. Can be repeated.
    ///
    /// # Errors
    /// Why the pod has to wait.
    pub fn attach(&self, pod: &Pod, volume: &v1::Volume) -> Result<Attached, String> {
        let key = claim_of(pod, volume).ok_or("the volume is no claim")?;
        let mut state = self.lock();
        if pod.source == Source::Cluster {
            let holds = state.holds(&key, pod);
            let bound = self.cluster.get(pod, volume, &key, holds)?;
            state.hand_out(&key, pod, &bound.claim)?;
            return attached(&bound.volume);
        }
        if let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) {
            match state.claims.get(&key) {
                Some(claim) if claim.origin == Origin::Pod(pod.uid().to_owned()) => {}
                Some(_) => {
                    return Err(format!(
                        "PVC \"{}/{}\" was not created for pod \"{}/{}\" (pod is not owner)",
                        key.0,
                        key.1,
                        pod.namespace(),
                        pod.name()
                    ));
                }
                None => {
                    let object = ephemeral_claim(pod, &key, template);
                    let origin = Origin::Pod(pod.uid().to_owned());
                    state
                        .claims
                        .insert(key.clone(), Record { origin, object, confirmed: true, fresh: false });
                }
            }
        }
        let name = &key.1;
        let Some(claim) = state.claims.get(&key) else {
            return Err(format!("persistentvolumeclaim {name:?} not found"));
        };
        if claim.object.metadata.deletion_timestamp.is_some() && !state.holds(&key, pod) {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if state.wanted.insert(key.clone()) || settle::bound(&state, &key).is_none() {
            // Nobody else waits for what changes now.
            self.take_steps(&mut state, None);
        }
        let Some(bound) = settle::bound(&state, &key).map(str::to_owned) else {
            let why = settle::waiting(&state, &key).map(|(_, message)| message).unwrap_or_default();
            return Err(format!("persistentvolumeclaim {name:?} is not bound: {why}"));
        };
        let claim = state.claims.get(&key).map(|claim| claim.object.clone()).unwrap_or_default();
        state.hand_out(&key, pod, &claim)?;
        let volume = state.volumes.get(&bound).ok_or("its volume is gone")?;
        attached(&volume.object)
    }

    /// Where the files of a pod's claim are, if it is a folder; nothing is looked up for it.
    pub fn folder_of(&self, pod: &Pod, key: &Key) -> Option<PathBuf> {
        let path =
            |volume: &v1::PersistentVolume| Some(PathBuf::from(&volume.spec.as_ref()?.local.as_ref()?.path));
        if pod.source == Source::Cluster {
            return path(&self.cluster.volume(key)?.volume);
        }
        let state = self.lock();
        path(&state.volumes.get(settle::bound(&state, key)?)?.object)
    }

    /// A pod of an earlier agent still has its claims.
    pub fn hold(&self, pod: &Pod) {
        let mut state = self.lock();
        for key in pod.spec().volumes.iter().flatten().filter_map(|volume| claim_of(pod, volume)) {
            state.users.entry(key).or_default().insert(pod.uid().to_owned(), pod.name().to_owned());
        }
    }

    /// A pod has its volumes no more; whoever waited for one of its claims may try again.
    pub fn detach(&self, uid: &str) {
        let mut state = self.lock();
        let mut released = Vec::new();
        state.users.retain(|key, users| {
            if users.remove(uid).is_some() {
                released.push(key.clone());
            }
            !users.is_empty()
        });
        drop(state);
        let Some(pods) = self.inner.pods.get().filter(|_| !released.is_empty()) else { return };
        for pod in pods.all() {
            if pod.uid() != uid && released.iter().any(|key| is_used_by(key, &pod)) {
                pods.wake(pod.uid());
            }
        }
    }

    /// Nothing of a pod exists any more: its own claims go, and those that only it kept from going.
    pub fn pod_gone(&self, pod: &Pod) {
        if !pod.spec().volumes.iter().flatten().any(|volume| claim_of(pod, volume).is_some()) {
            return;
        }
        let mut state = self.lock();
        let own = Origin::Pod(pod.uid().to_owned());
        state.claims.values_mut().filter(|claim| claim.origin == own).for_each(|c| condemn(&mut c.object));
        self.settle(state, Some(pod.uid()));
    }
}

fn is_exclusive(claim: &v1::PersistentVolumeClaim) -> bool {
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    modes.iter().any(|mode| mode == "ReadWriteOncePod")
}

fn ephemeral_claim(
    pod: &Pod,
    key: &Key,
    template: &v1::PersistentVolumeClaimTemplate,
) -> v1::PersistentVolumeClaim {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut claim = v1::PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(key.1.clone()),
            namespace: Some(key.0.clone()),
            labels: meta.labels,
            annotations: meta.annotations,
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    };
    identify(&mut claim, None);
    claim.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.name().to_owned(),
        uid: pod.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]);
    claim
}

/// Where a volume's files are. A folder that is gone is not made again: whoever finds it empty would take the data for lost.
fn attached(volume: &v1::PersistentVolume) -> Result<Attached, String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.as_ref().ok_or("its volume has no spec")?;
    if let Some(host) = &spec.host_path {
        return Ok(Attached::Host(host.clone()));
    }
    let path = PathBuf::from(spec.local.as_ref().map(|local| local.path.as_str()).unwrap_or_default());
    if !path.is_dir() {
        let whose = if is_provisioned(volume) { "the folder of" } else { "the local path of" };
        return Err(format!("{whose} volume {name:?} does not exist: {}", path.display()));
    }
    // It may be a link, which has no owner or permissions to speak of.
    let folder = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Attached::Folder(folder))
}
