//! How far a pull, load or import has come.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Tells about one layer, seldom enough for a terminal or a network stream.
#[derive(Clone)]
pub(crate) struct Reporter {
    to: Option<ProgressFn>,
    layer: String,
}

impl Reporter {
    /// For a layer by its digest, or anything else by its name.
    pub(crate) fn new(to: Option<ProgressFn>, layer: &str) -> Reporter {
        let layer = match layer.strip_prefix("sha256:") {
            Some(hex) => hex.chars().take(12).collect(),
            None => layer.to_owned(),
        };
        Reporter { to, layer }
    }

    pub(crate) fn tell(&self, status: Status, current: u64, total: u64) {
        if let Some(to) = &self.to {
            to(Progress { layer: self.layer.clone(), status, current, total });
        }
    }

    /// A function that tells about bytes done, at most ten times a second.
    pub(crate) fn counter(&self, status: Status, total: u64) -> impl FnMut(u64) + Send + use<> {
        let this = self.clone();
        let mut last: Option<Instant> = None;
        move |current| {
            if this.to.is_some() && last.is_none_or(|at| at.elapsed() >= Duration::from_millis(100)) {
                last = Some(Instant::now());
                this.tell(status, current, total);
            }
        }
    }
}
