//! What is kept of a container, and the state that is worked out of it.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::process;
use super::store::Folder;
use crate::cgroup::Driver;
use crate::container::cgroups;

/// What is kept of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of the specification that its configuration names.
    pub oci_version: String,
    /// Its id.
    pub id: String,
    /// Its first process; 0 while it is being created.
    pub pid: i32,
    /// When that process started, in clock ticks since boot.
    pub pid_start_time: u64,
    /// Its bundle, an absolute path.
    pub bundle: PathBuf,
    /// Its root file system, an absolute path.
    pub rootfs: PathBuf,
    /// When it was created.
    pub created: Timestamp,
    /// The name of the user who created it.
    pub owner: String,
    /// The annotations of its configuration.
    pub annotations: HashMap<String, String>,
    /// Its cgroup, relative to each hierarchy's root.
    pub cgroup: String,
    /// Who has made that.
    #[serde(default)]
    pub cgroup_driver: Driver,
    /// The number of the mount that its root file system lies in, when it shares its creator's mount namespace. What is mounted
    /// on it is the container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lies_in: Option<u64>,
}

/// What a container is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being created.
    Creating,
    /// Set up, its program does not run yet.
    Created,
    /// Its program runs.
    Running,
    /// Its program has been frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// The state as `state` and `list` print it: that of the runtime-spec with what other runtimes add.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The version of the specification.
    pub oci_version: String,
    /// The id.
    pub id: String,
    /// The first process, 0 when there is none.
    pub pid: i32,
    /// What it is.
    pub status: Status,
    /// The bundle.
    pub bundle: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
    /// When it was created.
    pub created: Timestamp,
    /// The annotations.
    #[serde(skip_serializing_if = "HashMap::is_empty", default)]
    pub annotations: HashMap<String, String>,
    /// Who created it.
    pub owner: String,
}

impl Record {
    /// What the container is now.
    pub fn status(&self, folder: &Folder) -> Status {
        if self.pid == 0 {
            // The creator holds the lock; without one nobody will finish it.
            return if folder.is_locked() { Status::Creating } else { Status::Stopped };
        }
        if process::start_time(self.pid) != Some(self.pid_start_time) {
            Status::Stopped
        } else if folder.gate().exists() {
            Status::Created
        } else if cgroups().is_ok_and(|c| c.is_frozen(&self.cgroup)) {
            Status::Paused
        } else {
            Status::Running
        }
    }

    /// The state to show.
    pub fn state(&self, status: Status) -> State {
        State {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.pid },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created,
            annotations: self.annotations.clone(),
            owner: self.owner.clone(),
        }
    }
}
