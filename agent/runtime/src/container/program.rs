//! Finding and executing the program of a process.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;

use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, access};
use oci_spec::runtime::Process;

use super::Error;
use crate::sys::cstring;
use crate::sys::process::Program;

/// What shells use when nothing is said.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, ready to be executed.
pub struct Launch {
    name: String,
    /// Where it may be, in the order of the search path; the name itself when that is a path. Made beforehand: where it is
    /// executed, nothing may be allocated (see [`super::exec`]).
    candidates: Vec<CString>,
    program: Program,
}

impl Launch {
    /// Takes arguments and environment of a process, see [`environment`].
    pub fn new(process: &Process, home: impl FnOnce() -> String) -> Result<Launch, Error> {
        let text = |field: &str, value: &str| {
            cstring(value).map_err(|_| Error::spec(field, format!("{value:?} contains a zero byte")))
        };
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().cloned().unwrap_or_default();
        if name.is_empty() {
            return Err(Error::spec("process.args", "there is no program to run"));
        }
        let argv = args.iter().map(|a| text("process.args", a)).collect::<Result<Vec<_>, _>>()?;
        let env = environment(process, home);
        let envp = env.iter().map(|e| text("process.env", e)).collect::<Result<Vec<CString>, _>>()?;
        let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let candidates =
            if name.contains('/') { vec![text("process.args", &name)?] } else { within(path, &name) };
        Ok(Launch { name, candidates, program: Program::new(argv, envp) })
    }

    /// Replaces this process; returns only the reason why not.
    ///
    /// Folders of the search path are tried by executing, so that nothing can change between look and use.
    pub fn run(&self) -> Error {
        if self.name.contains('/') {
            return self.run_path();
        }
        for path in &self.candidates {
            let error = self.program.execute(path);
            match error.raw_os_error() {
                // It is there, so what is missing is its interpreter or loader.
                Some(libc::ENOENT) if stat(path.as_c_str()).is_ok() => return failed(path, &error),
                Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ENAMETOOLONG | libc::ELOOP) => {}
                _ => return failed(path, &error),
            }
        }
        let message = format!("exec: {:?}: executable file not found in $PATH", self.name);
        Error::Exec { message, not_found: true }
    }

    /// Says now what [`Launch::run`] would say later if there is no such program.
    pub fn find(&self) -> Result<(), Error> {
        let usable = |path: &CStr| match stat(path) {
            Ok(s) if s.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() => Err(nix::Error::EISDIR),
            Ok(_) => access(path, AccessFlags::X_OK),
            Err(e) => Err(e),
        };
        let name = &self.name;
        if name.contains('/') {
            return self.candidates.iter().try_for_each(|path| usable(path)).map_err(|e| match e {
                nix::Error::ENOENT | nix::Error::ENOTDIR => Error::Exec {
                    message: format!("exec: {name:?}: stat {name}: {}", lower(&e.into())),
                    not_found: true,
                },
                nix::Error::EISDIR => Error::Exec { message: directory(name), not_found: false },
                e => {
                    Error::Exec { message: format!("exec: {name:?}: {}", lower(&e.into())), not_found: false }
                }
            });
        }
        if self.candidates.iter().any(|path| usable(path).is_ok()) {
            return Ok(());
        }
        let message = format!("exec: {name:?}: executable file not found in $PATH");
        Err(Error::Exec { message, not_found: true })
    }

    fn run_path(&self) -> Error {
        let name = &self.name;
        let Some(path) = self.candidates.first() else {
            return Error::spec("process.args", "there is no program to run");
        };
        let error = self.program.execute(path);
        let (message, not_found) = match (error.raw_os_error(), stat(path.as_c_str())) {
            (_, Err(missing @ (nix::Error::ENOENT | nix::Error::ENOTDIR))) => {
                (format!("exec: {name:?}: stat {name}: {}", lower(&missing.into())), true)
            }
            (Some(libc::EACCES), Ok(s)) if s.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() => {
                (directory(name), false)
            }
            (Some(libc::EACCES), _) => (format!("exec: {name:?}: permission denied"), false),
            _ => return failed(path, &error),
        };
        Error::Exec { message, not_found }
    }
}

/// The environment of a process: of several values of a variable the last, since most programs would find the first, which
/// an `exec` with another value wants replaced. `home` is used when there is none or the last one is empty, as in runc.
pub fn environment(process: &Process, home: impl FnOnce() -> String) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or(entry.len(), |(name, _)| name.len());
    let mut seen: HashSet<&str> = HashSet::new();
    let given = process.env().iter().flatten();
    let mut kept: Vec<&String> = given.rev().filter(|e| seen.insert(&e[..name(e)])).collect();
    kept.reverse();
    kept.retain(|e| *e != "HOME=");
    let missing = !kept.iter().any(|e| &e[..name(e)] == "HOME");
    let missing = missing.then(|| format!("HOME={}", home()));
    kept.into_iter().cloned().chain(missing).collect()
}

/// The places that a search path names. What is not absolute in it is left out.
fn within(path: &str, name: &str) -> Vec<CString> {
    let folders = path.split(':').filter(|f| f.starts_with('/'));
    folders.filter_map(|folder| cstring(format!("{folder}/{name}")).ok()).collect()
}

/// With the words by which podman takes a message for one of a program that may not be run.
fn directory(name: &str) -> String {
    format!("exec: {name:?}: is a directory: permission denied")
}

fn failed(path: &CStr, error: &io::Error) -> Error {
    Error::Exec {
        message: format!("exec {}: {}", path.to_string_lossy(), lower(error)),
        not_found: error.raw_os_error() == Some(libc::ENOENT),
    }
}

/// The kernel's reason in the words that other runtimes use: lower case, without the number.
fn lower(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        Some(number) => nix::Error::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(env: &[&str]) -> Vec<String> {
        let process = serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": env});
        environment(&serde_json::from_value(process).unwrap(), || "/root".to_owned())
    }

    #[test]
    fn the_last_value_of_a_variable_is_the_only_one() {
        assert_eq!(of(&["A=1", "HOME=/h", "B=2", "A=3=4"]), ["HOME=/h", "B=2", "A=3=4"]);
        assert_eq!(of(&["A", "A=", "A"]), ["A", "HOME=/root"]);
    }

    #[test]
    fn an_empty_home_is_none() {
        assert_eq!(of(&["HOME=", "A=1"]), ["A=1", "HOME=/root"]);
        assert_eq!(of(&["HOME=/a", "A=1", "HOME="]), ["A=1", "HOME=/root"]);
        assert_eq!(of(&["HOME=", "HOME=/a"]), ["HOME=/a"]);
    }
}
