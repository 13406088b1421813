//! What can go wrong with an operation of the OCI runtime.

use std::io;
use std::path::{Path, PathBuf};

use super::Status;
use crate::{cgroup, container};

/// Why an operation failed. The words of the first ones are those that callers of OCI runtimes look for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such container.
    #[error("container does not exist: {id}")]
    NotFound {
        /// Its id.
        id: String,
    },
    /// The id is taken.
    #[error("container with given ID already exists: {id}")]
    Exists {
        /// The id.
        id: String,
    },
    /// The id cannot be the name of a container.
    #[error("invalid container id {id:?}: it may have letters, digits and _ + - . only")]
    BadId {
        /// The id.
        id: String,
    },
    /// The container's process has ended.
    #[error("container not running: {id}")]
    NotRunning {
        /// Its id.
        id: String,
    },
    /// The container is in a state that does not allow the operation.
    #[error("cannot {operation} container {id}: it is {status}")]
    WrongState {
        /// What was asked for.
        operation: &'static str,
        /// The container.
        id: String,
        /// What it is.
        status: Status,
    },
    /// What was asked for is invalid or not supported.
    #[error("{what}: {reason}")]
    Invalid {
        /// The field, flag or file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not what it should be.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A system call failed.
    #[error("{operation} {object}: {source}")]
    Sys {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The container or a process in it could not be made.
    #[error("{operation}: {source}")]
    Container {
        /// What was tried, in the words of other runtimes.
        operation: &'static str,
        /// Why not.
        source: container::Error,
    },
    /// A control group could not be read or changed.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
}

impl Error {
    pub(super) fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), reason: reason.into() }
    }

    /// For `map_err`: a system call on a thing.
    pub(super) fn sys<E: Into<io::Error>>(
        operation: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(E) -> Error {
        let object = object.to_string();
        move |source| Error::Sys { operation, object, source: source.into() }
    }

    /// For `map_err`: a system call on a file.
    pub(super) fn path<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
        Error::sys(operation, path.display())
    }
}
