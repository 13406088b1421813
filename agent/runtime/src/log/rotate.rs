//! The files of one log: the current one and those rotated away, `<n>.log.<YYYYMMDD-HHMMSS>` as kubelet names them.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use jiff::{Timestamp, ToSpan, tz::TimeZone};

const FORMAT: &str = "%Y%m%d-%H%M%S";

/// The rotated files of the log at `path`, oldest first.
pub(super) fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?.file_name();
        if suffix(&entry, name).is_some() {
            names.push(entry);
        }
    }
    names.sort_unstable();
    Ok(names.into_iter().map(|name| path.with_file_name(name)).collect())
}

/// The time in the name of a rotated file of the log `name`.
fn suffix(entry: &OsStr, name: &OsStr) -> Option<DateTime> {
    let suffix = entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b".")?;
    // Digits only: strptime is more lenient than the order of names allows.
    if suffix.len() != 15
        || suffix.iter().enumerate().any(|(i, b)| if i == 8 { *b != b'-' } else { !b.is_ascii_digit() })
    {
        return None;
    }
    DateTime::strptime(FORMAT, std::str::from_utf8(suffix).ok()?).ok()
}

/// A name for the current file of the log at `path` that sorts after all of `rotated`, whatever the clock says. Where
/// the log fills faster than once a second, the names run ahead of the clock.
pub(super) fn next_name(path: &Path, rotated: &[PathBuf], now: Timestamp) -> PathBuf {
    let mut time = now.to_zoned(TimeZone::UTC).datetime();
    let newest = rotated.last().and_then(|last| suffix(last.file_name()?, path.file_name()?));
    if let Some(newest) = newest
        && newest.strftime(FORMAT).to_string() >= time.strftime(FORMAT).to_string()
    {
        time = newest.saturating_add(1.second());
    }
    let mut name = path.as_os_str().to_owned().into_vec();
    name.extend_from_slice(format!(".{}", time.strftime(FORMAT)).as_bytes());
    PathBuf::from(std::ffi::OsString::from_vec(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_follow_the_clock_and_never_collide() {
        let now: Timestamp = "2026-01-02T03:04:05.9Z".parse().unwrap();
        let path = Path::new("/x/0.log");
        let first = next_name(path, &[], now);
        assert_eq!(first, Path::new("/x/0.log.20260102-030405"));
        let second = next_name(path, &[first], now);
        assert_eq!(second, Path::new("/x/0.log.20260102-030406"));
        let later = next_name(path, &["/x/0.log.20270101-000000".into()], now);
        assert_eq!(later, Path::new("/x/0.log.20270101-000001"));
    }

    #[test]
    fn only_rotated_files_count() {
        let name = OsStr::new("0.log");
        assert!(suffix(OsStr::new("0.log.20260102-030405"), name).is_some());
        for other in [
            "0.log",
            "0.log.gz",
            "0.log.20260102-030405.gz",
            "0.log.20261302-030405",
            "1.log.20260102-030405",
        ] {
            assert!(suffix(OsStr::new(other), name).is_none(), "{other}");
        }
    }
}
