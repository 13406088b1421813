//! Claims and volumes as they are kept: the object as the API shows it, and who brought it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_reconciler::claims::{LOCAL_CLASS, PROVISIONED_ANNOTATION, PROVISIONER, RECLAIM_ANNOTATION};
use berth_reconciler::status::time;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

/// Namespace and name of a claim.
pub type Key = (String, String);

/// Who wants an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// A manifest file.
    File(PathBuf),
    /// The API.
    Api,
    /// The pod of this uid, whose generic ephemeral volume it is.
    Pod(String),
    /// A claim: the volume was made for it.
    Provisioned,
}

/// An object and who wants it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record<T> {
    /// Who wants it.
    pub origin: Origin,
    /// It, as the API shows it.
    pub object: T,
    /// Whether this agent has seen its file; until all have been read, nothing else is known to be unwanted.
    #[serde(skip)]
    pub confirmed: bool,
    /// Its file has only just left it out; another one may bring it at once, as when a file is renamed.
    #[serde(skip)]
    pub fresh: bool,
}

/// Everything there is.
#[derive(Debug, Default)]
pub struct State {
    /// Claims.
    pub claims: BTreeMap<Key, Record<v1::PersistentVolumeClaim>>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Record<v1::PersistentVolume>>,
    /// Which pods have a claim mounted: uid and name of each.
    pub users: BTreeMap<Key, BTreeMap<String, String>>,
    /// Claims that a pod has asked for.
    pub wanted: std::collections::BTreeSet<Key>,
    /// What was said last about a claim that has to wait.
    pub told: BTreeMap<Key, String>,
    /// Whether every manifest has been read.
    pub synced: bool,
    /// What was stored last.
    pub saved: Saved,
}

/// What was stored last, so that only changes are written.
#[derive(Debug, Default)]
pub struct Saved {
    /// Claims.
    pub claims: BTreeMap<Key, Record<v1::PersistentVolumeClaim>>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Record<v1::PersistentVolume>>,
}

impl<T: PartialEq> Record<T> {
    /// Whether it is stored as that one is.
    pub fn same(&self, other: &Record<T>) -> bool {
        self.origin == other.origin && self.object == other.object
    }
}

/// Metadata that both kinds have.
pub trait Object: Clone + PartialEq + Serialize + serde::de::DeserializeOwned {
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
    /// Its metadata.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// The finalizer that its API server shows.
    const PROTECTION: &'static str;
}

impl Object for v1::PersistentVolumeClaim {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
    const PROTECTION: &'static str = "kubernetes.io/pvc-protection";
}

impl Object for v1::PersistentVolume {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
    const PROTECTION: &'static str = "kubernetes.io/pv-protection";
}

/// The clock in whole seconds, as metadata has it.
pub fn now() -> Time {
    time(Timestamp::now())
}

/// Gives an object its identity, or that of the one that it replaces.
pub fn identify<T: Object>(object: &mut T, old: Option<&T>) {
    let meta = object.meta_mut();
    meta.uid =
        Some(old.and_then(|old| old.meta().uid.clone()).unwrap_or_else(|| uuid::Uuid::new_v4().to_string()));
    meta.creation_timestamp =
        old.and_then(|old| old.meta().creation_timestamp.clone()).or_else(|| Some(now()));
    meta.deletion_timestamp = old.and_then(|old| old.meta().deletion_timestamp.clone());
    meta.finalizers = Some(vec![T::PROTECTION.to_owned()]);
    meta.owner_references = old.and_then(|old| old.meta().owner_references.clone());
    meta.resource_version = None;
}

/// The name of the volume that a claim is bound to or asks for.
pub fn volume_name(claim: &v1::PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// The claim that a volume is bound to: named with its uid, which only binding writes.
pub fn bound_claim(volume: &v1::PersistentVolume) -> Option<Key> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    claim.uid.as_ref()?;
    Some((claim.namespace.clone()?, claim.name.clone()?))
}

/// What becomes of a volume's data when its claim is gone.
pub fn deletes(volume: &v1::PersistentVolume) -> bool {
    volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete")
}

/// The reclaim policy that a claim's annotation asks for.
pub fn asked_policy(claim: &v1::PersistentVolumeClaim) -> Option<String> {
    claim.metadata.annotations.as_ref()?.get(RECLAIM_ANNOTATION).cloned()
}

/// Name of the volume that is made for a claim. A namespace has no dots, so no two claims share it.
pub fn provisioned_name(key: &Key) -> String {
    format!("{}.{}", key.0, key.1)
}

/// The volume that is made for a claim.
pub fn provisioned(
    key: &Key,
    claim: &Record<v1::PersistentVolumeClaim>,
    folder: &std::path::Path,
    node_name: &str,
) -> v1::PersistentVolume {
    let spec = claim.object.spec.clone().unwrap_or_default();
    let ephemeral = matches!(claim.origin, Origin::Pod(_));
    let policy =
        asked_policy(&claim.object).unwrap_or_else(|| if ephemeral { "Delete" } else { "Retain" }.to_owned());
    let annotations = BTreeMap::from([(PROVISIONED_ANNOTATION.to_owned(), PROVISIONER.to_owned())]);
    let mut volume = v1::PersistentVolume {
        metadata: ObjectMeta {
            name: Some(provisioned_name(key)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(v1::PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: spec.resources.and_then(|resources| resources.requests),
            local: Some(v1::LocalVolumeSource {
                path: folder.to_string_lossy().into_owned(),
                ..v1::LocalVolumeSource::default()
            }),
            node_affinity: Some(v1::VolumeNodeAffinity { required: Some(only_on(node_name)) }),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: spec.storage_class_name.or_else(|| Some(LOCAL_CLASS.to_owned())),
            volume_mode: Some("Filesystem".to_owned()),
            ..v1::PersistentVolumeSpec::default()
        }),
        status: None,
    };
    identify(&mut volume, None);
    volume
}

/// A local volume is where its files are, and nowhere else.
fn only_on(node_name: &str) -> v1::NodeSelector {
    let hostname = v1::NodeSelectorRequirement {
        key: "kubernetes.io/hostname".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node_name.to_owned()]),
    };
    let term = v1::NodeSelectorTerm { match_expressions: Some(vec![hostname]), match_fields: None };
    v1::NodeSelector { node_selector_terms: vec![term] }
}

/// How a claim refers to itself in its volume.
pub fn reference(claim: &v1::PersistentVolumeClaim) -> v1::ObjectReference {
    v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        ..v1::ObjectReference::default()
    }
}
