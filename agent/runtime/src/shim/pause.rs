//! Freezing the pod's containers and letting them go on.

use super::proto::{Failure, FailureKind, Status};
use super::record::note;
use super::server::Server;
use super::{failure, slot::Slot};
use crate::cgroup::Cgroups;

impl Server {
    /// Freezes every running container, or none of them.
    pub fn pause(&mut self) -> Result<(), Failure> {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.status != Status::Running || slot.paused {
                continue;
            }
            if let Err(error) = self.cgroups.freeze(&slot.container.cgroup) {
                let reason = format!("cannot pause {}: {error}", slot.id);
                self.resume();
                return Err(failure(FailureKind::Internal, reason));
            }
            slot.paused = true;
        }
        note!("paused");
        Ok(())
    }

    /// Lets every frozen container go on.
    pub fn resume(&mut self) {
        for slot in &mut self.slots {
            slot.thaw(self.cgroups);
        }
        note!("resumed");
    }
}

impl Slot {
    /// Lets it go on, if it is frozen: a signal could not reach it otherwise.
    pub fn thaw(&mut self, cgroups: &Cgroups) {
        if std::mem::take(&mut self.paused)
            && let Err(error) = cgroups.thaw(&self.container.cgroup)
        {
            note!("{}: cannot resume: {error}", self.id);
        }
    }
}
