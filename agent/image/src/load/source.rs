//! The files of an archive, by name.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::error::Context;
use crate::store::{Blob, BlobWriter, Layout, Unnamed, read_document};
use crate::stream::{Bounded, decompress};
use crate::unpack::{MAX_HEADERS, clean};
use crate::{Error, Result};

pub(super) struct Source {
    files: Files,
    /// What was taken, by the name it was asked for.
    taken: HashMap<String, Blob>,
}

enum Files {
    /// Files of a tar, in the store's `tmp` and gone with this.
    Tar {
        files: HashMap<String, Unnamed>,
        links: HashMap<String, String>,
    },
    Folder {
        dir: OwnedFd,
        path: PathBuf,
    },
}

impl Source {
    /// Reads a tar to its end. Only plain files count, and links between them, which old `docker save` writes.
    pub(super) fn unpack(archive: impl Read, layout: &Layout) -> Result<Source> {
        let broken = |e: std::io::Error| Error::corrupt("archive", e);
        let (_, plain) = decompress(archive).map_err(broken)?;
        let (stream, allowance) = Bounded::new(plain, u64::MAX);
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let mut archive = tar::Archive::new(stream);
        let mut entries = archive.entries().map_err(broken)?;
        loop {
            allowance.grant(MAX_HEADERS);
            let Some(mut entry) = entries.next().transpose().map_err(broken)? else { break };
            allowance.grant(u64::MAX);
            let name = text(clean(&entry.path_bytes())?)?;
            let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let mut writer = BlobWriter::new(layout)?;
                    writer.fill_from_archive(&mut entry, &name)?;
                    files.insert(name, writer.finish());
                }
                tar::EntryType::Symlink => {
                    let beside = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let target = [beside.as_bytes(), b"/", &target].concat();
                    links.insert(name, text(clean(&target)?)?);
                }
                tar::EntryType::Link => {
                    links.insert(name, text(clean(&target)?)?);
                }
                _ => {}
            }
        }
        Ok(Source { files: Files::Tar { files, links }, taken: HashMap::new() })
    }

    /// The files of a folder. Links in it do not lead out of it.
    pub(super) fn folder(path: &Path) -> Result<Source> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty()).context("open", path)?;
        Ok(Source { files: Files::Folder { dir, path: path.to_owned() }, taken: HashMap::new() })
    }

    /// Reads a small file whole; None if there is none of that name.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let file = match &self.files {
            Files::Tar { files, links } => match files.get(follow(links, name)) {
                Some(unnamed) => Some(unnamed.open()?),
                None => None,
            },
            Files::Folder { dir, path } => open_in(dir, path, name)?,
        };
        file.map(|file| read_document(file, name)).transpose()
    }

    /// Takes a file out; None if there is none of that name.
    pub(super) fn take(&mut self, name: &str, layout: &Layout) -> Result<Option<Unnamed>> {
        let unnamed = match &mut self.files {
            Files::Tar { files, links } => files.remove(follow(links, name)),
            Files::Folder { dir, path } => match open_in(dir, path, name)? {
                Some(file) => {
                    let mut writer = BlobWriter::new(layout)?;
                    writer.fill(file, name)?;
                    Some(writer.finish())
                }
                None => None,
            },
        };
        if let Some(unnamed) = &unnamed {
            self.taken.insert(self.real(name), unnamed.blob.clone());
        }
        Ok(unnamed)
    }

    /// What was taken under that name before.
    pub(super) fn taken(&self, name: &str) -> Option<Blob> {
        self.taken.get(&self.real(name)).cloned()
    }

    fn real(&self, name: &str) -> String {
        match &self.files {
            Files::Tar { links, .. } => follow(links, name).to_owned(),
            Files::Folder { .. } => name.to_owned(),
        }
    }
}

fn text(name: Vec<u8>) -> Result<String> {
    String::from_utf8(name).map_err(|e| Error::corrupt("archive", format!("a name in it is not UTF-8: {e}")))
}

/// A link may lead to a link, but not in a circle.
fn follow<'a>(links: &'a HashMap<String, String>, name: &'a str) -> &'a str {
    let mut name = name.strip_prefix("./").unwrap_or(name);
    for _ in 0..16 {
        match links.get(name) {
            Some(target) => name = target,
            None => break,
        }
    }
    name
}

fn open_in(dir: &OwnedFd, path: &Path, name: &str) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match openat2(dir, name, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(Error::io("open", path.join(name), e.into())),
    }
}
