//! Who may be started, when, and as what.

use std::time::Duration;

use super::super::history::Broken;
use super::super::pods::{is_ephemeral, is_init, is_sidecar};
use super::{Moment, Rules, require, restarts};
use crate::node::{ContainerRecord, ContainerState, Sandbox, StartContainer};
use crate::planner::spec_hash;

impl Rules {
    pub(super) fn start_is_wanted(
        &mut self,
        moment: &Moment<'_>,
        start: &StartContainer,
    ) -> Result<(), Broken> {
        let (name, world) = (&start.name, moment.world);
        self.pod_goes_on(moment, name)?;
        require(world.ready(), || format!("{name} without sandbox"))?;
        require(!world.seen.paused, || format!("{name} started in a paused pod"))?;
        let old = world.running().find(|(record, _)| self.is_overtaken(record));
        require(old.is_none(), || format!("{name} started before all had ended that are to be restarted"))?;
        require(!is_ephemeral(name) || start.attempt == 0, || {
            format!("ephemeral container {name} started again")
        })?;
        let mut others = world.seen.containers.iter().filter(|record| record.name == *name);
        let other = others.find(|record| !matches!(record.state, ContainerState::Exited(_)));
        require(other.is_none(), || format!("{name} started beside another instance"))?;
        let container = moment.pod.container(name).ok_or_else(|| format!("{name} is unknown"))?;
        require(start.spec_hash == spec_hash(container), || format!("{name} started with an old spec"))?;
        self.runs_again(moment, start)?;
        let ensured = self.ensured.remove(name);
        require(ensured == container.image, || format!("{name} started without its image"))
    }

    /// Whether what has ended may be started once more.
    fn runs_again(&self, moment: &Moment<'_>, start: &StartContainer) -> Result<(), Broken> {
        let Some((last, _)) = moment.world.newest(&start.name) else { return Ok(()) };
        let (ContainerState::Exited(exit), Some(container)) =
            (&last.state, moment.pod.container(&start.name))
        else {
            return Ok(());
        };
        let before = moment.world.of_sandbox(&start.name).next().is_none();
        let begins_anew = before && is_init(&start.name) || self.is_overtaken(last);
        let regular = is_init(&start.name) && !is_sidecar(container);
        let again = if regular {
            exit.code != 0 && restarts(moment.pod, container, exit.code)
        } else {
            restarts(moment.pod, container, exit.code) || self.spec_changed(&last.id)
        };
        require(begins_anew || again, || format!("{} started again after {}", start.name, exit.code))
    }

    /// Init containers one after another, sidecars up before the next, main containers last, and those after a
    /// `postStart` hook once it is done.
    pub(super) fn order_holds(&self, moment: &Moment<'_>, start: &StartContainer) -> Result<(), Broken> {
        let Sandbox::Ready { .. } = &moment.world.seen.sandbox else { return Ok(()) };
        if is_ephemeral(&start.name) {
            return Ok(());
        }
        let of_sandbox = |name: &str| -> Vec<&ContainerRecord> {
            moment.world.of_sandbox(name).filter(|record| !self.is_overtaken(record)).collect()
        };
        let spec = moment.pod.spec();
        self.hooks_hold(moment, start)?;
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let initialised = spec.containers.iter().any(|main| !of_sandbox(&main.name).is_empty());
        let index = inits.iter().position(|c| c.name == start.name).unwrap_or(inits.len());
        let begun_later = inits[index..].iter().any(|c| !of_sandbox(&c.name).is_empty());
        if initialised || begun_later && inits.get(index).is_some_and(is_sidecar) {
            return Ok(());
        }
        for before in &inits[..index] {
            let ended_well = |record: &&ContainerRecord| matches!(&record.state, ContainerState::Exited(exit) if exit.code == 0);
            let of_before = of_sandbox(&before.name);
            let through = if is_sidecar(before) {
                // The last one, and whoever is next, wait for it; those that began later show that it was up once.
                let later = &inits[inits.iter().position(|c| c.name == before.name).unwrap_or(0) + 1..];
                let was_up = later.iter().any(|c| !of_sandbox(&c.name).is_empty());
                was_up || of_before.iter().any(|record| self.is_up(record, before))
            } else {
                of_before.iter().any(ended_well)
            };
            require(through, || format!("{} started before {} was through", start.name, before.name))?;
        }
        Ok(())
    }

    /// Whether a running sidecar has passed its hook and its startup probe.
    fn is_up(&self, record: &ContainerRecord, container: &k8s_openapi::api::core::v1::Container) -> bool {
        let hook = container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        matches!(record.state, ContainerState::Running { .. })
            && (!hook || record.post_start_done)
            && (container.startup_probe.is_none() || self.probed.has_started(&record.id))
    }

    fn hooks_hold(&self, moment: &Moment<'_>, start: &StartContainer) -> Result<(), Broken> {
        let mains = &moment.pod.spec().containers;
        let before = mains.iter().position(|c| c.name == start.name).unwrap_or(0);
        for main in &mains[..before] {
            let hook = main.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
            let mut running = moment.world.running();
            let waits = running.any(|(record, _)| record.name == main.name && !record.post_start_done);
            require(!hook || !waits, || {
                format!("{} started during the postStart hook of {}", start.name, main.name)
            })?;
        }
        Ok(())
    }

    pub(super) fn backoff_holds(
        &mut self,
        moment: &Moment<'_>,
        start: &StartContainer,
    ) -> Result<(), Broken> {
        let world = moment.world;
        let Some((last, mind)) = world.newest(&start.name) else {
            self.levels.insert((start.name.clone(), start.attempt), None);
            return require(start.attempt == 0, || format!("{} begins with {}", start.name, start.attempt));
        };
        let ContainerState::Exited(exit) = &last.state else { return Ok(()) };
        require(start.attempt == last.attempt + 1, || format!("{}: attempts skip or fall", start.name))?;
        let ran = if exit.started_at.is_some() { mind.finished_at - mind.started_at } else { 0 };
        let before = self.levels.get(&(start.name.clone(), last.attempt)).copied().flatten();
        let changed = last.spec_hash != start.spec_hash || last.resources.as_ref() != Some(&start.resources);
        let level = match before {
            _ if changed => None,
            // How long it ran cannot be told.
            _ if world.stepped_at >= mind.started_at => start.delay.map(|delay| delay.as_secs()),
            _ if ran >= 600_000 => Some(0),
            None => Some(0),
            Some(0) => Some(10),
            Some(level) => Some((level * 2).min(300)),
        };
        self.levels.insert((start.name.clone(), start.attempt), level);
        let waited = world.now - mind.finished_at;
        let due = i64::try_from(level.unwrap_or(0)).unwrap() * 1000;
        let sure = world.stepped_at < mind.finished_at;
        require(!sure || waited >= due, || {
            format!("back-off: {} waited {waited} ms of {due} ms", start.name)
        })?;
        require(start.delay == level.map(Duration::from_secs), || {
            format!("back-off: {} has a wrong delay on record", start.name)
        })
    }
}
