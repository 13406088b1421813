//! What the shim's children do, and how it ends.

use std::time::Instant;

use jiff::Timestamp;

use super::execs::Running;
use super::failure;
use super::proto::{Event, ExecExited, ExitRecord, Failure, FailureKind, Outcome, Status};
use super::record::note;
use super::server::Server;
use crate::sys::shim_process::{Ended, reap};

/// So many exit codes of exec'ed processes are kept whose clients have gone.
const UNCLAIMED_CODES: usize = 16;

impl Server {
    /// Takes note of all children that have ended, those included that were handed to us when their parents ended.
    pub fn reap(&mut self) {
        while let Some((pid, ended)) = reap() {
            let (code, signal) = match ended {
                Ended::Code(code) => (code, None),
                Ended::Signal(signal) => (128 + signal, Some(signal)),
            };
            if let Some(index) = self.execs.iter().position(|exec| exec.pid == pid && exec.code.is_none()) {
                self.exec_exited(index, code);
            } else if let Some(index) =
                self.slots.iter().position(|slot| slot.container.pid == pid && slot.status != Status::Stopped)
            {
                self.container_exited(index, code, signal);
            } else if self.pod_init.as_ref().is_some_and(|init| init.pid == pid) {
                // The kernel has killed everything in its namespace; the next container gets a new one.
                note!("the pod's PID 1 is gone");
                self.pod_init = None;
            }
        }
    }

    fn exec_exited(&mut self, index: usize, code: i32) {
        let exec = &mut self.execs[index];
        if let Some(capture) = exec.capture.take() {
            self.execs.swap_remove(index);
            let (asker, ran) = capture.finish(code, &mut self.scratch);
            return self.has_run(asker, ran);
        }
        exec.code = Some(code);
        let waiters = std::mem::take(&mut exec.waiters);
        if waiters.is_empty() {
            self.forget_old_codes();
        } else {
            self.execs.swap_remove(index);
        }
        for waiter in waiters {
            self.reply(waiter, Outcome::ExecExited(ExecExited { code }), Vec::new());
        }
    }

    /// An exit code that nobody asked for is kept for a client that comes back, but not without end.
    pub fn forget_old_codes(&mut self) {
        let unclaimed = |exec: &Running| exec.code.is_some() && exec.owner.is_none();
        while self.execs.iter().filter(|exec| unclaimed(exec)).count() > UNCLAIMED_CODES {
            let oldest = self.execs.iter().filter(|exec| unclaimed(exec)).map(|exec| exec.id).min();
            self.execs.retain(|exec| Some(exec.id) != oldest);
        }
    }

    fn container_exited(&mut self, index: usize, code: i32, signal: Option<i32>) {
        let finished_at = Timestamp::now();
        self.look_for_kills(index, Instant::now());
        let slot = &mut self.slots[index];
        slot.oom.close();
        slot.thaw(self.cgroups);
        let oom_killed = self.cgroups.oom_kills(&slot.container.cgroup).is_ok_and(|kills| kills > 0);
        // With a PID namespace of its own the kernel has killed the rest before it told us.
        if !slot.own_pids {
            slot.kill_rest(self.cgroups);
        }
        slot.drain(&mut self.scratch);
        let started_at = slot.started_at;
        self.stopped(index, ExitRecord { code, signal, oom_killed, started_at, finished_at, message: None });
    }

    /// The program of a container could not be executed.
    pub fn start_failed(&mut self, id: &str, reason: &str) {
        let Some(index) = self.slots.iter().position(|slot| slot.id == id) else { return };
        self.slots[index].drain(&mut self.scratch);
        let exit = ExitRecord {
            code: 128,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: Timestamp::now(),
            message: Some(reason.to_owned()),
        };
        self.stopped(index, exit);
    }

    /// Records an exit, then tells of it.
    fn stopped(&mut self, index: usize, exit: ExitRecord) {
        let slot = &mut self.slots[index];
        note!(
            "{}: exited with code {}{}",
            slot.id,
            exit.code,
            if exit.oom_killed { ", out of memory" } else { "" }
        );
        slot.stop(exit.clone());
        let event = Event::Exited { id: slot.id.clone(), exit };
        let deleters = std::mem::take(&mut slot.deleters);
        self.tell_all(&event);
        if !deleters.is_empty() {
            let outcome = match self.forget(index) {
                Ok(()) => Outcome::Done {},
                Err(failure) => Outcome::Error(failure),
            };
            for deleter in deleters {
                self.reply(deleter, outcome.clone(), Vec::new());
            }
        }
        self.untidy = true;
    }

    /// Kills a container's processes; its exit is seen later.
    pub fn kill_all_of(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.kill_init();
        slot.thaw(self.cgroups);
        if !slot.own_pids {
            slot.kill_rest(self.cgroups);
        }
    }

    /// Removes what is left of a container that has stopped.
    pub fn forget(&mut self, index: usize) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        slot.close(&mut self.scratch);
        if let Some(foreign) = slot.foreign.take() {
            if let Err(error) = foreign.delete() {
                // Its processes are gone, and its cgroup is removed below: the rest are its records, in the bundle.
                note!("{}: {error}", slot.id);
            }
            self.cgroups.remove_elsewhere(&slot.container.cgroup);
        }
        self.cgroups.remove(&slot.container.cgroup).map_err(|error| {
            failure(FailureKind::Internal, format!("cannot remove the cgroup of {}: {error}", slot.id))
        })?;
        self.slots.remove(index);
        self.untidy = true;
        Ok(())
    }

    /// Forgets all containers that have stopped; says what went wrong.
    pub fn remove_all(&mut self) -> Vec<String> {
        let mut errors = Vec::new();
        for index in (0..self.slots.len()).rev() {
            if let Err(failure) = self.forget(index) {
                note!("{failure}");
                errors.push(failure.message);
            }
        }
        errors
    }

    /// True when a shutdown is complete and answered.
    pub fn ended(&mut self) -> bool {
        let Some(ending) = &self.ending else { return false };
        if self.has_live() && Instant::now() < ending.deadline {
            return false;
        }
        let mut errors: Vec<String> = self
            .slots
            .iter()
            .filter(|slot| slot.status != Status::Stopped)
            .map(|slot| format!("container {} does not die", slot.id))
            .collect();
        errors.extend(self.remove_all());
        let outcome = if errors.is_empty() {
            Outcome::Done {}
        } else {
            Outcome::Error(failure(FailureKind::Internal, errors.join("; ")))
        };
        for asker in self.ending.take().map(|ending| ending.askers).unwrap_or_default() {
            self.reply(asker, outcome.clone(), Vec::new());
        }
        true
    }
}
