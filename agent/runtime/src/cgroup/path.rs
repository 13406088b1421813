//! Paths of cgroups and small file operations on the cgroup file systems.

use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use super::Error;

/// Checks that a cgroup path is absolute, not the root and free of `.` and `..`; returns it without the first slash.
pub fn relative(path: &str) -> Result<&Path, Error> {
    if path.is_empty() {
        return Err(Error::Inherited);
    }
    let bad = || Error::BadPath(path.to_owned());
    let inner = Path::new(path.strip_prefix('/').ok_or_else(bad)?);
    let plain = inner.components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || inner.as_os_str().is_empty() || path.contains("/./") || path.contains('\0') {
        return Err(bad());
    }
    Ok(inner)
}

/// Writes a value into a file of a cgroup file system with one write, as the kernel wants it.
pub fn write(file: &Path, value: &str) -> Result<(), Error> {
    fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut f| f.write_all(value.as_bytes()))
        .map_err(|e| Error::io("write", file, e))
}

/// Reads a whole file of a cgroup file system.
pub fn read(file: &Path) -> Result<String, Error> {
    fs::read_to_string(file).map_err(|e| Error::io("read", file, e))
}

/// Reads a file that may not exist because its controller is off or the kernel is old.
pub fn read_optional(file: &Path) -> Result<Option<String>, Error> {
    match read(file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Creates one folder; true when it was not there before.
pub fn make(dir: &Path) -> Result<bool, Error> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("create cgroup", dir, e)),
    }
}

/// The names of the folders in `dir`, empty when it does not exist.
pub fn children(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// `dir` and every folder below it, the deepest first.
pub fn deepest_first(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for name in children(dir) {
        all.extend(deepest_first(&dir.join(name)));
    }
    all.push(dir.to_owned());
    all
}

/// The value of `key` in a file of lines `key value`.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_absolute_paths_pass() {
        assert_eq!(relative("/kubepods/pod1").unwrap(), Path::new("kubepods/pod1"));
        assert!(matches!(relative(""), Err(Error::Inherited)));
        for bad in ["/", "a/b", "/a/../b", "/..", "/a/./b", "//a"] {
            assert!(relative(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_key_is_matched_whole() {
        let text = "oom 1\noom_kill 2\noom_group_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom_group"), None);
    }
}
