//! Control groups, version 1 and 2, behind one type.
//!
//! `cgroups-rs` finds the hierarchies and writes the limits. Beside it stand, because they are hot or missing there:
//! attaching (a v1 process writes itself into `tasks`, a v2 process is born in its cgroup, see
//! `container::placement`), reading figures with few file reads, device rules on v2, killing and removing.

mod apply;
mod create;
mod details;
mod device_program;
mod devices;
mod error;
mod freeze;
mod group_kill;
mod hierarchy;
mod oom;
mod path;
mod read;
mod remove;
mod rights;
mod stats;
mod systemd;
mod weight;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

pub use details::{
    BlockIo, Counter, Cpu, CpuSet, CpuUsage, Details, DeviceIo, Memory, Pids, Psi as PsiAverages, PsiData,
    Throttling,
};
pub use error::Error;
pub use oom::OomWatch;
pub use stats::{CpuStats, IoStats, MemoryStats, PidsStats, Pressure, Psi, Stats};
pub use systemd::scope_words;
#[cfg(feature = "agent")]
pub use systemd::{machine_is_stopping, slice_path};
pub use weight::CpuWeight;

pub(crate) use group_kill::{GroupKill, Held};
pub(crate) use rights::rootless;

use apply::Target;
use hierarchy::Hierarchy;

/// Which kind of cgroup hierarchy the machine's controllers live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller (also "hybrid", where v2 exists beside it without controllers).
    V1,
    /// One hierarchy for all controllers.
    V2,
}

/// Who makes the cgroups of containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// This process, in the cgroup file systems.
    #[default]
    Cgroupfs,
    /// systemd, which is asked over D-Bus for a transient scope: `--systemd-cgroup` of OCI runtimes. The cgroup's path
    /// comes from [`Cgroups::path_for`] and tells the unit's name, so that the path and the driver are all that must
    /// be remembered to update or remove it.
    Systemd,
    /// Nobody: the container stays where its creator is, has no limits, and cannot be paused. For who is not root of the
    /// machine and may make no cgroups.
    Inherited,
}

/// The cgroup hierarchies of this machine. Paths given to its methods are absolute within each hierarchy, such as
/// `/kubepods/pod1/abc`, and never the root.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchy: Hierarchy,
    weight: CpuWeight,
    driver: Driver,
}

impl Cgroups {
    /// Finds the mounted hierarchies.
    pub fn detect() -> Result<Cgroups, Error> {
        Ok(Cgroups {
            hierarchy: Hierarchy::detect()?,
            weight: CpuWeight::default(),
            driver: Driver::default(),
        })
    }

    /// The same hierarchies, with cpu shares turned into v2 weights by another formula. Use
    /// [`CpuWeight::Linear`] for the cgroups of pods and tiers.
    pub fn with_cpu_weight(&self, weight: CpuWeight) -> Cgroups {
        Cgroups { weight, ..self.clone() }
    }

    /// The same hierarchies, with the cgroups of containers made by somebody else.
    pub fn with_driver(&self, driver: Driver) -> Cgroups {
        Cgroups { driver, ..self.clone() }
    }

    /// The cgroup of the container `id` whose spec has this `linux.cgroupsPath`: a path for cgroupfs, or
    /// `slice:prefix:name` for systemd.
    ///
    /// # Errors
    /// When that is not of the driver's form.
    pub fn path_for(&self, id: &str, cgroups_path: Option<&str>) -> Result<String, Error> {
        match (self.driver, cgroups_path) {
            (Driver::Systemd, given) => systemd::path_of(id, given),
            (Driver::Inherited, _) => Ok(String::new()),
            // Of one level: whoever removes the container's leaves nothing behind.
            (Driver::Cgroupfs, None) => Ok(format!("/berth-{id}")),
            (Driver::Cgroupfs, Some(path)) if path.starts_with('/') => Ok(path.to_owned()),
            // A relative path means, by the OCI spec, relative to wherever the runtime likes.
            (Driver::Cgroupfs, Some(path)) => Ok(format!("/{path}")),
        }
    }

    /// Whether the cgroup can be made, or is there already, by who may not make cgroups everywhere.
    ///
    /// # Errors
    /// When it cannot be made for another reason.
    pub(crate) fn may_make(&self, path: &str, resources: &LinuxResources) -> Result<bool, Error> {
        match self.make(path, resources) {
            Err(error) if rights::is_denied(&error) && rights::rootless() => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// The kind of hierarchy in use.
    pub fn version(&self) -> Version {
        self.hierarchy.version()
    }

    /// Creates a cgroup with all its parents, hands every v2 controller down to it and sets its limits. May be
    /// repeated. systemd makes a slice of it: the path is one of [`slice_path`].
    pub fn create(&self, path: &str, resources: &LinuxResources) -> Result<(), Error> {
        if self.driver == Driver::Systemd {
            systemd::slice(path, self.version(), resources, self.weight)?;
        }
        self.make(path, resources)?;
        self.apply(path, resources)
    }

    /// Changes the limits that `resources` names and leaves the others. On v1 this may bring the processes into a
    /// hierarchy that they were not in, such as cpuset.
    pub fn update(&self, path: &str, resources: &LinuxResources) -> Result<(), Error> {
        let relative = path::relative(path)?;
        let members = match self.hierarchy {
            Hierarchy::V1(_) => remove::pids(&self.hierarchy, relative)?,
            Hierarchy::V2(_) => Vec::new(),
        };
        self.tell(path, resources)?;
        let fresh = self.make(path, resources)?;
        self.apply(path, resources)?;
        for dir in fresh {
            for pid in &members {
                match path::write(&dir.join("cgroup.procs"), &pid.to_string()) {
                    // It ended meanwhile.
                    Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Kills what is inside, waits up to ten seconds for it to end, and removes the cgroup and everything below it.
    /// A cgroup that does not exist is fine.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        if self.driver == Driver::Inherited {
            return Ok(());
        }
        let relative = path::relative(path)?;
        if self.driver == Driver::Cgroupfs {
            return remove::remove(&self.hierarchy, relative, path);
        }
        // systemd would ask the processes to end, and wait for that; they are to be gone at once.
        remove::empty(&self.hierarchy, relative, path)?;
        let stopped = systemd::stop(path);
        // It knows neither of every v1 hierarchy nor of what the container has made inside.
        remove::remove(&self.hierarchy, relative, path).and(stopped)
    }

    /// Removes the empty folders that another runtime has made for this cgroup, and for the three above it, in v1
    /// hierarchies that are not used here (`name=systemd`, `perf_event`). What is not empty stays.
    pub fn remove_elsewhere(&self, path: &str) {
        if let (Hierarchy::V1(used), Ok(relative)) = (&self.hierarchy, path::relative(path)) {
            remove::elsewhere(used, relative);
        }
    }

    /// Sends SIGKILL to every process inside and below. A cgroup that does not exist is fine.
    pub fn kill(&self, path: &str) -> Result<(), Error> {
        remove::kill_all(&self.hierarchy, path::relative(path)?)
    }

    /// The processes inside and below, as process ids of the caller's PID namespace, sorted. Empty when there is no
    /// such cgroup.
    pub fn pids(&self, path: &str) -> Result<Vec<i32>, Error> {
        remove::pids(&self.hierarchy, path::relative(path)?)
    }

    /// What the cgroup has used. Fails with a "not found" error when there is no such cgroup.
    pub fn stats(&self, path: &str) -> Result<Stats, Error> {
        read::stats(&self.hierarchy, path::relative(path)?)
    }

    /// Everything that can be told about the cgroup, in the form of `runc events --stats`. Slower than
    /// [`Cgroups::stats`]. Fails with a "not found" error when there is no such cgroup.
    pub fn details(&self, path: &str) -> Result<Details, Error> {
        details::details(&self.hierarchy, path::relative(path)?)
    }

    /// The names of the cgroups directly below `parent`, sorted; empty when there is no such cgroup. `/` is the root.
    pub fn list(&self, parent: &str) -> Vec<String> {
        let relative = if parent == "/" { Ok(Path::new("")) } else { path::relative(parent) };
        relative.map(|r| self.hierarchy.children(r)).unwrap_or_default()
    }

    /// How many processes the out-of-memory killer took in this cgroup and below it.
    pub fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        read::oom_kills(&self.hierarchy, path::relative(path)?)
    }

    /// How often that killer took all of a cgroup, this one or one below it. Nothing where that is not counted: on v1, and before
    /// Linux 5.17.
    pub(crate) fn oom_group_kills(&self, path: &str) -> Result<Option<u64>, Error> {
        match &self.hierarchy {
            Hierarchy::V2(root) => read::oom_group_kills(&root.join(path::relative(path)?)),
            Hierarchy::V1(_) => Ok(None),
        }
    }

    /// What decides whether a cgroup is killed as a whole for want of memory. Nothing on v1, and when it cannot be kept from that.
    pub(crate) fn group_kill(&self, path: &str) -> Option<GroupKill> {
        match &self.hierarchy {
            Hierarchy::V2(root) => GroupKill::open(root, path::relative(path).ok()?),
            Hierarchy::V1(_) => None,
        }
    }

    /// A descriptor that tells when that killer is at work in this cgroup; `None` where memory is not counted.
    pub fn watch_oom(&self, path: &str) -> Result<Option<OomWatch>, Error> {
        oom::watch(&self.hierarchy, path::relative(path)?)
    }

    /// Stops every process inside and below, and waits up to five seconds for it. When not all of them stop they are
    /// let go on.
    pub fn freeze(&self, path: &str) -> Result<(), Error> {
        freeze::freeze(&self.hierarchy, path::relative(path)?)
    }

    /// Lets stopped processes go on. A cgroup that does not exist is fine.
    pub fn thaw(&self, path: &str) -> Result<(), Error> {
        freeze::thaw(&self.hierarchy, path::relative(path)?)
    }

    /// Whether its processes have been stopped. A cgroup that does not exist has none.
    pub fn is_frozen(&self, path: &str) -> bool {
        path::relative(path).is_ok_and(|relative| freeze::is_frozen(&self.hierarchy, relative))
    }

    /// True when a process must exist before its cgroup can.
    pub(crate) fn adopts(&self) -> bool {
        self.driver == Driver::Systemd
    }

    /// Has systemd make the cgroup, with `pid` in it (on v1: in those hierarchies that systemd cares for), those limits
    /// that it knows and what annotations say of it. With the other driver there is nothing to do.
    pub(crate) fn adopt(
        &self,
        path: &str,
        pid: i32,
        limits: &LinuxResources,
        annotations: Option<&HashMap<String, String>>,
    ) -> Result<(), Error> {
        match self.driver {
            Driver::Cgroupfs | Driver::Inherited => Ok(()),
            Driver::Systemd => systemd::start(path, pid, self.version(), limits, annotations),
        }
    }

    /// Has systemd make a scope with the calling process in it, in which others may then make their cgroup as if it were
    /// theirs. It lasts as long as a process is in it.
    pub fn hold_scope(&self, path: &str) -> Result<(), Error> {
        // Zero is the process that asks, whatever its number is in systemd's PID namespace.
        systemd::start(path, 0, self.version(), &LinuxResources::default(), None)
    }

    /// Tells systemd of limits that are set, else it would set its own ones again. With the other driver there is nothing
    /// to do.
    pub fn tell(&self, path: &str, limits: &LinuxResources) -> Result<(), Error> {
        if self.driver != Driver::Systemd {
            return Ok(());
        }
        // systemd sets the device rules of a v1 cgroup anew whatever is changed, and denies everything for a moment. Slices
        // have none.
        let rules = self.version() == Version::V1 && path.ends_with(".scope");
        let stop = rules && !self.is_frozen(path);
        if stop {
            self.freeze(path)?;
        }
        let told = systemd::update(path, self.version(), limits, self.weight);
        if stop {
            self.thaw(path)?;
        }
        told
    }

    /// Creates the folders only. Returns those that are new (v1).
    pub(crate) fn make(&self, path: &str, resources: &LinuxResources) -> Result<Vec<PathBuf>, Error> {
        if self.driver == Driver::Inherited {
            return Ok(Vec::new());
        }
        let relative = path::relative(path)?;
        match &self.hierarchy {
            Hierarchy::V1(mounts) => create::v1(mounts, relative, resources),
            Hierarchy::V2(root) => create::v2(root, relative).map(|()| Vec::new()),
        }
    }

    /// Creates a v1 cgroup in every hierarchy of the machine. A process that is in the root of one, because it has no
    /// limit there, has a cgroup namespace that starts at that root: with CAP_SYS_ADMIN it could mount the hierarchy
    /// and have the host run its release_agent (CVE-2022-0492). Nothing on v2, where there is only one.
    pub(crate) fn make_everywhere(&self, path: &str) -> Result<(), Error> {
        if self.driver == Driver::Inherited {
            return Ok(());
        }
        let relative = path::relative(path)?;
        match &self.hierarchy {
            Hierarchy::V1(mounts) => create::v1_everywhere(mounts, relative),
            Hierarchy::V2(_) => Ok(()),
        }
    }

    /// Sets limits on a cgroup that exists.
    pub(crate) fn apply(&self, path: &str, resources: &LinuxResources) -> Result<(), Error> {
        if self.driver == Driver::Inherited {
            return Ok(());
        }
        let relative = path::relative(path)?;
        let target = Target { hierarchy: &self.hierarchy, name: path, relative, weight: self.weight };
        target.apply(resources)
    }

    /// Has the out-of-memory killer take all of a container or nothing of it (v2 only).
    pub(crate) fn kill_as_a_group(&self, path: &str) -> Result<(), Error> {
        let Hierarchy::V2(root) = &self.hierarchy else { return Ok(()) };
        if self.driver == Driver::Inherited {
            return Ok(());
        }
        match path::write(&root.join(path::relative(path)?).join("memory.oom.group"), "1") {
            // The kernel is older than 4.19, or the memory controller is not there.
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// The files that a v1 process writes `0` into to enter the cgroup; those that do not exist are to be skipped.
    pub(crate) fn v1_task_files(&self, path: &str) -> Result<Vec<PathBuf>, Error> {
        Ok(self.v1_entrances(path)?.into_iter().map(|(_, file)| file).collect())
    }

    /// The same with the controllers of each hierarchy.
    pub(crate) fn v1_entrances(&self, path: &str) -> Result<Vec<(&[&'static str], PathBuf)>, Error> {
        if self.driver == Driver::Inherited {
            return Ok(Vec::new());
        }
        let relative = path::relative(path)?;
        Ok(match &self.hierarchy {
            Hierarchy::V1(mounts) => mounts
                .iter()
                .map(|m| (m.controllers.as_slice(), m.root.join(relative).join(m.entrance())))
                .collect(),
            Hierarchy::V2(_) => Vec::new(),
        })
    }

    /// A v2 cgroup's folder for clone3; nothing on v1.
    pub(crate) fn v2_folder(&self, path: &str) -> Result<Option<File>, Error> {
        let Hierarchy::V2(root) = &self.hierarchy else { return Ok(None) };
        if self.driver == Driver::Inherited {
            return Ok(None);
        }
        let dir = root.join(path::relative(path)?);
        File::open(&dir).map(Some).map_err(|e| Error::io("open cgroup", dir, e))
    }

    /// The folders to show inside the container below `/sys/fs/cgroup`: the name of each hierarchy's mount point and
    /// the container's cgroup in it. On v2 there is one, with an empty name.
    pub(crate) fn visible_folders(&self, path: &str) -> Result<Vec<(String, PathBuf)>, Error> {
        if self.driver == Driver::Inherited {
            return Ok(self.hierarchy.own_folders(&path::read(Path::new("/proc/self/cgroup"))?));
        }
        let relative = path::relative(path)?;
        Ok(match &self.hierarchy {
            Hierarchy::V1(mounts) => mounts.iter().map(|m| (m.name(), m.root.join(relative))).collect(),
            Hierarchy::V2(root) => vec![(String::new(), root.join(relative))],
        })
    }
}
