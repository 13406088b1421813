//! Processes started inside running containers.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use oci_spec::runtime::{Process, Spec};

use super::connection::Asker;
use super::failure;
use super::proto::{ExecRequest, Failure, FailureKind};
use super::record::note;
use super::slot::{Slot, read_spec};
use crate::container::{self, Stdio, Tie};
use crate::sys::shim_process::set_nonblocking;

/// One process, until its exit code has been fetched or nobody can fetch it any more.
#[derive(Debug)]
pub(super) struct Running {
    pub id: u64,
    pub pid: i32,
    /// The connection that asked for it; `None` once that is closed.
    pub owner: Option<u64>,
    pub code: Option<i32>,
    /// Who waits for its exit.
    pub waiters: Vec<Asker>,
}

/// Starts a process in the container of `slot`. Returns its process id and the client's ends of its stdio.
pub(super) fn start(slot: &Slot, request: ExecRequest) -> Result<(i32, Vec<OwnedFd>), Failure> {
    let ExecRequest { mut process, tty, stdin, .. } = request;
    process.set_terminal(Some(tty));
    let spec = read_spec(&slot.bundle)?;
    let internal = |error: io::Error| failure(FailureKind::Internal, format!("cannot make pipes: {error}"));
    let (stdio, mut fds) =
        if tty { (Stdio::default(), Vec::new()) } else { pipes(stdin).map_err(internal)? };
    if let Some(foreign) = &slot.foreign {
        complete(&mut process, &spec);
        let (pid, console) = foreign.exec(&process, stdio)?;
        fds.extend(console);
        return nonblocking(fds).map(|fds| (pid, fds));
    }
    let exec = container::Exec {
        pid: slot.container.pid,
        spec: &spec,
        process: &process,
        stdio,
        cgroup: &slot.container.cgroup,
        tie: Tie::default(),
    };
    let started =
        container::exec(exec).map_err(|error| failure(FailureKind::StartFailed, error.to_string()))?;
    for warning in &started.warnings {
        note!("{}: exec: {warning}", slot.id);
    }
    fds.extend(started.console);
    nonblocking(fds).map(|fds| (started.pid, fds))
}

fn nonblocking(fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, Failure> {
    for fd in &fds {
        set_nonblocking(fd).map_err(|error| {
            failure(FailureKind::Internal, format!("cannot prepare the streams: {error}"))
        })?;
    }
    Ok(fds)
}

/// What an exec leaves open is as in the container's first process; other runtimes would take it for nothing.
fn complete(process: &mut Process, spec: &Spec) {
    let Some(first) = spec.process() else { return };
    if process.capabilities().is_none() {
        process.set_capabilities(first.capabilities().clone());
    }
    if process.no_new_privileges().is_none() {
        process.set_no_new_privileges(first.no_new_privileges());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(first.oom_score_adj());
    }
}

/// The process's ends and the client's.
fn pipes(stdin: bool) -> io::Result<(Stdio, Vec<OwnedFd>)> {
    let mut stdio = Stdio::default();
    let mut fds = Vec::with_capacity(3);
    if stdin {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        stdio.stdin = Some(reader);
        fds.push(writer);
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    stdio.stdout = Some(writer);
    fds.push(reader);
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    stdio.stderr = Some(writer);
    fds.push(reader);
    Ok((stdio, fds))
}
