//! The first process of a container, from clone3 to execve. Runs in the child.

use std::convert::Infallible;
use std::io;
use std::iter;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{geteuid, sethostname, setsid};
use oci_spec::runtime::{Hook, Linux, LinuxNamespaceType, Process, Spec, State};

use super::channel::{Channel, Order, Report};
use super::hooks::{self, Moment};
use super::identity::{Identity, tie_to_parent};
use super::mounts::Mounter;
use super::namespaces::Namespaces;
use super::placement::Placement;
use super::program::{Launch, environment};
use super::root::Kind;
use super::sources::Sources;
use super::timings::{Timings, Watch};
use super::{
    Error, Root, Stdio, Tie, console, devices, labels, limits, procfs, protect, root_mount, scheduling,
    streams, time_namespace, users,
};
use crate::rootfs::Rootfs;
use crate::sys::mount::Attributes;
use crate::sys::shim_process::set_domainname;
use crate::sys::{credentials, process};

/// Everything that the child needs, worked out by the parent.
pub struct Init<'a> {
    /// The whole spec.
    pub spec: &'a Spec,
    /// Its `linux` part.
    pub linux: &'a Linux,
    /// Its `process` part.
    pub process: &'a Process,
    /// The root file system.
    pub rootfs: &'a Rootfs,
    /// The bundle.
    pub bundle: &'a Path,
    /// Standard streams.
    pub stdio: Stdio,
    /// Namespaces to make and join.
    pub namespaces: Namespaces,
    /// Mounts that the parent made.
    pub sources: Sources,
    /// The cgroup's folders for a cgroup mount.
    pub cgroup_folders: Vec<(String, PathBuf)>,
    /// What binds it to the parent.
    pub tie: Tie,
    /// What hooks are told.
    pub state: State,
    /// See [`super::Create`].
    pub no_pivot: bool,
    /// The parent sends a filter.
    pub filtered: bool,
}

impl Init<'_> {
    /// Sets up, waits, executes. Returns only when that failed, and the parent has been told then. `begun` is when the parent
    /// set about its birth.
    pub fn run(&self, channel: &Channel, begun: Instant) {
        // The descriptors of the namespaces do not survive the arranging.
        // A helper has joined them already.
        let joined = if self.namespaces.need_helper() { Ok(()) } else { self.namespaces.join() };
        match joined.and_then(|()| self.arrange(channel)) {
            Ok((mut channel, gate, sources)) => {
                let Err(error) = self.set_up(&mut channel, gate, sources, Watch::since(begun));
                // Without a parent there is nobody to tell.
                let _ = channel.report(&Report::Failed(error.into()), None);
            }
            Err(error) => {
                let _ = channel.report(&Report::Failed(error.into()), None);
            }
        }
    }

    fn arrange(&self, channel: &Channel) -> Result<(Channel, Option<OwnedFd>, Sources), Error> {
        let gate = self.tie.gate.as_ref().map(AsFd::as_fd);
        let extra: Vec<_> =
            iter::once(channel.as_fd()).chain(gate).chain(self.sources.descriptors()).collect();
        let mut moved = streams::arrange(&self.stdio, None, &extra, &self.tie.handed)?;
        let channel = moved.next().map(Channel::connected);
        let channel = channel
            .ok_or_else(|| Error::sys("arrange", "descriptors", io::ErrorKind::NotConnected.into()))?;
        let gate = gate.and_then(|_| moved.next());
        Ok((channel, gate, self.sources.at(moved)))
    }

    /// Waits for the maps of a new user namespace and becomes its root.
    fn enter_user_namespace(&self, cgroup: &mut CgroupGate<'_>) -> Result<(), Error> {
        // The maps are there as well then.
        cgroup.wait()?;
        self.enter_time_namespace()?;
        credentials::become_root().map_err(|e| Error::sys("become", "root of the user namespace", e))?;
        if self.namespaces.is_new(LinuxNamespaceType::Ipc) {
            unshare(CloneFlags::CLONE_NEWIPC)
                .map_err(|e| Error::sys("unshare", "IPC namespace", e.into()))?;
        }
        // Only now may a user without rights have it: newuidmap(1) looks at whose process this is.
        set_undumpable()
    }

    fn enter_time_namespace(&self) -> Result<(), Error> {
        if self.namespaces.is_new(LinuxNamespaceType::Time) {
            time_namespace::enter(self.linux)
        } else {
            Ok(())
        }
    }

    fn set_up(
        &self,
        channel: &mut Channel,
        gate: Option<OwnedFd>,
        mut sources: Sources,
        mut watch: Watch,
    ) -> Result<Infallible, Error> {
        let mut timings = Timings { namespaces: watch.lap(), ..Timings::default() };
        process::reset_signals();
        let user = self.namespaces.lists(LinuxNamespaceType::User);
        if !user || geteuid().is_root() {
            set_undumpable()?;
        }
        credentials::die_with_parent()
            .map_err(|e| Error::sys("set", "the signal at the parent's death", e))?;
        setsid().map_err(|e| Error::sys("start", "a session", e.into()))?;
        let mut cgroup = CgroupGate { channel, ready: false, waited: Duration::ZERO };
        if user {
            self.enter_user_namespace(&mut cgroup)?;
        } else {
            self.enter_time_namespace()?;
        }
        self.name()?;
        let mut warn = |text: String| {
            // A warning that cannot be delivered is not worth more than the container.
            let _ = channel.report(&Report::Warning(text), None);
        };
        let mut identity = Identity::of_process(self.process, None, &mut warn)?;
        identity.keep_groups(Identity::keeps_groups(self.spec));
        umask(Mode::empty());
        timings.process += watch.lap();
        let waited = cgroup.waited;
        let root = self.mount_root(&mut sources)?;
        self.mount_all(&root, &mut cgroup, sources)?;
        let terminal = self.open_terminal(&root, channel)?;
        protect::mask(&root, self.linux)?;
        protect::make_readonly(&root, self.linux)?;
        protect::set_sysctls(self.linux)?;
        let waited = cgroup.waited.saturating_sub(waited);
        timings.mounts = watch.lap().saturating_sub(waited);
        if !user {
            limits::set_oom_score(0, self.process, &procfs::write, &mut warn)?;
        }
        labels::set_for_exec(self.process, &procfs::write)?;
        identity.look_up(self.process, &root)?;
        let launch = self.launch(gate.is_some(), || users::home(&root, identity.uid()))?;
        timings.process += watch.lap();
        cgroup.wait()?;
        // What the parent has worked out and set meanwhile.
        if self.filtered {
            identity.set_filter(channel.await_filter()?);
        }
        Placement::of_files(channel.await_order_with(Order::LimitsSet)?).enter()?;
        // The parent has changed it before that order, see `begin_elsewhere`.
        scheduling::reset_affinity();
        if self.namespaces.is_new(LinuxNamespaceType::Cgroup) {
            unshare(CloneFlags::CLONE_NEWCGROUP)
                .map_err(|e| Error::sys("unshare", "cgroup namespace", e.into()))?;
        }
        timings.cgroups = watch.lap() + waited;
        let start_hooks = self.hooks_of_host(channel, &root, identity.uid())?;
        timings.process += watch.lap();
        self.enter_root(root)?;
        timings.mounts += watch.lap();
        self.take_streams(terminal, identity.uid())?;
        if !user {
            limits::set_rlimits(0, self.process, &mut warn)?;
            scheduling::set_priorities(0, self.process)?;
        }
        scheduling::set_own(self.linux)?;
        identity.become_user(self.process.cwd())?;
        tie_to_parent(&self.tie)?;
        if gate.is_some() {
            launch.as_ref().map_or(Ok(()), Launch::find)?;
        }
        timings.process += watch.lap();
        channel
            .report(&Report::Ready(timings), None)
            .map_err(|e| Error::sys("report to", "the parent", e))?;
        self.execute(channel, gate, start_hooks, &identity, launch)
    }

    /// Waits for the order to start, and does.
    fn execute(
        &self,
        channel: &mut Channel,
        gate: Option<OwnedFd>,
        start_hooks: Option<StartHooks>,
        identity: &Identity<'_>,
        launch: Option<Launch>,
    ) -> Result<Infallible, Error> {
        match gate {
            Some(gate) => {
                process::end_at_sigterm();
                *channel = await_start_at(&gate)?;
            }
            None => channel.await_order(Order::Start)?,
        }
        let moment = Moment::StartContainer;
        match start_hooks {
            // Their programs are the container's, so they may do no more than its own program.
            Some(StartHooks { hooks, state }) if identity.asks() => {
                identity.confine(channel)?;
                hooks::run(&hooks, moment, &state)?;
            }
            Some(StartHooks { hooks, state }) => {
                hooks::run_confined(&hooks, moment, &state, &|| identity.confine(channel))?;
                identity.confine(channel)?;
            }
            None => identity.confine(channel)?,
        }
        Err(launch
            .map_or_else(|| Error::spec("process", "it is not set: there is nothing to start"), |l| l.run()))
    }

    /// The program. A container that waits at a gate may have none until somebody wants it started.
    fn launch(&self, gated: bool, home: impl FnOnce() -> String) -> Result<Option<Launch>, Error> {
        if gated && self.process.args().as_ref().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        Launch::new(self.process, home).map(Some)
    }

    fn hooks(&self, moment: Moment) -> &[Hook] {
        hooks::list(self.spec, moment)
    }

    /// Lets the parent run its hooks and runs those that belong to the container's namespaces but find their programs
    /// on the host. Returns the later ones, if there are any.
    fn hooks_of_host(&self, channel: &Channel, root: &Root, uid: u32) -> Result<Option<StartHooks>, Error> {
        if hooks::list(self.spec, Moment::Prestart).len() + self.hooks(Moment::CreateRuntime).len() > 0 {
            channel.report(&Report::Hooks, None).map_err(|e| Error::sys("report to", "the parent", e))?;
            channel.await_order(Order::HooksDone)?;
        }
        if self.hooks(Moment::CreateContainer).is_empty() && self.hooks(Moment::StartContainer).is_empty() {
            return Ok(None);
        }
        let mut state = self.state.clone();
        // The host's /proc knows this process by the number that the host uses.
        let own = std::fs::read_link("/proc/self").map_err(|e| Error::sys("read", "/proc/self", e))?;
        state.set_pid(own.to_str().and_then(|p| p.parse().ok()));
        // They begin where the root will be, as with other runtimes: relative paths are those of the container's files.
        nix::unistd::fchdir(root.fd()).map_err(|e| Error::sys("enter", "the root file system", e.into()))?;
        hooks::run(self.hooks(Moment::CreateContainer), Moment::CreateContainer, &state)?;
        Ok(Some(StartHooks { hooks: self.start_hooks(root, uid), state }))
    }

    /// The hooks of the start. They have the environment of the program unless they bring their own, as with runc.
    fn start_hooks(&self, root: &Root, uid: u32) -> Vec<Hook> {
        let mut hooks = self.hooks(Moment::StartContainer).to_vec();
        for hook in hooks.iter_mut().filter(|hook| hook.env().is_none()) {
            hook.set_env(Some(environment(self.process, || users::home(root, uid))));
        }
        hooks
    }

    /// Sets the names of the container's UTS namespace.
    fn name(&self) -> Result<(), Error> {
        let given = |name: &'_ Option<String>| name.clone().filter(|n| !n.is_empty());
        let uts = self.namespaces.lists(LinuxNamespaceType::Uts);
        let refuse = |field| Err(Error::spec(field, "it needs a UTS namespace of the container's own"));
        if let Some(name) = given(self.spec.hostname()) {
            if !uts {
                return refuse("hostname");
            }
            sethostname(&name).map_err(|e| Error::sys("set host name", name, e.into()))?;
        }
        if let Some(name) = given(self.spec.domainname()) {
            if !uts {
                return refuse("domainname");
            }
            set_domainname(&name).map_err(|e| Error::sys("set domain name", name, e))?;
        }
        Ok(())
    }

    fn mount_all(&self, root: &Root, cgroup: &mut CgroupGate<'_>, mut sources: Sources) -> Result<(), Error> {
        let mut mounter = Mounter::new(root, self.bundle, &self.cgroup_folders);
        mounter.label = labels::of_mounts(self.linux);
        for (at, mount) in self.spec.mounts().iter().flatten().enumerate() {
            if matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) {
                cgroup.wait()?;
            }
            mounter.mount(mount, sources.take(at))?;
        }
        devices::populate(root, self.spec, &mut sources)?;
        // A working folder that the image lacks is made, as other runtimes do.
        if root.open_path(self.process.cwd(), nix::fcntl::OFlag::O_PATH).is_err() {
            root.ensure(self.process.cwd(), Kind::Folder)?;
        }
        if self.process.terminal() == Some(true) {
            root.ensure(Path::new("/dev/console"), Kind::File)?;
        }
        mounter.finish()
    }

    fn open_terminal(&self, root: &Root, channel: &Channel) -> Result<Option<std::os::fd::OwnedFd>, Error> {
        if self.process.terminal() != Some(true) {
            return Ok(None);
        }
        let slave = console::open(root, self.process, self.tie.bare_lines, channel)?;
        console::bind_console(root, &slave)?;
        Ok(Some(slave))
    }

    fn shares_mounts(&self) -> bool {
        !self.namespaces.lists(LinuxNamespaceType::Mount)
    }

    fn mount_root(&self, sources: &mut Sources) -> Result<Root, Error> {
        if self.shares_mounts() {
            return root_mount::mount_root_here(self.rootfs, self.bundle);
        }
        let (wanted, label) = (self.linux.rootfs_propagation().as_deref(), labels::of_mounts(self.linux));
        root_mount::mount_root(self.rootfs, self.bundle, wanted, label, sources.root.take())
    }

    /// Changes into the root, in which nothing has to be made any more.
    fn enter_root(&self, root: Root) -> Result<(), Error> {
        let wanted = self.linux.rootfs_propagation().as_deref();
        if self.shares_mounts() {
            root_mount::change_root(&root)?;
        } else if self.no_pivot {
            root_mount::move_over(&root, wanted)?;
        } else {
            root_mount::pivot(&root, wanted)?;
        }
        drop(root);
        self.finish_root()
    }

    /// Makes the standard streams those of the user's program.
    fn take_streams(&self, terminal: Option<OwnedFd>, uid: u32) -> Result<(), Error> {
        match terminal {
            Some(terminal) => console::take(&terminal)?,
            None => streams::reopen_null(&Root::open(Path::new("/"))?, &self.stdio)?,
        }
        streams::give_to(uid)
    }

    /// Makes the root read-only, after the last thing that had to be created in it.
    fn finish_root(&self) -> Result<(), Error> {
        if self.spec.root().as_ref().and_then(|r| r.readonly()) != Some(true) {
            return Ok(());
        }
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
        let failed = |e| Error::sys("make read-only", "/", e);
        let root = nix::fcntl::open("/", flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() }
            .apply(root.as_fd(), false)
            .map_err(failed)
    }
}

/// What runs in the container before its program.
struct StartHooks {
    hooks: Vec<Hook>,
    state: State,
}

fn set_undumpable() -> Result<(), Error> {
    credentials::set_dumpable(false).map_err(|e| Error::sys("set", "dumpable", e))
}

/// Waits until somebody comes to the gate and says start. Who leaves without a word is not counted.
fn await_start_at(gate: &OwnedFd) -> Result<Channel, Error> {
    loop {
        match accept4(gate.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => {
                let channel = Channel::connected(process::adopt_fd(fd));
                if channel.await_order(Order::Start).is_ok() {
                    return Ok(channel);
                }
            }
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(e) => return Err(Error::sys("wait for", "the start", e.into())),
        }
    }
}

/// The parent makes the cgroup while the child mounts; the child waits only when it needs it.
struct CgroupGate<'a> {
    channel: &'a Channel,
    ready: bool,
    /// What the wait took.
    waited: Duration,
}

impl CgroupGate<'_> {
    fn wait(&mut self) -> Result<(), Error> {
        if !self.ready {
            let begun = Instant::now();
            self.channel.await_order(Order::CgroupReady)?;
            self.ready = true;
            self.waited = begun.elapsed();
        }
        Ok(())
    }
}
