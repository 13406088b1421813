//! Hooks: programs that a spec wants run at moments of a container's life.
//!
//! Source: OCI runtime-spec 1.2, config.md "POSIX-platform Hooks", and runtime.md "Lifecycle".

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use oci_spec::runtime::{ContainerState, Hook, Spec, State};

use super::Error;
use crate::sys::cstring;
use crate::sys::process::{self, Child, Clone3, Program, pidfd_kill};

/// So much of what a failed hook wrote is told, in bytes.
const MAX_OUTPUT: u64 = 2048;

/// When hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// After the namespaces were made, in the runtime's; superseded by the next one.
    Prestart,
    /// After the namespaces were made, in the runtime's.
    CreateRuntime,
    /// The same, in the container's, with the programs of the host.
    CreateContainer,
    /// Before the program runs, in the container.
    StartContainer,
    /// After the program was started, in the runtime's namespaces.
    Poststart,
    /// After the container was deleted, in the runtime's namespaces.
    Poststop,
}

impl Moment {
    /// The name of the list in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Moment::Prestart => "prestart",
            Moment::CreateRuntime => "createRuntime",
            Moment::CreateContainer => "createContainer",
            Moment::StartContainer => "startContainer",
            Moment::Poststart => "poststart",
            Moment::Poststop => "poststop",
        }
    }

    /// The state of a container at that moment.
    fn status(self) -> ContainerState {
        match self {
            // "created": after step 2 of the lifecycle, which these follow.
            Moment::Prestart | Moment::CreateRuntime | Moment::CreateContainer | Moment::StartContainer => {
                ContainerState::Created
            }
            Moment::Poststart => ContainerState::Running,
            Moment::Poststop => ContainerState::Stopped,
        }
    }
}

/// The hooks of a spec for one moment.
pub fn list(spec: &Spec, moment: Moment) -> &[Hook] {
    let Some(hooks) = spec.hooks() else { return &[] };
    #[allow(deprecated)] // Deprecated does not mean unsupported.
    let list = match moment {
        Moment::Prestart => hooks.prestart(),
        Moment::CreateRuntime => hooks.create_runtime(),
        Moment::CreateContainer => hooks.create_container(),
        Moment::StartContainer => hooks.start_container(),
        Moment::Poststart => hooks.poststart(),
        Moment::Poststop => hooks.poststop(),
    };
    list.as_deref().unwrap_or_default()
}

/// What hooks of a container are told, without a process.
pub fn state(id: &str, spec: &Spec, bundle: &Path) -> State {
    let mut state = State::default();
    state
        .set_version(spec.version().clone())
        .set_id(id.to_owned())
        .set_bundle(bundle.to_owned())
        .set_annotations(spec.annotations().clone());
    state
}

/// Runs hooks one after the other. The first one that fails ends it.
pub fn run(hooks: &[Hook], moment: Moment, state: &State) -> Result<(), Error> {
    run_each(hooks, moment, state).find_map(Result::err).map_or(Ok(()), Err)
}

/// The same for hooks whose programs are the container's: each calls `confine` before it is executed.
pub fn run_confined(
    hooks: &[Hook],
    moment: Moment,
    state: &State,
    confine: &dyn Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    each(hooks, moment, state, confine).find_map(Result::err).map_or(Ok(()), Err)
}

/// Runs hooks one after the other, and the rest also when one fails.
pub fn run_each<'a>(
    hooks: &'a [Hook],
    moment: Moment,
    state: &'a State,
) -> impl Iterator<Item = Result<(), Error>> + 'a {
    each(hooks, moment, state, &|| Ok(()))
}

fn each<'a>(
    hooks: &'a [Hook],
    moment: Moment,
    state: &'a State,
    confine: &'a dyn Fn() -> Result<(), Error>,
) -> impl Iterator<Item = Result<(), Error>> + 'a {
    let mut state = state.clone();
    state.set_status(moment.status());
    hooks
        .iter()
        .enumerate()
        .map(move |(at, hook)| run_one(hook, &format!("hooks.{}[{at}]", moment.name()), &state, confine))
}

fn run_one(
    hook: &Hook,
    field: &str,
    state: &State,
    confine: &dyn Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |operation: &str, e: io::Error| {
        Error::sys(operation, format!("{field} {}", hook.path().display()), e)
    };
    if !hook.path().is_absolute() {
        return Err(Error::spec(format!("{field}.path"), "it is not absolute"));
    }
    let deadline = match hook.timeout() {
        None => None,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Some(Instant::now() + Duration::from_secs(seconds)),
            _ => return Err(Error::spec(format!("{field}.timeout"), "it must be positive")),
        },
    };
    let path = cstring(hook.path()).map_err(|e| failed("run", e))?;
    let strings = |list: &[String]| list.iter().map(cstring).collect::<io::Result<Vec<_>>>();
    let mut args = strings(hook.args().as_deref().unwrap_or_default()).map_err(|e| failed("run", e))?;
    if args.is_empty() {
        args.push(path.clone());
    }
    let env = match hook.env() {
        Some(env) => strings(env),
        None => std::env::vars_os().map(|(name, value)| variable(name, &value)).collect(),
    }
    .map_err(|e| failed("run", e))?;
    let program = Program::new(args, env);
    let stdin = memory_file(&serde_json::to_vec(state).map_err(|e| failed("tell the state to", e.into()))?)
        .map_err(|e| failed("tell the state to", e))?;
    let mut output = memory_file(&[]).map_err(|e| failed("keep the output of", e))?;
    let child = Clone3 { flags: 0, cgroup: None }
        .spawn(|| {
            process::reset_signals();
            let streams = [&stdin, &output, &output];
            let arranged = streams
                .iter()
                .zip(0..)
                .try_for_each(|(file, at)| process::install_fd(file.as_raw_fd(), at, true))
                .and_then(|()| process::close_from(3));
            if arranged.is_ok() {
                match confine() {
                    Ok(()) => eprintln!("{}", program.execute(&path)),
                    Err(error) => eprintln!("{error}"),
                }
            }
        })
        .map_err(|e| failed("run", e))?;
    let status = wait(&child, deadline).map_err(|e| failed("wait for", e))?;
    match status {
        Some(WaitStatus::Exited(_, 0)) => Ok(()),
        status => Err(failed("run", io::Error::other(reason(status, &mut output)))),
    }
}

/// An entry of an environment. A hook that brings none has the runtime's own, as with crun and runc.
fn variable(mut name: OsString, value: &OsStr) -> io::Result<CString> {
    name.push("=");
    name.push(value);
    cstring(name)
}

/// An unnamed file with this content, to be read from its start.
fn memory_file(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Waits for the end of a hook; nothing when it had to be killed because its time was over.
fn wait(child: &Child, deadline: Option<Instant>) -> io::Result<Option<WaitStatus>> {
    let mut in_time = true;
    if let Some(deadline) = deadline {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a wait that ends early would be a busy loop.
            let timeout = PollTimeout::try_from(left.as_millis() as u64 + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if Instant::now() >= deadline => {
                    in_time = false;
                    pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL)?;
                    break;
                }
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => break,
                Err(e) => return Err(e.into()),
            }
        }
    }
    loop {
        match waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Err(nix::Error::EINTR) => {}
            Ok(status) => return Ok(in_time.then_some(status)),
            Err(e) => return Err(e.into()),
        }
    }
}

fn reason(status: Option<WaitStatus>, output: &mut File) -> String {
    let how = match status {
        None => "it took longer than its timeout".to_owned(),
        Some(WaitStatus::Exited(_, code)) => format!("exit status {code}"),
        Some(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
        Some(other) => format!("{other:?}"),
    };
    let mut bytes = Vec::new();
    // The file's place is shared with the hook, which has written.
    let read = output.seek(SeekFrom::Start(0)).and_then(|_| output.take(MAX_OUTPUT).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    match read {
        Ok(_) if !text.trim().is_empty() => format!("{how}: {}", text.trim()),
        _ => how,
    }
}
