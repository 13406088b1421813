//! The pod network: what it takes to connect pods, to change ports and Services, and what it costs the traffic.
//!
//! All but the last part is measured in network namespaces that this program throws away, by the library that the agent
//! uses, for the steps are shorter than a process that would ask for them.

mod changes;
mod handmade;
mod parts;
mod ready;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use berth_e2e::tools;

use crate::table::{Row, Target, head};
pub use parts::measure as measure_parts;
pub use ready::measure as measure_ready;

/// The word that makes the bench measure in a namespace of its own, see [`measure_parts`].
pub const PARTS: &str = "--network-parts";
/// The word that makes the bench watch a node's table, see [`measure_ready`].
pub const READY: &str = "--ready-to-element";
/// Where Debian has the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// Figures by name, as the parts print them: one line each, times in microseconds.
type Figures = BTreeMap<String, Vec<Duration>>;

fn figures(text: &str) -> Result<Figures> {
    let mut all = Figures::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().context("a name is missing")?;
        let times = words.map(|word| word.parse().map(Duration::from_micros).context("a time"));
        all.insert(name.to_owned(), times.collect::<Result<_>>()?);
    }
    Ok(all)
}

/// What [`figures`] reads.
fn print(name: &str, times: &[Duration]) {
    let times: Vec<String> = times.iter().map(|time| time.as_micros().to_string()).collect();
    println!("{name} {}", times.join(" "));
}

/// Measures and prints all.
pub fn measure(peers: bool) -> Result<()> {
    head("network");
    let own = std::env::current_exe().context("find the bench's own program")?;
    let mut command = std::process::Command::new(own);
    command.arg(PARTS);
    let with_plugins = peers && Path::new(PLUGINS).join("bridge").exists();
    if with_plugins {
        command.arg(PLUGINS);
    }
    let found = figures(&tools::run(command)?.ok()?)?;
    let of = |name: &str| found.get(name).with_context(|| format!("no figures of {name}"));
    let one = Row::times("network of one pod, its namespace too", of("one")?).target(Target::Most(2.0));
    if with_plugins { one.beside("CNI bridge", of("plugin")?) } else { one }.print();
    if peers && !with_plugins {
        println!("the CNI plugins are not in the table: {PLUGINS} has none");
    }
    Row::times("networks of 100 pods at once", of("hundred")?).target(Target::Most(300.0)).print();
    Row::times("change of a hostPort, what it adds to an attach", of("hostport")?)
        .target(Target::Most(0.2))
        .print();
    Row::times("change of one of 100 Services", of("service")?).target(Target::Most(0.2)).print();
    // At least 0.95 of its throughput.
    Row::times(format!("{} GiB by TCP from pod to pod", parts::GIB), of("stream")?)
        .beside("veth, bridge", of("handmade")?)
        .target(Target::Share(1.0 / 0.95))
        .print();
    Row::times("answer of a readiness probe to element of the table", &ready::compare()?)
        .target(Target::Most(50.0))
        .print();
    Ok(())
}
