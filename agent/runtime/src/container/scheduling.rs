//! When a process runs and where its memory lies: scheduler, I/O priority, CPU affinity, NUMA policy, personality.

use std::fs::File;
use std::io::Read;

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};

use super::Error;
use crate::sys::scheduling::{self, MAX_CPUS, SchedAttr};

/// The highest I/O priority number (`IOPRIO_NR_LEVELS` of linux/ioprio.h).
const MAX_IO_PRIORITY: i64 = 7;

/// Sets the scheduler and the I/O priority of a process; 0 is the calling one. What raises a priority needs the
/// host's `CAP_SYS_NICE`, which a process in a user namespace of its own no longer has.
pub fn set_priorities(pid: i32, process: &Process) -> Result<(), Error> {
    if let Some(wanted) = process.scheduler() {
        scheduling::set_scheduler(pid, attributes(wanted)?)
            .map_err(|e| Error::sys("set", format!("process.scheduler {}", wanted.policy()), e))?;
    }
    let Some(wanted) = process.io_priority() else { return Ok(()) };
    let priority = wanted.priority();
    if !(0..=MAX_IO_PRIORITY).contains(&priority) {
        return Err(Error::spec(
            "process.ioPriority.priority",
            format!("{priority} is not 0 to {MAX_IO_PRIORITY}"),
        ));
    }
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    scheduling::set_io_priority(pid, class, priority as u32)
        .map_err(|e| Error::sys("set", format!("process.ioPriority {}", wanted.class()), e))
}

/// Whether a process with this scheduler makes children that have another one, or may make none (sched(7)).
pub fn is_not_inherited(process: &Process) -> bool {
    process.scheduler().as_ref().is_some_and(|wanted| {
        *wanted.policy() == LinuxSchedulerPolicy::SchedDeadline
            || wanted.flags().iter().flatten().any(|f| *f == LinuxSchedulerFlag::SchedResetOnFork)
    })
}

/// Sets what a process can only set for itself.
pub fn set_own(linux: &Linux) -> Result<(), Error> {
    if let Some(policy) = linux.memory_policy() {
        set_memory_policy(policy)?;
    }
    linux.personality().as_ref().map_or(Ok(()), set_personality)
}

/// Keeps the calling thread on the CPUs of a list such as `0-3,7`; `field` names it in errors.
pub fn set_affinity(field: &str, list: Option<&String>) -> Result<(), Error> {
    let Some(list) = list.filter(|l| !l.is_empty()) else { return Ok(()) };
    scheduling::set_affinity(0, &bit_mask(field, list)?)
        .map_err(|e| Error::sys("set", format!("{field} {list}"), e))
}

/// Lets the calling thread run on every CPU that its cgroup has. What it inherits is the caller's, such as the CPUs that systemd
/// keeps a service on, and since Linux 6.2 it outlives the change of the cgroup (runc does the same).
pub fn reset_affinity() {
    // A process that may not is as restricted as it was before.
    let _ = scheduling::set_affinity(0, &[u64::MAX; MAX_CPUS / 64]);
}

/// Has a new process begin on another CPU than the caller's, since both have work to do. That must call [`reset_affinity`] when it knows
/// that this has returned.
/// A kernel that finds its CPUs mostly idle may leave it behind the caller on the same one, to save power or to pack virtual ones,
/// and it would begin when the caller waits for it. On a busy machine the kernel knows better.
pub fn begin_elsewhere(pid: i32) {
    // Whatever fails here costs time only.
    let Ok((mut cpus, own)) = scheduling::own_cpus() else { return };
    if running().is_some_and(|running| leave_out(&mut cpus, own, running)) {
        let _ = scheduling::set_affinity(pid, &cpus);
    }
}

/// Takes the CPU `own` out of those that a thread may run on. False if there is no other, or if more threads want to run on the
/// machine than these are.
fn leave_out(cpus: &mut [u64], own: usize, running: u32) -> bool {
    let all: u32 = cpus.iter().map(|word| word.count_ones()).sum();
    if let Some(word) = cpus.get_mut(own / 64) {
        *word &= !(1 << (own % 64));
    }
    all > 1 && running <= all
}

/// How many threads of the machine run or wait for a CPU: the first number of the fourth word of `/proc/loadavg`
/// (proc_loadavg(5)).
fn running() -> Option<u32> {
    let mut text = [0; 64];
    let length = File::open("/proc/loadavg").and_then(|mut file| file.read(&mut text)).ok()?;
    let words = str::from_utf8(&text[..length]).ok()?;
    words.split(' ').nth(3)?.split('/').next()?.parse().ok()
}

fn attributes(wanted: &Scheduler) -> Result<SchedAttr, Error> {
    use LinuxSchedulerPolicy as Policy;
    let refuse = |field: &str, reason: &str| Err(Error::spec(format!("process.scheduler.{field}"), reason));
    let policy = match wanted.policy() {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIso => return refuse("policy", "Linux has no SCHED_ISO"),
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => 6,
    };
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return refuse("nice", "it is not -20 to 19");
    }
    let priority = wanted.priority().unwrap_or(0);
    if priority != 0 && !matches!(policy, 1 | 2) {
        return refuse("priority", "only SCHED_FIFO and SCHED_RR have one");
    }
    let times = [*wanted.runtime(), *wanted.deadline(), *wanted.period()].map(Option::unwrap_or_default);
    if times != [0; 3] && policy != 6 {
        return refuse("runtime", "only SCHED_DEADLINE has runtime, deadline and period");
    }
    let flags = wanted.flags().iter().flatten().fold(0, |flags, flag| flags | scheduler_flag(*flag));
    let Ok(priority) = u32::try_from(priority) else { return refuse("priority", "it is negative") };
    let [runtime, deadline, period] = times;
    Ok(SchedAttr { policy, flags, nice, priority, runtime, deadline, period })
}

/// `SCHED_FLAG_*` of linux/sched.h.
fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    use LinuxSchedulerFlag as Flag;
    match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    }
}

/// `MPOL_*` of linux/mempolicy.h.
fn set_memory_policy(policy: &LinuxMemoryPolicy) -> Result<(), Error> {
    use MemoryPolicyFlagType as Flag;
    use MemoryPolicyModeType as Mode;
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                Flag::MpolFNumaBalancing => 1 << 13,
                Flag::MpolFRelativeNodes => 1 << 14,
                Flag::MpolFStaticNodes => 1 << 15,
            }
    });
    let nodes = match policy.nodes().as_deref().filter(|n| !n.is_empty()) {
        Some(list) => bit_mask("linux.memoryPolicy.nodes", list)?,
        None => Vec::new(),
    };
    scheduling::set_memory_policy(mode | flags, &nodes)
        .map_err(|e| Error::sys("set", format!("linux.memoryPolicy {}", policy.mode()), e))
}

/// `PER_*` of linux/personality.h. The runtime-spec defines no flags yet.
fn set_personality(personality: &LinuxPersonality) -> Result<(), Error> {
    if let Some(flag) = personality.flags().iter().flatten().next() {
        return Err(Error::spec("linux.personality.flags", format!("unknown: {flag:?}")));
    }
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    scheduling::set_personality(domain).map_err(|e| Error::sys("set", "linux.personality", e))
}

/// The bits of a list such as `0-3,7`, 64 to a word.
fn bit_mask(field: &str, list: &str) -> Result<Vec<u64>, Error> {
    let wrong = || Error::spec(field, format!("{list:?} is not a list such as 0-3,7"));
    let mut mask = Vec::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n < MAX_CPUS).ok_or_else(wrong);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        mask.resize(mask.len().max(last / 64 + 1), 0);
        (first..=last).for_each(|n| mask[n / 64] |= 1 << (n % 64));
    }
    Ok(mask)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_new_process_begins_elsewhere_when_there_is_room() {
        for (cpus, own, running, expected) in [
            ([0b11, 0], 0, 2, Some([0b10, 0])),
            ([0b11, 0], 1, 1, Some([0b01, 0])),
            ([0b11, 0], 0, 3, None),
            ([0b01, 0], 0, 1, None),
            ([0b10, 1], 64, 2, Some([0b10, 0])),
            // The thread has been moved off its CPUs since.
            ([0b11, 0], 70, 2, Some([0b11, 0])),
        ] {
            let mut left = cpus;
            let elsewhere = leave_out(&mut left, own, running).then_some(left);
            assert_eq!(elsewhere, expected, "{cpus:?} {own} {running}");
        }
        assert!(running().unwrap() > 0, "this thread runs");
        let (cpus, own) = scheduling::own_cpus().unwrap();
        assert!(cpus.iter().any(|word| *word != 0) && own < 64 * cpus.len());
    }

    #[test]
    fn lists_become_masks() {
        assert_eq!(bit_mask("f", "0-3,7").unwrap(), [0b1000_1111]);
        assert_eq!(bit_mask("f", "64").unwrap(), [0, 1]);
        for wrong in ["", "3-1", "a", "1,,2", "9999999"] {
            assert!(bit_mask("f", wrong).is_err(), "{wrong:?} passed");
        }
    }

    #[test]
    fn what_belongs_to_another_policy_is_refused() {
        let scheduler = |json: serde_json::Value| attributes(&serde_json::from_value(json).unwrap());
        let error = |json| scheduler(json).unwrap_err().to_string();
        assert!(error(serde_json::json!({"policy": "SCHED_ISO"})).contains("scheduler.policy"));
        assert!(error(serde_json::json!({"policy": "SCHED_OTHER", "nice": 20})).contains("scheduler.nice"));
        assert!(
            error(serde_json::json!({"policy": "SCHED_BATCH", "priority": 1})).contains("scheduler.priority")
        );
        assert!(
            error(serde_json::json!({"policy": "SCHED_FIFO", "runtime": 1})).contains("scheduler.runtime")
        );
        let deadline = serde_json::json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
            "flags": ["SCHED_FLAG_RECLAIM", "SCHED_RESET_ON_FORK"]});
        let expected =
            SchedAttr { policy: 6, flags: 3, runtime: 1, deadline: 2, period: 3, ..SchedAttr::default() };
        assert_eq!(scheduler(deadline).unwrap(), expected);
    }
}
