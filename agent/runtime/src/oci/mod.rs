//! The operations of an OCI runtime: containers that live on when the command that made them ends.
//!
//! The tour: [`Runtime`] is the table of containers below one `--root` (`store`), each with a `record` of what it is; one
//! file per operation: `create` (also `run`), `start`, `kill`, `delete`, `exec`, `update` and the small ones in
//! `control`. `foreground` waits for a process as a shell would, `console` hands its terminal on. `events` and
//! `features` say what others read. What executes a container's program is done by a small program of its own: `request`
//! is what that is asked for, `log` where it tells of errors.
//!
//! A created container waits at a socket in its folder, the gate (see [`crate::container::Tie`]); `start` knocks there.
//! While the gate is there the container is "created", and whoever finds the gate without a process behind it knows
//! that it died.

mod console;
mod control;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod foreground;
mod handed;
mod kill;
mod log;
mod process;
mod record;
mod request;
mod signal;
mod start;
mod store;
mod template;
mod words;

use std::path::{Path, PathBuf};

pub use create::{CreateOptions, RunOptions};
pub use error::Error;
pub use events::Event;
pub use exec::ExecOptions;
pub use features::{VERSION as SPEC_VERSION, features};
pub use log::{Log, LogFormat, one_line};
pub use record::{Record, State, Status};
pub use request::{Deed, Request, serve_request};
pub use template::template;

use handed::Handed;
use store::Store;

/// The containers below one folder.
#[derive(Debug)]
pub struct Runtime {
    store: Store,
    /// What this process was given to hand on.
    handed: Handed,
    warnings: Vec<String>,
}

impl Runtime {
    /// The containers that have their records below `root`, which is made when the first one is.
    pub fn new(root: &Path) -> Runtime {
        Runtime { store: Store::new(root), handed: Handed::default(), warnings: Vec::new() }
    }

    /// What went wrong meanwhile without making an operation fail. They are handed out once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Adds such a thing.
    pub fn warn(&mut self, warning: Option<String>) {
        self.warnings.extend(warning);
    }

    /// The state of a container.
    pub fn state(&self, id: &str) -> Result<State, Error> {
        let folder = self.store.open(id)?;
        let record = folder.record()?;
        let status = record.status(&folder);
        Ok(record.state(status))
    }

    /// The states of all containers, by id. One that is just being removed is left out.
    pub fn list(&self) -> Result<Vec<State>, Error> {
        let mut states = Vec::new();
        for id in self.store.ids()? {
            match self.state(&id) {
                Err(Error::NotFound { .. }) => {}
                other => states.push(other?),
            }
        }
        Ok(states)
    }
}

/// The file of a bundle that says what to run.
fn config_of(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}
