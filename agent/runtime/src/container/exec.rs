//! Starting a process inside a running container.
//!
//! The container is not trusted: the new process leaves every descriptor behind before it enters, cannot be looked
//! into, and resolves the container's paths within its root.
//!
//! Where somebody in the container may trace others it takes two processes. The first, a guide, joins all that the container has, as
//! a process of the host that nobody in the container sees, and becomes the user. Only then does it make the second one, in the
//! container's PID namespace and as a child of the caller: when it becomes visible it has no way back to the host any more, so that
//! not even those get there who may trace it (CVE-2016-9962 with CAP_SYS_PTRACE).
//!
//! Where nobody may, one process does all that, born in the container's PID namespace. It is not dumpable until it executes its
//! program, so that without that capability no process can look into it or change it, be it by ptrace(2) or through `/proc`. For the
//! same reason it needs no copy of the caller's memory: it runs in the caller's own ([`crate::sys::sharing`]), unless its cgroup might be
//! killed as a whole meanwhile. Anybody in the container may kill it, at any moment: what it leaves undone then must be nothing of the
//! caller's, see there. Elsewhere it gets a copy. The sum of it costs half of what two processes with copies do.

use std::convert::Infallible;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Process};

use super::channel::{Channel, Failure, Report};
use super::create::reap;
use super::identity::{Identity, tie_to_parent};
use super::notify::Notify;
use super::placement::Entrance;
use super::program::Launch;
use super::root_mount::change_root;
use super::seccomp::Filter;
use super::time_namespace::CLONE_NEWTIME;
use super::user_namespace::outer_uid;
use super::{
    Error, Exec, ExecProcess, Root, Stdio, Tie, capabilities, console, labels, limits, may_mount, procfs,
    scheduling, streams, users,
};
use crate::sys::process::{Child, Clone3, pidfd_kill};
use crate::sys::sharing::{
    CAN_SHARE, Common, EVERYTHING, Left, Letters, Maker, can_share, make_room, making, spawn_child,
    spawn_sibling,
};
use crate::sys::{credentials, process};

/// See [`super::exec`].
pub fn exec(exec: Exec<'_>) -> Result<ExecProcess, Error> {
    let target = exec.entrance.process(exec.pid)?;
    let linux = exec.terms.linux.as_ref();
    let visit = Visit {
        process: exec.terms.complete(exec.process),
        first: exec.terms.first(),
        stdio: exec.stdio,
        target,
        entrance: exec.entrance,
        init: exec.pid,
        filter: exec.terms.filter.as_ref(),
        notify: exec.terms.notify.as_ref(),
        keep_groups: exec.terms.keep_groups,
        linux,
        tie: exec.tie,
        patience: exec.patience,
    };
    labels::check(&visit.process)?;
    if lists(linux, LinuxNamespaceType::User)
        && let Ok(Some(outer)) = outer_uid(exec.pid, visit.process.user().uid())
    {
        streams::give_to_outer(&visit.stdio, outer);
    }
    make_room();
    if exec.untraced {
        return visit.direct();
    }
    let process = visit.guided()?;
    visit.set_own_scheduler(process)
}

/// What they have said.
#[derive(Default)]
struct Heard<'a> {
    /// Who is asked by the filter, and the container's first process.
    asked: Option<(&'a Notify, i32)>,
    /// The number that the filter's listener has in the new process.
    listener: Option<RawFd>,
    warnings: Vec<String>,
    console: Option<OwnedFd>,
    born: Option<Child>,
    failure: Option<Failure>,
    home: Option<String>,
}

impl Heard<'_> {
    /// Listens until the program runs, or it has ended. Two processes may speak: that one failed may be heard before the birth of
    /// the other.
    fn listen(&mut self, channel: &Channel, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        loop {
            let report = channel
                .next_report_by(deadline)
                .map_err(|e| Error::sys("listen to", "the new process", e))?;
            let Some((report, fd)) = report else { return self.outcome() };
            self.hear(report, fd);
            if let (Some((notify, init)), Some(born), Some(number)) =
                (self.asked, &self.born, self.listener.take_if(|_| self.born.is_some()))
            {
                notify.serve(channel, number, (born.pid, born.pidfd.as_fd()), Some(init))?;
            }
        }
    }

    fn hear(&mut self, report: Report, fd: Option<OwnedFd>) {
        match (report, fd) {
            (Report::Warning(text), _) => self.warnings.push(text),
            (Report::Console, fd) => self.console = fd,
            (Report::Born(pid), Some(pidfd)) => self.born = Some(Child { pid, pidfd }),
            (Report::Failed(reason), _) => self.failure = Some(reason),
            (Report::Listener(number), _) => self.listener = Some(number),
            (Report::Home(home), _) => self.home = Some(home),
            (Report::Born(_) | Report::Ready(_) | Report::Hooks, _) => {}
        }
    }

    /// When all has been said.
    fn outcome(&mut self) -> Result<(), Error> {
        self.failure.take().map_or(Ok(()), |f| Err(f.into()))
    }

    fn into_process(self) -> Result<ExecProcess, Error> {
        let Child { pid, pidfd } =
            self.born.ok_or_else(|| Error::Died { status: "it was never born".to_owned() })?;
        Ok(ExecProcess { pid, pidfd, console: self.console, warnings: self.warnings, home: self.home })
    }
}

fn give_up(child: &Child) {
    // It may have ended by itself.
    let _ = pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL);
    reap(child.pidfd.as_fd());
}

/// The child's part.
struct Visit<'a> {
    process: Process,
    /// That of the container's first process.
    first: Option<&'a Process>,
    stdio: Stdio,
    target: BorrowedFd<'a>,
    entrance: &'a Entrance,
    /// The container's first process.
    init: i32,
    filter: Option<&'a Filter>,
    notify: Option<&'a Notify>,
    keep_groups: bool,
    linux: Option<&'a Linux>,
    tie: Tie,
    patience: Duration,
}

/// What the process that joins the container has of it when it begins.
#[derive(Clone, Copy, Debug)]
struct Birth {
    /// Its PID namespace.
    inside: bool,
    /// Others of its namespaces.
    namespaces: CloneFlags,
    /// The filter of system calls.
    filtered: bool,
    /// What the bounding set is within.
    bounding: u64,
}

impl Birth {
    /// Nothing.
    const OUTSIDE: Birth =
        Birth { inside: false, namespaces: CloneFlags::empty(), filtered: false, bounding: EVERYTHING };
    /// The PID namespace.
    const INSIDE: Birth = Birth { inside: true, ..Birth::OUTSIDE };

    /// What the children of this one have.
    fn by(maker: &Maker) -> Birth {
        Birth {
            inside: true,
            namespaces: CloneFlags::from_bits_retain(maker.namespaces()),
            filtered: maker.filters(),
            bounding: maker.bounding(),
        }
    }
}

/// The system calls, besides the one that makes it, of a process that is made by a [`Maker`], up to its program. One that makes others
/// ([`Visit::needs_more`]) is not made by a maker with a filter.
const CALLS: &[libc::c_long] = &[
    // Memory, time and its end.
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_kill,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_tgkill,
    // Signals and CPUs.
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_setaffinity,
    libc::SYS_sigaltstack,
    // Files and descriptors.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchown,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_write,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    // Who it is and what it may do.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_getcwd,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setsid,
    libc::SYS_umask,
    libc::SYS_execve,
];

/// Whether a process can have this filter from its beginning.
fn lets_begin(filter: &Filter) -> bool {
    let (call, args) = making();
    !filter.asks()
        && filter.lets(call, Some(&args))
        && Maker::CALLS.iter().chain(CALLS).all(|call| filter.lets(*call, None))
}

/// While it lives, this process is not dumpable, and neither are children at their birth.
struct Hidden {
    before: bool,
}

impl Hidden {
    fn begin() -> Result<Hidden, Error> {
        let failed = |e| Error::sys("set", "dumpable", e);
        let before = credentials::is_dumpable().map_err(failed)?;
        credentials::set_dumpable(false).map_err(failed)?;
        Ok(Hidden { before })
    }

    /// For good.
    fn stay(mut self) {
        self.before = false;
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if self.before {
            // Cannot fail: both values are known to the kernel.
            let _ = credentials::set_dumpable(true);
        }
    }
}

/// How a new process tells something.
enum Voice<'a> {
    /// By the channel as the caller has it.
    Channel(&'a Channel),
    /// By the channel at its place in this process. Not closed where this is dropped: that may be another one.
    Own(ManuallyDrop<Channel>),
    /// By a process in the caller's memory.
    Letters(&'a Letters<Report>),
}

impl Voice<'_> {
    /// Nobody may be there to listen any more. Then it is nothing that would change that.
    fn say(&self, report: Report, fd: Option<RawFd>) {
        if let Voice::Letters(letters) = self {
            letters.leave(report);
        } else if let Some(channel) = self.channel() {
            let _ = channel.report(&report, fd);
        }
    }

    fn fail(&self, error: Error) {
        self.say(Report::Failed(error.into()), None);
    }

    fn channel(&self) -> Option<&Channel> {
        match self {
            Voice::Channel(channel) => Some(channel),
            Voice::Own(channel) => Some(channel),
            Voice::Letters(_) => None,
        }
    }
}

/// What the guide hands over to the visitor.
struct Ready<'a> {
    identity: Identity<'a>,
    launch: Launch,
    terminal: Option<OwnedFd>,
    voice: Voice<'a>,
}

impl Visit<'_> {
    /// Whether the process can do without memory of its own. A terminal would be a descriptor that the caller keeps, like the listener
    /// of a filter that asks; the kernel lets nobody who shares memory into a time namespace; and who may mount cgroups can have the own
    /// one killed as a whole, on v2, also while that is not to be. Who makes such a process has the groups that the caller had once.
    fn may_share(&self) -> bool {
        can_share()
            && self.notify.is_none()
            && (self.entrance.folder().is_none() || !self.may_mount())
            && !self.keep_groups
            && self.process.terminal() != Some(true)
            && !lists(self.linux, LinuxNamespaceType::Time)
    }

    /// Whether this process or the container's first one may mount file systems.
    fn may_mount(&self) -> bool {
        let mut both = self.first.into_iter().chain([&self.process]);
        both.any(may_mount)
    }

    /// Sets a scheduler that the visitor does not inherit from the guide. Only the caller has the right to.
    fn set_own_scheduler(&self, process: ExecProcess) -> Result<ExecProcess, Error> {
        if !scheduling::is_not_inherited(&self.process) {
            return Ok(process);
        }
        match scheduling::set_priorities(process.pid, &self.process) {
            Ok(()) => Ok(process),
            Err(error) => {
                give_up(&Child { pid: process.pid, pidfd: process.pidfd });
                Err(error)
            }
        }
    }

    /// Makes one process, which is visible in the container from the beginning.
    fn direct(&self) -> Result<ExecProcess, Error> {
        // Before it is there.
        let hidden = Hidden::begin()?;
        if self.may_share()
            && let Some(made) = self.shared()
        {
            // The kernel says that the child has left this memory a moment before it has (mm_release() in exec_mmap()). Whoever made
            // the memory dumpable then would show it to the container.
            hidden.stay();
            return made;
        }
        let inside = self.entrance.enter_pids(self.init)?;
        let (channel, theirs) = pair()?;
        let child = self.entrance.spawn(self.init, || self.go(Voice::Channel(&theirs), Birth::INSIDE))?;
        drop(inside);
        drop(hidden);
        drop(theirs);
        let asked = self.notify.map(|notify| (notify, self.init));
        let mut heard = Heard { asked, born: Some(child), ..Heard::default() };
        if let Err(error) = heard.listen(&channel, self.patience) {
            // Whoever waits for an answer must not wait any longer.
            drop(channel);
            heard.born.iter().for_each(give_up);
            return Err(error);
        }
        heard.into_process()
    }

    /// Makes it in the caller's memory. Nothing if that cannot be.
    fn shared(&self) -> Option<Result<ExecProcess, Error>> {
        let failed = |e| Err(Error::sys("clone", "a process in the container", e));
        let cgroup = self.entrance.folder();
        let held = match cgroup {
            Some(_) => Some(self.entrance.hold_group()?),
            None => None,
        };
        let maker = match self.entrance.maker(|| self.in_common()) {
            Ok(maker) => maker,
            Err(error) => return Some(failed(error)),
        };
        if !self.suits(maker) {
            return None;
        }
        let (letters, birth) = (Letters::new(), Birth::by(maker));
        let left = spawn_child(self.patience, maker, cgroup, || self.go(Voice::Letters(&letters), birth));
        drop(held);
        match left {
            Ok(left) => Some(visited(left, &letters)),
            // The container has divided its cgroup, see `Entrance::spawn`.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && cgroup.is_some() => None,
            Err(error) => Some(failed(error)),
        }
    }

    /// What processes of this container have in common, the most first.
    fn in_common(&self) -> Vec<Common<'_>> {
        let least = Common { process: self.target, namespaces: 0, bounding: self.bounding(), filter: None };
        // Without a procfs of its own there is no way to the host's from inside.
        if lists(self.linux, LinuxNamespaceType::User)
            || !lists(self.linux, LinuxNamespaceType::Mount)
            || self.entrance.proc().is_none()
        {
            return vec![least];
        }
        let mut filter = self.filter.filter(|filter| !self.needs_more() && lets_begin(filter));
        let mut namespaces = common(|_| true);
        if self.entrance.folder().is_some() {
            // It takes clone3(2) to make a process in a cgroup, and the kernel lets nobody in who is in a cgroup namespace below the one
            // that he comes from.
            filter = None;
            namespaces -= CloneFlags::CLONE_NEWCGROUP;
        }
        let filter = filter.map(|f| (f.program(), f.flags()));
        vec![Common { namespaces: namespaces.bits(), filter, ..least }, least]
    }

    /// Whether this process can be one of its children.
    fn suits(&self, maker: &Maker) -> bool {
        self.bounding() & !maker.bounding() == 0 && !(maker.filters() && self.needs_more())
    }

    /// Whether this process makes other system calls than [`CALLS`].
    fn needs_more(&self) -> bool {
        self.process.scheduler().is_some()
            || self.process.io_priority().is_some()
            || self
                .linux
                .is_some_and(|linux| linux.memory_policy().is_some() || linux.personality().is_some())
    }

    /// The bounding set that the process is to have. Who joins a user namespace has a whole one there.
    fn bounding(&self) -> u64 {
        if lists(self.linux, LinuxNamespaceType::User) {
            EVERYTHING
        } else {
            capabilities::bounding(&self.process)
        }
    }

    /// All that one process does by itself.
    fn go(&self, voice: Voice<'_>, birth: Birth) {
        if let Some(ready) = self.guide(voice, birth) {
            self.visitor(&ready);
        }
    }

    /// Makes two processes with a copy of the caller's memory.
    fn guided(&self) -> Result<ExecProcess, Error> {
        let (channel, theirs) = pair()?;
        let guide = self.entrance.spawn(self.init, || self.guide_and_give_birth(&theirs))?;
        drop(theirs);
        let mut heard = Heard { asked: self.notify.map(|notify| (notify, self.init)), ..Heard::default() };
        if let Err(error) = heard.listen(&channel, self.patience) {
            // Whoever waits for an answer must not wait any longer.
            drop(channel);
            give_up(&guide);
            heard.born.iter().for_each(give_up);
            return Err(error);
        }
        reap(guide.pidfd.as_fd());
        heard.into_process()
    }

    fn guide_and_give_birth(&self, channel: &Channel) {
        let Some(ready) = self.guide(Voice::Channel(channel), Birth::OUTSIDE) else { return };
        // It shares the guide's memory, which nobody needs any more. See there what that saves.
        let born = if CAN_SHARE && self.notify.is_none() {
            spawn_sibling(self.patience, || self.visitor(&ready))
        } else {
            Clone3 { flags: libc::CLONE_PARENT as u64, cgroup: None }.spawn(|| self.visitor(&ready))
        };
        match born {
            Ok(Child { pid, pidfd }) => ready.voice.say(Report::Born(pid), Some(pidfd.as_raw_fd())),
            Err(e) => ready.voice.fail(Error::sys("clone", "a process in the container", e)),
        }
    }

    /// The guide's part, up to the birth of the visitor. Nothing when it failed, which it has told then.
    fn guide<'v>(&'v self, voice: Voice<'v>, birth: Birth) -> Option<Ready<'v>> {
        // As long as the way in is open.
        if let Err(error) = self.enter_cgroup().and_then(|()| self.take_from_host(&voice)) {
            voice.fail(error);
            return None;
        }
        let (voice, target) = match self.arrange(&voice, birth) {
            Ok((moved, target)) => (moved.unwrap_or(voice), target),
            Err(error) => {
                voice.fail(error);
                return None;
            }
        };
        match self.enter(&voice, target, birth) {
            Ok((identity, launch, terminal)) => Some(Ready { identity, launch, terminal, voice }),
            Err(error) => {
                voice.fail(error);
                None
            }
        }
    }

    /// What takes the host's procfs.
    fn take_from_host(&self, voice: &Voice<'_>) -> Result<(), Error> {
        credentials::set_dumpable(false).map_err(|e| Error::sys("set", "dumpable", e))?;
        let write = |path: &Path, text: &[u8]| match self.entrance.proc() {
            Some(proc) => proc.write(path, text),
            None => procfs::write(path, text),
        };
        limits::set_oom_score(0, &self.process, &write, &mut |text| voice.say(Report::Warning(text), None))?;
        labels::set_for_exec(&self.process, &write)
    }

    /// The descriptors that this process keeps, at their new places.
    fn arrange(
        &self,
        voice: &Voice<'_>,
        birth: Birth,
    ) -> Result<(Option<Voice<'static>>, Option<OwnedFd>), Error> {
        let channel = voice.channel().map(Channel::as_fd);
        let target = (birth.namespaces != common(|_| true)).then_some(self.target);
        let extra: Vec<_> = channel.into_iter().chain(target).collect();
        let mut moved = streams::arrange(&self.stdio, Some(self.target), &extra, &self.tie.handed)?;
        let channel = channel.and_then(|_| moved.next()).map(Channel::connected);
        Ok((channel.map(|channel| Voice::Own(ManuallyDrop::new(channel))), moved.next()))
    }

    fn enter_cgroup(&self) -> Result<(), Error> {
        let initial = self.process.exec_cpu_affinity().as_ref().and_then(|a| a.initial().as_ref());
        scheduling::set_affinity("process.execCPUAffinity.initial", initial)?;
        self.entrance.enter()?;
        if self.process.exec_cpu_affinity().is_none() {
            scheduling::reset_affinity();
        }
        Ok(())
    }

    /// Joins the container and becomes the user.
    fn enter(
        &self,
        voice: &Voice<'_>,
        target: Option<OwnedFd>,
        birth: Birth,
    ) -> Result<(Identity<'_>, Launch, Option<OwnedFd>), Error> {
        process::reset_signals();
        credentials::die_with_parent()
            .map_err(|e| Error::sys("set", "the signal at the parent's death", e))?;
        let mut warn = |text: String| voice.say(Report::Warning(text), None);
        let filter = self.filter.filter(|_| !birth.filtered);
        let mut identity = Identity::of_process(&self.process, filter, &mut warn)?;
        identity.keep_groups(self.keep_groups);
        identity.inherit_bounding(birth.bounding);
        let user = lists(self.linux, LinuxNamespaceType::User);
        if user {
            // What the host's rights are needed for.
            limits::set_rlimits(0, &self.process, &mut warn)?;
            self.set_priorities(birth)?;
        }
        if let Some(target) = target {
            let root =
                (!lists(self.linux, LinuxNamespaceType::Mount)).then(|| self.root_of(&target)).transpose()?;
            join(target, self.linux, birth)?;
            root.iter().try_for_each(change_root)?;
        }
        if user {
            credentials::become_root().map_err(|e| Error::sys("become", "root of the user namespace", e))?;
        }
        umask(Mode::empty());
        let root = Root::open(Path::new("/"))?;
        identity.look_up(&self.process, &root)?;
        let launch = Launch::new(&self.process, || {
            let home = users::home(&root, identity.uid());
            // Elsewhere to tell it takes as long as to look it up. What is no path the caller need not keep.
            if matches!(voice, Voice::Letters(_)) && home.len() < libc::PATH_MAX as usize {
                voice.say(Report::Home(home.clone()), None);
            }
            home
        })?;
        let terminal = if self.process.terminal() == Some(true) {
            let channel = voice
                .channel()
                .ok_or_else(|| Error::sys("hand over", "the terminal", io::ErrorKind::NotConnected.into()))?;
            Some(console::open(&root, &self.process, self.tie.bare_lines, channel)?)
        } else {
            streams::reopen_null(&root, &self.stdio)?;
            streams::give_to(identity.uid())?;
            None
        };
        drop(root);
        let affinity =
            self.process.exec_cpu_affinity().as_ref().and_then(|a| a.cpu_affinity_final().as_ref());
        scheduling::set_affinity("process.execCPUAffinity.final", affinity)?;
        if !user {
            limits::set_rlimits(0, &self.process, &mut warn)?;
            self.set_priorities(birth)?;
        }
        self.linux.map_or(Ok(()), scheduling::set_own)?;
        identity.become_user(self.process.cwd())?;
        identity.confine_first()?;
        Ok((identity, launch, terminal))
    }

    /// The root of a container whose mount namespace has another.
    fn root_of(&self, target: &OwnedFd) -> Result<Root, Error> {
        let root = Root::open(Path::new(&format!("/proc/{}/root", self.init)))?;
        // If it is still there, the number was its own.
        pidfd_kill(target.as_fd(), 0).map_err(|e| Error::sys("look for", "the container", e))?;
        Ok(root)
    }

    /// Those of the process, or of its guide, from which it inherits them.
    fn set_priorities(&self, birth: Birth) -> Result<(), Error> {
        if !birth.inside && scheduling::is_not_inherited(&self.process) {
            return Ok(());
        }
        scheduling::set_priorities(0, &self.process)
    }

    /// The visitor's part.
    fn visitor(&self, ready: &Ready<'_>) {
        let Err(error) = self.visit(ready);
        ready.voice.fail(error);
    }

    fn visit(&self, ready: &Ready<'_>) -> Result<Infallible, Error> {
        tie_to_parent(&self.tie)?;
        setsid().map_err(|e| Error::sys("start", "a session", e.into()))?;
        if let Some(terminal) = &ready.terminal {
            console::take(terminal)?;
            streams::give_to(ready.identity.uid())?;
        }
        ready.identity.confine_last(ready.voice.channel())?;
        Err(ready.launch.run())
    }
}

/// What has become of one that shared the caller's memory.
fn visited(left: Left, letters: &Letters<Report>) -> Result<ExecProcess, Error> {
    let said = letters.of(&left);
    let Left { child, late, .. } = left;
    let mut heard = Heard { born: Some(child), ..Heard::default() };
    said.into_iter().for_each(|report| heard.hear(report, None));
    let mut ended = heard.outcome();
    if late {
        let slow = io::Error::from(io::ErrorKind::TimedOut);
        ended = ended.and(Err(Error::sys("wait for", "the new process to run its program", slow)));
    }
    if let Err(error) = ended {
        heard.born.iter().for_each(give_up);
        return Err(error);
    }
    heard.into_process()
}

fn pair() -> Result<(Channel, Channel), Error> {
    Channel::pair().map_err(|e| Error::sys("make", "a socket pair", e))
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

/// Those of them that are wanted.
fn common(wanted: impl Fn(LinuxNamespaceType) -> bool) -> CloneFlags {
    let flags = COMMON.iter().filter(|(kind, _)| wanted(*kind)).map(|(_, flag)| *flag);
    flags.collect()
}

/// Joins all of the container's namespaces at once but those that it was born in; the kernel takes the user namespace first. The PID
/// namespace is joined for children, and first: it may be the pod's, which a user namespace has no right to. Joining one's own again is
/// allowed, but for the user namespace. Who was born inside is in its PID namespace already.
///
/// Who is not root of the machine has a right to none but together with the user namespace, and to none that the container
/// inherited from its creator; those are left as they are.
fn join(target: OwnedFd, linux: Option<&Linux>, birth: Birth) -> Result<(), Error> {
    let failed = |e: nix::Error| Error::sys("join", "the container's namespaces", e.into());
    let user = lists(linux, LinuxNamespaceType::User);
    let for_children = if birth.inside { Ok(()) } else { setns(&target, CloneFlags::CLONE_NEWPID) };
    let mut all = match for_children {
        Err(nix::Error::EPERM) if user => {
            let own = common(|kind| lists(linux, kind));
            if lists(linux, LinuxNamespaceType::Pid) { own | CloneFlags::CLONE_NEWPID } else { own }
        }
        other => other.map(|()| common(|_| true) - birth.namespaces).map_err(failed)?,
    };
    if user {
        all |= CloneFlags::CLONE_NEWUSER;
    }
    if lists(linux, LinuxNamespaceType::Time) {
        all |= CLONE_NEWTIME;
    }
    setns(target, all).map_err(failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxSeccomp};

    use super::super::seccomp::{Shape, default_profile};
    use super::*;

    fn filter(profile: &LinuxSeccomp) -> Filter {
        Filter::compile(profile, Shape::FewCalls).unwrap()
    }

    #[test]
    fn who_has_the_default_profile_can_have_it_from_the_beginning() {
        for names in [vec![], vec![Capability::Chown, Capability::Kill], vec![Capability::SysAdmin]] {
            let mut capabilities = LinuxCapabilities::default();
            capabilities.set_bounding(Some(names.into_iter().collect()));
            assert!(lets_begin(&filter(&default_profile(&capabilities))));
        }
    }

    #[test]
    fn who_is_forbidden_what_it_takes_to_begin_gets_the_filter_last() {
        let profile = |call: &str| {
            let rule = |more: &str| {
                let text = format!(
                    r#"{{"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{{"names": ["{call}"], "action": "SCMP_ACT_ERRNO"{more}}}]}}"#
                );
                serde_json::from_str::<LinuxSeccomp>(&text).unwrap()
            };
            (rule(""), rule(r#", "args": [{"index": 0, "value": 77, "op": "SCMP_CMP_EQ"}]"#))
        };
        for call in ["setsid", "capset", "execve", "futex", "exit", "openat2"] {
            let (always, sometimes) = profile(call);
            assert!(!lets_begin(&filter(&always)) && !lets_begin(&filter(&sometimes)), "{call}");
        }
        let (always, sometimes) = profile("mkdir");
        assert!(lets_begin(&filter(&always)) && lets_begin(&filter(&sometimes)));
        // Of the call that makes it the arguments are known.
        let (always, sometimes) = profile("clone");
        assert!(!lets_begin(&filter(&always)) && lets_begin(&filter(&sometimes)));
    }
}
