//! What must hold at every step of every history, judged by the world and not by the planner's own memory.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use berth_reconciler::node::{
    ContainerRecord, ContainerState, Deletion, Sandbox, StartContainer, StopSignal,
};
use berth_reconciler::planner::{Action, Note, ProbeKind, StopCause, spec_hash};
use berth_reconciler::pod::Pod;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use super::world::{Instance, World, ms, stamp};

/// A rule that does not hold.
pub type Broken = String;

/// What the rules need to know of the past.
#[derive(Default)]
pub struct Rules {
    /// Back-off level of each instance in seconds; none: a first start.
    levels: HashMap<(String, u32), Option<u64>>,
    /// The image that was made present for the next start.
    ensured: HashMap<String, String>,
    /// Why and since when an instance is being stopped.
    stopping: HashMap<String, (StopCause, i64)>,
    /// When the stop signal was sent first.
    terminated: HashMap<String, i64>,
    /// Instances that got KILL before, which may be repeated at any time.
    killed: HashSet<String>,
    /// The last exit for which all containers are restarted, in milliseconds.
    round: Option<i64>,
    restart_counts: HashMap<String, i32>,
    phase: Option<String>,
}

/// One moment, as the rules see it.
pub struct Moment<'a> {
    pub world: &'a World,
    pub pod: &'a Pod,
    pub deletion: Option<&'a Deletion>,
}

pub fn is_sidecar(container: &v1::Container) -> bool {
    container.name.starts_with("init") && container.restart_policy.is_some()
}

pub fn is_ephemeral(name: &str) -> bool {
    name.starts_with("debug")
}

/// Whether that exit has all containers of the pod restarted.
fn restarts_all(container: &v1::Container, code: i32) -> bool {
    let listed = |rule: &v1::ContainerRestartRule| {
        let codes = rule.exit_codes.as_ref().unwrap();
        codes.values.as_ref().unwrap().contains(&code) == (codes.operator == "In")
    };
    let rule = container.restart_policy_rules.iter().flatten().find(|rule| listed(rule));
    rule.is_some_and(|rule| rule.action == "RestartAllContainers")
}

fn runs<'a>(moment: &'a Moment<'_>, name: &str) -> Option<&'a Instance> {
    moment.world.running().find(|instance| instance.record.name == name)
}

fn of_sandbox<'a>(world: &'a World, name: &'a str, since: Timestamp) -> impl Iterator<Item = &'a Instance> {
    world.instances.iter().filter(move |i| i.record.name == name && i.record.created_at >= since)
}

fn require(holds: bool, rule: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(rule()) }
}

impl Rules {
    /// The agent was killed: what it had prepared is forgotten.
    pub fn crashed(&mut self) {
        self.ensured.clear();
        self.stopping.clear();
    }

    pub fn image_present(&mut self, container: &str, image: &str) {
        self.ensured.insert(container.to_owned(), image.to_owned());
    }

    /// Whether all containers are to be restarted since that instance was made.
    pub fn is_overtaken(&self, record: &ContainerRecord) -> bool {
        self.round.is_some_and(|round| ms(stamp(0), record.created_at) < round)
    }

    /// Whether the agent has decided to stop that instance.
    pub fn is_stopping(&self, id: &str) -> bool {
        self.stopping.contains_key(id)
    }

    /// Whether that instance was stopped to start another with a new spec, whatever the restart policy says.
    pub fn spec_changed(&self, id: &str) -> bool {
        matches!(self.stopping.get(id), Some((StopCause::SpecChanged | StopCause::Resized, _)))
    }

    fn look_for_a_restart_of_all(&mut self, moment: &Moment<'_>) {
        for instance in &moment.world.instances {
            let ContainerState::Exited(exit) = &instance.record.state else { continue };
            let container = moment.pod.container(&instance.record.name);
            if container.is_some_and(|container| restarts_all(container, exit.code)) {
                self.round = self.round.max(Some(ms(stamp(0), exit.finished_at)));
            }
        }
    }

    pub fn begins(&mut self, moment: &Moment<'_>, action: &Action) -> Result<(), Broken> {
        self.look_for_a_restart_of_all(moment);
        match action {
            Action::StartContainer(start) => {
                self.start_is_wanted(moment, start)?;
                self.order_holds(moment, start)?;
                self.backoff_holds(moment, start)
            }
            Action::Note(Note::Stopping { id, cause, .. }) => {
                self.stopping.insert(id.clone(), (*cause, moment.world.now));
                Ok(())
            }
            Action::StopContainer { container, id, signal } => {
                self.stop_is_due(moment, container, id, *signal)?;
                if *signal == StopSignal::Kill {
                    self.killed.insert(id.clone());
                }
                self.terminated.entry(id.clone()).or_insert(moment.world.now);
                Ok(())
            }
            Action::ResizeContainer { container, id, resources } => {
                let instance = moment.world.running().find(|instance| instance.record.id == *id);
                require(instance.is_some(), || format!("{container} resized although it does not run"))?;
                let granted = moment.world.allocated.get(container) == Some(resources);
                require(granted, || format!("{container} gets what the node has not granted"))
            }
            Action::CreateSandbox => {
                require(moment.deletion.is_none(), || "sandbox of a deleted pod".to_owned())
            }
            Action::RemovePod | Action::StopSandbox => {
                let ready = matches!(moment.world.sandbox, Sandbox::Ready { .. });
                let runs = ready && moment.world.running().next().is_some();
                require(!runs, || "teardown under a container".to_owned())?;
                require(!moment.world.is_building(), || "teardown under a step that builds".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn start_is_wanted(&mut self, moment: &Moment<'_>, start: &StartContainer) -> Result<(), Broken> {
        let name = &start.name;
        require(moment.deletion.is_none(), || format!("{name} started in a deleted pod"))?;
        require(self.phase.as_deref().is_none_or(|p| p == "Pending" || p == "Running"), || {
            format!("{name} started in an ended pod")
        })?;
        require(matches!(moment.world.sandbox, Sandbox::Ready { .. }), || format!("{name} without sandbox"))?;
        if self.round.is_some() {
            let old = moment.world.running().find(|i| self.is_overtaken(&i.record));
            require(old.is_none(), || {
                format!("{name} started before all had ended that are to be restarted")
            })?;
        }
        let debugs = is_ephemeral(name);
        require(!debugs || start.attempt == 0, || format!("ephemeral container {name} started again"))?;
        let other = moment
            .world
            .instances
            .iter()
            .find(|i| i.record.name == *name && !matches!(i.record.state, ContainerState::Exited(_)));
        require(other.is_none(), || format!("{name} started beside another instance"))?;
        let container = moment.pod.container(name).ok_or_else(|| format!("{name} is unknown"))?;
        require(start.spec_hash == spec_hash(container), || format!("{name} started with an old spec"))?;
        let ensured = self.ensured.remove(name);
        require(ensured == container.image, || format!("{name} started without its image"))
    }

    /// Init containers one after another, sidecars up before the next, main containers last.
    fn order_holds(&self, moment: &Moment<'_>, start: &StartContainer) -> Result<(), Broken> {
        let Sandbox::Ready { created_at, .. } = &moment.world.sandbox else { return Ok(()) };
        if is_ephemeral(&start.name) {
            return Ok(());
        }
        let since = self.round.map_or(*created_at, |round| stamp(round).max(*created_at));
        let of_sandbox = |name| of_sandbox(moment.world, name, since);
        let spec = moment.pod.spec();
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let initialised = spec.containers.iter().any(|main| of_sandbox(&main.name).next().is_some());
        let index = inits.iter().position(|c| c.name == start.name).unwrap_or(inits.len());
        let begun_later =
            inits[index.min(inits.len())..].iter().any(|c| of_sandbox(&c.name).next().is_some());
        if initialised || begun_later && inits.get(index).is_some_and(is_sidecar) {
            return Ok(());
        }
        for before in &inits[..index] {
            let through = of_sandbox(&before.name).any(|i| {
                is_sidecar(before)
                    || matches!(&i.record.state, ContainerState::Exited(exit) if exit.code == 0)
            });
            require(through, || format!("{} started before {} was through", start.name, before.name))?;
        }
        Ok(())
    }

    fn backoff_holds(&mut self, moment: &Moment<'_>, start: &StartContainer) -> Result<(), Broken> {
        let of_name = moment.world.instances.iter().filter(|i| i.record.name == start.name);
        let Some(last) = of_name.max_by_key(|i| i.record.attempt).map(|i| &i.record) else {
            self.levels.insert((start.name.clone(), start.attempt), None);
            return require(start.attempt == 0, || format!("{} begins with {}", start.name, start.attempt));
        };
        let ContainerState::Exited(exit) = &last.state else { return Ok(()) };
        require(start.attempt == last.attempt + 1, || format!("{}: attempts skip or fall", start.name))?;
        let ran = exit.started_at.map_or(0, |started| ms(started, exit.finished_at));
        let before = self.levels.get(&(start.name.clone(), last.attempt)).copied().flatten();
        let level = match before {
            _ if last.spec_hash != start.spec_hash || last.resources.as_ref() != Some(&start.resources) => {
                None
            }
            _ if ran >= 600_000 => Some(0),
            None => Some(0),
            Some(0) => Some(10),
            Some(level) => Some((level * 2).min(300)),
        };
        self.levels.insert((start.name.clone(), start.attempt), level);
        let waited = ms(exit.finished_at, stamp(moment.world.now));
        let due = i64::try_from(level.unwrap_or(0)).unwrap() * 1000;
        require(waited >= due, || format!("{} waited {waited} ms of {due} ms", start.name))?;
        require(start.delay == level.map(Duration::from_secs), || {
            format!("{}: wrong delay recorded", start.name)
        })
    }

    /// End of the grace period of an instance, and whether it is none at all. None: it cannot be told from outside.
    fn grace(
        &self,
        moment: &Moment<'_>,
        container: &v1::Container,
        id: &str,
    ) -> Result<Option<(i64, bool)>, Broken> {
        let (cause, since) =
            self.stopping.get(id).ok_or_else(|| format!("{} is stopped for no reason", container.name))?;
        let pod_grace = moment.pod.spec().termination_grace_period_seconds.unwrap_or(30);
        let own = match cause {
            StopCause::PodEnds => None,
            StopCause::SpecChanged
            | StopCause::Resized
            | StopCause::AllRestart
            | StopCause::PostStartFailed => Some(pod_grace),
            StopCause::Probe(kind) => {
                let probe = match kind {
                    ProbeKind::Startup => &container.startup_probe,
                    _ => &container.liveness_probe,
                };
                Some(probe.as_ref().and_then(|p| p.termination_grace_period_seconds).unwrap_or(pod_grace))
            }
        };
        let own = own.map(|grace| (since + grace * 1000, grace == 0));
        let pod = moment.deletion.map(|deletion| {
            let grace = i64::try_from(deletion.grace_seconds).unwrap() * 1000;
            (ms(stamp(0), deletion.requested_at) + grace, grace == 0)
        });
        // An evicted pod has a second at most, whatever else its containers are stopped for.
        let evicted = moment.world.evicted.as_ref().filter(|_| pod.is_none());
        let evicted = evicted.map(|eviction| ms(stamp(0), eviction.since) + pod_grace.min(1) * 1000);
        let own = own.map(|(deadline, force)| (evicted.map_or(deadline, |at| deadline.min(at)), force));
        Ok(match (own, pod) {
            (Some(own), Some(pod)) => Some((own.0.min(pod.0), own.1 || pod.1)),
            (own, pod) => own.or(pod),
        })
    }

    fn stop_is_due(
        &self,
        moment: &Moment<'_>,
        name: &str,
        id: &str,
        signal: StopSignal,
    ) -> Result<(), Broken> {
        let now = moment.world.now;
        let Some(container) = moment.pod.container(name) else { return Ok(()) };
        let Some((deadline, force)) = self.grace(moment, container, id)? else { return Ok(()) };
        if signal == StopSignal::Kill {
            let asked = self.terminated.get(id).is_some_and(|asked| now >= asked + 2_000);
            let again = self.killed.contains(id);
            return require(again || force || asked && now >= deadline, || {
                format!("{name} killed too early")
            });
        }
        let all_restart = matches!(self.stopping.get(id), Some((StopCause::AllRestart, _)));
        let hook = !all_restart && container.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some());
        let instance = moment.world.instances.iter().find(|i| i.record.id == id);
        let hook_done = instance.is_some_and(|i| i.pre_stop_done);
        require(!hook || hook_done || now >= deadline, || format!("{name}: stop signal before preStop"))?;
        let ends = self.stopping.get(id).is_some_and(|(cause, _)| *cause == StopCause::PodEnds);
        if is_sidecar(container) && ends && now < deadline {
            let all: Vec<_> = moment.pod.all_containers().collect();
            let index = all.iter().position(|c| c.name == name).unwrap_or(0);
            let later =
                all[index + 1..].iter().find(|c| !is_ephemeral(&c.name) && runs(moment, &c.name).is_some());
            require(later.is_none(), || format!("sidecar {name} stopped before a later container"))?;
        }
        Ok(())
    }

    pub fn status(&mut self, status: &v1::PodStatus) -> Result<(), Broken> {
        let lists = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        for container in lists.into_iter().flatten().flatten() {
            let known = self.restart_counts.entry(container.name.clone()).or_insert(0);
            let count = container.restart_count;
            require(count >= *known, || format!("{}: restart count falls to {count}", container.name))?;
            *known = count;
        }
        if let Some(known @ ("Succeeded" | "Failed")) = self.phase.as_deref() {
            require(status.phase.as_deref() == Some(known), || format!("phase leaves {known}"))?;
        }
        self.phase.clone_from(&status.phase);
        Ok(())
    }

    /// The first status of a new agent must not take back what the last one had said of instances that still run.
    pub fn resumed(before: &v1::PodStatus, after: &v1::PodStatus) -> Result<(), Broken> {
        let all = |status: &v1::PodStatus| {
            let both = status.init_container_statuses.iter().chain(&status.container_statuses);
            both.flatten().cloned().collect::<Vec<_>>()
        };
        let running = |s: &v1::ContainerStatus| s.state.as_ref().is_some_and(|state| state.running.is_some());
        for (old, new) in all(before).iter().zip(&all(after)) {
            let same = old.container_id == new.container_id && running(old) && running(new);
            require(!same || !old.ready || new.ready, || format!("{} is not ready any more", old.name))?;
        }
        require(before.start_time == after.start_time, || "start time changed".to_owned())
    }
}
