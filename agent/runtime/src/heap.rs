//! Memory of a long-lived process: little of it, and given back.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub use crate::sys::heap::{forget_program, keep_small, trim};
use crate::sys::process::forget_variable;

/// The setting of the C library, in the variable of the environment that it reads when a program begins (glibc's manual,
/// "Tunables"), that keeps no freed pieces for each thread. They lie all over the heap, a thousand of them with three threads,
/// and each holds on to its page for ever: `malloc_trim` does not reach them.
pub(crate) const NO_THREAD_CACHES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");

/// Stacks of ended threads are kept for the next ones, with their part of the heap: four of 2 MB do, instead of twenty.
const FEW_STACKS: &str = "glibc.pthread.stack_cache_size=8388608";

/// Says that the program has begun again, whatever has become of the other variable.
const AGAIN: &str = "BERTH_BEGUN_AGAIN";

/// Begins this program again, as the same process, without what the C library keeps for threads; returns when that has been
/// done, or is not possible. Only while the process has a single thread and nothing open that it needs.
pub fn begin_without_caches() {
    let (name, caches) = NO_THREAD_CACHES;
    let setting = format!("{caches}:{FEW_STACKS}");
    let there = std::env::var_os(name).unwrap_or_default();
    if std::env::var_os(AGAIN).is_some() {
        // Neither is for the programs that this one starts.
        forget_variable(AGAIN);
        if there == *setting {
            forget_variable(name);
        }
        return;
    }
    let Some(there) = there.to_str().filter(|there| !there.contains("tcache_count")) else { return };
    let wanted = if there.is_empty() { setting } else { format!("{there}:{setting}") };
    // Not /proc/self/exe: that would be the name which people see in lists of processes.
    let Ok(program) = std::env::current_exe() else { return };
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_else(|| OsStr::new("berth").to_owned());
    let error = Command::new(program).arg0(called).args(words).env(name, wanted).env(AGAIN, "1").exec();
    tracing::debug!(%error, "cannot begin again with less memory for threads");
}
