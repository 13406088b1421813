//! Images as an archive that Docker, podman, skopeo and containerd load.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use serde::Serialize;

use crate::error::Context;
use crate::import::encode;
use crate::manifest::{
    DOCKER_MANIFEST, Descriptor, Document, Index, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST,
    hex,
};
use crate::store::{open_blob, read_blob};
use crate::stream::digest_of;
use crate::{Error, Image, Result, Store, reference};

/// One image of manifest.json, for `docker load`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// What the archive will hold.
#[derive(Default)]
struct Plan {
    /// Documents made for the archive, by digest.
    documents: BTreeMap<String, Vec<u8>>,
    /// Blobs of the store.
    blobs: BTreeSet<String>,
    entries: Vec<Descriptor>,
    docker: Vec<DockerImage>,
}

impl Store {
    /// Writes images as a tar that is an OCI layout and a `docker load` archive at once.
    ///
    /// An image asked for by name carries that name; one asked for by id or digest carries all its names.
    pub fn save(&self, references: &[&str], out: impl Write) -> Result<()> {
        let mut plan = Plan::default();
        for reference in references {
            let missing = || Error::NotFound { reference: (*reference).to_owned(), reason: String::new() };
            let image = self.get(reference)?.ok_or_else(missing)?;
            let name = reference::normalize(reference).ok().filter(|name| image.repo_tags.contains(name));
            let names = name.map_or_else(|| image.repo_tags.clone(), |name| vec![name]);
            self.plan(&image, names, &mut plan)?;
        }
        self.write(&plan, out)
    }

    fn plan(&self, image: &Image, names: Vec<String>, plan: &mut Plan) -> Result<()> {
        let bytes = read_blob(&self.inner.layout, &image.manifest)?;
        let Document::Manifest(manifest) = Document::parse(&bytes, &format!("manifest {}", image.manifest))?
        else {
            return Err(Error::corrupt(
                format!("manifest {}", image.manifest),
                "an index instead of a manifest",
            ));
        };
        let (digest, size) = match to_oci(&manifest) {
            Some(manifest) => {
                let bytes = encode(&manifest)?;
                let (digest, size) = (digest_of(&bytes), bytes.len() as u64);
                plan.documents.insert(digest.clone(), bytes);
                (digest, size)
            }
            None => {
                plan.blobs.insert(image.manifest.clone());
                (image.manifest.clone(), bytes.len() as u64)
            }
        };
        plan.blobs.insert(image.id.clone());
        plan.blobs.extend(manifest.layers.iter().map(|l| l.digest.clone()));
        let entry = |annotations| Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: digest.clone(),
            size,
            annotations,
            ..Descriptor::default()
        };
        if names.is_empty() {
            plan.entries.push(entry(None));
        }
        for name in &names {
            let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
            let annotations =
                [("io.containerd.image.name", name.as_str()), ("org.opencontainers.image.ref.name", tag)];
            plan.entries.push(entry(Some(annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).into())));
        }
        let layers = manifest.layers.iter().map(|l| path(&l.digest)).collect::<Result<_>>()?;
        plan.docker.push(DockerImage { config: path(&image.id)?, repo_tags: names, layers });
        Ok(())
    }

    fn write(&self, plan: &Plan, out: impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index =
            Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests: plan.entries.clone() };
        add(&mut tar, "index.json", &encode(&index)?)?;
        add(&mut tar, "manifest.json", &encode(&plan.docker)?)?;
        for (digest, bytes) in &plan.documents {
            add(&mut tar, &path(digest)?, bytes)?;
        }
        for digest in &plan.blobs {
            let file = open_blob(&self.inner.layout, digest)?;
            let size = file.metadata().context("read", digest)?.len();
            append(&mut tar, &path(digest)?, size, file)?;
        }
        tar.into_inner().and_then(|mut out| out.flush()).context("write", "the archive")
    }
}

fn path(digest: &str) -> Result<String> {
    Ok(format!("blobs/sha256/{}", hex(digest)?))
}

fn add<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> Result<()> {
    append(tar, name, bytes.len() as u64, bytes)
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, size: u64, data: impl Read) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, data).context("write", format!("{name} of the archive"))
}

/// The same manifest in the terms of OCI, if it is in Docker's: an OCI layout has no others.
fn to_oci(manifest: &Manifest) -> Option<Manifest> {
    if manifest.media_type != DOCKER_MANIFEST {
        return None;
    }
    let mut oci = manifest.clone();
    oci.media_type = OCI_MANIFEST.to_owned();
    oci.config.media_type = OCI_CONFIG.to_owned();
    for layer in &mut oci.layers {
        layer.media_type = match layer.media_type.rsplit_once('.') {
            Some((_, "gzip")) => format!("{OCI_LAYER}+gzip"),
            Some((_, "zstd")) => format!("{OCI_LAYER}+zstd"),
            _ => OCI_LAYER.to_owned(),
        };
    }
    Some(oci)
}
