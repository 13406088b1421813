//! What the command line of an OCI runtime asks for when the answer is a process in a container.
//!
//! Whoever executes a container's program can be made to execute itself in its place, and then lies open to the
//! container (CVE-2019-5736). So it is done by a small static program that nobody can write to, see
//! [`crate::shim::Program`]; it also starts in a third of the time that the one with the command line takes. The request
//! is handed over in a memory file, since options and processes may be longer than an argument; the words that callers of
//! runtimes use most are handed on as they are, see [`berth_entry`].

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;

use berth_entry::words::is_runtime;
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use super::handed::Handed;
use super::{CreateOptions, Error, ExecOptions, Log, RunOptions, Runtime, State, one_line, signal};
use crate::sys::process::{adopt_fd, forget_variable};

/// Has the number of the descriptor that the request is read from.
const VARIABLE: &str = "BERTH_OCI_REQUEST";

/// What is to be done. Relative paths start from the current folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Deed {
    /// See [`Runtime::create`].
    Create(CreateOptions),
    /// See [`Runtime::run`].
    Run(RunOptions),
    /// See [`Runtime::start`].
    Start {
        /// The container.
        id: String,
    },
    /// See [`Runtime::state`], which is printed.
    State {
        /// The container.
        id: String,
    },
    /// See [`Runtime::kill`].
    Kill {
        /// The container.
        id: String,
        /// Name or number of the signal.
        signal: String,
        /// To all processes.
        all: bool,
    },
    /// See [`Runtime::delete`].
    Delete {
        /// The container.
        id: String,
        /// Kill it before.
        force: bool,
    },
    /// See [`Runtime::exec`].
    Exec {
        /// The container.
        id: String,
        /// The process.
        process: Box<Process>,
        /// How it is started.
        options: ExecOptions,
    },
}

impl Deed {
    /// See [`CreateOptions::preserve_fds`].
    fn preserve_fds(&self) -> u32 {
        match self {
            Deed::Create(options) | Deed::Run(RunOptions { create: options, .. }) => options.preserve_fds,
            Deed::Exec { options, .. } => options.preserve_fds,
            _ => 0,
        }
    }
}

/// A deed with its circumstances.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The folder of the containers' records.
    pub root: PathBuf,
    /// Where errors and warnings go.
    pub log: Log,
    /// The exit code for an error.
    pub failure: u8,
    /// What is to be done.
    pub deed: Deed,
}

impl Request {
    /// Writes it to a memory file that execve leaves open, and returns that with the variable that tells of it.
    ///
    /// # Errors
    /// A path is not UTF-8, or memory files are not allowed.
    pub fn pack(&self) -> io::Result<(File, (&'static str, String))> {
        use std::os::fd::AsRawFd;
        let mut file = File::from(memfd_create(c"berth-oci-request", MFdFlags::empty())?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.seek(SeekFrom::Start(0))?;
        let number = file.as_raw_fd().to_string();
        Ok((file, (VARIABLE, number)))
    }

    /// Takes the request that was handed to this process, so that its descriptor is free again.
    fn unpack(number: &str) -> io::Result<Request> {
        let number: RawFd =
            number.parse().map_err(|_| io::Error::other(format!("{VARIABLE} is no number")))?;
        let mut bytes = Vec::new();
        File::from(adopt_fd(number)).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Does it, tells of warnings and errors, and returns the exit code.
    fn serve(self) -> u8 {
        // Before the folder is changed, which options start from.
        let root = std::path::absolute(&self.root).unwrap_or(self.root);
        let mut runtime = Runtime::new(&root);
        runtime.handed = Handed::look(self.deed.preserve_fds());
        let result = self.deed.serve(&mut runtime);
        runtime.take_warnings().iter().for_each(|warning| self.log.warning(warning));
        match result {
            Ok(code) => code,
            Err(error) => {
                self.log.error(&one_line(&error));
                self.failure
            }
        }
    }
}

impl Deed {
    /// Does it and returns the exit code of the process. Warnings are kept by `runtime`.
    fn serve(self, runtime: &mut Runtime) -> Result<u8, Error> {
        match self {
            Deed::Create(options) => runtime.create(&options.resolve()?)?,
            Deed::Run(options) => {
                let create = options.create.resolve()?;
                return runtime.run(&RunOptions { create, ..options });
            }
            Deed::Start { id } => runtime.start(&id)?,
            Deed::State { id } => print(&runtime.state(&id)?)?,
            Deed::Kill { id, signal, all } => runtime.kill(&id, signal::number(&signal)?, all)?,
            Deed::Delete { id, force } => runtime.delete(&id, force)?,
            Deed::Exec { id, process, options } => return runtime.exec(&id, *process, &options),
        }
        Ok(0)
    }
}

fn print(state: &State) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(state)
        .map_err(|source| Error::Json { path: "standard output".into(), source })?;
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Error::sys("write to", "standard output"))
}

/// Serves the request that this process was started for, and returns its exit code; nothing when there is none. Must be called
/// before any thread is started.
pub fn serve_request() -> Option<u8> {
    let request = match std::env::var(VARIABLE) {
        Ok(number) => {
            // It is nothing to hooks, which have the rest.
            forget_variable(VARIABLE);
            Request::unpack(&number).map_err(|error| format!("read the request: {error}"))
        }
        Err(_) => {
            let mut words = std::env::args_os();
            if !words.next().is_some_and(|called| is_runtime(called.as_encoded_bytes())) {
                return None;
            }
            // Those who executed this have read them by the same rules.
            Request::read(words)
                .ok_or_else(|| "the words are for berth, not for its small program".to_owned())
        }
    };
    // Executed through a descriptor, its name would be a number.
    let _ = nix::sys::prctl::set_name(c"berth-oci");
    Some(match request {
        Ok(request) => request.serve(),
        Err(error) => {
            eprintln!("berth-oci: error: {error}");
            1
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::path::Path;

    use super::*;
    use crate::oci::LogFormat;

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        let deed = Deed::Exec {
            id: "c".into(),
            process: serde_json::from_str(r#"{"cwd": "/", "user": {"uid": 1, "gid": 2}, "args": ["x"]}"#)
                .unwrap(),
            options: ExecOptions {
                detach: true,
                pid_file: Some("/p".into()),
                console_socket: None,
                pidfd_socket: None,
                preserve_fds: 3,
                ignore_paused: false,
                sub_cgroups: Vec::new(),
            },
        };
        let log = Log::new(Some("/log".into()), LogFormat::Json, false);
        let request = Request { root: "/root".into(), log, failure: 255, deed };
        let (file, (_, number)) = request.pack().unwrap();
        // The number is the reader's from here on.
        let _ = file.into_raw_fd();
        let read = Request::unpack(&number).unwrap();
        assert_eq!(format!("{read:?}"), format!("{request:?}"));
        assert!(!Path::new(&format!("/proc/self/fd/{number}")).exists());
        assert!(Request::unpack("x").is_err());
    }
}
