//! A claim and a volume, as `kubectl describe pvc` and `pv` show them.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pod::{labels, time};
use super::text::Text;
use crate::api::table::modes;

fn status(text: &mut Text, meta: &ObjectMeta, phase: Option<&str>) {
    match &meta.deletion_timestamp {
        Some(deleted) => text.field("Status", format!("Terminating (since {})", time(Some(deleted)))),
        None => text.field("Status", phase.unwrap_or_default()),
    }
}

/// Writes a claim without its events.
pub fn describe_claim(text: &mut Text, claim: &PersistentVolumeClaim, pods: &[Pod]) {
    let spec = claim.spec.clone().unwrap_or_default();
    let state = claim.status.clone().unwrap_or_default();
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    text.field("Name", name);
    text.field("Namespace", claim.metadata.namespace.as_deref().unwrap_or_default());
    text.field("StorageClass", spec.storage_class_name.as_deref().unwrap_or_default());
    status(text, &claim.metadata, state.phase.as_deref());
    text.field("Volume", spec.volume_name.as_deref().unwrap_or_default());
    labels(text, "Labels", "=", claim.metadata.labels.as_ref());
    labels(text, "Annotations", ": ", claim.metadata.annotations.as_ref());
    text.field("Finalizers", finalizers(&claim.metadata));
    let capacity = state.capacity.as_ref().and_then(|amounts| amounts.get("storage"));
    text.field("Capacity", capacity.map(|amount| amount.0.as_str()).unwrap_or_default());
    text.field("Access Modes", modes(state.access_modes.as_deref()));
    text.field("VolumeMode", spec.volume_mode.as_deref().unwrap_or("Filesystem"));
    let uses = |pod: &&Pod| {
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
            volume.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == name)
                || volume.ephemeral.is_some() && format!("{pod_name}-{}", volume.name) == name
        })
    };
    text.list("Used By", pods.iter().filter(uses).filter_map(|pod| pod.metadata.name.clone()));
}

/// Writes a volume.
pub fn describe_volume(text: &mut Text, volume: &PersistentVolume) {
    let spec = volume.spec.clone().unwrap_or_default();
    let state = volume.status.clone().unwrap_or_default();
    text.field("Name", volume.metadata.name.as_deref().unwrap_or_default());
    labels(text, "Labels", "=", volume.metadata.labels.as_ref());
    labels(text, "Annotations", ": ", volume.metadata.annotations.as_ref());
    text.field("Finalizers", finalizers(&volume.metadata));
    text.field("StorageClass", spec.storage_class_name.as_deref().unwrap_or_default());
    status(text, &volume.metadata, state.phase.as_deref());
    let claim = spec.claim_ref.as_ref().map(|claim| {
        format!(
            "{}/{}",
            claim.namespace.as_deref().unwrap_or_default(),
            claim.name.as_deref().unwrap_or_default()
        )
    });
    text.field("Claim", claim.unwrap_or_default());
    text.field("Reclaim Policy", spec.persistent_volume_reclaim_policy.as_deref().unwrap_or_default());
    text.field("Access Modes", modes(spec.access_modes.as_deref()));
    text.field("VolumeMode", spec.volume_mode.as_deref().unwrap_or("Filesystem"));
    let capacity = spec.capacity.as_ref().and_then(|amounts| amounts.get("storage"));
    text.field("Capacity", capacity.map(|amount| amount.0.as_str()).unwrap_or_default());
    text.block("Source", |text| {
        if let Some(host) = &spec.host_path {
            text.field("Type", "HostPath (bare host directory volume)");
            text.field("Path", &host.path);
            text.field("HostPathType", host.type_.as_deref().unwrap_or_default());
        }
        if let Some(local) = &spec.local {
            text.field("Type", "LocalVolume (a persistent volume backed by local storage on a node)");
            text.field("Path", &local.path);
        }
    });
}

fn finalizers(meta: &ObjectMeta) -> String {
    format!("[{}]", meta.finalizers.iter().flatten().cloned().collect::<Vec<_>>().join(" "))
}
