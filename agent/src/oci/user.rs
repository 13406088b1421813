//! Which user and groups a container runs as.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use berth_reconciler::node::{Failure, LinuxUser};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde_json::{Value, json};

use super::{Inputs, config_error};

/// Longest `/etc/passwd` or `/etc/group` that is read: a hostile image must not fill our memory.
const MAX_FILE: u64 = 1 << 20;

/// Reads a small file of an image from its layers, top first, without following a link out of a layer.
pub fn read_in_layers(layers: &[PathBuf], path: &str) -> Option<String> {
    layers.iter().find_map(|layer| read_in(layer, path))
}

fn read_in(root: &Path, path: &str) -> Option<String> {
    let dir = nix::fcntl::open(
        root,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = std::fs::File::from(openat2(&dir, path.trim_start_matches('/'), how).ok()?);
    debug_assert!(file.as_raw_fd() >= 0);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[derive(Debug, PartialEq)]
struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Passwd { name, uid, gid })
    })
}

/// (name, gid, members) of each line.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or_default().split(',').map(str::trim).collect();
        Some((name, gid, members))
    })
}

/// The OCI `process.user`.
pub(super) fn process_user(user: &LinuxUser) -> Value {
    json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.groups })
}

/// Who the container runs as: `runAsUser` and `runAsGroup` over the image's USER, with the groups that the image's
/// `/etc/group` gives the user, fsGroup and supplementalGroups.
pub(super) fn resolve(inputs: &Inputs<'_>) -> Result<LinuxUser, Failure> {
    let own = inputs.container.security_context.as_ref();
    let pods = inputs.pod.spec().security_context.as_ref();
    let run_as_user = own.and_then(|s| s.run_as_user).or(pods.and_then(|s| s.run_as_user));
    let run_as_group = own.and_then(|s| s.run_as_group).or(pods.and_then(|s| s.run_as_group));
    let non_root =
        own.and_then(|s| s.run_as_non_root).or(pods.and_then(|s| s.run_as_non_root)).unwrap_or(false);
    let image_user = inputs.image.config.user.as_str();
    let passwd_text = read_in_layers(&inputs.image.layers, "etc/passwd").unwrap_or_default();
    let group_text = read_in_layers(&inputs.image.layers, "etc/group").unwrap_or_default();
    let found = match run_as_user {
        Some(uid) => {
            let uid =
                u32::try_from(uid).map_err(|_| config_error(format!("runAsUser {uid} is out of range")))?;
            by_uid(&passwd_text, uid)
        }
        None => image_identity(image_user, &passwd_text, &group_text)?,
    };
    let gid = match run_as_group {
        Some(gid) => {
            u32::try_from(gid).map_err(|_| config_error(format!("runAsGroup {gid} is out of range")))?
        }
        None => found.gid,
    };
    if non_root {
        check_non_root(inputs, run_as_user, image_user, &found)?;
    }
    let strict = pods.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    let mut extra: Vec<u32> = Vec::new();
    if !strict && !found.name.is_empty() {
        extra.extend(
            groups(&group_text)
                .filter(|(_, _, members)| members.contains(&found.name.as_str()))
                .map(|(_, g, _)| g),
        );
    }
    let asked = pods.and_then(|s| s.supplemental_groups.clone()).unwrap_or_default();
    extra
        .extend(asked.into_iter().chain(pods.and_then(|s| s.fs_group)).filter_map(|g| u32::try_from(g).ok()));
    extra.push(gid);
    extra.sort_unstable();
    extra.dedup();
    check_mapped(inputs, [found.uid, gid].into_iter().chain(extra.iter().copied()))?;
    Ok(LinuxUser { uid: found.uid, gid, groups: extra })
}

/// `runAsNonRoot`: kubelet's `verifyRunAsNonRoot`, in its words. A name proves nothing, since it is the image that says
/// which number it has.
fn check_non_root(
    inputs: &Inputs<'_>,
    run_as_user: Option<i64>,
    image_user: &str,
    found: &Passwd,
) -> Result<(), Failure> {
    let name = image_user.split(':').next().unwrap_or_default();
    let named = !name.is_empty() && name.parse::<u32>().is_err();
    let reason = match run_as_user {
        Some(0) => "container's runAsUser breaks non-root policy".to_owned(),
        Some(_) => return Ok(()),
        None if named => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ),
        None if found.uid == 0 => "container has runAsNonRoot and image will run as root".to_owned(),
        None => return Ok(()),
    };
    let pod = inputs.pod;
    let about = format!("{}_{}({})", pod.name(), pod.namespace(), pod.uid());
    Err(config_error(format!("{reason} (pod: {about:?}, container: {})", inputs.container.name)))
}

/// In a user namespace there are only so many users.
fn check_mapped(inputs: &Inputs<'_>, mut ids: impl Iterator<Item = u32>) -> Result<(), Failure> {
    let Some(users) = inputs.users else { return Ok(()) };
    match ids.find(|id| *id >= users.count) {
        None => Ok(()),
        Some(id) => Err(config_error(format!(
            "user or group {id} is not among the {} ids of the pod's user namespace (hostUsers: false); see              userNamespaces.idsPerPod of the node's settings",
            users.count
        ))),
    }
}

fn by_uid(passwd_text: &str, uid: u32) -> Passwd {
    passwd(passwd_text).find(|p| p.uid == uid).unwrap_or(Passwd { name: String::new(), uid, gid: 0 })
}

/// `user[:group]` of an image, names or numbers.
fn image_identity(user: &str, passwd_text: &str, group_text: &str) -> Result<Passwd, Failure> {
    let (user, group) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
    let mut found = if user.is_empty() {
        by_uid(passwd_text, 0)
    } else if let Ok(uid) = user.parse() {
        by_uid(passwd_text, uid)
    } else {
        passwd(passwd_text).find(|p| p.name == user).ok_or_else(|| {
            config_error(format!(
                "the image's user {user:?} is not in its /etc/passwd; set securityContext.runAsUser"
            ))
        })?
    };
    if let Some(group) = group.filter(|g| !g.is_empty()) {
        found.gid = match group.parse() {
            Ok(gid) => gid,
            Err(_) => groups(group_text)
                .find(|(name, _, _)| *name == group)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| {
                    config_error(format!(
                        "the image's group {group:?} is not in its /etc/group; set securityContext.runAsGroup"
                    ))
                })?,
        };
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nextra:x:50:web,other\n";

    #[test]
    fn names_and_numbers() {
        let id = |user| {
            let found = image_identity(user, PASSWD, GROUP).unwrap();
            (found.uid, found.gid)
        };
        assert_eq!(id(""), (0, 0));
        assert_eq!(id("web"), (33, 34));
        assert_eq!(id("33"), (33, 34));
        assert_eq!(id("1000"), (1000, 0));
        assert_eq!(id("1000:extra"), (1000, 50));
        assert_eq!(id("web:7"), (33, 7));
    }

    #[test]
    fn an_unknown_name_is_an_error_that_says_what_to_do() {
        let error = image_identity("nobody", PASSWD, GROUP).unwrap_err();
        assert!(error.message.contains("runAsUser"), "{}", error.message);
    }

    #[test]
    fn a_link_in_a_layer_does_not_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(read_in_layers(&[dir.path().into()], "etc/passwd"), None);
    }
}
