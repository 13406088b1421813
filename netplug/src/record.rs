//! Records on disk: JSON files that are whole, whenever they are read.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Where a record is.
pub(crate) fn path(folder: &Path, stem: &str) -> PathBuf {
    folder.join(format!("{stem}.json"))
}

/// Writes a record beside its place and renames it into it. No fsync: after a crash of the machine the pods are others.
pub(crate) fn write<T: Serialize + ?Sized>(folder: &Path, stem: &str, value: &T) -> Result<()> {
    let path = path(folder, stem);
    let text = serde_json::to_vec(value).map_err(|e| Error::file("encode", &path, io::Error::from(e)))?;
    // No record's name begins with a dot, so this one is nobody's.
    let draft = folder.join(format!(".{stem}.tmp"));
    fs::write(&draft, text).map_err(|e| Error::file("write", &draft, e))?;
    fs::rename(&draft, &path).map_err(|e| Error::file("rename into place", &path, e))
}

/// Reads a record; none if there is none. One that makes no sense, or not to this version, is for the caller to judge.
pub(crate) fn read<T: DeserializeOwned>(folder: &Path, stem: &str) -> Result<Option<serde_json::Result<T>>> {
    let path = path(folder, stem);
    match fs::read(&path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file("read", path, e)),
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::file("remove", path, e)),
        _ => Ok(()),
    }
}
