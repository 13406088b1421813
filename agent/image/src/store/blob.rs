//! Content-addressed files.

use std::fs::File;
use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempPath};

use super::layout::Layout;
use crate::error::Context;
use crate::manifest::MAX_DOCUMENT;
use crate::stream::{CHUNK, digest_text};
use crate::{Error, Result};

/// A blob that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub digest: String,
    pub size: u64,
}

/// A blob on its way into the store. Dropped before [`BlobWriter::finish`], it leaves nothing.
pub(crate) struct BlobWriter {
    file: NamedTempFile,
    hasher: Sha256,
    size: u64,
}

impl BlobWriter {
    pub(crate) fn new(layout: &Layout) -> Result<BlobWriter> {
        let file = NamedTempFile::new_in(layout.tmp()).context("create a file in", layout.tmp())?;
        Ok(BlobWriter { file, hasher: Sha256::new(), size: 0 })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).context("write", self.file.path())?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what came so far.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let file = self.file.as_file_mut();
        file.set_len(0).and_then(|()| io::Seek::rewind(file)).context("truncate", self.file.path())?;
        self.hasher = Sha256::new();
        self.size = 0;
        Ok(())
    }

    /// Writes everything that a file or the caller's stream gives.
    pub(crate) fn fill(&mut self, from: impl Read, what: &str) -> Result<()> {
        self.copy(from, |e| Error::io("read", what, e))
    }

    /// Writes everything that a member of an archive gives; what fails in reading is the archive's fault.
    pub(crate) fn fill_from_archive(&mut self, from: impl Read, what: &str) -> Result<()> {
        self.copy(from, |e| Error::corrupt("archive", format!("{what}: {e}")))
    }

    fn copy(&mut self, mut from: impl Read, failed: impl Fn(io::Error) -> Error) -> Result<()> {
        let mut buf = vec![0; CHUNK];
        loop {
            match from.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(n) => self.write(&buf[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }

    /// Ends writing. The blob has no name yet, so that the digest can be looked at first.
    pub(crate) fn finish(self) -> Unnamed {
        Unnamed {
            file: self.file.into_temp_path(),
            blob: Blob { digest: digest_text(self.hasher), size: self.size },
        }
    }
}

/// A whole blob in a temporary file, removed unless named.
pub(crate) struct Unnamed {
    /// Without the open file: an archive may have thousands.
    file: TempPath,
    pub(crate) blob: Blob,
}

impl Unnamed {
    /// Refuses content other than what was asked for.
    pub(crate) fn verify(self, expected: &str) -> Result<Unnamed> {
        if self.blob.digest == expected {
            return Ok(self);
        }
        let reason = format!("its content has the digest {}", self.blob.digest);
        Err(Error::corrupt(format!("blob {expected}"), reason))
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(&self.file).context("open", &self.file)
    }

    /// Gives the blob its place in the store.
    pub(crate) fn name(self, layout: &Layout) -> Result<Blob> {
        let path = layout.blob(&self.blob.digest)?;
        self.file.persist(&path).map_err(|e| e.error).context("rename to", &path)?;
        Ok(self.blob)
    }
}

/// Bytes of a blob in the store; None if it is not there.
pub(crate) fn size(layout: &Layout, digest: &str) -> Result<Option<u64>> {
    let path = layout.blob(digest)?;
    match std::fs::metadata(&path) {
        Ok(m) => Ok(Some(m.len())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

pub(crate) fn open(layout: &Layout, digest: &str) -> Result<File> {
    let path = layout.blob(digest)?;
    File::open(&path).context("open", &path)
}

/// Reads a small document whole.
pub(crate) fn read(layout: &Layout, digest: &str) -> Result<Vec<u8>> {
    let path = layout.blob(digest)?;
    read_document(open(layout, digest)?, &path.display().to_string())
}

/// Reads a small document whole from anywhere.
pub(crate) fn read_document(from: impl Read, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).context("read", what)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::corrupt(what, format!("larger than {MAX_DOCUMENT} bytes")));
    }
    Ok(bytes)
}
