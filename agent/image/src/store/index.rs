//! index.json: which images there are and what they are called.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, lock};
use crate::error::Context;
use crate::{Error, Result};

const VERSION: u32 = 1;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Index {
    version: u32,
    /// By id.
    pub images: BTreeMap<String, Record>,
    /// Canonical name to id.
    pub names: BTreeMap<String, String>,
}

impl Default for Index {
    fn default() -> Self {
        Index { version: VERSION, images: BTreeMap::new(), names: BTreeMap::new() }
    }
}

/// One image.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Record {
    /// Digest of the manifest.
    pub manifest: String,
    /// All blobs, the manifest among them.
    pub blobs: BTreeSet<String>,
    /// Chain ids, bottom first.
    pub layers: Vec<String>,
    /// Canonical names with the digests that registries gave.
    pub repo_digests: BTreeSet<String>,
    pub added: Timestamp,
    /// Bytes of blobs and unpacked content.
    pub size: u64,
}

impl Index {
    pub(crate) fn names_of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a String> {
        self.names.iter().filter(move |(_, to)| *to == id).map(|(name, _)| name)
    }
}

/// Tells one written file from the next: a rename gives a new inode.
type Stamp = Option<(u64, i64, i64, u64)>;

/// The file with its last known content. Other processes may replace it at any time.
#[derive(Debug)]
pub(crate) struct IndexFile {
    known: Mutex<(Stamp, Arc<Index>)>,
    /// One writer at a time in this process; `index.lock` does the same between processes.
    writer: Mutex<File>,
}

fn stamp(path: &Path) -> Result<Stamp> {
    match std::fs::metadata(path) {
        Ok(m) => Ok(Some((m.ino(), m.mtime(), m.mtime_nsec(), m.len()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

fn load(path: &Path) -> Result<Index> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Index::default()),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let shown = path.display().to_string();
    let index: Index = serde_json::from_slice(&text).map_err(|e| Error::corrupt(&shown, e))?;
    if index.version != VERSION {
        return Err(Error::unsupported(
            shown,
            format!("written by another berth: version {}", index.version),
        ));
    }
    Ok(index)
}

impl IndexFile {
    pub(crate) fn open(layout: &Layout) -> Result<IndexFile> {
        let file = IndexFile { known: Mutex::default(), writer: Mutex::new(layout.lock_file("index.lock")?) };
        file.read(layout)?;
        Ok(file)
    }

    /// What the file says now.
    pub(crate) fn read(&self, layout: &Layout) -> Result<Arc<Index>> {
        let path = layout.index();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&path)?;
        if now != known.0 {
            // Replaced between the two calls, it has yet another stamp, and is read again next time.
            *known = (now, Arc::new(load(&path)?));
        }
        Ok(Arc::clone(&known.1))
    }

    /// Changes the file, all or nothing, alone. `change` sees what all before it wrote.
    pub(crate) fn change<T>(
        &self,
        layout: &Layout,
        change: impl FnOnce(&mut Index) -> Result<T>,
    ) -> Result<T> {
        let lock_file = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        lock(&lock_file, FlockOperation::LockExclusive, layout.root())?;
        let result = self.change_locked(layout, change);
        // Cannot fail on a lock that is held; and it ends with the process at the latest.
        let _ = lock(&lock_file, FlockOperation::Unlock, layout.root());
        result
    }

    fn change_locked<T>(&self, layout: &Layout, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let before = self.read(layout)?;
        let mut index = (*before).clone();
        let result = change(&mut index)?;
        if index != *before {
            write(layout, &index)?;
        }
        Ok(result)
    }
}

fn write(layout: &Layout, index: &Index) -> Result<()> {
    let path = layout.index();
    let mut file = tempfile::NamedTempFile::new_in(layout.tmp()).context("create a file in", layout.tmp())?;
    serde_json::to_writer(&mut file, index).map_err(std::io::Error::from).context("write", &path)?;
    file.flush().context("write", &path)?;
    file.as_file().sync_all().context("write", &path)?;
    file.persist(&path).map_err(|e| e.error).context("replace", &path)?;
    File::open(layout.root()).and_then(|dir| dir.sync_all()).context("sync", layout.root())
}
