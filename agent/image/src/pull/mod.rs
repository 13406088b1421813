//! Getting images from a registry.

mod download;
mod failure;
mod insecure;
mod layers;
mod registry;
mod trust;

use std::sync::Arc;

use oci_client::Reference;

use self::registry::Registry;
use crate::config::Document as Config;
use crate::manifest::{Descriptor, Document, MAX_DOCUMENT, Manifest, Platform};
use crate::progress::Reporter;
use crate::store::{Blob, Ready, Session, blob_size, chain_ids, complete, read_blob};
use crate::{Error, Image, PullOptions, Result, Store, platform, reference};

/// Runs blocking work beside the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(e) => Err(Error::io("run", "a background task", std::io::Error::other(e))),
    }
}

impl Store {
    /// [`Store::pull`] with one user name and password after the other, or none where a way is none, until the registry lets
    /// one in. Without any way it is asked as nobody.
    ///
    /// # Errors
    /// Those of [`Store::pull`]; if nobody is let in, that of the last way.
    pub async fn pull_as(
        &self,
        reference: &str,
        ways: impl IntoIterator<Item = Option<(String, String)>>,
        options: &PullOptions,
    ) -> Result<Image> {
        let mut ways = ways.into_iter();
        let mut auth = ways.next().flatten();
        loop {
            let result = self.pull(reference, &PullOptions { auth, ..options.clone() }).await;
            match (result, ways.next()) {
                (Err(Error::Unauthorized { .. }), Some(next)) => auth = next,
                (result, _) => return result,
            }
        }
    }

    /// Gets the image from its registry. What is here already is not fetched again, concurrent pulls share their work,
    /// and layers that are complete when a pull fails are kept for the next try.
    pub async fn pull(&self, reference: &str, options: &PullOptions) -> Result<Image> {
        let name = reference::parse(reference)?;
        let session = Arc::new(Session::new(&self.inner));
        let pull =
            Pull { store: self.clone(), session: Arc::clone(&session), name, options: options.clone() };
        let pulled = pull.run().await;
        let keep = !matches!(&pulled, Err(Error::NoSpace { .. }));
        let (store, commit) = (self.clone(), Arc::clone(&session));
        drop(pull);
        blocking(move || {
            if !keep {
                commit.take_back();
            }
            let ready = pulled?;
            commit.commit(std::slice::from_ref(&ready))?;
            store.get(&ready.id)?.ok_or(Error::NotFound { reference: ready.id, reason: String::new() })
        })
        .await
    }
}

struct Pull {
    store: Store,
    session: Arc<Session>,
    name: Reference,
    options: PullOptions,
}

/// What a reference turned out to be.
struct Resolved {
    /// What the registry calls the reference: an index or a manifest.
    top: String,
    digest: String,
    manifest: Manifest,
}

impl Pull {
    async fn run(&self) -> Result<Ready> {
        if let Some(ready) = self.here_by_digest()? {
            return Ok(ready);
        }
        let registry = Registry::new(&self.name, &self.options).await?;
        let resolved = self.resolve(&registry).await?;
        let config = self.config(&registry, &resolved.manifest).await?;
        let layers = &resolved.manifest.layers;
        let diff_ids = &config.rootfs.diff_ids;
        let what = format!("image {}", self.name);
        if diff_ids.is_empty() && !layers.is_empty() {
            let reason = format!("no container image, but {}", resolved.manifest.config.media_type);
            return Err(Error::unsupported(what, reason));
        }
        if diff_ids.len() != layers.len() {
            let reason =
                format!("its configuration names {} layers, its manifest {}", diff_ids.len(), layers.len());
            return Err(Error::corrupt(what, reason));
        }
        let chain = chain_ids(diff_ids);
        layers::fetch(self, &registry, layers, diff_ids, &chain).await?;
        let mut blobs: Vec<String> = layers.iter().map(|l| l.digest.clone()).collect();
        blobs.extend([resolved.manifest.config.digest.clone(), resolved.digest.clone()]);
        Ok(Ready {
            id: resolved.manifest.config.digest,
            manifest: resolved.digest,
            blobs,
            chain,
            names: vec![self.name.whole()],
            repo_digests: vec![format!(
                "{}/{}@{}",
                self.name.registry(),
                self.name.repository(),
                resolved.top
            )],
        })
    }

    /// A digest means the same for ever, so an image that is here under it needs no registry.
    fn here_by_digest(&self) -> Result<Option<Ready>> {
        if self.name.digest().is_none() {
            return Ok(None);
        }
        let name = self.name.whole();
        let Some(image) = self.store.get(&name)? else { return Ok(None) };
        let index = self.store.inner.index.read(&self.store.inner.layout)?;
        let Some(record) = index.images.get(&image.id) else { return Ok(None) };
        if !complete(&self.store.inner.layout, &record.blobs, &record.layers)? {
            return Ok(None);
        }
        Ok(Some(Ready {
            id: image.id,
            manifest: record.manifest.clone(),
            blobs: record.blobs.iter().cloned().collect(),
            chain: record.layers.clone(),
            names: vec![name.clone()],
            repo_digests: vec![name],
        }))
    }

    /// From the reference to the manifest for this machine.
    async fn resolve(&self, registry: &Registry) -> Result<Resolved> {
        let (mut bytes, top) = registry.manifest(&self.name).await?;
        let mut digest = top.clone();
        for _ in 0..3 {
            match Document::parse(&bytes, &format!("manifest {digest} of {}", self.name))? {
                Document::Manifest(manifest) => {
                    // Hashed again: this is what the store will call it.
                    digest = self.session.put(&bytes)?.digest;
                    return Ok(Resolved { top, digest, manifest: *manifest });
                }
                Document::Index(index) => {
                    let Some(entry) = platform::choose(&index.manifests) else {
                        return Err(self.no_platform(platform::list(&index.manifests)));
                    };
                    (bytes, digest) = self.manifest(registry, entry).await?;
                }
            }
        }
        Err(Error::corrupt(format!("image {}", self.name), "indexes nested too deeply"))
    }

    async fn manifest(&self, registry: &Registry, entry: &Descriptor) -> Result<(Vec<u8>, String)> {
        self.session.pin(&entry.digest);
        if blob_size(self.session.layout(), &entry.digest)?.is_some() {
            return Ok((read_blob(self.session.layout(), &entry.digest)?, entry.digest.clone()));
        }
        registry.manifest(&self.name.clone_with_digest(entry.digest.clone())).await
    }

    async fn config(&self, registry: &Registry, manifest: &Manifest) -> Result<Config> {
        let what = format!("configuration {}", manifest.config.digest);
        if manifest.config.size > MAX_DOCUMENT {
            return Err(Error::corrupt(what, format!("larger than {MAX_DOCUMENT} bytes")));
        }
        let quiet = Reporter::new(None, &manifest.config.digest);
        let Blob { digest, .. } = download::fetch(self, registry, &manifest.config, &quiet).await?;
        let config: Config = serde_json::from_slice(&read_blob(self.session.layout(), &digest)?)
            .map_err(|e| Error::corrupt(what, e))?;
        let made_for = Platform {
            architecture: config.architecture.clone(),
            os: config.os.clone(),
            variant: config.variant.clone(),
        };
        if platform::runs_here(&made_for) {
            Ok(config)
        } else {
            Err(self.no_platform(platform::text(&made_for)))
        }
    }

    fn no_platform(&self, available: String) -> Error {
        Error::NoMatchingPlatform {
            reference: self.name.whole(),
            wanted: platform::text(&platform::host()),
            available,
        }
    }
}
