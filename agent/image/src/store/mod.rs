//! The store: what a caller can do with images.

mod blob;
mod index;
mod keys;
mod layer;
mod layout;
mod lookup;
mod session;
mod sweep;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FlockOperation;

pub(crate) use blob::{
    Blob, BlobWriter, Unnamed, open as open_blob, read as read_blob, read_document, size as blob_size,
};
pub(crate) use index::{Index, Record};
pub(crate) use keys::Keys;
pub(crate) use layer::{Pending, chain_ids, size as layer_size, unpack as unpack_layer};
pub(crate) use layout::Layout;
pub(crate) use session::{Ready, Session, complete};
pub(crate) use sweep::Piece;

use crate::config::Document;
use crate::{Error, Image, Removed, Result, reference};

/// The image store of one folder. Clones share everything; every method may be called from any thread, and several
/// processes may have the same store open.
///
/// All methods but [`Store::pull`] do blocking I/O.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) index: index::IndexFile,
    pub(crate) keys: Arc<Keys>,
    /// Held shared as long as the store is open.
    _open: File,
}

fn missing(reference: &str) -> Error {
    Error::NotFound { reference: reference.to_owned(), reason: String::new() }
}

impl Store {
    /// Opens the store in `root`, and makes it if there is none.
    ///
    /// If no other process has it open, leftovers of work that was cut short are removed.
    pub fn open(root: &Path) -> Result<Store> {
        let layout = Layout::create(root)?;
        let open = layout.lock_file("lock")?;
        let alone = rustix::fs::flock(&open, FlockOperation::NonBlockingLockExclusive).is_ok();
        let index = index::IndexFile::open(&layout)?;
        let inner = Inner { layout, index, keys: Arc::default(), _open: open };
        if alone {
            inner.remove_leftovers()?;
        }
        layout::lock(&inner._open, FlockOperation::LockShared, inner.layout.root())?;
        Ok(Store { inner: Arc::new(inner) })
    }

    /// The image of that name, digest reference, digest, id or beginning of an id.
    pub fn get(&self, reference: &str) -> Result<Option<Image>> {
        let index = self.inner.index.read(&self.inner.layout)?;
        let Some(id) = lookup::find(&index, reference)? else { return Ok(None) };
        index.images.get(&id).map(|record| self.inner.image(&index, &id, record)).transpose()
    }

    /// All images, newest first.
    pub fn list(&self) -> Result<Vec<Image>> {
        let index = self.inner.index.read(&self.inner.layout)?;
        let mut images = Vec::with_capacity(index.images.len());
        for (id, record) in &index.images {
            match self.inner.image(&index, id, record) {
                Ok(image) => images.push(image),
                // One damaged image must not hide the others.
                Err(e) => tracing::warn!(image = %id, error = %e, "image left out"),
            }
        }
        images.sort_by(|a, b| b.added.cmp(&a.added).then_with(|| a.id.cmp(&b.id)));
        Ok(images)
    }

    /// Gives the image `source` (anything [`Store::get`] takes) the further name `target`. If another image had that
    /// name, it moves.
    pub fn tag(&self, source: &str, target: &str) -> Result<Image> {
        let name = reference::parse(target)?;
        if name.digest().is_some() {
            let reason = "a digest cannot be given to an image".to_owned();
            return Err(Error::InvalidName { reference: target.to_owned(), reason });
        }
        let id = self.inner.index.change(&self.inner.layout, |index| {
            let id = lookup::find(index, source)?.ok_or_else(|| missing(source))?;
            index.names.insert(name.whole(), id.clone());
            Ok(id)
        })?;
        self.get(&id)?.ok_or_else(|| missing(source))
    }

    /// Removes a name, and with the last name the image. An id removes the image with all its names.
    ///
    /// `in_use` is asked before an image is deleted (not for mere untagging); it must not call the store.
    pub fn remove(&self, reference: &str, in_use: &dyn Fn(&Image) -> bool) -> Result<Removed> {
        let (mut removed, pieces) = self.inner.index.change(&self.inner.layout, |index| {
            let id = lookup::find(index, reference)?.ok_or_else(|| missing(reference))?;
            let by_name = reference::normalize(reference).ok().filter(|_| !names_an_id(&id, reference));
            let mut removed = Removed::default();
            let gone: Vec<String> = match &by_name {
                Some(name) if index.names.contains_key(name) => vec![name.clone()],
                Some(name) if index.names_of(&id).any(|n| !same_repository(n, name)) => {
                    index.names_of(&id).filter(|n| same_repository(n, name)).cloned().collect()
                }
                _ => index.names_of(&id).cloned().collect(),
            };
            let last = index.names_of(&id).all(|name| gone.contains(name));
            let mut pieces = Vec::new();
            if last {
                self.inner.refuse_if_used(index, &id, reference, in_use)?;
                pieces.extend(index.images.remove(&id).iter().flat_map(Piece::of));
                removed.deleted.push(id.clone());
            } else if let (Some(name), Some(record)) =
                (by_name.filter(|n| n.contains('@')), index.images.get_mut(&id))
            {
                record.repo_digests.retain(|digest| !same_repository(digest, &name));
            }
            for name in gone {
                index.names.remove(&name);
                removed.untagged.push(name);
            }
            Ok((removed, pieces))
        })?;
        removed.freed = self.inner.discard(pieces)?;
        Ok(removed)
    }

    /// Removes every image for which `keep` says no, and what was pulled and never became an image. `keep` must not
    /// call the store.
    pub fn prune(&self, keep: &dyn Fn(&Image) -> bool) -> Result<Removed> {
        let (mut removed, pieces) = self.inner.index.change(&self.inner.layout, |index| {
            let mut removed = Removed::default();
            for (id, record) in &index.images {
                // An image that cannot even be read is of no use to anyone.
                if !self.inner.image(index, id, record).is_ok_and(|image| keep(&image)) {
                    removed.deleted.push(id.clone());
                }
            }
            let mut pieces = Vec::new();
            for id in &removed.deleted {
                pieces.extend(index.images.remove(id).iter().flat_map(Piece::of));
            }
            removed.untagged = index
                .names
                .iter()
                .filter(|(_, id)| removed.deleted.contains(id))
                .map(|(n, _)| n.clone())
                .collect();
            index.names.retain(|_, id| !removed.deleted.contains(id));
            Ok((removed, pieces))
        })?;
        removed.freed = self.inner.discard(pieces)? + self.inner.remove_abandoned()?;
        Ok(removed)
    }

    /// The image configuration document as it was made, for `inspect`.
    pub fn raw_config(&self, reference: &str) -> Result<serde_json::Value> {
        let image = self.get(reference)?.ok_or_else(|| missing(reference))?;
        let bytes = read_blob(&self.inner.layout, &image.id)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(format!("configuration {}", image.id), e))
    }
}

/// Whether `reference` is the image's id or the beginning of it, rather than a name.
fn names_an_id(id: &str, reference: &str) -> bool {
    let bare = reference.strip_prefix("sha256:").unwrap_or(reference);
    crate::manifest::is_hex(bare) && id["sha256:".len()..].starts_with(bare)
}

/// Whether two canonical names differ in tag and digest at most.
fn same_repository(a: &str, b: &str) -> bool {
    fn repository(name: &str) -> &str {
        let name = name.split_once('@').map_or(name, |(name, _)| name);
        match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        }
    }
    repository(a) == repository(b)
}

impl Inner {
    fn image(&self, index: &Index, id: &str, record: &Record) -> Result<Image> {
        let bytes = read_blob(&self.layout, id)?;
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(format!("configuration {id}"), e))?;
        let layers =
            record.layers.iter().rev().map(|chain| self.layout.diff(chain)).collect::<Result<_>>()?;
        Ok(Image {
            id: id.to_owned(),
            repo_tags: index.names_of(id).filter(|name| !name.contains('@')).cloned().collect(),
            repo_digests: record.repo_digests.iter().cloned().collect(),
            size: record.size,
            created: document.created.as_deref().and_then(|text| text.parse().ok()),
            added: record.added,
            architecture: document.architecture,
            os: document.os,
            config: document.config,
            manifest: record.manifest.clone(),
            layers,
        })
    }

    fn refuse_if_used(
        &self,
        index: &Index,
        id: &str,
        reference: &str,
        in_use: &dyn Fn(&Image) -> bool,
    ) -> Result<()> {
        let Some(record) = index.images.get(id) else { return Ok(()) };
        match self.image(index, id, record) {
            Ok(image) if in_use(&image) => Err(Error::InUse { reference: reference.to_owned() }),
            // A damaged image can be removed; nothing runs from it that was started since.
            _ => Ok(()),
        }
    }
}
