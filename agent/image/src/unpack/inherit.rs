//! Attributes of folders that a layer does not list.
//!
//! A layer that has `tmp/x` but no entry for `tmp` says nothing about `tmp`. In overlayfs, the folder that had to be
//! made for `x` would cover the one below, and `/tmp` would lose its mode 1777. So it takes over the attributes of
//! the folder that it covers.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, openat, statat,
    utimensat,
};

use super::Lowers;
use super::path::shown;
use super::tree::{is_dir, is_opaque, is_whiteout, open_dir_in};
use crate::Result;
use crate::error::Context;

enum Found {
    /// The folder is there.
    Folder(Box<Stat>),
    /// The layer says nothing; those below may.
    Nothing,
    /// The layer says that there is no such folder below it.
    Hidden,
}

fn open_root(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, dir, flags, Mode::empty()).context("open", dir)
}

fn look(layer: &Path, path: &[u8]) -> Result<Found> {
    let mut dir = open_root(layer)?;
    let mut found = None;
    for part in path.split(|b| *b == b'/') {
        let covering = is_opaque(&dir);
        let stat = match statat(&dir, part, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(_) => return Ok(if covering { Found::Hidden } else { Found::Nothing }),
        };
        if is_whiteout(&stat) || !is_dir(&stat) {
            return Ok(Found::Hidden);
        }
        dir = open_dir_in(dir.as_fd(), part).context("open", layer.join(shown(path)))?;
        found = Some(stat);
    }
    Ok(found.map_or(Found::Nothing, |stat| Found::Folder(Box::new(stat))))
}

/// Gives the folders `implied` of the layer in `dir` the attributes they have in the layers below, top first.
pub(crate) fn inherit(dir: &Path, implied: &[Vec<u8>], lowers: Lowers<'_>) -> Result<()> {
    if implied.is_empty() {
        return Ok(());
    }
    let root = open_root(dir)?;
    for path in implied {
        for lower in lowers {
            match look(lower, path)? {
                Found::Nothing => {}
                Found::Hidden => break,
                Found::Folder(stat) => {
                    copy_attributes(&root, path, &stat)
                        .context("set attributes of", dir.join(shown(path)))?;
                    break;
                }
            }
        }
    }
    Ok(())
}

fn copy_attributes(root: &OwnedFd, path: &[u8], stat: &Stat) -> rustix::io::Result<()> {
    let Ok(dir) = open_dir_in(root.as_fd(), path) else { return Ok(()) };
    chownat(&dir, ".", Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), AtFlags::empty())?;
    chmodat(&dir, ".", Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    #[allow(clippy::unnecessary_cast, reason = "the type differs between architectures")]
    let mtime = Timespec { tv_sec: stat.st_mtime as i64, tv_nsec: stat.st_mtime_nsec as i64 };
    utimensat(&dir, ".", &Timestamps { last_access: mtime, last_modification: mtime }, AtFlags::empty())
}
