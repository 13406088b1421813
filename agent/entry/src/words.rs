//! The words, read strictly: only what is certain to mean what it seems to mean. Whatever else there is, from a wrong option
//! to `--help`, is for the command line proper, which knows all words and has an answer to the wrong ones.

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verb {
    /// Make a container.
    Create = 1,
    /// Make, start, wait, delete.
    Run = 2,
    /// Let a container's program run.
    Start = 4,
    /// Tell how it is.
    State = 8,
    /// Send a signal.
    Kill = 16,
    /// Remove it.
    Delete = 32,
}

/// An option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Name {
    /// Folder for the records of containers.
    Root,
    /// File for errors and warnings.
    Log,
    /// `text` or `json`.
    LogFormat,
    /// Warnings are also shown.
    Debug,
    /// Systemd makes cgroups.
    SystemdCgroup,
    /// Means nothing.
    Rootless,
    /// Folder of the configuration.
    Bundle,
    /// Socket for a terminal.
    ConsoleSocket,
    /// Socket for a process.
    PidfdSocket,
    /// File for a process id.
    PidFile,
    /// Means nothing.
    NoNewKeyring,
    /// A number of descriptors.
    PreserveFds,
    /// Do not wait.
    Detach,
    /// Do not delete.
    Keep,
    /// Means nothing.
    NoSubreaper,
    /// Every process.
    All,
    /// Kill before.
    Force,
}

/// What words say, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// The verb.
    Verb(Verb),
    /// An option and its value, which is empty for those that have none.
    Option(Name, &'a [u8]),
    /// The container.
    Id(&'a [u8]),
    /// The signal of `kill`.
    Signal(&'a [u8]),
}

/// What may follow an option.
#[derive(Clone, Copy)]
enum Value {
    Nothing,
    Text,
    Number,
    Form,
    Whether,
}

struct Rule {
    long: &'static [u8],
    /// 0 when there is none.
    short: u8,
    name: Name,
    value: Value,
    /// The verbs that it belongs to, added up; 0 when it stands before the verb.
    verbs: u8,
}

const CREATE: u8 = Verb::Create as u8 | Verb::Run as u8;

const fn rule(long: &'static [u8], short: u8, name: Name, value: Value, verbs: u8) -> Rule {
    Rule { long, short, name, value, verbs }
}

static RULES: [Rule; 17] = [
    rule(b"root", 0, Name::Root, Value::Text, 0),
    rule(b"log", 0, Name::Log, Value::Text, 0),
    rule(b"log-format", 0, Name::LogFormat, Value::Form, 0),
    rule(b"debug", 0, Name::Debug, Value::Nothing, 0),
    rule(b"systemd-cgroup", 0, Name::SystemdCgroup, Value::Nothing, 0),
    rule(b"rootless", 0, Name::Rootless, Value::Whether, 0),
    rule(b"bundle", b'b', Name::Bundle, Value::Text, CREATE),
    rule(b"console-socket", 0, Name::ConsoleSocket, Value::Text, CREATE),
    rule(b"pidfd-socket", 0, Name::PidfdSocket, Value::Text, CREATE),
    rule(b"pid-file", 0, Name::PidFile, Value::Text, CREATE),
    rule(b"no-new-keyring", 0, Name::NoNewKeyring, Value::Nothing, CREATE),
    rule(b"preserve-fds", 0, Name::PreserveFds, Value::Number, CREATE),
    rule(b"detach", b'd', Name::Detach, Value::Nothing, Verb::Run as u8),
    rule(b"keep", 0, Name::Keep, Value::Nothing, Verb::Run as u8),
    rule(b"no-subreaper", 0, Name::NoSubreaper, Value::Nothing, Verb::Run as u8),
    rule(b"all", b'a', Name::All, Value::Nothing, Verb::Kill as u8),
    rule(b"force", b'f', Name::Force, Value::Nothing, Verb::Delete as u8),
];

static VERBS: [(&[u8], Verb); 6] = [
    (b"create", Verb::Create),
    (b"run", Verb::Run),
    (b"start", Verb::Start),
    (b"state", Verb::State),
    (b"kill", Verb::Kill),
    (b"delete", Verb::Delete),
];

/// The name by which a program is an OCI runtime.
const RUNTIME: &[u8] = b"berth-oci";

/// Whether a program that is called like this is an OCI runtime.
pub fn is_runtime(called: &[u8]) -> bool {
    let folder = called.len().wrapping_sub(RUNTIME.len());
    match called.get(folder..) {
        Some(name) => same(name, RUNTIME) && (folder == 0 || called.get(folder - 1) == Some(&b'/')),
        None => false,
    }
}

/// Reads the words after the program's name, and tells what they say. False when they are not of the kind that this
/// understands; what was told until then is worth nothing.
pub fn read<'a>(mut words: impl Iterator<Item = &'a [u8]>, mut tell: impl FnMut(Told<'a>)) -> bool {
    let mut verb = None;
    let mut seen = 0_u32;
    let mut places = 0;
    while let Some(word) = words.next() {
        if !is_plain(word) {
            return false;
        }
        let told = if word.first() == Some(&b'-') {
            let Some((rule, attached)) = option(word, verb) else { return false };
            let bit = 1_u32 << rule.name as u8;
            if seen & bit != 0 {
                return false;
            }
            seen |= bit;
            let Some(value) = value(rule.value, attached, &mut words) else { return false };
            Told::Option(rule.name, value)
        } else if verb.is_none() {
            verb = find_verb(word);
            let Some(verb) = verb else { return false };
            Told::Verb(verb)
        } else {
            places += 1;
            match places {
                1 => Told::Id(word),
                2 if verb == Some(Verb::Kill) => Told::Signal(word),
                _ => return false,
            }
        };
        tell(told);
    }
    places > 0
}

/// The rule for a word that starts with a dash, and the value that follows its equals sign.
fn option(word: &[u8], verb: Option<Verb>) -> Option<(&'static Rule, Option<&[u8]>)> {
    let (name, attached, long) = match word {
        [b'-', b'-', name @ ..] => {
            let (name, attached) = split(name);
            (name, attached, true)
        }
        [b'-', name @ ..] => (name, None, false),
        _ => return None,
    };
    let of = match verb {
        Some(verb) => verb as u8,
        None => 0,
    };
    for rule in &RULES {
        let here = if of == 0 { rule.verbs == 0 } else { rule.verbs & of != 0 };
        let named = if long { same(name, rule.long) } else { rule.short != 0 && same(name, &[rule.short]) };
        if here && named {
            return Some((rule, attached));
        }
    }
    None
}

fn value<'a>(
    kind: Value,
    attached: Option<&'a [u8]>,
    words: &mut impl Iterator<Item = &'a [u8]>,
) -> Option<&'a [u8]> {
    if matches!(kind, Value::Nothing) {
        return if attached.is_none() { Some(&[]) } else { None };
    }
    let value = match attached {
        Some(value) => value,
        None => words.next()?,
    };
    let fits = match kind {
        // What it stands for is asked for by the caller, who has a number of the usual size.
        Value::Number => value.len() < 6 && all(value, |byte| byte.is_ascii_digit()),
        Value::Form => same(value, b"text") || same(value, b"json"),
        Value::Whether => same(value, b"true") || same(value, b"false") || same(value, b"auto"),
        Value::Text | Value::Nothing => true,
    };
    if fits && is_plain(value) && value.first() != Some(&b'-') { Some(value) } else { None }
}

fn find_verb(word: &[u8]) -> Option<Verb> {
    for (name, verb) in &VERBS {
        if same(word, name) {
            return Some(*verb);
        }
    }
    None
}

/// What is before and after the first equals sign.
fn split(word: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut place = 0;
    while let Some(byte) = word.get(place) {
        if *byte == b'=' {
            return (word.get(..place).unwrap_or(word), word.get(place + 1..));
        }
        place += 1;
    }
    (word, None)
}

/// Printable ASCII, and some of it.
fn is_plain(word: &[u8]) -> bool {
    !word.is_empty() && all(word, |byte| matches!(byte, b' '..=b'~'))
}

fn all(word: &[u8], fits: impl Fn(u8) -> bool) -> bool {
    for byte in word {
        if !fits(*byte) {
            return false;
        }
    }
    true
}

/// Whether two are the same. Not by `==`, which calls `memcmp`.
fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut place = 0;
    while let (Some(a), Some(b)) = (one.get(place), other.get(place)) {
        if a != b {
            return false;
        }
        place += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Option<Vec<String>> {
        let mut list = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let known = read(line.split('|').map(str::as_bytes), |told| {
            list.push(match told {
                Told::Verb(verb) => format!("{verb:?}"),
                Told::Option(name, []) => format!("{name:?}"),
                Told::Option(name, value) => format!("{name:?}={}", text(value)),
                Told::Id(id) => format!("id={}", text(id)),
                Told::Signal(signal) => format!("signal={}", text(signal)),
            });
        });
        known.then_some(list)
    }

    #[test]
    fn words_of_callers() {
        let conmon =
            "--systemd-cgroup|--log-format=json|--log|/b/oci-log|create|--bundle|/b|--pid-file|/b/pid|c1";
        let wanted = [
            "SystemdCgroup",
            "LogFormat=json",
            "Log=/b/oci-log",
            "Create",
            "Bundle=/b",
            "PidFile=/b/pid",
            "id=c1",
        ];
        assert_eq!(told(conmon).as_deref(), Some(wanted.map(String::from).as_slice()));
        let wanted = ["Root=/r", "Run", "Bundle=b", "Detach", "PreserveFds=3", "id=c"];
        assert_eq!(
            told("--root|/r|run|-b|b|-d|--preserve-fds=3|c").as_deref(),
            Some(wanted.map(String::from).as_slice())
        );
        let wanted = ["Kill", "All", "id=c", "signal=KILL"];
        assert_eq!(told("kill|--all|c|KILL").as_deref(), Some(wanted.map(String::from).as_slice()));
        assert!(told("delete|c|--force").is_some());
        assert!(told("start|c").is_some());
        assert!(told("state|c").is_some());
    }

    #[test]
    fn what_is_left_to_the_command_line() {
        for line in [
            "",
            "start",
            "--help",
            "start|--help",
            "start|-h",
            "list",
            "exec|c|true",
            "start|a|b",
            "kill|a|b|c",
            "kill|c|-9",
            "kill|--all=yes|c",
            "delete|-f|-f|c",
            "delete|-ff|c",
            "delete|-f=1|c",
            "delete|--forc|c",
            "delete|--force|--|c",
            "delete|-|c",
            "start|--root|/r|c",
            "--root",
            "--root=|start|c",
            "--root|--log|start|c",
            "--rootless|maybe|start|c",
            "--rootless||start|c",
            "--log-format|xml|start|c",
            "--force|delete|c",
            "run|--preserve-fds|-1|c",
            "run|--preserve-fds|x|c",
            "run|--preserve-fds|123456|c",
            "run|-bdir|c",
            "create|--detach|c",
            "run|--no-pivot|c",
            "start|\u{e4}",
            "start|a\nb",
        ] {
            assert_eq!(told(line), None, "{line}");
        }
    }

    #[test]
    fn names_of_the_runtime() {
        for name in ["berth-oci", "/usr/bin/berth-oci", "./berth-oci"] {
            assert!(is_runtime(name.as_bytes()), "{name}");
        }
        for name in ["", "berth", "xberth-oci", "/berth-oci/x", "erth-oci", "/usr/bin/berth-oci2"] {
            assert!(!is_runtime(name.as_bytes()), "{name}");
        }
    }
}
