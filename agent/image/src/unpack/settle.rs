//! What of a layer depends on the layers below, settled once they are known.
//!
//! * A layer that has `tmp/x` but no entry for `tmp` says nothing about `tmp`. In overlayfs, the folder that had to be
//!   made for `x` would cover the one below, and `/tmp` would lose its mode 1777. So it takes over the attributes of
//!   the folder that it covers.
//! * A whiteout of something that no layer below has is of no use, and overlayfs shows it (as a name that cannot be
//!   opened) in folders that it need not merge. So it goes.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, openat, statat,
    unlinkat, utimensat,
};

use super::Unpacked;
use super::path::{shown, split};
use super::tree::{is_dir, is_opaque, is_whiteout, open_dir_in};
use crate::Result;
use crate::error::Context;

enum Found {
    There(Box<Stat>),
    /// The layer says nothing; those below may.
    Nothing,
    /// The layer says that there is no such thing below it.
    Hidden,
}

fn open_root(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, dir, flags, Mode::empty()).context("open", dir)
}

/// Looks for a path in one layer, without following links: overlayfs does not either.
fn look(layer: &Path, path: &[u8]) -> Result<Found> {
    let mut dir = open_root(layer)?;
    let mut parts = path.split(|b| *b == b'/').peekable();
    while let Some(part) = parts.next() {
        let Ok(stat) = statat(&dir, part, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(if is_opaque(&dir) { Found::Hidden } else { Found::Nothing });
        };
        if is_whiteout(&stat) {
            return Ok(Found::Hidden);
        }
        if parts.peek().is_none() {
            return Ok(Found::There(Box::new(stat)));
        }
        if !is_dir(&stat) {
            return Ok(Found::Hidden);
        }
        dir = open_dir_in(dir.as_fd(), part).context("open", layer.join(shown(path)))?;
    }
    Ok(Found::Nothing)
}

/// Looks for a path in all layers below, top first.
fn look_below(lowers: &[PathBuf], path: &[u8]) -> Result<Option<Box<Stat>>> {
    for lower in lowers {
        match look(lower, path)? {
            Found::Nothing => {}
            Found::Hidden => return Ok(None),
            Found::There(stat) => return Ok(Some(stat)),
        }
    }
    Ok(None)
}

/// Settles the layer in `dir`, with the layers `lowers` below it, top first.
pub(crate) fn settle(dir: &Path, unpacked: &Unpacked, lowers: &[PathBuf]) -> Result<()> {
    let root = open_root(dir)?;
    for path in &unpacked.whiteouts {
        if in_opaque(&root, path) || look_below(lowers, path)?.is_none() {
            remove_whiteout(&root, path).context("remove", dir.join(shown(path)))?;
        }
    }
    for path in unpacked.implied.iter().filter(|path| !in_opaque(&root, path)) {
        if let Some(stat) = look_below(lowers, path)?.filter(|stat| is_dir(stat)) {
            copy_attributes(&root, path, &stat).context("set attributes of", dir.join(shown(path)))?;
        }
    }
    Ok(())
}

/// Whether the layer itself hides everything below at some folder of the path.
fn in_opaque(root: &OwnedFd, path: &[u8]) -> bool {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    std::iter::once(0)
        .chain(slashes)
        .any(|end| open_dir_in(root.as_fd(), &path[..end]).is_ok_and(|dir| is_opaque(&dir)))
}

fn times(stat: &Stat) -> Timestamps {
    #[allow(clippy::unnecessary_cast, reason = "the types differ between architectures")]
    let mtime = Timespec { tv_sec: stat.st_mtime as i64, tv_nsec: stat.st_mtime_nsec as i64 };
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn remove_whiteout(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<()> {
    let (above, name) = split(path);
    // A later member of the layer may have taken its place, or that of a folder above.
    let Ok(dir) = open_dir_in(root.as_fd(), above) else { return Ok(()) };
    if !statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_whiteout(&stat)) {
        return Ok(());
    }
    let before = statat(&dir, ".", AtFlags::empty())?;
    unlinkat(&dir, name, AtFlags::empty())?;
    utimensat(&dir, ".", &times(&before), AtFlags::empty())
}

fn copy_attributes(root: &OwnedFd, path: &[u8], stat: &Stat) -> rustix::io::Result<()> {
    let Ok(dir) = open_dir_in(root.as_fd(), path) else { return Ok(()) };
    chownat(&dir, ".", Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), AtFlags::empty())?;
    chmodat(&dir, ".", Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    utimensat(&dir, ".", &times(stat), AtFlags::empty())
}
