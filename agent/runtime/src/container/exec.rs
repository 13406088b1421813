//! Starting a process inside a running container.
//!
//! The container is not trusted: the new process leaves every descriptor behind before it enters, cannot be looked
//! into, and resolves the container's paths within its root.
//!
//! It takes two processes. The first, a guide, joins all that the container has, as a process of the host that nobody
//! in the container sees, and becomes the user. Only then does it make the second one, in the container's PID namespace
//! and as a child of the caller: when it becomes visible it has no way back to the host any more, so that not even those
//! get there who may trace it (CVE-2016-9962 with CAP_SYS_PTRACE).

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Process};

use super::channel::{Channel, Failure, Report};
use super::create::{cgroups_of, reap};
use super::identity::{Identity, tie_to_parent};
use super::placement::Placement;
use super::program::Launch;
use super::seccomp::Filter;
use super::time_namespace::CLONE_NEWTIME;
use super::user_namespace::outer_uid;
use super::{
    Error, Exec, ExecProcess, Root, Stdio, Tie, console, labels, limits, scheduling, streams, users,
};
use crate::cgroup::{Cgroups, Driver};
use crate::sys::process::{Child, Clone3, pidfd_kill, pidfd_open};
use crate::sys::{credentials, process};

/// See [`super::exec`].
pub fn exec(exec: Exec<'_>) -> Result<ExecProcess, Error> {
    // One without a cgroup of its own is where its creator was; so is this one.
    let driver = if exec.cgroup.is_empty() { Driver::Inherited } else { Driver::Cgroupfs };
    let cgroups = &*cgroups_of(driver)?;
    let target =
        pidfd_open(exec.pid).map_err(|e| Error::sys("open", format!("container process {}", exec.pid), e))?;
    let linux = exec.terms.linux.as_ref();
    let visit = Visit {
        process: exec.terms.complete(exec.process),
        stdio: exec.stdio,
        target: target.as_fd().try_clone_to_owned().map_err(|e| Error::sys("copy", "a pidfd", e))?,
        task_files: cgroups.v1_task_files(exec.cgroup)?,
        filter: exec.terms.filter.as_ref(),
        linux,
        tie: exec.tie,
    };
    labels::check(&visit.process, linux)?;
    if lists(linux, LinuxNamespaceType::User)
        && let Ok(Some(outer)) = outer_uid(exec.pid, visit.process.user().uid())
    {
        streams::give_to_outer(&visit.stdio, outer);
    }
    let folder = cgroups.v2_folder(exec.cgroup)?;
    let (channel, theirs) = Channel::pair().map_err(|e| Error::sys("make", "a socket pair", e))?;
    let guide = spawn(visit, &theirs, folder, cgroups, exec.pid)?;
    drop(theirs);
    let mut visitor = None;
    let heard = listen(&channel, &mut visitor);
    if heard.is_err() {
        give_up(&guide);
        visitor.iter().for_each(give_up);
    } else {
        reap(guide.pidfd.as_fd());
    }
    let (warnings, console) = heard?;
    let Child { pid, pidfd } =
        visitor.ok_or_else(|| Error::Died { status: "it was never born".to_owned() })?;
    Ok(ExecProcess { pid, pidfd, console, warnings })
}

/// Listens until the program runs. Gives the warnings and the terminal.
fn listen(channel: &Channel, visitor: &mut Option<Child>) -> Result<(Vec<String>, Option<OwnedFd>), Error> {
    let mut warnings = Vec::new();
    let mut console = None;
    // Two processes speak: that one failed may be heard before the birth of the other.
    let mut failure = None;
    loop {
        let report = channel.next_report().map_err(|e| Error::sys("listen to", "the new process", e))?;
        match report {
            None => return failure.map_or(Ok((warnings, console)), |f: Failure| Err(f.into())),
            Some((Report::Warning(text), _)) => warnings.push(text),
            Some((Report::Console, fd)) => console = fd,
            Some((Report::Born(pid), Some(pidfd))) => *visitor = Some(Child { pid, pidfd }),
            Some((Report::Failed(reason), _)) => failure = Some(reason),
            Some((Report::Born(_) | Report::Ready(_) | Report::Hooks, _)) => {}
        }
    }
}

fn give_up(child: &Child) {
    // It may have ended by itself.
    let _ = pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL);
    reap(child.pidfd.as_fd());
}

/// Makes the child, on v2 in the container's cgroup. When the container has divided that into smaller ones, no process
/// may be in it, and the one of the container's first process is taken.
fn spawn(
    visit: Visit<'_>,
    theirs: &Channel,
    folder: Option<File>,
    cgroups: &Cgroups,
    init: i32,
) -> Result<Child, Error> {
    let failed = |e| Error::sys("clone", "a process in the container", e);
    let make = |folder: Option<&File>| {
        Clone3 { flags: 0, cgroup: folder.map(AsFd::as_fd) }.spawn(|| visit.run(theirs))
    };
    match make(folder.as_ref()) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) && folder.is_some() => {
            let inner = own_cgroup(init).ok_or_else(|| failed(e))?;
            make(cgroups.v2_folder(&inner)?.as_ref()).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

fn own_cgroup(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("0::")).map(str::to_owned)
}

/// The child's part.
struct Visit<'a> {
    process: Process,
    stdio: Stdio,
    target: OwnedFd,
    task_files: Vec<PathBuf>,
    filter: Option<&'a Filter>,
    linux: Option<&'a Linux>,
    tie: Tie,
}

impl Visit<'_> {
    fn run(&self, channel: &Channel) {
        match streams::arrange(&self.stdio, channel, &[self.target.as_fd()], self.tie.preserve_fds) {
            Ok((channel, mut target)) => {
                if let Err(error) = self.enter(&channel, target.pop()) {
                    // Without a parent there is nobody to tell.
                    let _ = channel.report(&Report::Failed(error.into()), None);
                }
            }
            Err(error) => {
                let _ = channel.report(&Report::Failed(error.into()), None);
            }
        }
    }

    /// The guide's part, up to the birth of the visitor.
    fn enter(&self, channel: &Channel, target: Option<OwnedFd>) -> Result<(), Error> {
        process::reset_signals();
        credentials::set_undumpable().map_err(|e| Error::sys("set", "dumpable", e))?;
        credentials::die_with_parent()
            .map_err(|e| Error::sys("set", "the signal at the parent's death", e))?;
        let mut warn = |text: String| {
            // A warning that cannot be delivered is not worth more than the process.
            let _ = channel.report(&Report::Warning(text), None);
        };
        let mut identity = Identity::of_process(&self.process, self.filter.cloned(), &mut warn)?;
        limits::set_oom_score(0, &self.process, &mut warn)?;
        labels::set_for_exec(&self.process)?;
        let affinity = self.process.exec_cpu_affinity().as_ref();
        let initial = affinity.and_then(|a| a.initial().as_ref());
        scheduling::set_affinity("process.execCPUAffinity.initial", initial)?;
        Placement::open(&self.task_files)?.enter()?;
        let user = lists(self.linux, LinuxNamespaceType::User);
        if user {
            // What the host's rights are needed for.
            limits::set_rlimits(0, &self.process, &mut warn)?;
            scheduling::set_priorities(0, &self.process)?;
        }
        if let Some(target) = target {
            join(target, self.linux)?;
        }
        if user {
            credentials::become_root().map_err(|e| Error::sys("become", "root of the user namespace", e))?;
        }
        umask(Mode::empty());
        let root = Root::open(Path::new("/"))?;
        identity.look_up(&self.process, &root)?;
        let launch = Launch::new(&self.process, || users::home(&root, identity.uid()))?;
        let terminal = if self.process.terminal() == Some(true) {
            Some(console::open(&root, &self.process, channel)?)
        } else {
            streams::reopen_null(&root, &self.stdio)?;
            streams::give_to(identity.uid())?;
            None
        };
        drop(root);
        let affinity = affinity.and_then(|a| a.cpu_affinity_final().as_ref());
        scheduling::set_affinity("process.execCPUAffinity.final", affinity)?;
        if !user {
            limits::set_rlimits(0, &self.process, &mut warn)?;
            scheduling::set_priorities(0, &self.process)?;
        }
        self.linux.map_or(Ok(()), scheduling::set_own)?;
        identity.become_user(self.process.cwd())?;
        identity.confine_first()?;
        let birth = Clone3 { flags: libc::CLONE_PARENT as u64, cgroup: None };
        let visitor = birth
            .spawn(|| {
                let Err(error) = self.visit(&identity, &launch, terminal.as_ref());
                let _ = channel.report(&Report::Failed(error.into()), None);
            })
            .map_err(|e| Error::sys("clone", "a process in the container", e))?;
        channel
            .report(&Report::Born(visitor.pid), Some(visitor.pidfd.as_raw_fd()))
            .map_err(|e| Error::sys("report to", "the parent", e))
    }

    /// The visitor's part.
    fn visit(
        &self,
        identity: &Identity,
        launch: &Launch,
        terminal: Option<&OwnedFd>,
    ) -> Result<Infallible, Error> {
        tie_to_parent(&self.tie)?;
        setsid().map_err(|e| Error::sys("start", "a session", e.into()))?;
        if let Some(terminal) = terminal {
            console::take(terminal)?;
            streams::give_to(identity.uid())?;
        }
        identity.confine_last()?;
        Err(launch.run())
    }
}

/// Whether the container has a namespace of a kind that not every container has.
fn lists(linux: Option<&Linux>, kind: LinuxNamespaceType) -> bool {
    linux.and_then(|l| l.namespaces().as_ref()).into_iter().flatten().any(|n| n.typ() == kind)
}

/// The namespaces that every container has, be they its own or those of its creator.
const COMMON: [(LinuxNamespaceType, CloneFlags); 5] = [
    (LinuxNamespaceType::Mount, CloneFlags::CLONE_NEWNS),
    (LinuxNamespaceType::Cgroup, CloneFlags::CLONE_NEWCGROUP),
    (LinuxNamespaceType::Uts, CloneFlags::CLONE_NEWUTS),
    (LinuxNamespaceType::Ipc, CloneFlags::CLONE_NEWIPC),
    (LinuxNamespaceType::Network, CloneFlags::CLONE_NEWNET),
];

/// Joins all of the container's namespaces at once; the kernel takes the user namespace first. The PID namespace is
/// joined for children, and first: it may be the pod's, which a user namespace has no right to. Joining one's own again is
/// allowed, but for the user namespace.
///
/// Who is not root of the machine has a right to none but together with the user namespace, and to none that the container
/// inherited from its creator; those are left as they are.
fn join(target: OwnedFd, linux: Option<&Linux>) -> Result<(), Error> {
    let failed = |e: nix::Error| Error::sys("join", "the container's namespaces", e.into());
    let flags = |wanted: &dyn Fn(LinuxNamespaceType) -> bool| {
        COMMON
            .iter()
            .filter(|(kind, _)| wanted(*kind))
            .fold(CloneFlags::empty(), |all, (_, flag)| all | *flag)
    };
    let user = lists(linux, LinuxNamespaceType::User);
    let mut all = match setns(&target, CloneFlags::CLONE_NEWPID) {
        Err(nix::Error::EPERM) if user => {
            let own = flags(&|kind| lists(linux, kind));
            if lists(linux, LinuxNamespaceType::Pid) { own | CloneFlags::CLONE_NEWPID } else { own }
        }
        other => other.map(|()| flags(&|_| true)).map_err(failed)?,
    };
    if user {
        all |= CloneFlags::CLONE_NEWUSER;
    }
    if lists(linux, LinuxNamespaceType::Time) {
        all |= CLONE_NEWTIME;
    }
    setns(target, all).map_err(failed)
}
