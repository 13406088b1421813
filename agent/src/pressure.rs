//! Whether the machine runs short of memory, disk or processes (kubelet's eviction signals and their default thresholds).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;
use berth_reconciler::quantity::Quantity;
use nix::sys::statvfs::statvfs;

use crate::facts;

/// What there is, and how much of it is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Left.
    pub available: u64,
    /// All.
    pub capacity: u64,
}

/// The signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Bytes of memory.
    pub memory: Amount,
    /// Bytes of the file system of the state folder.
    pub disk: Amount,
    /// Its inodes.
    pub inodes: Amount,
    /// Bytes of the images' file system.
    pub image_disk: Amount,
    /// Its inodes.
    pub image_inodes: Amount,
    /// Process ids.
    pub pids: Amount,
}

impl Signals {
    /// Looks at the machine; what it does not tell counts as if there were enough.
    pub fn gather(root: &Path) -> Self {
        let memory = Amount {
            available: facts::meminfo("MemAvailable:").unwrap_or(u64::MAX),
            capacity: facts::meminfo("MemTotal:").unwrap_or(u64::MAX),
        };
        let (disk, inodes) = file_system(root);
        let (image_disk, image_inodes) = file_system(&root.join("images"));
        Self { memory, disk, inodes, image_disk, image_inodes, pids: pids() }
    }
}

const ENOUGH: Amount = Amount { available: u64::MAX, capacity: u64::MAX };

fn file_system(path: &Path) -> (Amount, Amount) {
    let Ok(fs) = statvfs(path) else { return (ENOUGH, ENOUGH) };
    let bytes = |blocks: u64| blocks.saturating_mul(fs.fragment_size());
    let space = Amount { available: bytes(fs.blocks_available()), capacity: bytes(fs.blocks()) };
    // Some file systems have no number of inodes.
    let inodes = match fs.files() {
        0 => ENOUGH,
        files => Amount { available: fs.files_available(), capacity: files },
    };
    (space, inodes)
}

/// The fourth field of /proc/loadavg says how many tasks there are (proc(5)).
fn pids() -> Amount {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let limit = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let tasks = || read("/proc/loadavg")?.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok();
    let limits = [limit("/proc/sys/kernel/pid_max"), limit("/proc/sys/kernel/threads-max")];
    match (limits.into_iter().flatten().min(), tasks()) {
        (Some(capacity), Some(tasks)) => Amount { available: capacity.saturating_sub(tasks), capacity },
        _ => ENOUGH,
    }
}

/// How little may be left.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Threshold {
    Amount(u64),
    /// Of all, from 0 to 1.
    Part(f64),
}

impl Threshold {
    fn is_met(self, amount: Amount) -> bool {
        match self {
            Threshold::Amount(least) => amount.available < least,
            Threshold::Part(part) => (amount.available as f64) < amount.capacity as f64 * part,
        }
    }
}

/// `evictionHard` of a KubeletConfiguration: how little of what may be left.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds(BTreeMap<String, Threshold>);

/// Kubelet's defaults.
const DEFAULTS: [(&str, &str); 6] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
    ("pid.available", "10%"),
];

impl Thresholds {
    /// Reads the field; without it the defaults. As with a kubelet, what the field does not name is not looked at.
    ///
    /// # Errors
    /// A signal or an amount that nobody knows.
    pub fn parse(field: Option<&BTreeMap<String, String>>) -> anyhow::Result<Self> {
        let defaults =
            || DEFAULTS.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let texts: BTreeMap<String, String> = field.cloned().unwrap_or_else(defaults);
        let mut all = BTreeMap::new();
        for (name, text) in texts {
            if !DEFAULTS.iter().any(|(known, _)| *known == name) {
                let known: Vec<&str> = DEFAULTS.iter().map(|(known, _)| *known).collect();
                bail!("evictionHard: {name:?} is not one of {}", known.join(", "));
            }
            let threshold = match text.strip_suffix('%') {
                Some(percent) => percent
                    .parse::<f64>()
                    .ok()
                    .filter(|p| (0.0..=100.0).contains(p))
                    .map(|p| Threshold::Part(p / 100.0)),
                None => Quantity::parse(&text)
                    .ok()
                    .and_then(|quantity| u64::try_from(quantity.value()).ok())
                    .map(Threshold::Amount),
            };
            let Some(threshold) = threshold else {
                bail!(
                    "evictionHard.{name}: {text:?} is neither an amount such as 100Mi nor a percentage such as 10%"
                );
            };
            all.insert(name, threshold);
        }
        Ok(Self(all))
    }

    fn met(&self, name: &str, amount: Amount) -> bool {
        self.0.get(name).is_some_and(|threshold| threshold.is_met(amount))
    }
}

/// Whether one thing is short: a condition of the Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// `MemoryPressure`, `DiskPressure` or `PIDPressure`.
    pub condition: &'static str,
    /// Whether it is.
    pub under: bool,
}

impl Pressure {
    /// The condition's reason, as a kubelet has it.
    pub fn reason(&self) -> &'static str {
        match (self.condition, self.under) {
            ("MemoryPressure", true) => "KubeletHasInsufficientMemory",
            ("MemoryPressure", false) => "KubeletHasSufficientMemory",
            ("DiskPressure", true) => "KubeletHasDiskPressure",
            ("DiskPressure", false) => "KubeletHasNoDiskPressure",
            (_, true) => "KubeletHasInsufficientPID",
            (_, false) => "KubeletHasSufficientPID",
        }
    }

    /// The condition's message.
    pub fn message(&self) -> &'static str {
        match (self.condition, self.under) {
            ("MemoryPressure", true) => "the node has insufficient memory available",
            ("MemoryPressure", false) => "the node has sufficient memory available",
            ("DiskPressure", true) => "the node has disk pressure",
            ("DiskPressure", false) => "the node has no disk pressure",
            (_, true) => "the node has insufficient PID available",
            (_, false) => "the node has sufficient PID available",
        }
    }
}

/// What is short.
pub fn judge(signals: &Signals, thresholds: &Thresholds) -> [Pressure; 3] {
    let disk = thresholds.met("nodefs.available", signals.disk)
        || thresholds.met("nodefs.inodesFree", signals.inodes)
        || thresholds.met("imagefs.available", signals.image_disk)
        || thresholds.met("imagefs.inodesFree", signals.image_inodes);
    [
        Pressure { condition: "MemoryPressure", under: thresholds.met("memory.available", signals.memory) },
        Pressure { condition: "DiskPressure", under: disk },
        Pressure { condition: "PIDPressure", under: thresholds.met("pid.available", signals.pids) },
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn plenty() -> Signals {
        Signals {
            memory: ENOUGH,
            disk: ENOUGH,
            inodes: ENOUGH,
            image_disk: ENOUGH,
            image_inodes: ENOUGH,
            pids: ENOUGH,
        }
    }

    fn under(signals: &Signals, thresholds: &Thresholds) -> Vec<&'static str> {
        judge(signals, thresholds).iter().filter(|one| one.under).map(|one| one.condition).collect()
    }

    #[test]
    fn the_defaults_are_kubelets() {
        let defaults = Thresholds::parse(None).unwrap();
        assert_eq!(under(&plenty(), &defaults), [""; 0]);
        let few = |available, capacity| Amount { available, capacity };
        for (signals, condition) in [
            (Signals { memory: few(99 << 20, 1 << 30), ..plenty() }, "MemoryPressure"),
            (Signals { disk: few(9, 100), ..plenty() }, "DiskPressure"),
            (Signals { inodes: few(4, 100), ..plenty() }, "DiskPressure"),
            (Signals { image_disk: few(14, 100), ..plenty() }, "DiskPressure"),
            (Signals { pids: few(9, 100), ..plenty() }, "PIDPressure"),
        ] {
            assert_eq!(under(&signals, &defaults), [condition]);
        }
        assert_eq!(under(&Signals { disk: few(10, 100), ..plenty() }, &defaults), [""; 0]);
    }

    #[test]
    fn what_the_field_does_not_name_is_not_looked_at() {
        let field = [("memory.available".to_owned(), "50%".to_owned())].into();
        let thresholds = Thresholds::parse(Some(&field)).unwrap();
        let short = Amount { available: 1, capacity: 100 };
        assert_eq!(
            under(&Signals { disk: short, memory: short, ..plenty() }, &thresholds),
            ["MemoryPressure"]
        );
    }

    #[test]
    fn a_mistake_is_told() {
        let error = |name: &str, text: &str| {
            let field = [(name.to_owned(), text.to_owned())].into();
            Thresholds::parse(Some(&field)).unwrap_err().to_string()
        };
        assert!(error("memory.free", "1").contains("memory.available"));
        assert!(error("memory.available", "lots").contains("100Mi"));
        assert!(error("nodefs.available", "120%").contains("percentage"));
    }

    #[test]
    fn this_machine_tells_all_of_them() {
        let signals = Signals::gather(Path::new("/"));
        for amount in [signals.memory, signals.disk, signals.pids] {
            assert!(amount.capacity > 0 && amount.capacity < u64::MAX && amount.available <= amount.capacity);
        }
    }
}
