//! Making a container: the parent's side.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxDeviceCgroup, LinuxNamespaceType, LinuxResources, LinuxSeccomp, Spec, State,
};

use super::birth::give_birth;
use super::channel::{Channel, Order, Report};
use super::hooks::{self, Moment};
use super::init::Init;
use super::namespaces::Namespaces;
use super::notify::Notify;
use super::placement::Placement;
use super::seccomp::{Filter, Shape, rules_of};
use super::sources::Sources;
use super::user_namespace::{Maps, outer_uid};
use super::{
    Container, Create, Error, Timings, labels, limits, may_mount, mounts, procfs, scheduling, streams,
    time_namespace,
};
use crate::cgroup::{Cgroups, Driver, Version, rootless};
use crate::sys::process::{Child, pidfd_kill};

/// The hierarchies do not change while a process lives, and looking for them costs more than a folder in them.
pub fn cgroups() -> Result<&'static Cgroups, Error> {
    static CGROUPS: OnceLock<Cgroups> = OnceLock::new();
    match CGROUPS.get() {
        Some(cgroups) => Ok(cgroups),
        None => {
            let found = Cgroups::detect()?;
            Ok(CGROUPS.get_or_init(|| found))
        }
    }
}

/// The same, for cgroups that somebody else makes.
pub fn cgroups_of(driver: Driver) -> Result<Cow<'static, Cgroups>, Error> {
    cgroups().map(|found| match driver {
        Driver::Cgroupfs => Cow::Borrowed(found),
        Driver::Systemd | Driver::Inherited => Cow::Owned(found.with_driver(driver)),
    })
}

/// The cgroups for a new container, and its path in them. Who is not root of the machine, asks for none by path and may
/// make none gets none, as with crun and runc.
fn place(
    create: &Create<'_>,
    linux: &Linux,
    resources: &mut Resources,
    warnings: &mut Vec<String>,
) -> Result<(Cow<'static, Cgroups>, String), Error> {
    let cgroups = cgroups_of(create.driver)?;
    let path = cgroup_path(&cgroups, create.id, linux.cgroups_path().as_deref())?;
    let wanted = linux.cgroups_path().is_some() || create.driver != Driver::Cgroupfs;
    if wanted || !rootless() || cgroups.may_make(&path, &resources.early)? {
        return Ok((cgroups, path));
    }
    let limits = std::mem::take(resources).names();
    if !limits.is_empty() {
        let limits = limits.join(", ");
        warnings.push(format!("no cgroup may be made at {path}: without effect are the limits of {limits}"));
    }
    Ok((cgroups_of(Driver::Inherited)?, String::new()))
}

/// See [`super::create`].
pub fn create(create: Create<'_>) -> Result<Container, Error> {
    let spec = create.spec;
    let process = spec.process().as_ref().ok_or_else(|| Error::spec("process", "it is missing"))?;
    let linux = spec.linux().as_ref().ok_or_else(|| Error::spec("linux", "it is missing"))?;
    refuse_unsupported(spec, create.tie.outlives)?;
    labels::check(process)?;
    let mut resources = Resources::of_spec(linux.resources().clone().unwrap_or_default());
    let mut warnings: Vec<String> = labels::warn_of_mounts(linux).into_iter().collect();
    warnings.extend(mounts::without_effect(spec));
    let (cgroups, path) = place(&create, linux, &mut resources, &mut warnings)?;
    let namespaces = Namespaces::of_spec(spec)?;
    time_namespace::check(linux, namespaces.is_new(LinuxNamespaceType::Time))?;
    let init = Init {
        spec,
        linux,
        process,
        rootfs: create.rootfs,
        bundle: create.bundle,
        stdio: create.stdio,
        namespaces,
        sources: Sources::default(),
        cgroup_folders: cgroups.visible_folders(&path)?,
        state: hooks::state(create.id, spec, create.bundle),
        tie: create.tie,
        no_pivot: create.no_pivot,
        filtered: create.rules.is_some() || linux.seccomp().is_some(),
    };
    if early_devices(&cgroups, spec) {
        resources.bring_devices_forward();
    }
    let mut birth = Birth {
        at_once: create.at_once,
        ordered: false,
        cgroups: &cgroups,
        everywhere: create.everywhere && shows_cgroups(spec),
        path,
        made: !cgroups.adopts(),
        resources,
        channel: None,
        child: None,
        console: None,
        warnings,
        timings: Timings::default(),
        spec,
        state: init.state.clone(),
        rules: create.rules,
        notify: None,
        patience: create.patience,
    };
    match birth.run(init) {
        Ok(()) => birth.into_container(),
        Err(error) => {
            birth.undo();
            Err(error)
        }
    }
}

/// The rules of a container's filter: those that were left for later, or the spec's.
fn filter_rules<'a>(spec: &'a Spec, later: Option<&str>) -> Result<Option<Cow<'a, LinuxSeccomp>>, Error> {
    match later {
        Some(text) => serde_json::from_str(text)
            .map(Cow::Owned)
            .map(Some)
            .map_err(|error| Error::spec("linux.seccomp", error.to_string())),
        None => Ok(rules_of(spec).map(Cow::Borrowed)),
    }
}

/// Whether the spec has the container's cgroup mounted.
fn shows_cgroups(spec: &Spec) -> bool {
    spec.mounts().iter().flatten().any(|m| matches!(m.typ().as_deref(), Some("cgroup" | "cgroup2")))
}

/// Gives a child in a user namespace its maps, if that is new, and its streams.
fn settle_in(pid: i32, init: &Init<'_>) -> Result<(), Error> {
    if init.namespaces.is_new(LinuxNamespaceType::User) {
        Maps::of_container(init.linux)?.write_to(pid)?;
    }
    if let Ok(Some(outer)) = outer_uid(pid, init.process.user().uid()) {
        streams::give_to_outer(&init.stdio, outer);
    }
    Ok(())
}

fn refuse_unsupported(spec: &Spec, later_hooks: bool) -> Result<(), Error> {
    let hooks = spec.hooks().as_ref().is_some_and(|h| {
        [h.poststart(), h.poststop()].iter().any(|list| list.as_ref().is_some_and(|l| !l.is_empty()))
    });
    if hooks && !later_hooks {
        return Err(Error::spec("hooks", "nobody would run the hooks after the start of this container"));
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    refuse_relative(spec)?;
    for (field, given) in [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|d| !d.is_empty())),
        ("vm", spec.vm().is_some()),
    ] {
        if given {
            return Err(Error::spec(field, "it is not supported"));
        }
    }
    Ok(())
}

/// Paths in a container that the runtime-spec wants absolute.
fn refuse_relative(spec: &Spec) -> Result<(), Error> {
    let cwd = spec.process().as_ref().map(|p| ("process.cwd", p.cwd().as_path()));
    let list = |field, paths: Option<&Vec<String>>| {
        let paths: Vec<(&str, PathBuf)> = paths.into_iter().flatten().map(|p| (field, p.into())).collect();
        paths
    };
    let linux = spec.linux().as_ref();
    let masked = list("linux.maskedPaths", linux.and_then(|l| l.masked_paths().as_ref()));
    let read_only = list("linux.readonlyPaths", linux.and_then(|l| l.readonly_paths().as_ref()));
    let given = masked.iter().chain(&read_only).map(|(field, path)| (*field, path.as_path()));
    match cwd.into_iter().chain(given).find(|(_, path)| !path.is_absolute()) {
        Some((field, path)) => Err(Error::spec(field, format!("{} is not absolute", path.display()))),
        None => Ok(()),
    }
}

fn cgroup_path(cgroups: &Cgroups, id: &str, wanted: Option<&Path>) -> Result<String, Error> {
    let text =
        wanted.map(|path| path.to_str().ok_or_else(|| Error::spec("linux.cgroupsPath", "it is not UTF-8")));
    Ok(cgroups.path_for(id, text.transpose()?)?)
}

/// Whether the rules for devices may be set while the child is set up: it must not be in the cgroup before it has made its
/// devices, nor run anything else than the program.
fn early_devices(cgroups: &Cgroups, spec: &Spec) -> bool {
    cgroups.version() == Version::V1 && !cgroups.adopts() && !has_hooks(spec)
}

/// Whether anything else than the program runs up to the start.
fn has_hooks(spec: &Spec) -> bool {
    [Moment::Prestart, Moment::CreateRuntime, Moment::CreateContainer, Moment::StartContainer]
        .into_iter()
        .any(|moment| !hooks::list(spec, moment).is_empty())
}

/// Whether a set-up would have to wait for processor time under these limits. A small share alone is not felt, or is the
/// pod's as well.
fn slows_down(cpu: &LinuxCpu) -> bool {
    cpu.quota().is_some_and(|quota| quota > 0)
        || cpu.idle() == Some(1)
        || cpu.realtime_runtime().is_some()
        || cpu.realtime_period().is_some()
}

/// The limits of a container, split by when they are set.
#[derive(Default)]
struct Resources {
    /// While the child mounts.
    early: LinuxResources,
    /// When it is set up: its own CPU limit would slow that down.
    late: LinuxResources,
}

impl Resources {
    /// Whether the spec itself says if the container is killed as a whole.
    fn name_oom_group(&self) -> bool {
        self.early.unified().as_ref().is_some_and(|files| files.contains_key("memory.oom.group"))
    }

    fn of_spec(mut all: LinuxResources) -> Resources {
        super::complete_device_rules(&mut all);
        let rules: Vec<LinuxDeviceCgroup> = all.devices_mut().take().unwrap_or_default();
        let mut late = LinuxResources::default();
        // Which devices a set-up needs is the host's business, too.
        late.set_devices((!rules.is_empty()).then_some(rules));
        if all.cpu().as_ref().is_some_and(slows_down) {
            late.set_cpu(all.cpu_mut().take());
        }
        if let Some(cpu) = late.cpu().as_ref().filter(|c| c.cpus().is_some() || c.mems().is_some()) {
            // The folders are made by what the early part names, and cpuset is on demand.
            let mut sets = LinuxCpu::default();
            sets.set_cpus(cpu.cpus().clone()).set_mems(cpu.mems().clone());
            all.set_cpu(Some(sets));
        }
        Resources { early: all, late }
    }

    /// Whether everything is set early.
    fn late_are_none(&self) -> bool {
        self.late.cpu().is_none() && self.late.devices().is_none()
    }

    /// Has the device rules set early, see [`early_devices`].
    fn bring_devices_forward(&mut self) {
        let rules = self.late.devices_mut().take();
        self.early.set_devices(rules);
    }

    /// What is limited, by its name in the spec; device rules, which a user namespace stands for, left out.
    fn names(&self) -> Vec<&'static str> {
        let all = &self.early;
        let named = |is: bool, name| is.then_some(name);
        [
            named(all.memory().is_some(), "memory"),
            named(self.late.cpu().is_some() || all.cpu().is_some(), "cpu"),
            named(all.pids().is_some(), "pids"),
            named(all.block_io().is_some(), "blockIO"),
            named(all.hugepage_limits().as_ref().is_some_and(|l| !l.is_empty()), "hugepageLimits"),
            named(all.network().is_some(), "network"),
            named(all.rdma().as_ref().is_some_and(|r| !r.is_empty()), "rdma"),
            named(all.unified().as_ref().is_some_and(|u| !u.is_empty()), "unified"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A container on its way.
struct Birth<'a> {
    /// Nobody else orders the start.
    at_once: bool,
    /// The start has been ordered.
    ordered: bool,
    cgroups: &'a Cgroups,
    /// See [`Create::everywhere`]; the cgroup is mounted.
    everywhere: bool,
    path: String,
    /// The cgroup is this container's own. One that systemd refuses to make may be another's.
    made: bool,
    resources: Resources,
    channel: Option<Channel>,
    child: Option<Child>,
    console: Option<OwnedFd>,
    warnings: Vec<String>,
    timings: Timings,
    spec: &'a Spec,
    state: State,
    /// See [`Create::rules`].
    rules: Option<&'a str>,
    notify: Option<Notify>,
    /// See [`Create::patience`].
    patience: Option<Duration>,
}

impl Birth<'_> {
    fn run(&mut self, mut init: Init<'_>) -> Result<(), Error> {
        let user = init.namespaces.lists(LinuxNamespaceType::User);
        init.sources = Sources::prepare(self.spec, init.rootfs, init.bundle, &init.namespaces)?;
        let everywhere = may_mount(init.process) || (self.everywhere && !rootless());
        // v2 wants the cgroup before the process, systemd the process before the cgroup; on v1 it is made while the
        // process mounts.
        let folder: Option<File> = match self.cgroups.version() {
            Version::V2 if !self.cgroups.adopts() => {
                self.cgroups.make(&self.path, &self.resources.early)?;
                self.cgroups.v2_folder(&self.path)?
            }
            _ => None,
        };
        let made = |e| Error::sys("make", "a socket pair", e);
        let (own, theirs) = Channel::pair().map_err(made)?;
        self.patience.map_or(Ok(()), |patience| own.be_patient_for(patience)).map_err(made)?;
        let begun = Instant::now();
        let child =
            give_birth(&init.namespaces, folder.as_ref().map(AsFd::as_fd), || init.run(&theirs, begun))?;
        let child = self.child.insert(child);
        let pid = child.pid;
        scheduling::begin_elsewhere(pid);
        if user {
            settle_in(pid, &init)?;
        }
        // The child holds its copies; the parent's ends of its streams would keep them open.
        drop((init, theirs));
        let channel = self.channel.insert(own);
        if folder.is_none() {
            let annotations = self.spec.annotations().as_ref();
            self.cgroups.adopt(&self.path, pid, &self.resources.early, annotations)?;
            self.made = true;
            self.cgroups.make(&self.path, &self.resources.early)?;
            if everywhere {
                self.cgroups.make_everywhere(&self.path)?;
            }
        }
        let unheard = |e| Error::sys("talk to", "the container's process", e);
        channel.order(Order::CgroupReady).map_err(unheard)?;
        // From here to `await_ready` both processes have work to do.
        if let Some(rules) = filter_rules(self.spec, self.rules)? {
            self.notify = Notify::of_rules(&rules, || self.state.clone())?;
            channel.send_filter(&Filter::compile(&rules, Shape::ManyCalls)?).map_err(unheard)?;
        }
        self.cgroups.apply(&self.path, &self.resources.early)?;
        if !self.resources.name_oom_group() {
            self.cgroups.kill_as_a_group(&self.path)?;
        }
        let placement = Placement::open(&self.cgroups.v1_task_files(&self.path)?)?;
        channel.order_with(Order::LimitsSet, &placement.files()).map_err(unheard)?;
        drop(placement);
        if self.at_once && !user && self.resources.late_are_none() && !has_hooks(self.spec) {
            // It finds the order there when it is ready.
            self.order_start()?;
        }
        self.await_ready()?;
        if user {
            self.set_from_outside()?;
        }
        self.cgroups.tell(&self.path, &self.resources.late)?;
        self.cgroups.apply(&self.path, &self.resources.late)?;
        if self.at_once && !self.ordered { self.order_start() } else { Ok(()) }
    }

    fn order_start(&mut self) -> Result<(), Error> {
        self.ordered = true;
        let ordered = self.channel.as_ref().map_or(Ok(()), |channel| channel.order(Order::Start));
        ordered.map_err(|e| Error::sys("talk to", "the container's process", e))
    }

    /// What takes rights on the host, which a process in a user namespace no longer has.
    fn set_from_outside(&mut self) -> Result<(), Error> {
        let (Some(child), Some(process)) = (&self.child, self.spec.process()) else { return Ok(()) };
        let mut warn = |text| self.warnings.push(text);
        limits::set_oom_score(child.pid, process, &procfs::write, &mut warn)?;
        limits::set_rlimits(child.pid, process, &mut warn)?;
        scheduling::set_priorities(child.pid, process)
    }

    fn await_ready(&mut self) -> Result<(), Error> {
        let (Some(channel), Some(child)) = (&self.channel, &self.child) else { return Ok(()) };
        loop {
            match channel.next_report().map_err(|e| Error::sys("listen to", "the container's process", e))? {
                Some((Report::Ready(timings), _)) => {
                    self.timings = timings;
                    return Ok(());
                }
                Some((Report::Born(_) | Report::Listener(_) | Report::Home(_), _)) => {}
                Some((Report::Warning(text), _)) => self.warnings.push(text),
                Some((Report::Console, fd)) => self.console = fd,
                Some((Report::Hooks, _)) => {
                    self.state.set_pid(Some(child.pid));
                    run_hooks(self.spec, &self.state)?;
                    channel
                        .order(Order::HooksDone)
                        .map_err(|e| Error::sys("talk to", "the container's process", e))?;
                }
                // Only a helper says that.
                Some((Report::Failed(failure), _)) => return Err(failure.into()),
                None => {
                    let status = reap(child.pidfd.as_fd());
                    self.child = None;
                    return Err(Error::Died { status });
                }
            }
        }
    }

    fn into_container(self) -> Result<Container, Error> {
        let (Some(child), Some(channel)) = (self.child, self.channel) else {
            return Err(Error::Died { status: "it was never born".to_owned() });
        };
        Ok(Container {
            pid: child.pid,
            pidfd: child.pidfd,
            console: self.console,
            cgroup: self.path,
            warnings: self.warnings,
            timings: self.timings,
            channel: Some(channel),
            ordered: self.ordered,
            notify: self.notify,
        })
    }

    /// Takes everything back. What fails here would hide the reason for being here.
    fn undo(&mut self) {
        if let Some(child) = self.child.take() {
            let _ = pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL);
            reap(child.pidfd.as_fd());
        }
        if self.made {
            let _ = self.cgroups.remove(&self.path);
        }
    }
}

impl Container {
    /// Lets the container's program run. An error means that it could not be executed; the process has ended then,
    /// and the caller, whose child it is, reaps it.
    pub fn start(&mut self) -> Result<(), Error> {
        let channel =
            self.channel.take().ok_or_else(|| Error::spec("process", "the container was already started"))?;
        if !self.ordered {
            channel.order(Order::Start).map_err(|e| Error::sys("talk to", "the container's process", e))?;
        }
        let asked = self.notify.as_ref().map(|notify| (notify, self.pid, self.pidfd.as_fd()));
        let running = await_program(&channel, asked, &mut self.warnings);
        if running.is_err() {
            // One that was stopped on its way to the program would stay.
            let _ = pidfd_kill(self.pidfd.as_fd(), libc::SIGKILL);
        }
        running
    }
}

/// Waits until the program of a started container runs. `asked` is whom its filter asks, and its process.
fn await_program(
    channel: &Channel,
    asked: Option<(&Notify, i32, BorrowedFd<'_>)>,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    loop {
        match channel.next_report().map_err(|e| Error::sys("listen to", "the container's process", e))? {
            None => return Ok(()),
            Some((Report::Failed(failure), _)) => return Err(failure.into()),
            Some((Report::Warning(text), _)) => warnings.push(text),
            Some((Report::Listener(number), _)) => {
                if let Some((notify, pid, pidfd)) = asked {
                    notify.serve(channel, number, (pid, pidfd), None)?;
                }
            }
            Some(_) => {}
        }
    }
}

/// The hooks of the host that come before a container's root is entered.
fn run_hooks(spec: &Spec, state: &State) -> Result<(), Error> {
    [Moment::Prestart, Moment::CreateRuntime]
        .into_iter()
        .try_for_each(|moment| hooks::run(hooks::list(spec, moment), moment, state))
}

/// Somebody at the gate of a created container, see [`super::Tie`].
pub struct Knock(Channel);

impl Knock {
    /// Connects to the gate at `path`. Fails with "connection refused" when the container's first process is gone or
    /// runs its program already.
    pub fn at(path: &Path) -> Result<Knock, Error> {
        let failed = |e: nix::Error| Error::sys("connect to", path.display().to_string(), e.into());
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        connect(socket.as_raw_fd(), &address).map_err(failed)?;
        Ok(Knock(Channel::connected(socket)))
    }

    /// Lets the container's program run and waits until it does. An error means that it could not be executed, or that
    /// a hook did not want it; the process has ended then. Returns warnings. `asked` is whom the container's filter asks, and its
    /// process.
    pub fn start(self, asked: Option<(&Notify, i32, BorrowedFd<'_>)>) -> Result<Vec<String>, Error> {
        self.0.order(Order::Start).map_err(|e| Error::sys("talk to", "the container's process", e))?;
        let mut warnings = Vec::new();
        await_program(&self.0, asked, &mut warnings).map(|()| warnings)
    }
}

/// Waits for a child that has ended or is about to, also one of which no signal tells, and says how it ended.
pub fn reap(pidfd: BorrowedFd<'_>) -> String {
    loop {
        return match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED | WaitPidFlag::__WALL) {
            Err(nix::Error::EINTR) => continue,
            Ok(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
            Ok(other) => format!("{other:?}"),
            Err(e) => format!("unknown, {}", e.desc()),
        };
    }
}
