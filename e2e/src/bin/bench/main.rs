//! `make bench`: how fast and how small, as medians of one run, with what a peer needs for the same beside it.
//!
//! Every figure is taken from outside: from the rename of a manifest into the folder to the watch event that says `running`,
//! from its removal to the event that says gone, whole `berth exec` processes, and the kernel's own account of memory (PSS)
//! and CPU time (schedstat).

mod cycles;
mod table;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_e2e::http;
use berth_e2e::manifest;
use berth_e2e::node::Node;
use berth_e2e::pods::{PodExt, Pods};
use berth_e2e::{poll, tools};
use k8s_openapi::api::core::v1::Pod;
use table::{Row, Target, head};

const USAGE: &str = "usage: bench [--runs N] [--no-peers]";
/// How many pods "many" are.
const MANY: usize = 50;
const IDLE: &str = "exec sleep 1000000";
/// What the slowest step may take before the bench gives up.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given.first().is_some_and(|word| word == cycles::WORD) {
        return cycles::measure(&given[1..]);
    }
    let (mut runs, mut peers) = (30, true);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|n| n.parse().ok()).context(USAGE)?,
            "--no-peers" => peers = false,
            _ => bail!(USAGE),
        }
    }
    ensure!(runs > 0, USAGE);
    let podman = if peers { Podman::find() } else { Err(anyhow::anyhow!("--no-peers")) };
    memory_and_many()?;
    one_at_a_time(runs, podman.as_ref().ok())?;
    if peers {
        cycles::compare()?;
    }
    if let Err(why) = podman {
        println!("\npodman is not in the table: {why:#}");
    }
    Ok(())
}

/// One pod at a time: start, exec, restart, delete; then the same asked of podman.
fn one_at_a_time(runs: usize, podman: Option<&Podman>) -> Result<()> {
    head("one pod at a time");
    let node = Node::start()?;
    let (mut start, mut exec, mut restart, mut delete) = (vec![], vec![], vec![], vec![]);
    for i in 0..runs {
        let name = format!("one{i}");
        let mut watch = Watch::open(&node)?;
        let began = Instant::now();
        node.apply(&format!("{name}.yaml"), &manifest::pod(&name, IDLE))?;
        let pod = watch.until(|e| e.running(&name))?;
        start.push(began.elapsed());

        let began = Instant::now();
        let mut command = Command::new(tools::berth());
        command.args(["exec", &format!("{name}-n1"), "--", "true"]).env("BERTH_SOCKET", node.socket());
        let status = command.stdin(Stdio::null()).status().context("start berth exec")?;
        ensure!(status.success(), "berth exec ended with {status}");
        exec.push(began.elapsed());

        let pids = node.pids(pod.uid())?;
        let began = Instant::now();
        node.machine().kill("KILL", &pids)?;
        watch.until(|e| e.running(&name) && e.pod.restarts() == 1)?;
        restart.push(began.elapsed());

        let began = Instant::now();
        node.remove(&format!("{name}.yaml"))?;
        watch.until(|e| e.gone && e.is(&name))?;
        delete.push(began.elapsed());
    }
    let stages = stages(&node)?;
    node.finish()?;
    let started = Row::times("manifest renamed -> running", &start);
    started.target(Target::Most(10.0)).print();
    if let Some(podman) = podman {
        let theirs = podman.starts(runs.min(10))?;
        let started = Row::times("  the same", &start).beside("podman", &theirs);
        started.target(Target::Share(1.0 / 15.0)).print();
    }
    Row::times("berth exec true, whole process", &exec).target(Target::Most(5.0)).print();
    Row::times("container killed -> running again (kill included)", &restart)
        .target(Target::Most(10.0))
        .print();
    Row::times("manifest removed -> all gone (KILL after 2 s)", &delete).print();
    polite_delete(runs)?;
    head("where the time of a start goes (mean)");
    for (stage, mean) in stages {
        Row::figure(format!("  {stage}"), "ms", mean).print();
    }
    Ok(())
}

/// Deletion of a pod whose process ends on TERM.
fn polite_delete(runs: usize) -> Result<()> {
    let node = Node::start()?;
    let mut delete = vec![];
    for i in 0..runs {
        let name = format!("polite{i}");
        let mut watch = Watch::open(&node)?;
        let shell = "trap 'exit 0' TERM; echo up; while :; do sleep 1000000 & wait $!; done";
        node.apply(&format!("{name}.yaml"), &manifest::pod(&name, shell))?;
        let pod = watch.until(|e| e.running(&name))?;
        node.wait_log(&pod, "up")?;
        let began = Instant::now();
        node.remove(&format!("{name}.yaml"))?;
        watch.until(|e| e.gone && e.is(&name))?;
        delete.push(began.elapsed());
    }
    Row::times("manifest removed -> all gone (ends on TERM)", &delete).print();
    node.finish()
}

/// Many pods at once, the memory of agent and shims as they grow, and the CPU they use when nothing happens.
fn memory_and_many() -> Result<()> {
    head("many pods");
    let node = Node::start()?;
    // What was needed once to start is no cost of keeping it running.
    poll::pause(Duration::from_secs(2));
    let (mut have, mut alone) = (0, 0);
    for want in [0, 1, 1 + MANY] {
        let began = Instant::now();
        for i in have..want {
            node.apply(&format!("p{i}.yaml"), &manifest::pod(&format!("p{i}"), IDLE))?;
        }
        node.wait("all run", LIMIT, |pods| pods.len() == want && pods.values().all(PodExt::is_running))?;
        let took = began.elapsed();
        if want - have > 1 {
            let row = Row::times(format!("{} manifests at once -> all running", want - have), &[took]);
            if want - have == MANY { row.target(Target::Most(600.0)) } else { row }.print();
        }
        have = want;
        poll::pause(Duration::from_secs(1));
        let agent = pss(&node, node.agent()?)?;
        let shims: Vec<u64> = shims(&node)?.into_iter().map(|pid| pss(&node, pid)).collect::<Result<_>>()?;
        let each = shims.iter().sum::<u64>() / shims.len().max(1) as u64;
        let whole = Row::figure(format!("agent's PSS, {want} pods"), "KB", agent as f64);
        match want {
            0 => {
                alone = agent;
                whole.target(Target::Most(12.0 * 1024.0)).print();
            }
            _ if want > MANY => {
                whole.print();
                let more = agent.saturating_sub(alone) as f64 / want as f64;
                Row::figure("  more than with none, each", "KB", more).target(Target::Most(100.0)).print();
                Row::figure(format!("a shim's PSS, {want} pods"), "KB", each as f64)
                    .target(Target::Most(200.0))
                    .print();
            }
            _ => {
                whole.print();
                Row::figure(format!("a shim's PSS, {want} pods"), "KB", each as f64).print();
            }
        }
    }
    idle_cpu(&node, Duration::from_secs(10))?;
    let began = Instant::now();
    for i in 0..have {
        node.remove(&format!("p{i}.yaml"))?;
    }
    node.wait("all are gone", LIMIT, Pods::is_empty)?;
    Row::times(format!("{have} manifests removed -> all gone (grace 1 s)"), &[began.elapsed()]).print();
    poll::pause(Duration::from_secs(1));
    let agent = pss(&node, node.agent()?)? as f64;
    Row::figure("agent's PSS, pods gone again", "KB", agent).target(Target::Most(12.0 * 1024.0)).print();
    node.finish()
}

fn idle_cpu(node: &Node, time: Duration) -> Result<()> {
    let mut ours = shims(node)?;
    ours.push(node.agent()?);
    let before = node.machine().cpu(&ours)?;
    poll::pause(time);
    let share = node.machine().cpu(&ours)?.since(&before).as_secs_f64() / time.as_secs_f64() * 100.0;
    Row::figure("CPU of agent and all shims when idle, of one core", "%", share)
        .target(Target::Most(0.02))
        .print();
    Ok(())
}

/// The mean of each step of a start in milliseconds, from the agent's own histogram, longest first.
fn stages(node: &Node) -> Result<Vec<(String, f64)>> {
    let text = node.page("/metrics")?;
    let value = |suffix: &str, stage: &str| {
        let line = format!("berth_pod_start_stage_seconds_{suffix}{{stage=\"{stage}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&line)).and_then(|n| n.parse::<f64>().ok())
    };
    let mut means = Vec::new();
    for stage in ["folders", "shim", "network", "bundle", "create", "exec"] {
        let sum = value("sum", stage).with_context(|| format!("no figure of stage {stage}"))?;
        let count = value("count", stage).with_context(|| format!("no count of stage {stage}"))?;
        means.push((stage.to_owned(), sum / count * 1000.0));
    }
    means.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(means)
}

/// PIDs of the shims as the machine sees them.
fn shims(node: &Node) -> Result<Vec<i32>> {
    let pods = node.pods()?;
    pods.values().map(|p| node.shim(p.uid())).collect()
}

/// Proportional set size of a process, in KB.
fn pss(node: &Node, pid: i32) -> Result<u64> {
    let path = node.machine().root().join(format!("proc/{pid}/smaps_rollup"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let line = text.lines().find(|l| l.starts_with("Pss:")).context("no Pss line")?;
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).context("no number on the Pss line")
}

/// A watch of the pods that was opened before what it shall see.
struct Watch(http::Lines);

struct Event {
    gone: bool,
    pod: Pod,
}

impl Watch {
    fn open(node: &Node) -> Result<Self> {
        let list = http::get(&node.socket(), "/api/v1/pods")?;
        let version = list["metadata"]["resourceVersion"].as_str().context("the list has no version")?;
        Ok(Self(http::watch(&node.socket(), &format!("/api/v1/pods?watch=true&resourceVersion={version}"))?))
    }

    fn until(&mut self, good: impl Fn(&Event) -> bool) -> Result<Pod> {
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
    fn is(&self, name: &str) -> bool {
        self.pod.metadata.name.as_deref().is_some_and(|n| n.strip_suffix("-n1") == Some(name))
    }

    fn running(&self, name: &str) -> bool {
        !self.gone && self.is(name) && self.pod.is_running()
    }
}

/// podman with crun from Debian 13, in a root file system of its own.
struct Podman;

impl Podman {
    fn find() -> Result<Self> {
        let mut setup = Command::new(Self::script());
        tools::run({
            setup.arg("setup");
            setup
        })?
        .ok()?;
        Ok(Self)
    }

    fn script() -> std::path::PathBuf {
        tools::checkout().join("scripts/podman-peer")
    }

    /// Times of `podman kube play` of a one-container pod, image present.
    fn starts(&self, runs: usize) -> Result<Vec<Duration>> {
        let mut bench = Command::new(Self::script());
        bench.args(["bench", &runs.to_string()]).arg(tools::demo_rootfs()?);
        let text = tools::run(bench)?.ok()?;
        let times = text
            .lines()
            .map(|l| Ok(Duration::from_micros(l.trim().parse().with_context(|| format!("{l:?}"))?)));
        times.collect()
    }
}
