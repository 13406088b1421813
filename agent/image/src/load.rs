//! Archives of images: OCI layouts and what `docker save` writes.

mod source;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use self::source::Source;
use crate::config::Document as Config;
use crate::error::Context;
use crate::import::{encode, layer_type, manifest_of};
use crate::manifest::{Descriptor, Document, Index};
use crate::progress::{ProgressFn, Reporter, Status};
use crate::store::{Blob, Piece, Ready, Session, chain_ids, layer_size, open_blob, unpack_layer};
use crate::stream::Watched;
use crate::{Error, Image, LoadOptions, Result, Store, platform, reference};

/// One image of `docker save`'s manifest.json.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Store {
    /// Loads all images of an archive: an OCI layout or `docker save`, as a tar, plain or compressed.
    ///
    /// All or nothing: if one is broken, none is loaded.
    pub fn load(&self, archive: impl Read, options: &LoadOptions) -> Result<Vec<Image>> {
        let source = Source::unpack(archive, &self.inner.layout)?;
        self.load_source(source, options)
    }

    /// Loads all images of an archive file, or of the folder of an OCI layout or unpacked `docker save`.
    pub fn load_path(&self, path: &Path, options: &LoadOptions) -> Result<Vec<Image>> {
        if path.is_dir() {
            return self.load_source(Source::folder(path)?, options);
        }
        self.load(File::open(path).context("open", path)?, options)
    }

    fn load_source(&self, source: Source, options: &LoadOptions) -> Result<Vec<Image>> {
        let session = Session::new(&self.inner);
        let mut loader =
            Loader { store: self, session: &session, source, progress: options.progress.clone() };
        let done = loader.load().and_then(|images| session.commit(&images).map(|()| images));
        if done.is_err() {
            session.take_back();
        }
        let images = done?;
        images
            .iter()
            .map(|i| {
                self.get(&i.id)?
                    .ok_or_else(|| Error::NotFound { reference: i.id.clone(), reason: String::new() })
            })
            .collect()
    }
}

struct Loader<'a> {
    store: &'a Store,
    session: &'a Session,
    source: Source,
    progress: Option<ProgressFn>,
}

impl Loader<'_> {
    fn load(&mut self) -> Result<Vec<Ready>> {
        let docker = match self.source.document("manifest.json")? {
            Some(bytes) => Some(
                serde_json::from_slice::<Vec<DockerImage>>(&bytes)
                    .map_err(|e| Error::corrupt("archive's manifest.json", e))?,
            ),
            None => None,
        };
        let images = match (self.source.document("index.json")?, docker) {
            (Some(bytes), docker) => {
                let names = docker.iter().flatten().map(|i| (i.config.clone(), tags(i))).collect();
                self.oci(&bytes, &names)?
            }
            (None, Some(docker)) => docker.iter().map(|image| self.docker(image)).collect::<Result<_>>()?,
            (None, None) => {
                let reason = "neither an OCI layout (index.json) nor a docker archive (manifest.json)";
                return Err(Error::corrupt("archive", reason));
            }
        };
        if images.is_empty() { Err(Error::corrupt("archive", "it holds no image")) } else { Ok(images) }
    }

    fn oci(&mut self, index: &[u8], docker_names: &HashMap<String, Vec<String>>) -> Result<Vec<Ready>> {
        let index: Index =
            serde_json::from_slice(index).map_err(|e| Error::corrupt("archive's index.json", e))?;
        let mut images: Vec<Ready> = Vec::new();
        for entry in index.manifests.iter().filter(|e| e.platform.as_ref().is_none_or(platform::runs_here)) {
            let Some(mut ready) = self.oci_entry(entry, 0)? else { continue };
            ready.names = names(entry);
            if ready.names.is_empty() {
                let path = format!("blobs/{}", ready.id.replacen(':', "/", 1));
                ready.names = docker_names.get(&path).cloned().unwrap_or_default();
            }
            images.push(ready);
        }
        if images.is_empty() && !index.manifests.is_empty() {
            return Err(Error::NoMatchingPlatform {
                reference: "in the archive".to_owned(),
                wanted: platform::text(&platform::host()),
                available: platform::list(&index.manifests),
            });
        }
        Ok(images)
    }

    /// None for entries that are no images, such as attestations.
    fn oci_entry(&mut self, entry: &Descriptor, depth: u32) -> Result<Option<Ready>> {
        let blob = self.blob(&entry.digest)?;
        let bytes = crate::store::read_blob(self.session.layout(), &blob.digest)?;
        match Document::parse(&bytes, &format!("manifest {}", entry.digest))? {
            Document::Index(index) if depth < 3 => match platform::choose(&index.manifests) {
                Some(entry) => self.oci_entry(&entry.clone(), depth + 1),
                None => Ok(None),
            },
            Document::Index(_) => Err(Error::corrupt("archive", "indexes nested too deeply")),
            Document::Manifest(manifest) if manifest.config.media_type.contains("image") => {
                let config = self.blob(&manifest.config.digest)?;
                let layers =
                    manifest.layers.iter().map(|l| self.blob(&l.digest)).collect::<Result<Vec<_>>>()?;
                self.ready(&config, &layers, blob).map(Some)
            }
            Document::Manifest(_) => Ok(None),
        }
    }

    fn docker(&mut self, image: &DockerImage) -> Result<Ready> {
        let config = self.file(&image.config)?;
        let names = image.layers.iter().flatten();
        let layers = names.map(|name| self.file(name)).collect::<Result<Vec<_>>>()?;
        let descriptors = layers.iter().map(|layer| {
            let media_type = layer_type(self.session.layout(), &layer.digest)?;
            Ok(Descriptor {
                media_type,
                digest: layer.digest.clone(),
                size: layer.size,
                ..Descriptor::default()
            })
        });
        let manifest = manifest_of(&config, descriptors.collect::<Result<_>>()?);
        let manifest = self.session.put(&encode(&manifest)?)?;
        let mut ready = self.ready(&config, &layers, manifest)?;
        ready.names = tags(image);
        Ok(ready)
    }

    /// A blob of an OCI layout. What the store has already need not be in the archive.
    fn blob(&mut self, digest: &str) -> Result<Blob> {
        self.session.pin(digest);
        if let Some(size) = crate::store::blob_size(self.session.layout(), digest)? {
            return Ok(Blob { digest: digest.to_owned(), size });
        }
        let name = format!("blobs/sha256/{}", crate::manifest::hex(digest)?);
        let blob = self.source.take(&name, self.session.layout())?;
        let blob = blob.ok_or_else(|| Error::corrupt("archive", format!("{name} is missing")))?;
        self.session.keep(blob.verify(digest)?)
    }

    /// A file of a docker archive, whose digest nobody told.
    fn file(&mut self, name: &str) -> Result<Blob> {
        if let Some(blob) = self.source.taken(name) {
            return Ok(blob);
        }
        let file = self.source.take(name, self.session.layout())?;
        let file = file.ok_or_else(|| Error::corrupt("archive", format!("{name} is missing")))?;
        self.session.keep(file)
    }

    /// Unpacks the layers.
    fn ready(&self, config: &Blob, layers: &[Blob], manifest: Blob) -> Result<Ready> {
        let layout = self.session.layout();
        let bytes = crate::store::read_blob(layout, &config.digest)?;
        let what = format!("configuration {}", config.digest);
        let document: Config = serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(&what, e))?;
        let diff_ids = document.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            let reason = format!("it names {} layers, and there are {}", diff_ids.len(), layers.len());
            return Err(Error::corrupt(what, reason));
        }
        let chain = chain_ids(&diff_ids);
        for (at, layer) in layers.iter().enumerate() {
            let reporter = Reporter::new(self.progress.clone(), &layer.digest);
            self.unpack(layer, &diff_ids[at], &chain[..=at], &reporter)?;
        }
        let mut blobs: Vec<String> = layers.iter().map(|l| l.digest.clone()).collect();
        blobs.extend([config.digest.clone(), manifest.digest.clone()]);
        Ok(Ready {
            id: config.digest.clone(),
            manifest: manifest.digest,
            blobs,
            chain,
            names: Vec::new(),
            repo_digests: Vec::new(),
        })
    }

    /// Unpacks one layer, the last of `chain`, on top of the others, which are there.
    fn unpack(&self, layer: &Blob, diff_id: &str, chain: &[String], reporter: &Reporter) -> Result<()> {
        let Some((id, below)) = chain.split_last() else { return Ok(()) };
        let layout = self.session.layout();
        self.session.pin(id);
        let _lock = self.store.inner.keys.lock_blocking(id);
        if layer_size(layout, id)?.is_some() {
            reporter.tell(Status::AlreadyExists, 0, 0);
            return Ok(());
        }
        let told = reporter.counter(Status::Extracting, layer.size);
        let file = open_blob(layout, &layer.digest)?;
        let watched = Watched::new(file, Arc::new(AtomicBool::new(false)), Box::new(told));
        let pending = unpack_layer(layout, watched, Some(diff_id), &format!("layer {}", layer.digest))?;
        if pending.place(layout, id, below)? {
            self.session.made(Piece::Layer(id.clone()));
        }
        reporter.tell(Status::PullComplete, layer.size, layer.size);
        Ok(())
    }
}

/// The tags of a docker archive's image that are names.
fn tags(image: &DockerImage) -> Vec<String> {
    image.repo_tags.iter().flatten().filter_map(|tag| usable(tag)).collect()
}

fn usable(name: &str) -> Option<String> {
    match reference::normalize(name) {
        Ok(name) => Some(name),
        Err(e) => {
            tracing::warn!(error = %e, "name in an archive ignored");
            None
        }
    }
}

/// The name of an entry of index.json: containerd's and Docker's annotation, or that of the OCI image spec if it is
/// more than a tag.
fn names(entry: &Descriptor) -> Vec<String> {
    let annotation = |key: &str| entry.annotations.as_ref().and_then(|a| a.get(key));
    let full = annotation("io.containerd.image.name");
    let short = annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    full.or(short).and_then(|name| usable(name)).into_iter().collect()
}
