//! One history: a random pod, an agent that plans and may be killed, a world that misbehaves and then calms down.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use k8s_openapi::api::core::v1;

use super::bugs::{Bug, Faults};
use super::chaos::Chaos;
use super::pods;
use super::rng::Rng;
use super::rules::{Moment, Rules};
use super::world::{News, Weather, World, ms};
use crate::node::Deletion;
use crate::planner::{Action, Limits, Memory, Note, Outcome, Plan, plan};
use crate::pod::Pod;
use crate::status::{Facts, pod_status};

/// A rule that does not hold.
pub type Broken = String;

/// How long a pod may take to settle once nothing goes wrong any more, in milliseconds: longer than any back-off.
const SETTLE: i64 = 1_500_000;
/// How long it is then watched doing nothing.
const QUIET: i64 = 45_000;
/// More looks than this at one pod mean that the worker spins.
const MANY_LOOKS: u32 = 20_000;
/// How many lines of a trace are kept.
const TRACE: usize = 2_000;

/// The life of one pod, from its first look to its end or to its rest.
pub struct History {
    pub(super) rng: Rng,
    pub(super) world: World,
    pub(super) pod: Pod,
    pub(super) deletion: Option<Deletion>,
    /// When it was asked for, in true time.
    pub(super) deleted_at: i64,
    /// Another pod of the same name waits for this one's end.
    pub(super) replaced: bool,
    /// None: the agent is down.
    pub(super) memory: Option<Memory>,
    pub(super) published: Option<v1::PodStatus>,
    resumed: bool,
    /// When the agent looks again, in true time.
    wake_at: Option<i64>,
    pub(super) woken: bool,
    /// The last look found nothing under way, and left nothing under way but probes: some of those may be repeated without another
    /// look, as the worker does.
    repeats: bool,
    /// When the agent comes back.
    back_at: i64,
    chaos: BTreeMap<i64, Chaos>,
    chaos_ends: i64,
    /// The agent dies after that many more actions.
    dies_in: Option<u64>,
    pub(super) rules: Rules,
    faults: Faults,
    pub(super) removed: bool,
    looks: u32,
    pub(super) images: u64,
    /// An action other than a probe since the pod had settled.
    restless: Option<String>,
    trace: Option<VecDeque<String>>,
}

impl History {
    /// The history of that seed. A traced one keeps what happens, line by line.
    pub fn new(seed: u64, traced: bool) -> History {
        History::planted(seed, traced, None)
    }

    /// The same with a fault planted between planner and machine.
    pub fn planted(seed: u64, traced: bool, bug: Option<Bug>) -> History {
        let mut rng = Rng::new(seed);
        let pod = pods::pod(&mut rng, "uid-1");
        let chaos_ends = *rng.pick(&[1_000, 10_000, 10_000, 60_000, 60_000, 300_000, 1_200_000]);
        let clock_steps = rng.percent(15);
        let mut chaos = BTreeMap::new();
        for _ in 0..rng.between(0, 12) {
            let kind = Chaos::random(&mut rng, clock_steps);
            chaos.insert(rng.between(0, chaos_ends), kind);
        }
        let world = World::new();
        History {
            memory: Some(Memory::new(Limits::default(), None, world.clock())),
            dies_in: rng.percent(30).then(|| rng.below(30)),
            rng,
            world,
            pod,
            deletion: None,
            deleted_at: 0,
            replaced: false,
            published: None,
            resumed: false,
            wake_at: None,
            woken: true,
            repeats: false,
            back_at: 0,
            chaos,
            chaos_ends,
            rules: Rules::default(),
            faults: Faults::new(bug),
            removed: false,
            looks: 0,
            images: 0,
            restless: None,
            trace: traced.then(VecDeque::new),
        }
    }

    /// The pod as it is wanted now.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// What happened: milliseconds and what, oldest first; empty unless it was asked for.
    pub fn trace(&self) -> impl Iterator<Item = &str> {
        self.trace.iter().flatten().map(String::as_str)
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.world.now;
        let Some(trace) = &mut self.trace else { return };
        if trace.len() == TRACE {
            trace.pop_front();
        }
        trace.push_back(format!("{:>7}.{:03} {}", now / 1000, now % 1000, text()));
    }

    /// Runs the history to its end.
    ///
    /// # Errors
    ///
    /// The first rule that does not hold.
    pub fn run(&mut self) -> Result<(), Broken> {
        let result = self.live();
        if let Err(broken) = &result {
            let text = format!("BROKEN: {broken}");
            self.note(|| text);
        }
        result
    }

    fn live(&mut self) -> Result<(), Broken> {
        self.until(self.chaos_ends, |_| false)?;
        self.calm_down();
        // An active deadline is a time of day.
        let deadline = self.pod.spec().active_deadline_seconds.is_some();
        let limit = self.world.now + SETTLE + if deadline { self.world.set_back } else { 0 };
        self.until(limit, History::settled)?;
        if !self.settled() {
            return Err("it does not settle".to_owned());
        }
        self.rules.ended(&self.world, self.removed.then_some(self.deleted_at), self.deletion.as_ref())?;
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
        self.rules.calms(self.world.now);
        self.chaos.clear();
        self.dies_in = None;
        if self.memory.is_none() {
            self.come_back();
        }
        // Whatever was lost on the way: one look must be enough.
        self.woken = self.faults.hears();
    }

    fn until(&mut self, end: i64, stop: fn(&History) -> bool) -> Result<(), Broken> {
        let (mut rounds, mut at) = (0, self.world.now);
        loop {
            self.turn()?;
            if self.removed && self.replaced {
                self.succeed()?;
                continue;
            }
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
                News::Done(action, outcome) => self.done(&action, &outcome)?,
                News::Exited(id) => {
                    self.note(|| format!("exit {}", short(&id)));
                    // A lost wake-up is made good by any later one.
                    let calm = self.world.weather == Weather::Calm;
                    self.woken |= self.faults.hears() && (calm || !self.rng.percent(10));
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

    fn done(&mut self, action: &Action, outcome: &Outcome) -> Result<(), Broken> {
        self.note(|| format!("  done {}{}", word(action), outcome_word(outcome)));
        let moment = Moment {
            world: &self.world,
            pod: &self.pod,
            deletion: self.deletion.as_ref(),
            deleted_at: self.deleted_at,
        };
        self.rules.ends(&moment, action, outcome);
        if let Some(memory) = &mut self.memory {
            let outcome = self.faults.outcome(action, outcome);
            let pod = self.faults.pod(&self.pod);
            let was_set = memory.set_clock(self.world.clock(), self.faults.steady(&self.world));
            // In bad weather there may be something to see that nobody was woken for.
            if self.repeats && !was_set && !self.woken && self.world.weather == Weather::Calm {
                let seen = self.faults.seen(&self.world.seen);
                let deletion = self.faults.deletion(self.deletion.as_ref());
                let would = |memory: &Memory| plan(pod, deletion, seen, memory, self.world.clock());
                if let Some(repeated) =
                    is_only_repeated(memory, (pod, action, &outcome), would, (&self.world, self.wake_at))?
                {
                    let (previous, now) = (self.published.as_ref(), self.world.clock());
                    let facts = Facts::default();
                    let status = pod_status(pod, deletion, seen, &repeated, previous, &facts, now);
                    if previous.is_some_and(|previous| *previous != status) {
                        return Err(format!("after {}, only repeated, the status changes", word(action)));
                    }
                }
            }
            memory.finish(pod, action, &outcome, self.world.clock());
            self.woken = true;
        }
        Ok(())
    }

    /// The agent observes, plans and acts, as the worker does.
    fn look(&mut self) -> Result<(), Broken> {
        let now = self.world.clock();
        self.faults.look(&self.pod, &self.world, self.deletion.as_ref());
        if let Some(memory) = &mut self.memory {
            let steady = self.faults.steady(&self.world);
            memory.tick(now, steady, self.deletion.as_ref(), self.world.seen.evicted.as_ref());
            self.faults.meddle(memory, now);
            self.repeats = memory.only_probes();
        }
        for _ in 0..50 {
            let Some(memory) = &self.memory else { return Ok(()) };
            let (pod, seen) = (self.faults.pod(&self.pod), self.faults.seen(&self.world.seen));
            let deletion = self.faults.deletion(self.deletion.as_ref());
            let plan = self.faults.plan(plan(pod, deletion, seen, memory, now), &self.world, pod, now);
            let mut begun = false;
            for action in plan.actions {
                begun |= self.begin(&action)?;
                if self.memory.is_none() {
                    return Ok(());
                }
            }
            if !begun {
                self.repeats &= self.memory.as_ref().is_some_and(Memory::only_probes);
                self.wake_at =
                    plan.wake_at.map(|at| self.world.now.saturating_add(ms(now, at)).max(self.world.now + 1));
                let moment = Moment {
                    world: &self.world,
                    pod: &self.pod,
                    deletion: self.deletion.as_ref(),
                    deleted_at: self.deleted_at,
                };
                self.rules.looked(&moment)?;
                return self.publish();
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
        if let Some(trace) = &mut self.trace {
            let now = self.world.now;
            trace.push_back(format!("{:>7}.{:03} {}", now / 1000, now % 1000, word(action)));
        }
        let moment = Moment {
            world: &self.world,
            pod: &self.pod,
            deletion: self.deletion.as_ref(),
            deleted_at: self.deleted_at,
        };
        self.rules.begins(&moment, action)?;
        memory.begin(&self.pod, action, self.world.clock());
        if !matches!(action, Action::Probe { .. }) {
            self.restless = Some(word(action));
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

    fn publish(&mut self) -> Result<(), Broken> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        let (previous, now) = (self.published.as_ref(), self.world.clock());
        let (pod, seen) = (self.faults.pod(&self.pod), self.faults.seen(&self.world.seen));
        let deletion = self.faults.deletion(self.deletion.as_ref());
        let mut status = pod_status(pod, deletion, seen, memory, previous, &Facts::default(), now);
        memory.note_status(&status);
        self.removed = memory.removed();
        self.faults.status(&mut status, now);
        if self.published.as_ref() == Some(&status) {
            self.resumed = false;
            return Ok(());
        }
        let moment = Moment {
            world: &self.world,
            pod: &self.pod,
            deletion: self.deletion.as_ref(),
            deleted_at: self.deleted_at,
        };
        self.rules.status(&moment, self.published.as_ref(), &status)?;
        if let (true, Some(before)) = (self.resumed, &self.published) {
            Rules::resumed(before, &status)?;
        }
        self.resumed = false;
        self.note(|| format!("status {}", status_word(&status)));
        self.published = Some(status);
        Ok(())
    }

    pub(super) fn die(&mut self) {
        self.note(|| "the agent is killed".to_owned());
        self.memory = None;
        self.wake_at = None;
        self.repeats = false;
        self.rules.crashed(self.published.as_ref());
        self.faults.crashed();
        self.world.abandon_ops(&mut self.rng, &self.pod);
        self.dies_in = self.rng.percent(50).then(|| self.rng.below(40));
        self.back_at = self.world.now + self.rng.between(0, 30_000);
    }

    fn come_back(&mut self) {
        self.note(|| "the agent is back".to_owned());
        let now = self.world.clock();
        self.memory = Some(Memory::new(Limits::default(), self.published.as_ref(), now));
        self.world.up_since = self.world.now;
        self.resumed = true;
        self.woken = true;
    }

    /// The pod is gone and the one that waited for its name begins, on a machine that has nothing of the old one.
    fn succeed(&mut self) -> Result<(), Broken> {
        self.note(|| "its successor begins".to_owned());
        self.rules.ended(&self.world, Some(self.deleted_at), self.deletion.as_ref())?;
        if !self.world.seen.containers.is_empty() || self.world.ready() {
            return Err("something of it is left".to_owned());
        }
        self.pod = pods::pod(&mut self.rng, "uid-2");
        self.memory = Some(Memory::new(Limits::default(), None, self.world.clock()));
        let calm = self.world.weather == Weather::Calm;
        self.rules = Rules::begun(self.world.now, calm);
        (self.deletion, self.published, self.resumed) = (None, None, false);
        (self.removed, self.replaced, self.woken) = (false, false, true);
        Ok(())
    }
}

/// What differs between the IDs of instances.
pub(super) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id).trim_start_matches('0')
}

/// An action in a few words.
pub(super) fn word(action: &Action) -> String {
    match action {
        Action::CreateSandbox => "make the sandbox".to_owned(),
        Action::EnsureImage { container, image } => format!("pull {image} for {container}"),
        Action::StartContainer(start) => {
            let delay = start.delay.map_or(0, |delay| Duration::as_secs(&delay));
            format!("start {} attempt {} after {delay}s", start.name, start.attempt)
        }
        Action::RemoveContainer { container, id } => format!("remove {container} {}", short(id)),
        Action::RunHook { container, id, hook } => format!("{hook:?} hook of {container} {}", short(id)),
        Action::Probe { container, id, kind } => {
            format!("{} probe of {container} {}", kind.as_str(), short(id))
        }
        Action::StopContainer { container, id, signal } => {
            format!("signal {signal:?} to {container} {}", short(id))
        }
        Action::Allocate => "ask for resources".to_owned(),
        Action::ResizeContainer { container, id, .. } => format!("resize {container} {}", short(id)),
        Action::StopSandbox => "stop the sandbox".to_owned(),
        Action::RemovePod => "remove the pod".to_owned(),
        Action::DropPull { container } => format!("drop the pull for {container}"),
        Action::Note(Note::Stopping { container, id, cause, .. }) => {
            format!("stopping {container} {}: {cause:?}", short(id))
        }
        Action::Note(note) => format!("{note:?}"),
    }
}

fn outcome_word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done(Ok(())) => String::new(),
        Outcome::Done(Err(failure)) => format!(": {failure}"),
        Outcome::Probed(outcome) => format!(": {outcome:?}"),
    }
}

fn status_word(status: &v1::PodStatus) -> String {
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let one = |status: &v1::ContainerStatus| {
        let state = status.state.as_ref();
        let state = match state {
            Some(v1::ContainerState { running: Some(_), .. }) if status.ready => "ready".to_owned(),
            Some(v1::ContainerState { running: Some(_), .. }) => "running".to_owned(),
            Some(v1::ContainerState { terminated: Some(t), .. }) => format!("exited({})", t.exit_code),
            Some(v1::ContainerState { waiting: Some(w), .. }) => w.reason.clone().unwrap_or_default(),
            _ => "?".to_owned(),
        };
        format!("{}={state}/{}", status.name, status.restart_count)
    };
    let containers: Vec<_> = lists.into_iter().flatten().flatten().map(one).collect();
    let reason = status.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("{}{reason} {}", status.phase.as_deref().unwrap_or("?"), containers.join(" "))
}

/// A probe that the worker only repeats must be one after which a plan would do nothing, and look again no earlier than the worker
/// does: when it had to look anyway, or when the probe is due again. Gives what is remembered then.
fn is_only_repeated(
    memory: &Memory,
    (pod, action, outcome): (&Pod, &Action, &Outcome),
    plan: impl FnOnce(&Memory) -> Plan,
    (world, wake_at): (&World, Option<i64>),
) -> Result<Option<Memory>, Broken> {
    let mut memory = memory.clone();
    let Some(due) = memory.repeats(pod, action, outcome) else { return Ok(None) };
    memory.finish(pod, action, outcome, world.clock());
    let at = |at| world.now.saturating_add(ms(world.clock(), at)).max(world.now + 1);
    let next = wake_at.into_iter().chain([at(due)]).min();
    let plan = plan(&memory);
    let early = plan.wake_at.map(at).filter(|at| next.is_some_and(|next| *at < next));
    match (plan.actions.first(), early) {
        // It looks now anyway.
        (Some(_), _) if next.is_some_and(|next| next <= world.now + 1) => Ok(None),
        (Some(missed), _) => Err(format!("after {}, only repeated, comes {}", word(action), word(missed))),
        (None, Some(at)) => {
            Err(format!("{} is only repeated, but there is something to do at {at}", word(action)))
        }
        (None, None) => Ok(Some(memory)),
    }
}
