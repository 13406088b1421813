//! What a pod gets when this node takes it: uid, name, node, annotations.

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use sha2::{Digest, Sha256};

use crate::network::STATUS;
use crate::pod::{Pod, Source};
use crate::status::time;

/// Where a pod comes from: `file` or `api`.
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// The hash of a file pod's manifest; it equals the uid.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
/// Marks the picture that an API server has of a node's pod from a file; its value is that pod's hash.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// When the node saw the pod.
pub const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";

/// Gives a checked pod its identity on this node.
///
/// A pod from a file gets the suffix `-<node>` to its name and a uid that is a hash of its manifest, the file's path and
/// the node, so that a changed manifest is another pod. A pod from the API keeps its name and gets a random uid; one of a
/// cluster has both already.
pub fn admit(mut pod: v1::Pod, source: Source, node_name: &str) -> Pod {
    let now = Timestamp::now();
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    let uid = match &source {
        Source::File(file) => {
            let uid = hash_uid(&pod, &file.to_string_lossy(), node_name);
            let name = pod.metadata.name.unwrap_or_default();
            pod.metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
            uid
        }
        Source::Api => {
            if pod.metadata.name.as_deref().unwrap_or_default().is_empty() {
                pod.metadata.name = pod.metadata.generate_name.as_deref().map(generated_name);
            }
            pod.metadata.generation = Some(1);
            uuid::Uuid::new_v4().to_string()
        }
        Source::Cluster => pod.metadata.uid.take().unwrap_or_default(),
    };
    let annotations = pod.metadata.annotations.get_or_insert_default();
    let kind = match &source {
        Source::File(_) => "file",
        Source::Api | Source::Cluster => "api",
    };
    annotations.insert(SOURCE_ANNOTATION.to_owned(), kind.to_owned());
    annotations.insert(SEEN_ANNOTATION.to_owned(), now.to_string());
    if matches!(source, Source::File(_)) {
        annotations.insert(HASH_ANNOTATION.to_owned(), uid.clone());
    }
    pod.metadata.uid = Some(uid);
    if source != Source::Cluster {
        pod.metadata.creation_timestamp = Some(time(now));
    }
    pod.spec.get_or_insert_default().node_name = Some(node_name.to_owned());
    pod.status = None;
    Pod::new(pod, source)
}

/// A hash in the form of a uuid. Annotations that a node or kubectl writes do not count.
fn hash_uid(pod: &v1::Pod, file: &str, node_name: &str) -> String {
    let mut plain = pod.clone();
    if let Some(annotations) = &mut plain.metadata.annotations {
        annotations.retain(|key, _| {
            !matches!(key.as_str(), SOURCE_ANNOTATION | HASH_ANNOTATION | SEEN_ANNOTATION | STATUS)
        });
    }
    // A Pod always serializes: its keys are strings. Maps are ordered, so equal pods give equal text.
    let text = serde_json::to_vec(&plain).unwrap_or_default();
    let mut hasher = Sha256::new();
    hasher.update(&text);
    hasher.update(format!("\0host:{node_name}\0file:{file}"));
    let digest = hasher.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// A name from a `generateName` prefix: five random characters, as the API server adds them.
fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    let suffix =
        random.as_bytes()[..5].iter().map(|byte| ALPHABET[usize::from(*byte) % ALPHABET.len()] as char);
    let room = 63 - 5;
    let prefix: String = prefix.chars().take(room).collect();
    prefix.chars().chain(suffix).collect()
}
