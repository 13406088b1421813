//! What an exec probe costs: the CPU time of agent, shim and the command itself, for each probe.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_e2e::node::Node;
use berth_e2e::{manifest, poll};

use crate::IDLE;
use crate::measure::{Account, counter};
use crate::table::{Row, Target, head};

/// Pods with a probe every second.
const PODS: usize = 10;
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
    node.wait_running(&names)?;
    poll::pause(Duration::from_secs(2));
    let (before, used) = (counter(&node, "berth_probes_total")?, account.used(&node)?);
    poll::pause(TIME);
    let used = account.used(&node)?.saturating_sub(used);
    let probes = counter(&node, "berth_probes_total")? - before;
    ensure!(probes > 0.0, "no probe was run");
    Row::figure("CPU of an exec probe: agent, shim and command", "ms", used.as_secs_f64() * 1000.0 / probes)
        .target(Target::Most(1.0))
        .print();
    node.finish()?;
    account.close()
}
