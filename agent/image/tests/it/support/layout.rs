//! OCI layouts written by hand.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::tars::{Pack, gzip};

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layout folder that grows.
pub struct Layout {
    pub dir: TempDir,
    manifests: Vec<Value>,
}

/// How to write an image.
#[derive(Clone)]
pub struct Spec {
    pub layers: Vec<Vec<u8>>,
    pub pack: Pack,
    pub suffix: &'static str,
    pub architecture: String,
    pub config: Value,
}

impl Spec {
    /// Gzipped layers for this machine.
    pub fn of(layers: Vec<Vec<u8>>) -> Spec {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        Spec { layers, pack: gzip, suffix: "+gzip", architecture: architecture.to_owned(), config: json!({}) }
    }
}

impl Layout {
    pub fn new() -> Layout {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layout = Layout { dir, manifests: Vec::new() };
        layout.write_index();
        layout
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    /// Writes a blob and returns its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        std::fs::write(self.path().join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Writes an image and returns the descriptor of its manifest.
    pub fn image(&self, spec: &Spec) -> Value {
        let diff_ids: Vec<String> = spec.layers.iter().map(|l| digest(l)).collect();
        let layer_type = format!("application/vnd.oci.image.layer.v1.tar{}", spec.suffix);
        let layers: Vec<Value> =
            spec.layers.iter().map(|l| self.blob(&layer_type, &(spec.pack)(l))).collect();
        let config = json!({
            "architecture": spec.architecture, "os": "linux", "config": spec.config,
            "created": "2024-01-02T03:04:05Z", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers})
                .to_string();
        self.blob(media_type, manifest.as_bytes())
    }

    /// Writes an index over those manifests, each with its architecture.
    pub fn index(&self, manifests: &[(Value, &str)]) -> Value {
        let entries: Vec<Value> = manifests
            .iter()
            .map(|(manifest, architecture)| {
                let mut entry = manifest.clone();
                entry["platform"] = json!({"os": "linux", "architecture": architecture});
                entry
            })
            .collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string();
        self.blob(media_type, index.as_bytes())
    }

    /// Lists a descriptor in index.json under a name.
    pub fn list(&mut self, mut descriptor: Value, name: &str) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.manifests.push(descriptor);
        self.write_index();
    }

    /// A layout with one image.
    pub fn with(spec: &Spec, name: &str) -> Layout {
        let mut layout = Layout::new();
        let image = layout.image(spec);
        layout.list(image, name);
        layout
    }
}
