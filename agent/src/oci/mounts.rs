//! The mounts of a container: the kernel's file systems, the pod's files and its volumes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_reconciler::env;
use berth_reconciler::node::Failure;
use k8s_openapi::api::core::v1;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde_json::{Value, json};

use super::{Inputs, create_error, security};

/// Where a volume mount takes its files from.
#[derive(Debug)]
pub enum MountSource {
    /// The volume itself.
    Whole(PathBuf),
    /// A folder or file in it, held open so that nobody can put a link in its place.
    Within(OwnedFd),
}

/// Why a subPath cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}: {sub}: {reason}")]
pub struct SubPathError {
    container: String,
    volume: String,
    sub: String,
    reason: String,
}

/// The propagation of the root: what `mountPropagation: Bidirectional` and `HostToContainer` need.
pub(super) fn rootfs_propagation(container: &v1::Container) -> &'static str {
    let asks = |mode: &str| {
        container.volume_mounts.iter().flatten().any(|m| m.mount_propagation.as_deref() == Some(mode))
    };
    if asks("Bidirectional") {
        "rshared"
    } else if asks("HostToContainer") {
        "rslave"
    } else {
        "rprivate"
    }
}

/// All mounts in order, and the descriptors that must stay open until the container is made.
pub(super) fn mounts(inputs: &Inputs<'_>) -> Result<(Vec<Value>, Vec<OwnedFd>), Failure> {
    let privileged = security::privileged(inputs.container);
    let mut list = kernel_file_systems(inputs, privileged);
    let (mut held, mut mapped) = (Vec::new(), Vec::new());
    let own: Vec<&str> =
        inputs.container.volume_mounts.iter().flatten().map(|m| m.mount_path.as_str()).collect();
    for (file, target) in
        [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    {
        let source = inputs.etc.join(file);
        if !own.contains(&target) && source.exists() {
            list.push(bind(&source, target, &["rbind", "rprivate", "rw"]));
        }
    }
    let message = inputs.container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !own.contains(&message) {
        list.push(bind(inputs.termination_log, message, &["rbind", "rprivate", "rw"]));
    }
    for mount in inputs.container.volume_mounts.iter().flatten() {
        let made = volume_mount(inputs, mount, &mut held)?;
        if is_mapped(inputs, mount, &made) {
            mapped.push(list.len());
        }
        list.push(made);
    }
    map_users(inputs, &mut list, &mapped);
    Ok((list, held))
}

/// Whether the mount shows an image of several layers, each of which is mapped: the overlay of them cannot be.
fn is_mapped(inputs: &Inputs<'_>, mount: &v1::VolumeMount, made: &Value) -> bool {
    let mut volumes = inputs.pod.spec().volumes.iter().flatten();
    let image = volumes.any(|volume| volume.name == mount.name && volume.image.is_some());
    let source = made["source"].as_str().filter(|_| image);
    source.is_some_and(|source| statfs(source).is_ok_and(|s| s.filesystem_type() == OVERLAYFS_SUPER_MAGIC))
}

/// Has the files of binds belong, inside, to whom they belong on the disk: the users of the pod are others outside. But for those
/// that are `mapped` already.
fn map_users(inputs: &Inputs<'_>, mounts: &mut [Value], mapped: &[usize]) {
    let rest = mounts.iter_mut().enumerate().filter(|(at, _)| !mapped.contains(at)).map(|(_, mount)| mount);
    let binds = rest.filter(|mount| mount["type"] == "bind");
    for options in
        binds.filter_map(|mount| mount["options"].as_array_mut()).filter(|_| inputs.users.is_some())
    {
        options.push(json!("idmap"));
    }
}

fn bind(source: &Path, target: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": "bind", "source": source, "options": options })
}

fn kernel_file_systems(inputs: &Inputs<'_>, privileged: bool) -> Vec<Value> {
    let write = if privileged { "rw" } else { "ro" };
    let mut list = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
               "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", write]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", "relatime", write]}),
    ];
    let shm = match inputs.shm {
        Some(shm) => bind(shm, "/dev/shm", &["rbind", "rprivate", "rw"]),
        None => json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                       "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
    };
    list.push(shm);
    list
}

fn volume_mount(
    inputs: &Inputs<'_>,
    mount: &v1::VolumeMount,
    held: &mut Vec<OwnedFd>,
) -> Result<Value, Failure> {
    let root = inputs.volumes.get(&mount.name).ok_or_else(|| {
        create_error(format!("volume {:?} of mount {:?} was not set up", mount.name, mount.mount_path))
    })?;
    let sub = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(sub), _) if !sub.is_empty() => Some(sub.clone()),
        (_, Some(expr)) if !expr.is_empty() => {
            Some(env::expand_strict(expr, inputs.env).map_err(|e| super::config_error(e.to_string()))?)
        }
        _ => None,
    };
    let source = match sub {
        None => MountSource::Whole(root.clone()),
        Some(sub) => MountSource::Within(
            within(root, &sub, inputs.labels.is_some())
                .map_err(|reason| {
                    let container = inputs.container.name.clone();
                    SubPathError { container, volume: mount.name.clone(), sub, reason }
                })
                .map_err(|e| super::config_error(e.to_string()))?,
        ),
    };
    let path = match source {
        MountSource::Whole(path) => path,
        // The agent's own descriptor: the shim's child reaches it through /proc and so gets exactly this inode.
        MountSource::Within(fd) => {
            let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
            held.push(fd);
            path
        }
    };
    let mut options = vec!["rbind"];
    options.push(match mount.mount_propagation.as_deref() {
        Some("Bidirectional") => "rshared",
        Some("HostToContainer") => "rslave",
        _ => "rprivate",
    });
    // The agent writes into what it copies from objects: a container that could, too, would put a link there and have
    // the agent remove or write what that leads to (CVE-2017-1002102).
    let read_only = mount.read_only == Some(true) || crate::volumes::is_read_only(inputs.pod, &mount.name);
    options.push(if read_only { "ro" } else { "rw" });
    if mount.read_only == Some(true)
        && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"))
    {
        options.push("rro");
    }
    let target = if mount.mount_path.starts_with('/') {
        mount.mount_path.clone()
    } else {
        format!("/{}", mount.mount_path)
    };
    Ok(bind(&path, &target, &options))
}

/// Opens `sub` inside `root` without leaving it, making missing folders with the mode of the volume, as kubelet does, and if they
/// are `labelled` with the SELinux label of the folder that they are made in.
fn within(root: &Path, sub: &str, labelled: bool) -> Result<OwnedFd, String> {
    if sub.starts_with('/') || sub.split('/').any(|part| part == "..") {
        return Err("must be a relative path without \"..\"".into());
    }
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let mut at =
        open(root, flags | OFlag::O_DIRECTORY, Mode::empty()).map_err(|e| format!("open the volume: {e}"))?;
    let how = || {
        OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
    };
    match openat2(&at, sub, how()) {
        Ok(fd) => return Ok(fd),
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(describe(error)),
    }
    let mode = nix::sys::stat::fstat(&at).map_or(0o750, |s| s.st_mode & 0o3777);
    let mode = Mode::from_bits_truncate(mode);
    for part in sub.split('/').filter(|p| !p.is_empty() && *p != ".") {
        let made = match mkdirat(&at, part, mode & Mode::from_bits_truncate(0o777)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(format!("mkdir {part:?}: {error}")),
        };
        if made {
            // The agent's umask is not the volume's: whoever may write into the volume may write here.
            let folder =
                openat2(&at, part, how().flags(OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC));
            let folder = folder.map_err(describe)?;
            nix::sys::stat::fchmod(&folder, mode).map_err(|e| format!("chmod {part:?}: {e}"))?;
            if labelled {
                crate::volumes::inherit_label(at.as_fd(), folder.as_fd())
                    .map_err(|e| format!("label {part:?}: {e}"))?;
            }
        }
        at = openat2(&at, part, how()).map_err(describe)?;
    }
    Ok(at)
}

fn describe(error: Errno) -> String {
    match error {
        Errno::EXDEV => "it leads out of the volume".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn missing_folders_are_made() {
        let dir = tempfile::tempdir().unwrap();
        // The umask takes nothing away of what the volume allows.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o2777)).unwrap();
        within(dir.path(), "a/b", false).unwrap();
        for made in ["a", "a/b"] {
            let meta = std::fs::metadata(dir.path().join(made)).unwrap();
            assert!(meta.is_dir());
            assert_eq!(meta.permissions().mode() & 0o7777, 0o2777, "{made}");
        }
    }

    #[test]
    fn a_link_out_of_the_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        assert_eq!(within(dir.path(), "out", false).unwrap_err(), "it leads out of the volume");
        assert!(within(dir.path(), "out/x", false).is_err());
        assert!(within(dir.path(), "../x", false).is_err());
    }

    /// CVE-2017-1002101, CVE-2021-25741: another container of the volume exchanges a folder for a link to the host
    /// while a subPath is looked for and made. Defence: RESOLVE_BENEATH from an open folder, and what was found is
    /// mounted by its descriptor.
    #[test]
    fn cve_2021_25741_a_sub_path_stays_in_a_volume_that_changes() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::create_dir_all(outside.join("b")).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let stop = AtomicBool::new(false);
        let volume_id = std::fs::metadata(&outside).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).unwrap();
        let (mut found, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let folder = std::fs::File::open(&volume).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let _ = nix::fcntl::renameat2(
                        &folder,
                        "a",
                        &folder,
                        "link",
                        nix::fcntl::RenameFlags::RENAME_EXCHANGE,
                    );
                }
            });
            for round in 0..20_000 {
                let sub = if round % 2 == 0 { "a/b".to_owned() } else { format!("a/new-{}", round % 7) };
                let Ok(fd) = within(&volume, &sub, false) else {
                    refused += 1;
                    continue;
                };
                found += 1;
                let above = nix::sys::stat::fstatat(&fd, "..", nix::fcntl::AtFlags::empty()).unwrap();
                if above.st_ino == volume_id {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{sub} was found outside");
                }
                if round % 64 == 1 {
                    let _ = std::fs::remove_dir(volume.join(&sub));
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(found > 0 && refused > 0, "no race was run: {found} found, {refused} refused");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "something was made outside");
    }
}
