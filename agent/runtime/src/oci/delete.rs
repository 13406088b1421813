//! `delete`.

use std::time::Duration;

use super::{Error, Runtime, Status, process};

/// How long a killed container may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

impl Runtime {
    /// Deletes a container that has ended; with `force` also one that has not, and one that does not exist is fine then.
    pub fn delete(&mut self, id: &str, force: bool) -> Result<(), Error> {
        let folder = match self.store.open(id) {
            Err(Error::NotFound { .. }) if force => return Ok(()),
            other => other?,
        };
        if force {
            // Before the lock: a start that waits for a hook holds it.
            self.end(&folder.record()?, &folder)?;
        }
        let _lock = match folder.lock() {
            Err(Error::NotFound { .. }) if force => return Ok(()),
            other => other?,
        };
        let record = folder.record()?;
        match record.status(&folder) {
            Status::Stopped => {}
            _ if force => self.end(&record, &folder)?,
            status => return Err(Error::WrongState { operation: "delete", id: id.to_owned(), status }),
        }
        let spec = folder.config()?;
        self.remove(&folder, &record, &spec);
        Ok(())
    }

    /// Kills the first process and waits for its end.
    fn end(&self, record: &super::Record, folder: &super::store::Folder) -> Result<(), Error> {
        if record.pid == 0 {
            return Ok(());
        }
        let Some(init) = process::open(record.pid, record.pid_start_time)? else { return Ok(()) };
        process::signal(&init, libc::SIGKILL)?;
        if record.status(folder) == Status::Paused {
            super::kill::cgroup(record, |c, path| c.thaw(path))?;
        }
        if process::ended_within(&init, PATIENCE)? {
            return Ok(());
        }
        Err(Error::WrongState { operation: "kill", id: record.id.clone(), status: record.status(folder) })
    }
}
