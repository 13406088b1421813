//! A connection to a systemd manager: over its bus, or directly where there is none.
//!
//! The documented way is the bus. systemd's private socket, which systemctl uses, is for machines without one, such as
//! small images and early boot; go-systemd does the same.

use std::collections::VecDeque;
use std::env;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::message::{self, Body, Call, Incoming, Malformed, Writer};
use crate::cgroup::rights;
use nix::unistd::geteuid;

/// How long everything that is asked over one connection may take together.
const PATIENCE: Duration = Duration::from_secs(30);
/// An authentication has no longer lines than that.
const MAX_LINE: usize = 4096;

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
/// Where PID 1 itself listens.
const PRIVATE: &str = "/run/systemd/private";
/// The interface of systemd's manager.
pub const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// What may go wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The name of a D-Bus error, and what it says.
    #[error("{1} ({0})")]
    Refused(String, String),
    /// Nobody can be asked.
    #[error("connect to {0}: {1}")]
    Connect(String, io::Error),
    /// The connection broke, or took too long.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// Not understood.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Something that systemd says about a job.
    #[error("{0}")]
    Job(String),
}

impl Failure {
    /// Whether systemd refused with an error of this name.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Failure::Refused(name, _) if name.strip_prefix("org.freedesktop.systemd1.") == Some(wanted))
    }
}

/// Whose systemd manages the cgroups of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The machine's.
    System,
    /// That of a user, who is not root of the machine.
    User,
}

impl Whose {
    /// Root of a user namespace is a user of the machine if there is a manager for that one.
    pub fn own() -> Whose {
        let reachable = || user_places().iter().any(|place| matches!(&place.at, At::File(f) if f.exists()));
        if !geteuid().is_root() || (rights::rootless() && reachable()) { Whose::User } else { Whose::System }
    }
}

/// A connection.
pub struct Connection {
    stream: UnixStream,
    deadline: Instant,
    /// The manager's name on a bus.
    destination: &'static str,
    serial: u32,
    /// Signals that came while something else was waited for.
    signals: VecDeque<(String, Body)>,
}

impl Connection {
    /// Connects to the first place where somebody listens.
    pub fn open(whose: Whose) -> Result<Connection, Failure> {
        let places = match whose {
            Whose::System => system_places(),
            Whose::User => user_places(),
        };
        let mut failure = None;
        for place in places {
            match place.connect() {
                Ok(stream) => return Connection::greet(stream, place.bus),
                // The first one is what people know.
                Err(e) => failure = failure.or(Some(Failure::Connect(place.to_string(), e))),
            }
        }
        Err(failure.unwrap_or_else(|| {
            let none = "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR says where it is";
            Failure::Connect("the user's bus".to_owned(), io::Error::other(none))
        }))
    }

    /// Connects to PID 1 itself, before asking for a bus: when the machine ends, the bus may be gone already.
    #[cfg(feature = "agent")]
    pub fn to_pid_1() -> Result<Connection, Failure> {
        let private = Place::file(PRIVATE, false);
        let given = of_address(&env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default());
        let place = given.into_iter().next().unwrap_or(private);
        let stream = place.connect().map_err(|e| Failure::Connect(place.to_string(), e))?;
        Connection::greet(stream, place.bus)
    }

    fn greet(stream: UnixStream, bus: bool) -> Result<Connection, Failure> {
        let destination = if bus { SYSTEMD } else { "" };
        let deadline = Instant::now() + PATIENCE;
        let mut connection =
            Connection { stream, deadline, destination, serial: 0, signals: VecDeque::new() };
        connection.authenticate()?;
        if bus {
            connection.call(&of_bus("Hello", "", Writer::default()))?;
        }
        Ok(connection)
    }

    /// Without a name of our own the other side takes the socket's credentials: the number of a user differs in a user
    /// namespace.
    ///
    /// BEGIN comes at once, as from systemd's own clients, and not after the answer: PID 1 leaves what it has read together with
    /// BEGIN lying until more comes, and that may be the first call.
    fn authenticate(&mut self) -> Result<(), Failure> {
        self.stream.set_write_timeout(Some(PATIENCE))?;
        self.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let mut lines = Vec::new();
        // The other side says no more than that before it is asked.
        while !lines.ends_with(b"\r\n") || !lines.split(|b| *b == b'\n').any(|line| line.starts_with(b"OK "))
        {
            let mut part = [0; 256];
            let length = self.read(&mut part)?;
            lines.extend(&part[..length]);
            if length == 0 || lines.len() > MAX_LINE || lines.starts_with(b"REJECTED") {
                return Err(
                    io::Error::new(io::ErrorKind::PermissionDenied, "it refused to authenticate").into()
                );
            }
        }
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Failure> {
        let slow =
            || io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {} s", PATIENCE.as_secs()));
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(slow().into());
        }
        self.stream.set_read_timeout(Some(left))?;
        loop {
            match self.stream.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(slow().into()),
                other => return Ok(other?),
            }
        }
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        let mut filled = 0;
        while filled < into.len() {
            match self.read(&mut into[filled..])? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                length => filled += length,
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Incoming, Failure> {
        let mut fixed = [0; message::FIXED];
        self.fill(&mut fixed)?;
        let mut whole = vec![0; message::length(&fixed)?];
        whole[..message::FIXED].copy_from_slice(&fixed);
        self.fill(&mut whole[message::FIXED..])?;
        Ok(message::parse(&whole)?)
    }

    /// Calls a method and waits for the answer.
    pub fn call(&mut self, call: &Call<'_>) -> Result<Body, Failure> {
        self.serial += 1;
        self.stream.write_all(&call.marshal(self.serial))?;
        loop {
            match self.next()? {
                Incoming::Reply(serial, body) if serial == self.serial => return Ok(body),
                Incoming::Error(serial, name, text) if serial == self.serial => {
                    return Err(Failure::Refused(name, text));
                }
                Incoming::Signal(name, body) => self.signals.push_back((name, body)),
                _ => {}
            }
        }
    }

    /// Calls a method of systemd's manager.
    pub fn manager(&mut self, member: &str, signature: &str, body: Writer) -> Result<Body, Failure> {
        self.systemd(MANAGER, member, signature, body)
    }

    /// Calls a method of the manager's object.
    pub fn systemd(
        &mut self,
        interface: &str,
        member: &str,
        signature: &str,
        body: Writer,
    ) -> Result<Body, Failure> {
        let destination = self.destination;
        self.call(&Call { destination, path: SYSTEMD_PATH, interface, member, signature, body })
    }

    /// Asks for signals of the manager, which come from then on.
    pub fn subscribe(&mut self, signal: &str) -> Result<(), Failure> {
        if !self.destination.is_empty() {
            let mut rule = Writer::default();
            rule.text(&format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='{signal}'"));
            self.call(&of_bus("AddMatch", "s", rule))?;
        }
        match self.manager("Subscribe", "", Writer::default()) {
            Err(failure) if failure.is("AlreadySubscribed") => Ok(()),
            other => other.map(drop),
        }
    }

    /// The next signal.
    pub fn signal(&mut self) -> Result<(String, Body), Failure> {
        loop {
            if let Some(signal) = self.signals.pop_front() {
                return Ok(signal);
            }
            if let Incoming::Signal(name, body) = self.next()? {
                return Ok((name, body));
            }
        }
    }
}

fn of_bus<'a>(member: &'a str, signature: &'a str, body: Writer) -> Call<'a> {
    Call { destination: BUS, path: BUS_PATH, interface: BUS, member, signature, body }
}

/// A socket that may be there.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    at: At,
    /// There is a bus behind it, not the manager itself.
    bus: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum At {
    File(PathBuf),
    Abstract(Vec<u8>),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.at {
            At::File(path) => path.display().fmt(f),
            At::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

impl Place {
    fn file(path: impl Into<PathBuf>, bus: bool) -> Place {
        Place { at: At::File(path.into()), bus }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        match &self.at {
            At::File(path) => UnixStream::connect(path),
            At::Abstract(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        }
    }
}

fn system_places() -> Vec<Place> {
    let mut places = of_address(&env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default());
    if places.is_empty() {
        places.push(Place::file("/run/dbus/system_bus_socket", true));
    }
    places.push(Place::file(PRIVATE, false));
    places
}

fn user_places() -> Vec<Place> {
    let mut places = of_address(&env::var("DBUS_SESSION_BUS_ADDRESS").unwrap_or_default());
    let folder = env::var("XDG_RUNTIME_DIR").unwrap_or_default();
    if folder.starts_with('/') {
        places.push(Place::file(format!("{folder}/bus"), true));
        places.push(Place::file(format!("{folder}/systemd/private"), false));
    }
    places
}

/// The Unix sockets in a list of server addresses, see the D-Bus specification, "Server Addresses".
fn of_address(list: &str) -> Vec<Place> {
    let place = |address: &str| {
        let keys = address.strip_prefix("unix:")?;
        keys.split(',').find_map(|pair| match pair.split_once('=')? {
            ("path", path) => Some(At::File(String::from_utf8(unescape(path)?).ok()?.into())),
            ("abstract", name) => Some(At::Abstract(unescape(name)?)),
            _ => None,
        })
    };
    list.split(';').filter_map(place).map(|at| Place { at, bus: true }).collect()
}

/// `%20` is a space.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            plain.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            plain.push(byte);
        }
    }
    Some(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let places = of_address("tcp:host=x;unix:path=/run/user/1%200/bus,guid=5;unix:abstract=/tmp/a");
        let file = Place::file("/run/user/1 0/bus", true);
        assert_eq!(places, [file, Place { at: At::Abstract(b"/tmp/a".to_vec()), bus: true }]);
        for bad in ["", "unix:", "unix:path", "unix:path=%4", "unix:path=%zz", "unixexec:path=/bin/x"] {
            assert!(of_address(bad).is_empty(), "{bad}");
        }
    }

    /// A manager that says what it is told to, and what it was asked.
    fn manager(says: &'static [u8]) -> (UnixStream, std::thread::JoinHandle<Vec<u8>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            theirs.write_all(says).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            let mut asked = Vec::new();
            let _ = theirs.read_to_end(&mut asked);
            asked
        });
        (ours, thread)
    }

    #[test]
    fn authentication() {
        for (says, works) in [
            (&b"DATA\r\nOK 0123\r\n"[..], true),
            (b"OK 0123\r\n", true),
            (b"REJECTED EXTERNAL\r\n", false),
            (b"DATA\r\n", false),
            (b"", false),
        ] {
            let (ours, thread) = manager(says);
            let failure = Connection::greet(ours, false).err();
            assert_eq!(failure.is_none(), works, "{:?}: {failure:?}", String::from_utf8_lossy(says));
            let asked = thread.join().unwrap();
            assert_eq!(asked, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
        }
    }

    #[test]
    fn a_connection_that_breaks_is_an_error() {
        let (ours, thread) = manager(b"OK 0\r\n");
        let mut connection = Connection::greet(ours, false).unwrap();
        let failure = connection.manager("Subscribe", "", Writer::default()).unwrap_err();
        assert!(matches!(failure, Failure::Broken(_)), "{failure}");
        drop(connection);
        thread.join().unwrap();
    }
}
