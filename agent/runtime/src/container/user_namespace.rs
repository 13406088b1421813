//! User namespaces: their maps, and namespaces made only to carry maps for id-mapped mounts.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use nix::unistd::geteuid;
use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::Error;
use super::channel::{Channel, Order};
use super::create::reap;
use crate::sys::process::{Clone3, pidfd_kill};

/// The kernel takes no more lines (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_LINES: usize = 340;

/// Which users and groups of a user namespace are which ones outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    uid: Vec<LinuxIdMapping>,
    gid: Vec<LinuxIdMapping>,
}

impl Maps {
    /// Takes and checks the maps of `field`, such as `linux`.
    pub fn new(
        field: &str,
        uid: Option<&Vec<LinuxIdMapping>>,
        gid: Option<&Vec<LinuxIdMapping>>,
    ) -> Result<Maps, Error> {
        let checked = |name: &str, map: Option<&Vec<LinuxIdMapping>>| {
            let map = map.cloned().unwrap_or_default();
            let refuse = |reason: &str| Err(Error::spec(format!("{field}.{name}"), reason));
            let fits = |start: u32, size: u32| start.checked_add(size).is_some();
            match () {
                () if map.is_empty() => refuse("a user namespace needs one"),
                () if map.len() > MAX_LINES => refuse("it has more than 340 lines"),
                () if map.iter().any(|m| m.size() == 0) => refuse("a size is 0"),
                () if !map
                    .iter()
                    .all(|m| fits(m.host_id(), m.size()) && fits(m.container_id(), m.size())) =>
                {
                    refuse("it leads above the highest id")
                }
                () => Ok(map),
            }
        };
        Ok(Maps { uid: checked("uidMappings", uid)?, gid: checked("gidMappings", gid)? })
    }

    /// The maps for a new user namespace of a container.
    pub fn of_container(linux: &Linux) -> Result<Maps, Error> {
        Maps::new("linux", linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref())
    }

    /// Who a user and a group are outside; nothing when one of them is nobody.
    pub fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((outer(&lines(&self.uid), uid)?, outer(&lines(&self.gid), gid)?))
    }

    /// Gives them to the fresh user namespace that a process is in. Who is not root needs newuidmap(1), unless there
    /// is nothing but the own user to map.
    pub fn write_to(&self, pid: i32) -> Result<(), Error> {
        let path = |file: &str| format!("/proc/{pid}/{file}");
        let write = |file: &str, text: &str| {
            fs::write(path(file), text).map_err(|e| Error::sys("write", path(file), e))
        };
        if geteuid().is_root() {
            write("gid_map", &lines(&self.gid))?;
            return write("uid_map", &lines(&self.uid));
        }
        if let ([uid], [gid]) = (&self.uid[..], &self.gid[..])
            && (uid.size(), gid.size()) == (1, 1)
        {
            write("setgroups", "deny")?;
            write("gid_map", &lines(&self.gid))?;
            return write("uid_map", &lines(&self.uid));
        }
        call("newgidmap", pid, &self.gid)?;
        call("newuidmap", pid, &self.uid)
    }

    /// A user namespace that has these maps and nobody in it.
    pub fn into_namespace(self) -> Result<OwnedFd, Error> {
        let failed = |e| Error::sys("make", "a user namespace", e);
        let (own, theirs) = Channel::pair().map_err(failed)?;
        let holder = Clone3 { flags: libc::CLONE_NEWUSER as u64, cgroup: None };
        // It lives until it is killed, or until its parent dies and with that the other end.
        let holder = holder.spawn(|| drop(theirs.await_order(Order::Start))).map_err(failed)?;
        let namespace = self.write_to(holder.pid).and_then(|()| {
            File::open(format!("/proc/{}/ns/user", holder.pid)).map(OwnedFd::from).map_err(failed)
        });
        drop(own);
        // It may have ended by itself.
        let _ = pidfd_kill(holder.pidfd.as_fd(), libc::SIGKILL);
        reap(holder.pidfd.as_fd());
        namespace
    }
}

/// Who a user of a process' user namespace is outside; nothing when it is nobody.
pub fn outer_uid(pid: i32, uid: u32) -> io::Result<Option<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    Ok(outer(&text, uid))
}

/// Lines are `inner outer size`, see user_namespaces(7).
fn outer(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u32>().ok());
        let (inner, outer, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let distance = id.checked_sub(inner).filter(|d| *d < size)?;
        outer.checked_add(distance)
    })
}

fn lines(map: &[LinuxIdMapping]) -> String {
    map.iter().fold(String::new(), |mut text, m| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", m.container_id(), m.host_id(), m.size());
        text
    })
}

fn call(program: &str, pid: i32, map: &[LinuxIdMapping]) -> Result<(), Error> {
    let numbers = map.iter().flat_map(|m| [m.container_id(), m.host_id(), m.size()]).map(|n| n.to_string());
    let failed = |e| Error::sys("run", program, e);
    let output = Command::new(program).arg(pid.to_string()).args(numbers).output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(io::Error::other(words.lines().next().unwrap_or("it failed").to_owned())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use oci_spec::runtime::LinuxIdMappingBuilder;

    use super::*;

    fn mapping(container: u32, host: u32, size: u32) -> LinuxIdMapping {
        LinuxIdMappingBuilder::default().container_id(container).host_id(host).size(size).build().unwrap()
    }

    #[test]
    fn maps_are_checked_and_written_as_the_kernel_wants() {
        let good = vec![mapping(0, 100_000, 10), mapping(10, 1000, 1)];
        let maps = Maps::new("linux", Some(&good), Some(&good)).unwrap();
        assert_eq!(lines(&maps.uid), "0 100000 10\n10 1000 1\n");
        for (bad, reason) in [
            (vec![], "needs one"),
            (vec![mapping(0, 1, 0)], "size is 0"),
            (vec![mapping(0, u32::MAX, 2)], "highest id"),
            (vec![mapping(0, 0, 1); 341], "340"),
        ] {
            let error = Maps::new("linux", Some(&good), Some(&bad)).unwrap_err().to_string();
            assert!(error.starts_with("linux.gidMappings") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn who_somebody_is_outside() {
        let map = "         0     100000      65536\n     70000       1000          1\n";
        assert_eq!(outer(map, 33), Some(100_033));
        assert_eq!(outer(map, 70_000), Some(1000));
        assert_eq!(outer(map, 65_536), None);
    }
}
