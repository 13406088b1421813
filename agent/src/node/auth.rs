//! Registry credentials from `imagePullSecrets`.

use std::collections::BTreeMap;

use base64::Engine;
use berth_reconciler::env::Lookup;
use berth_reconciler::pod::Pod;
use serde::Deserialize;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl Auth {
    fn pair(&self) -> Option<(String, String)> {
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Some((user.clone(), password.clone()));
        }
        let bytes = base64::engine::general_purpose::STANDARD.decode(self.auth.as_deref()?.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }
}

/// The user names and passwords that the pod's secrets have for the image's registry, the longest match first.
pub(super) fn credentials(pod: &Pod, reference: &str, lookup: &dyn Lookup) -> Vec<(String, String)> {
    let Ok(canonical) = berth_image::normalize(reference) else { return Vec::new() };
    let mut found: Vec<(usize, (String, String))> = Vec::new();
    for secret in pod.spec().image_pull_secrets.iter().flatten() {
        let Some(secret) = lookup.secret(pod.namespace(), &secret.name) else { continue };
        let Some(data) = secret.data.as_ref() else { continue };
        let config = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
            (Some(text), _) => serde_json::from_slice::<DockerConfig>(&text.0).ok().map(|c| c.auths),
            (_, Some(text)) => serde_json::from_slice(&text.0).ok(),
            _ => None,
        };
        for (registry, auth) in config.into_iter().flatten() {
            if let Some(pair) = auth.pair()
                && let Some(weight) = fits(&registry, &canonical)
            {
                found.push((weight, pair));
            }
        }
    }
    found.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    found.into_iter().map(|(_, pair)| pair).collect()
}

/// How well an entry of `auths` fits an image: the length of the match, none if it does not.
fn fits(registry: &str, canonical: &str) -> Option<usize> {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
    let bare = bare.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    let bare = if bare == "index.docker.io" { "docker.io" } else { bare };
    let rest = canonical.strip_prefix(bare)?;
    (rest.starts_with('/') || rest.starts_with(':') || rest.is_empty()).then_some(bare.len())
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn an_entry_fits_its_registry_and_path_only() {
        assert!(fits("https://index.docker.io/v1/", "docker.io/library/nginx:latest").is_some());
        assert!(fits("127.0.0.1:5000", "127.0.0.1:5000/a/b:1").is_some());
        assert!(
            fits("127.0.0.1:5000/a", "127.0.0.1:5000/a/b:1") > fits("127.0.0.1:5000", "127.0.0.1:5000/a/b:1")
        );
        assert!(fits("127.0.0.1:500", "127.0.0.1:5000/a/b:1").is_none());
    }
}
