//! What can go wrong, sorted by what the caller does about it.

use std::io;
use std::path::Path;

/// A failure of the image store. The agent maps the kinds to the reasons that Kubernetes shows on a pod.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The words are not an image reference (`InvalidImageName`).
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidName {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither the store nor the registry has it.
    #[error("image {reference} not found{}", detail(.reason))]
    NotFound {
        /// What was looked for.
        reference: String,
        /// What the registry said, empty for the local store.
        reason: String,
    },
    /// A short id that several images begin with.
    #[error("image id {prefix} is ambiguous: it fits {count} images")]
    Ambiguous {
        /// The beginning that was given.
        prefix: String,
        /// How many images it fits.
        count: usize,
    },
    /// The registry wants other credentials, or any.
    #[error("registry {registry} refused access to {reference}: {reason}")]
    Unauthorized {
        /// Host and port.
        registry: String,
        /// The image asked for.
        reference: String,
        /// What the registry said.
        reason: String,
    },
    /// The registry cannot be reached, does not answer in time or fails by itself.
    #[error("registry {registry} is not available: {reason}")]
    RegistryUnavailable {
        /// Host and port.
        registry: String,
        /// The failure with its causes.
        reason: String,
    },
    /// The image exists, but not for this machine.
    #[error("image {reference} has no build for {wanted}; it has {available}")]
    NoMatchingPlatform {
        /// The image asked for.
        reference: String,
        /// This machine, for example `linux/amd64`.
        wanted: String,
        /// What there is instead.
        available: String,
    },
    /// Content that is not what its digest says, or that is no image at all.
    #[error("corrupt {object}: {reason}")]
    Corrupt {
        /// The blob, layer or archive.
        object: String,
        /// What does not hold.
        reason: String,
    },
    /// Content that is valid and beyond what this store handles.
    #[error("unsupported {object}: {reason}")]
    Unsupported {
        /// The blob, layer or archive.
        object: String,
        /// What it asks for.
        reason: String,
    },
    /// The image is in use and would have been deleted.
    #[error("image {reference} is in use")]
    InUse {
        /// The image asked to be removed.
        reference: String,
    },
    /// The disk (or the quota) is full.
    #[error("no space left on device: {operation} {path}")]
    NoSpace {
        /// What was being done.
        operation: &'static str,
        /// Where.
        path: String,
    },
    /// The system refused an operation on the store.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Where.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The result of every operation here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn detail(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

impl Error {
    /// Sorts a system error: a full disk is its own kind.
    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>, source: io::Error) -> Error {
        let path = path.as_ref().display().to_string();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { operation, path },
            _ => Error::Io { operation, path, source },
        }
    }

    pub(crate) fn corrupt(object: impl Into<String>, reason: impl ToString) -> Error {
        Error::Corrupt { object: object.into(), reason: reason.to_string() }
    }

    pub(crate) fn unsupported(object: impl Into<String>, reason: impl ToString) -> Error {
        Error::Unsupported { object: object.into(), reason: reason.to_string() }
    }
}

/// Gives a system error its operation and object.
pub(crate) trait Context<T> {
    /// Names what was being done to what.
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(operation, path, e.into()))
    }
}
