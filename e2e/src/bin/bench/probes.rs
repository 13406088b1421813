//! What exec probes cost: the CPU time of agent, shims and the commands themselves, for each probe.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{manifest, poll};

use crate::IDLE;
use crate::floor::Floor;
use crate::measure::{Account, counter, pss, shims};
use crate::table::{Row, Target, head};

/// Pods with a probe every second.
const PODS: usize = 50;
/// How long they are watched.
const TIME: Duration = Duration::from_secs(10);

/// Measures it.
pub fn measure() -> Result<()> {
    head("probes");
    let node = Node::start()?;
    let account = Account::open(&node)?;
    let names: Vec<String> = (0..PODS).map(|i| format!("probed{i}")).collect();
    for name in &names {
        let pod = manifest::Builder::new(name)
            .shell(IDLE)
            .with(r#"livenessProbe: { exec: { command: ["true"] }, periodSeconds: 1, timeoutSeconds: 10 }"#);
        node.apply(&format!("{name}.yaml"), &pod.yaml())?;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let pods = node.wait_running(&names)?;
    poll::pause(Duration::from_secs(2));
    let (before, used) = (counter(&node, "berth_probes_total")?, account.used(&node)?);
    poll::pause(TIME);
    let used = account.used(&node)?.saturating_sub(used);
    let probes = counter(&node, "berth_probes_total")? - before;
    ensure!(probes > 0.0, "no probe was run");
    let memory: Vec<f64> =
        shims(&node)?.iter().map(|pid| Ok(pss(&node, *pid)? as f64)).collect::<Result<_>>()?;
    let pod = pods.values().next().context("no pod")?;
    let pid = *node.pids(pod.uid())?.first().context("the container has no process")?;
    let floor = Floor::of(&node, pid)?;
    let each = used.as_secs_f64() * 1000.0 / probes;
    Row::figure("CPU of an exec probe: agent, shim and command", "ms", each)
        .target(Target::Most(1.0))
        .print();
    Row::figure("  the command alone, spawned in the pod", "ms", floor.cpu).print();
    Row::figure("  the rest: what Berth adds", "ms", each - floor.cpu).print();
    Row::figure("  time of the command alone, spawned in the pod", "ms", floor.wall).print();
    let share = 100.0 * used.as_secs_f64() / TIME.as_secs_f64();
    Row::figure(format!("CPU of {PODS} pods with a probe each second"), "%", share)
        .target(Target::Most(5.0))
        .print();
    Row::of("PSS of a shim that runs probes", "KB", memory).target(Target::Most(200.0)).print();
    node.finish()?;
    account.close()
}
