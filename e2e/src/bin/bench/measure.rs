//! What the parts of the bench measure with: watch events, memory, CPU time, the agent's own histograms.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{http, poll};
use k8s_openapi::api::core::v1::Pod;

/// What the slowest step may take before the bench gives up.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The steps of a start, as the agent's histogram calls them.
pub const STAGES: [&str; 6] = ["folders", "shim", "network", "bundle", "create", "exec"];

/// The steps of a container's first process, which make up most of the stage `create`.
pub const STEPS: [&str; 4] = ["namespaces", "mounts", "cgroups", "process"];

/// A watch of the pods that was opened before what it shall see.
pub struct Watch(http::Lines);

/// One change of a pod.
pub struct Event {
    /// The pod is gone.
    pub gone: bool,
    /// The pod, or what it was last.
    pub pod: Pod,
}

impl Watch {
    /// Opens a watch of what happens from now on.
    pub fn open(node: &Node) -> Result<Self> {
        let list = http::get(&node.socket(), "/api/v1/pods")?;
        let version = list["metadata"]["resourceVersion"].as_str().context("the list has no version")?;
        Ok(Self(http::watch(&node.socket(), &format!("/api/v1/pods?watch=true&resourceVersion={version}"))?))
    }

    /// The pod of the first event that is `good`.
    pub fn until(&mut self, good: impl Fn(&Event) -> bool) -> Result<Pod> {
        while let Some(event) = self.0.next(LIMIT)? {
            let gone = event["type"] == "DELETED";
            if !gone && event["type"] != "ADDED" && event["type"] != "MODIFIED" {
                continue;
            }
            let event =
                Event { gone, pod: serde_json::from_value(event["object"].clone()).context("a pod")? };
            if good(&event) {
                return Ok(event.pod);
            }
        }
        bail!("the watch ended")
    }
}

impl Event {
    /// Whether it is about the pod of this name.
    pub fn is(&self, name: &str) -> bool {
        self.pod.metadata.name.as_deref().is_some_and(|n| n.strip_suffix("-n1").unwrap_or(n) == name)
    }

    /// Whether it says that this pod runs.
    pub fn running(&self, name: &str) -> bool {
        !self.gone && self.is(name) && self.pod.is_running()
    }
}

/// PIDs of the shims as the machine sees them.
pub fn shims(node: &Node) -> Result<Vec<i32>> {
    let pods = node.pods()?;
    pods.values().map(|p| node.shim(p.uid())).collect()
}

/// Proportional set size of a process, in KB.
pub fn pss(node: &Node, pid: i32) -> Result<u64> {
    let path = node.machine().root().join(format!("proc/{pid}/smaps_rollup"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let line = text.lines().find(|l| l.starts_with("Pss:")).context("no Pss line")?;
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).context("no number on the Pss line")
}

/// Milliseconds of each stage and step of the starts so far, from the agent's own histograms.
pub fn stages(node: &Node) -> Result<BTreeMap<&'static str, f64>> {
    let text = node.page("/metrics")?;
    let sum = |series: &str, label: &str, name: &str| {
        let line = format!("{series}_sum{{{label}=\"{name}\"}} ");
        let value = text.lines().find_map(|l| l.strip_prefix(&line)).and_then(|n| n.parse::<f64>().ok());
        value.with_context(|| format!("no figures of {label} {name}"))
    };
    let stages = STAGES.map(|name| ("berth_pod_start_stage_seconds", "stage", name));
    let steps = STEPS.map(|name| ("berth_container_create_step_seconds", "step", name));
    let all = stages.into_iter().chain(steps);
    all.map(|(series, label, name)| Ok((name, sum(series, label, name)? * 1000.0))).collect()
}

/// A counter of the agent.
pub fn counter(node: &Node, name: &str) -> Result<f64> {
    let text = node.page("/metrics")?;
    let line = format!("{name} ");
    let number = text.lines().find_map(|l| l.strip_prefix(&line)).and_then(|n| n.parse().ok());
    number.with_context(|| format!("no counter {name}"))
}

/// A cgroup that accounts for all CPU time of an agent and of what it starts, the kernel's share and that of processes that
/// have ended included.
pub struct Account(std::path::PathBuf);

impl Account {
    /// Puts the node's agent into one, and the shims that run already.
    pub fn open(node: &Node) -> Result<Self> {
        let top = std::path::Path::new("/sys/fs/cgroup");
        let own = format!("{}-account", &node.cgroup_parent()[1..]);
        let v2 = top.join("cgroup.controllers").exists();
        let dir = if v2 { top.join(own) } else { top.join("cpuacct").join(own) };
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let account = Self(dir);
        let mut inside = shims(node)?;
        inside.push(node.agent()?);
        let mut words = vec!["-c".to_owned(), r#"for p in "$@"; do echo $p >"$0"; done"#.to_owned()];
        words.push(account.0.join("cgroup.procs").display().to_string());
        words.extend(inside.iter().map(i32::to_string));
        let mut command = node.machine().command("sh");
        command.args(words);
        berth_e2e::tools::run(command)?.ok()?;
        Ok(account)
    }

    /// CPU time used in it so far, and in the pods of the node.
    pub fn used(&self, node: &Node) -> Result<Duration> {
        let parent = self.0.with_file_name(&node.cgroup_parent()[1..]);
        let mut sum = Duration::ZERO;
        for dir in [&self.0, &parent] {
            sum += usage(dir).with_context(|| format!("CPU time of {}", dir.display()))?;
        }
        Ok(sum)
    }

    /// Removes it, once the agent has ended.
    pub fn close(self) -> Result<()> {
        poll::until("the bench's cgroup can be removed", LIMIT, || {
            std::fs::remove_dir(&self.0).map(Some).map_err(|e| e.to_string())
        })
    }
}

fn usage(dir: &std::path::Path) -> Result<Duration> {
    if let Ok(text) = std::fs::read_to_string(dir.join("cpuacct.usage")) {
        return Ok(Duration::from_nanos(text.trim().parse()?));
    }
    let text = std::fs::read_to_string(dir.join("cpu.stat"))?;
    let micros = text.lines().find_map(|l| l.strip_prefix("usage_usec ")).context("no usage_usec")?;
    Ok(Duration::from_micros(micros.parse()?))
}

/// Sends KILL to a process of the machine, without a program that would have to be started for it.
pub struct Victim(rustix::process::Pid);

impl Victim {
    /// The process that the machine knows by this PID.
    pub fn find(node: &Node, pid: i32) -> Result<Self> {
        let wanted = std::fs::read_link(node.machine().root().join(format!("proc/{pid}/ns/pid")))
            .with_context(|| format!("look at process {pid}"))?;
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(here) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else {
                continue;
            };
            let Ok(status) = std::fs::read_to_string(path.join("status")) else { continue };
            let line = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
            let levels: Vec<&str> = line.split_whitespace().collect();
            // Its own namespace, in which it is PID 1, lies below the machine's.
            let same = std::fs::read_link(path.join("ns/pid")).is_ok_and(|ns| ns == wanted);
            if same && levels.contains(&pid.to_string().as_str()) {
                let found = rustix::process::Pid::from_raw(here).context("a PID above 0")?;
                return Ok(Self(found));
            }
        }
        bail!("process {pid} is not there")
    }

    /// Kills it.
    pub fn kill(self) -> Result<()> {
        rustix::process::kill_process(self.0, rustix::process::Signal::KILL).context("kill a container")
    }
}

/// Runs a command through the API's socket alone, as one WebSocket request, and returns when its result is there.
pub fn exec(node: &Node, pod: &str, words: &[&str]) -> Result<()> {
    let query: String = words.iter().map(|w| format!("command={w}&")).collect();
    let path = format!("/api/v1/namespaces/default/pods/{pod}/exec?{query}stdout=true&stderr=true");
    let status = http::exec(&node.socket(), &path)?;
    ensure!(status["status"] == "Success", "exec: {status}");
    Ok(())
}
