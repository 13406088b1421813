//! One file: whether it is a manifest, whether it has changed, what it says.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::manifest::{self, Cause, Context, ManifestError, Parsed};

/// Largest manifest that is read.
const MAX_SIZE: u64 = 10 << 20;
/// `O_NONBLOCK`: opening a FIFO that somebody put there must not block.
const O_NONBLOCK: i32 = 0o4000;

/// What tells a file from its earlier self without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stamp {
    File { mtime: (i64, i64), size: u64, inode: (u64, u64), mode: u32 },
    Unreadable(io::ErrorKind),
}

/// The stamp of a file, links followed.
pub(super) fn stamp(path: &Path) -> Stamp {
    match fs::metadata(path) {
        Ok(meta) => Stamp::File {
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: meta.size(),
            inode: (meta.dev(), meta.ino()),
            mode: meta.mode(),
        },
        Err(error) => Stamp::Unreadable(error.kind()),
    }
}

/// The manifests in a folder.
pub(super) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if is_ignored(&path) {
            continue;
        }
        // The kind comes with the name, without a call for each file: an idle node does little else than this.
        let kind = entry.file_type();
        // A dangling link is listed, so that its error is shown; a folder, socket or device is not.
        let other = || fs::metadata(&path).is_ok_and(|meta| !meta.is_file());
        if kind.is_ok_and(|kind| kind.is_file()) || !other() {
            files.push(path);
        }
    }
    Ok(files)
}

/// Whether a name says that the file is not meant to be read: hidden files, what editors write beside the file that they edit, what
/// package managers leave behind.
pub(super) fn is_ignored(path: &Path) -> bool {
    let Some(name) = path.file_name() else { return true };
    let name = name.to_string_lossy();
    let lower = name.to_ascii_lowercase();
    let suffixes = [
        "~",
        ".swp",
        ".swo",
        ".swx",
        ".tmp",
        ".temp",
        ".part",
        ".bak",
        ".old",
        ".orig",
        ".rej",
        ".save",
        ".rpmnew",
        ".rpmsave",
        ".rpmorig",
        ".pacnew",
        ".pacsave",
        ".ucf-new",
        ".ucf-old",
        ".ucf-dist",
        "___jb_tmp___",
        "___jb_old___",
    ];
    name.starts_with('.')
        || (name.starts_with('#') && name.ends_with('#'))
        || name == "4913"
        || lower.contains(".dpkg-")
        || suffixes.iter().any(|suffix| lower.ends_with(suffix))
}

/// Whether it is a link, symbolic or an additional hard one: such a file is complete as soon as it is there.
pub(super) fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_symlink() || meta.nlink() > 1)
}

/// Whether the file was made just now and has nothing in it yet: an event comes when its writer closes it.
pub(super) fn is_being_made(path: &Path, just_now: Duration) -> bool {
    let young = |meta: &fs::Metadata| {
        meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age < just_now)
    };
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0 && young(&meta))
}

/// Reads and checks a file. None when there is no such file (any more) or it is none.
pub(super) fn load(path: &Path, context: &Context) -> Option<Parsed> {
    match read(path) {
        Ok(Some(text)) => Some(manifest::parse(&text, Some(path), context)),
        Ok(None) => None,
        Err((reason, hint)) => {
            let error = ManifestError {
                file: Some(path.to_owned()),
                reason,
                hint: hint.map(str::to_owned),
                cause: Cause::Unreadable,
                ..ManifestError::default()
            };
            Some(Parsed { objects: Vec::new(), errors: vec![error] })
        }
    }
}

fn read(path: &Path) -> Result<Option<String>, (String, Option<&'static str>)> {
    let failed = |error: io::Error| (format!("cannot read the file: {error}"), None);
    let file = match fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(("the link leads nowhere".to_owned(), None));
        }
        Err(error) => return Err(failed(error)),
    };
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Ok(None);
    }
    let bytes = read_at_most(file, MAX_SIZE).map_err(failed)?;
    let Some(bytes) = bytes else {
        return Err((format!("the file is larger than {} MiB", MAX_SIZE >> 20), None));
    };
    if bytes.is_empty() {
        return Err(("the file is empty".to_owned(), Some("remove the file to stop its pods")));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => {
            let line =
                error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count()
                    + 1;
            Err((format!("the file is not UTF-8 text (line {line})"), None))
        }
    }
}

/// The content, none if there is more of it.
fn read_at_most(file: File, max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max).then_some(bytes))
}
