//! Writes members into the layer's folder, in the order of the archive.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, linkat, mknodat,
    openat, symlinkat, utimensat,
};

use super::member::{Kind, Member};
use super::path::{shown, split};
use super::sparse::{self, Failure};
use super::tree::{Tree, is_dir, is_whiteout, open_dir_in};
use crate::error::Context;
use crate::{Error, Result};

/// `.wh.name` says that `name` of the layers below is gone.
const WHITEOUT: &[u8] = b".wh.";
/// Says that everything of the layers below in this folder is gone.
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Other names of AUFS' own use.
const AUFS: &[u8] = b".wh..wh.";

pub(super) struct Writer<'a> {
    tree: Tree,
    /// The layer, for messages.
    what: &'a str,
    /// Folders and their times, set at the end because every file made in them changes them.
    dirs: Vec<(Vec<u8>, Timespec)>,
    /// What this layer hides, as clean paths.
    whiteouts: BTreeSet<Vec<u8>>,
    size: u64,
}

/// What a layer turned out to be.
pub(super) struct Written {
    pub(super) size: u64,
    pub(super) implied: Vec<Vec<u8>>,
    pub(super) whiteouts: Vec<Vec<u8>>,
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

impl<'a> Writer<'a> {
    pub(super) fn new(dir: &Path, what: &'a str) -> Result<Writer<'a>> {
        let tree = Tree::new(dir).context("open", dir)?;
        Ok(Writer { tree, what, dirs: Vec::new(), whiteouts: BTreeSet::new(), size: 0 })
    }

    fn broken(&self, path: &[u8], reason: impl std::fmt::Display) -> Error {
        Error::corrupt(self.what, format!("{}: {reason}", shown(path)))
    }

    /// Most of what the kernel refuses here, it refuses because of what the archive says.
    fn refused(&self, path: &[u8], e: io::Error) -> Error {
        use rustix::io::Errno as E;
        let of_content = match E::from_io_error(&e) {
            Some(E::NOTDIR | E::ISDIR | E::NAMETOOLONG | E::INVAL | E::LOOP | E::NOENT | E::EXIST) => true,
            Some(_) => false,
            // Our own words.
            None => matches!(e.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput),
        };
        if of_content {
            return self.broken(path, e);
        }
        Error::io("unpack", format!("{}: {}", self.what, shown(path)), e)
    }

    /// Writes one member.
    pub(super) fn apply<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        let Some(member) = Member::read(entry, self.what)? else { return Ok(()) };
        let (above, name) = split(&member.path);
        let dir = self.tree.dir(above).map_err(|e| self.refused(&member.path, e))?;
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&dir, above, name).map_err(|e| self.refused(&member.path, e));
        }
        let opaque = if name.is_empty() { false } else { self.make_room(&dir, name, &member)? };
        self.create(entry, &member, &dir, name)?;
        if opaque {
            self.tree.set_opaque(&dir, name).map_err(|e| self.refused(&member.path, e))?;
        }
        Ok(())
    }

    fn whiteout(&mut self, dir: &OwnedFd, above: &[u8], name: &[u8]) -> io::Result<()> {
        if name == OPAQUE_WHITEOUT {
            return self.tree.set_opaque(dir, b"");
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "whiteout of no file"));
        }
        // A whiteout speaks of the layers below only, so what this layer has under that name stays.
        let path = if above.is_empty() { hidden.to_vec() } else { [above, b"/", hidden].concat() };
        match self.tree.lstat(dir, hidden)? {
            None => {
                mknodat(dir, hidden, FileType::CharacterDevice, Mode::empty(), 0)?;
                self.whiteouts.insert(path);
                Ok(())
            }
            Some(stat) if is_dir(&stat) => {
                // A folder made anew, which has nothing of the one that is gone.
                self.tree.implied.remove(&path);
                self.tree.set_opaque(dir, hidden)
            }
            Some(_) => Ok(()),
        }
    }

    /// Removes what has the member's name already. Returns whether a folder made now must hide those below.
    fn make_room(&mut self, dir: &OwnedFd, name: &[u8], member: &Member) -> Result<bool> {
        let found = self.tree.lstat(dir, name).map_err(|e| self.refused(&member.path, e))?;
        let Some(stat) = found else { return Ok(false) };
        if is_dir(&stat) && member.kind == Kind::Dir {
            return Ok(false);
        }
        if let Kind::Hardlink(target) = &member.kind
            && *target == member.path
        {
            return Err(self.broken(&member.path, "hard link to itself"));
        }
        self.tree.remove(dir, name, &stat).map_err(|e| self.refused(&member.path, e))?;
        Ok(is_whiteout(&stat) && member.kind == Kind::Dir)
    }

    fn create<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        member: &Member,
        dir: &OwnedFd,
        name: &[u8],
    ) -> Result<()> {
        let refused = |this: &Self, e: io::Error| this.refused(&member.path, e);
        match &member.kind {
            Kind::Dir => {
                if !name.is_empty() && self.tree.lstat(dir, name).map_err(|e| refused(self, e))?.is_none() {
                    self.tree.mkdir(dir, name).map_err(|e| refused(self, e))?;
                }
                self.tree.implied.remove(&member.path);
                self.dirs.push((member.path.clone(), member.mtime));
            }
            _ if name.is_empty() => return Err(self.broken(&member.path, "the root is no folder")),
            Kind::File | Kind::Holes | Kind::PaxSparse(_) => self.file(entry, member, dir, name)?,
            Kind::Symlink(target) => {
                symlinkat(target.as_slice(), dir, name).map_err(|e| refused(self, e.into()))?
            }
            Kind::Hardlink(target) => {
                // Attributes belong to the file that the link leads to, and came with it.
                return self.hardlink(target, dir, name).map_err(|e| match e.kind() {
                    io::ErrorKind::NotFound => self.broken(
                        &member.path,
                        format!("hard link to {}, which is not in this layer", shown(target)),
                    ),
                    io::ErrorKind::PermissionDenied => self.broken(&member.path, "hard link to a folder"),
                    _ => self.refused(&member.path, e),
                });
            }
            Kind::Char(dev) => {
                self.node(dir, name, FileType::CharacterDevice, *dev).map_err(|e| refused(self, e))?
            }
            Kind::Block(dev) => {
                self.node(dir, name, FileType::BlockDevice, *dev).map_err(|e| refused(self, e))?
            }
            Kind::Fifo => self.node(dir, name, FileType::Fifo, 0).map_err(|e| refused(self, e))?,
        }
        self.attributes(member, dir, name).map_err(|e| refused(self, e))
    }

    fn node(&self, dir: &OwnedFd, name: &[u8], kind: FileType, dev: u64) -> io::Result<()> {
        Ok(mknodat(dir, name, kind, Mode::from_raw_mode(0o600), dev)?)
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        member: &Member,
        dir: &OwnedFd,
        name: &[u8],
    ) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(dir, name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(fd.map_err(|e| self.refused(&member.path, e.into()))?);
        let written = match &member.kind {
            Kind::PaxSparse(map) => sparse::expand(entry, &mut file, map),
            kind => sparse::copy(entry, &mut file, *kind == Kind::Holes),
        };
        self.size += written.map_err(|failure| match failure {
            Failure::Read(e) => self.broken(&member.path, e),
            Failure::Write(e) => Error::io("unpack", format!("{}: {}", self.what, shown(&member.path)), e),
        })?;
        if member.kind == Kind::File && file.metadata().is_ok_and(|m| m.len() != entry.size()) {
            return Err(self.broken(&member.path, "the archive is cut short"));
        }
        Ok(())
    }

    fn hardlink(&mut self, target: &[u8], dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let (above, target) = split(target);
        let from = open_dir_in(std::os::fd::AsFd::as_fd(&*self.tree.root()), above)?;
        Ok(linkat(&from, target, dir, name, AtFlags::empty())?)
    }

    /// Owner first: chown(2) takes set-user-ID bits and capabilities away.
    fn attributes(&self, member: &Member, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let at = if name.is_empty() { &b"."[..] } else { name };
        let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
        chownat(dir, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if !matches!(member.kind, Kind::Symlink(_)) {
            chmodat(dir, at, Mode::from_raw_mode(member.mode), AtFlags::empty())?;
        }
        for (key, value) in &member.xattrs {
            self.tree.set_xattr(dir, at, key, value)?;
        }
        if member.kind != Kind::Dir {
            utimensat(dir, at, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Sets the folders' times.
    pub(super) fn finish(self) -> Result<Written> {
        let root = self.tree.root();
        for (path, mtime) in self.dirs.iter().rev() {
            let (above, name) = split(path);
            // A folder that a later member replaced has no times to set.
            let Ok(dir) = open_dir_in(std::os::fd::AsFd::as_fd(&*root), above) else { continue };
            let name = if name.is_empty() { &b"."[..] } else { name };
            if self.tree.lstat(&dir, name).is_ok_and(|s| s.is_some_and(|s| is_dir(&s))) {
                let set = utimensat(&dir, name, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW);
                set.map_err(|e| self.refused(path, e.into()))?;
            }
        }
        let implied = self.tree.implied.into_iter().collect();
        Ok(Written { size: self.size, implied, whiteouts: self.whiteouts.into_iter().collect() })
    }
}
