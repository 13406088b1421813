//! Many pods: how long they take, what they cost in memory while they are there and after, and CPU when nothing happens.

use std::time::{Duration, Instant};

use anyhow::Result;
use berth_e2e::node::Node;
use berth_e2e::pods::{PodExt, Pods};
use berth_e2e::{manifest, poll};

use crate::IDLE;
use crate::measure::{LIMIT, pss, shims};
use crate::table::{Row, Target, head};

/// How many pods "many" are.
const MANY: usize = 50;
/// And how many are a full node.
const FULL: usize = 200;
/// After so long without a change the agent has given back what the changes took, its start included.
const QUIET: Duration = Duration::from_secs(4);
/// How long a node is watched that has nothing to do: three of its looks at the folder (kubelet's `fileCheckFrequency`) fall into it.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// Memory of agent and shims as pods come and go, and the CPU they use when nothing happens.
pub fn memory() -> Result<()> {
    head("many pods");
    let node = Node::start()?;
    let (mut have, mut alone) = (0, 0);
    for want in [0, 1, 1 + MANY] {
        let took = grow(&node, have, want)?;
        if want > MANY {
            Row::times(format!("{MANY} manifests at once -> all running"), &[took])
                .target(Target::Most(600.0))
                .print();
        }
        have = want;
        poll::pause(QUIET);
        let agent = pss(&node, node.agent()?)?;
        let shims: Vec<u64> = shims(&node)?.into_iter().map(|pid| pss(&node, pid)).collect::<Result<_>>()?;
        let each = shims.iter().sum::<u64>() / shims.len().max(1) as u64;
        let whole = Row::figure(format!("agent's PSS, {want} pods"), "KB", agent as f64);
        let shim = Row::figure(format!("a shim's PSS, {want} pods"), "KB", each as f64);
        match want {
            0 => {
                alone = agent;
                whole.target(Target::Most(12.0 * 1024.0)).print();
            }
            1 => {
                whole.print();
                shim.print();
            }
            _ => {
                whole.print();
                let more = agent.saturating_sub(alone) as f64 / want as f64;
                Row::figure("  more than with none, each", "KB", more).target(Target::Most(100.0)).print();
                shim.target(Target::Most(200.0)).print();
            }
        }
    }
    idle_cpu(&node, IDLE_TIME)?;
    let took = clear(&node, have)?;
    Row::times(format!("{have} manifests removed -> all gone (grace 1 s)"), &[took]).print();
    poll::pause(QUIET);
    let agent = pss(&node, node.agent()?)? as f64;
    Row::figure("agent's PSS, pods gone again", "KB", agent).target(Target::Most(12.0 * 1024.0)).print();
    // A history of five minutes, the events of an hour and tables that have grown are kept.
    let kept = agent - alone as f64;
    Row::figure("  more than before the first", "KB", kept).target(Target::Most(1024.0)).print();
    node.finish()
}

/// A full node at once.
pub fn full() -> Result<()> {
    let node = Node::start()?;
    let took = grow(&node, 0, FULL)?;
    Row::times(format!("{FULL} manifests at once -> all running"), &[took])
        .target(Target::Most(3000.0))
        .print();
    let took = clear(&node, FULL)?;
    Row::times(format!("{FULL} manifests removed -> all gone (grace 1 s)"), &[took]).print();
    node.finish()
}

fn grow(node: &Node, have: usize, want: usize) -> Result<Duration> {
    let began = Instant::now();
    for i in have..want {
        node.apply(&format!("p{i}.yaml"), &manifest::pod(&format!("p{i}"), IDLE))?;
    }
    node.wait("all run", LIMIT, |pods| pods.len() == want && pods.values().all(PodExt::is_running))?;
    Ok(began.elapsed())
}

fn clear(node: &Node, have: usize) -> Result<Duration> {
    let began = Instant::now();
    for i in 0..have {
        node.remove(&format!("p{i}.yaml"))?;
    }
    node.wait("all are gone", LIMIT, Pods::is_empty)?;
    Ok(began.elapsed())
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
