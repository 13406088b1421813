//! What a failed request means.

use oci_client::Reference;
use oci_client::errors::{DigestError, OciDistributionError as E, OciEnvelope, OciErrorCode};

use crate::Error;

/// A failure, and whether the same request may work in a moment.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) transient: bool,
    /// Nobody listens: trying again at once is of no use.
    pub(super) unreachable: bool,
}

/// The text of an error with all its causes: the outermost alone says only "error sending request".
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    one_line(&text)
}

/// Registries and proxies answer with whole HTML pages at times.
fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}

impl Failure {
    pub(super) fn lasting(error: Error) -> Failure {
        Failure { error, transient: false, unreachable: false }
    }

    fn unavailable(name: &Reference, reason: String, transient: bool) -> Failure {
        let registry = name.resolve_registry().to_owned();
        Failure { error: Error::RegistryUnavailable { registry, reason }, transient, unreachable: false }
    }

    /// A connection that broke.
    pub(super) fn broken(name: &Reference, error: &std::io::Error) -> Failure {
        let digest = error.get_ref().and_then(|inner| inner.downcast_ref::<DigestError>());
        match digest {
            Some(digest) => Failure::lasting(Error::corrupt(format!("content of {name}"), digest)),
            None => Failure::unavailable(name, chain(error), true),
        }
    }

    pub(super) fn new(name: &Reference, error: E) -> Failure {
        let unauthorized = |reason: String| {
            Failure::lasting(Error::Unauthorized {
                registry: name.resolve_registry().to_owned(),
                reference: name.whole(),
                reason,
            })
        };
        let missing = |reason: String| Failure::lasting(Error::NotFound { reference: name.whole(), reason });
        match error {
            E::UnauthorizedError { .. } => unauthorized("authentication required".to_owned()),
            E::AuthenticationFailure(reason) => unauthorized(one_line(&reason)),
            E::ServerError { code: 401 | 403, message, .. } => unauthorized(one_line(&message)),
            E::ServerError { code: 404, message, .. } => missing(one_line(&message)),
            E::ServerError { code, message, .. } => {
                let reason = one_line(&format!("http status {code}: {message}"));
                Failure::unavailable(name, reason, code >= 500 || matches!(code, 408 | 429))
            }
            E::ImageManifestNotFoundError(reason) => missing(reason),
            E::RegistryError { envelope, .. } => Failure::answered(name, &envelope, unauthorized, missing),
            E::DigestError(e) => Failure::lasting(Error::corrupt(format!("content of {name}"), e)),
            E::UnsupportedMediaTypeError(_) | E::UnsupportedSchemaVersionError(_) => {
                Failure::lasting(Error::unsupported(format!("image {name}"), error))
            }
            E::ManifestEncodingError(_)
            | E::ManifestParsingError(_)
            | E::VersionedParsingError(_)
            | E::JsonError(_) => Failure::lasting(Error::corrupt(format!("manifest of {name}"), error)),
            E::RequestError(e) => {
                let unreachable = e.is_connect();
                Failure { unreachable, ..Failure::unavailable(name, chain(&e), true) }
            }
            E::IoError(e) => Failure::broken(name, &e),
            other => Failure::unavailable(name, chain(&other), false),
        }
    }

    /// The registry's own words (OCI distribution spec, "Error Codes").
    fn answered(
        name: &Reference,
        envelope: &OciEnvelope,
        unauthorized: impl Fn(String) -> Failure,
        missing: impl Fn(String) -> Failure,
    ) -> Failure {
        use OciErrorCode as C;
        let reason = envelope.errors.iter().map(|e| e.message.as_str()).collect::<Vec<_>>().join(", ");
        let reason = one_line(&reason);
        match envelope.errors.first().map(|e| &e.code) {
            Some(
                C::ManifestUnknown | C::NameUnknown | C::NotFound | C::BlobUnknown | C::ManifestBlobUnknown,
            ) => missing(reason),
            Some(C::Unauthorized | C::Denied) => unauthorized(reason),
            Some(C::NameInvalid | C::TagInvalid) => {
                Failure::lasting(Error::InvalidName { reference: name.whole(), reason })
            }
            Some(C::Toomanyrequests) => {
                Failure::unavailable(name, format!("too many requests: {reason}"), true)
            }
            _ => Failure::unavailable(name, reason, false),
        }
    }
}
