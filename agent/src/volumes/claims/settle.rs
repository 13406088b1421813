//! What is to be done next about claims and volumes: a pure function from what there is to one step, and the phases.

use std::collections::BTreeSet;

use berth_reconciler::claims::{Choice, capacity, choose, is_provisioned, requested};
use k8s_openapi::api::core::v1;

use super::record::{Key, Object, Record, State, asked_policy, bound_claim, deletes, volume_name};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A claim that is being deleted is used by no pod any more.
    RemoveClaim(Key),
    /// A volume is wanted no more; with its data or without.
    RemoveVolume { name: String, data: bool },
    /// A claim gets a volume.
    Bind { claim: Key, volume: String },
    /// A volume is made for a claim.
    Provision(Key),
    /// A claim has changed after it was bound: the volume that was made for it follows.
    Follow { claim: Key, volume: String },
}

/// The next step; none if nothing is to be done. `used` tells whether a pod refers to a claim; claims in `failed` are let be.
pub fn next(state: &State, used: &dyn Fn(&Key) -> bool, failed: &BTreeSet<Key>) -> Option<Step> {
    removal(state, used).or_else(|| follow(state)).or_else(|| {
        let unbound = state.claims.keys().filter(|key| !failed.contains(*key) && bound(state, key).is_none());
        unbound.into_iter().find_map(|key| match choice(state, key)? {
            (Choice::Bind(_), Some(volume)) => Some(Step::Bind { claim: key.clone(), volume }),
            (Choice::Provision, _) if state.synced => Some(Step::Provision(key.clone())),
            (Choice::ProvisionForConsumer, _) if state.synced && state.wanted.contains(key) => {
                Some(Step::Provision(key.clone()))
            }
            _ => None,
        })
    })
}

/// Nothing is removed before every manifest has been read: until then, a claim that is missing may be on its way.
fn removal(state: &State, used: &dyn Fn(&Key) -> bool) -> Option<Step> {
    if !state.synced {
        return None;
    }
    let claim = state
        .claims
        .iter()
        .find(|(key, claim)| is_doomed(claim) && !used(key))
        .map(|(key, _)| Step::RemoveClaim(key.clone()));
    claim.or_else(|| {
        state.volumes.iter().find_map(|(name, volume)| {
            let claim = bound_claim(&volume.object);
            let taken = claim.as_ref().is_some_and(|key| state.claims.contains_key(key));
            let made = is_provisioned(&volume.object) && deletes(&volume.object);
            let released = claim.is_some() && !taken && made;
            let doomed = is_doomed(volume) && !taken;
            (released || doomed).then(|| Step::RemoveVolume { name: name.clone(), data: made })
        })
    })
}

/// Whether an object is to be deleted, and nobody has a moment left to want it again.
fn is_doomed<T: Object>(record: &Record<T>) -> bool {
    record.object.meta().deletion_timestamp.is_some() && !record.fresh
}

/// A claim's size and the annotation with its reclaim policy may change while the volume is bound.
fn follow(state: &State) -> Option<Step> {
    state.claims.iter().find_map(|(key, claim)| {
        let volume = &state.volumes.get(bound(state, key)?)?.object;
        let (spec, wanted) = (volume.spec.as_ref()?, claim.object.spec.as_ref()?);
        let policy = asked_policy(&claim.object)
            .is_some_and(|policy| spec.persistent_volume_reclaim_policy.as_ref() != Some(&policy));
        let size = capacity(spec) != requested(wanted);
        let volume_name = volume.metadata.name.clone()?;
        (is_provisioned(volume) && (policy || size))
            .then(|| Step::Follow { claim: key.clone(), volume: volume_name })
    })
}

/// The volume that a claim is bound to.
pub fn bound<'a>(state: &'a State, key: &Key) -> Option<&'a str> {
    let name = volume_name(&state.claims.get(key)?.object)?;
    let volume = state.volumes.get(name)?;
    (bound_claim(&volume.object).as_ref() == Some(key)).then_some(name)
}

/// What becomes of a claim that has no volume, and the name of the volume it gets.
pub fn choice(state: &State, key: &Key) -> Option<(Choice, Option<String>)> {
    let claim = &state.claims.get(key)?.object;
    if claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let volumes: Vec<&v1::PersistentVolume> = state.volumes.values().map(|volume| &volume.object).collect();
    let choice = choose(&key.0, &key.1, claim.spec.as_ref()?, &volumes);
    let name = match choice {
        Choice::Bind(at) => volumes[at].metadata.name.clone(),
        _ => None,
    };
    Some((choice, name))
}

/// Why a claim waits, in the words of Kubernetes' volume controller where it has them: reason and message.
pub fn waiting(state: &State, key: &Key) -> Option<(&'static str, String)> {
    let (choice, _) = choice(state, key)?;
    let claim = &state.claims.get(key)?.object;
    Some(match (choice, volume_name(claim)) {
        (Choice::Wait, Some(volume)) => (
            "FailedBinding",
            format!("volume {volume:?} does not exist, is bound to another claim or does not fit"),
        ),
        (Choice::Wait, None) => (
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set".to_owned(),
        ),
        (Choice::ProvisionForConsumer, _) => {
            ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned())
        }
        _ => ("WaitForManifests", "waiting until all manifests have been read".to_owned()),
    })
}

/// The status of a claim.
pub fn claim_status(state: &State, key: &Key) -> v1::PersistentVolumeClaimStatus {
    let spec =
        bound(state, key).and_then(|name| state.volumes.get(name)).and_then(|v| v.object.spec.as_ref());
    v1::PersistentVolumeClaimStatus {
        phase: Some(if spec.is_some() { "Bound" } else { "Pending" }.to_owned()),
        access_modes: spec.and_then(|spec| spec.access_modes.clone()),
        capacity: spec.and_then(|spec| spec.capacity.clone()),
        ..v1::PersistentVolumeClaimStatus::default()
    }
}

/// The status of a volume.
pub fn volume_status(state: &State, volume: &v1::PersistentVolume) -> v1::PersistentVolumeStatus {
    let phase = match bound_claim(volume) {
        Some(key) if state.claims.contains_key(&key) => "Bound",
        Some(_) => "Released",
        None => "Available",
    };
    let last = volume.status.as_ref();
    let same = last.filter(|last| last.phase.as_deref() == Some(phase));
    v1::PersistentVolumeStatus {
        phase: Some(phase.to_owned()),
        last_phase_transition_time: same
            .and_then(|last| last.last_phase_transition_time.clone())
            .or_else(|| Some(super::record::now())),
        ..v1::PersistentVolumeStatus::default()
    }
}
