//! How far a pull, load or import has come.

use std::fmt;
use std::sync::Arc;

/// Receives progress; called from several threads, and must return soon.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// The state of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The first 12 hex digits of the layer's digest.
    pub layer: String,
    /// What happens to it.
    pub status: Status,
    /// Bytes done in this status.
    pub current: u64,
    /// Bytes to do in this status; 0 when unknown.
    pub total: u64,
}

/// What happens to a layer. The texts are Docker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Known and waiting.
    PullingFsLayer,
    /// Bytes arrive.
    Downloading,
    /// The transfer broke and is taken up again.
    Retrying,
    /// All bytes are here and have the right digest.
    DownloadComplete,
    /// Being unpacked.
    Extracting,
    /// Done.
    PullComplete,
    /// Nothing to do.
    AlreadyExists,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::PullingFsLayer => "Pulling fs layer",
            Status::Downloading => "Downloading",
            Status::Retrying => "Retrying",
            Status::DownloadComplete => "Download complete",
            Status::Extracting => "Extracting",
            Status::PullComplete => "Pull complete",
            Status::AlreadyExists => "Already exists",
        })
    }
}
