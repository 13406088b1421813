//! One history: a random pod, an agent that plans and may be killed, a world that misbehaves and then calms down.

use std::collections::BTreeMap;

use berth_reconciler::node::{ContainerState, Deletion, Eviction, Sandbox};
use berth_reconciler::planner::{Action, Limits, Memory, Outcome, plan, spec_hash};
use berth_reconciler::pod::Pod;
use berth_reconciler::status::{Facts, pod_status};
use k8s_openapi::api::core::v1;

use super::pods;
use super::rng::Rng;
use super::rules::{Broken, Moment, Rules, is_ephemeral, is_sidecar};
use super::world::{NEVER, News, Weather, World, ms, stamp};

/// How long a pod may take to settle once nothing goes wrong any more, in milliseconds: longer than any back-off.
const SETTLE: i64 = 1_500_000;
/// How long it is then watched doing nothing.
const QUIET: i64 = 45_000;
/// More looks than this at one pod mean that the worker spins.
const MANY_LOOKS: u32 = 20_000;

/// What chaos does besides what the world does by itself.
#[derive(Clone, Copy, Debug)]
enum Chaos {
    Exit,
    KillShim,
    KillAgent,
    EditImage,
    Resize,
    Debug,
    Sicken,
    Evict,
    Wake,
    ConfigChanged,
    Delete,
}

pub struct History {
    rng: Rng,
    world: World,
    pod: Pod,
    deletion: Option<Deletion>,
    /// None: the agent is down.
    memory: Option<Memory>,
    published: Option<v1::PodStatus>,
    resumed: bool,
    wake_at: Option<i64>,
    woken: bool,
    /// When the agent comes back.
    back_at: i64,
    chaos: BTreeMap<i64, Chaos>,
    chaos_ends: i64,
    /// The agent dies after that many more actions.
    dies_in: Option<u64>,
    rules: Rules,
    removed: bool,
    looks: u32,
    images: u64,
    /// Actions other than probes since the pod had settled.
    restless: Option<String>,
    pub trace: Option<Vec<String>>,
}

impl History {
    pub fn new(seed: u64, traced: bool) -> History {
        let mut rng = Rng::new(seed);
        let pod = pods::pod(&mut rng);
        let chaos_ends = *rng.pick(&[1_000, 10_000, 10_000, 60_000, 60_000, 300_000, 1_200_000]);
        let mut chaos = BTreeMap::new();
        for _ in 0..rng.between(0, 12) {
            let kinds = [
                (25, Chaos::Exit),
                (35, Chaos::KillShim),
                (55, Chaos::KillAgent),
                (60, Chaos::EditImage),
                (64, Chaos::Resize),
                (69, Chaos::Debug),
                (75, Chaos::Sicken),
                (80, Chaos::Evict),
                (85, Chaos::Wake),
                (90, Chaos::ConfigChanged),
                (100, Chaos::Delete),
            ];
            let roll = rng.below(100);
            let kind = kinds.iter().find(|(below, _)| roll < *below).map_or(Chaos::Wake, |(_, kind)| *kind);
            chaos.insert(rng.between(0, chaos_ends), kind);
        }
        History {
            memory: Some(Memory::new(Limits::default(), None, stamp(0))),
            dies_in: rng.percent(30).then(|| rng.below(30)),
            rng,
            world: World::new(),
            pod,
            deletion: None,
            published: None,
            resumed: false,
            wake_at: None,
            woken: true,
            back_at: 0,
            chaos,
            chaos_ends,
            rules: Rules::default(),
            removed: false,
            looks: 0,
            images: 0,
            restless: None,
            trace: traced.then(Vec::new),
        }
    }

    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.world.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now:>9} {}", text()));
        }
    }

    /// Runs the history to its end.
    pub fn run(&mut self) -> Result<(), Broken> {
        self.until(self.chaos_ends, |_| false)?;
        self.calm_down();
        let limit = self.world.now + SETTLE;
        self.until(limit, History::settled)?;
        if !self.settled() {
            return Err("it does not settle".to_owned());
        }
        self.restless = None;
        let before = self.published.clone();
        self.until(self.world.now + QUIET, |_| false)?;
        if let Some(action) = &self.restless {
            return Err(format!("it does not rest: {action}"));
        }
        if self.published != before {
            return Err("its status changes although nothing happens".to_owned());
        }
        Ok(())
    }

    fn calm_down(&mut self) {
        self.note(|| "calm".to_owned());
        self.world.calm_down();
        self.chaos.clear();
        self.dies_in = None;
        if self.memory.is_none() {
            self.come_back();
        }
        // Whatever was lost on the way: one look must be enough.
        self.woken = true;
    }

    fn until(&mut self, end: i64, stop: fn(&History) -> bool) -> Result<(), Broken> {
        let (mut rounds, mut at) = (0, self.world.now);
        loop {
            self.turn()?;
            if self.removed || stop(self) {
                return Ok(());
            }
            let timer = if self.memory.is_some() { self.wake_at } else { Some(self.back_at) };
            let chaos = self.chaos.keys().next().copied();
            let next = [Some(self.world.next_at()), timer, chaos].into_iter().flatten().min();
            let next = next.unwrap_or(end).max(self.world.now);
            if next > end {
                self.world.now = end;
                return Ok(());
            }
            (rounds, at) = if next == at { (rounds + 1, at) } else { (0, next) };
            if rounds > 200 {
                return Err("the worker spins".to_owned());
            }
            self.world.now = next;
        }
    }

    /// Everything that is due at this point in time.
    fn turn(&mut self) -> Result<(), Broken> {
        let now = self.world.now;
        while let Some(first) = self.chaos.first_entry().filter(|entry| *entry.key() <= now) {
            let kind = first.remove();
            self.strike(kind);
        }
        if self.memory.is_none() && now >= self.back_at {
            self.come_back();
        }
        for news in self.world.turn(&mut self.rng, &self.pod) {
            match news {
                News::Done(action, outcome) => self.done(&action, &outcome),
                News::Exited => {
                    self.note(|| "exit".to_owned());
                    // A lost wake-up is made good by any later one.
                    self.woken |= self.world.weather == Weather::Calm || !self.rng.percent(10);
                }
            }
        }
        let due = self.wake_at.is_some_and(|at| at <= now);
        if self.memory.is_some() && (self.woken || due) {
            self.woken = false;
            self.looks += 1;
            if self.looks > MANY_LOOKS {
                return Err("the worker spins".to_owned());
            }
            self.look()?;
        }
        Ok(())
    }

    fn done(&mut self, action: &Action, outcome: &Outcome) {
        self.note(|| format!("done {action:?} {outcome:?}"));
        if let (Action::EnsureImage { container, image }, Outcome::Done(Ok(()))) = (action, outcome) {
            self.rules.image_present(container, image);
        }
        if let Some(memory) = &mut self.memory {
            memory.finish(&self.pod, action, outcome, stamp(self.world.now));
            self.woken = true;
        }
    }

    /// The agent observes, plans and acts, as the worker does.
    fn look(&mut self) -> Result<(), Broken> {
        let observed = self.world.observe();
        let now = stamp(self.world.now);
        for _ in 0..50 {
            let Some(memory) = &self.memory else { return Ok(()) };
            let plan = plan(&self.pod, self.deletion.as_ref(), &observed, memory, now);
            let mut begun = false;
            for action in plan.actions {
                begun |= self.begin(&action)?;
                if self.memory.is_none() {
                    return Ok(());
                }
            }
            if !begun {
                self.wake_at = plan.wake_at.map(|at| (ms(stamp(0), at)).max(self.world.now + 1));
                return self.publish(&observed);
            }
        }
        Err("planning does not come to an end".to_owned())
    }

    fn begin(&mut self, action: &Action) -> Result<bool, Broken> {
        let Some(memory) = &mut self.memory else { return Ok(false) };
        let key = action.key();
        if key.as_ref().is_some_and(|key| memory.is_busy(key)) {
            return Ok(false);
        }
        let moment = Moment { world: &self.world, pod: &self.pod, deletion: self.deletion.as_ref() };
        self.rules.begins(&moment, action)?;
        memory.begin(&self.pod, action, stamp(self.world.now));
        self.note(|| format!("begin {action:?}"));
        if !matches!(action, Action::Probe { .. }) {
            self.restless = Some(format!("{action:?}"));
        }
        if let Action::DropPull { container } = action {
            self.world.drop_pull(container);
        }
        if key.is_some() {
            self.world.launch(&mut self.rng, &self.pod, action);
        }
        match &mut self.dies_in {
            Some(0) => self.die(),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(true)
    }

    fn publish(&mut self, observed: &berth_reconciler::node::Observation) -> Result<(), Broken> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        let previous = self.published.as_ref();
        let (deletion, now) = (self.deletion.as_ref(), stamp(self.world.now));
        let status = pod_status(&self.pod, deletion, observed, memory, previous, &Facts::default(), now);
        memory.note_status(&status);
        self.removed = memory.removed();
        self.rules.status(&status)?;
        if let (true, Some(before)) = (self.resumed, previous) {
            Rules::resumed(before, &status)?;
        }
        self.resumed = false;
        if self.published.as_ref() != Some(&status) {
            self.note(|| format!("publish {:?} {:?}", status.phase, status.reason));
            self.published = Some(status);
        }
        Ok(())
    }

    fn die(&mut self) {
        self.note(|| "the agent is killed".to_owned());
        self.memory = None;
        self.wake_at = None;
        self.rules.crashed();
        self.world.abandon_ops(&mut self.rng, &self.pod);
        self.dies_in = self.rng.percent(50).then(|| self.rng.below(40));
        self.back_at = self.world.now + self.rng.between(0, 30_000);
    }

    fn come_back(&mut self) {
        self.note(|| "the agent is back".to_owned());
        self.memory = Some(Memory::new(Limits::default(), self.published.as_ref(), stamp(self.world.now)));
        self.resumed = true;
        self.woken = true;
    }

    fn strike(&mut self, kind: Chaos) {
        self.note(|| format!("chaos {kind:?}"));
        let now = self.world.now;
        match kind {
            Chaos::Exit | Chaos::Sicken => {
                let ids: Vec<_> = self.world.running().map(|i| i.record.id.clone()).collect();
                if ids.is_empty() {
                    return;
                }
                let id = self.rng.pick(&ids).clone();
                let code = *self.rng.pick(&[0, 1, 3, 137]);
                let Some(instance) = self.world.find(&id) else { return };
                if matches!(kind, Chaos::Sicken) {
                    instance.sick = true;
                } else {
                    (instance.exit_at, instance.exit_code) = (now, code);
                }
            }
            Chaos::Evict => {
                let eviction = Eviction { message: "it took too much".to_owned(), since: stamp(now) };
                self.world.evicted.get_or_insert(eviction);
                self.woken = true;
            }
            Chaos::KillShim => {
                self.world.kill_shim();
                self.woken |= self.rng.percent(90);
            }
            Chaos::KillAgent if self.memory.is_some() => self.die(),
            Chaos::EditImage => self.edit_image(),
            Chaos::Resize => self.resize(),
            Chaos::Debug => {
                self.pod = pods::debugged(&self.pod);
                self.woken = true;
            }
            Chaos::ConfigChanged => {
                if let Some(memory) = &mut self.memory {
                    memory.config_changed(stamp(now));
                }
                self.woken = true;
            }
            Chaos::Delete => self.delete(),
            Chaos::Wake | Chaos::KillAgent => self.woken = true,
        }
    }

    fn edit_image(&mut self) {
        self.images += 1;
        let Some(spec) = &mut self.pod.object.spec else { return };
        let index = usize::try_from(self.rng.below(spec.containers.len() as u64)).unwrap();
        spec.containers[index].image = Some(format!("image:{}", self.images));
        self.woken = true;
    }

    fn resize(&mut self) {
        let resources = pods::resources(&mut self.rng);
        let Some(spec) = &mut self.pod.object.spec else { return };
        let index = usize::try_from(self.rng.below(spec.containers.len() as u64)).unwrap();
        spec.containers[index].resources = Some(resources);
        self.woken = true;
    }

    fn delete(&mut self) {
        let grace_seconds = *self.rng.pick(&[0, 1, 10, 30]);
        match &mut self.deletion {
            Some(known) => known.grace_seconds = known.grace_seconds.min(grace_seconds),
            None => self.deletion = Some(Deletion { requested_at: stamp(self.world.now), grace_seconds }),
        }
        self.woken = true;
    }

    /// Whether what is, is what should be.
    fn settled(&self) -> bool {
        let busy = self.world.ops.iter().any(|op| !matches!(op.action, Action::Probe { .. }));
        let steady = self
            .world
            .running()
            .all(|instance| instance.exit_at == NEVER && !self.rules.is_stopping(&instance.record.id));
        if self.removed {
            return true;
        }
        if busy || !steady || self.memory.is_none() {
            return false;
        }
        let Some(status) = &self.published else { return false };
        if self.deletion.is_some() {
            return self.removed;
        }
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return self.world.sandbox == Sandbox::Absent && self.world.running().next().is_none();
        }
        let ends = self.pod.spec().active_deadline_seconds.is_some();
        !ends && matches!(self.world.sandbox, Sandbox::Ready { .. }) && self.all_up(status)
    }

    fn all_up(&self, status: &v1::PodStatus) -> bool {
        let statuses: Vec<_> =
            status.init_container_statuses.iter().chain(&status.container_statuses).flatten().collect();
        self.pod.all_containers().all(|container| {
            let newest = self.world.instances.iter().rfind(|i| i.record.name == container.name);
            let ready = statuses.iter().any(|s| s.name == container.name && s.ready);
            let debug = is_ephemeral(&container.name);
            let init = container.name.starts_with("init") && !is_sidecar(container);
            if newest.is_some_and(|i| !debug && self.rules.is_overtaken(&i.record)) {
                return false;
            }
            match newest.map(|i| &i.record).map(|record| (record, &record.state)) {
                Some((_, ContainerState::Exited(_) | ContainerState::Running { .. })) if debug => true,
                Some((_, ContainerState::Exited(exit))) if init => exit.code == 0 && ready,
                Some((record, ContainerState::Exited(exit))) => {
                    !self.restarts(container, exit.code) && !self.rules.spec_changed(&record.id)
                }
                Some((record, ContainerState::Running { .. })) => {
                    let resources = container.resources.clone().unwrap_or_default();
                    let sized = record.resources.as_ref() == Some(&resources) || pods::infeasible(&self.pod);
                    let same = is_sidecar(container) || record.spec_hash == spec_hash(container);
                    !init && ready && same && sized
                }
                Some((_, ContainerState::Created)) | None => false,
            }
        })
    }

    fn restarts(&self, container: &v1::Container, code: i32) -> bool {
        let by_rule = container.restart_policy_rules.iter().flatten().any(|rule| {
            let codes = rule.exit_codes.as_ref().unwrap();
            codes.values.as_ref().unwrap().contains(&code) == (codes.operator == "In")
        });
        let policy = container.restart_policy.as_deref().or(self.pod.spec().restart_policy.as_deref());
        by_rule || policy == Some("Always") || policy == Some("OnFailure") && code != 0
    }
}
