//! One container of the shim.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::connection::Asker;
use super::foreign::{Foreign, Order};
use super::oom::OomSense;
use super::pod_users::{self, PodUsers};
use super::proto::{
    ContainerState, CreateRequest, ExitRecord, Failure, FailureKind, Runtime, StateRecord, Status,
};
use super::pump::{Pumped, Source};
use super::record::{self, note};
use super::{failure, pod_init};
use crate::cgroup::{Cgroups, Driver};
use crate::container::{self, Container, Entrance, Stdio, Terms, Tie};
use crate::log::{Stream, Writer};
use crate::sys::process::pidfd_kill;
use crate::sys::shim_process::set_nonblocking;

/// At most so many reads when the output of a container that has exited is collected: a process outside that holds its
/// pipe and writes for ever must not hold up the record of the exit.
const DRAIN_READS: usize = 256;

/// How long a new container may be silent, see [`container::Create::patience`]. Twice this, for its creation and its start, is
/// less than the agent waits.
const BIRTH_PATIENCE: Duration = Duration::from_secs(45);

/// At most so often a line about what a log lost.
const LOSS_NOTES: Duration = Duration::from_secs(60);

/// A container, from its creation until it is deleted.
#[derive(Debug)]
pub(super) struct Slot {
    pub id: String,
    pub bundle: PathBuf,
    pub container: Container,
    /// The runtime that has made it, when that is not our own engine.
    pub foreign: Option<Foreign>,
    /// It has a PID namespace of its own, so that no process of it outlives its init.
    pub own_pids: bool,
    /// Some process of it may look into others of the pod.
    pub may_trace: bool,
    pub status: Status,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub exit: Option<ExitRecord>,
    pub sources: Vec<Source>,
    /// Who waits for its deletion.
    pub deleters: Vec<Asker>,
    /// Its processes are frozen.
    pub paused: bool,
    /// Notices when the kernel kills in it for want of memory.
    pub oom: OomSense,
    start_time: u64,
    log: Option<Writer>,
    loss_noted: Option<Instant>,
    /// What further processes have in common, once there was one.
    pub(super) terms: Option<Rc<Terms>>,
    /// Where they go, likewise.
    pub(super) entrance: Option<Rc<Entrance>>,
    /// What was noted already of those that could not have all that was asked for.
    pub(super) warned: Vec<String>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdin_once: bool,
    pub(super) tty: bool,
}

/// Reads the configuration of a bundle.
pub(super) fn read_spec(bundle: &Path) -> Result<Spec, Failure> {
    let path = config_of(bundle);
    parse(&path, &read(&path)?)
}

fn config_of(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}

fn read(config: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(config)
        .map_err(|error| failure(FailureKind::Invalid, format!("cannot read {}: {error}", config.display())))
}

fn parse(config: &Path, text: &str) -> Result<Spec, Failure> {
    serde_json::from_str(text)
        .map_err(|error| failure(FailureKind::Invalid, format!("{}: {error}", config.display())))
}

/// The configuration, and the text of the filter's rules if it is left out of that: another runtime is given all of it.
fn parts<'a>(config: &Path, text: &'a str, is_foreign: bool) -> Result<(Spec, Option<&'a str>), Failure> {
    let parted = if is_foreign { None } else { container::without_rules(text) };
    match parted {
        Some((spec, rules)) => Ok((spec, Some(rules))),
        None => parse(config, text).map(|spec| (spec, None)),
    }
}

fn open_log(path: &Path, max_size: u64, max_files: u32) -> Result<Writer, Failure> {
    Writer::open(path, max_size, max_files).map_err(|error| {
        failure(FailureKind::Internal, format!("cannot open log {}: {error}", path.display()))
    })
}

impl Slot {
    /// Makes the container; `pids` is the PID namespace to join, if it is to have none of its own, and `users` the user
    /// namespace that the pod's containers share.
    pub fn create(
        request: CreateRequest,
        pids: Option<&Path>,
        users: Option<&PodUsers>,
    ) -> Result<Slot, Failure> {
        let CreateRequest {
            id,
            bundle,
            rootfs,
            log_path,
            log_max_size,
            log_max_files,
            stdin,
            stdin_once,
            tty,
            pod_pids: _,
            pids_of: _,
            runtime,
            start,
        } = request;
        let config = config_of(&bundle);
        let text = read(&config)?;
        let (mut spec, rules) = parts(&config, &text, runtime.is_some())?;
        if let Some(pids) = pids {
            pod_init::join(&mut spec, pids)?;
        }
        pod_users::join(&mut spec, users)?;
        let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
        if terminal != tty {
            return Err(failure(
                FailureKind::Invalid,
                format!("tty is {tty} but process.terminal of the bundle is {terminal}"),
            ));
        }
        let log = log_path.map(|path| open_log(&path, log_max_size, log_max_files)).transpose()?;
        let internal = |what: &str, error: &dyn std::fmt::Display| {
            failure(FailureKind::Internal, format!("cannot {what}: {error}"))
        };
        let (stdio, ours) = pipes(stdin, tty).map_err(|error| internal("make pipes", &error))?;
        let order = Order { id: &id, spec: &spec, rules, rootfs: &rootfs, bundle: &bundle, stdio, tty };
        let (mut container, foreign) = make(order, runtime.as_ref(), start)?;
        let sources = match container.console.take() {
            Some(console) => vec![(console, Stream::Stdout)],
            None => ours.outputs,
        };
        let sources: io::Result<Vec<_>> =
            sources.into_iter().map(|(fd, stream)| Source::new(fd, stream)).collect();
        let start_time = record::start_time(container.pid);
        let slot = Slot {
            own_pids: has_own_pids(&spec),
            may_trace: spec.process().as_ref().is_some_and(container::may_trace),
            status: Status::Created,
            created_at: Timestamp::now(),
            started_at: None,
            exit: None,
            deleters: Vec::new(),
            paused: false,
            oom: OomSense::default(),
            loss_noted: None,
            terms: None,
            entrance: None,
            warned: Vec::new(),
            stdin: ours.stdin,
            start_time: *start_time.as_ref().unwrap_or(&0),
            sources: Vec::new(),
            id,
            bundle,
            container,
            foreign,
            log,
            stdin_once,
            tty,
        };
        // One that is to run at once is recorded when it does: it does not outlive this process.
        let saved = if start { Ok(()) } else { slot.save() };
        match (sources, start_time, saved) {
            (Ok(sources), Ok(_), Ok(())) => Ok(Slot { sources, ..slot }),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                // The caller reaps it, and its cgroup goes with the pod's.
                slot.kill_init();
                Err(internal("record the container", &error))
            }
        }
    }

    /// Lets it run.
    pub fn start(&mut self) -> Result<(), String> {
        match &self.foreign {
            Some(foreign) => foreign.start(),
            None => self.container.start().map_err(|error| error.to_string()),
        }
    }

    /// Signals its first process. One that has ended is fine.
    pub fn signal(&self, number: i32) -> Result<(), String> {
        if let Some(foreign) = &self.foreign {
            let ended = || pidfd_kill(self.container.pidfd.as_fd(), 0).is_err();
            return foreign.kill(number).or_else(|error| if ended() { Ok(()) } else { Err(error) });
        }
        match pidfd_kill(self.container.pidfd.as_fd(), number) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map_err(|error| error.to_string()),
        }
    }

    /// Kills init, whatever its state.
    pub fn kill_init(&self) {
        let _ = pidfd_kill(self.container.pidfd.as_fd(), libc::SIGKILL);
    }

    /// Kills whatever is in its cgroup.
    pub fn kill_rest(&self, cgroups: &Cgroups) {
        if let Err(error) = cgroups.kill(&self.container.cgroup) {
            note!("{}: cannot kill what is left of it: {error}", self.id);
        }
    }

    /// Writes `state.json`.
    pub fn save(&self) -> io::Result<()> {
        let record = StateRecord {
            pid: self.container.pid,
            pid_start_time: self.start_time,
            status: self.status,
            created_at: self.created_at,
            started_at: self.started_at,
        };
        record::replace_json(&self.bundle, "state.json", &record)
    }

    /// Writes `exit.json`, and only then takes the container for stopped.
    pub fn stop(&mut self, exit: ExitRecord) {
        self.status = Status::Stopped;
        if let Err(error) = record::replace_json(&self.bundle, "exit.json", &exit).and_then(|()| self.save())
        {
            note!("{}: cannot record its exit in {}: {error}", self.id, self.bundle.display());
        }
        self.exit = Some(exit);
        self.entrance = None;
        self.stdin = None;
        self.paused = false;
    }

    pub fn state(&self) -> ContainerState {
        ContainerState {
            id: self.id.clone(),
            pid: self.container.pid,
            status: self.status,
            created_at: self.created_at,
            started_at: self.started_at,
            exit: self.exit.clone(),
            paused: self.paused,
        }
    }

    /// Moves output of one source.
    pub fn pump(&mut self, source: usize, scratch: &mut Vec<u8>) -> Pumped {
        let pumped = self.sources[source].pump(self.log.as_mut(), scratch);
        if pumped == Pumped::Ended {
            self.tidy();
        }
        if self.sources.iter().all(|source| source.ended) {
            self.loss_noted = None;
            self.note_losses();
            self.log = None;
        } else {
            self.note_losses();
        }
        pumped
    }

    /// When something is due by the clock.
    pub fn deadline(&self) -> Option<Instant> {
        self.sources.iter().filter_map(Source::deadline).chain(self.oom.deadline()).min()
    }

    /// Drops the sources that have ended and whose clients have everything.
    pub fn tidy(&mut self) {
        self.sources.retain(|source| !source.ended || source.is_held_up());
    }

    /// Moves the output that is there now.
    pub fn drain(&mut self, scratch: &mut Vec<u8>) {
        for source in (0..self.sources.len()).rev() {
            for _ in 0..DRAIN_READS {
                if self.pump(source, scratch) != Pumped::Data {
                    break;
                }
            }
        }
    }

    /// Closes its streams and log for good.
    pub fn close(&mut self, scratch: &mut Vec<u8>) {
        self.drain(scratch);
        if let Some(mut log) = self.log.take() {
            for source in self.sources.drain(..) {
                log.end(source.stream, Timestamp::now());
            }
        }
        self.sources.clear();
    }

    /// Notes what the log lost, the first time at once, then now and then.
    fn note_losses(&mut self) {
        let Some(log) = &mut self.log else { return };
        if self.loss_noted.is_some_and(|noted| noted.elapsed() < LOSS_NOTES) {
            return;
        }
        if let Some(loss) = log.take_loss() {
            let path = log.path().display();
            note!(
                "{}: log {path}: lost {} lines, {} bytes: {}",
                self.id,
                loss.records,
                loss.bytes,
                loss.error
            );
            self.loss_noted = Some(Instant::now());
        }
    }
}

/// Has the container made, by our own engine or by another runtime.
fn make(
    order: Order<'_>,
    runtime: Option<&Runtime>,
    at_once: bool,
) -> Result<(Container, Option<Foreign>), Failure> {
    if let Some(runtime) = runtime {
        return Foreign::create(runtime, order).map(|(foreign, container)| (container, Some(foreign)));
    }
    let Order { id, spec, rules, rootfs, bundle, stdio, tty: _ } = order;
    let (tie, driver) = (Tie::default(), Driver::default());
    let create = container::Create {
        id,
        spec,
        rules,
        rootfs,
        stdio,
        bundle,
        tie,
        driver,
        everywhere: false,
        at_once,
        no_pivot: false,
        patience: Some(BIRTH_PATIENCE),
    };
    let container =
        container::create(create).map_err(|error| failure(FailureKind::Internal, error.to_string()))?;
    for warning in &container.warnings {
        note!("{id}: {warning}");
    }
    Ok((container, None))
}

fn has_own_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|namespaces| {
        namespaces
            .iter()
            .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
    })
}

/// The shim's ends of a container's pipes.
#[derive(Default)]
struct Ours {
    stdin: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, Stream)>,
}

fn pipes(stdin: bool, tty: bool) -> io::Result<(Stdio, Ours)> {
    let mut theirs = Stdio::default();
    let mut ours = Ours::default();
    if tty {
        return Ok((theirs, ours));
    }
    if stdin {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&writer)?;
        theirs.stdin = Some(reader);
        ours.stdin = Some(writer);
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        match stream {
            Stream::Stdout => theirs.stdout = Some(writer),
            Stream::Stderr => theirs.stderr = Some(writer),
        }
        ours.outputs.push((reader, stream));
    }
    Ok((theirs, ours))
}
