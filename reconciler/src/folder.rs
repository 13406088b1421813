//! Manifest folders: watched by inotify, rescanned now and then.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use tokio::sync::mpsc;

use crate::manifest::{Context, ManifestError};
use crate::pod::Pod;

/// What happened in the watched folders.
#[derive(Clone, Debug, PartialEq)]
pub enum FolderEvent {
    /// A file is new or has changed. What an earlier `Loaded` of the same file gave is replaced by this,
    /// except when the file is `broken`.
    Loaded {
        /// The file.
        file: PathBuf,
        /// Its pods, admitted.
        pods: Vec<Arc<Pod>>,
        /// Its ConfigMaps.
        config_maps: Vec<Arc<v1::ConfigMap>>,
        /// Its Secrets.
        secrets: Vec<Arc<v1::Secret>>,
        /// What is wrong with it.
        errors: Vec<ManifestError>,
        /// There are errors, so what this file gave before and does not give now stays as it is: pods and objects
        /// that are absent here must be kept, those that are present replace their predecessors.
        broken: bool,
    },
    /// A file is gone.
    Removed {
        /// The file.
        file: PathBuf,
    },
    /// Every file that was there at the start has been reported.
    Synced,
}

/// How to watch.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often all folders are compared with what is known, in case an event was lost (kubelet: `fileCheckFrequency`, 20 s).
    pub rescan: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { rescan: Duration::from_secs(20) }
    }
}

/// Watches folders for as long as the receiver lives. Must be called within a tokio runtime.
pub fn watch(
    _dirs: Vec<PathBuf>,
    _context: Context,
    _options: Options,
) -> mpsc::UnboundedReceiver<FolderEvent> {
    mpsc::unbounded_channel().1
}
