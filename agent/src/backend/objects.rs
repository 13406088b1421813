//! API objects on disk: `<root>/objects/<kind>/<namespace>_<name>.json`, so that they outlive the agent and a reboot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_reconciler::node::Deletion;
use berth_reconciler::pod::{Pod, Source};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::configs::{Object, ObjectKey};
use crate::durable;
use crate::store::Kind;

/// A pod of the API as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredPod {
    /// The pod.
    #[serde(with = "crate::shared")]
    pub pod: Arc<Pod>,
    /// Its deletion, once asked for.
    #[serde(default)]
    pub deletion: Option<Deletion>,
}

/// The folder of objects.
#[derive(Clone, Debug)]
pub struct Objects {
    dir: PathBuf,
    /// Whose pods are stored here.
    source: Source,
}

impl Objects {
    /// The objects of a state folder.
    pub fn new(root: &Path) -> Self {
        Self { dir: root.join("objects"), source: Source::Api }
    }

    /// The last known objects of the cluster, `<root>/cluster`: with them a node goes on while its API server is away.
    pub fn of_cluster(root: &Path) -> Self {
        Self { dir: root.join("cluster"), source: Source::Cluster }
    }

    /// The objects of a folder.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir, source: Source::Api }
    }

    fn path(&self, kind: Kind, namespace: &str, name: &str) -> PathBuf {
        // Neither part can hold an underscore (RFC 1123), so the name is unique.
        self.dir.join(kind.plural()).join(format!("{namespace}_{name}.json"))
    }

    /// Writes a pod, if it is one of those that are stored here; one of a manifest file is stored there already.
    pub fn save_pod(&self, pod: &Arc<Pod>, deletion: Option<&Deletion>) {
        if pod.source != self.source {
            return;
        }
        let path = self.path(Kind::Pod, pod.namespace(), pod.name());
        let stored = StoredPod { pod: pod.clone(), deletion: deletion.cloned() };
        if let Err(error) = write_if_new(&path, &stored) {
            tracing::error!(path = %path.display(), %error, "cannot store a pod; it would be lost with the agent");
        }
    }

    /// Writes an API pod before it is accepted.
    ///
    /// # Errors
    /// What the file system says: a pod that cannot be stored is not accepted.
    pub fn create_pod(&self, pod: &Arc<Pod>) -> io::Result<()> {
        let path = self.path(Kind::Pod, pod.namespace(), pod.name());
        write_if_new(&path, &StoredPod { pod: pod.clone(), deletion: None })
    }

    /// Removes a pod that is gone, unless the name belongs to another pod by now.
    pub fn remove_pod(&self, pod: &Arc<Pod>) {
        if pod.source != self.source {
            return;
        }
        let path = self.path(Kind::Pod, pod.namespace(), pod.name());
        let ours = read::<StoredPod>(&path).is_none_or(|stored| stored.pod.uid() == pod.uid());
        if ours {
            remove(&path);
        }
    }

    /// Writes a ConfigMap or Secret.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save_config(&self, object: &Object) -> io::Result<()> {
        let (kind, namespace, name) = object.key();
        let path = self.path(kind, &namespace, &name);
        match object {
            Object::ConfigMap(o) => write_if_new(&path, o.as_ref()),
            Object::Secret(o) => write_if_new(&path, o.as_ref()),
        }
    }

    /// Removes a ConfigMap or Secret.
    pub fn remove_config(&self, key: &ObjectKey) {
        remove(&self.path(key.0, &key.1, &key.2));
    }

    /// All stored pods.
    pub fn pods(&self) -> Vec<StoredPod> {
        self.all(Kind::Pod)
    }

    /// All stored ConfigMaps and Secrets.
    pub fn configs(&self) -> Vec<Object> {
        let maps = self.all(Kind::ConfigMap).into_iter().map(|o| Object::ConfigMap(Arc::new(o)));
        let secrets = self.all(Kind::Secret).into_iter().map(|o| Object::Secret(Arc::new(o)));
        maps.chain(secrets).collect()
    }

    /// Writes any object.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, kind: Kind, namespace: &str, name: &str, value: &impl Serialize) -> io::Result<()> {
        write_if_new(&self.path(kind, namespace, name), value)
    }

    /// One stored object.
    pub fn read<T: DeserializeOwned>(&self, kind: Kind, namespace: &str, name: &str) -> Option<T> {
        read(&self.path(kind, namespace, name))
    }

    /// Removes any object.
    pub fn remove(&self, kind: Kind, namespace: &str, name: &str) {
        remove(&self.path(kind, namespace, name));
    }

    /// All stored objects of a kind.
    pub fn all<T: DeserializeOwned>(&self, kind: Kind) -> Vec<T> {
        let entries = std::fs::read_dir(self.dir.join(kind.plural()));
        let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
        paths.filter(|p| p.extension().is_some_and(|e| e == "json")).filter_map(|p| read(&p)).collect()
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = std::fs::read(path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "a stored object cannot be read and is left alone");
            None
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(path = %path.display(), %error, "cannot remove a stored object");
    }
}

/// Writes durably and atomically, readable by the owner only; nothing is written when the file says the same.
fn write_if_new(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::other)?;
    if std::fs::read(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    durable::write(path, &text, 0o600)
}
