//! Who may be stopped, when, and how hard.

use k8s_openapi::api::core::v1;

use super::super::history::Broken;
use super::super::pods::{is_ephemeral, is_init, is_sidecar};
use super::{Moment, Rules, probe_of, require};
use crate::node::{ContainerState, Hook, StopSignal};
use crate::planner::{StopCause, spec_hash};

impl Rules {
    /// Whether what the agent gives as its reason for stopping an instance is true.
    pub(super) fn stop_is_justified(
        &self,
        moment: &Moment<'_>,
        name: &str,
        id: &str,
        cause: StopCause,
    ) -> Result<(), Broken> {
        let Some((record, mind)) = moment.world.instance(id) else {
            return Err(format!("{name} is to be stopped and does not exist"));
        };
        let container = moment.pod.container(name).ok_or_else(|| format!("{name} is unknown"))?;
        let holds = match cause {
            StopCause::PodEnds => {
                let deadline = self.deadline(moment.pod).is_some();
                moment.deletion.is_some()
                    || moment.world.seen.evicted.is_some()
                    || deadline
                    || self.mains_are_done(moment)
            }
            StopCause::Probe(kind) => self.probed.has_failed(id, kind),
            StopCause::SpecChanged => record.spec_hash != spec_hash(container),
            StopCause::Resized => record.resources.as_ref() != moment.world.seen.allocated.get(name),
            StopCause::AllRestart => self.is_overtaken(record),
            StopCause::PostStartFailed => mind.post_start_failed,
        };
        require(holds, || format!("{name} is stopped for a reason that is none: {cause:?}"))
    }

    /// Whether no main container runs any more, or an init container has failed.
    fn mains_are_done(&self, moment: &Moment<'_>) -> bool {
        let runs = |name: &str| moment.world.running().any(|(record, _)| record.name == name);
        let failed = |init: &v1::Container| {
            let newest = moment.world.newest(&init.name).map(|(record, _)| &record.state);
            !is_sidecar(init) && matches!(newest, Some(ContainerState::Exited(exit)) if exit.code != 0)
        };
        !moment.pod.spec().containers.iter().any(|main| runs(&main.name))
            || moment.pod.spec().init_containers.iter().flatten().any(failed)
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
                let probe = probe_of(container, *kind);
                Some(probe.and_then(|p| p.termination_grace_period_seconds).unwrap_or(pod_grace))
            }
        };
        let own = own.map(|grace| (since + grace * 1000, grace == 0));
        let pod = moment.deletion.map(|deletion| {
            let grace = i64::try_from(deletion.grace_seconds).unwrap() * 1000;
            (moment.deleted_at + grace, grace == 0)
        });
        // An evicted pod has no more than the node gives it, whatever else its containers are stopped for.
        let evicted =
            self.evicted_at.filter(|_| pod.is_none()).map(|at| at + pod_grace.min(self.evicted_grace) * 1000);
        let own = own.map(|(deadline, force)| (evicted.map_or(deadline, |at| deadline.min(at)), force));
        Ok(match (own, pod) {
            (Some(own), Some(pod)) => Some((own.0.min(pod.0), own.1 || pod.1)),
            (own, pod) => own.or(pod),
        })
    }

    pub(super) fn stop_is_due(
        &self,
        moment: &Moment<'_>,
        name: &str,
        id: &str,
        signal: StopSignal,
    ) -> Result<(), Broken> {
        let now = moment.world.now;
        // What nobody wants is killed without much ado.
        let newest = moment.world.newest(name).is_some_and(|(newest, _)| newest.id == id);
        let Some(container) = moment.pod.container(name).filter(|_| newest) else { return Ok(()) };
        let Some((deadline, force)) = self.grace(moment, container, id)? else { return Ok(()) };
        // Where the clock was set while there was no agent, nobody knows when the grace period ends.
        let asked = moment.deletion.map(|_| moment.deleted_at).into_iter().chain(self.evicted_at);
        let begun = asked.chain(self.stopping.get(id).map(|(_, since)| *since)).min();
        if begun.is_some_and(|begun| !moment.world.can_tell_since(begun)) {
            return Ok(());
        }
        if signal == StopSignal::Kill {
            let asked = self.terminated.get(id).is_some_and(|asked| now >= asked + 2_000);
            let again = self.killed.contains(id);
            return require(again || force || asked && now >= deadline, || {
                format!("{name} killed too early")
            });
        }
        let all_restart = matches!(self.stopping.get(id), Some((StopCause::AllRestart, _)));
        let hook = !all_restart && container.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some());
        let hook_done = moment.world.instance(id).is_some_and(|(_, mind)| mind.pre_stop_done);
        require(!hook || hook_done || now >= deadline, || format!("{name}: stop signal before preStop"))?;
        let ends = self.stopping.get(id).is_some_and(|(cause, _)| *cause == StopCause::PodEnds);
        if is_sidecar(container) && ends && now < deadline {
            let all: Vec<_> = moment.pod.all_containers().collect();
            let index = all.iter().position(|c| c.name == name).unwrap_or(0);
            let runs = |name: &str| moment.world.running().any(|(record, _)| record.name == name);
            let later = all[index + 1..].iter().find(|c| !is_ephemeral(&c.name) && runs(&c.name));
            require(later.is_none(), || format!("sidecar {name} stopped before a later container"))?;
        }
        Ok(())
    }

    /// A hook runs once in the life of an instance, as far as one agent can know.
    pub(super) fn hook_is_due(
        &mut self,
        moment: &Moment<'_>,
        name: &str,
        id: &str,
        hook: Hook,
    ) -> Result<(), Broken> {
        let running = moment.world.running().find(|(record, _)| record.id == id);
        let Some((record, _)) = running else { return Err(format!("{hook:?} hook of {name}, not running")) };
        require(self.hooks.insert((id.to_owned(), hook == Hook::PreStop)), || {
            format!("{hook:?} hook of {name} runs again")
        })?;
        match hook {
            Hook::PostStart => {
                require(!record.post_start_done, || format!("PostStart hook of {name} runs again"))?;
                require(!self.is_stopping(id), || format!("PostStart hook of {name} while it is stopped"))
            }
            Hook::PreStop => {
                require(self.is_stopping(id), || format!("PreStop hook of {name} without need"))?;
                let regular = is_init(name) && moment.pod.container(name).is_some_and(|c| !is_sidecar(c));
                require(!regular, || format!("PreStop hook of init container {name}"))
            }
        }
    }
}
