//! The agent's side of a shim's birth.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{IdRange, Program, orders, reaper};
use crate::heap;
use crate::sys::process::{pidfd_kill, pidfd_open};

/// How to start the shim of one pod.
#[derive(Clone, Debug, Default)]
pub struct SpawnOptions {
    /// The pod's run folder, which must exist.
    pub dir: PathBuf,
    /// The host name in the pod's own UTS namespace.
    pub hostname: Option<String>,
    /// The NIS domain name in the pod's own UTS namespace.
    pub domainname: Option<String>,
    /// Give the pod a network namespace of its own, with `lo` up.
    pub net_new: bool,
    /// Or this one, which must stay open until the shim is there.
    pub net_join: Option<PathBuf>,
    /// Give the pod an IPC namespace of its own.
    pub ipc_new: bool,
    /// Give the pod a UTS namespace of its own.
    pub uts_new: bool,
    /// Give the pod a user namespace of its own, which owns its other new namespaces.
    pub users: Option<IdRange>,
}

/// A shim that answers on its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShimProcess {
    /// Its process id.
    pub pid: i32,
}

/// Why a shim could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on the way failed.
    #[error("cannot {what} to start a shim: {source}")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The shim said why it gave up.
    #[error("shim of {dir}: {reason}", dir = .dir.display())]
    Refused {
        /// The pod's folder.
        dir: PathBuf,
        /// The shim's own words.
        reason: String,
    },
    /// The shim did not become ready in time.
    #[error("shim of {dir}: not ready after {seconds} s", dir = .dir.display())]
    Timeout {
        /// The pod's folder.
        dir: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

/// How long a shim may take to become ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts the shim of a pod and waits until its socket answers.
/// Blocks for a few milliseconds. The shim is in its own session and outlives the caller; while the caller lives, a
/// thread reaps it when it ends.
///
/// # Errors
/// When the binary cannot be executed, or the shim's own set-up failed (its words are in the error).
pub fn spawn(program: &Program, opts: &SpawnOptions) -> Result<ShimProcess, Error> {
    Spare::start(program)?.serve(opts)
}

/// A shim that is nobody's yet. To start a program takes as long as all that a shim does to be ready, so one that waits
/// halves the time. It ends when it is dropped, or its owner dies.
#[derive(Debug)]
pub struct Spare {
    pid: i32,
    pidfd: OwnedFd,
    orders: UnixStream,
}

impl Spare {
    /// Starts it. Blocks for a millisecond.
    ///
    /// # Errors
    /// When the binary cannot be executed.
    pub fn start(program: &Program) -> Result<Spare, Error> {
        let failed = |what| move |source| Error::Prepare { what, source };
        let (orders, theirs) = UnixStream::pair().map_err(failed("make a socket pair"))?;
        let child = command(program, theirs).spawn().map_err(failed("execute the binary"))?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        // Nobody else reaps it, so that the number is its own until then.
        let pidfd = pidfd_open(pid).map_err(failed("open the pidfd"))?;
        let copy = pidfd.try_clone().map_err(failed("copy the pidfd"))?;
        reaper::adopt(copy).map_err(failed("start the reaper"))?;
        Ok(Spare { pid, pidfd, orders })
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // The descriptor becomes readable when the process ends.
        poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
    }

    /// Makes it the shim of a pod and waits until its socket answers.
    ///
    /// # Errors
    /// When its set-up failed (its words are in the error).
    pub fn serve(mut self, opts: &SpawnOptions) -> Result<ShimProcess, Error> {
        let told = self.orders.write_all(&orders::frame(&words(opts)));
        let outcome = match told {
            // It is gone, and may have said why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::Prepare { what: "give orders", source: error })
            }
            _ => wait_ready(self.orders, &opts.dir),
        };
        if outcome.is_err() {
            let _ = pidfd_kill(self.pidfd.as_fd(), libc::SIGKILL);
        }
        outcome.map(|()| ShimProcess { pid: self.pid })
    }
}

/// Nothing here needs code between fork and exec, so that the standard library uses `posix_spawn`: a fork would copy
/// the page tables of a big agent.
fn command(program: &Program, orders: UnixStream) -> Command {
    let mut command = Command::new(program.name());
    command.arg0("berth").arg("shim").arg(orders::AWAIT).arg(orders::ROOM);
    // The environment of the agent, with whatever secrets, is none of the pod's business.
    command.env_clear();
    let (name, setting) = heap::NO_THREAD_CACHES;
    command.env(name, setting);
    command.stdin(OwnedFd::from(orders)).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The command line that says the same as the options.
fn words(opts: &SpawnOptions) -> Vec<Vec<u8>> {
    let kind = |new| if new { "new" } else { "host" };
    let net = opts.net_join.as_deref().unwrap_or(Path::new(kind(opts.net_new)));
    // It has left the folder in which it was started.
    let dir = std::path::absolute(&opts.dir).unwrap_or_else(|_| opts.dir.clone());
    let dir = dir.as_os_str().as_bytes();
    let mut words: Vec<&[u8]> = vec![b"--dir", dir, b"--net", net.as_os_str().as_bytes()];
    words.extend([&b"--ipc"[..], kind(opts.ipc_new).as_bytes(), b"--uts", kind(opts.uts_new).as_bytes()]);
    let names = [(&b"--hostname"[..], &opts.hostname), (b"--domainname", &opts.domainname)];
    for (flag, name) in names {
        words.extend(name.iter().flat_map(|name| [flag, name.as_bytes()]));
    }
    let users = opts.users.map(|IdRange { first, count }| format!("{first}:{count}"));
    words.extend(users.iter().flat_map(|users| [&b"--users"[..], users.as_bytes()]));
    words.into_iter().map(<[u8]>::to_vec).collect()
}

/// Reads the shim's report, which ends with its line or with the shim.
fn wait_ready(ready: UnixStream, dir: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut said = Vec::new();
    let mut ready = ready;
    while !said.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(ready.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(Error::Timeout { dir: dir.to_owned(), seconds: PATIENCE.as_secs() }),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(Error::Prepare { what: "wait", source: error.into() }),
        }
        let mut chunk = [0; 512];
        match ready.read(&mut chunk) {
            Ok(0) => break,
            // It ended with what it was told unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Ok(length) => said.extend_from_slice(&chunk[..length]),
            Err(source) => return Err(Error::Prepare { what: "wait", source }),
        }
    }
    let said = String::from_utf8_lossy(&said);
    match said.trim_end() {
        "ok" => Ok(()),
        "" => Err(Error::Refused { dir: dir.to_owned(), reason: "it ended before it was ready".to_owned() }),
        said => Err(Error::Refused {
            dir: dir.to_owned(),
            reason: said.strip_prefix("error: ").unwrap_or(said).to_owned(),
        }),
    }
}
