//! What is asked of the shim.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;

use super::capture::Capture;
use super::connection::Asker;
use super::dial;
use super::execs::{self, Running};
use super::failure;
use super::oom::OomSense;
use super::pod_init::PodInit;
use super::proto::{
    Call, CreateRequest, Created, ExecExited, ExecRequest, ExecStarted, FEATURES, Failure, FailureKind,
    Hello, Kill, KillExec, MIN_PROTOCOL_VERSION, Outcome, PROTOCOL_VERSION, Request, RunRequest, Start,
    Started, Status, Welcome,
};
use super::record::note;
use super::repeats::Repeat;
use super::server::{Ending, Server};
use super::slot::Slot;
use crate::sys::process::pidfd_kill;

/// How long a shutdown waits for processes that do not die of SIGKILL.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(10);

/// An answer, or `None` when it comes later.
type Answer = Result<Option<(Outcome, Vec<OwnedFd>)>, Failure>;

fn done(outcome: Outcome) -> Answer {
    Ok(Some((outcome, Vec::new())))
}

fn not_found(what: &str, name: impl std::fmt::Display) -> Failure {
    failure(FailureKind::NotFound, format!("no {what} {name}"))
}

/// The id of a request that is not understood otherwise.
pub(super) fn request_id(frame: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Id {
        id: u64,
    }
    serde_json::from_slice::<Id>(frame).ok().map(|request| request.id)
}

impl Server {
    /// Handles one frame of a connection.
    pub fn request(&mut self, connection: u64, request: Result<Request, (Option<u64>, String)>) {
        match request {
            Ok(Request { id, call }) => {
                let asker = Asker { connection, request: id };
                match self.call(asker, call) {
                    Ok(Some((outcome, fds))) => self.reply(asker, outcome, fds),
                    Ok(None) => {}
                    Err(failure) => self.reply(asker, Outcome::Error(failure), Vec::new()),
                }
            }
            // A request of a newer client: it has an id to answer to.
            Err((Some(id), reason)) => {
                let failure = failure(FailureKind::Unsupported, reason);
                self.reply(Asker { connection, request: id }, Outcome::Error(failure), Vec::new());
            }
            Err((None, reason)) => {
                note!("client {connection}: {reason}: closing");
                for connection in self.connections.iter_mut().filter(|other| other.id == connection) {
                    connection.broken = true;
                }
            }
        }
    }

    /// What is big is by itself: the frame of this function is there in every call, and its pages stay.
    fn call(&mut self, asker: Asker, call: Call) -> Answer {
        let greeted = self.connections.iter().any(|other| other.id == asker.connection && other.greeted);
        if !greeted && !matches!(call, Call::Hello(_)) {
            return Err(failure(FailureKind::Invalid, "the first request must be hello"));
        }
        if self.ending.is_some()
            && matches!(
                call,
                Call::Create(_) | Call::Start(_) | Call::Exec(_) | Call::Run(_) | Call::Repeat(_)
            )
        {
            return Err(failure(FailureKind::Invalid, "the shim is shutting down"));
        }
        match call {
            Call::Hello(hello) => self.hello(asker, &hello),
            Call::Create(request) => self.create(*request),
            Call::Start(request) => self.start(&request.id),
            Call::Kill(request) => self.kill(&request),
            Call::Delete(request) => self.delete(asker, &request.id),
            Call::List {} => done(Outcome::List(self.slots.iter().map(Slot::state).collect())),
            Call::Exec(request) => self.exec(asker, *request),
            Call::Run(request) => {
                self.run_command(asker, request, &mut None)?;
                Ok(None)
            }
            Call::Repeat(request) => {
                self.slot_to_enter(&request.run.container_id)?;
                self.repeats.push(Repeat::new(asker, request));
                Ok(None)
            }
            Call::EndRepeat { request } => {
                let asker = Asker { request, ..asker };
                self.repeats.retain(|repeat| repeat.asker != asker);
                done(Outcome::Done {})
            }
            Call::WaitExec(request) => self.wait_exec(asker, request.exec_id),
            Call::KillExec(request) => self.kill_exec(&request),
            Call::Resize(size) => {
                self.slot(&size.id)?.resize(size.width, size.height)?;
                done(Outcome::Done {})
            }
            Call::Attach(request) => {
                let (attached, fds) = self.slot(&request.id)?.attach(&request)?;
                Ok(Some((Outcome::Attached(attached), fds)))
            }
            Call::Pause {} => {
                self.pause()?;
                done(Outcome::Done {})
            }
            Call::Resume {} => {
                self.resume();
                done(Outcome::Done {})
            }
            Call::ConnectTcp { port } => {
                let dialed = dial::begin(asker, port);
                self.dialed(asker, dialed);
                Ok(None)
            }
            Call::Shutdown {} => {
                self.shutdown(asker);
                Ok(None)
            }
        }
    }

    fn slot(&mut self, id: &str) -> Result<&mut Slot, Failure> {
        self.slots.iter_mut().find(|slot| slot.id == id).ok_or_else(|| not_found("container", id))
    }

    fn hello(&mut self, asker: Asker, hello: &Hello) -> Answer {
        let version = hello.max_version.min(PROTOCOL_VERSION);
        if version < hello.min_version.max(MIN_PROTOCOL_VERSION) {
            return Err(failure(
                FailureKind::Unsupported,
                format!(
                    "the shim speaks protocol {MIN_PROTOCOL_VERSION} to {PROTOCOL_VERSION}, the client {} to {}",
                    hello.min_version, hello.max_version
                ),
            ));
        }
        for connection in self.connections.iter_mut().filter(|other| other.id == asker.connection) {
            connection.greeted = true;
        }
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let release = env!("CARGO_PKG_VERSION").to_owned();
        done(Outcome::Welcome(Welcome { version, release, pid, features: FEATURES.to_vec() }))
    }

    #[inline(never)]
    fn create(&mut self, request: CreateRequest) -> Answer {
        if self.slots.iter().any(|slot| slot.id == request.id) {
            return Err(failure(FailureKind::Exists, format!("container {} exists already", request.id)));
        }
        let pids = match &request.pids_of {
            Some(target) => Some(self.pids_of(target)?),
            None => request.pod_pids.then(|| self.pod_pids()).transpose()?,
        };
        let at_once = request.start;
        let slot = Slot::create(request, pids.as_deref(), self.users.as_ref());
        let begun = Instant::now();
        // The configuration's many small pieces are gone now.
        self.untidy = true;
        let mut slot = slot?;
        slot.oom = OomSense::of(self.cgroups, &slot.container.cgroup);
        let (pid, id) = (slot.container.pid, slot.id.clone());
        note!("{id}: created, pid {pid}");
        let timings = slot.foreign.is_none().then_some(slot.container.timings);
        self.slots.push(slot);
        let start = at_once.then(|| Start { result: self.begin(&id), took: begun.elapsed() });
        done(Outcome::Created(Created { pid, timings, start }))
    }

    /// The PID namespace that the containers share, made when the first of them wants it.
    fn pod_pids(&mut self) -> Result<PathBuf, Failure> {
        let init = match self.pod_init.take() {
            Some(init) => init,
            None => PodInit::start(self.users.as_ref())?,
        };
        Ok(self.pod_init.insert(init).namespace())
    }

    /// The PID namespace of a running container. Nobody but this thread reaps it, so its process id is its own.
    fn pids_of(&self, id: &str) -> Result<PathBuf, Failure> {
        let slot = self.slots.iter().find(|slot| slot.id == id).ok_or_else(|| not_found("container", id))?;
        if slot.status != Status::Running {
            return Err(failure(FailureKind::Invalid, format!("container {id} is not running")));
        }
        Ok(PathBuf::from(format!("/proc/{}/ns/pid", slot.container.pid)))
    }

    fn start(&mut self, id: &str) -> Answer {
        done(Outcome::Started(self.begin(id)?))
    }

    fn begin(&mut self, id: &str) -> Result<Started, Failure> {
        let slot = self.slot(id)?;
        if slot.status != Status::Created {
            return Err(failure(FailureKind::Invalid, format!("container {id} was started before")));
        }
        let started_at = Timestamp::now();
        match slot.start() {
            Ok(()) => {
                slot.status = Status::Running;
                slot.started_at = Some(started_at);
                if let Err(error) = slot.save() {
                    note!("{id}: cannot record its start: {error}");
                }
                Ok(Started { started_at })
            }
            Err(reason) => {
                self.start_failed(id, &reason);
                Err(failure(FailureKind::StartFailed, reason))
            }
        }
    }

    fn kill(&mut self, request: &Kill) -> Answer {
        let slot = self.slots.iter_mut().find(|slot| slot.id == request.id);
        let slot = slot.ok_or_else(|| not_found("container", &request.id))?;
        check_signal(request.signal)?;
        let cannot = |error: &dyn std::fmt::Display| {
            failure(FailureKind::Internal, format!("cannot signal {}: {error}", request.id))
        };
        if slot.status != Status::Stopped {
            slot.signal(request.signal).map_err(|error| cannot(&error))?;
        }
        if request.all {
            let cgroup = &slot.container.cgroup;
            if request.signal == libc::SIGKILL {
                self.cgroups.kill(cgroup).map_err(|error| cannot(&error))?;
            } else {
                for pid in self.cgroups.pids(cgroup).map_err(|error| cannot(&error))? {
                    if pid != slot.container.pid {
                        signal(pid, request.signal);
                    }
                }
            }
        }
        // What is frozen would hear of the signal only when it is resumed, which may be never.
        slot.thaw(self.cgroups);
        done(Outcome::Done {})
    }

    fn delete(&mut self, asker: Asker, id: &str) -> Answer {
        let Some(index) = self.slots.iter().position(|slot| slot.id == id) else {
            return done(Outcome::Done {});
        };
        if self.slots[index].status != Status::Stopped {
            self.slots[index].deleters.push(asker);
            self.kill_all_of(index);
            return Ok(None);
        }
        self.forget(index)?;
        done(Outcome::Done {})
    }

    /// Nobody in the pod may look into processes that are not its own: containers may share a PID namespace.
    fn is_untraced(&self) -> bool {
        self.slots.iter().all(|slot| !slot.may_trace)
    }

    #[inline(never)]
    fn exec(&mut self, asker: Asker, request: ExecRequest) -> Answer {
        let untraced = self.is_untraced();
        let slot = self.slot_to_enter(&request.container_id)?;
        let (pid, fds) = execs::start(slot, request, untraced)?;
        let exec_id = self.remember(pid, asker, None);
        Ok(Some((Outcome::ExecStarted(ExecStarted { exec_id, pid }), fds)))
    }

    /// Begins it; [`Server::has_run`] is told of its end.
    pub fn run_command(
        &mut self,
        asker: Asker,
        request: RunRequest,
        home: &mut Option<String>,
    ) -> Result<(), Failure> {
        let untraced = self.is_untraced();
        let slot = self.slot_to_enter(&request.container_id)?;
        let (pid, capture) = execs::run(slot, request, asker, untraced, home)?;
        self.remember(pid, asker, Some(capture));
        Ok(())
    }

    /// A container that takes further processes.
    fn slot_to_enter(&mut self, id: &str) -> Result<&mut Slot, Failure> {
        // The first to enter has the configuration read.
        self.untidy |= self.slot(id)?.terms.is_none();
        let slot = self.slot(id)?;
        if slot.status != Status::Running {
            return Err(failure(FailureKind::Invalid, format!("container {id} is not running")));
        }
        if slot.paused {
            return Err(failure(FailureKind::Invalid, format!("container {id} is paused")));
        }
        Ok(slot)
    }

    fn remember(&mut self, pid: i32, asker: Asker, capture: Option<Capture>) -> u64 {
        self.last_exec += 1;
        let (id, owner) = (self.last_exec, Some(asker.connection));
        self.execs.push(Running { id, pid, owner, code: None, waiters: Vec::new(), capture });
        id
    }

    fn wait_exec(&mut self, asker: Asker, exec_id: u64) -> Answer {
        let index = self.execs.iter().position(|exec| exec.id == exec_id);
        let index = index.ok_or_else(|| not_found("exec", exec_id))?;
        match self.execs[index].code {
            Some(code) => {
                self.execs.swap_remove(index);
                done(Outcome::ExecExited(ExecExited { code }))
            }
            None => {
                self.execs[index].waiters.push(asker);
                Ok(None)
            }
        }
    }

    fn kill_exec(&mut self, request: &KillExec) -> Answer {
        check_signal(request.signal)?;
        let exec = self.execs.iter().find(|exec| exec.id == request.exec_id);
        let exec = exec.ok_or_else(|| not_found("exec", request.exec_id))?;
        if exec.code.is_none() {
            // Not reaped yet, so that the number is still its own.
            signal(exec.pid, request.signal);
        }
        done(Outcome::Done {})
    }

    fn shutdown(&mut self, asker: Asker) {
        match &mut self.ending {
            Some(ending) => ending.askers.push(asker),
            None => {
                note!("shutting down");
                self.ending = Some(Ending { askers: vec![asker], deadline: Instant::now() + SHUTDOWN_WAIT });
                self.end_repeats();
                for index in 0..self.slots.len() {
                    if self.slots[index].status != Status::Stopped {
                        self.kill_all_of(index);
                    }
                }
            }
        }
    }
}

fn check_signal(number: i32) -> Result<(), Failure> {
    if (1..=64).contains(&number) {
        return Ok(());
    }
    Err(failure(FailureKind::Invalid, format!("{number} is not a signal")))
}

/// kill(2) by number, which nix's type cannot express for real-time signals. A process that is gone is fine.
fn signal(pid: i32, number: i32) {
    if let Ok(pidfd) = crate::sys::process::pidfd_open(pid) {
        let _ = pidfd_kill(pidfd.as_fd(), number);
    }
}
