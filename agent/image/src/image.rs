//! What the store says about one image.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::ImageConfig;

/// An image in the store, unpacked and ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `sha256:<digest of the configuration>`.
    pub id: String,
    /// Canonical names with a tag, such as `docker.io/library/nginx:latest`, sorted.
    pub repo_tags: Vec<String>,
    /// Names with the digest that the registry gave, such as `docker.io/library/nginx@sha256:…`, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes on disk: the blobs and the unpacked layers. Layers shared with other images count fully.
    pub size: u64,
    /// When the image was built, by its own account.
    pub created: Option<Timestamp>,
    /// When it came into this store.
    pub added: Timestamp,
    /// GOARCH name, such as `amd64`.
    pub architecture: String,
    /// GOOS name, `linux`.
    pub os: String,
    /// How to run it.
    pub config: ImageConfig,
    /// Digest of the manifest.
    pub manifest: String,
    /// Folders of the unpacked layers, TOP FIRST, as overlayfs' `lowerdir` wants them.
    pub layers: Vec<PathBuf>,
}
