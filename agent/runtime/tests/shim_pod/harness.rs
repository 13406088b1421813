//! A pod to try a shim on: a folder, a shim process, a cgroup and a root file system with busybox.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_runtime::cgroup::Cgroups;
use berth_runtime::log::{Query, read_to};
use berth_runtime::rootfs::Rootfs;
use berth_runtime::shim::client::Client;
use berth_runtime::shim::proto::{CreateRequest, Event, ExitRecord, Status};
use berth_runtime::shim::{Program, ShimProcess, SpawnOptions, spawn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

/// How long anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program with `shim::main`, which cargo builds beside the tests.
pub fn exe() -> Program {
    let test = std::env::current_exe().unwrap();
    let exe = test.parent().and_then(Path::parent).unwrap().join("examples/shim");
    assert!(exe.exists(), "{} is missing: build with --examples", exe.display());
    Program::from_file(&exe).unwrap()
}

pub struct Pod {
    pub dir: PathBuf,
    pub shim: ShimProcess,
    pub client: Client,
    pub events: UnboundedReceiver<Event>,
    pub cgroup: String,
    guard: Guard,
}

/// Takes everything away at the end, whatever happened.
struct Guard {
    shim: i32,
    dir: PathBuf,
    cgroup: String,
    temporary: tempfile::TempDir,
}

/// A container to be made: a script for busybox' shell.
pub struct Container {
    pub id: String,
    pub spec: Value,
    pub request: CreateRequest,
}

impl Container {
    /// Has its programs sought in vain in many folders, so that a process takes long until its program runs.
    pub fn found_late(mut self) -> Container {
        self.spec["process"]["env"] = json!([format!("PATH={}/bin", "/nowhere:".repeat(5000))]);
        self
    }
}

impl Pod {
    pub async fn new() -> Pod {
        Pod::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut SpawnOptions)) -> Pod {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "needs root");
        let temporary = tempfile::Builder::new().prefix("berth-shim-").tempdir_in("/var/tmp").unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/berth-test-{}-{number}", std::process::id());
        let dir = temporary.path().join("pod");
        let mut options = SpawnOptions {
            dir: dir.clone(),
            hostname: Some("test-pod".to_owned()),
            net_new: true,
            ipc_new: true,
            uts_new: true,
            ..SpawnOptions::default()
        };
        change(&mut options);
        let dir = options.dir.clone();
        std::fs::create_dir_all(&dir).unwrap();
        busybox(&temporary.path().join("rootfs"));
        let shim = spawn(&exe(), &options).unwrap();
        let (client, events) = Client::connect(&dir.join("shim.sock")).await.unwrap();
        let guard = Guard { shim: shim.pid, dir: dir.clone(), cgroup: cgroup.clone(), temporary };
        Pod { dir, shim, client, events, cgroup, guard }
    }

    pub fn rootfs(&self) -> PathBuf {
        self.guard.temporary.path().join("rootfs")
    }

    /// A container that runs `script`.
    pub fn container(&self, name: &str, script: &str) -> Container {
        self.program(name, &["/bin/sh", "-c", script])
    }

    pub fn program(&self, name: &str, args: &[&str]) -> Container {
        let bundle = self.dir.join("containers").join(name);
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": args, "env": ["PATH=/bin", "TERM=xterm"],
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": format!("{}/{name}", self.cgroup),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
                "resources": {},
            },
        });
        let request = CreateRequest {
            id: name.to_owned(),
            rootfs: Rootfs::Path(self.rootfs()),
            log_path: Some(bundle.join("0.log")),
            bundle,
            log_max_size: 0,
            log_max_files: 0,
            stdin: false,
            stdin_once: false,
            tty: false,
            pod_pids: false,
            pids_of: None,
            runtime: None,
            start: false,
        };
        Container { id: name.to_owned(), spec, request }
    }

    pub async fn create(&self, container: &Container) {
        let bundle = &container.request.bundle;
        std::fs::create_dir_all(bundle).unwrap();
        std::fs::write(bundle.join("config.json"), container.spec.to_string()).unwrap();
        let created = self.client.create(container.request.clone()).await.unwrap();
        assert!(created.pid > 1);
    }

    pub async fn start(&self, container: &Container) {
        self.create(container).await;
        self.client.start(&container.id).await.unwrap();
    }

    /// Runs a container to its end and returns how it ended and what it wrote.
    pub async fn run(&mut self, container: &Container) -> (ExitRecord, String) {
        self.start(container).await;
        let exit = self.exit_of(&container.id).await;
        (exit, self.log(&container.id))
    }

    /// Waits for the event of a container's exit.
    pub async fn exit_of(&mut self, wanted: &str) -> ExitRecord {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event in time");
            if let Event::Exited { id, exit } = event.expect("the shim lives")
                && id == wanted
            {
                return exit;
            }
        }
    }

    /// Waits for the event of a kill for want of memory.
    pub async fn oom_of(&mut self, wanted: &str) -> u64 {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event in time");
            match event.expect("the shim lives") {
                Event::OomKilled { id, kills } if id == wanted => return kills,
                other => assert!(matches!(other, Event::OomKilled { .. }), "{other:?} before the kill"),
            }
        }
    }

    pub fn log(&self, name: &str) -> String {
        let mut out = Vec::new();
        let path = self.dir.join("containers").join(name).join("0.log");
        read_to(&path, &Query::default(), &mut out).unwrap();
        String::from_utf8_lossy(&out).into_owned()
    }

    pub fn exit_json(&self, name: &str) -> ExitRecord {
        let path = self.dir.join("containers").join(name).join("exit.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub fn notes(&self) -> String {
        self.guard.notes()
    }

    /// Another client of the same shim.
    pub async fn connect(&self) -> (Client, UnboundedReceiver<Event>) {
        Client::connect(&self.dir.join("shim.sock")).await.unwrap()
    }

    /// Waits until a container has written something to its log.
    pub async fn logged(&self, name: &str, text: &str) {
        until(&format!("{text:?} in the log of {name}"), || self.log(name).contains(text)).await;
    }

    pub async fn status(&self, name: &str) -> Status {
        let list = self.client.list().await.unwrap();
        list.iter().find(|state| state.id == name).expect("a container").status
    }
}

impl Guard {
    fn notes(&self) -> String {
        std::fs::read_to_string(self.dir.join("shim.log")).unwrap_or_default()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the shim's log:\n{}", self.notes());
        }
        // The number is the shim's: a process that has been reaped is not looked for in a test this short.
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.shim)).unwrap_or_default();
        if comm.trim() == "berth-shim" {
            let _ = kill(Pid::from_raw(self.shim), Signal::SIGKILL);
        }
        if let Ok(cgroups) = Cgroups::detect() {
            let _ = cgroups.remove(&self.cgroup);
        }
    }
}

/// Waits for a condition that no event announces.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A process of that number runs, or is a zombie.
pub fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn busybox(rootfs: &Path) {
    for folder in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        std::fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    std::fs::copy("/usr/bin/busybox", rootfs.join("bin/busybox"))
        .or_else(|_| std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")))
        .expect("busybox, of the package busybox-static");
    for applet in [
        "sh", "sleep", "cat", "echo", "seq", "head", "tail", "hostname", "nc", "stty", "ls", "grep", "true",
        "id", "readlink", "mkdir", "touch", "dd", "kill", "setsid", "ps", "md5sum", "yes", "ip", "tr",
        "printf",
    ] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
}
