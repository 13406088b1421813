//! Words that are handed on as they are, to a request.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use berth_entry::words::{self, Name, Told, Verb};

use super::{CreateOptions, Deed, Log, LogFormat, Request, RunOptions};
use crate::cgroup::Driver;

/// Where the records of containers are without `--root`.
pub const ROOT: &str = "/run/berth-oci";

impl Request {
    /// The request that the words after the program's name make, if they are [of the usual kind](berth_entry::words).
    pub fn read(words: impl Iterator<Item = OsString>) -> Option<Request> {
        let words: Vec<OsString> = words.collect();
        let mut given = Given::default();
        words::read(words.iter().map(|word| word.as_encoded_bytes()), |told| given.take(told))
            .then(|| given.request())?
    }
}

/// What the words have said.
#[derive(Default)]
struct Given {
    verb: Option<Verb>,
    root: Option<PathBuf>,
    log: Option<PathBuf>,
    json: bool,
    debug: bool,
    systemd: bool,
    bundle: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    preserve_fds: u32,
    detach: bool,
    keep: bool,
    all: bool,
    force: bool,
    id: String,
    signal: Option<String>,
}

impl Given {
    fn take(&mut self, told: Told<'_>) {
        let path = |value: &[u8]| Some(PathBuf::from(OsStr::from_bytes(value)));
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        match told {
            Told::Verb(verb) => self.verb = Some(verb),
            Told::Id(id) => self.id = text(id),
            Told::Signal(signal) => self.signal = Some(text(signal)),
            Told::Option(name, value) => match name {
                Name::Root => self.root = path(value),
                Name::Log => self.log = path(value),
                Name::LogFormat => self.json = value == b"json",
                Name::Debug => self.debug = true,
                Name::SystemdCgroup => self.systemd = true,
                Name::Bundle => self.bundle = path(value),
                Name::ConsoleSocket => self.console_socket = path(value),
                Name::PidfdSocket => self.pidfd_socket = path(value),
                Name::PidFile => self.pid_file = path(value),
                // It has so few digits that it fits.
                Name::PreserveFds => self.preserve_fds = text(value).parse().unwrap_or_default(),
                Name::Detach => self.detach = true,
                Name::Keep => self.keep = true,
                Name::All => self.all = true,
                Name::Force => self.force = true,
                Name::Rootless | Name::NoNewKeyring | Name::NoSubreaper => {}
            },
        }
    }

    fn request(self) -> Option<Request> {
        let create = |given: Given| CreateOptions {
            id: given.id,
            bundle: given.bundle.unwrap_or_else(|| ".".into()),
            pid_file: given.pid_file,
            console_socket: given.console_socket,
            pidfd_socket: given.pidfd_socket,
            preserve_fds: given.preserve_fds,
            cgroup_driver: if given.systemd { Driver::Systemd } else { Driver::Cgroupfs },
            no_pivot: false,
        };
        let root = self.root.clone().unwrap_or_else(|| ROOT.into());
        let format = if self.json { LogFormat::Json } else { LogFormat::Text };
        let log = Log::new(self.log.clone(), format, self.debug);
        let deed = match self.verb? {
            Verb::Create => Deed::Create(create(self)),
            Verb::Run => Deed::Run(RunOptions { detach: self.detach, keep: self.keep, create: create(self) }),
            Verb::Start => Deed::Start { id: self.id },
            Verb::State => Deed::State { id: self.id },
            Verb::Kill => Deed::Kill {
                id: self.id,
                signal: self.signal.unwrap_or_else(|| "SIGTERM".into()),
                all: self.all,
            },
            Verb::Delete => Deed::Delete { id: self.id, force: self.force },
        };
        Some(Request { root, log, failure: 1, deed })
    }
}
