//! Where the containers have their records: a folder each, named after the id.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::Spec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, Record};

const RECORD: &str = "state.json";
const CONFIG: &str = "config.json";
const GATE: &str = "start.sock";

/// The folder of all.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    pub fn new(root: &Path) -> Store {
        Store { root: root.to_owned() }
    }

    /// The ids of all containers, sorted.
    pub fn ids(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::path("read", &self.root)(e)),
        };
        let mut ids: Vec<String> =
            entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| valid(n)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Makes the folder of a new container and locks it.
    pub fn make(&self, id: &str) -> Result<(Folder, Lock), Error> {
        if !valid(id) {
            return Err(Error::BadId { id: id.to_owned() });
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(Error::path("create", &self.root))?;
        let path = self.root.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::Exists { id: id.to_owned() });
            }
            Err(e) => return Err(Error::path("create", &path)(e)),
        }
        let folder = self.open(id)?;
        let lock = folder.lock()?;
        Ok((folder, lock))
    }

    /// The folder of a container.
    pub fn open(&self, id: &str) -> Result<Folder, Error> {
        if !valid(id) {
            return Err(Error::BadId { id: id.to_owned() });
        }
        let path = self.root.join(id);
        match File::open(&path) {
            Ok(handle) => Ok(Folder { id: id.to_owned(), path, handle }),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::NotFound { id: id.to_owned() }),
            Err(e) => Err(Error::path("open", &path)(e)),
        }
    }
}

/// Letters that stay one file name.
fn valid(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    !id.is_empty() && id.len() <= 1024 && id != "." && id != ".." && id.chars().all(allowed)
}

/// The folder of one container.
#[derive(Debug)]
pub struct Folder {
    id: String,
    path: PathBuf,
    handle: File,
}

/// While this lives nobody else changes the container.
pub struct Lock {
    _flock: Flock<File>,
}

impl Folder {
    /// Waits until nobody else changes the container.
    pub fn lock(&self) -> Result<Lock, Error> {
        let failed = Error::path("lock", &self.path);
        // A descriptor of its own: locks belong to what open(2) made.
        let file = File::open(&self.path).map_err(|e| self.missing_or("open", e))?;
        let flock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed(e))?;
        // It may have been deleted meanwhile, and even made anew.
        let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        let own = self.handle.metadata().map_err(Error::path("look at", &self.path))?;
        match fs::metadata(&self.path) {
            Ok(now) if same(&own, &now) => Ok(Lock { _flock: flock }),
            Ok(_) => Err(Error::NotFound { id: self.id.clone() }),
            Err(e) => Err(self.missing_or("look at", e)),
        }
    }

    /// Whether somebody changes the container right now.
    pub fn is_locked(&self) -> bool {
        File::open(&self.path).is_ok_and(|f| {
            Flock::lock(f, FlockArg::LockSharedNonblock)
                .is_err_and(|(_, e)| e == nix::errno::Errno::EWOULDBLOCK)
        })
    }

    fn missing_or(&self, operation: &'static str, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::NotFound => Error::NotFound { id: self.id.clone() },
            _ => Error::path(operation, &self.path)(error),
        }
    }

    /// What is known of the container.
    pub fn record(&self) -> Result<Record, Error> {
        self.read(RECORD)
    }

    /// Replaces what is known of the container.
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        let bytes = to_json(&self.path.join(RECORD), record)?;
        replace(&self.path.join(RECORD), &bytes)
    }

    /// The configuration as it was when the container was created: later changes of the bundle do not count
    /// (runtime-spec, "Lifecycle").
    pub fn config(&self) -> Result<Spec, Error> {
        self.read(CONFIG)
    }

    /// Keeps the configuration.
    pub fn save_config(&self, bytes: &[u8]) -> Result<(), Error> {
        replace(&self.path.join(CONFIG), bytes)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let path = self.path.join(name);
        let bytes = fs::read(&path).map_err(|e| self.missing_or("read", e))?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })
    }

    /// The socket that a created container waits at, by a name that fits into an address.
    pub fn gate(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{GATE}", self.handle.as_raw_fd()))
    }

    /// Removes the folder. Renamed first, so that nobody sees half of it.
    pub fn remove(&self) -> Result<(), Error> {
        let gone = self.path.with_file_name(format!(".{}.gone.{}", self.id, std::process::id()));
        match fs::rename(&self.path, &gone) {
            Ok(()) => fs::remove_dir_all(&gone).map_err(Error::path("remove", &gone)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::path("remove", &self.path)(e)),
        }
    }
}

/// A value as JSON for a file.
fn to_json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Replaces a file in one step, so that a reader sees the old or the new content whole.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(Error::path("write", path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_plain_name() {
        for good in ["a", "A-b_c+1.2", "..."] {
            assert!(valid(good), "{good} is refused");
        }
        for bad in ["", ".", "..", "a/b", "a b", "é", "a\0"] {
            assert!(!valid(bad), "{bad:?} passed");
        }
    }

    #[test]
    fn one_folder_per_id() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(&dir.path().join("root"));
        assert!(store.ids().unwrap().is_empty());
        let (folder, lock) = store.make("one").unwrap();
        assert!(folder.is_locked());
        assert!(matches!(store.make("one"), Err(Error::Exists { .. })));
        drop(lock);
        assert!(!folder.is_locked());
        assert_eq!(store.ids().unwrap(), ["one"]);
        folder.remove().unwrap();
        assert!(matches!(folder.lock(), Err(Error::NotFound { .. })));
        store.make("one").unwrap();
        assert!(matches!(folder.lock(), Err(Error::NotFound { .. })), "it is another one now");
    }
}
