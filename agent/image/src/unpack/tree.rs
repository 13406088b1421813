//! The folder that a layer is unpacked into. Every path is resolved by the kernel inside that folder
//! (openat2(2), `RESOLVE_IN_ROOT`), so that neither `..` nor a symbolic link in the layer leads out of it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, chmodat, fsetxattr, mkdirat,
    openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

use super::path::split;

/// Marks a folder that hides the same folder of the layers below (overlayfs documentation, "whiteouts and opaque
/// directories").
const OPAQUE: &str = "trusted.overlay.opaque";

pub(super) struct Tree {
    root: Rc<OwnedFd>,
    /// The folder used last: archives list folders in one go.
    cached: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Folders made only because something in them came first. They have default attributes until an entry of their
    /// own comes, or the layers below say better.
    pub(super) implied: BTreeSet<Vec<u8>>,
}

/// Whether that is overlayfs' whiteout.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// A path to an object held only by an `O_PATH` descriptor, for calls that take nothing else.
fn by_fd(fd: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string()).join(std::ffi::OsStr::from_bytes(name))
}

/// Opens a folder below `root`, following symbolic links as if `root` were `/`.
pub(super) fn open_dir_in(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // The kernel asks to try again when any rename in the system raced with a `..` in a link.
            Err(Errno::AGAIN) if tries < 100 => tries += 1,
            other => return other,
        }
    }
}

impl Tree {
    /// The tree of an existing, empty folder.
    pub(super) fn new(dir: &Path) -> io::Result<Tree> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = openat(CWD, dir, flags, Mode::empty())?;
        Ok(Tree { root: Rc::new(root), cached: None, implied: BTreeSet::new() })
    }

    pub(super) fn root(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.root)
    }

    /// The folder at that clean path; it and those above it are made if missing.
    pub(super) fn dir(&mut self, path: &[u8]) -> io::Result<Rc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.root());
        }
        if let Some((_, fd)) = self.cached.as_ref().filter(|(cached, _)| cached == path) {
            return Ok(Rc::clone(fd));
        }
        let fd = match open_dir_in(self.root.as_fd(), path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_dir(path)?,
            Err(e) => return Err(e.into()),
        };
        let fd = Rc::new(fd);
        self.cached = Some((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn make_dir(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        let (above, name) = split(path);
        let above = self.dir(above)?;
        let opaque = match self.lstat(&above, name)? {
            None => false,
            Some(stat) if is_whiteout(&stat) => {
                unlinkat(&above, name, AtFlags::empty())?;
                true
            }
            Some(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    "something in its path is no folder",
                ));
            }
        };
        self.mkdir(&above, name)?;
        if opaque {
            self.set_opaque(&above, name)?;
        } else {
            self.implied.insert(path.to_vec());
        }
        Ok(open_dir_in(above.as_fd(), name)?)
    }

    /// Makes a folder with mode 0755 whatever the umask.
    pub(super) fn mkdir(&self, above: &OwnedFd, name: &[u8]) -> io::Result<()> {
        mkdirat(above, name, Mode::from_raw_mode(0o755))?;
        Ok(chmodat(above, name, Mode::from_raw_mode(0o755), AtFlags::empty())?)
    }

    pub(super) fn lstat(&self, above: &OwnedFd, name: &[u8]) -> io::Result<Option<Stat>> {
        match statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes whatever has that name, with everything in it.
    pub(super) fn remove(&mut self, above: &OwnedFd, name: &[u8], stat: &Stat) -> io::Result<()> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // A cached folder may be the one that goes, or be known by a link that goes.
            self.cached = None;
        }
        if is_dir(stat) {
            std::fs::remove_dir_all(by_fd(above.as_fd(), name))
        } else {
            Ok(unlinkat(above, name, AtFlags::empty())?)
        }
    }

    /// Hides the folder of that name in the layers below.
    pub(super) fn set_opaque(&self, above: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = if name.is_empty() { &b"."[..] } else { name };
        let dir = openat(above, name, flags, Mode::empty())?;
        Ok(fsetxattr(&dir, OPAQUE, b"y", XattrFlags::empty())?)
    }

    /// Sets extended attributes on an object that may be anything but must not be followed.
    pub(super) fn set_xattr(&self, above: &OwnedFd, name: &[u8], key: &[u8], value: &[u8]) -> io::Result<()> {
        let path = by_fd(above.as_fd(), name);
        match rustix::fs::lsetxattr(path, key, value, XattrFlags::empty()) {
            // A file system without these attributes, or a kind of file that cannot have them: as tar(1) and
            // containerd do, the file comes without.
            Ok(()) | Err(Errno::NOTSUP) => Ok(()),
            Err(Errno::PERM) if key.starts_with(b"user.") => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Whether a folder hides those below it.
pub(super) fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0_u8; 2];
    rustix::fs::getxattr(by_fd(dir.as_fd(), b"."), OPAQUE, &mut value[..]).is_ok_and(|n| value[..n] == *b"y")
}
