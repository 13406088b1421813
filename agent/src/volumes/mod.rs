//! The volumes of a pod on the host: folders that its containers bind-mount.
//!
//! Data of the pod's own making (emptyDir) lies under the state folder; what is copied from objects (configMap,
//! secret, downwardAPI, projected) lies in the run folder, which is memory, so that secrets never reach a disk.

pub mod claims;
mod empty_dir;
mod host_path;
mod labels;
mod mapped;
mod ownership;
mod payload;
mod publish;
pub mod usage;
mod walk;

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_reconciler::env::{Facts, Lookup};
use berth_reconciler::node::Failure;
use berth_reconciler::pod::Pod;
use berth_reconciler::quantity::Quantity;
use berth_reconciler::resources;
use berth_reconciler::selinux::PodLabels;
use berth_runtime::shim::IdRange;
use claims::{Attached, Claims};
use empty_dir::Medium;
use k8s_openapi::api::core::v1;

pub(crate) use labels::{inherit as inherit_label, relabel, set_one as set_label, settle as settle_label};
pub use mapped::{WORD as MOUNT_IMAGE, main as mount_image};
pub use walk::remove_tree;

/// Where the volumes of one pod lie.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Folder for data on disk: `<root>/volumes/<uid>`.
    pub data: PathBuf,
    /// Folder for copies of objects: `<run>/pods/<uid>/volumes`.
    pub objects: PathBuf,
    /// Folder that says which images are in use: `<root>/rootfs/<uid>`.
    pub rootfs: PathBuf,
}

fn failed(volume: &str, what: impl std::fmt::Display) -> Failure {
    Failure {
        reason: "FailedMount".into(),
        message: format!("MountVolume.SetUp failed for volume {volume:?} : {what}"),
    }
}

/// Where the content of volumes comes from.
pub struct Sources<'a> {
    /// What the downward API tells.
    pub facts: &'a Facts,
    /// ConfigMaps and Secrets.
    pub lookup: &'a dyn Lookup,
    /// Claims.
    pub claims: &'a Claims,
    /// Images.
    pub images: &'a berth_image::Store,
    /// The host's ids of the pod's users, when it has its own.
    pub users: Option<IdRange>,
    /// The container that starts, for [`Stage::Container`].
    pub container: Option<&'a v1::Container>,
    /// The pod's SELinux labels, where pods have them.
    pub labels: Option<&'a PodLabels>,
}

/// What volumes are set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A sandbox: volumes are made, and handed over to the pod's fsGroup.
    Pod,
    /// A container that starts: what is missing is made.
    Container,
    /// What the copies were made of has changed: only those are brought up to date.
    Refresh,
}

/// Makes every volume of the pod, or brings it up to date; can be repeated. Gives their paths by name.
///
/// # Errors
/// `FailedMount` with the volume's name, for a missing object, a hostPath of the wrong type, a claim that is not bound, or
/// a failing disk.
pub fn set_up(
    pod: &Pod,
    folders: &Folders,
    sources: &Sources<'_>,
    stage: Stage,
) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let (mut paths, mut first) = (BTreeMap::new(), None);
    for volume in pod.spec().volumes.iter().flatten() {
        if stage == Stage::Refresh && !is_copy(volume) {
            continue;
        }
        if let Some(source) = &volume.image {
            // Its image is there only when a container that mounts it starts.
            if sources.container.is_some_and(|container| mounts(container, &volume.name)) {
                let reference = source.reference.as_deref().unwrap_or_default();
                let label = sources.labels.map(|labels| labels.volume(pod.spec(), &volume.name));
                let path = image(&volume.name, reference, label.as_deref(), folders, sources)?;
                paths.insert(volume.name.clone(), path);
            }
            continue;
        }
        match set_up_one(pod, volume, folders, sources, stage) {
            Ok(path) => drop(paths.insert(volume.name.clone(), path)),
            // What one copy lacks keeps no other from being brought up to date.
            Err(failure) if stage == Stage::Refresh => drop(first.get_or_insert(failure)),
            Err(failure) => return Err(failure),
        }
    }
    first.map_or(Ok(paths), Err)
}

fn set_up_one(
    pod: &Pod,
    volume: &v1::Volume,
    folders: &Folders,
    sources: &Sources<'_>,
    stage: Stage,
) -> Result<PathBuf, Failure> {
    let name = &volume.name;
    let security = pod.spec().security_context.as_ref();
    let fs_group = security.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
    let label = sources.labels.map(|labels| labels.volume(pod.spec(), name));
    let settle = |path: &PathBuf| label.as_deref().map_or(Ok(()), |label| labels::settle(path, label));
    let unlabelled = |e| failed(name, format!("label with {:?}: {e}", label.as_deref().unwrap_or_default()));
    if let Some(host) = &volume.host_path {
        return host_path::check(name, host);
    }
    if let Some(empty) = &volume.empty_dir {
        let path = folders.data.join(name);
        let medium = medium(empty, pod, sources.facts).map_err(|e| failed(name, e))?;
        empty_dir::make(name, medium, &path, fs_group)?;
        settle(&path).map_err(unlabelled)?;
        return Ok(path);
    }
    if claims::claim_of(pod, volume).is_some() {
        let path = match sources.claims.attach(pod, volume).map_err(|e| failed(name, e))? {
            Attached::Host(host) => return host_path::check(name, &host),
            Attached::Folder(path) => path,
        };
        if let Some(group) = fs_group.filter(|_| stage == Stage::Pod) {
            let on_mismatch =
                security.and_then(|s| s.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
            ownership::hand_over(&path, group, on_mismatch)
                .map_err(|e| failed(name, format!("applyFSGroup failed: {e}")))?;
        }
        // Others may have put files of their labels into it meanwhile; a container that starts again has seen to its own.
        match label.as_deref().filter(|_| stage == Stage::Pod) {
            Some(label) => labels::relabel(&path, label),
            None => settle(&path),
        }
        .map_err(unlabelled)?;
        return Ok(path);
    }
    let path = folders.objects.join(name);
    let payload =
        payload::collect(pod, volume, sources.facts, sources.lookup).map_err(|e| failed(name, e))?;
    publish::publish(&path, &payload, fs_group, label.as_deref()).map_err(|e| failed(name, e))?;
    settle(&path).map_err(unlabelled)?;
    Ok(path)
}

fn medium(empty: &v1::EmptyDirVolumeSource, pod: &Pod, facts: &Facts) -> Result<Medium, String> {
    let limit = empty.size_limit.as_ref();
    let medium = empty.medium.as_deref().unwrap_or_default();
    if medium == "Memory" {
        let size = resources::memory_volume_size(limit, pod.spec(), facts.allocatable_memory);
        return Ok(Medium::Memory(size));
    }
    let Some(page) = resources::page_size_of_medium(medium, pod.spec())? else { return Ok(Medium::Disk) };
    let limit = limit.and_then(|limit| Quantity::of(limit).ok());
    let bytes = limit.and_then(|limit| u64::try_from(limit.value()).ok()).filter(|bytes| *bytes > 0);
    Ok(Medium::HugePages { page, bytes })
}

/// Whether a container mounts a volume.
pub fn mounts(container: &v1::Container, volume: &str) -> bool {
    container.volume_mounts.iter().flatten().any(|mount| mount.name == volume)
}

/// Mounts the files of an image, which has been made present.
fn image(
    name: &str,
    reference: &str,
    label: Option<&str>,
    folders: &Folders,
    sources: &Sources<'_>,
) -> Result<PathBuf, Failure> {
    let image = sources.images.get(reference).map_err(|e| failed(name, e))?;
    let image = image.ok_or_else(|| {
        failed(name, format!("image {reference:?} is no longer in the store; pull or load it again"))
    })?;
    let (path, record) = (folders.data.join(name), folders.rootfs.join(format!("volume-{name}")));
    let make = || -> std::io::Result<()> {
        // Whoever removes images can see here which are in use.
        std::fs::create_dir_all(&record)?;
        std::fs::write(record.join("image"), &image.id)?;
        std::fs::create_dir_all(&path)?;
        let mut layers = image.layers.clone();
        if label.is_some() && layers.len() == 1 {
            // Only an overlay can be labelled as a whole, and one of a single layer there is not.
            let empty = record.join("empty");
            std::fs::create_dir_all(&empty)?;
            layers.push(empty);
        }
        match sources.users {
            Some(users) if layers.len() > 1 => mapped::mount(&path, &layers, users, label),
            _ => berth_runtime::layers::mount_read_only(&path, &layers, label),
        }
    };
    make().map_err(|e| failed(name, format!("mount image {reference:?}: {e}")))?;
    Ok(path)
}

/// Whether the pod has volumes whose content follows ConfigMaps, Secrets or its own labels.
pub fn follow_objects(pod: &Pod) -> bool {
    pod.spec().volumes.iter().flatten().any(is_copy)
}

/// Whether containers of the pod may only read a volume, whatever their mounts say: the agent itself keeps copies up to
/// date, and a claim may be mounted read-only.
pub fn is_read_only(pod: &Pod, volume: &str) -> bool {
    let claim =
        |v: &v1::Volume| v.persistent_volume_claim.as_ref().is_some_and(|c| c.read_only == Some(true));
    let read_only = |v: &v1::Volume| is_copy(v) || v.image.is_some() || claim(v);
    pod.spec().volumes.iter().flatten().any(|v| v.name == volume && read_only(v))
}

fn is_copy(volume: &v1::Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Takes away everything that [`set_up`] made (never the folder of a hostPath); can be repeated.
///
/// # Errors
/// The first folder that could not be unmounted or removed; the others are removed all the same.
pub fn tear_down(folders: &Folders) -> Result<(), String> {
    let mut first = Ok(());
    for dir in [&folders.data, &folders.objects] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            berth_runtime::tmpfs::unmount(&entry.path());
        }
        if let Err(error) = remove_tree(dir) {
            first = first.and(Err(format!("remove {}: {error}", dir.display())));
        }
    }
    first
}
