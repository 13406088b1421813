//! Processes started inside running containers.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, pipe2};
use oci_spec::runtime::Process;

use super::capture::Capture;
use super::connection::Asker;
use super::failure;
use super::proto::{ExecRequest, Failure, FailureKind, RunRequest};
use super::record::note;
use super::server::Server;
use super::slot::{Slot, read_spec};
use crate::container::{self, EXEC_PATIENCE, Entrance, Stdio, Terms, Tie};
use crate::sys::shim_process::set_nonblocking;

/// So many different warnings of a container are remembered; only processes that differ bring more.
const MAX_WARNED: usize = 16;

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
    /// It is a command that is run to its end in one call.
    pub capture: Option<Capture>,
}

/// Starts a process in the container of `slot`. Returns its process id and the client's ends of its stdio. For `untraced` see
/// [`container::Exec`].
pub(super) fn start(
    slot: &mut Slot,
    request: ExecRequest,
    untraced: bool,
) -> Result<(i32, Vec<OwnedFd>), Failure> {
    let ExecRequest { mut process, tty, stdin, .. } = request;
    process.set_terminal(Some(tty));
    let (stdio, mut fds) =
        if tty { (Stdio::default(), Vec::new()) } else { pipes(stdin).map_err(no_pipes)? };
    let Launched { pid, console, .. } = launch(slot, process, stdio, untraced, EXEC_PATIENCE)?;
    fds.extend(console);
    for fd in &fds {
        set_nonblocking(fd).map_err(|error| {
            failure(FailureKind::Internal, format!("cannot prepare the streams: {error}"))
        })?;
    }
    Ok((pid, fds))
}

/// Starts a command in the container of `slot` whose output is captured. `home` is what was looked up for the same command before, if
/// it was; and what is now.
pub(super) fn run(
    slot: &mut Slot,
    request: RunRequest,
    asker: Asker,
    untraced: bool,
    home: &mut Option<String>,
) -> Result<(i32, Capture), Failure> {
    let timeout = Duration::from_millis(request.timeout_ms);
    let mut process = terms(slot)?.first().cloned().ok_or_else(|| {
        failure(FailureKind::Invalid, format!("the specification of {} has no process", slot.id))
    })?;
    process.set_args(Some(request.command)).set_terminal(Some(false));
    if let Some(home) = home {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("HOME={home}"));
        process.set_env(Some(env));
    }
    let (capture, stdio) = Capture::new(asker, timeout, request.output_max).map_err(no_pipes)?;
    // Others of the pod do not wait longer than whoever wants this run.
    let patience = timeout.min(EXEC_PATIENCE);
    let launched = launch(slot, process, stdio, untraced, patience)?;
    *home = launched.home.or(home.take());
    Ok((launched.pid, capture))
}

fn no_pipes(error: io::Error) -> Failure {
    failure(FailureKind::Internal, format!("cannot make pipes: {error}"))
}

/// What the container's specification says of further processes; it is read when the first of them comes.
fn terms(slot: &mut Slot) -> Result<Rc<Terms>, Failure> {
    if let Some(terms) = &slot.terms {
        return Ok(terms.clone());
    }
    let terms = Terms::of_spec(&read_spec(&slot.bundle)?, &slot.id, &slot.bundle)
        .map_err(|error| failure(FailureKind::StartFailed, error.to_string()))?;
    Ok(slot.terms.insert(Rc::new(terms)).clone())
}

/// The way into the container's cgroup, which is opened when the first of them comes.
fn entrance(slot: &mut Slot) -> Result<Rc<Entrance>, Failure> {
    if let Some(entrance) = &slot.entrance {
        return Ok(entrance.clone());
    }
    let entrance = Entrance::open(&slot.container.cgroup)
        .map_err(|error| failure(FailureKind::StartFailed, error.to_string()))?;
    Ok(slot.entrance.insert(Rc::new(entrance)).clone())
}

/// A process that runs.
struct Launched {
    pid: i32,
    console: Option<OwnedFd>,
    home: Option<String>,
}

fn launch(
    slot: &mut Slot,
    process: Process,
    stdio: Stdio,
    untraced: bool,
    patience: Duration,
) -> Result<Launched, Failure> {
    let terms = terms(slot)?;
    if let Some(foreign) = &slot.foreign {
        // Other runtimes take what is left open for nothing.
        let (pid, console) = foreign.exec(&terms.complete(process), stdio)?;
        return Ok(Launched { pid, console, home: None });
    }
    let entrance = entrance(slot)?;
    // From now on, since it may give birth to others.
    slot.may_trace |= container::may_trace(&process);
    let exec = container::Exec {
        pid: slot.container.pid,
        terms: &terms,
        process,
        stdio,
        entrance: &entrance,
        tie: Tie::default(),
        untraced: untraced && !slot.may_trace,
        patience,
    };
    let started =
        container::exec(exec).map_err(|error| failure(FailureKind::StartFailed, error.to_string()))?;
    for warning in started.warnings {
        // Once: a probe has the same ones each time.
        if !slot.warned.contains(&warning) {
            note!("{}: exec: {warning}", slot.id);
            if slot.warned.len() < MAX_WARNED {
                slot.warned.push(warning);
            }
        }
    }
    Ok(Launched { pid: started.pid, console: started.console, home: started.home })
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

impl Server {
    /// Kills the commands whose time is over. Their ends are seen later.
    pub fn end_late_commands(&mut self) {
        let now = Instant::now();
        for exec in &mut self.execs {
            if let Some(capture) = &mut exec.capture
                && capture.is_over(now)
            {
                // Not reaped yet, so that the numbers are still its own. Where another runtime has started it, it may have no
                // group of its own, and a group is gone when all have left it.
                let _ = killpg(Pid::from_raw(exec.pid), Signal::SIGKILL);
                let _ = kill(Pid::from_raw(exec.pid), Signal::SIGKILL);
            }
        }
    }
}
