//! `start`, and `run` after the container was made.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Spec, State};

use super::create::{Attachment, Made, RunOptions};
use super::{Error, Record, Runtime, Status, foreground, process};
use crate::container::hooks::{self, Moment};
use crate::container::{self, Knock, Notify};

/// How a container that is run ended.
fn cannot_start(source: container::Error) -> Error {
    Error::Container { operation: "unable to start container process", source }
}

impl Runtime {
    /// Lets the program of a created container run.
    pub fn start(&mut self, id: &str) -> Result<(), Error> {
        let folder = self.store.open(id)?;
        let _lock = folder.lock()?;
        let record = folder.record()?;
        let status = record.status(&folder);
        if status != Status::Created {
            return Err(Error::WrongState { operation: "start", id: id.to_owned(), status });
        }
        let spec = folder.config()?;
        let gate = folder.gate();
        let notify = Notify::of_spec(&spec, id, &record.bundle).map_err(cannot_start)?;
        let init = match &notify {
            Some(_) => process::open(record.pid, record.pid_start_time)?,
            None => None,
        };
        let asked = notify.as_ref().zip(init.as_ref()).map(|(notify, fd)| (notify, record.pid, fd.as_fd()));
        let knock = Knock::at(&gate).map_err(cannot_start)?;
        // From here on it cannot be started again, whatever happens.
        fs::remove_file(&gate).map_err(Error::path("remove", &gate))?;
        self.warnings.extend(knock.start(asked).map_err(cannot_start)?);
        self.started_hooks(&spec, &record);
        Ok(())
    }

    /// Creates and starts a container. Without `detach` this waits for its end, deletes it and returns its exit code.
    pub fn run(&mut self, options: &RunOptions) -> Result<u8, Error> {
        let attachment = if options.detach { Attachment::Background } else { Attachment::Foreground };
        let signals = if options.detach { None } else { Some(foreground::Signals::take()?) };
        let mut made = self.make(&options.create, attachment)?;
        if let Err(error) = made.container.start() {
            self.undo(&made);
            return Err(cannot_start(error));
        }
        self.warnings.append(&mut made.container.warnings);
        self.started_hooks(&made.spec, &made.record);
        let Some(signals) = signals else { return Ok(0) };
        let Made { folder, lock, record, spec, container } = made;
        drop(lock);
        let console: Option<OwnedFd> = container.console;
        let code = foreground::wait(&container.pidfd, console, signals);
        if !options.keep {
            let _lock = match folder.lock() {
                Ok(lock) => lock,
                // Somebody else has deleted it.
                Err(Error::NotFound { .. }) => return code,
                Err(error) => return Err(error),
            };
            self.remove(&folder, &record, &spec);
        }
        code
    }

    /// "If any poststart hook fails, the runtime MUST log a warning, but the remaining hooks and lifecycle continue as if
    /// the hook had succeeded."
    fn started_hooks(&mut self, spec: &Spec, record: &Record) {
        let list = hooks::list(spec, Moment::Poststart);
        if list.is_empty() {
            return;
        }
        let mut state: State = hooks::state(&record.id, spec, &record.bundle);
        state.set_pid(Some(record.pid));
        let failed = hooks::run_each(list, Moment::Poststart, &state);
        self.warnings.extend(failed.filter_map(Result::err).map(|e| e.to_string()));
    }
}
