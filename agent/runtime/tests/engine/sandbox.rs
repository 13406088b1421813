//! A container to test with: a root file system of busybox and a spec that tests change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use berth_runtime::cgroup::{Cgroups, Driver};
use berth_runtime::container::{
    self, Container, Create, Entrance, Error, Exec, ExecProcess, Stdio, Terms, Tie,
};
use berth_runtime::rootfs::Rootfs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

/// Where test folders go: overlay uppers cannot lie on an overlay, and this is a tmpfs in the v2 VM.
const BASE: &str = "/var/tmp";
const APPLETS: [&str; 37] = [
    "sh", "cat", "ls", "id", "stat", "mount", "umount", "mkdir", "touch", "echo", "sleep", "true", "false",
    "env", "pwd", "readlink", "grep", "dd", "hostname", "ps", "test", "mknod", "tty", "rm", "ln", "tr",
    "cut", "wc", "kill", "chroot", "stty", "head", "tail", "sed", "ionice", "uname", "sort",
];

/// Once per test process: a mount namespace that takes everything with it.
pub fn prepare() {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    assert!(
        Path::new("/bin/busybox").exists(),
        "these tests need /bin/busybox: apt-get install busybox-static"
    );
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

/// What a finished process left.
#[derive(Debug)]
pub struct Output {
    pub status: WaitStatus,
    pub stdout: String,
    pub stderr: String,
    pub warnings: Vec<String>,
}

impl Output {
    pub fn code(&self) -> i32 {
        match self.status {
            WaitStatus::Exited(_, code) => code,
            WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
            other => panic!("neither exited nor killed: {other:?}"),
        }
    }

    /// Standard output of a process that succeeded.
    pub fn ok(&self) -> &str {
        assert_eq!(self.code(), 0, "{self:?}");
        self.stdout.trim_end()
    }
}

/// See the module. Dropping it kills and removes everything.
pub struct Sandbox {
    dir: tempfile::TempDir,
    pub spec: Value,
    pub cgroup: String,
    /// Further processes are made as where one of the container might look into them.
    pub traced: bool,
    /// Its container is in every hierarchy, as one of the OCI runtime.
    pub everywhere: bool,
    /// See [`Create::patience`].
    pub patience: Option<Duration>,
    parent: String,
    /// The ways into its containers, by their first processes.
    entrances: RefCell<HashMap<i32, Rc<Entrance>>>,
}

/// What sandboxes begin with.
static TRACED: AtomicBool = AtomicBool::new(false);

/// Runs a test with sandboxes that are traced.
pub fn traced(test: fn()) {
    TRACED.store(true, Ordering::Relaxed);
    let result = std::panic::catch_unwind(test);
    TRACED.store(false, Ordering::Relaxed);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

impl Sandbox {
    pub fn new() -> Sandbox {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("berth-engine-").tempdir_in(BASE).unwrap();
        for sub in
            ["lower/bin", "lower/etc", "lower/tmp", "lower/proc", "lower/dev", "lower/sys", "upper", "work"]
        {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let bin = dir.path().join("lower/bin");
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        APPLETS.iter().for_each(|a| symlink("busybox", bin.join(a)).unwrap());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(
            dir.path().join("lower/etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
        )
        .unwrap();
        fs::write(dir.path().join("lower/etc/group"), "root:x:0:\nweb:x:34:\nlogs:x:4:web\n").unwrap();
        let parent = format!("/berth-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = format!("{parent}/c");
        let spec = default_spec(&cgroup);
        let traced = TRACED.load(Ordering::Relaxed);
        let entrances = RefCell::default();
        Sandbox { dir, spec, cgroup, traced, everywhere: false, patience: None, parent, entrances }
    }

    /// A sandbox that runs this shell script.
    pub fn script(script: &str) -> Sandbox {
        let mut sandbox = Sandbox::new();
        sandbox.spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        sandbox
    }

    /// A path in the bundle folder on the host.
    pub fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A path in the lowest layer.
    pub fn image(&self, path: &str) -> PathBuf {
        self.dir.path().join("lower").join(path)
    }

    pub fn rootfs(&self) -> Rootfs {
        Rootfs::Overlay {
            lowers: vec![self.host("lower")],
            upper: self.host("upper"),
            work: self.host("work"),
        }
    }

    pub fn push(&mut self, pointer: &str, value: Value) {
        let list = self.spec.pointer_mut(pointer).expect(pointer);
        list.as_array_mut().unwrap().push(value);
    }

    pub fn typed_spec(&self) -> Spec {
        serde_json::from_value(self.spec.clone()).unwrap()
    }

    pub fn create_with(&self, rootfs: &Rootfs, stdio: Stdio) -> Result<Container, Error> {
        self.create_as(rootfs, stdio, Tie::default())
    }

    /// Creates with other ties to this process.
    pub fn create_tied(&self, tie: Tie) -> Result<Container, Error> {
        self.create_as(&self.rootfs(), self.stdio("out", "err"), tie)
    }

    fn create_as(&self, rootfs: &Rootfs, stdio: Stdio, tie: Tie) -> Result<Container, Error> {
        let spec = self.typed_spec();
        container::create(Create {
            id: "c",
            spec: &spec,
            rules: None,
            rootfs,
            stdio,
            bundle: self.dir.path(),
            tie,
            driver: Driver::default(),
            everywhere: self.everywhere,
            at_once: false,
            no_pivot: false,
            patience: self.patience,
        })
    }

    /// Creates with output going to the files `out` and `err` of the bundle.
    pub fn create(&self) -> Result<Container, Error> {
        self.create_with(&self.rootfs(), self.stdio("out", "err"))
    }

    pub fn stdio(&self, out: &str, err: &str) -> Stdio {
        let file = |name: &str| Some(OwnedFd::from(File::create(self.host(name)).unwrap()));
        Stdio { stdin: None, stdout: file(out), stderr: file(err) }
    }

    /// Creates and starts.
    pub fn start(&self) -> Result<Container, Error> {
        let mut container = self.create()?;
        let started = container.start();
        if started.is_err() {
            wait(container.pidfd.as_fd());
        }
        started.map(|()| container)
    }

    /// Runs to the end.
    pub fn run(&self) -> Output {
        let container = self.start().unwrap_or_else(|e| panic!("start: {e}"));
        self.finish(container)
    }

    pub fn finish(&self, container: Container) -> Output {
        let status = wait(container.pidfd.as_fd());
        self.output(status, container.warnings, "out", "err")
    }

    fn output(&self, status: WaitStatus, warnings: Vec<String>, out: &str, err: &str) -> Output {
        let read = |name: &str| fs::read_to_string(self.host(name)).unwrap_or_default();
        Output { status, stdout: read(out), stderr: read(err), warnings }
    }

    pub fn error(&self) -> String {
        match self.start() {
            Ok(container) => panic!("it started: {:?}", self.finish(container)),
            Err(error) => error.to_string(),
        }
    }

    pub fn try_exec(&self, container: &Container, process: Value) -> Result<ExecProcess, Error> {
        let mut full = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"]});
        full.as_object_mut().unwrap().extend(process.as_object().unwrap().clone());
        let process: Process = serde_json::from_value(full).unwrap();
        let spec = self.typed_spec();
        let terms = Terms::of_spec(&spec, "test", self.dir.path())?;
        let traced = self.traced
            || container::may_trace(&process)
            || spec.process().as_ref().is_some_and(container::may_trace);
        container::exec(Exec {
            pid: container.pid,
            terms: &terms,
            process,
            stdio: self.stdio("exec-out", "exec-err"),
            entrance: &*self.entrance(container)?,
            tie: Tie::default(),
            untraced: !traced,
            patience: berth_runtime::container::EXEC_PATIENCE,
        })
    }

    /// Kept, as a shim does: processes that were made by it end with it.
    fn entrance(&self, container: &Container) -> Result<Rc<Entrance>, Error> {
        if let Some(entrance) = self.entrances.borrow().get(&container.pid) {
            return Ok(entrance.clone());
        }
        let entrance = Rc::new(Entrance::open(&self.cgroup)?);
        self.entrances.borrow_mut().insert(container.pid, entrance.clone());
        Ok(entrance)
    }

    /// Runs a script in the running container.
    pub fn exec(&self, container: &Container, script: &str) -> Output {
        self.exec_process(container, json!({"args": ["sh", "-c", script]}))
    }

    pub fn exec_process(&self, container: &Container, process: Value) -> Output {
        let started = self.try_exec(container, process).unwrap_or_else(|e| panic!("exec: {e}"));
        let status = wait(started.pidfd.as_fd());
        self.output(status, started.warnings, "exec-out", "exec-err")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let cgroups = Cgroups::detect().unwrap();
        if let Err(error) = cgroups.remove(&self.parent) {
            eprintln!("cgroup {} stays: {error}", self.parent);
        }
    }
}

/// Waits for a child and reaps it.
pub fn wait(pidfd: BorrowedFd<'_>) -> WaitStatus {
    waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED).unwrap()
}

/// Kills and reaps.
pub fn stop(container: &Container) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(container.pid), nix::sys::signal::SIGKILL);
    wait(container.pidfd.as_fd());
}

/// Everything that comes out of a file from its start.
pub fn slurp(mut file: File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Looks until it is true, for ten seconds at most: for what the kernel has no event for.
#[allow(clippy::disallowed_methods)]
pub fn until(what: &str, mut test: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !test() {
        assert!(std::time::Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

fn default_spec(cgroup: &str) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES
            },
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "network"}
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware",
                            "/proc/no-such-thing"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
