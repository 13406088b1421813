//! The shim's loop.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::connection::{Asker, Connection};
use super::dial::{Dial, Dialed};
use super::execs::Running;
use super::failure;
use super::pod_init::PodInit;
use super::pod_users::PodUsers;
use super::proto::{Event, FailureKind, Outcome, Status};
use super::record::note;
use super::repeats::Repeat;
use super::setup::Ready;
use super::slot::Slot;
use crate::cgroup::Cgroups;
use crate::sys::shim_process::release_memory;

/// How often a shim without a client and without a running container looks whether its folder is still there.
const ABANDONED_AFTER: Duration = Duration::from_secs(30);

/// How much output is read at a time; a pipe holds that much.
const SCRATCH: usize = 64 << 10;

/// More clients than this at once have to wait.
const MAX_CONNECTIONS: usize = 64;

/// A shim and all it holds.
pub(super) struct Server {
    pub listener: UnixListener,
    pub signals: SignalFd,
    pub socket: (PathBuf, (u64, u64)),
    pub cgroups: &'static Cgroups,
    pub connections: Vec<Connection>,
    pub slots: Vec<Slot>,
    pub execs: Vec<Running>,
    pub repeats: Vec<Repeat>,
    pub dials: Vec<Dial>,
    pub last_connection: u64,
    pub last_exec: u64,
    pub scratch: Vec<u8>,
    /// Something has left free memory behind, to be given back before the next wait.
    pub untidy: bool,
    pub ending: Option<Ending>,
    /// PID 1 of the PID namespace that the containers share, once one of them wanted it.
    pub pod_init: Option<PodInit>,
    /// The user namespace that the containers share.
    pub users: Option<PodUsers>,
}

/// A shutdown under way.
pub(super) struct Ending {
    pub askers: Vec<Asker>,
    /// When it goes on without those that did not die.
    pub deadline: Instant,
}

/// What a descriptor that is ready belongs to.
#[derive(Clone, Copy, Debug)]
enum Token {
    Source(usize, usize),
    Tap(usize, usize, usize),
    Oom(usize),
    Capture(u64),
    Signals,
    Dial(usize),
    Connection(u64),
    Listener,
}

/// What is to be polled for one container. A source that is held up by a client is not read: the kernel holds back the
/// container, for a while (see `pump`).
fn slot_fds<'a>(index: usize, slot: &'a Slot, tokens: &mut Vec<Token>, fds: &mut Vec<PollFd<'a>>) {
    if let Some(watch) = slot.oom.watch() {
        tokens.push(Token::Oom(index));
        fds.push(PollFd::new(watch.fd(), watch.flags()));
    }
    for (at, source) in slot.sources.iter().enumerate() {
        if !source.ended && !source.is_held_up() {
            tokens.push(Token::Source(index, at));
            fds.push(PollFd::new(source.fd.as_fd(), PollFlags::POLLIN));
        }
        for (number, tap) in source.taps.iter().enumerate() {
            // That its reader is gone poll reports always.
            let wanted = if tap.waits() { PollFlags::POLLOUT } else { PollFlags::empty() };
            tokens.push(Token::Tap(index, at, number));
            fds.push(PollFd::new(tap.pipe().as_fd(), wanted));
        }
    }
}

impl Server {
    pub fn new(ready: Ready) -> Result<Server, String> {
        let Ready { listener, signals, socket, users } = ready;
        // Looked for once: the engine takes the same.
        let cgroups = crate::container::cgroups().map_err(|error| error.to_string())?;
        Ok(Server {
            listener,
            signals,
            socket,
            cgroups,
            connections: Vec::new(),
            slots: Vec::new(),
            execs: Vec::new(),
            repeats: Vec::new(),
            dials: Vec::new(),
            last_connection: 0,
            last_exec: 0,
            scratch: Vec::with_capacity(SCRATCH),
            untidy: false,
            ending: None,
            pod_init: None,
            users,
        })
    }

    /// Serves until it is told to end or nobody can tell it anything any more.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            // Highest source first: one that ends is removed from its slot's list.
            for (token, flags) in ready.into_iter().rev() {
                self.handle(token, flags);
            }
            self.drop_broken();
            self.keep_time();
            if std::mem::take(&mut self.untidy) {
                // From here, where hardly anything of the stack is in use.
                release_memory();
            }
            if self.ended() {
                let _ = std::fs::remove_file(&self.socket.0);
                return Ok(());
            }
            if self.is_abandoned() {
                note!("the pod's folder is gone and so is everything else: exiting");
                self.remove_all();
                return Ok(());
            }
        }
    }

    fn handle(&mut self, token: Token, flags: PollFlags) {
        match token {
            Token::Source(slot, source) => {
                self.slots[slot].pump(source, &mut self.scratch);
            }
            Token::Tap(slot, source, tap) => {
                if let Some(source) = self.slots[slot].sources.get_mut(source) {
                    source.tap_ready(tap, flags.intersects(PollFlags::POLLERR | PollFlags::POLLHUP));
                }
                self.slots[slot].tidy();
            }
            Token::Oom(slot) => self.look_for_kills(slot, Instant::now()),
            Token::Capture(id) => {
                // It has gone when its end was seen first.
                if let Some(exec) = self.execs.iter_mut().find(|exec| exec.id == id)
                    && let Some(capture) = &mut exec.capture
                {
                    capture.read(&mut self.scratch);
                }
            }
            Token::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Token::Dial(index) => {
                let dial = self.dials.remove(index);
                let asker = dial.asker;
                let dialed = dial.proceed();
                self.dialed(asker, dialed);
            }
            Token::Connection(id) => self.serve(id, flags),
            Token::Listener => self.accept(),
        }
    }

    /// Blocks until something is ready. What comes first in the list is handled last.
    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut tokens = Vec::new();
        let mut fds = Vec::new();
        if self.connections.len() < MAX_CONNECTIONS {
            tokens.push(Token::Listener);
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        for connection in &self.connections {
            let write = if connection.wants_to_write() { PollFlags::POLLOUT } else { PollFlags::empty() };
            tokens.push(Token::Connection(connection.id));
            fds.push(PollFd::new(connection.fd(), PollFlags::POLLIN | write));
        }
        for (index, dial) in self.dials.iter().enumerate() {
            tokens.push(Token::Dial(index));
            fds.push(PollFd::new(dial.socket.as_fd(), PollFlags::POLLOUT));
        }
        let now = Instant::now();
        for exec in &self.execs {
            if let Some(pipe) = exec.capture.as_ref().and_then(|capture| capture.watch(now)) {
                tokens.push(Token::Capture(exec.id));
                fds.push(PollFd::new(pipe, PollFlags::POLLIN));
            }
        }
        tokens.push(Token::Signals);
        fds.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
        for (index, slot) in self.slots.iter().enumerate() {
            slot_fds(index, slot, &mut tokens, &mut fds);
        }
        match poll(&mut fds, self.patience(now)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(tokens.into_iter().zip(ready).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn patience(&self, now: Instant) -> PollTimeout {
        let ending = self.ending.as_ref().map(|ending| ending.deadline);
        let abandoned = (self.connections.is_empty() && !self.has_live()).then(|| now + ABANDONED_AFTER);
        let captures = self.execs.iter().filter_map(|exec| exec.capture.as_ref()?.due(now));
        let repeats = self.repeats.iter().filter_map(Repeat::due);
        let slots = self.slots.iter().filter_map(Slot::deadline);
        let next = slots.chain(captures).chain(repeats).chain(ending).chain(abandoned).min();
        let Some(next) = next else { return PollTimeout::NONE };
        let wait = next.saturating_duration_since(now);
        // Rounded up, so that the time has come when it returns.
        PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }

    /// What is due by the clock: commands, and the end of those whose time is over, attached clients that are too slow, and second looks for kills.
    fn keep_time(&mut self) {
        self.end_late_commands();
        self.run_due();
        if self.slots.iter().all(|slot| slot.deadline().is_none()) {
            return;
        }
        let now = Instant::now();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let cut_off: usize = slot.sources.iter_mut().map(|source| source.expire(now)).sum();
            if cut_off > 0 {
                note!("{}: {cut_off} attached client(s) read too slowly and were cut off", slot.id);
            }
            slot.tidy();
            if slot.oom.deadline().is_some_and(|at| at <= now) {
                self.look_for_kills(index, now);
            }
        }
    }

    /// Tells of kills for want of memory that were not told of yet.
    pub fn look_for_kills(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        if let Some(kills) = slot.oom.look(self.cgroups, &slot.container.cgroup, now) {
            note!("{}: out of memory, {kills} process(es) killed so far", slot.id);
            let was_held = slot.entrance.as_ref().is_some_and(|entrance| entrance.holds_group());
            if slot.oom.were_single(self.cgroups, &slot.container.cgroup) && was_held {
                // What the kernel would have done if it had not been kept from it for a process that was being made.
                slot.kill_rest(self.cgroups);
            }
            let event = Event::OomKilled { id: slot.id.clone(), kills };
            self.tell_all(&event);
        }
    }

    pub fn has_live(&self) -> bool {
        self.slots.iter().any(|slot| slot.status != Status::Stopped)
    }

    fn is_abandoned(&self) -> bool {
        self.connections.is_empty() && !self.has_live() && !self.is_reachable()
    }

    /// Its socket is still where a client looks for it.
    fn is_reachable(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let (path, made) = &self.socket;
        std::fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == *made)
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS
            && let Ok((socket, _)) = self.listener.accept()
        {
            // Frames go out with MSG_DONTWAIT, but reads must not block either.
            if socket.set_nonblocking(true).is_ok() {
                self.last_connection += 1;
                self.connections.push(Connection::new(self.last_connection, socket));
            }
        }
    }

    fn serve(&mut self, id: u64, flags: PollFlags) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else {
            return;
        };
        if flags.contains(PollFlags::POLLOUT) {
            connection.flush();
        }
        if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            connection.receive();
        }
        loop {
            let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else {
                return;
            };
            match connection.next_frame() {
                Ok(Some(frame)) => {
                    let request = serde_json::from_slice(frame).map_err(|error| {
                        (super::calls::request_id(frame), format!("cannot understand the request: {error}"))
                    });
                    self.request(id, request);
                }
                Ok(None) => return,
                Err(too_long) => {
                    note!("client {id}: a frame of {} bytes is too long: closing", too_long.0);
                    connection.broken = true;
                    return;
                }
            }
        }
    }

    pub fn reply(&mut self, asker: Asker, result: Outcome, fds: Vec<std::os::fd::OwnedFd>) {
        if let Some(connection) =
            self.connections.iter_mut().find(|connection| connection.id == asker.connection)
        {
            connection.reply(asker.request, result, fds);
        }
    }

    pub fn tell_all(&mut self, event: &Event) {
        for connection in self.connections.iter_mut().filter(|connection| connection.greeted) {
            connection.tell(event);
        }
    }

    pub fn dialed(&mut self, asker: Asker, dialed: Dialed) {
        match dialed {
            Dialed::Done(socket) => self.reply(asker, Outcome::Done {}, vec![socket]),
            Dialed::Pending(dial) => self.dials.push(dial),
            Dialed::Failed(error) => {
                let failure = failure(FailureKind::Internal, format!("cannot connect: {error}"));
                self.reply(asker, Outcome::Error(failure), Vec::new());
            }
        }
    }

    /// Forgets the connections that are closed, and what was kept only for them.
    fn drop_broken(&mut self) {
        let gone: Vec<u64> = self
            .connections
            .iter()
            .filter(|connection| connection.broken)
            .map(|connection| connection.id)
            .collect();
        if gone.is_empty() {
            return;
        }
        self.connections.retain(|connection| !connection.broken);
        self.dials.retain(|dial| !gone.contains(&dial.asker.connection));
        self.repeats.retain(|repeat| !gone.contains(&repeat.asker.connection));
        for exec in &mut self.execs {
            exec.owner = exec.owner.filter(|owner| !gone.contains(owner));
            exec.waiters.retain(|waiter| !gone.contains(&waiter.connection));
        }
        self.forget_old_codes();
        self.untidy = true;
    }
}
