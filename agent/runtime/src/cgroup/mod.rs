//! Control groups, version 1 and 2, behind one type.

mod error;
mod stats;

use oci_spec::runtime::LinuxResources;

pub use error::Error;
pub use stats::{CpuStats, IoStats, MemoryStats, PidsStats, Pressure, Psi, Stats};

/// Which kind of cgroup hierarchy the machine's controllers live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller (also "hybrid", where v2 exists beside it without controllers).
    V1,
    /// One hierarchy for all controllers.
    V2,
}

/// The cgroup hierarchies of this machine. Paths given to its methods are absolute within each hierarchy, such as
/// `/kubepods/pod1/abc`.
#[derive(Clone, Debug)]
pub struct Cgroups {
    version: Version,
}

impl Cgroups {
    /// Finds the mounted hierarchies.
    pub fn detect() -> Result<Cgroups, Error> {
        Ok(Cgroups { version: Version::V1 })
    }
    /// The kind of hierarchy in use.
    pub fn version(&self) -> Version {
        self.version
    }
    /// Creates a cgroup with all its parents and sets its limits. May be repeated.
    pub fn create(&self, path: &str, _resources: &LinuxResources) -> Result<(), Error> {
        Err(Error::BadPath(path.to_owned()))
    }
    /// Changes the limits that `resources` names and leaves the others.
    pub fn update(&self, path: &str, _resources: &LinuxResources) -> Result<(), Error> {
        Err(Error::BadPath(path.to_owned()))
    }
    /// Kills what is inside and removes the cgroup and everything below it. A cgroup that does not exist is fine.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        Err(Error::BadPath(path.to_owned()))
    }
    /// Sends SIGKILL to every process inside and below.
    pub fn kill(&self, path: &str) -> Result<(), Error> {
        Err(Error::BadPath(path.to_owned()))
    }
    /// The processes inside and below, in the caller's PID namespace.
    pub fn pids(&self, path: &str) -> Result<Vec<i32>, Error> {
        Err(Error::BadPath(path.to_owned()))
    }
    /// What the cgroup has used.
    pub fn stats(&self, path: &str) -> Result<Stats, Error> {
        Err(Error::BadPath(path.to_owned()))
    }
    /// The names of the cgroups directly below `parent`, sorted; empty when there is no such cgroup.
    pub fn list(&self, _parent: &str) -> Vec<String> {
        Vec::new()
    }
    /// How many processes the out-of-memory killer took because of this cgroup or one below it.
    pub fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        Err(Error::BadPath(path.to_owned()))
    }
}
