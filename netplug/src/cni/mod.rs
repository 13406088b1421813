//! The pod network as a CNI plugin, `berth-cni`: versions 0.3.1 to 1.1.0 of the specification
//! (<https://github.com/containernetworking/cni/blob/main/SPEC.md>).
//!
//! Each call is a process of its own that lives for some milliseconds. What lasts is on disk (leases, as the agent keeps
//! them) and in the kernel (bridge, links, nft table); a lock on the folder of the leases is held for as long as they are
//! changed, but not while links are made, so that calls for different containers run side by side.
//!
//! `request` is the environment, `conf` the network configuration, `result` what is printed, `verbs` what is done.

mod conf;
mod failure;
mod inspect;
mod request;
mod result;
mod verbs;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use failure::{DECODE, Failure, IO};
use request::{Command, Request};

/// The versions of the specification that are spoken.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// That of an answer to somebody who did not say which.
const NEWEST: &str = "1.1.0";

/// Whether the specification allows this as the name of a network or a container: letters, digits, `_`, `.` and `-`, beginning
/// with one of the first two.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Serves the one request that environment and standard input hold: the answer goes to standard output.
pub fn main() -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    let outcome = match read {
        Ok(_) => serve(|name| std::env::var_os(name), &text),
        Err(e) => {
            Err(Failure::new(IO, "cannot read the network configuration from standard input").because(e))
        }
    };
    let (answer, code) = match outcome {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => (Some(failure.render(&version_of(&text))), ExitCode::FAILURE),
    };
    match answer.map_or(Ok(()), |answer| writeln!(std::io::stdout(), "{answer}")) {
        Ok(()) => code,
        // Nobody hears the answer; the exit code at least says that something is wrong.
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version that an error is told in.
fn version_of(text: &str) -> String {
    let conf: Value = serde_json::from_str(text).unwrap_or_default();
    conf["cniVersion"].as_str().unwrap_or(NEWEST).to_owned()
}

fn serve(variable: impl Fn(&str) -> Option<OsString>, text: &str) -> Result<Option<Value>, Failure> {
    let request = Request::read(variable)?;
    let conf: Value = serde_json::from_str(text)
        .map_err(|e| Failure::new(DECODE, "the network configuration is not JSON").because(e))?;
    if request.command == Command::Version {
        let version = conf["cniVersion"].as_str().unwrap_or(NEWEST);
        return Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})));
    }
    let conf = conf::Conf::read(conf)?;
    request.check_version(&conf.version)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(IO, "cannot start").because(e))?;
    runtime.block_on(verbs::run(&request, &conf))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ask(environment: &[(&str, &str)], text: &str) -> Result<Option<Value>, (u32, String)> {
        let variable = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        serve(variable, text).map_err(|failure| (failure.code, failure.to_string()))
    }

    #[test]
    fn version_tells_all_versions_in_the_one_that_was_asked_for() {
        let answer = ask(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion": "1.0.0"}"#).unwrap();
        assert_eq!(
            answer.unwrap(),
            json!({"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
        );
        assert_eq!(ask(&[("CNI_COMMAND", "VERSION")], "{").unwrap_err().0, 6);
    }

    #[test]
    fn what_is_wrong_has_the_code_that_the_specification_gives_it() {
        let add = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
        ];
        let conf = |more: &str| {
            format!(r#"{{"cniVersion": "1.0.0", "name": "n", "subnets": ["10.9.0.0/24"]{more}}}"#)
        };
        let without = |name: &str| add.into_iter().filter(|(key, _)| *key != name).collect::<Vec<_>>();
        let code = |environment: &[(&str, &str)], text: &str| ask(environment, text).unwrap_err().0;
        assert_eq!(code(&[], "{}"), 4);
        assert_eq!(code(&[("CNI_COMMAND", "MAKE")], "{}"), 4);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            let (code, text) = ask(&without(name), &conf("")).unwrap_err();
            assert!(code == 4 && text.contains(name), "{text}");
        }
        for (name, value) in
            [("CNI_CONTAINERID", "a/b"), ("CNI_IFNAME", "seventeen-letters"), ("CNI_IFNAME", "a:b")]
        {
            let mut environment = without(name);
            environment.push((name, value));
            let (code, text) = ask(&environment, &conf("")).unwrap_err();
            assert!(code == 4 && text.contains(name), "{text}");
        }
        assert_eq!(code(&add, "{"), 6);
        assert_eq!(code(&add, r#"{"cniVersion": "0.2.0", "name": "n"}"#), 1);
        assert_eq!(code(&add, r#"{"name": "n"}"#), 1);
        assert_eq!(code(&add, &conf(r#", "vlan": 5"#)), 2);
        assert_eq!(code(&add, &conf(r#", "mtu": 5"#)), 7);
        assert_eq!(code(&add, &conf(r#", "mtu": "big""#)), 6);
        let (code, text) = ask(&[("CNI_COMMAND", "GC")], &conf("")).unwrap_err();
        assert!(code == 1 && text.contains("GC needs version 1.1.0"), "{text}");
    }
}
