//! Paths inside a container's root file system.
//!
//! Whatever links an image or a shared volume contains, and whoever changes them meanwhile, a path resolved here
//! never leaves the root: the kernel resolves it with `RESOLVE_IN_ROOT` (openat2(2)).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, mkdirat};

use super::Error;

/// The kernel's own limit on links in one path.
const MAX_LINKS: usize = 40;

/// What a path that does not exist yet shall become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// An empty file, to mount something on.
    File,
}

/// The root folder of a container that is being made.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Takes the folder at `path` as the root.
    pub fn open(path: &Path) -> Result<Root, Error> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty())
            .map(Root)
            .map_err(|e| Error::sys("open root file system", path.display().to_string(), e.into()))
    }

    /// Takes an open folder as the root.
    pub fn of_folder(folder: OwnedFd) -> Root {
        Root(folder)
    }

    /// The folder itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens an existing path. Links are followed, but never out of the root and never the magic ones of procfs.
    pub fn open_path(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
    }

    /// Opens an existing path that must not contain a link.
    pub fn open_plain(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS)
    }

    fn resolve(&self, path: &Path, flags: OFlag, resolve: ResolveFlag) -> io::Result<OwnedFd> {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        loop {
            match openat2(&self.0, path, how) {
                // Something was renamed at this moment, so that the kernel could not be sure.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// An `O_PATH` descriptor of `path`, which is created with all folders above it when it does not exist.
    pub fn ensure(&self, path: &Path, kind: Kind) -> Result<OwnedFd, Error> {
        match self.open_path(path, OFlag::O_PATH) {
            Ok(fd) => return Ok(fd),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::sys("open", path.display().to_string(), e)),
        }
        // The usual case: a plain name is missing in a folder that is there.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(folder) = self.open_path(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)
            && make(&folder, name, kind).is_ok_and(|fresh| fresh)
            && let Ok(fd) = Root(folder).open_plain(Path::new(name), OFlag::O_PATH)
        {
            return Ok(fd);
        }
        self.create(path, kind).map_err(|e| Error::sys("create mount point", path.display().to_string(), e))
    }

    /// Walks part by part, makes what is missing, and follows links by hand, so that a link to something missing
    /// makes that. `done` never contains a link; the kernel checks that again at each step.
    fn create(&self, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
        let mut todo = parts(path);
        let mut done = PathBuf::new();
        let mut here = self.open_plain(&done, OFlag::O_PATH)?;
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                done.pop();
                here = self.open_plain(&done, OFlag::O_PATH)?;
                continue;
            }
            if let Ok(target) = readlinkat(&here, part.as_os_str()) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = PathBuf::from(OsString::from_vec(target.into_vec()));
                if target.is_absolute() {
                    done = PathBuf::new();
                    here = self.open_plain(&done, OFlag::O_PATH)?;
                }
                let mut rest = parts(&target);
                rest.append(&mut todo);
                todo = rest;
                continue;
            }
            let last = todo.is_empty();
            make(&here, &part, if last { kind } else { Kind::Folder })?;
            done.push(&part);
            here = self.open_plain(&done, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        }
        Ok(here)
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

/// Makes a file or folder; false when something was there already.
fn make(parent: &OwnedFd, name: &OsStr, kind: Kind) -> io::Result<bool> {
    let result = match kind {
        Kind::Folder => mkdirat(parent, name, Mode::from_bits_truncate(0o755)),
        Kind::File => {
            let flags =
                OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
            openat(parent, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
        }
    };
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn missing_folders_are_made() {
        let (dir, root) = root();
        root.ensure(Path::new("/a/b/c"), Kind::Folder).unwrap();
        root.ensure(Path::new("/a/b/file"), Kind::File).unwrap();
        assert!(dir.path().join("root/a/b/c").is_dir());
        assert!(dir.path().join("root/a/b/file").is_file());
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let (dir, root) = root();
        let inside = dir.path().join("root");
        symlink("/etc", inside.join("absolute")).unwrap();
        symlink("../../../..", inside.join("up")).unwrap();
        symlink("/nowhere/there", inside.join("dangling")).unwrap();
        root.ensure(Path::new("/absolute/x"), Kind::Folder).unwrap();
        root.ensure(Path::new("/up/y"), Kind::Folder).unwrap();
        root.ensure(Path::new("/dangling/z"), Kind::File).unwrap();
        root.ensure(Path::new("/../../w"), Kind::Folder).unwrap();
        for made in ["etc/x", "y", "nowhere/there/z", "w"] {
            assert!(inside.join(made).exists(), "{made} is missing");
        }
        assert!(!dir.path().join("y").exists() && !dir.path().join("w").exists());
    }

    #[test]
    fn a_circle_of_links_is_an_error() {
        let (dir, root) = root();
        symlink("b", dir.path().join("root/a")).unwrap();
        symlink("a", dir.path().join("root/b")).unwrap();
        assert!(root.ensure(Path::new("/a/c"), Kind::Folder).is_err());
    }
}
