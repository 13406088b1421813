//! The agent's side of the protocol.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::frame;
use super::link::{Answer, Link, Order};
use super::proto::{
    Attach, Call, ContainerId, ExecId, Hello, Kill, KillExec, MIN_PROTOCOL_VERSION, Outcome,
    PROTOCOL_VERSION, Request, Resize,
};
use crate::sys::terminal;

pub use super::proto::{
    ContainerState, CreateRequest, Created, Event, ExecRequest, ExitRecord, Failure, FailureKind, Feature,
    Ran, RepeatRequest, Repeated, RunRequest, Runtime, Started, Status, Welcome,
};

/// A connection to a shim. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    orders: mpsc::UnboundedSender<Order>,
    last: AtomicU64,
    welcome: Welcome,
}

/// How long a request may take that is answered at once; a busy machine included.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long making, starting or removing a container may take.
const LONG_PATIENCE: Duration = Duration::from_secs(120);

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
    /// What it writes to stdout from now on. While this pipe is full the container's output waits; a reader that takes
    /// more than two seconds for a chunk is cut off (see [`AttachSession::end`]).
    pub stdout: Option<OwnedFd>,
    /// What it writes to stderr from now on.
    pub stderr: Option<OwnedFd>,
    /// The container has a terminal.
    pub tty: bool,
    /// The read end of a pipe that ends with the outputs and says, in one line, if that was because this client was too
    /// slow. `None` from a shim that is older than that.
    pub end: Option<OwnedFd>,
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

/// Takes a request back when its future is dropped.
struct Pending<'a> {
    shared: &'a Shared,
    id: u64,
    /// The shim is to know that, too.
    repeats: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let _ = self.shared.orders.send(Order::Forget(self.id));
        if self.repeats {
            let call = Call::EndRepeat { request: self.id };
            let end = frame::encode(&Request { id: self.shared.next_id(), call });
            let _ = end.map(|frame| self.shared.orders.send(Order::Tell(frame)));
        }
    }
}

impl Shared {
    fn next_id(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    async fn ask(&self, what: &'static str, call: Call, patience: Option<Duration>) -> Result<Answer> {
        let (id, repeats) = (self.next_id(), matches!(call, Call::Repeat(_)));
        let frame = frame::encode(&Request { id, call }).map_err(|_| Error::Unexpected { what })?;
        if frame::too_long(&frame) {
            return Err(Error::TooLong { what, len: frame.len() });
        }
        let (answer, reply) = oneshot::channel();
        self.orders.send(Order::Ask { id, frame, answer }).map_err(|_| Error::Lost { what })?;
        let pending = Pending { shared: self, id, repeats };
        let reply = match patience {
            Some(after) => {
                tokio::time::timeout(after, reply).await.map_err(|_| Error::Timeout { what, after })?
            }
            None => reply.await,
        };
        let answer = reply.map_err(|_| Error::Lost { what })?;
        std::mem::forget(pending);
        match answer {
            (Outcome::Error(failure), _) => Err(failure.into()),
            answer => Ok(answer),
        }
    }

    async fn hello(&self) -> Result<Welcome> {
        let hello = Hello {
            min_version: MIN_PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            client: concat!("berth ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        match self.ask("hello", Call::Hello(hello), Some(PATIENCE)).await? {
            (Outcome::Welcome(welcome), _)
                if (MIN_PROTOCOL_VERSION..=PROTOCOL_VERSION).contains(&welcome.version) =>
            {
                Ok(welcome)
            }
            _ => Err(Error::Unexpected { what: "hello" }),
        }
    }
}

/// Connects, whatever the length of the path: a socket address holds 108 bytes.
async fn open(sock: &Path) -> io::Result<UnixStream> {
    let (Some(dir), Some(name)) = (sock.parent(), sock.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if sock.as_os_str().len() < 100 {
        return UnixStream::connect(sock).await;
    }
    let dir = File::open(dir)?;
    UnixStream::connect(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)).await
}

impl Client {
    /// Connects to the shim that listens at `sock` and agrees on a protocol. The receiver yields what happens from
    /// then on, and closes when the connection ends.
    ///
    /// # Errors
    /// When nobody listens, or the two sides share no protocol version.
    pub async fn connect(sock: &Path) -> Result<(Client, mpsc::UnboundedReceiver<Event>)> {
        let failed = |source| Error::Connect { path: sock.to_owned(), source };
        let stream = open(sock).await.map_err(failed)?;
        let (orders, received) = mpsc::unbounded_channel();
        let (events, happenings) = mpsc::unbounded_channel();
        tokio::spawn(Link::new(stream, events).map_err(failed)?.run(received));
        let unknown = Welcome { version: 0, release: String::new(), pid: 0, features: Vec::new() };
        let mut shared = Shared { orders, last: AtomicU64::new(0), welcome: unknown };
        shared.welcome = shared.hello().await?;
        Ok((Client { shared: Arc::new(shared) }, happenings))
    }

    /// What the shim said of itself when this connection was made.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.shared.welcome
    }

    /// Makes a container from its bundle, up to and not including its `execve`.
    ///
    /// # Errors
    /// When the shim cannot: the message says which step failed. Nothing is left behind then. That it was made but could
    /// not be started is told by [`Created::start`].
    pub async fn create(&self, request: CreateRequest) -> Result<Created> {
        if request.pod_pids {
            self.needs(Feature::PodPids, "a shared PID namespace")?;
        }
        if request.pids_of.is_some() {
            self.needs(Feature::PidsOf, "another container's PID namespace")?;
        }
        if request.runtime.is_some() {
            self.needs(Feature::Runtime, "another OCI runtime")?;
        }
        match self.shared.ask("create", Call::Create(Box::new(request)), Some(LONG_PATIENCE)).await? {
            (Outcome::Created(created), _) => Ok(created),
            _ => Err(Error::Unexpected { what: "create" }),
        }
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// [`FailureKind::StartFailed`] when its program cannot be executed; the exit is recorded with code 128 then.
    pub async fn start(&self, id: &str) -> Result<Started> {
        let call = Call::Start(ContainerId { id: id.to_owned() });
        match self.shared.ask("start", call, Some(LONG_PATIENCE)).await? {
            (Outcome::Started(started), _) => Ok(started),
            _ => Err(Error::Unexpected { what: "start" }),
        }
    }

    /// Signals a container's init, or with `all` every process of it. One that has exited already is no error.
    ///
    /// # Errors
    /// When the container is unknown or the signal's number is none.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        self.done("kill", Call::Kill(Kill { id: id.to_owned(), signal, all }), PATIENCE).await
    }

    /// Kills what is left of a container, removes its cgroup and forgets it. An unknown id is fine.
    ///
    /// # Errors
    /// When a process does not die or the cgroup cannot be removed; try again later.
    pub async fn delete(&self, id: &str) -> Result<()> {
        self.done("delete", Call::Delete(ContainerId { id: id.to_owned() }), LONG_PATIENCE).await
    }

    /// All containers the shim knows, those that have exited included.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn list(&self) -> Result<Vec<ContainerState>> {
        match self.shared.ask("list", Call::List {}, Some(PATIENCE)).await? {
            (Outcome::List(containers), _) => Ok(containers),
            _ => Err(Error::Unexpected { what: "list" }),
        }
    }

    /// Starts a process inside a running container. The descriptors do not block.
    ///
    /// # Errors
    /// When the container does not run ([`FailureKind::Invalid`]) or the program cannot be executed
    /// ([`FailureKind::StartFailed`]).
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        let (tty, with_stdin) = (request.tty, request.stdin);
        let (outcome, fds) =
            self.shared.ask("exec", Call::Exec(Box::new(request)), Some(LONG_PATIENCE)).await?;
        let Outcome::ExecStarted(started) = outcome else { return Err(Error::Unexpected { what: "exec" }) };
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| if wanted { fds.next() } else { None };
        let session = ExecSession {
            exec_id: started.exec_id,
            pid: started.pid,
            console: next(tty),
            stdin: next(with_stdin && !tty),
            stdout: next(!tty),
            stderr: next(!tty),
        };
        let complete = if tty { session.console.is_some() } else { session.stderr.is_some() };
        if complete { Ok(session) } else { Err(Error::Unexpected { what: "exec" }) }
    }

    /// Runs a command inside a running container to its end, or kills it when its time is over.
    ///
    /// # Errors
    /// When the container does not run ([`FailureKind::Invalid`]), the program cannot be executed
    /// ([`FailureKind::StartFailed`]), or the shim is older than [`Feature::Run`] ([`FailureKind::Unsupported`]).
    pub async fn run(&self, request: RunRequest) -> Result<Ran> {
        self.needs(Feature::Run, "a command in one call")?;
        // The shim keeps the time, and is patient itself with what is frozen.
        match self.shared.ask("run", Call::Run(request), None).await? {
            (Outcome::Ran(ran), _) => Ok(ran),
            _ => Err(Error::Unexpected { what: "run" }),
        }
    }

    /// Runs a command again and again, until it fails, cannot be run, or has been run as often as asked for. The shim ends that when
    /// what this returns is dropped.
    ///
    /// # Errors
    /// When the container does not run ([`FailureKind::Invalid`]), or the shim is older than [`Feature::Repeat`]
    /// ([`FailureKind::Unsupported`]).
    pub async fn repeat(&self, request: RepeatRequest) -> Result<Repeated> {
        self.needs(Feature::Repeat, "a command again and again")?;
        match self.shared.ask("repeat", Call::Repeat(request), None).await? {
            (Outcome::Repeated(repeated), _) => Ok(repeated),
            _ => Err(Error::Unexpected { what: "repeat" }),
        }
    }

    /// Waits for an exec'ed process and returns its exit code (128 plus the signal's number if a signal ended it). The
    /// shim forgets the process then. There is no time limit.
    ///
    /// # Errors
    /// When the process is unknown.
    pub async fn wait_exec(&self, exec_id: u64) -> Result<i32> {
        match self.shared.ask("wait_exec", Call::WaitExec(ExecId { exec_id }), None).await? {
            (Outcome::ExecExited(exited), _) => Ok(exited.code),
            _ => Err(Error::Unexpected { what: "wait_exec" }),
        }
    }

    /// Signals an exec'ed process. One that has exited already is no error.
    ///
    /// # Errors
    /// When the process is unknown.
    pub async fn kill_exec(&self, exec_id: u64, signal: i32) -> Result<()> {
        self.done("kill_exec", Call::KillExec(KillExec { exec_id, signal }), PATIENCE).await
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// When the container is unknown or has no terminal.
    pub async fn resize(&self, id: &str, width: u16, height: u16) -> Result<()> {
        self.done("resize", Call::Resize(Resize { id: id.to_owned(), width, height }), PATIENCE).await
    }

    /// The container's stdio from now on, as descriptors that do not block.
    ///
    /// # Errors
    /// When the container is unknown or has exited.
    pub async fn attach(&self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Result<AttachSession> {
        let call = Call::Attach(Attach { id: id.to_owned(), stdin, stdout, stderr });
        let (outcome, fds) = self.shared.ask("attach", call, Some(PATIENCE)).await?;
        let Outcome::Attached(attached) = outcome else { return Err(Error::Unexpected { what: "attach" }) };
        let mut fds = fds.into_iter();
        let mut next = |given: bool| if given { fds.next() } else { None };
        Ok(AttachSession {
            stdin: next(attached.stdin),
            stdout: next(attached.stdout),
            stderr: next(attached.stderr),
            end: next(attached.end),
            tty: attached.tty,
        })
    }

    /// Freezes the running containers of the pod.
    ///
    /// # Errors
    /// When one cannot be frozen; none is then.
    pub async fn pause(&self) -> Result<()> {
        self.needs(Feature::Pause, "pause")?;
        self.done("pause", Call::Pause {}, PATIENCE).await
    }

    /// Lets frozen containers go on.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn resume(&self) -> Result<()> {
        self.needs(Feature::Pause, "resume")?;
        self.done("resume", Call::Resume {}, PATIENCE).await
    }

    /// Refuses what an older shim would not understand, or worse, pass over.
    fn needs(&self, feature: Feature, what: &str) -> Result<()> {
        if self.shared.welcome.has(feature) {
            return Ok(());
        }
        let release = &self.shared.welcome.release;
        let message = format!(
            "{what}: the pod's shim is of release {release:?}, which cannot do that; delete the pod and make it anew"
        );
        Err(Failure { kind: FailureKind::Unsupported, message }.into())
    }

    /// A non-blocking socket connected to `port` on the pod's loopback.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect_tcp(&self, port: u16) -> Result<OwnedFd> {
        let (_, fds) = self.shared.ask("connect_tcp", Call::ConnectTcp { port }, Some(PATIENCE)).await?;
        fds.into_iter().next().ok_or(Error::Unexpected { what: "connect_tcp" })
    }

    /// Kills and deletes all containers; the shim exits right after its answer.
    ///
    /// # Errors
    /// When something could not be removed; the shim exits all the same.
    pub async fn shutdown(&self) -> Result<()> {
        self.done("shutdown", Call::Shutdown {}, PATIENCE).await
    }

    async fn done(&self, what: &'static str, call: Call, patience: Duration) -> Result<()> {
        match self.shared.ask(what, call, Some(patience)).await? {
            (Outcome::Done {}, _) => Ok(()),
            _ => Err(Error::Unexpected { what }),
        }
    }
}

/// Sets the size of the terminal behind a pty master, as the owner of an [`ExecSession::console`] may.
///
/// # Errors
/// What the kernel says of a descriptor that is no terminal.
pub fn resize(console: &OwnedFd, width: u16, height: u16) -> io::Result<()> {
    terminal::resize(console.as_fd(), height, width)
}
