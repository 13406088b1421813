//! Making a container's image present, by its imagePullPolicy.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use berth_image::{Error, Image, PullOptions};
use berth_reconciler::node::Failure;
use berth_reconciler::pod::Pod;

use super::sandbox::blocking;
use super::{AgentNode, auth};

/// Finds an image in the store.
pub(super) async fn local(node: &AgentNode, reference: &str) -> Result<Option<Image>, Failure> {
    let (store, name) = (node.images.clone(), reference.to_owned());
    blocking(move || store.get(&name)).await.map_err(|e| failure(reference, &e))
}

/// Makes the image of a container present, and those of the image volumes that it mounts.
pub(super) async fn ensure(node: &AgentNode, pod: &Arc<Pod>, container: &str) -> Result<(), Failure> {
    let Some(spec) = pod.container(container) else { return Ok(()) };
    let volumes = pod.spec().volumes.iter().flatten();
    let mounted = volumes.filter(|volume| crate::volumes::mounts(spec, &volume.name));
    let own = std::iter::once((spec.image.clone(), spec.image_pull_policy.clone()));
    let images = mounted.filter_map(|v| v.image.clone()).map(|image| (image.reference, image.pull_policy));
    for (reference, policy) in own.chain(images).collect::<Vec<_>>() {
        ensure_one(node, pod, container, &reference.unwrap_or_default(), policy.as_deref()).await?;
    }
    Ok(())
}

async fn ensure_one(
    node: &AgentNode,
    pod: &Arc<Pod>,
    container: &str,
    reference: &str,
    policy: Option<&str>,
) -> Result<(), Failure> {
    let policy = match policy {
        Some(policy) => policy,
        None if berth_image::default_pull_policy_is_always(reference) => "Always",
        None => "IfNotPresent",
    };
    if policy != "Always" {
        let present = local(node, reference).await?;
        if present.is_some() {
            let text = format!("Container image \"{reference}\" already present on machine");
            node.note(pod, false, "Pulled", text, Some(container));
            return Ok(());
        }
        if policy == "Never" {
            return Err(Failure {
                reason: "ErrImageNeverPull".into(),
                message: format!(
                    "Container image \"{reference}\" is not present with pull policy of Never; load it with \"berth image load\""
                ),
            });
        }
    }
    pull(node, pod, container, reference).await
}

async fn pull(node: &AgentNode, pod: &Arc<Pod>, container: &str, reference: &str) -> Result<(), Failure> {
    node.note(pod, false, "Pulling", format!("Pulling image \"{reference}\""), Some(container));
    let begun = Instant::now();
    let known = auth::credentials(pod, reference, &node.configs, &node.config.registry_auth_file);
    let options = PullOptions {
        auth: None,
        insecure_registries: node.config.insecure_registries.clone(),
        certs_dirs: node.config.registry_certs_dirs.clone(),
        progress: None,
    };
    // As kubelet: every credential that fits the registry, then none.
    let ways = known.into_iter().map(Some).chain([None]);
    match node.images.pull_as(reference, ways, &options).await {
        Ok(image) => {
            let took = begun.elapsed().as_millis();
            let text = format!(
                "Successfully pulled image \"{reference}\" in {took}ms ({took}ms including waiting). Image size: {} bytes.",
                image.size
            );
            node.note(pod, false, "Pulled", text, Some(container));
            node.counters.pulls.with_label_values(&["ok"]).inc();
            Ok(())
        }
        Err(error) => {
            node.counters.pulls.with_label_values(&["failed"]).inc();
            Err(failure(reference, &error))
        }
    }
}

fn failure(reference: &str, error: &Error) -> Failure {
    match error {
        Error::InvalidName { .. } => Failure {
            reason: "InvalidImageName".into(),
            message: format!("Failed to apply default image tag \"{reference}\": {error}"),
        },
        _ => Failure {
            reason: "ErrImagePull".into(),
            message: format!("failed to pull image \"{reference}\": {error}"),
        },
    }
}

/// Ids of the images that containers of the agent with this state folder were made from.
pub fn images_in_use(root: &Path) -> HashSet<String> {
    let mut ids = HashSet::new();
    for pod in std::fs::read_dir(root.join("rootfs")).into_iter().flatten().flatten() {
        for container in std::fs::read_dir(pod.path()).into_iter().flatten().flatten() {
            if let Ok(id) = std::fs::read_to_string(container.path().join("image")) {
                ids.insert(id.trim().to_owned());
            }
        }
    }
    ids
}
