//! Manifests and indexes as registries and archives write them (OCI image spec, Docker image manifest v2 schema 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Manifests, indexes and configurations are small; beyond this something is wrong.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// Points to a blob.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// What an entry of an index runs on.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// An image: its configuration and its layers, bottom first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// Several images, usually one for each platform.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

/// Either of the two.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Box<Manifest>),
    Index(Index),
}

impl Document {
    /// Tells the two apart by what they hold: the media type in the document may be missing.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Document> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: u32,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let broken = |e: serde_json::Error| Error::corrupt(what, e);
        let shape: Shape = serde_json::from_slice(bytes).map_err(broken)?;
        match (shape.schema_version, shape.manifests.is_some(), shape.layers.is_some()) {
            // Both in one document would mean different images to different readers (CVE-2021-41190).
            (2, true, true) => Err(Error::corrupt(what, "both a manifest and an index")),
            (2, true, false) => Ok(Document::Index(serde_json::from_slice(bytes).map_err(broken)?)),
            (2, false, true) => {
                Ok(Document::Manifest(Box::new(serde_json::from_slice(bytes).map_err(broken)?)))
            }
            (2, false, false) => Err(Error::corrupt(what, "neither a manifest nor an index")),
            (version, ..) => Err(Error::unsupported(what, format!("manifest schema version {version}"))),
        }
    }
}

/// The 64 hex digits of a sha256 digest; they become file names, so nothing else passes.
pub(crate) fn hex(digest: &str) -> Result<&str> {
    match digest.split_once(':') {
        Some(("sha256", hex)) if is_hex64(hex) => Ok(hex),
        Some(("sha512" | "sha384", _)) => Err(Error::unsupported(digest, "only sha256 digests")),
        _ => Err(Error::corrupt(digest, "not a digest")),
    }
}

/// 64 lower-case hex digits.
pub(crate) fn is_hex64(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

/// Only lower-case hex digits, at least one.
pub(crate) fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        let descriptor = r#"{"digest":"sha256:00","size":1}"#;
        let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#);
        assert!(matches!(Document::parse(manifest.as_bytes(), "x").unwrap(), Document::Manifest(_)));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        assert!(matches!(Document::parse(index.as_bytes(), "x").unwrap(), Document::Index(_)));
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],"layers":[],"config":{descriptor}}}"#);
        assert!(matches!(Document::parse(both.as_bytes(), "x"), Err(Error::Corrupt { .. })));
        assert!(matches!(
            Document::parse(br#"{"schemaVersion":1,"fsLayers":[]}"#, "x"),
            Err(Error::Unsupported { .. })
        ));
        assert!(matches!(Document::parse(b"<html>", "x"), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn digests_are_safe_file_names() {
        assert!(hex(&format!("sha256:{}", "a".repeat(64))).is_ok());
        for bad in
            ["sha256:../../etc/passwd", "sha256:", "", "sha256:AA", &format!("sha256:{}", "A".repeat(64))]
        {
            assert!(hex(bad).is_err(), "{bad}");
        }
        assert!(matches!(hex(&format!("sha512:{}", "a".repeat(128))), Err(Error::Unsupported { .. })));
    }
}
