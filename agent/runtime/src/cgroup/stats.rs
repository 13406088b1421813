//! What a control group has used, in one unit per kind on both cgroup versions.

/// The figures of one cgroup, everything below it included. A controller that the machine lacks leaves its
/// figures at zero, a limit that is not set is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Block device traffic, summed over devices.
    pub io: IoStats,
    /// Pressure stall information of cpu, memory and io (cgroup v2 with PSI only).
    pub psi: Option<Psi>,
}

/// Processor time and throttling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// Time used, in nanoseconds.
    pub usage_ns: u64,
    /// Time used in user space, in nanoseconds.
    pub user_ns: u64,
    /// Time used in the kernel, in nanoseconds.
    pub system_ns: u64,
    /// Scheduling periods that passed under a quota.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period, in nanoseconds.
    pub throttled_ns: u64,
}

/// Memory, in bytes unless it is a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Everything that is charged.
    pub usage: u64,
    /// Usage without the inactive file cache: what kubelet calls the working set.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Swap in use.
    pub swap: u64,
    /// The highest usage ever seen (0 where the kernel does not tell).
    pub max_usage: u64,
    /// File pages that are mapped.
    pub mapped_file: u64,
    /// How many times the limit was hit.
    pub failcnt: u64,
    /// Page faults.
    pub pgfault: u64,
    /// Page faults that had to read from a device.
    pub pgmajfault: u64,
    /// The limit, if there is one.
    pub limit: Option<u64>,
    /// Processes killed by the out-of-memory killer because of this cgroup or one below it.
    pub oom_kills: u64,
}

/// Processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be, if limited.
    pub limit: Option<u64>,
}

/// Block device traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

/// Pressure of the three resources: how long tasks had to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Psi {
    /// Waiting for a processor.
    pub cpu: Pressure,
    /// Waiting for memory.
    pub memory: Pressure,
    /// Waiting for input and output.
    pub io: Pressure,
}

/// Total stall times, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task waited.
    pub some_usec: u64,
    /// All tasks waited.
    pub full_usec: u64,
}
