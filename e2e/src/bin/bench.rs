//! `make bench`: how fast and how small, as medians of one run, with what a peer needs for the same beside it.
//!
//! Every figure is taken from outside: from the rename of a manifest into the folder to the watch event that says `running`,
//! from its removal to the event that says gone, whole `berth exec` processes, and the kernel's own account of memory (PSS)
//! and CPU time (schedstat).

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_e2e::http;
use berth_e2e::manifest;
use berth_e2e::node::Node;
use berth_e2e::pods::{PodExt, Pods};
use berth_e2e::{poll, tools};
use k8s_openapi::api::core::v1::Pod;

const USAGE: &str = "usage: bench [--runs N] [--no-peers]";
const IDLE: &str = "exec sleep 1000000";
/// What the slowest step may take before the bench gives up.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
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
    println!("{:<58} {:>10} {:>10} {:>10}", "", "median", "least", "most");
    memory_and_many()?;
    one_at_a_time(runs, podman.as_ref().ok())?;
    if let Err(why) = podman {
        println!("\npodman is not in the table: {why:#}");
    }
    Ok(())
}

/// One pod at a time: start, exec, restart, delete; then the same asked of podman.
fn one_at_a_time(runs: usize, podman: Option<&Podman>) -> Result<()> {
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
    row("manifest renamed -> running, one pod at a time", start.clone());
    row("berth exec true, whole process", exec);
    row("container killed -> running again (kill included)", restart);
    row("manifest removed -> all gone (ignores TERM: KILL after 2 s)", delete);
    node.finish()?;
    polite_delete(runs)?;
    if let Some(podman) = podman {
        let theirs = podman.starts(runs.min(10))?;
        let ratio = median(&start).as_secs_f64() / median(&theirs).as_secs_f64();
        row("podman kube play -> running, one pod at a time", theirs);
        println!("{:<58} {ratio:>10.3}", "  ours / podman's");
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
    row("manifest removed -> all gone (ends on TERM)", delete);
    node.finish()
}

/// Many pods at once, the memory of agent and shims as they grow, and the CPU they use when nothing happens.
fn memory_and_many() -> Result<()> {
    let node = Node::start()?;
    // What was needed once to start is no cost of keeping it running.
    poll::pause(Duration::from_secs(2));
    let mut have = 0;
    for want in [0, 1, 10, 50] {
        let began = Instant::now();
        for i in have..want {
            node.apply(&format!("p{i}.yaml"), &manifest::pod(&format!("p{i}"), IDLE))?;
        }
        node.wait("all run", LIMIT, |pods| pods.len() == want && pods.values().all(PodExt::is_running))?;
        let took = began.elapsed();
        if want - have > 1 {
            row(&format!("{} manifests at once -> all running", want - have), vec![took]);
        }
        have = want;
        poll::pause(Duration::from_secs(1));
        let agent = pss(&node, node.agent()?)?;
        let shims: Vec<u64> = shims(&node)?.into_iter().map(|pid| pss(&node, pid)).collect::<Result<_>>()?;
        let each = shims.iter().sum::<u64>() / shims.len().max(1) as u64;
        println!("{:<58} {agent:>7} KB", format!("agent's PSS, {want} pods"));
        if want > 0 {
            println!("{:<58} {each:>7} KB", format!("a shim's PSS, {want} pods"));
        }
    }
    idle_cpu(&node, Duration::from_secs(10))?;
    let began = Instant::now();
    for i in 0..have {
        node.remove(&format!("p{i}.yaml"))?;
    }
    node.wait("all are gone", LIMIT, Pods::is_empty)?;
    row(&format!("{have} manifests removed -> all gone (grace 1 s)"), vec![began.elapsed()]);
    poll::pause(Duration::from_secs(1));
    println!("{:<58} {:>7} KB", "agent's PSS, pods gone again", pss(&node, node.agent()?)?);
    node.finish()
}

fn idle_cpu(node: &Node, time: Duration) -> Result<()> {
    let mut ours = shims(node)?;
    ours.push(node.agent()?);
    let before = node.machine().cpu(&ours)?;
    poll::pause(time);
    let share = node.machine().cpu(&ours)?.since(&before).as_secs_f64() / time.as_secs_f64() * 100.0;
    println!("{:<58} {share:>8.4} %", "CPU of agent and 50 shims when idle, of one core");
    Ok(())
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

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn row(what: &str, times: Vec<Duration>) {
    let ms = |t: Duration| format!("{:.1} ms", t.as_secs_f64() * 1000.0);
    let (least, most) =
        (times.iter().min().copied().unwrap_or_default(), times.iter().max().copied().unwrap_or_default());
    if times.len() == 1 {
        println!("{what:<58} {:>10}", ms(least));
    } else {
        println!("{what:<58} {:>10} {:>10} {:>10}", ms(median(&times)), ms(least), ms(most));
    }
}
