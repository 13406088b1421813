//! Registry credentials: the pod's `imagePullSecrets`, then the node's own file.

use std::path::Path;

use berth_image::Credentials;
use berth_reconciler::env::Lookup;
use berth_reconciler::pod::Pod;

/// The user names and passwords for the image's registry: from the pod's secrets, the longest match first, then from the node's file.
/// What cannot be read is left out, with a line in the log: the pull's own error is what the pod shows.
pub(super) fn credentials(
    pod: &Pod,
    reference: &str,
    lookup: &dyn Lookup,
    node_file: &Path,
) -> Vec<(String, String)> {
    let mut of_pod = Credentials::default();
    for secret in pod.spec().image_pull_secrets.iter().flatten() {
        let Some(secret) = lookup.secret(pod.namespace(), &secret.name) else { continue };
        let Some(data) = secret.data.as_ref() else { continue };
        let read = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
            (Some(text), _) => Credentials::from_config_json(&text.0),
            (_, Some(text)) => Credentials::from_dockercfg(&text.0),
            _ => continue,
        };
        match read {
            Ok(read) => of_pod.extend(read),
            Err(error) => {
                let name = secret.metadata.name.as_deref().unwrap_or_default();
                tracing::warn!(secret = name, %error, "image pull secret is not of the form of a docker config.json");
            }
        }
    }
    let mut pairs = of_pod.for_image(reference);
    match Credentials::read_if_there(node_file) {
        Ok(of_node) => pairs.extend(of_node.for_image(reference)),
        Err(error) => tracing::warn!(%error, "registry credentials of the node are not used"),
    }
    pairs
}
