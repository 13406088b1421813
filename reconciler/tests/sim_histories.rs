//! Thousands of random histories of one pod each, with faults, delays and agent crashes between any two actions.
//!
//! `BERTH_SIM_HISTORIES` sets how many; `BERTH_SIM_SEED` replays one with its trace.

#![allow(clippy::unwrap_used)]

mod sim;

use std::sync::atomic::{AtomicU64, Ordering};

use sim::history::History;

/// How many histories are run unless the environment says otherwise.
const HISTORIES: u64 = 20_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn replay(seed: u64) {
    let mut history = History::new(seed, true);
    let result = history.run();
    println!("{:#?}", history.pod().object.spec);
    for line in history.trace.iter().flatten() {
        println!("{line}");
    }
    if let Err(broken) = result {
        panic!("seed {seed}: {broken}");
    }
}

#[test]
fn sim_every_history_settles_and_breaks_no_rule() {
    if let Some(seed) = number("BERTH_SIM_SEED") {
        return replay(seed);
    }
    let histories = number("BERTH_SIM_HISTORIES").unwrap_or(HISTORIES);
    let next = AtomicU64::new(0);
    let work = || {
        let mut broken = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= histories {
                return broken;
            }
            if let Err(rule) = History::new(seed, false).run() {
                broken.push((seed, rule));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let broken: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let Some((seed, rule)) = broken.first() else { return };
    for (seed, rule) in broken.iter().take(20) {
        println!("seed {seed}: {rule}");
    }
    panic!("{} of {histories} histories; replay with BERTH_SIM_SEED={seed}: {rule}", broken.len());
}
