//! Making a container: `create` and the first half of `run`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use jiff::Timestamp;
use nix::mount::{MntFlags, umount2};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use serde::{Deserialize, Serialize};

use super::handed::Handed;
use super::store::{Folder, Lock, replace};
use super::{Error, Record, Runtime, config_of, console, foreground, process};
use crate::cgroup::Driver;
use crate::container::hooks::{self, Moment};
use crate::container::{self, Container, Create, Document, Stdio, Tie, cgroups_of};
use crate::rootfs::Rootfs;
use crate::sys::mount::mount_id;

/// How a container is to be created.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateOptions {
    /// Its id.
    pub id: String,
    /// Its bundle. This and the paths below are absolute, see [`CreateOptions::resolve`].
    pub bundle: PathBuf,
    /// Gets the id of its first process.
    pub pid_file: Option<PathBuf>,
    /// A listening socket that gets the master of its terminal.
    pub console_socket: Option<PathBuf>,
    /// A listening socket that gets the pidfd of the container's first process.
    pub pidfd_socket: Option<PathBuf>,
    /// So many descriptors from 3 on are handed to its program.
    pub preserve_fds: u32,
    /// Who makes its cgroup.
    pub cgroup_driver: Driver,
    /// Do without pivot_root, see [`Create::no_pivot`].
    pub no_pivot: bool,
}

impl CreateOptions {
    /// Makes relative paths absolute, which start from the current folder, and enters the bundle: a program of the host that
    /// a hook starts finds itself there, as with other runtimes.
    pub(super) fn resolve(mut self) -> Result<CreateOptions, Error> {
        let before = std::env::current_dir();
        self.bundle = match (&before, self.bundle.as_os_str().as_encoded_bytes()) {
            (Ok(before), b".") => before.clone(),
            _ => fs::canonicalize(&self.bundle).map_err(Error::path("resolve", &self.bundle))?,
        };
        std::env::set_current_dir(&self.bundle).map_err(Error::path("enter", &self.bundle))?;
        if let Ok(before) = before {
            for path in [&mut self.pid_file, &mut self.console_socket, &mut self.pidfd_socket] {
                *path = path.take().map(|path| before.join(path));
            }
        }
        Ok(self)
    }
}

/// How a container is to be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunOptions {
    /// How it is created.
    pub create: CreateOptions,
    /// Return when it runs, and leave it alone.
    pub detach: bool,
    /// Do not delete it when it ends.
    pub keep: bool,
}

/// A container with its folder, still locked.
pub(super) struct Made {
    pub folder: Folder,
    pub lock: Lock,
    pub record: Record,
    pub spec: Spec,
    pub container: Container,
}

impl Runtime {
    /// Creates a container. It waits for [`Runtime::start`] and does not end with this process.
    pub fn create(&mut self, options: &CreateOptions) -> Result<(), Error> {
        self.make(options, Attachment::Gate).map(drop)
    }

    /// Makes a container up to the point where its program would run, and takes everything back when that fails.
    pub(super) fn make(&mut self, options: &CreateOptions, attachment: Attachment) -> Result<Made, Error> {
        let bytes = read_config(&options.bundle)?;
        let Document { mut spec, bytes, mut warnings } = Document::parse(bytes)
            .map_err(|source| Error::Json { path: config_of(&options.bundle), source })?;
        self.warnings.append(&mut warnings);
        if spec.process().is_none() && attachment == Attachment::Gate {
            // Only the start of such a container is an error (runtime-spec, "Start").
            spec.set_process(Some(nothing_to_run()?));
        }
        if let Some(process) = spec.process_mut() {
            self.handed.announce(process);
        }
        let rootfs = check(&spec, options, attachment)?;
        strip_root(&mut spec, &rootfs);
        refuse_used_cgroup(&spec, options)?;
        let (folder, lock) = self.store.make(&options.id)?;
        let record = match first_record(&spec, options, &rootfs).and_then(|record| {
            folder.save_config(&bytes)?;
            folder.save(&record)?;
            Ok(record)
        }) {
            Ok(record) => record,
            Err(error) => {
                self.warn_of(folder.remove());
                return Err(error);
            }
        };
        match give_birth(&folder, &spec, options, attachment, &rootfs, &self.handed) {
            Ok(mut container) => {
                self.warnings.append(&mut container.warnings);
                self.finish(Made { folder, lock, record, spec, container }, options)
            }
            Err(error) => {
                self.warn_of(unmount_root(&record));
                self.warn_of(folder.remove());
                self.stopped_hooks(&spec, &options.id, &options.bundle);
                Err(error)
            }
        }
    }

    /// What is left to do for a container whose process is there.
    fn finish(&mut self, mut made: Made, options: &CreateOptions) -> Result<Made, Error> {
        let result = hand_over(&mut made, options);
        if result.is_err() {
            self.undo(&made);
        }
        result.map(|()| made)
    }

    /// Removes a container that could not be made as a whole.
    pub(super) fn undo(&mut self, made: &Made) {
        self.warn_of(process::signal(&made.container.pidfd, libc::SIGKILL));
        container::reap(made.container.pidfd.as_fd());
        self.remove(&made.folder, &made.record, &made.spec);
    }

    /// An error that comes too late to be the answer.
    pub(super) fn warn_of<T>(&mut self, result: Result<T, Error>) {
        if let Err(error) = result {
            self.warnings.push(error.to_string());
        }
    }
}

/// Who lets a new container's program run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    /// Whoever comes to its gate.
    Gate,
    /// This process, which then waits for it and deals with its terminal.
    Foreground,
    /// This process, which then goes away.
    Background,
}

fn read_config(bundle: &Path) -> Result<Vec<u8>, Error> {
    let path = config_of(bundle);
    fs::read(&path).map_err(Error::path("read", &path))
}

/// Refuses what cannot work; returns the root file system's path.
fn check(spec: &Spec, options: &CreateOptions, attachment: Attachment) -> Result<PathBuf, Error> {
    check_version(spec.version())?;
    let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "it is missing"))?;
    let rootfs = options.bundle.join(root.path());
    let rootfs = fs::canonicalize(&rootfs).map_err(Error::path("resolve root.path", &rootfs))?;
    let terminal = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
    let wants = options.console_socket.is_some();
    if terminal && !wants && attachment != Attachment::Foreground {
        return Err(Error::invalid("process.terminal", "a terminal needs --console-socket here"));
    }
    if wants && !terminal {
        return Err(Error::invalid("--console-socket", "process.terminal is not set"));
    }
    Ok(rootfs)
}

/// Who writes a mount's destination as the host sees it means the place in the container, as with runc.
fn strip_root(spec: &mut Spec, rootfs: &Path) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if let Ok(inside) = mount.destination().strip_prefix(rootfs).map(|inside| Path::new("/").join(inside))
        {
            mount.set_destination(inside);
        }
    }
}

/// A cgroup that has processes is somebody else's, who would be killed together with this container. In one that is frozen
/// the container would never come to its start.
fn refuse_used_cgroup(spec: &Spec, options: &CreateOptions) -> Result<(), Error> {
    let wanted = spec.linux().as_ref().and_then(|l| l.cgroups_path().as_deref()).and_then(Path::to_str);
    let cgroups = cgroups_of(options.cgroup_driver)
        .map_err(|source| Error::Container { operation: "look for cgroups", source })?;
    let path = cgroups.path_for(&options.id, wanted)?;
    let refuse = |reason: String| Err(Error::invalid("linux.cgroupsPath", format!("{path}: {reason}")));
    match cgroups.pids(&path)?.len() {
        0 if cgroups.is_frozen(&path) => refuse("the container's cgroup is unexpectedly frozen".to_owned()),
        0 => Ok(()),
        found => refuse(format!("the container's cgroup is not empty: {found} process(es) found")),
    }
}

/// A process without a program.
fn nothing_to_run() -> Result<Process, Error> {
    let process = serde_json::json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": []});
    serde_json::from_value(process).map_err(|source| Error::Json { path: "process".into(), source })
}

/// Any 1.x is understood (runtime-spec, "Specification version"); the rest must be a semantic version.
fn check_version(version: &str) -> Result<(), Error> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Option<Vec<u32>> = core.split('.').map(|n| n.parse().ok()).collect();
    match numbers.as_deref() {
        Some([1, _, _]) => Ok(()),
        Some([_, _, _]) => {
            Err(Error::invalid("ociVersion", format!("{version} is not supported, only 1.x is")))
        }
        _ => Err(Error::invalid("ociVersion", format!("{version:?} is not a semantic version"))),
    }
}

fn first_record(spec: &Spec, options: &CreateOptions, rootfs: &Path) -> Result<Record, Error> {
    Ok(Record {
        oci_version: spec.version().clone(),
        id: options.id.clone(),
        pid: 0,
        pid_start_time: 0,
        bundle: options.bundle.clone(),
        rootfs: rootfs.to_owned(),
        created: Timestamp::now(),
        owner: user_name(nix::unistd::geteuid().as_raw()),
        annotations: spec.annotations().clone().unwrap_or_default(),
        cgroup: String::new(),
        cgroup_driver: options.cgroup_driver,
        lies_in: lies_in(spec, rootfs)?,
    })
}

/// The mount of a root file system that will get one of its own where everybody sees it.
fn lies_in(spec: &Spec, rootfs: &Path) -> Result<Option<u64>, Error> {
    let list = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    if list.iter().any(|n| n.typ() == LinuxNamespaceType::Mount) {
        return Ok(None);
    }
    mount_id(rootfs).map(Some).map_err(Error::path("look at the mount of", rootfs))
}

/// Takes that mount away again, with all that is mounted in it.
fn unmount_root(record: &Record) -> Result<(), Error> {
    let Some(below) = record.lies_in else { return Ok(()) };
    let failed = |e: io::Error| Error::path("unmount", &record.rootfs)(e);
    match mount_id(&record.rootfs) {
        Ok(id) if id != below => {
            let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
            umount2(&record.rootfs, flags).map_err(|e| failed(e.into()))
        }
        // With its folder, what was mounted there is gone.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// The name of a user of this machine, or the number when the machine's own list does not have it. What other sources of
/// names there may be is asked of nobody: that takes the C library longer than it takes to make a container.
fn user_name(uid: u32) -> String {
    let found = fs::read_to_string("/etc/passwd").ok().and_then(|list| {
        list.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
    });
    found.unwrap_or_else(|| uid.to_string())
}

fn give_birth(
    folder: &Folder,
    spec: &Spec,
    options: &CreateOptions,
    attachment: Attachment,
    rootfs: &Path,
    handed: &Handed,
) -> Result<Container, Error> {
    let terminal = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
    let relayed = attachment == Attachment::Foreground && options.console_socket.is_none();
    let gate = (attachment == Attachment::Gate).then(|| make_gate(&folder.gate())).transpose()?;
    let create = Create {
        id: &options.id,
        spec,
        rules: None,
        rootfs: &Rootfs::Path(rootfs.to_owned()),
        stdio: if terminal { Stdio::default() } else { own_stdio() },
        bundle: &options.bundle,
        tie: Tie {
            outlives: true,
            handed: handed.descriptors.clone(),
            bare_lines: terminal && relayed && foreground::has_no_screen(),
            gate,
        },
        driver: options.cgroup_driver,
        everywhere: true,
        // It is written down first: nobody would know of it if this process ended now.
        at_once: false,
        no_pivot: options.no_pivot,
        // Hooks have limits of their own, and whoever waits sees that he does.
        patience: None,
    };
    container::create(create)
        .map_err(|source| Error::Container { operation: "unable to start container process", source })
}

/// The socket at which the container will wait.
fn make_gate(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |e: nix::Error| Error::path("listen at", path)(e);
    let gate =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    bind(gate.as_raw_fd(), &UnixAddr::new(path).map_err(failed)?).map_err(failed)?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(Error::path("protect", path))?;
    listen(&gate, Backlog::MAXALLOWABLE).map_err(failed)?;
    Ok(gate)
}

/// The standard streams of this process, which become the container's.
pub(super) fn own_stdio() -> Stdio {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().ok();
    Stdio {
        stdin: copy(std::io::stdin().as_fd()),
        stdout: copy(std::io::stdout().as_fd()),
        stderr: copy(std::io::stderr().as_fd()),
    }
}

/// Gives the terminal to who wants it, and writes down what there is now.
fn hand_over(made: &mut Made, options: &CreateOptions) -> Result<(), Error> {
    if let Some(socket) = &options.console_socket {
        let master = made.container.console.take();
        console::send(socket, master.ok_or_else(|| Error::invalid("process.terminal", "it has no master"))?)?;
    }
    if let Some(socket) = &options.pidfd_socket {
        console::send_pidfd(socket, made.container.pidfd.as_fd())?;
    }
    made.record.pid = made.container.pid;
    // None: it is gone already, which the state will tell.
    made.record.pid_start_time = process::start_time(made.container.pid).unwrap_or(0);
    made.record.cgroup.clone_from(&made.container.cgroup);
    made.folder.save(&made.record)?;
    match &options.pid_file {
        Some(path) => write_pid(path, made.container.pid),
        None => Ok(()),
    }
}

/// Writes a process id so that a reader never sees half of it.
pub(super) fn write_pid(path: &Path, pid: i32) -> Result<(), Error> {
    replace(path, pid.to_string().as_bytes())
}

impl Runtime {
    /// Removes what is left of a container that has ended: cgroup, folder; then come the hooks. What cannot be removed
    /// is a warning, and the rest goes nevertheless.
    pub(super) fn remove(&mut self, folder: &Folder, record: &Record, spec: &Spec) {
        if !record.cgroup.is_empty() {
            let removed = cgroups_of(record.cgroup_driver)
                .map_err(|source| Error::Container { operation: "delete", source });
            let removed = removed.and_then(|c| c.remove(&record.cgroup).map_err(Error::from));
            self.warn_of(removed);
        }
        self.warn_of(unmount_root(record));
        self.warn_of(folder.remove());
        self.stopped_hooks(spec, &record.id, &record.bundle);
    }

    /// Runs the hooks for the end. "If any poststop hook fails, the runtime MUST log a warning, but the remaining hooks
    /// and lifecycle continue."
    fn stopped_hooks(&mut self, spec: &Spec, id: &str, bundle: &Path) {
        let state = hooks::state(id, spec, bundle);
        let failed = hooks::run_each(hooks::list(spec, Moment::Poststop), Moment::Poststop, &state);
        self.warnings.extend(failed.filter_map(Result::err).map(|e| e.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::{check_version, user_name};

    #[test]
    fn names_of_users() {
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(u32::MAX - 1), (u32::MAX - 1).to_string());
    }

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.0.2-dev", "1.2.0", "1.3.0+x"] {
            assert!(check_version(good).is_ok(), "{good} is refused");
        }
        for bad in ["", "1", "1.0", "0.9.0", "2.0.0", "x.y.z", "1.0.0.0"] {
            assert!(check_version(bad).is_err(), "{bad} passed");
        }
    }
}
