//! What the agent's steps do to the scripted machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use jiff::SignedDuration;
use k8s_openapi::api::core::v1;

use super::rng::Rng;
use super::world::{Mind, NEVER, Weather, World};
use crate::node::{
    ContainerRecord, ContainerState, Failure, Hook, Observation, Sandbox, StartContainer, StopSignal,
};
use crate::planner::{Action, Outcome};
use crate::pod::Pod;

impl World {
    /// A step comes to its end, with that outcome unless the machine stands against it.
    pub(super) fn effect(
        &mut self,
        rng: &mut Rng,
        pod: &Pod,
        action: &Action,
        outcome: Outcome,
        wanted: BTreeMap<String, v1::ResourceRequirements>,
    ) -> Outcome {
        let ok = !matches!(outcome, Outcome::Done(Err(_)));
        match action {
            Action::CreateSandbox => self.sandbox_made(ok),
            Action::StartContainer(start) => {
                self.create(rng, start);
                return self.started(rng, pod, start, outcome);
            }
            Action::RemoveContainer { id, .. } if ok => self.remove(id),
            Action::RunHook { id, hook, .. } => self.hook_done(id, *hook, ok),
            Action::StopContainer { id, signal, .. } if ok => self.signal(rng, id, *signal),
            Action::Allocate if ok => self.seen.allocated = wanted,
            Action::ResizeContainer { id, resources, .. } if ok => {
                if let Some(index) = self.find(id) {
                    self.seen.containers[index].resources = Some(resources.clone());
                }
            }
            Action::StopSandbox if ok => {
                self.kill_shim();
                self.seen.sandbox = Sandbox::Absent;
            }
            Action::RemovePod if ok => {
                self.seen = Observation::default();
                self.minds.clear();
            }
            _ => {}
        }
        outcome
    }

    fn remove(&mut self, id: &str) {
        if let Some(index) = self.find(id) {
            self.seen.containers.remove(index);
            self.minds.remove(index);
        }
    }

    fn hook_done(&mut self, id: &str, hook: Hook, ok: bool) {
        let Some(index) = self.find(id) else { return };
        match hook {
            Hook::PostStart if ok => self.seen.containers[index].post_start_done = true,
            Hook::PostStart => self.minds[index].post_start_failed = true,
            Hook::PreStop => self.minds[index].pre_stop_done = true,
        }
    }

    fn sandbox_made(&mut self, ok: bool) {
        self.kill_shim();
        self.seen.sandbox = if ok {
            let ips = vec![IpAddr::V4(Ipv4Addr::new(10, 85, 0, 2))];
            // Younger than all that was before, even if the clock was set back meanwhile.
            let known = self.seen.containers.iter().map(|record| record.created_at).max();
            let after = known.map(|known| known + SignedDuration::from_millis(1));
            Sandbox::Ready { ips, created_at: after.map_or(self.clock(), |after| after.max(self.clock())) }
        } else {
            Sandbox::Absent
        };
    }

    /// An instance is there, its process does not run yet. Of the dead ones only the last stays.
    pub(super) fn create(&mut self, rng: &mut Rng, start: &StartContainer) {
        let Sandbox::Ready { created_at: since, .. } = self.seen.sandbox else { return };
        let of_name = |record: &ContainerRecord| record.name == start.name;
        if self.seen.containers.iter().any(|record| of_name(record) && record.attempt == start.attempt) {
            return;
        }
        let attempts = self.seen.containers.iter().filter(|r| of_name(r)).map(|r| r.attempt);
        let last = attempts.max();
        while let Some(old) = self.seen.containers.iter().position(|r| of_name(r) && Some(r.attempt) != last)
        {
            self.seen.containers.remove(old);
            self.minds.remove(old);
        }
        let after_round = start.round.map(|round| round + SignedDuration::from_millis(1));
        let record = ContainerRecord {
            // What differs comes first: these are compared all the time.
            id: format!("{:08x}{:056}", self.next_id, 0),
            name: start.name.clone(),
            attempt: start.attempt,
            delay: start.delay,
            spec_hash: start.spec_hash.clone(),
            image: "image".to_owned(),
            image_id: "sha256:0".to_owned(),
            created_at: self.clock().max(since).max(after_round.unwrap_or(since)),
            state: ContainerState::Created,
            post_start_done: false,
            user: None,
            resources: Some(start.resources.clone()),
            round: start.round,
        };
        self.next_id += 1;
        self.seen.containers.push(record);
        self.minds.push(Mind {
            exit_at: NEVER,
            exit_code: 0,
            obeys_after: rng.percent(75).then(|| rng.between(0, 3_000)),
            stuck_until: 0,
            sick: false,
            started_at: self.now,
            finished_at: NEVER,
            pre_stop_done: false,
            post_start_failed: false,
        });
    }

    fn started(&mut self, rng: &mut Rng, pod: &Pod, start: &StartContainer, outcome: Outcome) -> Outcome {
        let made = |record: &ContainerRecord| {
            record.name == start.name
                && record.attempt == start.attempt
                && record.state == ContainerState::Created
        };
        let Some(index) = self.seen.containers.iter().position(made).filter(|_| self.ready()) else {
            let (reason, message) = ("RunContainerError".to_owned(), "no sandbox".to_owned());
            return Outcome::Done(Err(Failure { reason, message }));
        };
        if matches!(outcome, Outcome::Done(Err(_))) {
            self.seen.containers.remove(index);
            self.minds.remove(index);
            return outcome;
        }
        let (exit_at, exit_code) = self.behaviour(rng, pod, &start.name);
        let started_at = self.clock();
        let mind = &mut self.minds[index];
        (mind.exit_at, mind.exit_code, mind.started_at) = (exit_at, exit_code, self.now);
        self.seen.containers[index].state = ContainerState::Running { started_at };
        if self.weather == Weather::Chaos && rng.percent(3) {
            self.exit(index, 128);
        }
        outcome
    }

    fn signal(&mut self, rng: &mut Rng, id: &str, signal: StopSignal) {
        let (now, calm) = (self.now, self.weather == Weather::Calm);
        let stuck = !calm && rng.percent(5);
        let Some(index) = self.find(id) else { return };
        let mind = &mut self.minds[index];
        match signal {
            StopSignal::Stop => {
                if let Some(after) = mind.obeys_after
                    && now + after < mind.exit_at
                {
                    (mind.exit_at, mind.exit_code) = (now + after, 143);
                }
            }
            StopSignal::Kill => {
                if stuck && mind.stuck_until == 0 {
                    mind.stuck_until = now + 40_000;
                }
                if now >= mind.stuck_until || calm {
                    (mind.exit_at, mind.exit_code) = (now + 5, 137);
                }
            }
        }
    }
}
