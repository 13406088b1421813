//! Image names.

use oci_client::Reference;

use crate::{Error, Result};

/// Where a name without a registry comes from.
const HUB: &str = "docker.io";
/// Docker's former name of it.
const OLD_HUB: &str = "index.docker.io";
/// Docker's limit on repository names, in bytes.
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;

/// Parses a name as Docker and the CRI do: `nginx` is `docker.io/library/nginx:latest`, and a digest makes a tag
/// beside it meaningless, so the tag is dropped.
///
/// Not `Reference::from_str`: the regular expression behind it takes 5 MB for as long as the process lives, which is half of
/// what the agent needs for all else. The grammar is that of distribution's `reference/regexp.go`.
pub(crate) fn parse(reference: &str) -> Result<Reference> {
    read(reference)
        .map_err(|reason| Error::InvalidName { reference: reference.to_owned(), reason: reason.to_owned() })
}

fn read(reference: &str) -> std::result::Result<Reference, &'static str> {
    if reference.is_empty() {
        return Err("repository name must have at least one component");
    }
    if reference.len() == 64 && reference.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
        // The rule of Docker's reference grammar that keeps ids and names apart.
        return Err("64 hex digits are an image id, not a name");
    }
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    };
    let (registry, repository) = split_name(name)?;
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("invalid reference format");
    }
    match digest {
        Some(digest) => {
            check_digest(digest)?;
            Ok(Reference::with_digest(registry, repository, digest.to_ascii_lowercase()))
        }
        None => Ok(Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned())),
    }
}

/// Registry and repository of a name. The first part is a registry if it could not be one of a name on Docker Hub.
fn split_name(name: &str) -> std::result::Result<(String, String), &'static str> {
    let registry =
        name.split_once('/').filter(|(first, _)| first.contains(['.', ':']) || *first == "localhost");
    let (registry, repository) = registry.unwrap_or((HUB, name));
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository name must be lowercase");
    }
    if !is_registry(registry) || !repository.split('/').all(is_component) {
        return Err("invalid reference format");
    }
    let registry = if registry == OLD_HUB { HUB } else { registry };
    let official = registry == HUB && !repository.contains('/');
    let repository = if official { format!("library/{repository}") } else { repository.to_owned() };
    if repository.len() > LONGEST_REPOSITORY {
        return Err("repository name must not be more than 255 characters");
    }
    Ok((registry.to_owned(), repository))
}

/// A host name or IPv4 address, and a port.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// A part of a repository: lower-case letters and digits with `.`, `_`, `__` or dashes between them.
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut between = text.split(|c: char| c.is_ascii() && word(c as u8)).filter(|s| !s.is_empty());
    let ends = |b: Option<&u8>| b.is_some_and(|b| word(*b));
    ends(text.as_bytes().first())
        && ends(text.as_bytes().last())
        && between.all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= LONGEST_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn check_digest(digest: &str) -> std::result::Result<(), &'static str> {
    let (algorithm, hex) = digest.split_once(':').ok_or("invalid reference format")?;
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err("unsupported digest algorithm"),
    };
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("invalid checksum digest format");
    }
    if hex.len() != length { Err("invalid checksum digest length") } else { Ok(()) }
}

/// The canonical form of an image name: `docker.io/library/nginx:latest` for `nginx`.
pub fn normalize(reference: &str) -> Result<String> {
    Ok(parse(reference)?.whole())
}

/// Whether Kubernetes pulls this image on every start by default: it has the tag `latest` or neither tag nor digest.
pub fn default_pull_policy_is_always(reference: &str) -> bool {
    parse(reference).is_ok_and(|r| r.digest().is_none() && r.tag() == Some("latest"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What the reference crate's regular expression says, with the rules that stand above.
    fn expected(text: &str) -> Option<String> {
        let parsed: Reference = text.parse().ok()?;
        let id = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if id || parsed.repository().bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let (registry, repository) = (parsed.registry().to_owned(), parsed.repository().to_owned());
        Some(match parsed.digest() {
            Some(digest) => Reference::with_digest(registry, repository, digest.to_ascii_lowercase()).whole(),
            None => parsed.whole(),
        })
    }

    /// Every name made of up to four of these pieces is judged as the reference crate judges it (which takes letters of other alphabets in a
    /// tag, too, as neither Docker nor a registry does).
    #[test]
    fn agrees_with_the_reference_crate() {
        let digest = format!("@sha256:{}", "aB".repeat(32));
        let pieces = ["a", "A", "9", ".", "-", "_", "/", ":", "localhost", "index.docker.io", " ", &digest];
        let mut names = vec![String::new()];
        let mut begin = 0;
        for _ in 0..4 {
            let end = names.len();
            for i in begin..end {
                for piece in pieces {
                    let longer = format!("{}{piece}", names[i]);
                    names.push(longer);
                }
            }
            begin = end;
        }
        for name in &names {
            assert_eq!(parse(name).ok().map(|r| r.whole()), expected(name), "{name:?}");
        }
    }
}
