//! A node that runs short: how little of what may be left, and which pod goes first (kubelet's `pkg/kubelet/eviction`).
//!
//! Pure: the node looks at the machine and gives what it has seen with the time, and does what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1;

use crate::admission::{Rejection, tolerates};
use crate::quantity::{Quantity, binary};
use crate::resources::{amount, pod_requests, requests};
use crate::shutdown::priority;

/// What can run short. The order is that in which it is dealt with: memory first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Bytes of memory.
    Memory,
    /// Bytes of the file system of the state folder.
    Disk,
    /// Its inodes.
    Inodes,
    /// Bytes of the images' file system.
    ImageDisk,
    /// Its inodes.
    ImageInodes,
    /// Process ids.
    Pids,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 6] =
        [Self::Memory, Self::Disk, Self::Inodes, Self::ImageDisk, Self::ImageInodes, Self::Pids];

    /// Its name in a KubeletConfiguration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::Disk => "nodefs.available",
            Self::Inodes => "nodefs.inodesFree",
            Self::ImageDisk => "imagefs.available",
            Self::ImageInodes => "imagefs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    /// The signal of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }

    /// The condition of the Node that it leads to.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => MEMORY_PRESSURE,
            Self::Disk | Self::Inodes | Self::ImageDisk | Self::ImageInodes => "DiskPressure",
            Self::Pids => "PIDPressure",
        }
    }

    /// What is short, as pods are told.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk | Self::ImageDisk => "ephemeral-storage",
            Self::Inodes | Self::ImageInodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// Whether it is about a disk, of which images that nobody uses can be removed.
    pub fn is_of_disk(self) -> bool {
        self.condition() == "DiskPressure"
    }
}

const MEMORY_PRESSURE: &str = "MemoryPressure";

/// What there is, and how much of it is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Left.
    pub available: u64,
    /// All.
    pub capacity: u64,
}

/// What the machine tells; a signal that it does not tell is not there.
pub type Signals = BTreeMap<Signal, Amount>;

/// How little may be left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// So much.
    Amount(u64),
    /// A part of all, from 0 to 1.
    Part(f64),
}

impl Threshold {
    /// Reads an amount such as `100Mi`, or a percentage such as `10%`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p));
                percent.map(|percent| Self::Part(percent / 100.0))
            }
            None => {
                let value = Quantity::parse(text).ok()?.value();
                u64::try_from(value).ok().map(Self::Amount)
            }
        }
    }

    /// In figures, if there is so much of it.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Part(part) => (capacity as f64 * part) as u64,
        }
    }
}

/// kubelet's thresholds where nobody has set any.
pub const DEFAULT_HARD: [(&str, &str); 6] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
    ("pid.available", "10%"),
];

/// The settings. What is not named is not looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Below these pods go at once.
    pub hard: BTreeMap<Signal, Threshold>,
    /// Below these they go once that has lasted so long.
    pub soft: BTreeMap<Signal, (Threshold, Duration)>,
    /// How much more than a threshold has to be free again.
    pub minimum_reclaim: BTreeMap<Signal, Threshold>,
    /// How long a pod that goes for a soft threshold has to end, in seconds.
    pub max_pod_grace: u64,
    /// How long a condition of the Node stays after it has last been so.
    pub transition: Duration,
}

/// A condition of the Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// `MemoryPressure`, `DiskPressure` or `PIDPressure`.
    pub condition: &'static str,
    /// Whether it is so.
    pub under: bool,
}

/// The conditions of a node that lacks nothing.
pub const PLENTY: [Pressure; 3] = [
    Pressure { condition: MEMORY_PRESSURE, under: false },
    Pressure { condition: "DiskPressure", under: false },
    Pressure { condition: "PIDPressure", under: false },
];

/// What has to be got back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Of what.
    pub signal: Signal,
    /// How little may be left.
    pub threshold: u64,
    /// How much is left.
    pub available: u64,
    /// How long a pod has to end for it, in seconds.
    pub grace_seconds: u64,
}

/// What follows from a look at the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The Node's conditions.
    pub pressures: [Pressure; 3],
    /// What has to be got back now, the most urgent first.
    pub short: Vec<Shortage>,
}

/// What is remembered from look to look. Times are those of a clock that nobody sets.
#[derive(Clone, Debug, Default)]
pub struct Manager {
    /// Since when a threshold is crossed, hard or soft.
    since: BTreeMap<(Signal, bool), Duration>,
    /// When a condition was last so.
    last: BTreeMap<&'static str, Duration>,
}

/// kubelet: `immediateEvictionGracePeriodSeconds`.
const AT_ONCE: u64 = 1;

impl Manager {
    /// Judges what has been seen.
    pub fn look(&mut self, settings: &Settings, signals: &Signals, now: Duration) -> Verdict {
        let mut short = Vec::new();
        let mut crossed = BTreeSet::new();
        for (signal, amount) in signals {
            let reclaim = settings.minimum_reclaim.get(signal).map_or(0, |least| least.of(amount.capacity));
            let hard = settings.hard.get(signal).map(|threshold| (true, *threshold, Duration::ZERO));
            let soft = settings.soft.get(signal).map(|(threshold, lasts)| (false, *threshold, *lasts));
            let mut found: Option<Shortage> = None;
            for (hard, threshold, lasts) in hard.into_iter().chain(soft) {
                let threshold = threshold.of(amount.capacity);
                // Once crossed, so much more has to be free again.
                let least =
                    if self.since.contains_key(&(*signal, hard)) { threshold + reclaim } else { threshold };
                if amount.available >= least {
                    continue;
                }
                crossed.insert((*signal, hard));
                let since = *self.since.entry((*signal, hard)).or_insert(now);
                if now.saturating_sub(since) >= lasts {
                    let grace_seconds = if hard { AT_ONCE } else { settings.max_pod_grace };
                    let available = amount.available;
                    found.get_or_insert(Shortage { signal: *signal, threshold, available, grace_seconds });
                }
            }
            short.extend(found);
        }
        self.since.retain(|key, _| crossed.contains(key));
        self.last.extend(crossed.iter().map(|(signal, _)| (signal.condition(), now)));
        let pressures = PLENTY.map(|one| {
            let last = self.last.get(one.condition);
            let under =
                last.is_some_and(|last| *last == now || now.saturating_sub(*last) < settings.transition);
            Pressure { under, ..one }
        });
        Verdict { pressures, short }
    }
}

/// What a pod takes of what is short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of memory (working set), bytes or inodes of the disk, or processes, by container.
    pub containers: BTreeMap<String, u64>,
    /// What belongs to no container, such as emptyDirs.
    pub shared: u64,
}

impl Taken {
    /// All of it.
    pub fn sum(&self) -> u64 {
        self.containers.values().fold(self.shared, |sum, one| sum.saturating_add(*one))
    }
}

/// A pod that can be made to go.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its spec.
    pub spec: &'a v1::PodSpec,
    /// What it takes.
    pub taken: Taken,
}

/// Whether a pod never goes for want of anything: those that the system itself needs. Pods of manifests are such, too.
pub fn is_critical(spec: &v1::PodSpec) -> bool {
    /// `scheduling.SystemCriticalPriority`.
    const CRITICAL: i32 = 2_000_000_000;
    priority(spec) >= CRITICAL
}

/// The candidate that goes first: one that takes more than it has asked for, of the lowest priority, that takes most
/// beyond what it has asked for. Gives its place in the list.
pub fn first(signal: Signal, candidates: &[Candidate<'_>]) -> Option<usize> {
    let rank = |candidate: &Candidate<'_>| {
        let (taken, asked) = (candidate.taken.sum(), asked(signal, candidate.spec));
        let within = taken <= asked;
        let beyond = i128::from(taken) - i128::from(asked);
        // Nobody asks for processes.
        let within = within && signal != Signal::Pids;
        (within, priority(candidate.spec), std::cmp::Reverse(beyond))
    };
    (0..candidates.len())
        .filter(|at| !is_critical(candidates[*at].spec))
        .min_by_key(|at| rank(&candidates[*at]))
}

fn asked(signal: Signal, spec: &v1::PodSpec) -> u64 {
    let requests = pod_requests(spec);
    match signal {
        Signal::Memory => requests.memory,
        Signal::Disk | Signal::ImageDisk => requests.ephemeral_storage,
        Signal::Inodes | Signal::ImageInodes | Signal::Pids => 0,
    }
}

/// Why a pod goes, in kubelet's words.
pub fn message(short: &Shortage, candidate: &Candidate<'_>) -> String {
    let resource = short.signal.resource();
    let figure = |amount: u64| match short.signal {
        Signal::Memory | Signal::Disk | Signal::ImageDisk => binary(amount),
        _ => amount.to_string(),
    };
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        figure(short.threshold),
        figure(short.available)
    );
    for container in candidate.spec.init_containers.iter().flatten().chain(&candidate.spec.containers) {
        let Some(taken) = candidate.taken.containers.get(&container.name) else { continue };
        let request = amount(requests(container), resource).unwrap_or(Quantity::ZERO);
        let asked = u64::try_from(request.value()).unwrap_or(0);
        if *taken > asked {
            let (name, taken, asked) = (&container.name, figure(*taken), request.to_api().0);
            text.push_str(&format!(
                "Container {name} was using {taken}, request is {asked}, has larger consumption of {resource}. "
            ));
        }
    }
    text
}

/// Whether a node in these conditions takes a pod.
///
/// # Errors
/// Why it does not: pods that ask for nothing are not taken when memory is short, and none but critical ones when something else is.
pub fn admit(spec: &v1::PodSpec, asks_for_nothing: bool, pressures: &[Pressure]) -> Result<(), Rejection> {
    let under: Vec<&str> = pressures.iter().filter(|one| one.under).map(|one| one.condition).collect();
    if under.is_empty() || is_critical(spec) {
        return Ok(());
    }
    if under == [MEMORY_PRESSURE] {
        let taint = v1::Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..v1::Taint::default()
        };
        if !asks_for_nothing || tolerates(spec, &taint) {
            return Ok(());
        }
    }
    let message = format!("Pod was rejected: The node had condition: [{}]. ", under.join(" "));
    Err(Rejection { reason: crate::storage::EVICTED.to_owned(), message })
}

/// What pods may have of a machine: all of it but what others need, and what has to be left.
pub fn allocatable(capacity: u64, reserved: u64, signal: Signal, settings: Option<&Settings>) -> u64 {
    let kept = settings.and_then(|settings| settings.hard.get(&signal)).map_or(0, |least| least.of(capacity));
    capacity.saturating_sub(reserved).saturating_sub(kept)
}
