//! What the caller may choose.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::progress::ProgressFn;

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// User name and password.
    pub auth: Option<(String, String)>,
    /// Registries spoken to over plain http: `host`, `host:port` or a CIDR. Loopback is always one.
    pub insecure_registries: Vec<String>,
    /// Folders with a folder per registry that holds its certificate authorities (`*.crt`). A registry that has one is
    /// spoken to over https, even on loopback.
    pub certs_dirs: Vec<PathBuf>,
    /// Told about every layer.
    pub progress: Option<ProgressFn>,
}

impl fmt::Debug for PullOptions {
    /// Without the password: options end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullOptions")
            .field("auth", &self.auth.as_ref().map(|(user, _)| user))
            .field("insecure_registries", &self.insecure_registries)
            .field("certs_dirs", &self.certs_dirs)
            .finish_non_exhaustive()
    }
}

/// How an imported root file system is to be run.
#[derive(Clone, Default)]
pub struct ImportOptions {
    /// Arguments, or the program when there is no entry point.
    pub cmd: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=value`. A default `PATH` is added when there is none.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// Absolute path.
    pub working_dir: String,
    /// Signal that asks the program to end.
    pub stop_signal: String,
    /// Ports as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Folders that hold data.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Told about the one layer.
    pub progress: Option<ProgressFn>,
}

/// How to load.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// Told about every layer.
    pub progress: Option<ProgressFn>,
}

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Ids of images that are gone.
    pub deleted: Vec<String>,
    /// Bytes given back to the disk, near enough.
    pub freed: u64,
}
