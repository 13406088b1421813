//! How a process becomes a shim.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, sethostname, setsid};

use super::args::Args;
use super::orders;
use super::pod_users::PodUsers;
use super::proto::SOCKET;
use super::record;
use super::rehearsal;
use crate::sys::{process, shim_process};

/// What the loop needs.
pub(super) struct Ready {
    pub listener: UnixListener,
    pub signals: SignalFd,
    /// The socket's path and what it was when it was made: if it is another, nobody can reach this shim any more.
    pub socket: (PathBuf, (u64, u64)),
    /// The pod's user namespace, if it has one.
    pub users: Option<PodUsers>,
}

/// Does what needs no orders, and waits for them. Gives nothing when nobody is left who could give them.
pub(super) fn await_orders() -> Result<Option<Vec<OsString>>, String> {
    detach()?;
    shim_process::frugal_heap();
    // The machine's hierarchies do not change any more; should it fail, it will again when it is said.
    let _ = crate::container::cgroups();
    rehearsal::rehearse();
    // The program stays; what it has written to would lie in between for ever.
    shim_process::release_memory();
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(cannot("read the orders"))?;
    let words = orders::receive(File::from(stdin)).map_err(cannot("read the orders"))?;
    words.iter().for_each(|words| orders::show(words));
    Ok(words)
}

/// Says on what was stdin how the set-up ended, if that is a pipe or a socket: `spawn` reads from it.
pub(super) fn report(result: Result<(), &str>) {
    let text = match result {
        Ok(()) => "ok\n".to_owned(),
        Err(reason) => format!("error: {reason}\n"),
    };
    if let Ok(stdin) = io::stdin().as_fd().try_clone_to_owned() {
        let mut stdin = File::from(stdin);
        let heard = |metadata: Metadata| metadata.file_type().is_fifo() || metadata.file_type().is_socket();
        if stdin.metadata().is_ok_and(heard) {
            // A starter that has gone away does not matter.
            let _ = stdin.write_all(text.as_bytes());
        }
    }
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = dup2_stdin(null);
    }
}

fn cannot<E: Display>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("cannot {what}: {error}")
}

/// Everything up to the point where the socket answers.
pub(super) fn set_up(args: &Args) -> Result<Ready, String> {
    let dir = std::path::absolute(&args.dir).map_err(cannot("make the folder's path absolute"))?;
    detach()?;
    log_to(&dir)?;
    let signals = take_signals()?;
    let users = namespaces(args)?;
    shim_process::frugal_heap();
    let listener = listen(&dir)?;
    let path = dir.join(SOCKET);
    let made = std::fs::symlink_metadata(&path).map_err(cannot("look at the socket"))?;
    let pid = format!("{}\n", std::process::id());
    record::replace(&dir, "shim.pid", pid.as_bytes()).map_err(cannot("write shim.pid"))?;
    Ok(Ready { listener, signals, socket: (path, (made.dev(), made.ino())), users })
}

/// Cuts the ties to who started us. May be repeated.
fn detach() -> Result<(), String> {
    process::close_from(3).map_err(cannot("close inherited files"))?;
    prctl::set_name(c"berth-shim").map_err(cannot("set the process name"))?;
    // Nobody but root reads this memory; a program that a container executes gets its own flag.
    prctl::set_dumpable(false).map_err(cannot("become non-dumpable"))?;
    prctl::set_child_subreaper(true).map_err(cannot("become a subreaper"))?;
    // Fails for the leader of a process group, as a shell's foreground process is; then it stays in that session.
    let _ = setsid();
    umask(Mode::from_bits_truncate(0o022));
    std::env::set_current_dir("/").map_err(cannot("leave the working folder"))
}

fn log_to(dir: &Path) -> Result<(), String> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.join("shim.log"))
        .map_err(|error| format!("cannot open {}: {error}", dir.join("shim.log").display()))?;
    dup2_stdout(&log).map_err(cannot("redirect stdout"))?;
    dup2_stderr(&log).map_err(cannot("redirect stderr"))
}

/// SIGCHLD is read from a descriptor. The others are blocked for good: a shim ends when it is told to on its socket, or
/// when it is killed, not because a terminal or a service manager says TERM or HUP to a whole group.
fn take_signals() -> Result<SignalFd, String> {
    shim_process::reset_libc_signals();
    let mut blocked = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        // A log beyond RLIMIT_FSIZE is a failed write, not the pod's end.
        Signal::SIGXFSZ,
    ] {
        blocked.add(signal);
    }
    blocked.thread_block().map_err(cannot("block signals"))?;
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(cannot("make a signalfd"))
}

fn namespaces(args: &Args) -> Result<Option<PodUsers>, String> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, args.net_new);
    flags.set(CloneFlags::CLONE_NEWIPC, args.ipc_new);
    flags.set(CloneFlags::CLONE_NEWUTS, args.uts_new);
    let users = match args.users {
        Some(range) => Some(PodUsers::make(range, flags)?),
        None => {
            unshare(flags).map_err(cannot("make the pod's namespaces"))?;
            None
        }
    };
    if let Some(path) = &args.net_join {
        let namespace = File::open(path).map_err(cannot("open the pod's network namespace"))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(cannot("join the pod's network namespace"))?;
    }
    if args.net_new {
        shim_process::loopback_up().map_err(cannot("bring lo up"))?;
    }
    if let Some(hostname) = &args.hostname {
        sethostname(hostname).map_err(cannot("set the host name"))?;
    }
    if let Some(domainname) = &args.domainname {
        shim_process::set_domainname(domainname).map_err(cannot("set the domain name"))?;
    }
    Ok(users)
}

fn listen(dir: &Path) -> Result<UnixListener, String> {
    let path = dir.join(SOCKET);
    // The name may be longer than a socket address holds.
    let folder = File::open(dir).map_err(cannot("open the pod's folder"))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
    if std::fs::symlink_metadata(&path).is_ok() {
        if UnixStream::connect(&short).is_ok() {
            return Err("another shim answers there".to_owned());
        }
        std::fs::remove_file(&path).map_err(cannot("remove a stale socket"))?;
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(if path.as_os_str().len() < 100 { &path } else { &short });
    umask(before);
    let listener = listener.map_err(cannot("bind the socket"))?;
    listener.set_nonblocking(true).map_err(cannot("make the socket non-blocking"))?;
    Ok(listener)
}
