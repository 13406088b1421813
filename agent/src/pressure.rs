//! How much of memory, disk and processes the machine has left (kubelet's eviction signals).

use std::path::Path;

use berth_reconciler::eviction::{Amount, Pressure, Signal, Signals};
use nix::sys::statvfs::statvfs;

use crate::facts;

/// Looks at the machine; what it does not tell is not there.
pub fn gather(root: &Path) -> Signals {
    let memory = || {
        Some(Amount { available: facts::meminfo("MemAvailable:")?, capacity: facts::meminfo("MemTotal:")? })
    };
    let (disk, inodes) = file_system(root);
    let (image_disk, image_inodes) = file_system(&root.join("images"));
    let all = [
        (Signal::Memory, memory()),
        (Signal::Disk, disk),
        (Signal::Inodes, inodes),
        (Signal::ImageDisk, image_disk),
        (Signal::ImageInodes, image_inodes),
        (Signal::Pids, pids()),
    ];
    all.into_iter().filter_map(|(signal, amount)| Some((signal, amount?))).collect()
}

fn file_system(path: &Path) -> (Option<Amount>, Option<Amount>) {
    let Ok(fs) = statvfs(path) else { return (None, None) };
    let bytes = |blocks: u64| blocks.saturating_mul(fs.fragment_size());
    let space = Amount { available: bytes(fs.blocks_available()), capacity: bytes(fs.blocks()) };
    // Some file systems have no number of inodes.
    let inodes = Amount { available: fs.files_available(), capacity: fs.files() };
    (Some(space), Some(inodes).filter(|inodes| inodes.capacity > 0))
}

/// The fourth field of /proc/loadavg says how many tasks there are (proc(5)).
fn pids() -> Option<Amount> {
    let loads = std::fs::read_to_string("/proc/loadavg").ok()?;
    let tasks = loads.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok()?;
    let capacity = pid_limit()?;
    Some(Amount { available: capacity.saturating_sub(tasks), capacity })
}

/// How many tasks the machine may have.
pub fn pid_limit() -> Option<u64> {
    let limit = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    [limit("/proc/sys/kernel/pid_max"), limit("/proc/sys/kernel/threads-max")].into_iter().flatten().min()
}

/// Reason and message of a condition of the Node, as a kubelet has them.
pub fn words(pressure: &Pressure) -> (&'static str, &'static str) {
    match (pressure.condition, pressure.under) {
        ("MemoryPressure", true) => {
            ("KubeletHasInsufficientMemory", "the node has insufficient memory available")
        }
        ("MemoryPressure", false) => {
            ("KubeletHasSufficientMemory", "the node has sufficient memory available")
        }
        ("DiskPressure", true) => ("KubeletHasDiskPressure", "the node has disk pressure"),
        ("DiskPressure", false) => ("KubeletHasNoDiskPressure", "the node has no disk pressure"),
        (_, true) => ("KubeletHasInsufficientPID", "the node has insufficient PID available"),
        (_, false) => ("KubeletHasSufficientPID", "the node has sufficient PID available"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells_all_of_them() {
        let signals = gather(Path::new("/"));
        for signal in [Signal::Memory, Signal::Disk, Signal::Pids] {
            let amount = signals[&signal];
            assert!(amount.capacity > 0 && amount.available <= amount.capacity, "{signal:?}");
        }
    }
}
