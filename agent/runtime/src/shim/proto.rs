//! What agent and shim say to each other.
//!
//! A frame is a little-endian `u32` length and that many bytes of JSON. File descriptors travel by `SCM_RIGHTS` with
//! the first byte of the frame that announces how many there are ([`Reply::fds`]). Both sides ignore fields they do
//! not know, so fields can be added without a new protocol number; the number changes only when a meaning does.
//! The first request of a connection is [`Call::Hello`], which settles the number both sides speak.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::container::Timings;
use crate::rootfs::Rootfs;

/// The newest protocol this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// The oldest protocol this build still speaks.
pub const MIN_PROTOCOL_VERSION: u32 = 1;

/// The longest frame either side accepts, in bytes. The kernel refuses an `execve` whose arguments and environment
/// exceed 2 MiB with the default stack limit, so a larger request could not succeed anyway.
pub const MAX_FRAME: usize = 4 << 20;

/// Most file descriptors that come with one frame.
pub const MAX_FDS: usize = 4;

/// The name of the shim's socket in the pod's folder.
pub const SOCKET: &str = "shim.sock";

/// One request, answered by the [`Reply`] of the same `id`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, unique among its unanswered requests.
    pub id: u64,
    /// What is asked.
    pub call: Call,
}

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// The handshake: the first request of a connection.
    Hello(Hello),
    /// Make a container from its bundle up to, and not including, its `execve`.
    Create(Box<CreateRequest>),
    /// Let a created container run.
    Start(ContainerId),
    /// Signal a container's init, or all of its processes.
    Kill(Kill),
    /// Kill all that is left of a container, remove its cgroup and forget it. An unknown id is fine.
    Delete(ContainerId),
    /// All containers the shim knows.
    List {},
    /// Start a process inside a running container.
    Exec(Box<ExecRequest>),
    /// Run a command inside a running container to its end, within a time (since [`Feature::Run`]).
    Run(RunRequest),
    /// Run a command again and again for as long as it succeeds (since [`Feature::Repeat`]).
    Repeat(RepeatRequest),
    /// No longer run what the same connection has asked for; that is not answered any more (since [`Feature::Repeat`]). A
    /// request that has been answered already is fine.
    EndRepeat {
        /// The id of that request.
        request: u64,
    },
    /// Answered when the exec'ed process has exited; its result is forgotten then.
    WaitExec(ExecId),
    /// Signal an exec'ed process.
    KillExec(KillExec),
    /// Set the size of a container's terminal.
    Resize(Resize),
    /// The container's stdio, as file descriptors.
    Attach(Attach),
    /// Freeze every running container of the pod (since [`Feature::Pause`]).
    Pause {},
    /// Let the frozen containers go on.
    Resume {},
    /// A socket connected to a port on the pod's loopback.
    ConnectTcp {
        /// The TCP port.
        port: u16,
    },
    /// Kill and delete all containers, then exit.
    Shutdown {},
}

/// See [`Call::Hello`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest protocol the client speaks.
    pub min_version: u32,
    /// The newest protocol the client speaks.
    pub max_version: u32,
    /// Who asks, for the shim's log.
    #[serde(default)]
    pub client: String,
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol to speak from here on.
    pub version: u32,
    /// The release of the shim's binary.
    #[serde(default)]
    pub release: String,
    /// The shim's process id.
    pub pid: i32,
    /// What this shim can do beyond what every shim of protocol 1 can. A shim passes over fields that it does not
    /// know, so a client asks here before it relies on one that came later.
    #[serde(default)]
    pub features: Vec<Feature>,
}

impl Welcome {
    /// Whether the shim can do this.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }
}

/// What came to the protocol after its first release without changing the meaning of what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// [`CreateRequest::pod_pids`].
    PodPids,
    /// [`Call::Pause`], [`Call::Resume`] and [`ContainerState::paused`].
    Pause,
    /// [`Event::OomKilled`].
    OomEvents,
    /// [`Attached::end`].
    AttachEnd,
    /// [`CreateRequest::runtime`].
    Runtime,
    /// [`CreateRequest::pids_of`].
    PidsOf,
    /// [`Call::Run`].
    Run,
    /// [`CreateRequest::start`].
    StartAtOnce,
    /// [`Call::Repeat`] and [`Call::EndRepeat`].
    Repeat,
    /// Something of a newer shim.
    #[serde(other)]
    Unknown,
}

/// What this build's shim says of itself.
pub const FEATURES: [Feature; 9] = [
    Feature::PodPids,
    Feature::Pause,
    Feature::OomEvents,
    Feature::AttachEnd,
    Feature::Runtime,
    Feature::PidsOf,
    Feature::Run,
    Feature::StartAtOnce,
    Feature::Repeat,
];

/// Names one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerId {
    /// The container's id.
    pub id: String,
}

/// See [`Call::Create`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// The container's id, unique in the pod.
    pub id: String,
    /// The folder with the container's `config.json`; `state.json` and `exit.json` are written there.
    pub bundle: PathBuf,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Where stdout and stderr go in the CRI log format; nowhere when `None`.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// The size in bytes at which the log is rotated; 0 means never.
    #[serde(default)]
    pub log_max_size: u64,
    /// How many log files are kept, the current one included; at least 2 once there is rotation.
    #[serde(default)]
    pub log_max_files: u32,
    /// Keep stdin open, for a later attach. Without it stdin is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Close stdin when the first attached client closes it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give the container a terminal; must agree with `process.terminal` of the bundle.
    #[serde(default)]
    pub tty: bool,
    /// Put it into the PID namespace that the pod's containers share (needs [`Feature::PodPids`]). Its specification
    /// must ask for a PID namespace.
    #[serde(default)]
    pub pod_pids: bool,
    /// Put it into the PID namespace of this container, which must be running (needs [`Feature::PidsOf`]); it ends with
    /// that one. Its specification must ask for a PID namespace.
    #[serde(default)]
    pub pids_of: Option<String>,
    /// Have another OCI runtime make it (needs [`Feature::Runtime`]); Berth's own engine when `None`.
    #[serde(default)]
    pub runtime: Option<Runtime>,
    /// Let it run as soon as it is made, which saves a [`Call::Start`] (since [`Feature::StartAtOnce`]; others wait for
    /// that call, see [`Created::start`]).
    #[serde(default)]
    pub start: bool,
}

/// An OCI runtime that is called in place of Berth's own engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// The program.
    pub path: PathBuf,
    /// Words before the command, such as `--debug`. `--systemd-cgroup` is added for a cgroup that is a scope in a slice.
    #[serde(default)]
    pub args: Vec<String>,
}

/// The answer to [`CreateRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The container's init, in the shim's PID namespace.
    pub pid: i32,
    /// Where the time went, if the shim and its engine tell.
    #[serde(default)]
    pub timings: Option<Timings>,
    /// How its start went, if it has been started.
    #[serde(default)]
    pub start: Option<Start>,
}

/// How the start went of a container that was to run as soon as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// What [`Call::Start`] would have answered.
    pub result: Result<Started, Failure>,
    /// What was waited after it was made.
    pub took: Duration,
}

/// The answer to [`Call::Start`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// When the process was started.
    pub started_at: Timestamp,
}

/// See [`Call::Kill`]. A container that has exited already is no error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kill {
    /// The container's id.
    pub id: String,
    /// The signal's number.
    pub signal: i32,
    /// Signal all processes of the container, not just its init.
    #[serde(default)]
    pub all: bool,
}

/// See [`Call::Exec`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container's id.
    pub container_id: String,
    /// The process as the OCI runtime specification describes it.
    pub process: Process,
    /// Give the process a terminal, whatever `process.terminal` says.
    #[serde(default)]
    pub tty: bool,
    /// Connect stdin; without it stdin is `/dev/null`. A terminal has stdin always.
    #[serde(default)]
    pub stdin: bool,
}

/// The answer to [`ExecRequest`]. With a terminal one descriptor comes along (the pty master), without one those of
/// stdin (if asked for), stdout and stderr, in that order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStarted {
    /// Names the process to the shim.
    pub exec_id: u64,
    /// Its process id in the shim's PID namespace.
    pub pid: i32,
}

/// See [`Call::Run`]. The process is as the container's first one but for its arguments; its stdin is `/dev/null`. One request
/// and one answer are all there is to it, so that a probe costs little more than its command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRequest {
    /// The container's id.
    pub container_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Milliseconds after which the command is killed, with all processes of its process group.
    pub timeout_ms: u64,
    /// So many bytes from the beginning of what it writes are kept; at most [`MAX_OUTPUT`].
    pub output_max: usize,
}

/// The most output that [`Call::Run`] keeps, in bytes.
pub const MAX_OUTPUT: usize = 64 << 10;

/// The answer to [`RunRequest`]. Processes that the command has left behind are not waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// The exit code; 128 plus the signal's number for a command that a signal ended; none if its time was over.
    pub code: Option<i32>,
    /// The beginning of what it wrote to stdout and stderr, in the order in which it did; what is not UTF-8 is replaced.
    pub output: String,
}

/// See [`Call::Repeat`]. Answered when the command fails, could not be run, or has been run that often. It ends with its connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepeatRequest {
    /// What is run.
    pub run: RunRequest,
    /// Microseconds until it is run first.
    pub wait_us: u64,
    /// Milliseconds from the time that a run was due until the next one is.
    pub period_ms: u64,
    /// The most runs.
    pub times: u32,
}

/// The answer to [`RepeatRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeated {
    /// What came of the last run; the earlier ones have succeeded.
    pub result: Result<Ran, Failure>,
    /// How often it was tried, this time included.
    pub runs: u32,
    /// Microseconds since the last run was begun.
    pub ago_us: u64,
}

/// Names an exec'ed process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecId {
    /// From [`ExecStarted`].
    pub exec_id: u64,
}

/// The answer to [`Call::WaitExec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExited {
    /// The exit code; 128 plus the signal's number for a process that a signal ended.
    pub code: i32,
}

/// See [`Call::KillExec`]. A process that has exited already is no error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KillExec {
    /// From [`ExecStarted`].
    pub exec_id: u64,
    /// The signal's number.
    pub signal: i32,
}

/// See [`Call::Resize`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resize {
    /// The container's id.
    pub id: String,
    /// Characters per line.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// See [`Call::Attach`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attach {
    /// The container's id.
    pub id: String,
    /// Ask for the container's stdin.
    #[serde(default)]
    pub stdin: bool,
    /// Ask for what it writes to stdout (and to its terminal) from now on.
    #[serde(default)]
    pub stdout: bool,
    /// Ask for what it writes to stderr from now on.
    #[serde(default)]
    pub stderr: bool,
}

/// The answer to [`Attach`]: which descriptors come along, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The write end of stdin; with a terminal the master, whose size can be set.
    pub stdin: bool,
    /// The read end of a pipe with stdout.
    pub stdout: bool,
    /// The read end of a pipe with stderr.
    pub stderr: bool,
    /// The container has a terminal.
    pub tty: bool,
    /// The read end of a pipe that ends with the outputs. If they end because the client was too slow to read them, the
    /// reason is in it, one line for people (since [`Feature::AttachEnd`]).
    #[serde(default)]
    pub end: bool,
}

/// What the shim sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to a request.
    Reply(Reply),
    /// Something happened.
    Event(Event),
}

/// The answer to the [`Request`] of the same `id`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// How many file descriptors came with this frame.
    #[serde(default)]
    pub fds: usize,
    /// The result.
    pub result: Outcome,
}

/// How a request ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing more to say.
    Done {},
    /// To [`Call::Hello`].
    Welcome(Welcome),
    /// To [`Call::Create`].
    Created(Created),
    /// To [`Call::Start`].
    Started(Started),
    /// To [`Call::List`].
    List(Vec<ContainerState>),
    /// To [`Call::Exec`].
    ExecStarted(ExecStarted),
    /// To [`Call::Run`].
    Ran(Ran),
    /// To [`Call::Repeat`].
    Repeated(Repeated),
    /// To [`Call::WaitExec`].
    ExecExited(ExecExited),
    /// To [`Call::Attach`].
    Attached(Attached),
    /// It failed.
    Error(Failure),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What sort of failure.
    pub kind: FailureKind,
    /// One line for people.
    pub message: String,
}

/// The sorts of failure a client may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such container or exec.
    NotFound,
    /// A container of that id exists.
    Exists,
    /// The request makes no sense, or not in the container's present state.
    Invalid,
    /// The container's program could not be executed; its exit is recorded.
    StartFailed,
    /// The two sides share no protocol version, or the shim does not know the request.
    Unsupported,
    /// Something the shim tried did not work, or a sort of failure this side does not know.
    #[serde(other)]
    Internal,
}

/// What happens without being asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container's init has exited. Its record is on disk already.
    Exited {
        /// The container's id.
        id: String,
        /// How it ended.
        exit: ExitRecord,
    },
    /// The kernel killed processes of a container for want of memory; init may live on.
    OomKilled {
        /// The container's id.
        id: String,
        /// How many it has killed in this container so far.
        kills: u64,
    },
}

/// How a container ended; the content of `exit.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code; 128 plus the signal's number for a process that a signal ended, 128 for a program that could
    /// not be executed.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The kernel killed at least one of its processes for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// When it was started; `None` if it never was.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When its end was seen.
    pub finished_at: Timestamp,
    /// Why it could not be started.
    #[serde(default)]
    pub message: Option<String>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Set up, its program not executed yet.
    Created,
    /// Its program runs.
    Running,
    /// Its init has exited, or could not be started.
    Stopped,
}

/// One container as the shim knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container's id.
    pub id: String,
    /// Its init, in the shim's PID namespace.
    pub pid: i32,
    /// Where it is in its life.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<ExitRecord>,
    /// Its processes are frozen.
    #[serde(default)]
    pub paused: bool,
}

/// The content of `state.json` in a container's bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateRecord {
    /// The container's init.
    pub pid: i32,
    /// Its start time in clock ticks since boot (field 22 of `/proc/<pid>/stat`), which tells it from a later process
    /// of the same number.
    pub pid_start_time: u64,
    /// Where it is in its life.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
}
