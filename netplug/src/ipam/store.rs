//! The files of the leases.
//!
//! `leases/<id>.json` is a lease, `quarantine/<address>.json` a released address. Each is written beside its place and
//! renamed into it, so a reader sees all of it or nothing. No fsync: what a crash of the machine loses are leases of
//! pods that it ended too.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::lease::Lease;
use crate::error::{Error, Result};
use crate::record;

/// A released address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Quarantined {
    pub ipv4: Ipv4Addr,
    /// Id of the pod that had it.
    pub id: String,
    /// Its `namespace/name`.
    #[serde(default)]
    pub pod: String,
    /// Number of the lease that had it.
    pub sequence: u64,
    /// End of the quarantine, in milliseconds since 1970.
    pub until_ms: u64,
}

impl Quarantined {
    pub(super) fn new(lease: &Lease, until: SystemTime) -> Self {
        let since = until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let until_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self { ipv4: lease.ipv4, id: lease.id.clone(), pod: lease.pod(), sequence: lease.sequence, until_ms }
    }

    pub(super) fn until(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.until_ms)).unwrap_or(UNIX_EPOCH)
    }
}

/// The file that is locked while several processes share the folder.
pub(super) const LOCK: &str = "lock";

/// The folder.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    leases: PathBuf,
    quarantine: PathBuf,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let store = Self { dir: dir.into(), leases: dir.join("leases"), quarantine: dir.join("quarantine") };
        for folder in [&store.leases, &store.quarantine] {
            fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, e))?;
        }
        Ok(store)
    }

    pub(super) fn leases(&self) -> Result<Vec<Lease>> {
        let mut leases: Vec<Lease> = read_all(&self.leases)?;
        leases.sort_by_key(|lease| lease.sequence);
        Ok(leases)
    }

    pub(super) fn quarantined(&self) -> Result<Vec<Quarantined>> {
        read_all(&self.quarantine)
    }

    pub(super) fn keep(&self, lease: &Lease) -> Result<()> {
        record::write(&self.leases, &lease.id, lease)
    }

    pub(super) fn forget(&self, id: &str) -> Result<()> {
        record::remove(&record::path(&self.leases, id))
    }

    /// Puts the address into quarantine before the lease goes, so that no crash can free it early.
    pub(super) fn release(&self, released: &Quarantined) -> Result<()> {
        record::write(&self.quarantine, &released.ipv4.to_string(), released)?;
        self.forget(&released.id)
    }

    /// Which pod had an address in quarantine, as `namespace/name`; none if its record does not say.
    pub(super) fn had(&self, address: Ipv4Addr) -> Result<Option<String>> {
        let released = record::read::<Quarantined>(&self.quarantine, &address.to_string())?;
        let pod = released.and_then(std::result::Result::ok).map(|released| released.pod);
        Ok(pod.filter(|pod| !pod.is_empty()))
    }

    pub(super) fn end_quarantine(&self, address: Ipv4Addr) -> Result<()> {
        record::remove(&record::path(&self.quarantine, &address.to_string()))
    }

    /// Removes the folders of leases and quarantine, and the folder above if nothing else is in it.
    pub(super) fn remove_all(&self) -> Result<()> {
        for folder in [&self.leases, &self.quarantine] {
            match fs::remove_dir_all(folder) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::file("remove", folder, e)),
                _ => {}
            }
        }
        record::remove(&self.dir.join(LOCK))?;
        match fs::remove_dir(&self.dir) {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                Err(Error::file("remove", &self.dir, e))
            }
            _ => Ok(()),
        }
    }
}

/// Reads every record of a folder; drafts and files that make no sense are removed.
fn read_all<T: DeserializeOwned>(folder: &Path) -> Result<Vec<T>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::file("list", folder, e))? {
        let path = entry.map_err(|e| Error::file("list", folder, e))?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            record::remove(&path)?;
            continue;
        }
        let text = fs::read(&path).map_err(|e| Error::file("read", &path, e))?;
        match serde_json::from_slice(&text) {
            Ok(record) => records.push(record),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "removed a record that cannot be read");
                record::remove(&path)?;
            }
        }
    }
    Ok(records)
}
