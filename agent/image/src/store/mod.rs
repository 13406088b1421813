//! The store: what a caller can do with images.

use std::io::{Read, Write};
use std::path::Path;

use crate::{Error, Image, ImportOptions, LoadOptions, PullOptions, Removed, Result};

/// The image store of one folder. Clones share everything; every method may be called from any thread.
///
/// All methods but [`Store::pull`] do blocking I/O.
#[derive(Clone, Debug)]
pub struct Store {}

fn missing(reference: &str) -> Error {
    Error::NotFound { reference: reference.to_owned(), reason: String::new() }
}

impl Store {
    /// Opens the store in `root`, and makes it if there is none. Leftovers of a crash are removed.
    pub fn open(root: &Path) -> Result<Store> {
        let _ = root;
        Ok(Store {})
    }

    /// The image of that name, digest reference, id or beginning of an id.
    pub fn get(&self, reference: &str) -> Result<Option<Image>> {
        let _ = reference;
        Ok(None)
    }

    /// All images, newest first.
    pub fn list(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    /// Gives the image `source` (anything [`Store::get`] takes) the further name `target`, moving that name if another image had it.
    pub fn tag(&self, source: &str, target: &str) -> Result<Image> {
        let _ = target;
        Err(missing(source))
    }

    /// Removes a name, and with the last name the image. An id removes the image with all its names.
    ///
    /// `in_use` is asked before an image is deleted (not for mere untagging); it must not call the store.
    pub fn remove(&self, reference: &str, in_use: &dyn Fn(&Image) -> bool) -> Result<Removed> {
        let _ = in_use;
        Err(missing(reference))
    }

    /// Removes every image for which `keep` says no. `keep` must not call the store.
    pub fn prune(&self, keep: &dyn Fn(&Image) -> bool) -> Result<Removed> {
        let _ = keep;
        Ok(Removed::default())
    }

    /// Makes a one-layer image of a root file system: a tar, plain or compressed with gzip or zstd.
    pub fn import(&self, tar: impl Read, reference: &str, options: &ImportOptions) -> Result<Image> {
        let _ = (tar, options);
        Err(missing(reference))
    }

    /// Loads all images of an archive: an OCI layout or `docker save`, as a tar, plain or compressed.
    pub fn load(&self, archive: impl Read, options: &LoadOptions) -> Result<Vec<Image>> {
        let _ = (archive, options);
        Ok(Vec::new())
    }

    /// Loads all images of an archive file or of an unpacked OCI layout or `docker save` folder.
    pub fn load_path(&self, path: &Path, options: &LoadOptions) -> Result<Vec<Image>> {
        let _ = (path, options);
        Ok(Vec::new())
    }

    /// Writes images as a tar that is an OCI layout and a `docker load` archive at once.
    pub fn save(&self, references: &[&str], out: impl Write) -> Result<()> {
        let _ = (references, out);
        Ok(())
    }

    /// The image configuration document as it was made, for `inspect`.
    pub fn raw_config(&self, reference: &str) -> Result<serde_json::Value> {
        Err(missing(reference))
    }

    /// Gets the image from its registry. What is here already is not fetched again; concurrent pulls share their work.
    pub async fn pull(&self, reference: &str, options: &PullOptions) -> Result<Image> {
        let _ = options;
        Err(missing(reference))
    }
}
