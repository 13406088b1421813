//! The host's ids that pods with `hostUsers: false` get: a range each, of equal size, none of which overlap.
//!
//! A range is a file `<root>/users/<pod uid>`, written before it is used. One agent at a time has the folder.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use berth_runtime::shim::IdRange;
use serde::{Deserialize, Serialize};

use super::entry::{read_json, write_json};
use crate::config::UserNamespaces;

/// A pod's range on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lease {
    first: u32,
    count: u32,
}

impl Lease {
    fn overlaps(self, other: Lease) -> bool {
        // A range ends below the highest id, see `UserNamespaces`.
        self.first < other.first.saturating_add(other.count)
            && other.first < self.first.saturating_add(self.count)
    }

    fn range(self) -> IdRange {
        IdRange { first: self.first, count: self.count }
    }
}

/// The first Linux whose overlayfs takes layers from mounts that are attached nowhere, as id-mapped ones are.
const NEEDED: (u32, u32) = (6, 15);

/// Major and minor number of a release such as `6.18.0-rc1`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Why a pod gets no range.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no ids are left for the pod's user namespace: all {0} ranges of userNamespaces are taken")]
    Exhausted(u32),
    #[error("hostUsers: false needs Linux 6.15 or later, for overlays of id-mapped layers; this is {0}")]
    Kernel(String),
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

/// All ranges.
pub(super) struct IdRanges {
    dir: PathBuf,
    settings: UserNamespaces,
    /// By the pod's uid. Read from disk when it is first asked for.
    held: Mutex<Option<BTreeMap<String, Lease>>>,
}

impl IdRanges {
    pub fn new(dir: PathBuf, settings: UserNamespaces) -> Self {
        Self { dir, settings, held: Mutex::default() }
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Lease>) -> T) -> T {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        work(held.get_or_insert_with(|| self.read()))
    }

    fn read(&self) -> BTreeMap<String, Lease> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let uid = entry.file_name().to_str()?.to_owned();
                match read_json::<Lease>(&entry.path()).filter(|_| !uid.ends_with(".tmp")) {
                    Some(lease) => Some((uid, lease)),
                    None => {
                        // Half a record: it was not used yet.
                        let _ = std::fs::remove_file(entry.path());
                        None
                    }
                }
            })
            .collect()
    }

    /// The pod's range: the one it has, else the lowest that is free.
    pub fn acquire(&self, uid: &str) -> Result<IdRange, Error> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if version(&release).is_some_and(|found| found < NEEDED) {
            return Err(Error::Kernel(release.trim().to_owned()));
        }
        self.with(|held| {
            if let Some(lease) = held.get(uid) {
                return Ok(lease.range());
            }
            let UserNamespaces { first_host_id, ids_per_pod, ranges } = self.settings;
            let free = (0..ranges)
                .map(|n| Lease { first: first_host_id + n * ids_per_pod, count: ids_per_pod })
                .find(|lease| !held.values().any(|other| other.overlaps(*lease)))
                .ok_or(Error::Exhausted(ranges))?;
            let path = self.dir.join(uid);
            std::fs::create_dir_all(&self.dir)
                .and_then(|()| write_json(&path, &free))
                .map_err(|source| Error::Write { path, source })?;
            held.insert(uid.to_owned(), free);
            Ok(free.range())
        })
    }

    /// The pod's range, if it has one.
    pub fn of(&self, uid: &str) -> Option<IdRange> {
        self.with(|held| held.get(uid).map(|lease| lease.range()))
    }

    /// Gives the pod's range back; can be repeated.
    pub fn release(&self, uid: &str) {
        self.with(|held| {
            if held.remove(uid).is_some()
                && let Err(error) = std::fs::remove_file(self.dir.join(uid))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(uid, %error, "cannot remove the record of a pod's ids");
            }
        });
    }

    /// Gives back the ranges of pods that nobody knows.
    pub fn collect_garbage(&self, known: &dyn Fn(&str) -> bool) {
        let held: Vec<String> = self.with(|held| held.keys().cloned().collect());
        held.iter().filter(|uid| !known(uid)).for_each(|uid| self.release(uid));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ranges(dir: &std::path::Path, ids_per_pod: u32, ranges: u32) -> IdRanges {
        IdRanges::new(dir.join("users"), UserNamespaces { first_host_id: 100_000, ids_per_pod, ranges })
    }

    #[test]
    fn ranges_do_not_overlap_and_outlive_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let first = ranges(dir.path(), 65536, 2);
        assert_eq!(first.acquire("a").unwrap(), IdRange { first: 100_000, count: 65536 });
        assert_eq!(first.acquire("b").unwrap(), IdRange { first: 165_536, count: 65536 });
        assert_eq!(first.acquire("a").unwrap().first, 100_000, "the same again");
        let error = first.acquire("c").unwrap_err().to_string();
        assert!(error.contains("all 2 ranges of userNamespaces"), "{error}");
        let next = ranges(dir.path(), 65536, 2);
        assert_eq!(next.of("b").unwrap().first, 165_536);
        next.release("a");
        next.release("a");
        assert_eq!(next.acquire("c").unwrap().first, 100_000, "a freed range is used again");
        next.collect_garbage(&|uid| uid == "c");
        assert_eq!((next.of("b"), next.of("c").is_some()), (None, true));
        assert_eq!(std::fs::read_dir(dir.path().join("users")).unwrap().count(), 1);
    }

    #[test]
    fn a_range_of_another_setting_is_not_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ranges(dir.path(), 65536, 4).acquire("a").unwrap().first, 100_000);
        let larger = ranges(dir.path(), 131_072, 2);
        assert_eq!(larger.acquire("b").unwrap().first, 231_072, "the first one holds the ids of a");
        assert_eq!(larger.acquire("a").unwrap().count, 65536, "who runs keeps what it has");
    }

    #[test]
    fn half_a_record_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("users")).unwrap();
        std::fs::write(dir.path().join("users/x"), "{\"fir").unwrap();
        std::fs::write(dir.path().join("users/y.tmp"), "{\"first\":100000,\"count\":1}").unwrap();
        let all = ranges(dir.path(), 65536, 1);
        assert_eq!(all.acquire("a").unwrap().first, 100_000);
        assert_eq!(std::fs::read_dir(dir.path().join("users")).unwrap().count(), 1);
    }

    #[test]
    fn kernels_that_are_too_old_are_told_apart() {
        for (release, enough) in [
            ("6.15.0\n", true),
            ("6.18.5-arch1-1", true),
            ("7.0-rc1", true),
            ("6.14.11", false),
            ("5.10.0-30-amd64", false),
        ] {
            assert_eq!(version(release).unwrap() >= NEEDED, enough, "{release}");
        }
        assert_eq!(version("strange"), None);
    }
}
