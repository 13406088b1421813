//! Where a container's root file system comes from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The root file system of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rootfs {
    /// A folder that is used as it is, as `root.path` of an OCI bundle.
    Path(PathBuf),
    /// An overlay that the container itself mounts inside its own mount namespace, so that nothing of it is left
    /// in the host's mount table whatever dies first.
    Overlay {
        /// Read-only layers, top first, as overlayfs' `lowerdir` wants them.
        lowers: Vec<PathBuf>,
        /// The container's own writable layer.
        upper: PathBuf,
        /// overlayfs' work folder, on the same file system as `upper`.
        work: PathBuf,
    },
}
