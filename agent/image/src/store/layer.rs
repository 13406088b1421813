//! Unpacked layers.
//!
//! A layer's folder is named by its chain id, the digest over it and all layers below it (OCI image spec, `config.md`,
//! "Layer ChainID"), because what a folder looks like that the layer does not list depends on the layers below.

use std::io::Read;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::layout::Layout;
use crate::error::Context;
use crate::stream::digest_of;
use crate::unpack::{self, Unpacked};
use crate::{Error, Result};

/// Kept beside the folder.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    diff_id: String,
    size: u64,
}

/// A layer that is unpacked, but has not got its place.
#[derive(Debug)]
pub(crate) struct Pending {
    dir: TempDir,
    pub(crate) unpacked: Unpacked,
}

/// The chain id of every layer, bottom first.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(below) => digest_of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(id);
    }
    chain
}

/// Bytes of content of an unpacked layer; None if it is not there.
pub(crate) fn size(layout: &Layout, chain: &str) -> Result<Option<u64>> {
    let path = layout.layer(chain)?.join("layer.json");
    match std::fs::read(&path) {
        Ok(text) => {
            let facts: Facts =
                serde_json::from_slice(&text).map_err(|e| Error::corrupt(path.display().to_string(), e))?;
            Ok(Some(facts.size))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

/// Unpacks a layer's blob beside its place. With `diff_id`, the content must be that.
pub(crate) fn unpack(layout: &Layout, blob: impl Read, diff_id: Option<&str>, what: &str) -> Result<Pending> {
    let dir = TempDir::new_in(layout.tmp()).context("create a folder in", layout.tmp())?;
    let diff = dir.path().join("diff");
    std::fs::create_dir(&diff).context("create", &diff)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&diff, mode).context("set the mode of", &diff)?;
    let unpacked = unpack::unpack(blob, &diff, what)?;
    if let Some(expected) = diff_id.filter(|expected| **expected != unpacked.diff_id) {
        let reason = format!("it unpacks to {}, not to {expected}", unpacked.diff_id);
        return Err(Error::corrupt(what, reason));
    }
    Ok(Pending { dir, unpacked })
}

impl Pending {
    /// Puts the layer in its place, above those of `below` (bottom first), which are there already.
    /// Returns whether it was new.
    pub(crate) fn place(self, layout: &Layout, chain: &str, below: &[String]) -> Result<bool> {
        let lowers: Vec<PathBuf> = below.iter().rev().map(|c| layout.diff(c)).collect::<Result<_>>()?;
        unpack::settle(&self.dir.path().join("diff"), &self.unpacked, &lowers)?;
        let facts = Facts { diff_id: self.unpacked.diff_id, size: self.unpacked.size };
        let facts_path = self.dir.path().join("layer.json");
        let text = serde_json::to_vec(&facts).map_err(std::io::Error::from).context("write", &facts_path)?;
        std::fs::write(&facts_path, text).context("write", &facts_path)?;
        let place = layout.layer(chain)?;
        match std::fs::rename(self.dir.path(), &place) {
            Ok(()) => {
                // Nothing is left under the temporary name.
                let _ = self.dir.keep();
                Ok(true)
            }
            // Another process was faster with the same content.
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(false)
            }
            Err(e) => Err(Error::io("rename to", &place, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_spec() {
        let [a, b] = ["sha256:aa", "sha256:bb"].map(str::to_owned);
        assert_eq!(chain_ids(&[]), Vec::<String>::new());
        assert_eq!(chain_ids(std::slice::from_ref(&a)), vec![a.clone()]);
        assert_eq!(chain_ids(&[a.clone(), b]), vec![a, digest_of(b"sha256:aa sha256:bb")]);
    }
}
