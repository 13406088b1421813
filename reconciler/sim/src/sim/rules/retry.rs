//! Steps that failed are taken again, but not at once.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1;

use super::super::history::Broken;
use super::super::pods::wanted;
use super::{Moment, require};
use crate::planner::{Action, Outcome};

/// When steps failed last, and for how long they must rest; in milliseconds.
#[derive(Default)]
pub(super) struct Waits {
    failed: HashMap<String, Wait>,
    /// What the node is asked for.
    asked: BTreeMap<String, v1::ResourceRequirements>,
    /// What it can never give.
    infeasible: Option<BTreeMap<String, v1::ResourceRequirements>>,
}

struct Wait {
    at: i64,
    delay: i64,
    /// Something the step waits for may have changed since.
    forgiven: bool,
}

/// What fails and rests apart from others, and its first and longest rest.
fn class(action: &Action) -> Option<(String, i64, i64)> {
    let (name, first, most) = match action {
        Action::CreateSandbox => ("sandbox".to_owned(), 1_000, 60_000),
        Action::StopSandbox => ("stop sandbox".to_owned(), 1_000, 60_000),
        Action::RemovePod => ("remove".to_owned(), 1_000, 60_000),
        Action::Allocate => ("allocate".to_owned(), 1_000, 60_000),
        Action::StartContainer(start) => (format!("start {}", start.name), 1_000, 60_000),
        Action::ResizeContainer { container, .. } => (format!("resize {container}"), 1_000, 60_000),
        Action::EnsureImage { container, image } => {
            (format!("pull {image} for {container}"), 10_000, 300_000)
        }
        _ => return None,
    };
    Some((name, first, most))
}

impl Waits {
    pub(super) fn forgive(&mut self) {
        for wait in self.failed.values_mut() {
            wait.forgiven = true;
        }
    }

    pub(super) fn begins(&mut self, moment: &Moment<'_>, action: &Action) -> Result<(), Broken> {
        let Some((name, ..)) = class(action) else { return Ok(()) };
        if *action == Action::Allocate {
            self.asked = wanted(moment.pod);
            let again = self.infeasible.as_ref() == Some(&self.asked);
            require(!again, || "the node is asked again for what it never has".to_owned())?;
            return Ok(());
        }
        let Some(wait) = self.failed.get(&name) else { return Ok(()) };
        let waited = moment.world.now - wait.at;
        let sure = !wait.forgiven && moment.world.can_tell_since(wait.at);
        require(!sure || waited >= wait.delay, || {
            format!("{name}: tried again after {waited} ms of {} ms", wait.delay)
        })
    }

    pub(super) fn ends(&mut self, moment: &Moment<'_>, action: &Action, outcome: &Outcome) {
        let Some((name, first, most)) = class(action) else { return };
        if *action == Action::Allocate {
            self.infeasible = None;
        }
        match outcome {
            Outcome::Done(Err(failure)) if failure.reason == "Infeasible" => {
                self.infeasible = Some(self.asked.clone());
            }
            Outcome::Done(Err(_)) => {
                let before = self.failed.get(&name).map(|wait| wait.delay);
                let delay = before.map_or(first, |before| (before * 2).min(most));
                self.failed.insert(name, Wait { at: moment.world.now, delay, forgiven: false });
            }
            _ => {
                self.failed.remove(&name);
            }
        }
    }
}
