//! Finding and executing the program of a process.

use std::ffi::CString;
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
    path: String,
    program: Program,
}

impl Launch {
    /// Takes arguments and environment of a process; `home` is used when the environment has none.
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
        let env = process.env().as_deref().unwrap_or_default();
        let mut envp = env.iter().map(|e| text("process.env", e)).collect::<Result<Vec<CString>, _>>()?;
        let variable = |name: &str| env.iter().rev().find_map(|e| e.strip_prefix(name)?.strip_prefix('='));
        if variable("HOME").is_none() {
            envp.push(text("process.env", &format!("HOME={}", home()))?);
        }
        let path = variable("PATH").unwrap_or(DEFAULT_PATH).to_owned();
        Ok(Launch { name, path, program: Program::new(argv, envp) })
    }

    /// Replaces this process; returns only the reason why not.
    ///
    /// Folders of the search path are tried by executing, so that nothing can change between look and use.
    pub fn run(&self) -> Error {
        if self.name.contains('/') {
            return self.run_path();
        }
        for folder in self.path.split(':').filter(|f| f.starts_with('/')) {
            let candidate = format!("{folder}/{}", self.name);
            let Ok(path) = cstring(&candidate) else { continue };
            let error = self.program.execute(&path);
            match error.raw_os_error() {
                // It is there, so what is missing is its interpreter or loader.
                Some(libc::ENOENT) if stat(path.as_c_str()).is_ok() => return failed(&candidate, &error),
                Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ENAMETOOLONG | libc::ELOOP) => {}
                _ => return failed(&candidate, &error),
            }
        }
        let message = format!("exec: {:?}: executable file not found in $PATH", self.name);
        Error::Exec { message, not_found: true }
    }

    /// Says now what [`Launch::run`] would say later if there is no such program.
    pub fn find(&self) -> Result<(), Error> {
        let usable = |path: &str| match stat(path) {
            Ok(s) if s.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() => Err(nix::Error::EISDIR),
            Ok(_) => access(path, AccessFlags::X_OK),
            Err(e) => Err(e),
        };
        let name = &self.name;
        if name.contains('/') {
            return usable(name).map_err(|e| match e {
                nix::Error::ENOENT | nix::Error::ENOTDIR => Error::Exec {
                    message: format!("exec: {name:?}: stat {name}: {}", lower(&e.into())),
                    not_found: true,
                },
                nix::Error::EISDIR => {
                    Error::Exec { message: format!("exec: {name:?}: is a directory"), not_found: false }
                }
                e => {
                    Error::Exec { message: format!("exec: {name:?}: {}", lower(&e.into())), not_found: false }
                }
            });
        }
        let folders = || self.path.split(':').filter(|f| f.starts_with('/'));
        if folders().any(|folder| usable(&format!("{folder}/{name}")).is_ok()) {
            return Ok(());
        }
        let message = format!("exec: {name:?}: executable file not found in $PATH");
        Err(Error::Exec { message, not_found: true })
    }

    fn run_path(&self) -> Error {
        let name = &self.name;
        let Ok(path) = cstring(name) else {
            return Error::spec("process.args", "the program's name contains a zero byte");
        };
        let error = self.program.execute(&path);
        let (message, not_found) = match (error.raw_os_error(), stat(path.as_c_str())) {
            (_, Err(missing @ (nix::Error::ENOENT | nix::Error::ENOTDIR))) => {
                (format!("exec: {name:?}: stat {name}: {}", lower(&missing.into())), true)
            }
            (Some(libc::EACCES), Ok(s)) if s.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() => {
                (format!("exec: {name:?}: is a directory"), false)
            }
            (Some(libc::EACCES), _) => (format!("exec: {name:?}: permission denied"), false),
            _ => return failed(name, &error),
        };
        Error::Exec { message, not_found }
    }
}

fn failed(path: &str, error: &io::Error) -> Error {
    Error::Exec {
        message: format!("exec {path}: {}", lower(error)),
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
