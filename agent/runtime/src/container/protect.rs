//! Masked paths, read-only paths and kernel parameters.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;
use oci_spec::runtime::Linux;

use super::mounts::{attach_to, file_type, open_device};
use super::{Error, Root, labels, procfs};
use crate::sys::cstring;
use crate::sys::mount::{Attributes, FsContext, clone_tree};

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// Hides what the spec masks: files behind `/dev/null`, folders behind an empty read-only one. What does not exist
/// needs no mask.
pub fn mask(root: &Root, linux: &Linux) -> Result<(), Error> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in linux.masked_paths().iter().flatten() {
        let failed = |e| Error::sys("mask", path.clone(), e);
        let Some(target) = existing(root, Path::new(path)).map_err(failed)? else { continue };
        let folder = file_type(target.as_fd()).map_err(failed)? == SFlag::S_IFDIR;
        let cover = if folder {
            match &empty {
                // One empty file system serves all: the first is attached and the others are copies of it.
                Some(first) => clone_tree(Some(first.as_fd()), Path::new(""), false).map_err(failed)?,
                None => empty_folder(labels::of_mounts(linux)).map_err(failed)?,
            }
        } else {
            if null.is_none() {
                null = Some(open_device(Path::new("/dev/null"), 1, 3, OFlag::O_PATH).map_err(failed)?);
            }
            clone_tree(null.as_ref().map(AsFd::as_fd), Path::new(""), false).map_err(failed)?
        };
        attach_to(cover.as_fd(), target.as_fd(), Path::new(path))?;
        if folder && empty.is_none() {
            empty = Some(cover);
        }
    }
    Ok(())
}

fn empty_folder(label: Option<&str>) -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    if let Some(label) = label {
        context.set("context", &cstring(label)?)?;
    }
    context.set("size", c"0")?;
    context.set("nr_inodes", c"1")?;
    context.set("mode", c"755")?;
    context.mount(RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC)
}

/// Makes the spec's read-only paths read-only, with everything mounted below them.
pub fn make_readonly(root: &Root, linux: &Linux) -> Result<(), Error> {
    for path in linux.readonly_paths().iter().flatten() {
        let failed = |e| Error::sys("make read-only", path.clone(), e);
        let Some(target) = existing(root, Path::new(path)).map_err(failed)? else { continue };
        let tree = clone_tree(Some(target.as_fd()), Path::new(""), true).map_err(failed)?;
        Attributes { set: RDONLY, ..Attributes::default() }.apply(tree.as_fd(), true).map_err(failed)?;
        attach_to(tree.as_fd(), target.as_fd(), Path::new(path))?;
    }
    Ok(())
}

fn existing(root: &Root, path: &Path) -> io::Result<Option<OwnedFd>> {
    match root.open_path(path, OFlag::O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets the spec's kernel parameters. Only those that a namespace of the container's own keeps away from the host
/// are let through (CVE-2022-0811). Must run in the container's namespaces but with the host's `/proc`.
pub fn set_sysctls(linux: &Linux) -> Result<(), Error> {
    let mut parameters: Vec<_> = linux.sysctl().iter().flatten().collect();
    parameters.sort_unstable();
    for (key, value) in parameters {
        let refuse = |reason: &str| Error::spec(format!("linux.sysctl[{key}]"), reason);
        let namespace =
            sysctl_namespace(key).ok_or_else(|| refuse("it is not a parameter of a namespace"))?;
        if !own_namespace(namespace) {
            return Err(refuse(&format!("the container shares the host's {namespace} namespace")));
        }
        if key.replace('/', ".") == "kernel.hostname" {
            // crun and runc refuse it, too.
            return Err(refuse("the field hostname is for that"));
        }
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(refuse("its value has a control character"));
        }
        // Dots separate; where a name holds dots itself (an interface), slashes do, as in sysctl(8).
        let path = if key.contains('/') { key.clone() } else { key.replace('.', "/") };
        procfs::write(&Path::new("sys").join(path), value.as_bytes())
            .map_err(|e| Error::sys("set kernel parameter", key.clone(), e))?;
    }
    Ok(())
}

/// The namespace that isolates a kernel parameter.
fn sysctl_namespace(key: &str) -> Option<&'static str> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
    ];
    let dotted = key.replace('/', ".");
    if dotted.contains("..") || key.starts_with('/') || key.contains(|c: char| c.is_control() || c == ' ') {
        return None;
    }
    match dotted.as_str() {
        k if k.starts_with("net.") => Some("net"),
        k if IPC.contains(&k) || k.starts_with("fs.mqueue.") => Some("ipc"),
        "kernel.domainname" | "kernel.hostname" => Some("uts"),
        _ => None,
    }
}

/// Whether this process is in another namespace than the machine's first one. The first ones have fixed numbers
/// (`*_NS_INIT_INO` in the kernel), the first network namespace only since Linux 6.17; before that the first process
/// tells, where it may be looked at.
fn own_namespace(kind: &str) -> bool {
    let first = match kind {
        "ipc" => 0xefff_ffff,
        "uts" => 0xefff_fffe,
        _ => 0xefff_fff9,
    };
    let id = |process: &str| fs::metadata(format!("/proc/{process}/ns/{kind}")).map(|m| m.ino());
    match (id("self"), id("1")) {
        (Ok(own), Ok(other)) => own != first && own != other,
        (Ok(own), Err(_)) => own != first,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::sysctl_namespace;

    #[test]
    fn only_parameters_of_namespaces_pass() {
        assert_eq!(sysctl_namespace("net.ipv4.ip_forward"), Some("net"));
        assert_eq!(sysctl_namespace("net/ipv4/conf/eth0.1/forwarding"), Some("net"));
        assert_eq!(sysctl_namespace("kernel.shmmax"), Some("ipc"));
        assert_eq!(sysctl_namespace("fs.mqueue.msg_max"), Some("ipc"));
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net/../kernel/core_pattern",
            "/net/x",
            "net..ipv4",
            "kernel.shmmax+kernel.core_pattern",
            "net.x\nkernel.core_pattern",
            "kernel",
            "net",
        ] {
            assert_eq!(sysctl_namespace(bad), None, "{bad} passed");
        }
    }
}
