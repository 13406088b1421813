//! Manifest folders: watched by inotify, compared with what is known now and then in case an event was lost.
//!
//! [`load`] reads one file, [`table`] knows what every file gave and which file owns which object, [`watches`] keeps inotify on the
//! folders, also on those that do not exist yet or are replaced. This file is the loop that ties them together.

mod load;
mod table;
mod watches;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use inotify::EventMask;
use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::manifest::{Context, ManifestError};
use crate::pod::Pod;
use table::Table;
use watches::{Change, Watches};

/// How long a file or a folder may be away before it counts as removed: editors move the old file aside first.
const SETTLE: Duration = Duration::from_millis(100);

/// What happened in the watched folders.
#[derive(Clone, Debug, PartialEq)]
pub enum FolderEvent {
    /// A file is new or has changed. What an earlier `Loaded` of the same file gave is replaced by this,
    /// except when the file is `broken`.
    Loaded {
        /// The file.
        file: PathBuf,
        /// Its pods, admitted.
        pods: Vec<Arc<Pod>>,
        /// Its ConfigMaps.
        config_maps: Vec<Arc<v1::ConfigMap>>,
        /// Its Secrets.
        secrets: Vec<Arc<v1::Secret>>,
        /// Its PersistentVolumes.
        volumes: Vec<Arc<v1::PersistentVolume>>,
        /// Its PersistentVolumeClaims.
        claims: Vec<Arc<v1::PersistentVolumeClaim>>,
        /// Its Services.
        services: Vec<Arc<v1::Service>>,
        /// Its Namespaces and NetworkPolicies.
        rules: Box<NetworkRules>,
        /// What is wrong with it.
        errors: Vec<ManifestError>,
        /// There are errors, so what this file gave before and does not give now stays as it is: pods and objects
        /// that are absent here must be kept, those that are present replace their predecessors.
        broken: bool,
    },
    /// A file is gone.
    Removed {
        /// The file.
        file: PathBuf,
    },
    /// Every file that was there at the start has been reported.
    Synced,
}

/// What a file says about who may talk to whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkRules {
    /// Namespaces, whose labels policies select.
    pub namespaces: Vec<Arc<v1::Namespace>>,
    /// NetworkPolicies.
    pub policies: Vec<Arc<NetworkPolicy>>,
}

/// How to watch.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often all folders are compared with what is known, in case an event was lost (kubelet: `fileCheckFrequency`, 20 s).
    /// It costs one stat per file.
    pub rescan: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { rescan: Duration::from_secs(20) }
    }
}

/// Watches folders for as long as the receiver lives. Must be called within a tokio runtime.
///
/// Every regular file is read, as a kubelet does, except dot files and what editors and package managers leave behind;
/// sub-folders are not. A folder that does not exist is awaited.
pub fn watch(dirs: Vec<PathBuf>, context: Context, options: Options) -> mpsc::UnboundedReceiver<FolderEvent> {
    let (events, receiver) = mpsc::unbounded_channel();
    let watches = Watches::new(dirs);
    let folder = Folder {
        table: Table::new(context),
        watches,
        events,
        gone: BTreeMap::new(),
        young: BTreeMap::new(),
        options,
    };
    tokio::spawn(folder.run());
    receiver
}

struct Folder {
    table: Table,
    watches: Watches,
    events: mpsc::UnboundedSender<FolderEvent>,
    /// Files that are away, and when they count as removed.
    gone: BTreeMap<PathBuf, Instant>,
    /// Empty files that a scan met just after they were made, and when they are read even so.
    young: BTreeMap<PathBuf, Instant>,
    options: Options,
}

impl Folder {
    async fn run(mut self) {
        // What is there at the start is told at the start.
        self.rescan(false);
        self.send(FolderEvent::Synced);
        let mut rescan_at = Instant::now() + self.options.rescan;
        loop {
            let wake_at =
                self.gone.values().chain(self.young.values()).copied().fold(rescan_at, Instant::min);
            tokio::select! {
                changes = self.watches.next() => self.take_in(changes),
                () = tokio::time::sleep_until(wake_at) => {}
                () = self.events.closed() => return,
            }
            self.drop_gone();
            self.read_young();
            if Instant::now() >= rescan_at {
                self.rescan(true);
                rescan_at = Instant::now() + self.options.rescan;
            }
        }
    }

    /// A receiver that is gone ends the loop in [`Folder::run`].
    fn send(&self, event: FolderEvent) {
        let _ = self.events.send(event);
    }

    fn take_in(&mut self, changes: Vec<Change>) {
        let mut rescan = false;
        // What is gone first: a renamed file must not meet its old self.
        for change in &changes {
            match change {
                Change::Entry { path, mask }
                    if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) =>
                {
                    rescan |= is_swap(path);
                    if self.table.knows(path) {
                        self.gone.insert(path.clone(), Instant::now() + SETTLE);
                    }
                }
                Change::Entry { .. } => {}
                Change::Everything => rescan = true,
            }
        }
        let mut seen: Vec<&Path> = Vec::new();
        for change in &changes {
            let Change::Entry { path, mask } = change else { continue };
            if is_swap(path) {
                rescan = true;
            } else if wants_reading(path, *mask)
                && !seen.contains(&path.as_path())
                && self.is_news(path, *mask)
            {
                seen.push(path);
                self.read(path);
            }
        }
        if rescan {
            self.rescan(true);
        }
    }

    /// A change of attributes matters only if it makes the file readable or another one.
    fn is_news(&self, path: &Path, mask: EventMask) -> bool {
        !mask.contains(EventMask::ATTRIB) || self.table.is_stale(path)
    }

    fn read(&mut self, path: &Path) {
        if std::fs::symlink_metadata(path).is_err() {
            // It went again meanwhile; perhaps it comes back.
            self.young.remove(path);
            if self.table.knows(path) {
                self.gone.entry(path.to_owned()).or_insert(Instant::now() + SETTLE);
            }
            return;
        }
        self.gone.remove(path);
        self.young.remove(path);
        let events = self.table.update(path);
        events.into_iter().for_each(|event| self.send(event));
    }

    fn drop_gone(&mut self) {
        let now = Instant::now();
        let due: Vec<_> =
            self.gone.iter().filter(|(_, at)| **at <= now).map(|(path, _)| path.clone()).collect();
        for path in due {
            self.gone.remove(&path);
            // A file that is back but was not closed yet is left alone until it is.
            if std::fs::symlink_metadata(&path).is_err() {
                let events = self.table.update(&path);
                events.into_iter().for_each(|event| self.send(event));
            }
        }
    }

    /// Reads the files whose writers had their time.
    fn read_young(&mut self) {
        let now = Instant::now();
        let due: Vec<_> =
            self.young.iter().filter(|(_, at)| **at <= now).map(|(path, _)| path.clone()).collect();
        for path in due {
            self.read(&path);
        }
    }

    /// Compares the folders with what is known. With `patient`, the writer of a new file gets the time to fill it.
    fn rescan(&mut self, patient: bool) {
        let mut found = Vec::new();
        for dir in self.watches.attach() {
            match load::list(&dir) {
                Ok(files) => found.extend(files),
                // Not being able to look is no reason to stop anything.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(dir = %dir.display(), %error, "cannot list the manifest folder");
                    found.extend(self.table.files_in(&dir));
                }
                Err(_) => {}
            }
        }
        found.sort();
        let now = Instant::now();
        for path in self.table.files() {
            if found.binary_search(&path).is_err() {
                self.gone.entry(path).or_insert(now + SETTLE);
            }
        }
        for path in found {
            self.gone.remove(&path);
            if self.table.is_stale(&path) {
                if patient && load::is_being_made(&path, SETTLE) {
                    self.young.entry(path).or_insert(now + SETTLE);
                    continue;
                }
                self.read(&path);
            }
        }
    }
}

/// `..data` and the like: mounted ConfigMaps are swapped by renaming such a link, without touching the files beside it.
fn is_swap(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."))
}

/// Whether the event says that the file is complete. A file that was only created is still being written, unless it is a link.
fn wants_reading(path: &Path, mask: EventMask) -> bool {
    if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM | EventMask::ISDIR) || load::is_ignored(path)
    {
        return false;
    }
    if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO | EventMask::ATTRIB) {
        return true;
    }
    load::is_link(path)
}
