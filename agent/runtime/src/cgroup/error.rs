//! What can go wrong with control groups.

use std::io;
use std::path::PathBuf;

/// An operation on a control group that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the cgroup file system could not be used.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried, such as "write" or "create".
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason the kernel gave.
        source: io::Error,
    },
    /// A resource that the caller asked for cannot be set.
    #[error("set {resource} of cgroup {path}: {reason}")]
    Resource {
        /// The resource by its name in the OCI spec, such as "memory.limit".
        resource: String,
        /// The cgroup, relative to the hierarchy's root.
        path: String,
        /// Why not.
        reason: String,
    },
    /// This machine has no cgroup file system that can be used.
    #[error("no usable cgroup hierarchy: {0}")]
    NoHierarchy(String),
    /// A cgroup path that would leave its parent, or is not absolute.
    #[error("cgroup path {0:?} must be absolute and must not contain . or ..")]
    BadPath(String),
    /// A container without a cgroup of its own, see [`super::Driver::Inherited`].
    #[error("the container has no cgroup of its own: whoever created it may not make one")]
    Inherited,
    /// systemd could not be asked, or refused.
    #[error("{operation} {unit} with systemd: {reason}")]
    Systemd {
        /// What was tried, such as "start".
        operation: &'static str,
        /// The unit, or what it was to be made of.
        unit: String,
        /// The reason that systemd or its bus gave.
        reason: String,
    },
    /// A cgroup did not become empty in time.
    #[error("cgroup {path}: still has processes {pids:?} after SIGKILL")]
    Busy {
        /// The cgroup, relative to the hierarchy's root.
        path: String,
        /// Who is left.
        pids: Vec<i32>,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Error::Io { operation, path: path.into(), source }
    }

    pub(crate) fn systemd(
        operation: &'static str,
        unit: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Error::Systemd { operation, unit: unit.into(), reason: reason.into() }
    }

    /// True when the cgroup or its file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound
            || source.raw_os_error() == Some(nix::libc::ENODEV))
    }
}
