//! What can go wrong between a `Spec` and a running process.

use std::io;

use crate::cgroup;

/// A container that could not be made, or a process that could not be started in one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed, here or in the new process.
    #[error("{operation} {object}: {source}")]
    Sys {
        /// What was tried, such as "mount proc on".
        operation: String,
        /// The path or thing it was tried on.
        object: String,
        /// The reason the kernel gave.
        source: io::Error,
    },
    /// The `Spec` asks for something invalid or not supported.
    #[error("{field}: {reason}")]
    Spec {
        /// The field's path in `config.json`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The program of the container cannot be executed. The text is the one that other runtimes give, such as
    /// `exec: "foo": executable file not found in $PATH`.
    #[error("{message}")]
    Exec {
        /// The whole message.
        message: String,
        /// True when there is no such program (shells call that 127), false when it exists but cannot be run (126).
        not_found: bool,
    },
    /// The new process died while it was being set up.
    #[error("the container process died while it was being set up ({status})")]
    Died {
        /// How it ended, such as "killed by signal 9".
        status: String,
    },
    /// The container's cgroup could not be made or entered.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
}

impl Error {
    pub(crate) fn sys(operation: impl Into<String>, object: impl Into<String>, source: io::Error) -> Self {
        Error::Sys { operation: operation.into(), object: object.into(), source }
    }

    pub(crate) fn spec(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Spec { field: field.into(), reason: reason.into() }
    }
}
