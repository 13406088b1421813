//! A time namespace of the container's own, see time_namespaces(7).

use std::fmt::Write as _;
use std::fs::{self, File};

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::Linux;

use super::Error;

/// nix does not name it.
pub const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
/// The clocks that can be shifted.
const CLOCKS: [&str; 2] = ["monotonic", "boottime"];

/// Refuses offsets of other clocks, and offsets without a new namespace to have them.
pub fn check(linux: &Linux, is_new: bool) -> Result<(), Error> {
    let Some(offsets) = linux.time_offsets().as_ref().filter(|o| !o.is_empty()) else { return Ok(()) };
    if !is_new {
        return Err(Error::spec("linux.timeOffsets", "it needs a new time namespace"));
    }
    match offsets.keys().find(|clock| !CLOCKS.contains(&clock.as_str())) {
        Some(clock) => Err(Error::spec(
            format!("linux.timeOffsets[{clock}]"),
            "only monotonic and boottime can be shifted",
        )),
        None => Ok(()),
    }
}

/// Makes the namespace, sets its offsets and enters it. Offsets can be set only while nobody is inside, so clone3 cannot
/// make it. Needs the host's `/proc`.
pub fn enter(linux: &Linux) -> Result<(), Error> {
    let failed = |e: nix::Error| Error::sys("enter", "a new time namespace", e.into());
    unshare(CLONE_NEWTIME).map_err(failed)?;
    let mut text = String::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{clock} {} {}", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
    }
    if !text.is_empty() {
        fs::write("/proc/self/timens_offsets", &text)
            .map_err(|e| Error::sys("set", "linux.timeOffsets", e))?;
    }
    let namespace = File::open("/proc/self/ns/time_for_children")
        .map_err(|e| Error::sys("open", "/proc/self/ns/time_for_children", e))?;
    setns(namespace, CLONE_NEWTIME).map_err(failed)
}
