//! A layer's tar becomes a folder that overlayfs can take as a lower layer (OCI image spec, `layer.md`).

mod entry;
mod member;
mod path;
mod settle;
mod sparse;
mod tree;

use std::io::{self, Read};
use std::path::Path;

use crate::stream::{Bounded, Hashing, decompress};
use crate::{Error, Result};

pub(crate) use path::clean;
pub(crate) use settle::settle;

/// What one layer may unpack to. Real ones stay far below; a compression bomb does not fill every disk.
const MAX_LAYER: u64 = 256 << 30;
/// Headers of one member: long names, extended attributes, sparse maps.
pub(crate) const MAX_HEADERS: u64 = 4 << 20;

/// A layer that has been unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: String,
    /// Bytes of file content.
    pub(crate) size: u64,
    /// Folders that have no entry of their own, as clean paths, sorted.
    implied: Vec<Vec<u8>>,
    /// What the layer hides, as clean paths, sorted.
    whiteouts: Vec<Vec<u8>>,
}

/// Unpacks `blob`, compressed or not, into the existing and empty folder `dir`.
///
/// Nothing outside `dir` is touched, whatever the archive says. On failure `dir` holds what came so far.
pub(crate) fn unpack(blob: impl Read, dir: &Path, what: &str) -> Result<Unpacked> {
    let broken = |e: io::Error| Error::corrupt(what, e);
    let (_, plain) = decompress(blob).map_err(broken)?;
    let (mut stream, allowance) = Bounded::new(Hashing::new(plain), MAX_LAYER);
    let mut writer = entry::Writer::new(dir, what)?;
    {
        let mut archive = tar::Archive::new(&mut stream);
        let mut entries = archive.entries().map_err(broken)?;
        loop {
            allowance.grant(MAX_HEADERS);
            let Some(mut member) = entries.next().transpose().map_err(broken)? else { break };
            allowance.grant(u64::MAX);
            writer.apply(&mut member)?;
            // The rest of the data, so that the next step reads headers only.
            io::copy(&mut member, &mut io::sink()).map_err(broken)?;
        }
    }
    allowance.grant(u64::MAX);
    io::copy(&mut stream, &mut io::sink()).map_err(broken)?;
    let entry::Written { size, implied, whiteouts } = writer.finish()?;
    Ok(Unpacked { diff_id: stream.get_ref().digest(), size, implied, whiteouts })
}
