//! From what people call an image to the image.

use super::index::Index;
use crate::manifest::{is_hex, is_hex64};
use crate::reference;
use crate::{Error, Result};

/// The id of the image that `reference` means: a name, a name with a digest, a digest (of the configuration or the
/// manifest), an id or the beginning of one. Names win over ids.
pub(crate) fn find(index: &Index, reference: &str) -> Result<Option<String>> {
    if let Some(hex) = reference.strip_prefix("sha256:").filter(|hex| is_hex(hex)) {
        return by_digest(index, hex);
    }
    if is_hex64(reference) {
        return by_digest(index, reference);
    }
    let parsed = reference::parse(reference)?;
    let name = parsed.whole();
    if let Some(id) = index.names.get(&name) {
        return Ok(Some(id.clone()));
    }
    if let Some(digest) = parsed.digest() {
        let repository = format!("{}/{}", parsed.registry(), parsed.repository());
        return Ok(by_repo_digest(index, &name, &repository, digest));
    }
    if is_hex(reference) { by_prefix(index, reference) } else { Ok(None) }
}

fn by_digest(index: &Index, hex: &str) -> Result<Option<String>> {
    let digest = format!("sha256:{hex}");
    if hex.len() < 64 {
        return by_prefix(index, hex);
    }
    if index.images.contains_key(&digest) {
        return Ok(Some(digest));
    }
    let suffix = format!("@{digest}");
    let image = index.images.iter().find(|(_, record)| {
        record.manifest == digest || record.repo_digests.iter().any(|d| d.ends_with(&suffix))
    });
    Ok(image.map(|(id, _)| id.clone()))
}

/// `repo@digest`, where the digest is the one that the registry gave or that of this platform's manifest.
fn by_repo_digest(index: &Index, name: &str, repository: &str, digest: &str) -> Option<String> {
    let (tagged, digested) = (format!("{repository}:"), format!("{repository}@"));
    index
        .images
        .iter()
        .find(|(id, record)| {
            record.repo_digests.contains(name)
                || (record.manifest == digest
                    && (record.repo_digests.iter().any(|d| d.starts_with(&digested))
                        || index.names_of(id).any(|n| n.starts_with(&tagged))))
        })
        .map(|(id, _)| id.clone())
}

fn by_prefix(index: &Index, prefix: &str) -> Result<Option<String>> {
    let mut fitting = index.images.keys().filter(|id| id["sha256:".len()..].starts_with(prefix));
    match (fitting.next(), fitting.count()) {
        (found, 0) => Ok(found.cloned()),
        (_, more) => Err(Error::Ambiguous { prefix: prefix.to_owned(), count: more + 1 }),
    }
}
