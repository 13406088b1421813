//! What goes wrong, or is asked for, while a pod runs.

use super::history::{History, short};
use super::pods;
use super::rng::Rng;
use crate::node::{Deletion, Eviction};

/// What happens besides what the machine does by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chaos {
    Exit,
    KillShim,
    KillAgent,
    EditImage,
    Resize,
    Deadline,
    Debug,
    Sicken,
    Heal,
    Evict,
    /// A wake-up for nothing, or the second one for the same thing.
    Wake,
    ConfigChanged,
    Pause,
    Gate,
    StepClock,
    Delete,
    DeleteAtOnce,
    Replace,
}

const WEIGHTS: [(u64, Chaos); 18] = [
    (20, Chaos::Exit),
    (8, Chaos::KillShim),
    (16, Chaos::KillAgent),
    (6, Chaos::EditImage),
    (7, Chaos::Resize),
    (2, Chaos::Deadline),
    (5, Chaos::Debug),
    (6, Chaos::Sicken),
    (3, Chaos::Heal),
    (3, Chaos::Evict),
    (4, Chaos::Wake),
    (4, Chaos::ConfigChanged),
    (4, Chaos::Pause),
    (4, Chaos::Gate),
    (8, Chaos::StepClock),
    (6, Chaos::Delete),
    (2, Chaos::DeleteAtOnce),
    (3, Chaos::Replace),
];

impl Chaos {
    pub(super) fn random(rng: &mut Rng, clock_steps: bool) -> Chaos {
        let mut roll = rng.below(WEIGHTS.iter().map(|(weight, _)| weight).sum());
        let mut kinds = WEIGHTS.iter();
        let kind = kinds.find_map(|(weight, kind)| {
            let hit = roll < *weight;
            roll = roll.wrapping_sub(*weight);
            hit.then_some(*kind)
        });
        kind.filter(|kind| clock_steps || !matches!(kind, Chaos::StepClock)).unwrap_or(Chaos::Wake)
    }
}

impl History {
    pub(super) fn strike(&mut self, kind: Chaos) {
        self.note(|| format!("chaos: {kind:?}"));
        // News of it may be lost, as long as anything wakes the agent later.
        let mut heard = true;
        match kind {
            Chaos::Exit | Chaos::Sicken | Chaos::Heal => {
                self.touch_one(kind);
                heard = false;
            }
            Chaos::KillShim => {
                self.world.kill_shim();
                heard = self.rng.percent(90);
            }
            Chaos::KillAgent if self.memory.is_some() => return self.die(),
            Chaos::EditImage => self.edit_image(),
            Chaos::Resize => {
                let resources = pods::resources(&mut self.rng);
                let rng = &mut self.rng;
                self.pod = pods::changed(&self.pod, |spec| {
                    pods::some_container(rng, spec).resources = Some(resources);
                });
            }
            Chaos::Deadline => {
                let seconds = self.rng.between(1, 300);
                self.pod = pods::changed(&self.pod, |spec| {
                    let known = spec.active_deadline_seconds.unwrap_or(i64::MAX);
                    spec.active_deadline_seconds = Some(seconds.min(known));
                });
            }
            Chaos::Debug => self.pod = pods::debugged(&self.pod),
            Chaos::Evict => {
                let mut eviction = Eviction::at_once("it took too much".to_owned(), self.world.clock());
                eviction.grace_seconds = *self.rng.pick(&[1, 1, 20]);
                let first = self.world.seen.evicted.get_or_insert(eviction);
                self.rules.evicted(self.world.now, first.grace_seconds);
            }
            Chaos::ConfigChanged => {
                self.rules.config_changed();
                if let Some(memory) = &mut self.memory {
                    memory.config_changed(self.world.clock());
                }
            }
            Chaos::Pause => self.world.seen.paused = !self.world.seen.paused,
            Chaos::Gate => self.turn_gate(),
            Chaos::StepClock => {
                let by = *self.rng.pick(&[-3_600_000, -20_000, -700, 700, 20_000, 3_600_000]);
                self.note(|| format!("clock {by} ms"));
                self.world.step_clock(by);
            }
            Chaos::Delete => self.delete(None),
            Chaos::DeleteAtOnce => self.delete(Some(0)),
            Chaos::Replace => {
                self.replaced = true;
                self.delete(None);
            }
            Chaos::Wake | Chaos::KillAgent => {}
        }
        self.woken |= heard;
    }

    /// Something befalls one of the running instances.
    fn touch_one(&mut self, kind: Chaos) {
        let ids: Vec<_> = self.world.running().map(|(record, _)| record.id.clone()).collect();
        if ids.is_empty() {
            return;
        }
        let id = self.rng.pick(&ids).clone();
        let code = *self.rng.pick(&[0, 1, 3, 137]);
        let Some(index) = self.world.find(&id) else { return };
        self.note(|| format!("  it strikes {}", short(&id)));
        let now = self.world.now;
        let mind = &mut self.world.minds[index];
        match kind {
            Chaos::Sicken => mind.sick = true,
            Chaos::Heal => mind.sick = false,
            _ => (mind.exit_at, mind.exit_code) = (now, code),
        }
    }

    fn edit_image(&mut self) {
        self.images += 1;
        let image = format!("image:{}", self.images);
        let rng = &mut self.rng;
        self.pod = pods::changed(&self.pod, |spec| {
            pods::some_container(rng, spec).image = Some(image);
        });
    }

    /// Somebody says whether the pod may be ready.
    fn turn_gate(&mut self) {
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.world.clock());
        let Some(status) = &mut self.published else { return };
        let conditions = status.conditions.get_or_insert_default();
        let open = self.rng.percent(70);
        conditions.retain(|condition| condition.type_ != pods::GATE);
        conditions.push(k8s_openapi::api::core::v1::PodCondition {
            type_: pods::GATE.to_owned(),
            status: if open { "True" } else { "False" }.to_owned(),
            last_transition_time: Some(now),
            ..Default::default()
        });
    }

    /// As the worker does it: a second request can only shorten the grace period.
    fn delete(&mut self, grace: Option<u64>) {
        let own = self.pod.spec().termination_grace_period_seconds.unwrap_or(30).unsigned_abs();
        let grace_seconds = grace.unwrap_or_else(|| *self.rng.pick(&[1, 10, 30, own, own]));
        match &mut self.deletion {
            Some(known) => known.grace_seconds = known.grace_seconds.min(grace_seconds),
            None => {
                let requested_at = self.world.clock();
                self.deletion = Some(Deletion { requested_at, grace_seconds });
                self.deleted_at = self.world.now;
            }
        }
    }
}
