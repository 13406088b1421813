//! A `berth agent` on a machine of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tempfile::TempDir;

use crate::leftovers;
use crate::machine::{self, Machine, Process};
use crate::pods::{PodExt, Pods};
use crate::tools::{self, Ran};
use crate::{http, manifest, poll};

/// Name of every test node; file pods carry it as their suffix.
pub const NAME: &str = "n1";

/// The nft table, the bridge and the read-only port of every test node: each is alone on its machine.
pub const TABLE: &str = "berth_test";
/// See [`TABLE`].
pub const BRIDGE: &str = "brtest0";
/// See [`TABLE`].
pub const READ_ONLY: &str = "127.0.0.1:10255";

/// What one container of a pod is on the machine, from the pod's run folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnMachine {
    /// Container id.
    pub id: String,
    /// Its first process as the machine sees it.
    pub pid: i32,
    /// Whether that process is alive.
    pub alive: bool,
}

/// A manifest that is written but not in its place.
#[derive(Debug)]
pub struct Draft {
    draft: PathBuf,
    file: PathBuf,
}

impl Draft {
    /// Renames it to its name.
    pub fn publish(self) -> Result<()> {
        std::fs::rename(&self.draft, &self.file).with_context(|| format!("rename to {}", self.file.display()))
    }
}

/// See the crate's tour.
#[derive(Debug)]
pub struct Node {
    machine: Arc<Machine>,
    dir: TempDir,
    /// The run folder, in memory as everywhere.
    run: TempDir,
    cgroup_parent: String,
    extra: Vec<String>,
    environment: Vec<(String, String)>,
    /// The running agent: `nsenter` that started it, and its PID on the machine.
    agent: Option<(Child, i32)>,
    mounts: Vec<String>,
    /// Whether nothing is left to be checked at the end: no agent has run, or it has been done.
    checked: bool,
}

impl Node {
    /// A node with the demo image and an empty manifest folder. It restarts crashed containers after at most 1 s, unless
    /// [`Node::with`] gives another configuration.
    pub fn start() -> Result<Self> {
        Self::with("crashLoopBackOff:\n  maxContainerRestartPeriod: 1s\n", &[])
    }

    /// A node with this configuration file and these flags of `berth agent` besides the usual ones.
    pub fn with(config: &str, flags: &[&str]) -> Result<Self> {
        let mut node = Self::prepare(config, flags)?;
        node.start_agent()?;
        Ok(node)
    }

    /// All but the agent, which [`Node::start_agent`] starts.
    pub fn prepare(config: &str, flags: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        leftovers::sweep_cgroups();
        let base =
            std::env::var_os("BERTH_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = tempfile::Builder::new()
            .prefix("berth-e2e-")
            .tempdir_in(&base)
            .context("make the node's folder")?;
        let run = tempfile::Builder::new().prefix("berth-e2e-run-").tempdir_in(in_memory().unwrap_or(&base));
        let run = run.context("make the node's run folder")?;
        for name in ["manifests", "root", "log/pods"] {
            std::fs::create_dir_all(dir.path().join(name)).context("make the node's folders")?;
        }
        std::fs::write(dir.path().join("config.yaml"), config).context("write the node's configuration")?;
        let cgroup_parent = format!(
            "/{}{}-{}",
            leftovers::CGROUP_PREFIX,
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let machine = Arc::new(Machine::new()?);
        let mounts = machine.mounts()?;
        let extra = flags.iter().map(ToString::to_string).collect();
        let node = Self {
            machine,
            dir,
            run,
            cgroup_parent,
            extra,
            environment: Vec::new(),
            agent: None,
            mounts,
            checked: true,
        };
        let tar = tools::demo_rootfs()?;
        node.berth(&["image", "import", &tar.to_string_lossy(), manifest::IMAGE])?.ok()?;
        Ok(node)
    }

    /// The machine it is on.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// A path in the node's folder: `manifests`, `root`, `run`, `log/pods`, `config.yaml`, `agent.log`.
    pub fn path(&self, name: &str) -> PathBuf {
        match Path::new(name).strip_prefix("run") {
            Ok(inside) => self.run.path().join(inside),
            Err(_) => self.dir.path().join(name),
        }
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("run/berth.sock")
    }

    /// The cgroup under which the node makes its own, relative to each hierarchy's root.
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    // ---- the agent ----

    /// An agent with this node's settings that has only the network of the machine, in place of [`Node::start_agent`]'s: its
    /// PIDs mean the same to systemd. Who starts it ends it.
    pub fn outer_agent(&self) -> Command {
        self.with_settings(self.machine.network_command(tools::berth()))
    }

    fn agent_command(&self) -> Command {
        self.with_settings(self.machine.command(tools::berth()))
    }

    /// The words that start the agent.
    fn with_settings(&self, mut command: Command) -> Command {
        command.arg("agent");
        for (flag, path) in [
            ("--config", "config.yaml"),
            ("--manifests", "manifests"),
            ("--root", "root"),
            ("--run", "run"),
            ("--log-dir", "log/pods"),
        ] {
            command.arg(flag).arg(self.path(path));
        }
        command.args([
            "--cgroup-parent",
            &self.cgroup_parent,
            "--node-name",
            NAME,
            "--node-ip",
            machine::ADDRESS,
        ]);
        command.args(["--bridge", BRIDGE, "--nft-table", TABLE, "--read-only-address", READ_ONLY]);
        command.arg("--socket").arg(self.socket()).args(&self.extra);
        command
    }

    /// Sets a variable of the environment of agents that are started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Starts the agent and returns when it answers.
    pub fn start_agent(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.path("agent.log"))?;
        let mut command = self.agent_command();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().context("start the agent")?;
        let what = "the agent answers";
        let found = poll::until(what, Duration::from_secs(30), || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Some(Err(format!("the agent ended with {status}"))));
            }
            let pid = self.agent_pid().map_err(|e| e.to_string())?;
            http::get(&self.socket(), "/api/v1/pods").map_err(|e| e.to_string())?;
            Ok(pid.map(Ok))
        });
        match found.map_err(|e| e.to_string()).and_then(|found| found) {
            Ok(pid) => {
                self.agent = Some((child, pid));
                self.checked = false;
            }
            Err(why) => bail!("{why}\n{}", self.agent_log()),
        }
        Ok(())
    }

    fn agent_pid(&self) -> Result<Option<i32>> {
        let words = format!("{} agent ", tools::berth().display());
        Ok(self.machine.processes()?.into_iter().find(|p| p.command.starts_with(&words)).map(|p| p.pid))
    }

    /// PID of the running agent as the machine sees it.
    pub fn agent(&self) -> Result<i32> {
        self.agent.as_ref().map(|(_, pid)| *pid).context("the agent does not run")
    }

    /// The processes on the machine, without the shim that waits for the next pod.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let mut all = self.machine.processes()?;
        all.retain(|p| !p.command.starts_with(leftovers::SPARE_SHIM));
        Ok(all)
    }

    /// The shim that waits for the next pod, as the machine sees it.
    pub fn spare_shim(&self) -> Result<Option<i32>> {
        let found = self.machine.processes()?.into_iter();
        Ok(found.filter(|p| p.command.starts_with(leftovers::SPARE_SHIM)).map(|p| p.pid).next())
    }

    /// `kill -9` of the agent, nothing else; returns when it is gone.
    pub fn kill9_agent(&mut self) -> Result<()> {
        let (mut child, pid) = self.agent.take().context("the agent does not run")?;
        self.machine.kill("KILL", &[pid])?;
        child.wait().context("wait for the agent")?;
        Ok(())
    }

    /// Asks the agent to end (TERM) and returns when it has; pods keep running, unless it has `--cleanup-on-exit`.
    pub fn stop_agent(&mut self) -> Result<()> {
        let (mut child, pid) = self.agent.take().context("the agent does not run")?;
        self.machine.kill("TERM", &[pid])?;
        let status = poll::until("the agent ends on TERM", Duration::from_secs(60), || {
            child.try_wait().map_err(|e| e.to_string())
        })?;
        ensure!(status.success(), "the agent ended with {status} on TERM\n{}", self.agent_log());
        Ok(())
    }

    /// What the agent has logged.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    // ---- manifests ----

    /// Puts a manifest into the folder in one step, as a careful writer does.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        self.draft(file, text)?.publish()
    }

    /// Writes a manifest beside where it shall be, under a name that the agent passes over.
    pub fn draft(&self, file: &str, text: &str) -> Result<Draft> {
        let draft = self.path(&format!("manifests/.{file}.draft"));
        std::fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
        Ok(Draft { draft, file: self.path("manifests").join(file) })
    }

    /// Takes a manifest out of the folder.
    pub fn remove(&self, file: &str) -> Result<()> {
        std::fs::remove_file(self.path("manifests").join(file)).with_context(|| format!("remove {file}"))
    }

    // ---- the API ----

    /// The node's pods and the version of that list.
    fn list(&self) -> Result<(Pods, String)> {
        let list = http::get(&self.socket(), "/api/v1/pods")?;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
        let items: Vec<Pod> =
            serde_json::from_value(list["items"].clone()).context("items of the pod list")?;
        Ok((items.into_iter().map(|p| (key(&p), p)).collect(), version))
    }

    /// The node's pods now.
    pub fn pods(&self) -> Result<Pods> {
        Ok(self.list()?.0)
    }

    /// A pod by the name in its manifest.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pods()?.remove(name).with_context(|| format!("there is no pod {name}"))
    }

    /// Waits until the pods are as `good` wants them: list, then watch. Survives the agent's death and return.
    pub fn wait(&self, what: &str, limit: Duration, mut good: impl FnMut(&Pods) -> bool) -> Result<Pods> {
        let end = Instant::now() + limit;
        let mut last = Pods::new();
        while Instant::now() < end {
            match self.wait_once(end, &mut last, &mut good) {
                Ok(true) => return Ok(last),
                Ok(false) => {}
                // The agent is away or the watch ran out of time; the deadline decides.
                Err(_) => poll::pause(Duration::from_millis(20)),
            }
        }
        let seen: Vec<String> = last.iter().map(|(name, pod)| format!("{name}: {}", describe(pod))).collect();
        bail!(
            "not within {} s: {what}\npods:\n  {}\n{}",
            limit.as_secs_f32(),
            seen.join("\n  "),
            tail(&self.agent_log(), 40)
        )
    }

    fn wait_once(&self, end: Instant, pods: &mut Pods, good: &mut impl FnMut(&Pods) -> bool) -> Result<bool> {
        let (list, version) = self.list()?;
        *pods = list;
        if good(pods) {
            return Ok(true);
        }
        let mut watch =
            http::watch(&self.socket(), &format!("/api/v1/pods?watch=true&resourceVersion={version}"))?;
        while let Some(event) = watch.next(end.saturating_duration_since(Instant::now()))? {
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            let object = event["object"].clone();
            match kind.as_str() {
                "ADDED" | "MODIFIED" | "DELETED" => {
                    let pod: Pod = serde_json::from_value(object).context("the pod of a watch event")?;
                    if kind == "DELETED" {
                        pods.remove(&key(&pod))
                    } else {
                        pods.insert(key(&pod), pod)
                    };
                }
                "ERROR" => return Ok(false),
                _ => continue,
            }
            if good(pods) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until every named pod runs.
    pub fn wait_running(&self, names: &[&str]) -> Result<Pods> {
        let what = format!("{} run", names.join(", "));
        self.wait(&what, Duration::from_secs(30), |pods| {
            names.iter().all(|n| pods.get(*n).is_some_and(PodExt::is_running))
        })
    }

    /// Waits until a pod is gone.
    pub fn wait_gone(&self, name: &str) -> Result<()> {
        self.wait(&format!("{name} is gone"), Duration::from_secs(30), |pods| !pods.contains_key(name))
            .map(drop)
    }

    /// Events about the object of this name, as `reason: message`, in the order in which they came.
    pub fn events(&self, name: &str) -> Result<Vec<String>> {
        let list = http::get(&self.socket(), "/api/v1/events")?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let about = |e: &&Value| {
            let involved = text(&e["involvedObject"]["name"]);
            involved == name || involved == format!("{name}-{NAME}")
        };
        let items = list["items"].as_array().context("the event list has no items")?;
        Ok(items
            .iter()
            .filter(about)
            .map(|e| format!("{}: {}", text(&e["reason"]), text(&e["message"])))
            .collect())
    }

    /// Waits until there is an event about the object of this name that contains `part`.
    pub fn wait_event(&self, name: &str, part: &str) -> Result<String> {
        poll::until(&format!("an event about {name} with {part:?}"), Duration::from_secs(20), || {
            let events = self.events(name).map_err(|e| e.to_string())?;
            match events.iter().find(|e| e.contains(part)) {
                Some(event) => Ok(Some(event.clone())),
                None => Err(format!("events: {events:#?}")),
            }
        })
    }

    // ---- the command line ----

    /// A `berth` command on the machine that talks to this node.
    pub fn berth_command(&self, words: &[&str]) -> Command {
        let mut command = self.machine.command(tools::berth());
        command.args(words).env("BERTH_SOCKET", self.socket()).env("BERTH_ROOT", self.path("root"));
        command
    }

    /// Runs a `berth` verb on the machine.
    pub fn berth(&self, words: &[&str]) -> Result<Ran> {
        tools::run(self.berth_command(words))
    }

    /// Runs a command in a pod's container and gives what it did.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<Ran> {
        let name = format!("{pod}-{NAME}");
        let mut words = vec!["exec", &name, "--"];
        words.extend(command);
        self.berth(&words)
    }

    // ---- the machine ----

    /// The containers of a pod that have a process or had one, from its run folder.
    pub fn on_machine(&self, uid: &str) -> Result<Vec<OnMachine>> {
        let mut found = Vec::new();
        let Ok(entries) = std::fs::read_dir(self.path(&format!("run/pods/{uid}/containers"))) else {
            return Ok(found);
        };
        for entry in entries {
            let entry = entry?;
            let Ok(text) = std::fs::read_to_string(entry.path().join("state.json")) else { continue };
            let state: Value = serde_json::from_str(&text)
                .with_context(|| format!("{}/state.json", entry.path().display()))?;
            let pid = state["pid"].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0);
            let id = entry.file_name().to_string_lossy().into_owned();
            found.push(OnMachine { id, pid, alive: pid > 0 && self.machine.alive(pid) });
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// PIDs of a pod's containers that are alive, as the machine sees them.
    pub fn pids(&self, uid: &str) -> Result<Vec<i32>> {
        Ok(self.on_machine(uid)?.into_iter().filter(|c| c.alive).map(|c| c.pid).collect())
    }

    /// PID of a pod's shim.
    pub fn shim(&self, uid: &str) -> Result<i32> {
        let path = self.path(&format!("run/pods/{uid}/shim.pid"));
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{}: {text:?} is no PID", path.display()))
    }

    /// Folder of a pod's logs.
    pub fn log_dir(&self, pod: &Pod) -> PathBuf {
        let meta = &pod.metadata;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        self.path("log/pods").join(format!("{}_{}_{}", text(&meta.namespace), text(&meta.name), pod.uid()))
    }

    /// A container's log: the text of every line of one instance, checked to be in the CRI format.
    pub fn log(&self, pod: &Pod, container: &str, attempt: u32) -> Result<Vec<String>> {
        let path = self.log_dir(pod).join(container).join(format!("{attempt}.log"));
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.lines()
            .map(|line| cri_text(line).with_context(|| format!("{}: not CRI: {line:?}", path.display())))
            .collect()
    }

    /// Waits until the pod's first instance of `main` has logged a line that contains `part`.
    pub fn wait_log(&self, pod: &Pod, part: &str) -> Result<Vec<String>> {
        poll::until(&format!("a log line with {part:?}"), Duration::from_secs(20), || {
            let lines = self.log(pod, "main", 0).map_err(|e| e.to_string())?;
            if lines.iter().any(|l| l.contains(part)) { Ok(Some(lines)) } else { Err(format!("{lines:?}")) }
        })
    }

    /// The body of a page of the read-only server.
    pub fn page(&self, path: &str) -> Result<String> {
        let mut curl = self.machine.command("curl");
        curl.args(["-sS", "--fail", "--max-time", "10", &format!("http://{READ_ONLY}{path}")]);
        tools::run(curl)?.ok()
    }

    // ---- the end ----

    /// Removes every pod, checks that nothing of them is left, and stops the agent.
    pub fn finish(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.checked = true;
        if self.agent.is_none() {
            self.start_agent()?;
        }
        for entry in std::fs::read_dir(self.path("manifests"))? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
        }
        for pod in self.pods()?.values() {
            let meta = &pod.metadata;
            let (namespace, name) =
                (meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default());
            // A file pod goes with its file; for the others this is what removes them.
            http::json(
                &self.socket(),
                "DELETE",
                &format!("/api/v1/namespaces/{namespace}/pods/{name}"),
                None,
            )?;
        }
        self.wait("every pod is gone", Duration::from_secs(90), Pods::is_empty)?;
        poll::until("nothing is left of the pods", Duration::from_secs(15), || {
            let left = leftovers::of_pods(self).map_err(|e| e.to_string())?;
            if left.is_empty() { Ok(Some(())) } else { Err(format!("\n  {}", left.join("\n  "))) }
        })?;
        self.stop_agent()?;
        poll::until("no shim outlives the agent without a pod", Duration::from_secs(15), || {
            Ok(self.spare_shim().map_err(|e| e.to_string())?.is_none().then_some(()))
        })
    }

    /// The machine's mounts before the agent was first started.
    pub(crate) fn first_mounts(&self) -> &[String] {
        &self.mounts
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let outcome = if std::thread::panicking() {
            eprintln!("agent's log:\n{}", tail(&self.agent_log(), 60));
            Ok(())
        } else if self.checked {
            Ok(())
        } else {
            self.end()
        };
        // Whatever still runs goes with the machine's PID 1, which `machine` takes along; its cgroups do not.
        if let Ok(processes) = self.machine.processes() {
            let pids: Vec<i32> = processes.iter().map(|p| p.pid).collect();
            let _ = self.machine.kill("KILL", &pids);
        }
        leftovers::remove_cgroups(&self.cgroup_parent);
        if let Err(error) = outcome {
            panic!("the node did not end well: {error:#}\nagent's log:\n{}", tail(&self.agent_log(), 60));
        }
    }
}

/// A folder whose files are in memory, as `/run` is on a machine that was started by systemd.
fn in_memory() -> Option<&'static Path> {
    /// See linux/magic.h.
    const TMPFS_MAGIC: i128 = 0x0102_1994;
    let in_memory =
        |path: &&Path| rustix::fs::statfs(*path).is_ok_and(|s| i128::from(s.f_type) == TMPFS_MAGIC);
    ["/run", "/dev/shm"].into_iter().map(Path::new).find(in_memory)
}

/// A pod's name without the suffix that a file pod gets.
fn key(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    name.strip_suffix(&format!("-{NAME}")).unwrap_or(name).to_owned()
}

fn describe(pod: &Pod) -> String {
    let containers: Vec<String> = pod
        .statuses()
        .iter()
        .map(|c| format!("{} restarts={} state={}", c.name, c.restart_count, serde_json::json!(c.state)))
        .collect();
    format!("{} {} [{}]", pod.phase(), pod.reason(), containers.join("; "))
}

/// The text of a CRI log line `<RFC3339Nano> stdout|stderr F|P <text>`.
fn cri_text(line: &str) -> Option<String> {
    let mut parts = line.splitn(4, ' ');
    let time = parts.next()?;
    let good_time = time.len() >= 20
        && time.as_bytes().get(10) == Some(&b'T')
        && (time.ends_with('Z') || time.contains('+'));
    let stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    (good_time && matches!(stream, "stdout" | "stderr") && matches!(tag, "F" | "P")).then(|| text.to_owned())
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Whether a file lies anywhere under a folder.
pub fn any_file(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|e| if e.path().is_dir() { any_file(&e.path()) } else { true })
}
