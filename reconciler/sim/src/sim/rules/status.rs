//! What a status may say.

use k8s_openapi::api::core::v1;

use super::super::history::Broken;
use super::super::pods::{GATE, is_init, is_sidecar};
use super::{Moment, Rules, require};
use crate::node::{ContainerRecord, ContainerState};

fn condition<'a>(status: &'a v1::PodStatus, type_: &str) -> Option<&'a v1::PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn holds(status: &v1::PodStatus, type_: &str) -> bool {
    condition(status, type_).is_some_and(|condition| condition.status == "True")
}

fn statuses(status: &v1::PodStatus) -> impl Iterator<Item = &v1::ContainerStatus> {
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten()
}

/// API servers refuse the status of a pod that has ended, or is to be removed, in which a container's end is no more.
fn ends_stay(before: &v1::PodStatus, status: &v1::PodStatus, deleted: bool) -> Result<(), Broken> {
    let ended = matches!(before.phase.as_deref(), Some("Succeeded" | "Failed"));
    if !ended && !deleted {
        return Ok(());
    }
    let end = |s: &v1::ContainerStatus| s.state.as_ref().and_then(|state| state.terminated.clone());
    for old in statuses(before) {
        let new = statuses(status).find(|new| new.name == old.name);
        // Of an instance that was being made when the agent ended, or the deletion came, it may be learnt late.
        let another =
            new.is_some_and(|new| new.container_id.is_some() && new.container_id != old.container_id);
        let stays = |was: v1::ContainerStateTerminated| match new.and_then(end) {
            Some(now) => now == was || another || was.container_id.is_none(),
            None => another,
        };
        require(end(old).is_none_or(stays), || {
            format!("{} of a pod that has ended does not end as it did", old.name)
        })?;
    }
    let initialized = !ended || holds(status, "Initialized") || !holds(before, "Initialized");
    require(initialized, || "a pod that has ended is not initialized any more".to_owned())
}

impl Rules {
    pub(in super::super) fn status(
        &mut self,
        moment: &Moment<'_>,
        before: Option<&v1::PodStatus>,
        status: &v1::PodStatus,
    ) -> Result<(), Broken> {
        if before.is_none() {
            self.begun_at = moment.world.now;
        }
        for container in statuses(status) {
            let known = self.restart_counts.entry(container.name.clone()).or_insert(0);
            let count = container.restart_count;
            require(count >= *known, || format!("{}: restart count falls to {count}", container.name))?;
            *known = count;
            self.container(moment, container)?;
        }
        if let Some(before) = before {
            ends_stay(before, status, moment.deletion.is_some())?;
        }
        self.phase(moment, status)?;
        self.conditions(moment, before, status)?;
        let generation = moment.pod.object.metadata.generation;
        require(status.observed_generation == generation, || "observedGeneration is another".to_owned())
    }

    fn container(&self, moment: &Moment<'_>, status: &v1::ContainerStatus) -> Result<(), Broken> {
        let name = &status.name;
        let container = moment.pod.container(name).ok_or_else(|| format!("status of unknown {name}"))?;
        let state = status.state.as_ref().ok_or_else(|| format!("{name} has no state"))?;
        let states = [state.running.is_some(), state.waiting.is_some(), state.terminated.is_some()];
        require(states.iter().filter(|is| **is).count() == 1, || format!("{name} has not one state"))?;
        let newest = moment.world.newest(name);
        let runs = newest.filter(|(record, _)| matches!(record.state, ContainerState::Running { .. }));
        let running = runs.is_some() && moment.world.ready();
        require(state.running.is_some() == running, || format!("{name} is not what its status says"))?;
        let regular = is_init(name) && !is_sidecar(container);
        let started = status.started == Some(true);
        require(!started || running, || format!("{name} has started and does not run"))?;
        if let Some((record, _)) = runs.filter(|_| started) {
            let hook = container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
            require(!hook || record.post_start_done, || format!("{name} has started before its hook"))?;
            let probed = container.startup_probe.is_none() || self.probed.has_started(&record.id);
            require(probed, || format!("{name} has started before its probe"))?;
        }
        if regular || !status.ready {
            return Ok(());
        }
        let id = runs.map(|(record, _)| record.id.as_str());
        require(started, || format!("{name} is ready and has not started"))?;
        let probed = container.readiness_probe.is_none() || id.is_some_and(|id| self.probed.may_be_ready(id));
        require(probed, || format!("{name} is ready without its probe"))
    }

    fn phase(&mut self, moment: &Moment<'_>, status: &v1::PodStatus) -> Result<(), Broken> {
        let phase = status.phase.as_deref().unwrap_or_default();
        match self.phase.as_deref() {
            Some(known @ ("Succeeded" | "Failed")) => {
                require(phase == known, || format!("phase leaves {known}"))?;
            }
            Some("Running") if phase == "Pending" => {
                let begun = |main: &v1::Container| {
                    moment.world.of_sandbox(&main.name).any(|record| !self.is_overtaken(record))
                };
                let any = moment.pod.spec().containers.iter().any(begun);
                require(!any, || "phase falls back to Pending".to_owned())?;
            }
            _ => {}
        }
        if matches!(phase, "Succeeded" | "Failed") {
            let runs = moment.world.ready() && moment.world.running().next().is_some();
            require(!runs, || format!("phase {phase} while a container runs"))?;
        }
        // What was made and never started is no exit.
        let last = |main: &v1::Container| {
            let is = |record: &&ContainerRecord| {
                record.name == main.name && record.state != ContainerState::Created
            };
            moment.world.seen.containers.iter().rfind(is).map(|record| &record.state)
        };
        let well = moment
            .pod
            .spec()
            .containers
            .iter()
            .map(last)
            .all(|state| matches!(state, Some(ContainerState::Exited(exit)) if exit.code == 0));
        let known = self.phase.as_deref() == Some("Succeeded");
        require(phase != "Succeeded" || known || well, || "phase Succeeded after a failure".to_owned())?;
        self.phase.clone_from(&status.phase);
        Ok(())
    }

    fn conditions(
        &self,
        moment: &Moment<'_>,
        before: Option<&v1::PodStatus>,
        status: &v1::PodStatus,
    ) -> Result<(), Broken> {
        for type_ in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
        {
            let now = condition(status, type_).ok_or_else(|| format!("no condition {type_}"))?;
            let old = before.and_then(|before| condition(before, type_));
            if let Some(old) = old.filter(|old| old.status == now.status) {
                let same = old.last_transition_time == now.last_transition_time;
                require(same, || format!("condition {type_} has a new transition time and no transition"))?;
            }
        }
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let counts = |c: &v1::Container| !is_init(&c.name) || is_sidecar(c);
        let all = moment.pod.spec().init_containers.iter().flatten().chain(&moment.pod.spec().containers);
        let ready = |name: &str| statuses(status).any(|s| s.name == name && s.ready);
        let all_ready = all.filter(|c| counts(c)).all(|c| ready(&c.name));
        let said = holds(status, "ContainersReady");
        require(said == (all_ready && !ended), || {
            "ContainersReady is not what the containers are".to_owned()
        })?;
        let gated = moment.pod.spec().readiness_gates.is_some();
        let open = !gated || holds(status, GATE);
        require(holds(status, "Ready") == (said && open), || "Ready is not what it follows from".to_owned())?;
        let sandbox = holds(status, "PodReadyToStartContainers");
        require(!sandbox || moment.world.ready(), || "PodReadyToStartContainers without sandbox".to_owned())
    }

    /// The first status of a new agent must not take back what the last one had said of instances that still run.
    pub(in super::super) fn resumed(before: &v1::PodStatus, after: &v1::PodStatus) -> Result<(), Broken> {
        let running = |s: &v1::ContainerStatus| s.state.as_ref().is_some_and(|state| state.running.is_some());
        for (old, new) in statuses(before).zip(statuses(after)) {
            let same = old.container_id == new.container_id && running(old) && running(new);
            require(!same || !old.ready || new.ready, || format!("{} is not ready any more", old.name))?;
        }
        require(before.start_time == after.start_time, || "start time changed".to_owned())
    }
}
