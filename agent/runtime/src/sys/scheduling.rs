//! When a process runs and where its memory lies, see sched_setattr(2), ioprio_set(2), set_mempolicy(2).

use std::io;

use super::check;

/// `IOPRIO_WHO_PROCESS` of linux/ioprio.h.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// No machine has more CPUs or nodes than this (`NR_CPUS` ends there).
pub const MAX_CPUS: usize = 8192;

/// What `struct sched_attr` of the kernel holds, without its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For the fixed priority policies.
    pub priority: u32,
    /// For the deadline policy, in ns.
    pub runtime: u64,
    /// For the deadline policy, in ns.
    pub deadline: u64,
    /// For the deadline policy, in ns.
    pub period: u64,
}

/// Sets the scheduling policy of a thread; 0 is the calling one.
pub fn set_scheduler(tid: i32, wanted: SchedAttr) -> io::Result<()> {
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: wanted.policy,
        sched_flags: wanted.flags,
        sched_nice: wanted.nice,
        sched_priority: wanted.priority,
        sched_runtime: wanted.runtime,
        sched_deadline: wanted.deadline,
        sched_period: wanted.period,
    };
    // SAFETY: the structure is live and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) })?;
    Ok(())
}

/// Sets the I/O class (1 real time, 2 best effort, 3 idle) and the priority in it of a process; 0 is the calling one.
pub fn set_io_priority(pid: i32, class: u32, priority: u32) -> io::Result<()> {
    // SAFETY: only integers are passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, class << 13 | priority) })?;
    Ok(())
}

/// Sets the NUMA policy of the calling thread: `MPOL_*` with its flags, and the nodes as a bit mask.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    let (mask, bits) =
        if nodes.is_empty() { (std::ptr::null(), 0) } else { (nodes.as_ptr(), nodes.len() * 64 + 1) };
    // SAFETY: the kernel reads `bits - 1` bits, which the slice holds.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })?;
    Ok(())
}

/// Keeps a thread on these CPUs, given as a bit mask; 0 is the calling one.
pub fn set_affinity(tid: i32, cpus: &[u64]) -> io::Result<()> {
    // SAFETY: pointer and length in bytes describe one slice.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(cpus), cpus.as_ptr()) })?;
    Ok(())
}

/// The CPUs that the calling thread may run on, as a bit mask, and the number of the one that it runs on now. An error on a machine of
/// more than 1024.
pub fn own_cpus() -> io::Result<([u64; 16], usize)> {
    let mut cpus = [0; 16];
    // SAFETY: pointer and length in bytes describe one array, which the kernel fills at most.
    check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&cpus), cpus.as_mut_ptr()) })?;
    // SAFETY: takes nothing.
    let current = check(libc::c_long::from(unsafe { libc::sched_getcpu() }))?;
    Ok((cpus, usize::try_from(current).unwrap_or_default()))
}

/// Sets the execution domain of the calling thread (personality(2)).
pub fn set_personality(domain: libc::c_ulong) -> io::Result<()> {
    // SAFETY: only an integer is passed.
    check(libc::c_long::from(unsafe { libc::personality(domain) }))?;
    Ok(())
}
