//! Image names.

use oci_client::Reference;

use crate::{Error, Result};

/// Parses a name as Docker and the CRI do: `nginx` is `docker.io/library/nginx:latest`, and a digest makes a tag
/// beside it meaningless, so the tag is dropped.
pub(crate) fn parse(reference: &str) -> Result<Reference> {
    let invalid = |reason: String| Error::InvalidName { reference: reference.to_owned(), reason };
    if reference.len() == 64 && reference.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
        // The rule of Docker's reference grammar that keeps ids and names apart.
        return Err(invalid("64 hex digits are an image id, not a name".to_owned()));
    }
    let parsed: Reference =
        reference.parse().map_err(|e: oci_client::ParseError| invalid(explain(reference, &e)))?;
    if parsed.repository().bytes().any(|b| b.is_ascii_uppercase()) {
        // The parser takes `TEAM/app` for a name on Docker Hub, which has no such names.
        return Err(invalid("repository name must be lowercase".to_owned()));
    }
    Ok(match parsed.digest() {
        Some(digest) => Reference::with_digest(
            parsed.registry().to_owned(),
            parsed.repository().to_owned(),
            digest.to_ascii_lowercase(),
        ),
        None => parsed,
    })
}

/// Adds the one hint that people need most: repository names are lower case.
fn explain(reference: &str, error: &oci_client::ParseError) -> String {
    let name = reference.split('@').next().unwrap_or(reference);
    let repository = name.split_once('/').map_or(name, |(_, rest)| rest);
    let repository = repository.rsplit_once(':').map_or(repository, |(repo, _)| repo);
    match error {
        oci_client::ParseError::ReferenceInvalidFormat
            if repository.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            "repository name must be lowercase".to_owned()
        }
        other => other.to_string(),
    }
}

/// The canonical form of an image name: `docker.io/library/nginx:latest` for `nginx`.
pub fn normalize(reference: &str) -> Result<String> {
    Ok(parse(reference)?.whole())
}

/// Whether Kubernetes pulls this image on every start by default: it has the tag `latest` or neither tag nor digest.
pub fn default_pull_policy_is_always(reference: &str) -> bool {
    parse(reference).is_ok_and(|r| r.digest().is_none() && r.tag() == Some("latest"))
}
