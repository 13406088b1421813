//! inotify on folders that may be missing, come, go and be replaced.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures::stream::{ReadyChunks, StreamExt};
use inotify::{
    Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches as InotifyWatches,
};

/// How many events are taken in at once; those of one burst are handled together, none is waited for.
const BATCH: usize = 256;

/// What happened.
#[derive(Debug)]
pub(super) enum Change {
    /// To one entry of a watched folder.
    Entry { path: PathBuf, mask: EventMask },
    /// A folder came, went or was replaced, or events were lost: everything must be looked at again.
    Everything,
}

/// What a watch is for.
struct Watch {
    dir: PathBuf,
    /// Device and inode of what is watched.
    identity: (u64, u64),
    /// A manifest folder itself, or the nearest existing folder above a missing one.
    manifest: bool,
}

type Events = ReadyChunks<EventStream<[u8; 4096]>>;

pub(super) struct Watches {
    dirs: Vec<PathBuf>,
    /// None where the kernel gives no inotify instance; then only rescans find changes.
    inotify: Option<(InotifyWatches, Events)>,
    watches: HashMap<WatchDescriptor, Watch>,
}

impl Watches {
    pub fn new(dirs: Vec<PathBuf>) -> Watches {
        let inotify = Inotify::init().and_then(|inotify| {
            let stream = inotify.into_event_stream([0; 4096])?;
            Ok((stream.watches(), stream.ready_chunks(BATCH)))
        });
        if let Err(error) = &inotify {
            tracing::warn!(%error, "cannot use inotify, manifest folders are only rescanned");
        }
        Watches { dirs, inotify: inotify.ok(), watches: HashMap::new() }
    }

    /// Makes sure that every folder is watched, or the nearest existing one above it. Gives the folders.
    pub fn attach(&mut self) -> Vec<PathBuf> {
        for dir in self.dirs.clone() {
            // A folder may come while the one above it is being watched, hence the second try.
            for _ in 0..2 {
                let target = nearest(&dir);
                if let Err(error) = self.watch(&target) {
                    tracing::warn!(dir = %target.display(), %error, "cannot watch the folder, it is only rescanned");
                }
                if nearest(&dir) == target {
                    break;
                }
            }
        }
        self.forget_needless();
        self.dirs.clone()
    }

    fn watch(&mut self, target: &Path) -> io::Result<()> {
        let manifest = self.dirs.iter().any(|dir| dir == target);
        let Some((watches, _)) = &mut self.inotify else { return Ok(()) };
        let meta = fs::metadata(target)?;
        let identity = (meta.dev(), meta.ino());
        if self.watches.values().any(|w| w.dir == target && w.identity == identity) {
            return Ok(());
        }
        let mut mask =
            WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        if manifest {
            mask |= WatchMask::CLOSE_WRITE | WatchMask::MOVED_FROM | WatchMask::DELETE | WatchMask::ATTRIB;
        }
        let descriptor = watches.add(target, mask | WatchMask::ONLYDIR)?;
        self.watches.insert(descriptor, Watch { dir: target.to_owned(), identity, manifest });
        Ok(())
    }

    /// Ends watches of folders above that are there by now, and of folders that were replaced.
    fn forget_needless(&mut self) {
        let needed: Vec<_> = self.dirs.iter().map(|dir| nearest(dir)).collect();
        let is_needless = |w: &Watch| {
            let same = fs::metadata(&w.dir).is_ok_and(|meta| (meta.dev(), meta.ino()) == w.identity);
            !same || !needed.contains(&w.dir)
        };
        let needless: Vec<_> = self
            .watches
            .iter()
            .filter(|(_, w)| is_needless(w))
            .map(|(descriptor, _)| descriptor.clone())
            .collect();
        for descriptor in needless {
            self.watches.remove(&descriptor);
            self.unwatch(descriptor);
        }
    }

    fn unwatch(&mut self, descriptor: WatchDescriptor) {
        if let Some((watches, _)) = &mut self.inotify {
            // It fails when the kernel has ended the watch already, with the folder.
            let _ = watches.remove(descriptor);
        }
    }

    /// The next burst of changes. Can be dropped and called again at any time.
    pub async fn next(&mut self) -> Vec<Change> {
        let Some((_, events)) = &mut self.inotify else { return std::future::pending().await };
        let Some(batch) = events.next().await else { return std::future::pending().await };
        let mut changes = Vec::new();
        for event in batch {
            match event {
                Ok(event) => changes.extend(self.change(event)),
                Err(error) => {
                    tracing::warn!(%error, "cannot read inotify events");
                    changes.push(Change::Everything);
                }
            }
        }
        changes
    }

    fn change(&mut self, event: Event<std::ffi::OsString>) -> Option<Change> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return Some(Change::Everything);
        }
        let itself = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT;
        if event.mask.intersects(itself) {
            // A watch that was ended on purpose is forgotten already, and no news.
            self.watches.remove(&event.wd)?;
            self.unwatch(event.wd);
            return Some(Change::Everything);
        }
        let watch = self.watches.get(&event.wd)?;
        let path = watch.dir.join(event.name?);
        let on_the_way = event.mask.intersects(EventMask::CREATE | EventMask::MOVED_TO);
        if on_the_way && self.dirs.iter().any(|dir| dir.starts_with(&path)) {
            return Some(Change::Everything);
        }
        watch.manifest.then_some(Change::Entry { path, mask: event.mask })
    }
}

/// The folder itself if it exists, else the nearest existing one above it.
fn nearest(dir: &Path) -> PathBuf {
    let found = dir.ancestors().find(|path| path.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_owned)
}
