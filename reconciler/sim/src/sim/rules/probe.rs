//! When a probe may run, and what its results must lead to.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1;

use super::super::history::Broken;
use super::{Moment, Rules, probe_of, require};
use crate::node::{ContainerState, ProbeOutcome};
use crate::planner::ProbeKind;

/// The probes of all instances so far.
#[derive(Default)]
pub(super) struct Probed {
    /// When this agent ran it last.
    last: HashMap<(String, ProbeKind), i64>,
    /// The same result how often in a row, as this agent knows.
    streaks: HashMap<(String, ProbeKind), (bool, i32)>,
    /// Results with the thresholds applied.
    results: HashMap<(String, ProbeKind), bool>,
    /// Instances of which an agent has said that they are ready, or have started.
    said_ready: HashSet<String>,
    started: HashSet<String>,
}

impl Probed {
    pub(super) fn crashed(&mut self, published: Option<&v1::PodStatus>) {
        self.last.clear();
        self.streaks.clear();
        self.results.retain(|(_, kind), result| *kind == ProbeKind::Readiness && *result);
        let Some(status) = published else { return };
        let lists = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        for container in lists.filter(|container| container.ready) {
            let id = container.container_id.as_deref().and_then(|id| id.split_once("://"));
            self.said_ready.extend(id.map(|(_, id)| id.to_owned()));
        }
    }

    pub(super) fn ends(
        &mut self,
        moment: &Moment<'_>,
        name: &str,
        id: &str,
        kind: ProbeKind,
        outcome: &ProbeOutcome,
    ) {
        let Some(probe) = moment.pod.container(name).and_then(|c| probe_of(c, kind)) else { return };
        let success = !matches!(outcome, ProbeOutcome::Failure(_));
        let key = (id.to_owned(), kind);
        let (last, count) = self.streaks.get(&key).copied().unwrap_or((success, 0));
        let count = if last == success { count + 1 } else { 1 };
        self.streaks.insert(key.clone(), (success, count));
        let threshold = if success { probe.success_threshold } else { probe.failure_threshold };
        if count >= threshold.unwrap_or(1) {
            self.results.insert(key, success);
            if kind == ProbeKind::Startup && success {
                self.started.insert(id.to_owned());
            }
            if kind == ProbeKind::Readiness && !success {
                self.said_ready.remove(id);
            }
        }
    }

    /// Whether the startup probe has ever succeeded.
    pub(super) fn has_started(&self, id: &str) -> bool {
        self.started.contains(id)
    }

    pub(super) fn has_failed(&self, id: &str, kind: ProbeKind) -> bool {
        self.results.get(&(id.to_owned(), kind)) == Some(&false)
    }

    /// Whether an agent has reason to say that an instance with a readiness probe is ready.
    pub(super) fn may_be_ready(&self, id: &str) -> bool {
        self.results.get(&(id.to_owned(), ProbeKind::Readiness)) == Some(&true)
            || self.said_ready.contains(id)
    }
}

impl Rules {
    pub(super) fn probe_is_due(
        &mut self,
        moment: &Moment<'_>,
        name: &str,
        id: &str,
        kind: ProbeKind,
    ) -> Result<(), Broken> {
        let word = kind.as_str();
        let found = moment.world.instance(id);
        let Some((record, mind)) = found.filter(|(r, _)| matches!(r.state, ContainerState::Running { .. }))
        else {
            return Err(format!("{word} probe of {name}, not running"));
        };
        let container = moment.pod.container(name).ok_or_else(|| format!("{name} is unknown"))?;
        let probe = probe_of(container, kind).ok_or_else(|| format!("{name} has no {word} probe"))?;
        require(!moment.world.seen.paused, || format!("{word} probe of {name}, paused"))?;
        let hook = container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        require(!hook || record.post_start_done, || format!("{word} probe of {name} before its hook"))?;
        let started = container.startup_probe.is_none() || self.probed.has_started(id);
        require(started || kind == ProbeKind::Startup, || {
            format!("{word} probe of {name} before it started")
        })?;
        let ends = moment.deletion.is_some() || moment.world.seen.evicted.is_some() || self.is_stopping(id);
        require(!ends || kind == ProbeKind::Readiness, || format!("{word} probe of {name} while it ends"))?;
        let now = moment.world.now;
        let key = (id.to_owned(), kind);
        let seconds = |value: Option<i32>| i64::from(value.unwrap_or(0)) * 1000;
        let world = moment.world;
        let (since, wait, sure) = match self.probed.last.get(&key) {
            // The node's beat may shorten a period, see `planner::probe`.
            Some(last) => {
                let period = seconds(probe.period_seconds);
                (*last, period - (period / 4).min(1000), world.can_tell_since(*last))
            }
            // Its start is on record, by the clock as it was then.
            None => {
                let since = mind.started_at;
                (since, seconds(probe.initial_delay_seconds), world.stepped_at < since)
            }
        };
        require(!sure || now >= since + wait, || {
            format!("{word} probe of {name} after {} ms of {wait} ms", now - since)
        })?;
        self.probed.last.insert(key, now);
        Ok(())
    }

    /// Whoever fails its startup or liveness probe for good is being stopped.
    pub(super) fn failed_probes_have_an_effect(&self, moment: &Moment<'_>) -> Result<(), Broken> {
        for (record, _) in moment.world.running() {
            let Some(container) = moment.pod.container(&record.name) else { continue };
            for kind in [ProbeKind::Startup, ProbeKind::Liveness] {
                let failed = probe_of(container, kind).is_some() && self.probed.has_failed(&record.id, kind);
                require(!failed || self.is_stopping(&record.id), || {
                    format!("{} failed its {} probe and goes on", record.name, kind.as_str())
                })?;
            }
        }
        Ok(())
    }
}
