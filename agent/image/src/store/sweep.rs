//! Removing what no image needs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::index::{Index, Record};
use super::{Inner, blob, layer};
use crate::Result;
use crate::error::Context;

/// A file or folder that images share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Piece {
    /// By digest.
    Blob(String),
    /// By chain id.
    Layer(String),
}

impl Piece {
    pub(crate) fn of(record: &Record) -> impl Iterator<Item = Piece> {
        let blobs = record.blobs.iter().cloned().map(Piece::Blob);
        blobs.chain(record.layers.iter().cloned().map(Piece::Layer))
    }

    fn key(&self) -> &str {
        match self {
            Piece::Blob(key) | Piece::Layer(key) => key,
        }
    }
}

/// Pieces that some image needs.
fn needed(index: &Index) -> HashSet<Piece> {
    index.images.values().flat_map(Piece::of).collect()
}

/// Unfinished work of a process that is still running is younger than this.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

impl Inner {
    fn path(&self, piece: &Piece) -> Result<PathBuf> {
        match piece {
            Piece::Blob(digest) => self.layout.blob(digest),
            Piece::Layer(chain) => self.layout.layer(chain),
        }
    }

    fn bytes(&self, piece: &Piece) -> u64 {
        let size = match piece {
            Piece::Blob(digest) => blob::size(&self.layout, digest),
            Piece::Layer(chain) => layer::size(&self.layout, chain),
        };
        size.ok().flatten().unwrap_or(0)
    }

    /// Removes those pieces that no image needs and nobody works with. Returns the bytes freed.
    ///
    /// They are moved away first, in one step each: whoever looks finds a layer whole or not at all.
    pub(crate) fn discard(&self, pieces: Vec<Piece>) -> Result<u64> {
        if pieces.is_empty() {
            return Ok(0);
        }
        let trash = TempDir::new_in(self.layout.tmp()).context("create a folder in", self.layout.tmp())?;
        let freed = self.index.change(&self.layout, |index| {
            let needed = needed(index);
            let mut freed = 0;
            for (number, piece) in pieces.iter().enumerate().filter(|(_, piece)| !needed.contains(piece)) {
                let (path, bytes) = (self.path(piece)?, self.bytes(piece));
                let away = trash.path().join(number.to_string());
                let moved = self.keys.unless_pinned(piece.key(), || std::fs::rename(&path, &away));
                match moved {
                    Some(Ok(())) => freed += bytes,
                    Some(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Some(Err(e)) => return Err(crate::Error::io("remove", &path, e)),
                    None => {}
                }
            }
            Ok(freed)
        })?;
        let path = trash.path().to_owned();
        trash.close().context("remove", path)?;
        Ok(freed)
    }

    /// Everything in the store that no image needs; with `age`, only what is older.
    pub(crate) fn strays(&self, age: Option<Duration>) -> Result<Vec<Piece>> {
        let needed = needed(&*self.index.read(&self.layout)?);
        let mut strays = Vec::new();
        for (dir, is_blob) in [(self.layout.blobs(), true), (self.layout.layers(), false)] {
            for entry in std::fs::read_dir(&dir).context("read", &dir)? {
                let entry = entry.context("read", &dir)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let key = format!("sha256:{name}");
                let piece = if is_blob { Piece::Blob(key) } else { Piece::Layer(key) };
                let old = |age| {
                    let changed = entry.metadata().and_then(|m| m.modified()).ok();
                    changed
                        .and_then(|t| SystemTime::now().duration_since(t).ok())
                        .is_some_and(|have| have > age)
                };
                if crate::manifest::is_hex64(&name) && !needed.contains(&piece) && age.is_none_or(old) {
                    strays.push(piece);
                }
            }
        }
        Ok(strays)
    }

    /// Removes what a process that is gone left. Only for the one process that has the store open alone.
    pub(crate) fn remove_leftovers(&self) -> Result<()> {
        empty(&self.layout.tmp())?;
        self.discard(self.strays(None)?)?;
        Ok(())
    }

    /// Removes what was pulled and never became an image, long ago.
    pub(crate) fn remove_abandoned(&self) -> Result<u64> {
        self.discard(self.strays(Some(ABANDONED))?)
    }
}

fn empty(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).context("read", dir)? {
        let path = entry.context("read", dir)?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.context("remove", &path)?;
    }
    Ok(())
}
