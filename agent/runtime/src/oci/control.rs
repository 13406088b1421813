//! `ps`, `pause`, `resume` and `update`.

use oci_spec::runtime::LinuxResources;

use super::kill::cgroup;
use super::{Error, Runtime, Status};

impl Runtime {
    /// The processes of a container, as this process's namespace numbers them.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>, Error> {
        let record = self.store.open(id)?.record()?;
        // It is being created.
        if record.pid == 0 {
            return Ok(Vec::new());
        }
        cgroup(&record, |c, path| c.pids(path))
    }

    /// Freezes a container.
    pub fn pause(&mut self, id: &str) -> Result<(), Error> {
        self.change(id, "pause", &[Status::Created, Status::Running], |c, path| c.freeze(path))
    }

    /// Lets a frozen container go on.
    pub fn resume(&mut self, id: &str) -> Result<(), Error> {
        self.change(id, "resume", &[Status::Paused], |c, path| c.thaw(path))
    }

    /// Changes the limits that `resources` names.
    pub fn update(&mut self, id: &str, resources: &LinuxResources) -> Result<(), Error> {
        let allowed = [Status::Created, Status::Running, Status::Paused];
        self.change(id, "update", &allowed, |c, path| c.update(path, resources))
    }

    fn change(
        &self,
        id: &str,
        operation: &'static str,
        allowed: &[Status],
        work: impl FnOnce(&crate::cgroup::Cgroups, &str) -> Result<(), crate::cgroup::Error>,
    ) -> Result<(), Error> {
        let folder = self.store.open(id)?;
        let _lock = folder.lock()?;
        let record = folder.record()?;
        match record.status(&folder) {
            status if allowed.contains(&status) => cgroup(&record, work),
            Status::Stopped => Err(Error::NotRunning { id: id.to_owned() }),
            status => Err(Error::WrongState { operation, id: id.to_owned(), status }),
        }
    }
}
