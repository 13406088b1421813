//! `kill`.

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Error, Record, Runtime, Status, process};
use crate::container::cgroups_of;

impl Runtime {
    /// Sends a signal to the first process of a container, or to all. A container that has ended is an error, unless SIGKILL
    /// finds processes that it has left behind, which it can where they have no PID namespace of their own.
    pub fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        let folder = self.store.open(id)?;
        let record = folder.record()?;
        let status = record.status(&folder);
        let shared = signal == libc::SIGKILL && !has_own_pids(&folder.config()?);
        let left = status == Status::Stopped && shared && has_processes(&record)?;
        if status == Status::Stopped && !all && !left {
            return Err(Error::NotRunning { id: id.to_owned() });
        }
        if status == Status::Creating {
            return Err(Error::WrongState { operation: "kill", id: id.to_owned(), status });
        }
        if all || shared {
            self.signal_all(&record, signal)?;
        }
        if !all && !left {
            let init = process::open(record.pid, record.pid_start_time)?;
            let told = init.map(|fd| process::signal(&fd, signal)).transpose()?.unwrap_or(false);
            if !told && !shared {
                return Err(Error::NotRunning { id: id.to_owned() });
            }
        }
        if signal == libc::SIGKILL && status == Status::Paused {
            // What is frozen does not die on cgroup v1.
            cgroup(&record, |c, path| c.thaw(path))?;
        }
        Ok(())
    }

    /// Sends a signal to all processes of a cgroup. One that ends meanwhile is fine.
    fn signal_all(&self, record: &Record, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            return cgroup(record, |c, path| c.kill(path));
        }
        let pids = cgroup(record, |c, path| c.pids(path))?;
        for pid in pids {
            if let Some(started) = process::start_time(pid)
                && let Some(fd) = process::open(pid, started)?
            {
                process::signal(&fd, signal)?;
            }
        }
        Ok(())
    }
}

fn has_processes(record: &Record) -> Result<bool, Error> {
    if record.cgroup.is_empty() { Ok(false) } else { Ok(!cgroup(record, |c, path| c.pids(path))?.is_empty()) }
}

/// Whether its processes end with the first one.
fn has_own_pids(spec: &Spec) -> bool {
    let list = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    list.iter().any(|n| {
        n.typ() == LinuxNamespaceType::Pid && n.path().as_ref().is_none_or(|p| p.as_os_str().is_empty())
    })
}

/// Does something with the cgroup of a container.
pub(super) fn cgroup<T>(
    record: &Record,
    work: impl FnOnce(&crate::cgroup::Cgroups, &str) -> Result<T, crate::cgroup::Error>,
) -> Result<T, Error> {
    let cgroups = cgroups_of(record.cgroup_driver)
        .map_err(|source| Error::Container { operation: "find the cgroups", source })?;
    Ok(work(&cgroups, &record.cgroup)?)
}
