//! The columns of claims and volumes, as kubernetes/pkg/printers has them.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{Column, age};

pub const CLAIM: &[Column] = &[
    ("Name", "string", "name", 0),
    ("Status", "string", "", 0),
    ("Volume", "string", "", 0),
    ("Capacity", "string", "", 0),
    ("Access Modes", "string", "", 0),
    ("StorageClass", "string", "", 0),
    ("VolumeAttributesClass", "string", "", 0),
    ("Age", "string", "", 0),
    ("VolumeMode", "string", "", 1),
];

pub const VOLUME: &[Column] = &[
    ("Name", "string", "name", 0),
    ("Capacity", "string", "", 0),
    ("Access Modes", "string", "", 0),
    ("Reclaim Policy", "string", "", 0),
    ("Status", "string", "", 0),
    ("Claim", "string", "", 0),
    ("StorageClass", "string", "", 0),
    ("VolumeAttributesClass", "string", "", 0),
    ("Reason", "string", "", 0),
    ("Age", "string", "", 0),
    ("VolumeMode", "string", "", 1),
];

/// Access modes in the letters of kubectl: `RWO,ROX`.
pub fn modes(modes: Option<&[String]>) -> String {
    let short = |mode: &String| match mode.as_str() {
        "ReadWriteOnce" => "RWO".to_owned(),
        "ReadOnlyMany" => "ROX".to_owned(),
        "ReadWriteMany" => "RWX".to_owned(),
        "ReadWriteOncePod" => "RWOP".to_owned(),
        other => other.to_owned(),
    };
    modes.unwrap_or_default().iter().map(short).collect::<Vec<_>>().join(",")
}

fn phase(meta: &ObjectMeta, phase: Option<String>) -> Value {
    match meta.deletion_timestamp {
        Some(_) => json!("Terminating"),
        None => json!(phase.unwrap_or_default()),
    }
}

/// The cells of a claim's row.
pub fn claim(claim: &PersistentVolumeClaim) -> Vec<Value> {
    let spec = claim.spec.clone().unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    // As kubectl: only what a bound claim has got is shown.
    let bound = spec.volume_name.as_deref().is_some_and(|name| !name.is_empty());
    let capacity = status.capacity.as_ref().and_then(|amounts| amounts.get("storage")).filter(|_| bound);
    vec![
        json!(claim.metadata.name),
        phase(&claim.metadata, status.phase),
        json!(spec.volume_name.unwrap_or_default()),
        json!(capacity.map(|amount| amount.0.clone()).unwrap_or_default()),
        json!(modes(status.access_modes.as_deref().filter(|_| bound))),
        json!(spec.storage_class_name.unwrap_or_default()),
        json!(spec.volume_attributes_class_name.unwrap_or_else(|| "<unset>".to_owned())),
        json!(age(claim.metadata.creation_timestamp.as_ref())),
        json!(spec.volume_mode.unwrap_or_else(|| "Filesystem".to_owned())),
    ]
}

/// The cells of a volume's row.
pub fn volume(volume: &PersistentVolume) -> Vec<Value> {
    let spec = volume.spec.clone().unwrap_or_default();
    let status = volume.status.clone().unwrap_or_default();
    let claim = spec.claim_ref.as_ref().map(|claim| {
        format!(
            "{}/{}",
            claim.namespace.as_deref().unwrap_or_default(),
            claim.name.as_deref().unwrap_or_default()
        )
    });
    let capacity = spec.capacity.as_ref().and_then(|amounts| amounts.get("storage"));
    vec![
        json!(volume.metadata.name),
        json!(capacity.map(|amount| amount.0.clone()).unwrap_or_default()),
        json!(modes(spec.access_modes.as_deref())),
        json!(spec.persistent_volume_reclaim_policy.unwrap_or_default()),
        phase(&volume.metadata, status.phase),
        json!(claim.unwrap_or_default()),
        json!(spec.storage_class_name.unwrap_or_default()),
        json!(spec.volume_attributes_class_name.unwrap_or_else(|| "<unset>".to_owned())),
        json!(status.reason.unwrap_or_default()),
        json!(age(volume.metadata.creation_timestamp.as_ref())),
        json!(spec.volume_mode.unwrap_or_else(|| "Filesystem".to_owned())),
    ]
}
