//! Descriptors that the caller wants the container's program to have: `--preserve-fds`, and the sockets of a service that
//! systemd, or podman in its place, has opened beforehand (sd_listen_fds(3)).

use std::os::fd::RawFd;

use oci_spec::runtime::Process;

use crate::sys::process::is_open;

/// The first descriptor after the standard streams.
const FIRST: RawFd = 3;
/// Nobody has more descriptors (`fs.nr_open`, as far as anybody raises it).
const MOST: u32 = 1 << 20;

/// What is handed on.
#[derive(Debug, Default)]
pub struct Handed {
    /// Those of the descriptors that are open.
    pub descriptors: Vec<RawFd>,
    /// How many of them are sockets of a service.
    sockets: u32,
    /// Their names, with colons between.
    names: Option<String>,
}

impl Handed {
    /// Looks which descriptors this process was given, beginning with the sockets. To be asked before it opens any itself:
    /// what is closed at the caller's is left out, as with crun, and its number may be one of this program's own soon.
    pub fn look(preserve_fds: u32) -> Handed {
        let sockets = sockets(|name| std::env::var(name).ok(), std::process::id);
        let count = preserve_fds.saturating_add(sockets).min(MOST);
        let descriptors = (0..count).map(|n| FIRST + n as RawFd).filter(|fd| is_open(*fd)).collect();
        let names = if sockets > 0 { std::env::var("LISTEN_FDNAMES").ok() } else { None };
        Handed { descriptors, sockets, names }
    }

    /// Tells the first process of a container of the sockets. In its PID namespace it is number 1, as other runtimes
    /// assume.
    pub fn announce(&self, process: &mut Process) {
        if self.sockets == 0 {
            return;
        }
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={}", self.sockets), "LISTEN_PID=1".to_owned()]);
        env.extend(self.names.as_ref().map(|names| format!("LISTEN_FDNAMES={names}")));
        process.set_env(Some(env));
    }
}

/// The number of sockets by the environment. That of another process is not meant; who names none means this one.
fn sockets(variable: impl Fn(&str) -> Option<String>, own: impl Fn() -> u32) -> u32 {
    let number = |name| variable(name).and_then(|text| text.parse().ok());
    let Some(count) = number("LISTEN_FDS") else { return 0 };
    if number("LISTEN_PID").is_none_or(|pid| pid == own()) { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::sockets;

    #[test]
    fn sockets_of_another_process_are_not_meant() {
        let of = |pid: Option<&str>, fds: Option<&str>| {
            let value = |name: &str| if name == "LISTEN_PID" { pid } else { fds };
            sockets(|name| value(name).map(str::to_owned), || 7)
        };
        assert_eq!(of(Some("7"), Some("2")), 2);
        assert_eq!(of(None, Some("2")), 2);
        for (pid, fds) in [(Some("8"), Some("2")), (Some("7"), None), (None, None), (None, Some("x"))] {
            assert_eq!(of(pid, fds), 0, "{pid:?} {fds:?}");
        }
    }
}
