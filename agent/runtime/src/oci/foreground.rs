//! Waiting for a process as a shell would: signals are passed on, and its terminal is shown on this one.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::{Error, process};
use crate::sys::shim_process::{Ended, reap};
use crate::sys::terminal;

/// At most so much is read at a time, in bytes.
const CHUNK: usize = 8192;

/// The signals of this process, blocked and to be read. Taken before the child is made, so that none is lost.
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks all signals but those that tell of mistakes of this program.
    pub fn take() -> Result<Signals, Error> {
        let failed = |e: Errno| Error::sys("block", "signals")(e);
        let mut set = SigSet::all();
        for signal in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT] {
            set.remove(signal);
        }
        // The child is waited for by its descriptor.
        set.remove(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(Signals)
            .map_err(failed)
    }
}

/// Whether what a terminal of the child shows goes to a file or a program: lines are to end there as they do without one. On
/// a screen they need the carriage return, since the own terminal adds none in raw mode.
pub fn has_no_screen() -> bool {
    !io::stdout().is_terminal()
}

/// Waits for the end of a child of this process and returns what a shell would call its exit code. `console` is the
/// master of its terminal.
pub fn wait(child: &OwnedFd, console: Option<OwnedFd>, signals: Signals) -> Result<u8, Error> {
    let relay = console.map(Relay::new);
    let raw = relay.as_ref().map(|_| RawTerminal::enter());
    let result = serve(child, relay, &signals.0);
    drop(raw);
    result.map_err(Error::sys("wait for", "the process"))?;
    Ok(exit_code())
}

/// The only child there is has ended.
fn exit_code() -> u8 {
    match reap() {
        Some((_, Ended::Code(code))) => code as u8,
        Some((_, Ended::Signal(signal))) => 128_u8.saturating_add(signal as u8),
        // Somebody has taken its status away.
        None => u8::MAX,
    }
}

fn serve(child: &OwnedFd, mut relay: Option<Relay>, signals: &SignalFd) -> io::Result<()> {
    loop {
        let mut fds = vec![
            PollFd::new(child.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let stdin = io::stdin();
        if let Some(relay) = &relay {
            relay.watch(&stdin, &mut fds);
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if let Some(open) = &mut relay
            && !open.move_bytes(&ready[2..])?
        {
            relay = None;
        }
        if ready[1] {
            pass_on(child, relay.as_ref(), signals)?;
        }
        if ready[0] {
            if let Some(relay) = &mut relay {
                relay.drain()?;
            }
            return Ok(());
        }
    }
}

fn pass_on(child: &OwnedFd, relay: Option<&Relay>, signals: &SignalFd) -> io::Result<()> {
    while let Some(info) = signals.read_signal()? {
        let number = info.ssi_signo as i32;
        match relay {
            Some(relay) if number == libc::SIGWINCH => relay.resize(),
            // Who writes to a closed pipe is this process, not the child.
            _ if number == libc::SIGPIPE => {}
            _ => {
                // It may have ended, which the next turn tells.
                let _ = process::signal(child, number);
            }
        }
    }
    Ok(())
}

/// Carries bytes between this process's standard streams and the master of a terminal.
struct Relay {
    master: std::fs::File,
    /// What was typed and has not been taken yet.
    typed: Vec<u8>,
    stdin_open: bool,
}

impl Relay {
    fn new(master: OwnedFd) -> Relay {
        let relay = Relay { master: master.into(), typed: Vec::new(), stdin_open: true };
        relay.resize();
        relay
    }

    /// The child's terminal gets the size of this one.
    fn resize(&self) {
        if let Ok((rows, columns)) = terminal::size(io::stdin().as_fd()) {
            // A terminal that does not take a size keeps its own.
            let _ = terminal::resize(self.master.as_fd(), rows, columns);
        }
    }

    fn watch<'a>(&'a self, stdin: &'a io::Stdin, fds: &mut Vec<PollFd<'a>>) {
        let room = self.typed.is_empty();
        let input = if room { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        fds.push(PollFd::new(self.master.as_fd(), input));
        if room && self.stdin_open {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
    }

    /// False when the other side of the terminal has been closed.
    fn move_bytes(&mut self, ready: &[bool]) -> io::Result<bool> {
        if ready.get(1) == Some(&true) {
            self.read_typed()?;
        }
        self.write_typed()?;
        if ready.first() == Some(&true) { self.show() } else { Ok(true) }
    }

    fn read_typed(&mut self) -> io::Result<()> {
        let mut buffer = [0; CHUNK];
        match nix::unistd::read(io::stdin().as_fd(), &mut buffer) {
            Ok(0) | Err(Errno::EIO) => self.stdin_open = false,
            Ok(n) => self.typed.extend_from_slice(&buffer[..n]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn write_typed(&mut self) -> io::Result<()> {
        if self.typed.is_empty() {
            return Ok(());
        }
        match self.master.write(&self.typed) {
            Ok(n) => drop(self.typed.drain(..n)),
            Err(e) if is_busy(&e) => {}
            Err(e) if e.raw_os_error() == Some(libc::EIO) => self.typed.clear(),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn show(&mut self) -> io::Result<bool> {
        let mut buffer = [0; CHUNK];
        match self.master.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(n) => write_all(&buffer[..n]).map(|()| true),
            Err(e) if is_busy(&e) => Ok(true),
            // The last slave was closed.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Shows what is left when the process has ended; others may hold the terminal still.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
                Ok(_) => {
                    if !self.show()? {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Writes to standard output, past its buffer. A reader that has left does not stop the container.
fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(io::stdout().as_fd(), bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let out = io::stdout();
                poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(Errno::EPIPE | Errno::EIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// This process's terminal, if it has one, in raw mode until this is dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> RawTerminal {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            // Without it the keys are echoed twice, which is no reason to fail.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &raw);
        }
        RawTerminal(before)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}
