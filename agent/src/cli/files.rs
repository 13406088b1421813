//! Manifest files named on the command line.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use berth_reconciler::manifest::{self, Located, ManifestError, Object};
use clap::Args;
use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::resource;
use crate::store::Kind;

/// Where manifests are read from.
#[derive(Args, Clone, Debug, Default)]
pub struct Files {
    /// Manifest file, folder of manifests, or - for standard input; may be given more than once
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    pub filename: Vec<PathBuf>,
}

/// What the files hold.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The good objects.
    pub objects: Vec<Located<Object>>,
    /// What is wrong.
    pub errors: Vec<ManifestError>,
    /// How many files were read.
    pub files: usize,
}

/// Reads manifests from files, folders (their `.yaml`, `.yml` and `.json` files) and standard input (`-`).
///
/// # Errors
/// When a file cannot be read. Errors in its text are in the result.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Manifests> {
    let mut all = Manifests::default();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            all.add(&text, Path::new("standard input"));
            continue;
        }
        let info = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        for file in if info.is_dir() { folder(path)? } else { vec![path.clone()] } {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let Ok(text) = String::from_utf8(bytes) else {
                bail!("cannot read {}: it is no UTF-8 text", file.display())
            };
            all.add(&text, &file);
        }
    }
    Ok(all)
}

impl Manifests {
    fn add(&mut self, text: &str, file: &Path) {
        let parsed = manifest::parse(text, Some(file), &manifest::Context::default());
        self.objects.extend(parsed.objects);
        self.errors.extend(parsed.errors);
        self.files += 1;
    }
}

fn folder(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let file = entry.with_context(|| format!("cannot read {}", path.display()))?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let manifest = matches!(file.extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"));
        if manifest && !hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("no .yaml, .yml or .json file in {}", path.display());
    }
    Ok(files)
}

/// An object of a manifest as it goes over the API.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name; empty when the server is to make one from `generateName`.
    pub name: String,
    /// The whole object.
    pub value: Value,
}

impl Item {
    /// The object in a namespace: its own, else the one given, else `default`.
    ///
    /// # Errors
    /// When the object is in another namespace than the one given.
    pub fn new(object: &Object, namespace: Option<&str>) -> anyhow::Result<Item> {
        let (kind, metadata, mut value) = match object {
            Object::Pod(pod) => (Kind::Pod, pod.metadata(), json!(pod)),
            Object::ConfigMap(map) => (Kind::ConfigMap, map.metadata(), json!(map)),
            Object::Secret(secret) => (Kind::Secret, secret.metadata(), json!(secret)),
            Object::NetworkPolicy(policy) => (Kind::NetworkPolicy, policy.metadata(), json!(policy)),
            Object::Namespace(namespace) => {
                let name = namespace.metadata.name.clone().unwrap_or_default();
                let value = json!(namespace);
                return Ok(Item { kind: Kind::Namespace, namespace: String::new(), name, value });
            }
            Object::Service(service) => (Kind::Service, service.metadata(), json!(service)),
            Object::PersistentVolumeClaim(claim) => {
                (Kind::PersistentVolumeClaim, claim.metadata(), json!(claim))
            }
            Object::PersistentVolume(volume) => {
                let name = volume.metadata.name.clone().unwrap_or_default();
                let value = json!(volume);
                return Ok(Item { kind: Kind::PersistentVolume, namespace: String::new(), name, value });
            }
        };
        let ObjectMeta { name, namespace: own, .. } = metadata;
        let name = name.clone().unwrap_or_default();
        let target = match (own.as_deref(), namespace) {
            // The checks write "default" where the manifest has none, so that one gives way.
            (None | Some("default"), Some(wanted)) => wanted,
            (Some(own), Some(wanted)) if own != wanted => {
                bail!(
                    "{} {name} is in namespace {own}, not in {wanted} as --namespace says",
                    kind.as_str().to_lowercase()
                )
            }
            (Some(own), _) => own,
            (None, None) => "default",
        };
        value["metadata"]["namespace"] = json!(target);
        Ok(Item { kind, namespace: target.to_owned(), name, value })
    }

    /// `pod/web`, as kubectl writes it.
    pub fn title(&self) -> String {
        format!("{}/{}", resource::typed(self.kind), self.name)
    }
}
