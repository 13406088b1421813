//! `make bench`: how fast and how small, as medians of one run, with what a peer needs for the same beside it.
//!
//! Every figure is taken from outside: from the rename of a manifest into the folder to the watch event that says `running`,
//! from a deletion to the event that says gone, whole `berth exec` processes, and the kernel's own account of memory (PSS)
//! and CPU time (schedstat, cgroups). Only what a start is made of comes from the agent's own histograms.

mod cycles;
mod floor;
mod many;
mod measure;
mod network;
mod podman;
mod probes;
mod single;
mod start_floor;
mod sys;
mod table;

use anyhow::{Context, Result, bail, ensure};
use podman::Podman;

const USAGE: &str = "usage: bench [--runs N] [--no-peers] [--only many|full|single|probes|network|cycles]...";
/// What a container runs that shall do nothing.
const IDLE: &str = "exec sleep 1000000";

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given.first().is_some_and(|word| word == cycles::WORD) {
        return cycles::measure(&given[1..]);
    }
    if given.first().is_some_and(|word| word == floor::WORD) {
        return floor::measure(&given[1..]);
    }
    if given.first().is_some_and(|word| word == start_floor::WORD) {
        return start_floor::measure(&given[1..]);
    }
    if given.first().is_some_and(|word| word == network::PARTS) {
        return network::measure_parts(&given[1..]);
    }
    if given.first().is_some_and(|word| word == network::READY) {
        return network::measure_ready();
    }
    let (mut runs, mut peers, mut only) = (30, true, Vec::new());
    let mut words = given.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|n| n.parse().ok()).context(USAGE)?,
            "--no-peers" => peers = false,
            "--only" => only.push(words.next().context(USAGE)?),
            _ => bail!(USAGE),
        }
    }
    ensure!(runs > 0, USAGE);
    let wanted = |part: &str| only.is_empty() || only.iter().any(|word| word == part);
    if wanted("many") {
        many::memory()?;
    }
    if wanted("full") {
        many::full()?;
    }
    if wanted("single") {
        let podman = if peers { Podman::find() } else { Err(anyhow::anyhow!("--no-peers")) };
        single::measure(runs, podman.as_ref().ok())?;
        if let Err(why) = podman {
            println!("podman is not in the table: {why:#}");
        }
    }
    if wanted("probes") {
        probes::measure()?;
    }
    if wanted("network") {
        network::measure(peers)?;
    }
    if wanted("cycles") && peers {
        cycles::compare()?;
    }
    Ok(())
}
