//! One pod at a time: start, exec, restart, delete; and the same asked of podman.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{http, manifest, tools};

use crate::measure::{STAGES, STEPS, Victim, Watch, exec, stages};
use crate::podman::Podman;
use crate::table::{Row, Target, head};
use crate::{IDLE, start_floor};

/// A shell that ends at once on TERM.
const POLITE: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 1000000 & wait $!; done";

#[derive(Default)]
struct Times {
    start: Vec<Duration>,
    exec: Vec<Duration>,
    exec_api: Vec<Duration>,
    restart: Vec<Duration>,
    delete: Vec<Duration>,
    /// Milliseconds of each step of a first start, and of a restart.
    stages: BTreeMap<&'static str, Vec<f64>>,
    again: Vec<f64>,
    /// See [`start_floor`].
    floor: Vec<Duration>,
}

/// Measures it all.
pub fn measure(runs: usize, podman: Option<&Podman>) -> Result<()> {
    head("one pod at a time");
    let node = Node::start()?;
    let mut times = Times::default();
    // The first pod makes what all later ones share.
    one(&node, "warm", &mut Times::default())?;
    for i in 0..runs {
        one(&node, &format!("one{i}"), &mut times)?;
    }
    node.finish()?;
    Row::times("manifest renamed -> running", &times.start).target(Target::Most(10.0)).print();
    if let Some(podman) = podman {
        let theirs = podman.starts(runs.min(10))?;
        let started = Row::times("  the same", &times.start).beside("podman", &theirs);
        started.target(Target::Share(1.0 / 15.0)).print();
    }
    Row::times("berth exec true, whole process", &times.exec).target(Target::Most(5.0)).print();
    Row::times("exec true through the socket alone", &times.exec_api).target(Target::Most(5.0)).print();
    Row::times("container killed -> running again", &times.restart).target(Target::Most(10.0)).print();
    Row::times("manifest removed -> all gone (KILL after 1 s)", &times.delete).print();
    let first: Vec<f64> = {
        let of = |stage| times.stages.get(stage).cloned().unwrap_or_default();
        of("create").iter().zip(of("exec")).map(|(create, exec)| create + exec).collect()
    };
    polite(runs)?;
    head("where the time of a start goes");
    for stage in STAGES {
        Row::of(format!("  {stage}"), "ms", times.stages.remove(stage).unwrap_or_default()).print();
        // What it did or waited for until it could execute its program; the rest of the stage is the way there and back.
        for step in STEPS.into_iter().filter(|_| stage == "create") {
            Row::of(format!("    {step}"), "ms", times.stages.remove(step).unwrap_or_default()).print();
        }
    }
    for (what, times_of) in [("in a new pod", first), ("again in its pod", times.again)] {
        Row::of(format!("container {what}: create, start, running"), "ms", times_of.clone())
            .target(Target::Most(3.0))
            .print();
        Row::of("  the same", "ms", times_of)
            .beside("floor", &times.floor)
            .target(Target::Share(1.5))
            .print();
    }
    Ok(())
}

fn one(node: &Node, name: &str, times: &mut Times) -> Result<()> {
    let file = format!("{name}.yaml");
    let before = stages(node).unwrap_or_default();
    let mut watch = Watch::open(node)?;
    let draft = node.draft(&file, &manifest::pod(name, IDLE))?;
    let began = Instant::now();
    draft.publish()?;
    let pod = watch.until(|e| e.running(name))?;
    times.start.push(began.elapsed());
    let started = stages(node)?;
    for (stage, sum) in &started {
        let past = before.get(stage).copied().unwrap_or_default();
        times.stages.entry(stage).or_default().push(sum - past);
    }

    let full = format!("{name}-n1");
    let began = Instant::now();
    let mut command = Command::new(tools::berth());
    command.args(["exec", &full, "--", "true"]).env("BERTH_SOCKET", node.socket());
    let status = command.stdin(Stdio::null()).status().context("start berth exec")?;
    ensure!(status.success(), "berth exec ended with {status}");
    times.exec.push(began.elapsed());

    let began = Instant::now();
    exec(node, &full, &["true"])?;
    times.exec_api.push(began.elapsed());

    let pid = *node.pids(pod.uid())?.first().context("the container has no process")?;
    // By turns with what is held against it.
    times.floor.extend(start_floor::times(node, pid, 3)?);
    let victim = Victim::find(node, pid)?;
    let began = Instant::now();
    victim.kill()?;
    watch.until(|e| e.running(name) && e.pod.restarts() == 1)?;
    times.restart.push(began.elapsed());
    let restarted = stages(node)?;
    times.again.push(["create", "exec"].iter().map(|stage| restarted[stage] - started[stage]).sum());

    let began = Instant::now();
    node.remove(&file)?;
    watch.until(|e| e.gone && e.is(name))?;
    times.delete.push(began.elapsed());
    Ok(())
}

/// Deletion of a pod whose process ends on TERM: through the API, by the command, and by taking its manifest away.
fn polite(runs: usize) -> Result<()> {
    let node = Node::start()?;
    let (mut file, mut api, mut command) = (vec![], vec![], vec![]);
    for i in 0..runs {
        let name = format!("file{i}");
        let mut watch = Watch::open(&node)?;
        node.apply(&format!("{name}.yaml"), &manifest::pod(&name, POLITE))?;
        node.wait_log(&watch.until(|e| e.running(&name))?, "up")?;
        let began = Instant::now();
        node.remove(&format!("{name}.yaml"))?;
        watch.until(|e| e.gone && e.is(&name))?;
        file.push(began.elapsed());

        let (name, mut watch) = of_api(&node, &format!("api{i}"))?;
        let began = Instant::now();
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        let (status, answer) = http::json(&node.socket(), "DELETE", &path, None)?;
        ensure!(status == 200, "DELETE {path}: {status}: {answer}");
        watch.until(|e| e.gone && e.is(&name))?;
        api.push(began.elapsed());

        let (name, _) = of_api(&node, &format!("cli{i}"))?;
        let began = Instant::now();
        let mut delete = Command::new(tools::berth());
        delete.args(["delete", "pod", &name]).env("BERTH_SOCKET", node.socket());
        let status = delete.stdout(Stdio::null()).status().context("start berth delete")?;
        ensure!(status.success(), "berth delete ended with {status}");
        command.push(began.elapsed());
    }
    Row::times("API delete -> all gone (ends on TERM)", &api).target(Target::Most(25.0)).print();
    Row::times("berth delete, whole process (ends on TERM)", &command).target(Target::Most(25.0)).print();
    Row::times("manifest removed -> all gone (100 ms to be sure)", &file).print();
    node.finish()
}

/// A running pod that came through the API; gives its name and a watch.
fn of_api(node: &Node, name: &str) -> Result<(String, Watch)> {
    let mut watch = Watch::open(node)?;
    let file = node.path(&format!("{name}.yaml"));
    std::fs::write(&file, manifest::pod(name, POLITE)).context("write a manifest")?;
    node.berth(&["apply", "-f", &file.display().to_string()])?.ok()?;
    node.wait_log(&watch.until(|e| e.running(name))?, "up")?;
    Ok((name.to_owned(), watch))
}
