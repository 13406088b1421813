//! Containers that another OCI runtime makes (a RuntimeClass's handler).
//!
//! The runtime is called in place of the engine, by the command line that all of them share. It and what it starts are
//! below the shim, which is their subreaper: it stays the parent that learns of every exit. The runtime sees the root
//! file system, and mounts that it could not make (see [`Staged`]), in a mount namespace of its own, which ends with the
//! call; the container keeps its copy, and nothing of it is in the host's mount table.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use oci_spec::runtime::{Process, Spec};

use super::failure;
use super::proto::{Failure, FailureKind, Runtime};
use super::record::note;
use crate::cgroup::{self, Cgroups};
use crate::container::{self, Container, Staged, Stdio};
use crate::rootfs::Rootfs;
use crate::sys::process::{self, Child, Clone3, Program, pidfd_kill, pidfd_open};
use crate::sys::{cstring, shim_io};

/// How long one call may take; the shim does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// What programs are looked for in, by the runtime and its hooks.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container's runtime.
#[derive(Debug)]
pub(super) struct Foreign {
    runtime: Runtime,
    id: String,
    /// The runtime's own bundle, below the container's: `config.json`, the mount point, its state, log and pid files.
    dir: PathBuf,
    /// `linux.cgroupsPath` in the form that makes it ask systemd for the cgroup, where the pod's is systemd's.
    scope: Option<String>,
}

/// A container to be made.
pub(super) struct Order<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    /// For our own engine, see [`crate::container::Create::rules`].
    pub rules: Option<&'a str>,
    pub rootfs: &'a Rootfs,
    pub bundle: &'a Path,
    pub stdio: Stdio,
    pub tty: bool,
}

/// One call of the runtime.
struct Call<'a> {
    words: Vec<String>,
    stdio: Stdio,
    /// Mount this before.
    mounts: Option<(&'a Rootfs, Staged)>,
}

impl Call<'_> {
    fn of(words: &[&str]) -> Call<'static> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Call { words, stdio: Stdio::default(), mounts: None }
    }
}

fn internal(what: &str, error: impl std::fmt::Display) -> Failure {
    failure(FailureKind::Internal, format!("cannot {what}: {error}"))
}

impl Foreign {
    /// Makes a container up to its start.
    pub fn create(runtime: &Runtime, order: Order<'_>) -> Result<(Foreign, Container), Failure> {
        let dir = order.bundle.join("runtime");
        let cgroup = cgroup_of(order.spec);
        let scope = cgroup.as_deref().and_then(cgroup::scope_words);
        let made = Foreign { runtime: runtime.clone(), id: order.id.to_owned(), dir, scope };
        match made.try_create(order) {
            Ok(container) => Ok((made, container)),
            Err(failure) => {
                // What it has made by then, if anything.
                let _ = made.delete();
                if let (Ok(cgroups), Some(path)) = (Cgroups::detect(), cgroup) {
                    let _ = cgroups.remove(&path);
                    cgroups.remove_elsewhere(&path);
                }
                Err(failure)
            }
        }
    }

    fn try_create(&self, order: Order<'_>) -> Result<Container, Failure> {
        fs::create_dir_all(&self.dir).map_err(|e| internal("make the runtime's folder", e))?;
        let Some(cgroup) = cgroup_of(order.spec) else {
            return Err(failure(FailureKind::Invalid, "linux.cgroupsPath: another runtime needs it"));
        };
        let staged = self.write_config(&order)?;
        let console = order.tty.then(|| self.console()).transpose()?;
        let mut call = Call::of(&["create", "--bundle", ".", "--pid-file", "pid"]);
        if console.is_some() {
            call.words.extend(["--console-socket".to_owned(), CONSOLE.to_owned()]);
        }
        call.words.push(self.id.clone());
        call.stdio = order.stdio;
        call.mounts = Some((order.rootfs, staged));
        self.call(call).map_err(|reason| internal("create the container", reason))?;
        let pid = self.read_pid("pid")?;
        let pidfd = pidfd_open(pid).map_err(|e| internal("open the container's pidfd", e))?;
        let console = console.map(|listener| take_console(&listener)).transpose()?;
        Ok(Container::of_other_runtime(pid, pidfd, console, cgroup))
    }

    /// Writes the container's specification, with what only this place knows; gives the mounts that it relies on.
    fn write_config(&self, order: &Order<'_>) -> Result<Staged, Failure> {
        let mut spec = order.spec.clone();
        // Nothing in it is newer, and older runtimes refuse versions that they do not know.
        spec.set_version(OCI_VERSION.to_owned());
        let mut root = spec.root().clone().unwrap_or_default();
        root.set_path(match order.rootfs {
            Rootfs::Path(path) if path.is_absolute() => path.clone(),
            Rootfs::Path(path) => order.bundle.join(path),
            Rootfs::Overlay { .. } => PathBuf::from("rootfs"),
        });
        spec.set_root(Some(root));
        // The pod's namespaces are the shim's own, and so the runtime's: it would take them for the host's and refuse
        // to set anything in them.
        if let Some(linux) = spec.linux_mut()
            && let Some(sysctl) = linux.sysctl().clone()
        {
            linux.set_sysctl(None);
            for (name, value) in &sysctl {
                let file = Path::new("/proc/sys").join(name.replace('.', "/"));
                fs::write(&file, value).map_err(|e| internal(&format!("set linux.sysctl {name}"), e))?;
            }
        }
        plain_quota(&mut spec);
        if let Some(adjustment) = spec.process().as_ref().and_then(Process::oom_score_adj)
            && let Some(own) = higher_score(adjustment)
            && let Some(process) = spec.process_mut()
        {
            note!(
                "{}: oom_score_adj: this machine does not let it be lowered from {own} to {adjustment}",
                order.id
            );
            process.set_oom_score_adj(Some(own));
        }
        let staged = Staged::take_from(&mut spec, &self.dir);
        if let (Some(scope), Some(linux)) = (&self.scope, spec.linux_mut()) {
            linux.set_cgroups_path(Some(scope.into()));
            // Its limits would be in one more cgroup inside, where nobody else looks for them.
            let crun = ("run.oci.systemd.subgroup".to_owned(), String::new());
            spec.annotations_mut().get_or_insert_default().extend([crun]);
        }
        let text = serde_json::to_vec(&spec).map_err(|e| internal("write config.json", e))?;
        fs::write(self.dir.join("config.json"), text).map_err(|e| internal("write config.json", e))?;
        Ok(staged)
    }

    /// Lets the container run.
    pub fn start(&self) -> Result<(), String> {
        self.call(Call::of(&["start", &self.id]))
    }

    /// Signals the container's first process.
    pub fn kill(&self, signal: i32) -> Result<(), String> {
        self.call(Call::of(&["kill", &self.id, &signal.to_string()]))
    }

    /// Removes what the runtime has of the container.
    pub fn delete(&self) -> Result<(), String> {
        self.call(Call::of(&["delete", "--force", &self.id]))
    }

    /// Starts a process inside. Gives its id and, with a terminal, the master.
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<(i32, Option<OwnedFd>), Failure> {
        let mut process = process.clone();
        if let Some(own) = process.oom_score_adj().and_then(higher_score) {
            process.set_oom_score_adj(Some(own));
        }
        let text = serde_json::to_vec(&process).map_err(|e| internal("write process.json", e))?;
        fs::write(self.dir.join("process.json"), text).map_err(|e| internal("write process.json", e))?;
        let tty = process.terminal() == Some(true);
        let console = tty.then(|| self.console()).transpose()?;
        let mut call = Call::of(&["exec", "--process", "process.json", "--pid-file", "exec.pid", "--detach"]);
        if console.is_some() {
            call.words.extend(["--console-socket".to_owned(), CONSOLE.to_owned()]);
        }
        call.words.push(self.id.clone());
        call.stdio = stdio;
        self.call(call).map_err(|reason| failure(FailureKind::StartFailed, reason))?;
        let pid = self.read_pid("exec.pid")?;
        Ok((pid, console.map(|listener| take_console(&listener)).transpose()?))
    }

    fn read_pid(&self, file: &str) -> Result<i32, Failure> {
        let path = self.dir.join(file);
        let text = fs::read_to_string(&path).map_err(|e| internal("read the runtime's pid file", e))?;
        let _ = fs::remove_file(&path);
        let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
        pid.ok_or_else(|| internal("read the runtime's pid file", format!("{text:?} is no process id")))
    }

    /// Where the runtime sends a terminal's master: its working folder is `dir`, so that the name is short enough.
    fn console(&self) -> Result<UnixListener, Failure> {
        let failed = |e: io::Error| internal("listen for the terminal", e);
        let folder = fs::File::open(&self.dir).map_err(failed)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{CONSOLE}", folder.as_raw_fd()));
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// Runs the runtime to its end; an error is its own last word.
    fn call(&self, call: Call<'_>) -> Result<(), String> {
        let log = self.dir.join("log.json");
        let _ = fs::remove_file(&log);
        let program = self.program(&call.words).map_err(|e| e.to_string())?;
        let path = cstring(&self.runtime.path).map_err(|e| e.to_string())?;
        let flags = if call.mounts.is_some() { libc::CLONE_NEWNS as u64 } else { 0 };
        let child = Clone3 { flags, cgroup: None }
            .spawn(|| run(&self.dir, &path, &program, &call))
            .map_err(|e| format!("{}: {e}", self.runtime.path.display()))?;
        // The parent's copies of the container's ends, which would keep its pipes open.
        let command = call.words.first().cloned().unwrap_or_default();
        drop(call);
        match wait(&child) {
            Some(0) => Ok(()),
            Some(code) => {
                Err(self.last_word(&log).unwrap_or_else(|| format!("{command} ended with code {code}")))
            }
            None => Err(format!("{command} did not end within {} s", PATIENCE.as_secs())),
        }
        .map_err(|why| format!("{}: {why}", self.runtime.path.display()))
    }

    fn program(&self, words: &[String]) -> io::Result<Program> {
        let mut all = vec![cstring(&self.runtime.path)?];
        for word in &self.runtime.args {
            all.push(cstring(word)?);
        }
        for word in ["--root", "state", "--log", "log.json", "--log-format", "json"] {
            all.push(cstring(word)?);
        }
        if self.scope.is_some() {
            all.push(cstring("--systemd-cgroup")?);
        }
        for word in words {
            all.push(cstring(word)?);
        }
        Ok(Program::new(all, vec![cstring(PATH)?, cstring("XDG_RUNTIME_DIR=/run")?]))
    }

    /// The last message of the runtime's log.
    fn last_word(&self, log: &Path) -> Option<String> {
        let text = fs::read_to_string(log).ok()?;
        let line = text.lines().rfind(|line| !line.trim().is_empty())?;
        let said: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(said.get("msg")?.as_str()?.trim().to_owned())
    }
}

const CONSOLE: &str = "console.sock";

/// What every runtime knows.
const OCI_VERSION: &str = "1.0.2";

/// A quota of -1 takes an earlier one away. A new cgroup has none, and crun takes the number for a large one.
fn plain_quota(spec: &mut Spec) {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    if let Some(cpu) = resources.and_then(|resources| resources.cpu_mut().as_mut())
        && cpu.quota().is_some_and(|quota| quota < 0)
    {
        cpu.set_quota(None);
    }
}

/// Our own score when it may not be lowered to `wanted`: other runtimes would give up where the engine warns.
fn higher_score(wanted: i32) -> Option<i32> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let own: i32 = fs::read_to_string(FILE).ok()?.trim().parse().ok()?;
    if wanted >= own {
        return None;
    }
    let lowered = fs::write(FILE, wanted.to_string());
    // Raising it again is always allowed.
    let _ = fs::write(FILE, own.to_string());
    lowered.is_err().then_some(own)
}

fn cgroup_of(spec: &Spec) -> Option<String> {
    let path = spec.linux().as_ref()?.cgroups_path().as_ref()?;
    path.to_str().map(str::to_owned)
}

/// The child: becomes the runtime.
fn run(dir: &Path, path: &CString, program: &Program, call: &Call<'_>) {
    if let Err(error) = prepare(dir, call) {
        let said = serde_json::json!({ "msg": error });
        // Without this line the code below says that much.
        let _ = fs::write(dir.join("log.json"), said.to_string());
        process::exit_now(126);
    }
    let error = program.execute(path);
    let _ = fs::write(dir.join("log.json"), serde_json::json!({ "msg": error.to_string() }).to_string());
    process::exit_now(127);
}

fn prepare(dir: &Path, call: &Call<'_>) -> Result<(), String> {
    process::reset_signals();
    if let Some((rootfs, staged)) = &call.mounts {
        staged.mount(rootfs, dir).map_err(|e| e.to_string())?;
    }
    container::give_streams(&call.stdio).map_err(|e| e.to_string())?;
    nix::unistd::chdir(dir).map_err(|e| format!("enter {}: {e}", dir.display()))
}

/// Waits for the runtime's end and gives its code; none if it took too long and was killed.
fn wait(child: &Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => {
                let _ = pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL);
                let _ = waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED);
                return None;
            }
            Err(nix::errno::Errno::EINTR) => continue,
            _ => {}
        }
        return match waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
            Err(nix::errno::Errno::EINTR) => continue,
            _ => Some(-1),
        };
    }
}

/// The runtime has ended, so what it sent is there.
fn take_console(listener: &UnixListener) -> Result<OwnedFd, Failure> {
    let failed = |e: io::Error| internal("receive the terminal", e);
    let (stream, _) = listener.accept().map_err(failed)?;
    let mut fds = Vec::new();
    shim_io::receive(&stream, &mut [0; 512], &mut fds, 1).map_err(failed)?;
    fds.pop().ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}
