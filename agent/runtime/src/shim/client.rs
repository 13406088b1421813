//! The agent's side of the protocol.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

pub use super::proto::{
    ContainerState, CreateRequest, Created, Event, ExecRequest, ExitRecord, Failure, FailureKind, Started, Status,
    Welcome,
};

/// A connection to a shim. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    welcome: Arc<Welcome>,
}

/// A process started by [`Client::exec`], with the client's ends of its stdio. Dropping them closes them; the process
/// goes on.
#[derive(Debug)]
pub struct ExecSession {
    /// Names it to [`Client::wait_exec`] and [`Client::kill_exec`].
    pub exec_id: u64,
    /// Its process id in the shim's PID namespace.
    pub pid: i32,
    /// The write end of its stdin; drop it to close stdin.
    pub stdin: Option<OwnedFd>,
    /// The read end of its stdout.
    pub stdout: Option<OwnedFd>,
    /// The read end of its stderr.
    pub stderr: Option<OwnedFd>,
    /// The pty master, in place of the three above.
    pub console: Option<OwnedFd>,
}

/// A container's stdio, from [`Client::attach`].
#[derive(Debug)]
pub struct AttachSession {
    /// The write end of its stdin; with a terminal the pty master (write to it, set its size, do not read from it).
    pub stdin: Option<OwnedFd>,
    /// What it writes to stdout from now on. A reader that lags more than a pipe's capacity behind misses output.
    pub stdout: Option<OwnedFd>,
    /// What it writes to stderr from now on.
    pub stderr: Option<OwnedFd>,
    /// The container has a terminal.
    pub tty: bool,
}

/// Why a request to a shim failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No shim listens there.
    #[error("cannot connect to the shim at {path}: {source}", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The shim closed the connection, or died, before it answered.
    #[error("the shim's connection was lost before it answered {what}")]
    Lost {
        /// The request.
        what: &'static str,
    },
    /// The shim did not answer in time. A reply that comes later is dropped.
    #[error("the shim did not answer {what} within {after:?}")]
    Timeout {
        /// The request.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer does not fit the question.
    #[error("the shim's answer to {what} makes no sense")]
    Unexpected {
        /// The request.
        what: &'static str,
    },
    /// The request is larger than a frame may be.
    #[error("{what} is {len} bytes long, more than a frame may be")]
    TooLong {
        /// The request.
        what: &'static str,
        /// Its length as JSON.
        len: usize,
    },
    /// The shim refused, or tried and failed.
    #[error(transparent)]
    Shim(#[from] Failure),
}

impl Error {
    /// The sort of failure, where the shim answered.
    #[must_use]
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Error::Shim(failure) => Some(failure.kind),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, Error>;

impl Client {
    /// Connects to the shim that listens at `sock` and agrees on a protocol. The receiver yields what happens from
    /// then on, and closes when the connection ends.
    ///
    /// # Errors
    /// When nobody listens, or the two sides share no protocol version.
    pub async fn connect(sock: &Path) -> Result<(Client, mpsc::UnboundedReceiver<Event>)> {
        Err(Error::Connect { path: sock.to_owned(), source: io::ErrorKind::NotFound.into() })
    }

    /// What the shim said of itself when this connection was made.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Makes a container from its bundle, up to and not including its `execve`.
    ///
    /// # Errors
    /// When the shim cannot: the message says which step failed. Nothing is left behind then.
    pub async fn create(&self, request: CreateRequest) -> Result<Created> {
        let _ = request;
        Err(Error::Lost { what: "create" })
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// [`FailureKind::StartFailed`] when its program cannot be executed; the exit is recorded with code 128 then.
    pub async fn start(&self, id: &str) -> Result<Started> {
        let _ = id;
        Err(Error::Lost { what: "start" })
    }

    /// Signals a container's init, or with `all` every process of it. One that has exited already is no error.
    ///
    /// # Errors
    /// When the container is unknown or the signal's number is none.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let _ = (id, signal, all);
        Err(Error::Lost { what: "kill" })
    }

    /// Kills what is left of a container, removes its cgroup and forgets it. An unknown id is fine.
    ///
    /// # Errors
    /// When a process does not die or the cgroup cannot be removed; try again later.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let _ = id;
        Err(Error::Lost { what: "delete" })
    }

    /// All containers the shim knows, those that have exited included.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn list(&self) -> Result<Vec<ContainerState>> {
        Err(Error::Lost { what: "list" })
    }

    /// Starts a process inside a running container.
    ///
    /// # Errors
    /// When the container does not run or the program cannot be executed.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        let _ = request;
        Err(Error::Lost { what: "exec" })
    }

    /// Waits for an exec'ed process and returns its exit code (128 plus the signal's number if a signal ended it). The
    /// shim forgets the process then. There is no time limit.
    ///
    /// # Errors
    /// When the process is unknown.
    pub async fn wait_exec(&self, exec_id: u64) -> Result<i32> {
        let _ = exec_id;
        Err(Error::Lost { what: "wait_exec" })
    }

    /// Signals an exec'ed process. One that has exited already is no error.
    ///
    /// # Errors
    /// When the process is unknown.
    pub async fn kill_exec(&self, exec_id: u64, signal: i32) -> Result<()> {
        let _ = (exec_id, signal);
        Err(Error::Lost { what: "kill_exec" })
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// When the container is unknown or has no terminal.
    pub async fn resize(&self, id: &str, width: u16, height: u16) -> Result<()> {
        let _ = (id, width, height);
        Err(Error::Lost { what: "resize" })
    }

    /// The container's stdio from now on.
    ///
    /// # Errors
    /// When the container is unknown or has exited.
    pub async fn attach(&self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Result<AttachSession> {
        let _ = (id, stdin, stdout, stderr);
        Err(Error::Lost { what: "attach" })
    }

    /// A non-blocking socket connected to `port` on the pod's loopback.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect_tcp(&self, port: u16) -> Result<OwnedFd> {
        let _ = port;
        Err(Error::Lost { what: "connect_tcp" })
    }

    /// Kills and deletes all containers; the shim exits right after its answer.
    ///
    /// # Errors
    /// When something could not be removed; the shim exits all the same.
    pub async fn shutdown(&self) -> Result<()> {
        Err(Error::Lost { what: "shutdown" })
    }
}

/// Sets the size of the terminal behind a pty master, as the owner of an [`ExecSession::console`] may.
///
/// # Errors
/// What the kernel says of a descriptor that is no terminal.
pub fn resize(console: &OwnedFd, width: u16, height: u16) -> io::Result<()> {
    let _ = (console, width, height);
    Ok(())
}
