//! The volumes of a pod on the host: folders that its containers bind-mount.
//!
//! Data of the pod's own making (emptyDir) lies under the state folder; what is copied from objects (configMap,
//! secret, downwardAPI, projected) lies in the run folder, which is memory, so that secrets never reach a disk.

mod payload;
mod publish;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use berth_reconciler::env::{Facts, Lookup};
use berth_reconciler::node::Failure;
use berth_reconciler::pod::Pod;
use berth_reconciler::resources;
use k8s_openapi::api::core::v1;

/// Where the volumes of one pod lie.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Folder for data on disk: `<root>/volumes/<uid>`.
    pub data: PathBuf,
    /// Folder for copies of objects: `<run>/pods/<uid>/volumes`.
    pub objects: PathBuf,
}

fn failed(volume: &str, what: impl std::fmt::Display) -> Failure {
    Failure {
        reason: "FailedMount".into(),
        message: format!("MountVolume.SetUp failed for volume {volume:?} : {what}"),
    }
}

/// Makes every volume of the pod, or brings it up to date; can be repeated. Gives their paths by name.
///
/// # Errors
/// `FailedMount` with the volume's name, for a missing object, a hostPath of the wrong type, or a failing disk.
pub fn set_up(
    pod: &Pod,
    folders: &Folders,
    facts: &Facts,
    lookup: &dyn Lookup,
) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let fs_group =
        pod.spec().security_context.as_ref().and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
    let mut paths = BTreeMap::new();
    for volume in pod.spec().volumes.iter().flatten() {
        let path = if let Some(host) = &volume.host_path {
            host_path(&volume.name, host)?
        } else if let Some(empty) = &volume.empty_dir {
            let path = folders.data.join(&volume.name);
            let size = resources::memory_volume_size(
                empty.size_limit.as_ref(),
                pod.spec(),
                facts.allocatable_memory,
            );
            let memory = (empty.medium.as_deref() == Some("Memory")).then_some(size);
            empty_dir(&volume.name, memory, &path, fs_group)?;
            path
        } else {
            let path = folders.objects.join(&volume.name);
            let payload =
                payload::collect(pod, volume, facts, lookup).map_err(|e| failed(&volume.name, e))?;
            publish::publish(&path, &payload, fs_group).map_err(|e| failed(&volume.name, e))?;
            path
        };
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

/// Whether the pod has volumes whose content follows ConfigMaps, Secrets or its own labels.
pub fn follow_objects(pod: &Pod) -> bool {
    pod.spec().volumes.iter().flatten().any(is_copy)
}

/// Whether this volume of the pod holds copies that the agent keeps up to date.
pub fn copies_objects(pod: &Pod, volume: &str) -> bool {
    pod.spec().volumes.iter().flatten().any(|v| v.name == volume && is_copy(v))
}

fn is_copy(volume: &v1::Volume) -> bool {
    volume.host_path.is_none() && volume.empty_dir.is_none()
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

/// `rm -rf`; a missing folder is fine.
pub fn remove_tree(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn empty_dir(name: &str, memory: Option<u64>, path: &Path, fs_group: Option<u32>) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let make = || -> std::io::Result<()> {
        std::fs::create_dir_all(path)?;
        if let Some(bytes) = memory {
            berth_runtime::tmpfs::mount(path, Some(bytes).filter(|b| *b > 0))?;
        }
        let mode = if let Some(group) = fs_group {
            chown(path, None, Some(group))?;
            0o2777
        } else {
            0o777
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    make().map_err(|e| failed(name, e))
}

fn host_path(name: &str, spec: &v1::HostPathVolumeSource) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(&spec.path);
    let kind = spec.type_.as_deref().unwrap_or_default();
    let found = std::fs::metadata(&path).map(|m| m.file_type()).ok();
    let create =
        |made: std::io::Result<()>| made.map_err(|e| failed(name, format!("create {}: {e}", spec.path)));
    match (kind, found) {
        ("" | "DirectoryOrCreate", None) => create(std::fs::create_dir_all(&path))?,
        ("FileOrCreate", None) => create(std::fs::File::create(&path).map(drop))?,
        (_, None) => {
            return Err(failed(name, format!("hostPath type check failed: {} does not exist", spec.path)));
        }
        (kind, Some(found)) => {
            let fits = match kind {
                "" => true,
                "DirectoryOrCreate" | "Directory" => found.is_dir(),
                "FileOrCreate" | "File" => found.is_file(),
                "Socket" => found.is_socket(),
                "CharDevice" => found.is_char_device(),
                "BlockDevice" => found.is_block_device(),
                _ => false,
            };
            if !fits {
                return Err(failed(
                    name,
                    format!("hostPath type check failed: {} is not a {kind}", spec.path),
                ));
            }
        }
    }
    Ok(path)
}
