//! What makes two instances of a container interchangeable.

use k8s_openapi::api::core::v1;
use sha2::{Digest, Sha256};

/// Hash of a container's spec without what may change in place: resources, and what the agent and not the process
/// acts on (probes, hooks, pull and restart policy). Two containers with equal hashes need no restart between them.
pub fn spec_hash(container: &v1::Container) -> String {
    let identity = v1::Container {
        resources: None,
        resize_policy: None,
        liveness_probe: None,
        readiness_probe: None,
        startup_probe: None,
        lifecycle: None,
        image_pull_policy: None,
        restart_policy: None,
        restart_policy_rules: None,
        ..container.clone()
    };
    let text = serde_json::to_vec(&identity).expect("a container is plain data");
    Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
