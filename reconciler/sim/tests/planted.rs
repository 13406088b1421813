//! Every planted fault is caught, and by a rule that is about it.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use berth_sim::sim::{Bug, History};

/// Within how many histories a fault must be caught: a fiftieth of those that every `make test` runs.
const HISTORIES: u64 = 2_000;

/// The first history that catches it, and what the rule says.
fn catch(bug: Bug) -> Option<(u64, String)> {
    (0..HISTORIES).find_map(|seed| {
        let result = History::planted(seed, false, Some(bug)).run();
        result.err().map(|rule| (seed, rule))
    })
}

#[test]
fn every_planted_fault_is_caught() {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((*bug, catch(*bug)));
        }
        found
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let found: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let mut missed = Vec::new();
    for (bug, caught) in found {
        match caught {
            None => missed.push(format!("{bug:?} is not caught in {HISTORIES} histories")),
            Some((seed, rule)) => {
                println!("{bug:?}: seed {seed}: {rule}");
                if !bug.signs().iter().any(|sign| rule.contains(sign)) {
                    missed.push(format!("{bug:?} is caught for another reason, seed {seed}: {rule}"));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
