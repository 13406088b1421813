//! User names and passwords for registries, as `docker login` and `podman login` write them down.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use serde::Deserialize;

use crate::{Error, Result};

/// Credentials by registry: what `auths` of a `config.json` holds (containers-auth.json(5)). Helper programs that such a
/// file may name are not called, as kubelet does not call them either.
#[derive(Clone, Default)]
pub struct Credentials {
    entries: Vec<(String, (String, String))>,
}

impl fmt::Debug for Credentials {
    /// Without passwords: this may end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|(registry, _)| registry)).finish()
    }
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    username: Option<String>,
    password: Option<String>,
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

impl Credentials {
    /// From the text of a `config.json` (`{"auths": {...}}`), which is also what secrets of type
    /// `kubernetes.io/dockerconfigjson` hold.
    ///
    /// # Errors
    /// The text is not of that form.
    pub fn from_config_json(text: &[u8]) -> std::result::Result<Self, serde_json::Error> {
        Ok(Self::of(serde_json::from_slice::<ConfigJson>(text)?.auths))
    }

    /// From the older `.dockercfg` form, without `auths`.
    ///
    /// # Errors
    /// The text is not of that form.
    pub fn from_dockercfg(text: &[u8]) -> std::result::Result<Self, serde_json::Error> {
        Ok(Self::of(serde_json::from_slice(text)?))
    }

    /// From a file in the `config.json` form.
    ///
    /// # Errors
    /// The file cannot be read, or is of another form.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).map_err(|e| Error::io("read", file, e))?;
        Self::from_config_json(&text).map_err(|e| Error::corrupt(file.display().to_string(), e))
    }

    /// As [`Credentials::read`]; a file that is not there holds none.
    ///
    /// # Errors
    /// As there.
    pub fn read_if_there(file: &Path) -> Result<Self> {
        match Self::read(file) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    fn of(auths: BTreeMap<String, Auth>) -> Self {
        Self { entries: auths.iter().filter_map(|(name, auth)| Some((name.clone(), auth.pair()?))).collect() }
    }

    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        self.entries.extend(others.entries);
    }

    /// What fits an image, the longest match first; of equal ones, what was added first.
    pub fn for_image(&self, reference: &str) -> Vec<(String, String)> {
        let Ok(canonical) = crate::normalize(reference) else { return Vec::new() };
        let mut found: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(registry, pair)| Some((fits(registry, &canonical)?, pair)))
            .collect();
        found.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        found.into_iter().map(|(_, pair)| pair.clone()).collect()
    }
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
    use super::*;

    #[test]
    fn an_entry_fits_its_registry_and_path_only() {
        assert!(fits("https://index.docker.io/v1/", "docker.io/library/nginx:latest").is_some());
        assert!(fits("127.0.0.1:5000", "127.0.0.1:5000/a/b:1").is_some());
        assert!(
            fits("127.0.0.1:5000/a", "127.0.0.1:5000/a/b:1") > fits("127.0.0.1:5000", "127.0.0.1:5000/a/b:1")
        );
        assert!(fits("127.0.0.1:500", "127.0.0.1:5000/a/b:1").is_none());
    }

    #[test]
    fn the_longest_match_comes_first_and_helpers_are_passed_over() {
        let text = br#"{"auths": {"reg.example": {"auth": "dTpw"}, "reg.example/team": {"username": "t", "password": "q"},
            "other.example": {"auth": "eDp5"}, "helped.example": {}}, "credsStore": "secretservice"}"#;
        let credentials = Credentials::from_config_json(text).unwrap();
        let pair = |user: &str, password: &str| (user.to_owned(), password.to_owned());
        assert_eq!(credentials.for_image("reg.example/team/app:1"), [pair("t", "q"), pair("u", "p")]);
        assert_eq!(credentials.for_image("reg.example/app"), [pair("u", "p")]);
        assert_eq!(credentials.for_image("helped.example/app"), []);
        assert!(!format!("{credentials:?}").contains('q'));
    }
}
