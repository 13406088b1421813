//! What the shim leaves on disk for whoever comes later, and its own log.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

/// Replaces `dir/name` in one step, so that a reader sees the old or the new content whole.
pub(super) fn replace(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.tmp"));
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, dir.join(name))
}

/// [`replace`] with a value as JSON.
pub(super) fn replace_json(dir: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let mut content = serde_json::to_vec(value)?;
    content.push(b'\n');
    replace(dir, name, &content)
}

/// Writes a line to the shim's log, which stderr is; use through `note!`.
pub(super) fn write_note(text: fmt::Arguments<'_>) {
    // With the log on a full disk there is nobody left to tell.
    let _ = io::stderr().write_all(format!("{:.6} {text}\n", Timestamp::now()).as_bytes());
}

/// Writes a line to the shim's log.
macro_rules! note {
    ($($text:tt)*) => { $crate::shim::record::write_note(format_args!($($text)*)) };
}
pub(super) use note;

/// The start time of a process in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
pub(super) fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may contain anything; field 3 follows the last bracket.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time"))
}
