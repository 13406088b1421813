//! Where things are in the store's folder.
//!
//! ```text
//! index.json              images and names; replaced by rename
//! lock                    shared by everyone who has the store open; exclusive while leftovers are removed
//! index.lock              exclusive while index.json is replaced
//! blobs/sha256/<hex>      manifests, configurations and layers as they came
//! layers/<chain id>/diff  unpacked layers
//! tmp/                    everything unfinished
//! ```
//!
//! Nothing has its final name before it is complete and verified, and nothing counts before index.json names it.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::Result;
use crate::error::Context;
use crate::manifest::hex;

#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the folders.
    pub(crate) fn create(root: &Path) -> Result<Layout> {
        let root = std::path::absolute(root).context("resolve", root)?;
        let layout = Layout { root };
        for dir in [layout.root.clone(), layout.root.join("blobs/sha256"), layout.layers(), layout.tmp()] {
            std::fs::create_dir_all(&dir).context("create", &dir)?;
        }
        Ok(layout)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn blob(&self, digest: &str) -> Result<PathBuf> {
        Ok(self.blobs().join(hex(digest)?))
    }

    /// The folder of an unpacked layer with its lower layers.
    pub(crate) fn layer(&self, chain: &str) -> Result<PathBuf> {
        Ok(self.layers().join(hex(chain)?))
    }

    /// What overlayfs mounts.
    pub(crate) fn diff(&self, chain: &str) -> Result<PathBuf> {
        Ok(self.layer(chain)?.join("diff"))
    }

    pub(crate) fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.root.join(name);
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).context("open", &path)
    }
}

/// Waits for a lock between processes; it ends with the file.
pub(crate) fn lock(file: &File, how: FlockOperation, path: &Path) -> Result<()> {
    loop {
        match flock(file, how) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.context("lock", path),
        }
    }
}
