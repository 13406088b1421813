//! Users and groups by the container's own `/etc/passwd` and `/etc/group`.
//!
//! Both files belong to the image and may be anything: they are read only when they are plain files, up to a limit.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use super::mounts::file_type;
use super::{Error, Root};

/// More than this of a file is not read.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The content of a file of the container, empty when there is none that can be trusted to be one.
fn read(root: &Root, path: &str) -> String {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    // O_PATH first: opening a device or a pipe for real may block or do something.
    let plain = |fd: &std::os::fd::OwnedFd| file_type(fd.as_fd()).is_ok_and(|t| t == SFlag::S_IFREG);
    if !root.open_path(Path::new(path), OFlag::O_PATH).is_ok_and(|fd| plain(&fd)) {
        return String::new();
    }
    let Ok(fd) = root.open_path(Path::new(path), flags) else { return String::new() };
    if !plain(&fd) {
        return String::new();
    }
    // Most are small, and are read at once then.
    let mut bytes = Vec::with_capacity(1024);
    match std::fs::File::from(fd).take(MAX_SIZE).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8(bytes)
            .unwrap_or_else(|invalid| String::from_utf8_lossy(invalid.as_bytes()).into_owned()),
        Err(_) => String::new(),
    }
}

/// The home folder of a user, `/` when unknown.
pub fn home(root: &Root, uid: u32) -> String {
    home_in(&read(root, "/etc/passwd"), uid).unwrap_or_else(|| "/".to_owned())
}

/// Lines are `name:password:uid:gid:comment:home:shell`.
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let line = passwd.lines().find(|l| l.split(':').nth(2).and_then(|f| f.parse().ok()) == Some(uid))?;
    line.split(':').nth(5).filter(|h| h.starts_with('/')).map(str::to_owned)
}

/// Looks up `user[:group]`, each a name or a number, as an image's configuration gives it. Without a group the
/// user's own and supplementary ones count.
pub fn lookup(root: &Root, name: &str) -> Result<Ids, Error> {
    resolve(name, &read(root, "/etc/passwd"), &read(root, "/etc/group"))
}

fn resolve(name: &str, passwd: &str, group: &str) -> Result<Ids, Error> {
    let unknown = |what: &str, name: &str| {
        Error::spec("process.user.username", format!("no {what} {name:?} in the container"))
    };
    let (user, wanted_group) = name.split_once(':').map_or((name, None), |(u, g)| (u, Some(g)));
    // No line has more that count, and one that a hostile image has made of nothing but colons is not to be taken apart.
    fn fields(line: &str) -> Vec<&str> {
        line.split(':').take(7).collect()
    }
    let entry = passwd
        .lines()
        .map(fields)
        .find(|f| f.len() > 3 && (f[0] == user || user.parse::<u32>().is_ok() && f[2] == user));
    let (mut ids, user_name) = match entry {
        Some(f) => {
            let number = |i: usize| f[i].parse().map_err(|_| unknown("user", user));
            (Ids { uid: number(2)?, gid: number(3)?, groups: Vec::new() }, f[0])
        }
        None => {
            let uid = user.parse().map_err(|_| unknown("user", user))?;
            (Ids { uid, ..Ids::default() }, "")
        }
    };
    let groups = || group.lines().map(fields).filter(|f| f.len() > 3);
    match wanted_group.filter(|g| !g.is_empty()) {
        Some(wanted) => {
            let found = groups().find(|f| f[0] == wanted).and_then(|f| f[2].parse().ok());
            ids.gid = found.or_else(|| wanted.parse().ok()).ok_or_else(|| unknown("group", wanted))?;
        }
        None if !user_name.is_empty() => {
            let member = |f: &Vec<&str>| f[3].split(',').any(|m| m == user_name);
            ids.groups = groups().filter(member).filter_map(|f| f[2].parse().ok()).collect();
        }
        None => {}
    }
    Ok(ids)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv/web:/bin/false\nodd:x:5:5::home:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:4:web,root\nssl:x:7:web\n";

    #[test]
    fn homes() {
        assert_eq!(home_in(PASSWD, 33).as_deref(), Some("/srv/web"));
        assert_eq!(home_in(PASSWD, 5), None);
        assert_eq!(home_in(PASSWD, 99), None);
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        let ids = |uid, gid, groups: &[u32]| Ids { uid, gid, groups: groups.to_vec() };
        assert_eq!(resolve("web", PASSWD, GROUP).unwrap(), ids(33, 34, &[4, 7]));
        assert_eq!(resolve("33", PASSWD, GROUP).unwrap(), ids(33, 34, &[4, 7]));
        assert_eq!(resolve("web:logs", PASSWD, GROUP).unwrap(), ids(33, 4, &[]));
        assert_eq!(resolve("1000:7", PASSWD, GROUP).unwrap(), ids(1000, 7, &[]));
        assert_eq!(resolve("1000", PASSWD, GROUP).unwrap(), ids(1000, 0, &[]));
        assert!(resolve("nobody", PASSWD, GROUP).is_err());
        assert!(resolve("web:nope", PASSWD, GROUP).is_err());
    }
}
