//! What pods may have of the machine, and what is done when it runs short: `evictionHard` and its kin, reservations, and how full
//! images may make a disk.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use berth_reconciler::eviction::{DEFAULT_HARD, Settings, Signal, Threshold};
use berth_reconciler::quantity::Quantity;

use super::{File, duration};

/// What pods may have of the machine, and what goes when it runs short.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    /// How little of memory, disk and processes may be left before pods go; none: they never do.
    pub eviction: Option<Settings>,
    /// When images that nobody uses go; none: never by themselves.
    pub image_gc: Option<ImageGc>,
    /// What of the machine is not for pods.
    pub reserved: Reserved,
}

/// Reads the fields.
pub(super) fn check(file: &File, in_cluster: bool) -> anyhow::Result<Room> {
    let (eviction, image_gc) = (settings(file, in_cluster)?, image_gc(file, in_cluster)?);
    Ok(Room { eviction, image_gc, reserved: reserved(file)? })
}

/// When images that nobody uses are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGc {
    /// Once so much of the disk is used, in percent; 100: never for that.
    pub high: u8,
    /// Until no more than so much is used, in percent.
    pub low: u8,
    /// None that has been there for less than that.
    pub minimum_age: Duration,
    /// All that nobody has used for that long; none: never for that.
    pub maximum_age: Option<Duration>,
}

/// What of the machine is not for pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// CPU in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Bytes of the disk.
    pub storage: u64,
    /// Process ids.
    pub pids: u64,
    /// Whether the pods' cgroup keeps them to what is left of memory and process ids.
    pub enforced: bool,
}

fn thresholds(field: &str, texts: &BTreeMap<String, String>) -> anyhow::Result<BTreeMap<Signal, Threshold>> {
    let mut all = BTreeMap::new();
    for (name, text) in texts {
        let threshold = Threshold::parse(text);
        let Some(threshold) = threshold else {
            bail!("{field}.{name}: {text:?} is neither an amount such as 100Mi nor a percentage such as 10%");
        };
        all.insert(signal(field, name)?, threshold);
    }
    Ok(all)
}

fn signal(field: &str, name: &str) -> anyhow::Result<Signal> {
    Signal::of_name(name).with_context(|| {
        let known: Vec<&str> = Signal::ALL.into_iter().map(Signal::name).collect();
        format!("{field}: {name:?} is not one of {}", known.join(", "))
    })
}

/// The settings of eviction. `in_cluster`: the machine is a node of a cluster, which has kubelet's thresholds without asking;
/// elsewhere nothing is evicted unless the file says when.
fn settings(file: &File, in_cluster: bool) -> anyhow::Result<Option<Settings>> {
    let empty = BTreeMap::new();
    let named = [&file.eviction_hard, &file.eviction_soft].into_iter().any(Option::is_some);
    let periods = file.eviction_soft_grace_period.as_ref().unwrap_or(&empty);
    let mut soft = BTreeMap::new();
    for (signal, threshold) in thresholds("evictionSoft", file.eviction_soft.as_ref().unwrap_or(&empty))? {
        let Some(period) = periods.get(signal.name()) else {
            bail!("evictionSoftGracePeriod: {} has a soft threshold and needs a grace period", signal.name());
        };
        let field = format!("evictionSoftGracePeriod.{}", signal.name());
        soft.insert(signal, (threshold, duration(&field, Some(period), Duration::ZERO)?));
    }
    for name in periods.keys() {
        if !soft.contains_key(&signal("evictionSoftGracePeriod", name)?) {
            bail!("evictionSoftGracePeriod: {name} has no threshold in evictionSoft");
        }
    }
    let defaults = || DEFAULT_HARD.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let settings = Settings {
        hard: thresholds("evictionHard", &file.eviction_hard.clone().unwrap_or_else(defaults))?,
        soft,
        minimum_reclaim: thresholds(
            "evictionMinimumReclaim",
            file.eviction_minimum_reclaim.as_ref().unwrap_or(&empty),
        )?,
        max_pod_grace: file.eviction_max_pod_grace_period.unwrap_or(0),
        transition: duration(
            "evictionPressureTransitionPeriod",
            file.eviction_pressure_transition_period.as_deref(),
            Duration::from_secs(5 * 60),
        )?,
    };
    Ok((named || in_cluster).then_some(settings))
}

/// When images go: in a cluster as a kubelet has it, elsewhere only if the file says so.
fn image_gc(file: &File, in_cluster: bool) -> anyhow::Result<Option<ImageGc>> {
    const HIGH: &str = "imageGCHighThresholdPercent";
    const LOW: &str = "imageGCLowThresholdPercent";
    let (high, low) = (file.image_gc_high_threshold_percent, file.image_gc_low_threshold_percent);
    let named = high.is_some() || low.is_some() || file.image_maximum_gc_age.is_some();
    let (high, low) = (high.unwrap_or(85), low.unwrap_or(80));
    for (field, percent) in [(HIGH, high), (LOW, low)] {
        if percent > 100 {
            bail!("{field}: must be from 0 to 100, is {percent}");
        }
    }
    if low >= high {
        bail!("{LOW}: must be less than {HIGH} ({high}), is {low}");
    }
    let age = |field: &str, text: &Option<String>, default: u64| {
        duration(field, text.as_deref(), Duration::from_secs(default))
    };
    let minimum_age = age("imageMinimumGCAge", &file.image_minimum_gc_age, 120)?;
    let maximum = age("imageMaximumGCAge", &file.image_maximum_gc_age, 0)?;
    let maximum_age = Some(maximum).filter(|age| !age.is_zero());
    if maximum_age.is_some_and(|maximum| maximum <= minimum_age) {
        bail!("imageMaximumGCAge: must be longer than imageMinimumGCAge ({minimum_age:?})");
    }
    Ok((named || in_cluster).then_some(ImageGc { high, low, minimum_age, maximum_age }))
}

/// `kubeReserved` and `systemReserved` together.
fn reserved(file: &File) -> anyhow::Result<Reserved> {
    let mut sum = Reserved { enforced: true, ..Reserved::default() };
    for (field, list) in [("kubeReserved", &file.kube_reserved), ("systemReserved", &file.system_reserved)] {
        for (name, text) in list.iter().flatten() {
            let quantity = Quantity::parse(text).ok().filter(|quantity| !quantity.is_negative());
            let Some(quantity) = quantity else { bail!("{field}.{name}: {text:?} is no amount") };
            let (milli, value) =
                (u64::try_from(quantity.milli()).unwrap_or(0), u64::try_from(quantity.value()).unwrap_or(0));
            match name.as_str() {
                "cpu" => sum.cpu_milli += milli,
                "memory" => sum.memory += value,
                "ephemeral-storage" => sum.storage += value,
                "pid" => sum.pids += value,
                _ => bail!("{field}: {name:?} is not one of cpu, memory, ephemeral-storage, pid"),
            }
        }
    }
    for word in file.enforce_node_allocatable.iter().flatten() {
        match word.as_str() {
            "pods" => {}
            "none" => sum.enforced = false,
            "kube-reserved"
            | "system-reserved"
            | "kube-reserved-compressible"
            | "system-reserved-compressible" => bail!(
                "enforceNodeAllocatable: {word} is not supported: Berth looks after the cgroups of pods only; supported: pods, none"
            ),
            _ => bail!("enforceNodeAllocatable: {word:?} is not one of pods, none"),
        }
    }
    if file.enforce_node_allocatable.as_ref().is_some_and(Vec::is_empty) {
        sum.enforced = false;
    }
    Ok(sum)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn a_node_of_a_cluster_has_kubelets_thresholds_and_others_only_their_own() {
        assert_eq!(settings(&file("{}"), false).unwrap(), None);
        let defaults = settings(&file("{}"), true).unwrap().unwrap();
        assert_eq!(defaults.hard.len(), 6);
        assert_eq!(defaults.hard[&Signal::Memory], Threshold::Amount(100 << 20));
        assert_eq!(defaults.hard[&Signal::ImageDisk], Threshold::Part(0.15));
        assert_eq!((defaults.transition, defaults.max_pod_grace), (Duration::from_secs(300), 0));
        let own = settings(&file("evictionHard: {memory.available: 50%}"), false).unwrap().unwrap();
        assert_eq!(
            own.hard,
            [(Signal::Memory, Threshold::Part(0.5))].into(),
            "what is not named is not looked at"
        );
        let soft = "evictionSoft: {pid.available: 1k}\nevictionSoftGracePeriod: {pid.available: 1m30s}\n\
            evictionMinimumReclaim: {pid.available: '10'}\nevictionMaxPodGracePeriod: 30\n\
            evictionPressureTransitionPeriod: 30s\n";
        let soft = settings(&file(soft), false).unwrap().unwrap();
        assert_eq!(soft.soft[&Signal::Pids], (Threshold::Amount(1000), Duration::from_secs(90)));
        assert_eq!((soft.max_pod_grace, soft.transition), (30, Duration::from_secs(30)));
        assert_eq!(soft.minimum_reclaim[&Signal::Pids], Threshold::Amount(10));
    }

    #[test]
    fn images_go_as_with_a_kubelet() {
        assert_eq!(image_gc(&file("{}"), false).unwrap(), None);
        let seconds = Duration::from_secs;
        let defaults = ImageGc { high: 85, low: 80, minimum_age: seconds(120), maximum_age: None };
        assert_eq!(image_gc(&file("{}"), true).unwrap(), Some(defaults));
        let own = "imageGCHighThresholdPercent: 50\nimageGCLowThresholdPercent: 40\nimageMinimumGCAge: 1s\nimageMaximumGCAge: 1h\n";
        let own = image_gc(&file(own), false).unwrap();
        let wanted = ImageGc { high: 50, low: 40, minimum_age: seconds(1), maximum_age: Some(seconds(3600)) };
        assert_eq!(own, Some(wanted));
    }

    #[test]
    fn reservations_add_up() {
        let text = "kubeReserved: {cpu: 100m, memory: 1Gi, pid: '100'}\nsystemReserved: {cpu: '1', ephemeral-storage: 1Gi}\n";
        let wanted =
            Reserved { cpu_milli: 1100, memory: 1 << 30, storage: 1 << 30, pids: 100, enforced: true };
        assert_eq!(reserved(&file(text)).unwrap(), wanted);
        for text in ["enforceNodeAllocatable: []", "enforceNodeAllocatable: [none]"] {
            assert!(!reserved(&file(text)).unwrap().enforced);
        }
    }

    #[test]
    fn a_mistake_is_told_by_its_field() {
        let error = |text: &str| {
            let file = file(text);
            let all = settings(&file, true).map(drop).and_then(|()| image_gc(&file, true).map(drop));
            all.and_then(|()| reserved(&file).map(drop)).unwrap_err().to_string()
        };
        for (text, wanted) in [
            ("evictionHard: {memory.free: '1'}", "\"memory.free\" is not one of memory.available"),
            ("evictionHard: {memory.available: lots}", "evictionHard.memory.available: \"lots\" is neither"),
            ("evictionHard: {nodefs.available: 120%}", "a percentage such as 10%"),
            (
                "evictionSoft: {memory.available: 1Gi}",
                "memory.available has a soft threshold and needs a grace period",
            ),
            ("evictionSoftGracePeriod: {memory.available: 1m}", "has no threshold in evictionSoft"),
            ("evictionPressureTransitionPeriod: soon", "evictionPressureTransitionPeriod"),
            ("imageGCHighThresholdPercent: 101", "must be from 0 to 100"),
            ("imageGCHighThresholdPercent: 80", "imageGCLowThresholdPercent: must be less than"),
            ("imageMaximumGCAge: 1m", "imageMaximumGCAge: must be longer"),
            ("kubeReserved: {gpu: '1'}", "kubeReserved: \"gpu\" is not one of cpu, memory"),
            ("systemReserved: {cpu: -1}", "systemReserved.cpu: \"-1\" is no amount"),
            ("enforceNodeAllocatable: [kube-reserved]", "kube-reserved is not supported"),
        ] {
            assert!(error(text).contains(wanted), "{text}: {}", error(text));
        }
    }
}
