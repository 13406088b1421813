//! `exec`: a further process in a running container.

use std::os::fd::AsFd;
use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};

use super::create::{own_stdio, write_pid};
use super::{Error, Runtime, Status, console, foreground};
use crate::container::{self, Entrance, Exec, Stdio, SubCgroup, Terms, Tie};

/// How a process is to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecOptions {
    /// Return when it runs, and leave it alone.
    pub detach: bool,
    /// Gets its process id.
    pub pid_file: Option<PathBuf>,
    /// A listening socket that gets the master of its terminal.
    pub console_socket: Option<PathBuf>,
    /// A listening socket that gets the pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// So many descriptors from 3 on are handed to its program.
    pub preserve_fds: u32,
    /// Allow it in a paused container, where it runs only when that is resumed.
    pub ignore_paused: bool,
    /// The cgroups below the container's that it goes to.
    pub sub_cgroups: Vec<SubCgroup>,
}

impl Runtime {
    /// The configuration of a container as it was when it was created.
    pub fn config(&self, id: &str) -> Result<Spec, Error> {
        self.store.open(id)?.config()
    }

    /// Starts a process in a container. Without `detach` this waits for its end and returns its exit code.
    pub fn exec(&mut self, id: &str, process: Process, options: &ExecOptions) -> Result<u8, Error> {
        let folder = self.store.open(id)?;
        let record = folder.record()?;
        let wrong = |status| Error::WrongState { operation: "exec in", id: id.to_owned(), status };
        match record.status(&folder) {
            status @ (Status::Stopped | Status::Creating) => return Err(wrong(status)),
            status @ Status::Paused if !options.ignore_paused => return Err(wrong(status)),
            _ => {}
        }
        let terminal = process.terminal().unwrap_or(false);
        if terminal && options.detach && options.console_socket.is_none() {
            return Err(Error::invalid("--tty", "with --detach it needs --console-socket"));
        }
        if !terminal && options.console_socket.is_some() {
            return Err(Error::invalid("--console-socket", "the process has no terminal"));
        }
        let failed =
            |source| Error::Container { operation: "exec failed: unable to start container process", source };
        let terms = Terms::of_spec(&folder.config()?, id, &record.bundle).map_err(failed)?;
        let signals = if options.detach { None } else { Some(foreground::Signals::take()?) };
        if record.cgroup.is_empty() && !options.sub_cgroups.is_empty() {
            return Err(Error::invalid("--cgroup", "the container has no cgroup of its own"));
        }
        let relayed = !options.detach && options.console_socket.is_none();
        let entrance = Entrance::open_below(&record.cgroup, &options.sub_cgroups).map_err(failed)?;
        let started = container::exec(Exec {
            pid: record.pid,
            terms: &terms,
            process,
            stdio: if terminal { Stdio::default() } else { own_stdio() },
            entrance: &entrance,
            tie: Tie {
                outlives: true,
                handed: self.handed.descriptors.clone(),
                bare_lines: terminal && relayed && foreground::has_no_screen(),
                gate: None,
            },
            // Others may have been started in it with any capabilities.
            untraced: false,
            patience: container::EXEC_PATIENCE,
        })
        .map_err(failed)?;
        self.warnings.extend(started.warnings);
        let mut console = started.console;
        if let (Some(path), Some(master)) =
            (&options.console_socket, console.take_if(|_| options.console_socket.is_some()))
        {
            console::send(path, master)?;
        }
        if let Some(path) = &options.pidfd_socket {
            console::send_pidfd(path, started.pidfd.as_fd())?;
        }
        if let Some(path) = &options.pid_file {
            write_pid(path, started.pid)?;
        }
        match signals {
            None => Ok(0),
            Some(signals) => foreground::wait(&started.pidfd, console, signals),
        }
    }
}
