//! Environment files in the volumes of a pod (`fileKeyRef`).
//!
//! Containers write them: a file is looked for without leaving its volume, whatever links lie there, and is small.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_reconciler::env::Lookup;
use berth_reconciler::pod::Pod;
use k8s_openapi::api::core::v1;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use crate::cluster::ClusterServices;
use crate::configs::Configs;
use crate::services::Services;

/// The longest file that is read, in bytes: more than that no program could be given.
const MAX_FILE: u64 = 1 << 20;

/// What the variables of a pod's container are made from.
pub(super) struct PodFiles<'a> {
    /// ConfigMaps and Secrets.
    pub configs: &'a Configs,
    /// Services.
    pub services: &'a Services,
    /// The cluster's.
    pub cluster: &'a ClusterServices,
    /// Folder of the pod's emptyDir volumes.
    pub data: PathBuf,
}

impl Lookup for PodFiles<'_> {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<v1::ConfigMap>> {
        self.configs.config_map(namespace, name)
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<v1::Secret>> {
        self.configs.secret(namespace, name)
    }

    fn services(&self, pod: &Pod) -> Vec<Arc<v1::Service>> {
        let mut services = self.services.of(pod.namespace());
        let of_cluster = self.cluster.of(pod.namespace());
        // The node's own come first, where both have one of a name.
        let known: Vec<_> = services.iter().map(|service| service.metadata.name.clone()).collect();
        services.extend(of_cluster.into_iter().filter(|service| !known.contains(&service.metadata.name)));
        services
    }

    fn volume_file(&self, _: &Pod, volume: &str, path: &str) -> Result<Option<String>, String> {
        read(&self.data.join(volume), path)
    }
}

fn read(volume: &Path, path: &str) -> Result<Option<String>, String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = open(volume, flags, Mode::empty()).map_err(|e| format!("open the volume: {e}"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(&folder, path, how) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(Errno::EXDEV) => return Err("it leads out of the volume".into()),
        Err(error) => return Err(error.to_string()),
    };
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is not a file".into());
    }
    if meta.len() > MAX_FILE {
        return Err(format!("it is longer than {MAX_FILE} bytes"));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|e| e.to_string())?;
    Ok(Some(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_from_their_volume_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(volume.join("sub/env"), "A='1'").unwrap();
        std::fs::write(dir.path().join("secret"), "A='2'").unwrap();
        std::os::unix::fs::symlink("sub/env", volume.join("inside")).unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("outside")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), volume.join("absolute")).unwrap();
        nix::unistd::mkfifo(&volume.join("pipe"), Mode::S_IRUSR).unwrap();
        std::fs::File::create(volume.join("long")).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert_eq!(read(&volume, "sub/env").unwrap().as_deref(), Some("A='1'"));
        assert_eq!(read(&volume, "inside").unwrap().as_deref(), Some("A='1'"));
        assert_eq!(read(&volume, "none"), Ok(None));
        for out in ["outside", "absolute", "../secret"] {
            assert_eq!(read(&volume, out).unwrap_err(), "it leads out of the volume", "{out}");
        }
        assert_eq!(read(&volume, "pipe").unwrap_err(), "it is not a file");
        assert!(read(&volume, "long").unwrap_err().contains("longer"));
    }
}
