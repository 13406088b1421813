//! How full the volumes of claims are: `kubelet_volume_stats_*` (kubelet/metrics/collectors/volume_stats.go), by which alerts
//! tell that a disk fills up, and the same for the summary.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nix::sys::statvfs::{Statvfs, statvfs};
use prometheus::proto::MetricFamily;

use super::containers::{Kind, PodSample, family};
use crate::node::AgentNode;
use crate::volumes::claims::claim_of;

/// A volume of a pod that has a claim behind it, and the file system that it lies on.
pub(super) struct Volume {
    /// The pod's uid.
    pub uid: String,
    /// The volume's name in the pod.
    pub name: String,
    /// The claim: namespace and name.
    pub claim: (String, String),
    pub fs: Statvfs,
}

/// Looks at the volumes of all pods that have claims. Those with a path of the host tell nothing, as with kubelet.
pub(super) async fn look(node: &AgentNode, samples: &[PodSample]) -> Vec<Volume> {
    let mut found: Vec<(String, String, (String, String), PathBuf)> = Vec::new();
    for sample in samples {
        let pod = &sample.pod;
        for volume in pod.spec().volumes.iter().flatten() {
            let Some(claim) = claim_of(pod, volume) else { continue };
            let Some(folder) = node.claims.folder_of(pod, &claim) else { continue };
            found.push((pod.uid().to_owned(), volume.name.clone(), claim, folder));
        }
    }
    if found.is_empty() {
        return Vec::new();
    }
    let look = move || {
        let looked = found.into_iter().filter_map(|(uid, name, claim, folder)| {
            Some(Volume { uid, name, claim, fs: statvfs(&folder).ok()? })
        });
        looked.collect()
    };
    // A volume may lie on a disk that does not answer.
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

type Figure = (&'static str, &'static str, fn(&Statvfs) -> u64);

const FIGURES: [Figure; 6] = [
    ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |fs| {
        fs.blocks_available() * fs.fragment_size()
    }),
    ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |fs| {
        fs.blocks() * fs.fragment_size()
    }),
    ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", Statvfs::files),
    ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", Statvfs::files_free),
    ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |fs| {
        fs.files().saturating_sub(fs.files_free())
    }),
    ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |fs| {
        fs.blocks().saturating_sub(fs.blocks_free()) * fs.fragment_size()
    }),
];

/// The families of these volumes, one value for each claim.
pub(super) fn families(volumes: &[Volume]) -> prometheus::Result<Vec<MetricFamily>> {
    let of_claim: BTreeMap<_, _> = volumes.iter().map(|volume| (&volume.claim, &volume.fs)).collect();
    let mut families = Vec::new();
    for (name, help, read) in FIGURES {
        let values = of_claim
            .iter()
            .map(|((namespace, claim), fs)| ([namespace.clone(), claim.clone()], read(fs) as f64));
        families.extend(family(name, help, Kind::Gauge, &["namespace", "persistentvolumeclaim"], values)?);
    }
    Ok(families)
}
