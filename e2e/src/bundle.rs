//! A bundle and the OCI runtime that it is given to, by the command line that all runtimes share.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::leftovers::{CGROUP_PREFIX, remove_cgroups};
use crate::poll::until;
use crate::tools::{self, Ran, run};

/// How long a container may take to come to a state.
const PATIENCE: Duration = Duration::from_secs(30);
/// The programs in a bundle, all of them busybox.
const PROGRAMS: [&str; 28] = [
    "cat", "chmod", "cut", "dd", "echo", "env", "false", "find", "grep", "head", "hostname", "id", "kill",
    "ls", "mkdir", "mknod", "mount", "readlink", "rm", "sed", "sh", "sleep", "stat", "test", "touch", "true",
    "tty", "wc",
];

/// An OCI runtime.
#[derive(Clone, Debug)]
pub struct Runtime {
    program: PathBuf,
    /// The name it is called by.
    name: String,
    /// Words before the command.
    words: Vec<String>,
}

impl Runtime {
    /// The runtime under test.
    pub fn berth() -> Runtime {
        Runtime { program: tools::berth().to_owned(), name: "berth-oci".to_owned(), words: Vec::new() }
    }

    /// Another one, of this machine.
    pub fn other(name: &str) -> Result<Runtime> {
        Ok(Runtime { program: tools::find(name)?, name: name.to_owned(), words: Vec::new() })
    }

    /// The same with words before each command.
    pub fn with(mut self, words: &[&str]) -> Runtime {
        self.words.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }
}

/// A bundle in a folder of its own, and the container that is made of it. Both go when this does.
#[derive(Debug)]
pub struct Bundle {
    /// Its configuration, written at each `create` and `run`.
    pub config: Value,
    /// The container's id.
    pub id: String,
    dir: tempfile::TempDir,
    runtime: Runtime,
    parent: String,
    /// Words before the runtime's program.
    before: Vec<String>,
}

impl Bundle {
    /// A bundle with the namespaces, mounts and rights of a usual container.
    pub fn new(runtime: &Runtime) -> Result<Bundle> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("c{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("berth-e2e-bundle-").tempdir_in("/var/tmp")?;
        // A root of a user namespace is to reach its files.
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
        let parent = format!("/{CGROUP_PREFIX}{}-{id}", std::process::id());
        let bundle = Bundle {
            config: usual(&format!("{parent}/{id}")),
            id,
            dir,
            runtime: runtime.clone(),
            parent,
            before: Vec::new(),
        };
        let root = bundle.path("rootfs");
        for name in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy(tools::find("busybox")?, root.join("bin/busybox")).context("copy busybox")?;
        for name in PROGRAMS {
            symlink("busybox", root.join("bin").join(name))?;
        }
        // Called by another name, it is an OCI runtime.
        symlink(&runtime.program, bundle.path(&runtime.name))?;
        Ok(bundle)
    }

    /// Gives the bundle to a user, who calls the runtime from now on, from within `before`: a program that executes the
    /// words it is given.
    pub fn give_to(&mut self, user: u32, before: &[&str]) -> Result<()> {
        let id = user.to_string();
        let as_user = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"];
        let words = before.iter().chain(&as_user).map(|w| (*w).to_owned());
        // Who may not reach the program gets a copy.
        let link = self.path(&self.runtime.name);
        let mut reach = Command::new(as_user[0]);
        reach.args(&as_user[1..]).args(["test", "-x"]).arg(&link);
        if run(reach)?.code != 0 {
            fs::remove_file(&link)?;
            fs::copy(&self.runtime.program, &link).context("copy the runtime's program")?;
        }
        self.before = words.collect();
        let mut chown = Command::new("chown");
        chown.args(["-hR", &format!("{id}:{id}")]).arg(self.dir.path());
        run(chown)?.ok().map(drop)
    }

    /// Has the runtime called in another mount namespace from now on.
    pub fn mounts_in(&mut self, namespace: &str) {
        let there = format!("cd {} && exec \"$@\"", self.dir.path().display());
        self.through(&["nsenter", &format!("--mount={namespace}"), "--", "sh", "-c", &there, "sh"]);
    }

    /// Has the runtime called by these words from now on, and by what has been called before in turn.
    pub fn through(&mut self, words: &[&str]) {
        self.before.extend(words.iter().map(|w| (*w).to_owned()));
    }

    /// Takes the configuration that the runtime suggests for a user, with a shell script to run.
    pub fn suggested(&mut self, script: &str) -> Result<()> {
        self.call(&["spec", "--rootless"])?.ok()?;
        self.config = serde_json::from_str(&self.read("config.json")?)?;
        self.config["root"] = json!({"path": "rootfs"});
        self.config["process"]["terminal"] = json!(false);
        self.config["process"]["env"] = json!(["PATH=/bin"]);
        self.shell(script);
        Ok(())
    }

    /// The cgroup that all of the bundle's are in.
    pub fn cgroup_parent(&self) -> &str {
        &self.parent
    }

    /// A path in the bundle's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file in the bundle's folder, as text.
    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Has the container run a shell script.
    pub fn shell(&mut self, script: &str) -> &mut Bundle {
        self.config["process"]["args"] = json!(["sh", "-c", script]);
        self
    }

    /// Writes the configuration.
    pub fn save(&self) -> Result<()> {
        Ok(fs::write(self.path("config.json"), serde_json::to_vec(&self.config)?)?)
    }

    /// The cgroup that the configuration asks for.
    pub fn cgroup(&self) -> &str {
        self.config["linux"]["cgroupsPath"].as_str().unwrap_or_default()
    }

    /// A command of the runtime, in the bundle's folder.
    pub fn command(&self, words: &[&str]) -> Command {
        let program = self.path(&self.runtime.name);
        let beside = Path::new("/sys/fs/cgroup/unified");
        let mut words_before = self.before.clone();
        if self.runtime.name == "crun" && beside.exists() {
            // It refuses a tree where v2 is mounted beside v1.
            let script = "umount /sys/fs/cgroup/unified; exec \"$@\"";
            let apart = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
            words_before.splice(0..0, apart.map(str::to_owned));
        }
        let mut command = match words_before.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.arg("--root").arg(self.path("state")).args(&self.runtime.words).args(words);
        command.current_dir(self.dir.path());
        command
    }

    /// Runs a command of the runtime whose output is not a container's.
    pub fn call(&self, words: &[&str]) -> Result<Ran> {
        run(self.command(words))
    }

    /// Runs a command after which a container may hold on to its output, which goes to a file: see [`Bundle::output`].
    pub fn call_apart(&self, words: &[&str]) -> Result<bool> {
        self.save()?;
        let out = File::options().create(true).append(true).open(self.path("out"))?;
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
        Ok(command.status().with_context(|| format!("run {words:?}"))?.success())
    }

    /// Tries to create the container; tells whether that worked.
    pub fn created(&self) -> Result<bool> {
        self.call_apart(&["create", "--bundle", &self.dir.path().display().to_string(), &self.id])
    }

    /// Creates the container.
    pub fn create(&self) -> Result<()> {
        ensure!(self.created()?, "create: {}", self.output()?);
        Ok(())
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        self.call(&["start", &self.id])?.ok().map(drop)
    }

    /// Creates and starts it.
    pub fn launch(&self) -> Result<()> {
        self.create()?;
        self.start()
    }

    /// Its state, if there is such a container.
    pub fn state(&self) -> Result<Option<Value>> {
        let ran = self.call(&["state", &self.id])?;
        if ran.code != 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&ran.stdout).with_context(|| ran.to_string())?))
    }

    /// Its status, empty when there is no such container.
    pub fn status(&self) -> Result<String> {
        let state = self.state()?.unwrap_or_default();
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Its first process.
    pub fn pid(&self) -> Result<i64> {
        self.state()?.and_then(|s| s["pid"].as_i64()).context("its state has no pid")
    }

    /// Waits until it has a status.
    pub fn wait(&self, status: &str) -> Result<()> {
        until(status, PATIENCE, || match self.status() {
            Ok(now) if now == status => Ok(Some(())),
            Ok(now) => Err(format!("it is {now:?}")),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Waits until its output has a line of its own.
    pub fn wait_output(&self, line: &str) -> Result<()> {
        until(line, PATIENCE, || {
            let output = self.output().map_err(|e| e.to_string())?;
            if output.lines().any(|l| l == line) { Ok(Some(())) } else { Err(output) }
        })
    }

    /// What it and its creator have written.
    pub fn output(&self) -> Result<String> {
        self.read("out")
    }

    /// Creates and starts it, waits for its end and gives its output.
    pub fn finish(&self) -> Result<String> {
        self.launch()?;
        self.wait("stopped")?;
        self.output()
    }

    /// Deletes it, which must work.
    pub fn delete(&self) -> Result<()> {
        self.call(&["delete", &self.id])?.ok().map(drop)
    }

    /// A file of its cgroup: by controller and name on v1, by name on v2.
    pub fn cgroup_file(&self, controller: &str, v1: &str, v2: &str) -> Result<String> {
        let top = Path::new("/sys/fs/cgroup");
        let relative = self.cgroup().trim_start_matches('/');
        let file =
            if is_v2() { top.join(relative).join(v2) } else { top.join(controller).join(relative).join(v1) };
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(text.trim().to_owned())
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // A test that failed has left it somewhere in between.
        let _ = self.call(&["delete", "--force", &self.id]);
        remove_cgroups(&self.parent);
    }
}

/// Whether this machine has a pure cgroup v2 tree.
pub fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What engines write into a configuration that asks for nothing.
fn usual(cgroup: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
    ]);
    let mount = |to: &str, kind: &str, options: Value| json!({"destination": to, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "hostname": "c",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "mounts": [
            mount("/proc", "proc", json!([])),
            mount("/dev", "tmpfs", json!(["nosuid", "strictatime", "mode=755", "size=65536k"])),
            mount("/dev/pts", "devpts", json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"])),
            mount("/dev/shm", "tmpfs", json!(["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])),
            mount("/sys", "sysfs", json!(["nosuid", "noexec", "nodev", "ro"])),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            ],
        },
    })
}
