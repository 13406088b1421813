//! The engine: an OCI `Spec` in, a process out.
//!
//! The parent's side is in `create`, the child's in `init`; `exec` has both sides for further processes. What they
//! say to each other is in `channel`. The child does its work in the order of `init`: root file system
//! (`root_mount`), `mounts`, `devices`, `console`, masks and kernel parameters (`protect`), cgroup (`placement`),
//! `limits`, `scheduling`, `identity`, and at last the `program`. Every path inside the container goes through `root`.
//!
//! In a user namespace the child has no rights on the host. What takes them the parent does: the maps
//! (`user_namespace`), mounts of sources that the child cannot reach (`sources`), limits and priorities; and where
//! namespaces are joined besides, a helper is its forerunner (`birth`).

mod birth;
mod capabilities;
mod channel;
mod console;
mod copy_up;
mod create;
mod devices;
mod document;
mod error;
mod exec;
mod handed;
pub mod hooks;
mod identity;
mod init;
mod labels;
mod limits;
mod mount_options;
mod mounts;
mod namespaces;
mod notify;
mod placement;
mod procfs;
mod program;
mod protect;
mod root;
mod root_mount;
mod scheduling;
pub mod seccomp;
mod sources;
mod staged;
mod streams;
mod terms;
mod time_namespace;
mod timings;
mod user_namespace;
mod users;

use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{
    Capability, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Spec,
};

use crate::cgroup::Driver;
use crate::rootfs::Rootfs;
use crate::sys::process::Child;

pub use capabilities::known_capabilities;
pub(crate) use channel::hand;
pub use create::Knock;
pub(crate) use create::{cgroups, cgroups_of};
pub use document::{Document, parse_process, without_rules};
pub use error::Error;
pub use mount_options::names as mount_option_names;
pub use notify::Notify;
pub use placement::{Entrance, SubCgroup};
pub(crate) use seccomp::{Filter, Shape};
pub(crate) use staged::Staged;
pub use terms::Terms;
pub use timings::Timings;

use channel::Channel;
use root::Root;

/// The three standard streams of a new process; `None` is `/dev/null`. Ignored when a terminal is asked for.
#[derive(Debug, Default)]
pub struct Stdio {
    /// What the process reads from.
    pub stdin: Option<OwnedFd>,
    /// What the process writes to.
    pub stdout: Option<OwnedFd>,
    /// What the process writes errors to.
    pub stderr: Option<OwnedFd>,
}

/// A container to be made.
#[derive(Debug)]
pub struct Create<'a> {
    /// Its name in messages.
    pub id: &'a str,
    /// What to make. `linux.cgroupsPath` says where it is accounted.
    pub spec: &'a Spec,
    /// The text of `linux.seccomp` if that is left out of the spec, see [`without_rules`]: it is read while the child mounts.
    pub rules: Option<&'a str>,
    /// Its root file system.
    pub rootfs: &'a Rootfs,
    /// Its standard streams.
    pub stdio: Stdio,
    /// The folder that relative paths of the spec start from; it gets a sub-folder `rootfs` when it has none.
    pub bundle: &'a Path,
    /// What binds its first process to the caller.
    pub tie: Tie,
    /// Who makes its cgroup.
    pub driver: Driver,
    /// On v1 the cgroup is made in every hierarchy, too, where the container has no limit, if the spec has it mounted: others
    /// than the creator may look for figures there and set limits later. It costs a folder and an attach for each.
    pub everywhere: bool,
    /// The program is to run as soon as all is set up. [`Container::start`] then only waits until it does, which saves
    /// the way back and forth between the processes. Not with a gate.
    pub at_once: bool,
    /// Its root is moved over the host's, for hosts whose root pivot_root cannot change. That isolates less.
    pub no_pivot: bool,
    /// How long its first process may be silent while that is set up. A process of another container that shares the PID
    /// namespace can stop it. None is without a limit, which is right where hooks run: they take the time that they take.
    pub patience: Option<Duration>,
}

/// What binds a new process to its creator. The default is what a shim wants: it dies with the creator, gets no other
/// descriptors than its streams, and a container waits for [`Container::start`].
#[derive(Debug, Default)]
pub struct Tie {
    /// It lives on when its creator ends.
    pub outlives: bool,
    /// Descriptors from 3 on that are handed to the program, at the numbers that they have.
    pub handed: Vec<RawFd>,
    /// Instead of [`Container::start`], a container awaits [`Knock::start`] at this listening socket: the creator may
    /// be gone by then. The program is looked for at once, so that a missing one fails the creation.
    pub gate: Option<OwnedFd>,
    /// What is written to its terminal is passed on as it is, without a carriage return before each line's end: nobody
    /// shows it on a screen.
    pub bare_lines: bool,
}

/// A container whose process is set up and waits for [`Container::start`].
#[derive(Debug)]
pub struct Container {
    /// Its first process, a child of the caller.
    pub pid: i32,
    /// Refers to the same process.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, when `process.terminal` is set.
    pub console: Option<OwnedFd>,
    /// Its cgroup, relative to each hierarchy's root.
    pub cgroup: String,
    /// What could not be done but does not keep the container from running, such as an rlimit that this machine
    /// does not let us raise.
    pub warnings: Vec<String>,
    /// Where the time of its creation went.
    pub timings: Timings,
    channel: Option<Channel>,
    /// The order to start has been given.
    ordered: bool,
    /// Whom its filter asks.
    notify: Option<Notify>,
}

/// A process to be started inside a running container.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container's first process.
    pub pid: i32,
    /// What the container's spec says of such processes.
    pub terms: &'a Terms,
    /// What to run.
    pub process: Process,
    /// Its standard streams.
    pub stdio: Stdio,
    /// The way into the container, which serves for all of its processes. Those that begin in the caller's memory are killed when it
    /// is dropped, unless they outlive their parent ([`Tie::outlives`]).
    pub entrance: &'a Entrance,
    /// What binds it to the caller; the gate is for containers only.
    pub tie: Tie,
    /// No process that shares the container's PID namespace may trace others, see [`may_trace`], but for those who may trace the
    /// caller as well. Then the new one can begin in the caller's memory, which takes half the time and leaves the caller undumpable.
    pub untraced: bool,
    /// How long it may take until it runs its program: a container can stop a process of its own before that. See
    /// [`EXEC_PATIENCE`].
    pub patience: Duration,
}

/// The longest [`Exec::patience`] that makes sense: whoever takes longer is held up.
pub const EXEC_PATIENCE: Duration = Duration::from_secs(30);

/// A process that runs inside a container, a child of the caller.
///
/// It must be reaped also when the container's first process ends: that one is not gone before all others of its PID
/// namespace are.
#[derive(Debug)]
pub struct ExecProcess {
    /// Its process id as the caller sees it.
    pub pid: i32,
    /// Refers to the same process.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, when `process.terminal` is set.
    pub console: Option<OwnedFd>,
    /// What could not be done but does not matter enough to fail.
    pub warnings: Vec<String>,
    /// The home that was looked up for it. Who starts the same again soon may spare that by naming it in the environment.
    pub home: Option<String>,
}

impl Container {
    /// A container that another runtime has made and will start.
    pub(crate) fn of_other_runtime(
        pid: i32,
        pidfd: OwnedFd,
        console: Option<OwnedFd>,
        cgroup: String,
    ) -> Container {
        let (warnings, timings) = (Vec::new(), Timings::default());
        Container {
            pid,
            pidfd,
            console,
            cgroup,
            warnings,
            timings,
            channel: None,
            ordered: false,
            notify: None,
        }
    }
}

/// Makes a user namespace with the same map for users and groups; nobody is in it.
pub(crate) fn user_namespace(map: &[LinuxIdMapping]) -> Result<OwnedFd, Error> {
    let map = Some(map.to_vec());
    user_namespace::Maps::new("users", map.as_ref(), map.as_ref())?.into_namespace()
}

/// Makes a child in new PID and mount namespaces, which belong to the user namespace at `users` if there is one.
pub(crate) fn give_birth_in(users: Option<&Path>, body: impl FnOnce()) -> Result<Child, Error> {
    let mut list = vec![LinuxNamespace::default(), LinuxNamespace::default()];
    list[0].set_typ(LinuxNamespaceType::Pid);
    list[1].set_typ(LinuxNamespaceType::Mount);
    if let Some(users) = users {
        let mut joined = LinuxNamespace::default();
        joined.set_typ(LinuxNamespaceType::User).set_path(Some(users.to_owned()));
        list.push(joined);
    }
    birth::give_birth(&namespaces::Namespaces::of_list(&list)?, None, body)
}

/// Makes these the standard streams of a fresh child and closes every other descriptor. What the caller owns is closed
/// under its owners: they must not be dropped in this process.
pub(crate) fn give_streams(stdio: &Stdio) -> Result<(), Error> {
    streams::replace(stdio)
}

/// Whether a process may look into others of its PID namespace that are not its own: with `CAP_SYS_PTRACE` in any of its sets.
pub fn may_trace(process: &Process) -> bool {
    capabilities::lists(process, Capability::SysPtrace)
}

/// Whether a process may mount file systems, or become one that may.
pub(crate) fn may_mount(process: &Process) -> bool {
    capabilities::lists(process, Capability::SysAdmin)
}

/// Adds what every container may use to device rules, if there are any: the rules that a container made from these
/// resources has.
pub fn complete_device_rules(resources: &mut LinuxResources) {
    if let Some(rules) = resources.devices_mut().as_mut().filter(|rules| !rules.is_empty()) {
        rules.extend(devices::default_rules());
    }
}

/// Makes a container up to the point where its program would be executed.
///
/// The caller must have a single thread: the new process runs on a copy of its memory. It is also the one whose death
/// kills the container. On an error nothing is left behind but the cgroup's parents.
pub fn create(create: Create<'_>) -> Result<Container, Error> {
    create::create(create)
}

/// Starts a process inside a running container. It runs when this returns. The same conditions as for [`create`] hold.
pub fn exec(exec: Exec<'_>) -> Result<ExecProcess, Error> {
    exec::exec(exec)
}

/// Waits for the end of a child, which must be near, and takes its exit status away.
pub(crate) fn reap(pidfd: std::os::fd::BorrowedFd<'_>) {
    create::reap(pidfd);
}
