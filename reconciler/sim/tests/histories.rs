//! A hundred thousand random lives of a pod, with faults, delays and agent crashes between any two actions.
//!
//! `BERTH_SIM_HISTORIES=n` asks for another number, `BERTH_SIM_FIRST=n` for another first seed; `BERTH_SIM_SEED=n` runs one
//! history and shows what happens in it.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use berth_sim::sim::{Broken, History};

/// How many histories are run unless the environment says otherwise.
const HISTORIES: u64 = 100_000;
/// How many lines of a broken history are shown unless it was asked for.
const LINES: usize = 150;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Shows the pod and what happens to it: the last lines, or all.
fn replay(seed: u64, lines: usize) -> Result<(), Broken> {
    let mut history = History::new(seed, true);
    println!("seed {seed}, at its beginning:");
    println!("{}", serde_json::to_string_pretty(&history.pod().object.spec).unwrap());
    let result = history.run();
    let trace: Vec<_> = history.trace().collect();
    for line in &trace[trace.len().saturating_sub(lines)..] {
        println!("{line}");
    }
    result
}

#[test]
fn every_history_settles_and_breaks_no_rule() {
    if let Some(seed) = number("BERTH_SIM_SEED") {
        return replay(seed, usize::MAX).unwrap();
    }
    let first = number("BERTH_SIM_FIRST").unwrap_or(0);
    let histories = number("BERTH_SIM_HISTORIES").unwrap_or(HISTORIES);
    let next = AtomicU64::new(first);
    let work = || {
        let mut broken = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed - first >= histories {
                return broken;
            }
            if let Err(rule) = History::new(seed, false).run() {
                broken.push((seed, rule));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut broken: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    broken.sort();
    let Some((seed, rule)) = broken.first() else { return };
    let again = replay(*seed, LINES);
    assert_eq!(again, Err(rule.clone()), "a seed must replay");
    for (seed, rule) in broken.iter().take(20) {
        println!("seed {seed}: {rule}");
    }
    println!("all of it: BERTH_SIM_SEED={seed} cargo test -p berth-sim --test histories -- --nocapture");
    panic!("{} of {histories} histories broke a rule; seed {seed}: {rule}", broken.len());
}
