//! The shim's command line.

use std::ffi::OsString;
use std::path::PathBuf;

use super::pod_users::IdRange;

/// What a shim is told when it is started.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Args {
    /// Only say what this is.
    pub version: bool,
    /// The pod's run folder.
    pub dir: PathBuf,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub net_new: bool,
    /// Join this network namespace.
    pub net_join: Option<PathBuf>,
    pub ipc_new: bool,
    pub uts_new: bool,
    /// The pod has a user namespace of its own with these ids of the host.
    pub users: Option<IdRange>,
}

impl Args {
    pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Args, String> {
        let mut args = args;
        let mut parsed = Args::default();
        while let Some(flag) = args.next() {
            let flag = flag.into_string().map_err(|flag| format!("unknown argument {flag:?}"))?;
            if flag == "--version" {
                parsed.version = true;
                return Ok(parsed);
            }
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(OsString::from(value))),
                None => (flag, args.next()),
            };
            let value = value.ok_or_else(|| format!("{flag} needs a value"))?;
            if flag == "--dir" {
                parsed.dir = value.into();
                continue;
            }
            let value = value.into_string().map_err(|value| format!("{flag}: {value:?} is not UTF-8"))?;
            match flag.as_str() {
                "--hostname" => parsed.hostname = Some(value),
                "--domainname" => parsed.domainname = Some(value),
                "--net" if value.starts_with('/') => parsed.net_join = Some(value.into()),
                "--net" => parsed.net_new = is_new(&flag, &value)?,
                "--ipc" => parsed.ipc_new = is_new(&flag, &value)?,
                "--uts" => parsed.uts_new = is_new(&flag, &value)?,
                "--users" => {
                    let range = IdRange::parse(&value);
                    parsed.users =
                        Some(range.ok_or_else(|| format!("{flag}: {value:?} is not FIRST:COUNT"))?);
                }
                _ => return Err(format!("unknown argument {flag}")),
            }
        }
        if parsed.dir.as_os_str().is_empty() {
            return Err("--dir is missing".to_owned());
        }
        if !parsed.uts_new && (parsed.hostname.is_some() || parsed.domainname.is_some()) {
            return Err("a host or domain name needs --uts new".to_owned());
        }
        Ok(parsed)
    }
}

fn is_new(flag: &str, value: &str) -> Result<bool, String> {
    match value {
        "new" => Ok(true),
        "host" => Ok(false),
        _ => Err(format!("{flag} must be new or host, not {value}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        Args::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn all_of_it() {
        let args = parse(&[
            "--dir",
            "/x",
            "--net",
            "new",
            "--ipc=host",
            "--uts",
            "new",
            "--hostname",
            "h",
            "--users",
            "7:2",
        ])
        .unwrap();
        let wanted = Args {
            dir: "/x".into(),
            net_new: true,
            uts_new: true,
            hostname: Some("h".into()),
            users: Some(IdRange { first: 7, count: 2 }),
            ..Args::default()
        };
        assert_eq!(args, wanted);
        let args = parse(&["--dir", "/x", "--net", "/proc/7/fd/8"]).unwrap();
        assert_eq!((args.net_new, args.net_join), (false, Some("/proc/7/fd/8".into())));
        assert!(parse(&["--version"]).unwrap().version);
    }

    #[test]
    fn wrong_words() {
        for (words, said) in [
            (&[][..], "--dir is missing"),
            (&["--dir"], "--dir needs a value"),
            (&["--dir", "/x", "--net", "maybe"], "--net must be new or host, not maybe"),
            (&["--dir", "/x", "--users", "7"], "--users: \"7\" is not FIRST:COUNT"),
            (&["--dir", "/x", "--colour", "red"], "unknown argument --colour"),
            (&["--dir", "/x", "--hostname", "h"], "a host or domain name needs --uts new"),
        ] {
            assert_eq!(parse(words).unwrap_err(), said);
        }
    }
}
