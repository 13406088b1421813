//! A root file system becomes an image of one layer.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;

use crate::config::{Document, History, ImageConfig, RootFs};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::progress::{Reporter, Status};
use crate::store::{BlobWriter, Layout, Piece, Ready, Session, layer_size, open_blob, unpack_layer};
use crate::stream::{Compression, Watched, decompress};
use crate::{Error, Image, ImportOptions, Result, Store, platform, reference};

/// What a shell finds its programs by when the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Store {
    /// Makes a one-layer image of a root file system: a tar, plain or compressed with gzip or zstd.
    pub fn import(&self, tar: impl Read, reference: &str, options: &ImportOptions) -> Result<Image> {
        let name = reference::parse(reference)?;
        if name.digest().is_some() {
            let reason = "a digest cannot be given to an image".to_owned();
            return Err(Error::InvalidName { reference: reference.to_owned(), reason });
        }
        let session = Session::new(&self.inner);
        let done = import(self, &session, tar, &name.whole(), options).and_then(|ready| {
            session.commit(std::slice::from_ref(&ready))?;
            Ok(ready.id)
        });
        if done.is_err() {
            session.take_back();
        }
        let id = done?;
        self.get(&id)?.ok_or(Error::NotFound { reference: id, reason: String::new() })
    }
}

fn import(
    store: &Store,
    session: &Session,
    tar: impl Read,
    name: &str,
    options: &ImportOptions,
) -> Result<Ready> {
    let layout = session.layout();
    let what = format!("root file system for {name}");
    let reporter = Reporter::new(options.progress.clone(), name);
    let mut writer = BlobWriter::new(layout)?;
    let told = reporter.counter(Status::Downloading, 0);
    let watched = Watched::new(tar, Arc::new(AtomicBool::new(false)), Box::new(told));
    writer.fill(watched, &what)?;
    let blob = writer.finish();
    if blob.blob.size == 0 {
        return Err(Error::corrupt(what, "there is nothing to read"));
    }
    let blob = session.keep(blob)?;
    let told = reporter.counter(Status::Extracting, blob.size);
    let file = open_blob(layout, &blob.digest)?;
    let watched = Watched::new(file, Arc::new(AtomicBool::new(false)), Box::new(told));
    let pending = unpack_layer(layout, watched, None, &what)?;
    let diff_id = pending.unpacked.diff_id.clone();
    place(store, session, &diff_id, pending)?;
    reporter.tell(Status::PullComplete, blob.size, blob.size);

    let media_type = layer_type(layout, &blob.digest)?;
    let config = session.put(&encode(&document(options, diff_id.clone()))?)?;
    let layer = Descriptor { media_type, digest: blob.digest, size: blob.size, ..Descriptor::default() };
    let manifest = session.put(&encode(&manifest_of(&config, vec![layer.clone()]))?)?;
    Ok(Ready {
        id: config.digest.clone(),
        manifest: manifest.digest.clone(),
        blobs: vec![config.digest, manifest.digest, layer.digest],
        chain: vec![diff_id],
        names: vec![name.to_owned()],
        repo_digests: Vec::new(),
    })
}

fn place(store: &Store, session: &Session, diff_id: &str, pending: crate::store::Pending) -> Result<()> {
    session.pin(diff_id);
    let _lock = store.inner.keys.lock_blocking(diff_id);
    if layer_size(session.layout(), diff_id)?.is_none() && pending.place(session.layout(), diff_id, &[])? {
        session.made(Piece::Layer(diff_id.to_owned()));
    }
    Ok(())
}

/// The media type of a layer in the store, by its content.
pub(crate) fn layer_type(layout: &Layout, digest: &str) -> Result<String> {
    let file = open_blob(layout, digest)?;
    let (compression, _) = decompress(file).map_err(|e| Error::io("read", digest, e))?;
    Ok(match compression {
        Compression::Plain => OCI_LAYER.to_owned(),
        Compression::Gzip => format!("{OCI_LAYER}+gzip"),
        Compression::Zstd => format!("{OCI_LAYER}+zstd"),
    })
}

/// A manifest for an image that came without one.
pub(crate) fn manifest_of(config: &crate::store::Blob, layers: Vec<Descriptor>) -> Manifest {
    let config = Descriptor {
        media_type: OCI_CONFIG.to_owned(),
        digest: config.digest.clone(),
        size: config.size,
        ..Descriptor::default()
    };
    Manifest { schema_version: 2, media_type: OCI_MANIFEST.to_owned(), config, layers, annotations: None }
}

pub(crate) fn encode<T: serde::Serialize>(document: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|e| Error::io("encode", "an image document", e.into()))
}

fn document(options: &ImportOptions, diff_id: String) -> Document {
    let now = Some(Timestamp::now().to_string());
    let mut env = options.env.clone();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.insert(0, PATH.to_owned());
    }
    Document {
        created: now.clone(),
        architecture: platform::host().architecture,
        os: "linux".to_owned(),
        variant: String::new(),
        config: ImageConfig {
            user: options.user.clone(),
            exposed_ports: options.exposed_ports.clone(),
            env,
            entrypoint: options.entrypoint.clone(),
            cmd: options.cmd.clone(),
            volumes: options.volumes.clone(),
            working_dir: options.working_dir.clone(),
            labels: options.labels.clone(),
            stop_signal: options.stop_signal.clone(),
        },
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] },
        history: vec![History { created: now, created_by: Some("berth image import".to_owned()) }],
    }
}
