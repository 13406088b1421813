//! Making cgroups, with their parents and with the controllers they need.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::hierarchy::Mount;
use super::{Error, path};

/// The v2 controllers that Berth uses where the kernel has them.
const V2_CONTROLLERS: [&str; 7] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma"];

/// Makes a v1 cgroup in every hierarchy that `resources` needs. Returns the folders that are new.
pub fn v1(mounts: &[Mount], relative: &Path, resources: &LinuxResources) -> Result<Vec<PathBuf>, Error> {
    let mut fresh = Vec::new();
    for mount in mounts {
        if !mount.always() && !mount.controllers.iter().any(|c| needs(resources, c)) {
            continue;
        }
        let dir = mount.root.join(relative);
        if v1_folder(mount, &dir)? {
            fresh.push(dir);
        }
    }
    Ok(fresh)
}

/// Makes a v1 cgroup in every hierarchy.
pub fn v1_everywhere(mounts: &[Mount], relative: &Path) -> Result<(), Error> {
    mounts.iter().try_for_each(|mount| v1_folder(mount, &mount.root.join(relative)).map(drop))
}

/// True when `resources` sets a limit of an on-demand v1 controller.
fn needs(resources: &LinuxResources, controller: &str) -> bool {
    match controller {
        "cpuset" => resources.cpu().as_ref().is_some_and(|c| c.cpus().is_some() || c.mems().is_some()),
        "hugetlb" => resources.hugepage_limits().as_ref().is_some_and(|l| !l.is_empty()),
        "net_cls" => resources.network().as_ref().is_some_and(|n| n.class_id().is_some()),
        "net_prio" => resources.network().as_ref().is_some_and(|n| n.priorities().is_some()),
        "rdma" => resources.rdma().as_ref().is_some_and(|r| !r.is_empty()),
        _ => false,
    }
}

fn v1_folder(mount: &Mount, dir: &Path) -> Result<bool, Error> {
    let made = match path::make(dir) {
        Err(e) if e.is_not_found() && dir.starts_with(&mount.root) && dir != mount.root => {
            if let Some(parent) = dir.parent() {
                v1_folder(mount, parent)?;
            }
            path::make(dir)?
        }
        other => other?,
    };
    if mount.controllers.contains(&"cpuset") {
        inherit_cpuset(dir)?;
    }
    Ok(made)
}

/// A new v1 cpuset is empty, and no process may enter an empty one.
fn inherit_cpuset(dir: &Path) -> Result<(), Error> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if path::read(&dir.join(file))?.trim().is_empty() {
            path::write(&dir.join(file), path::read(&parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Makes a v2 cgroup and hands every controller down the path to it.
pub fn v2(root: &Path, relative: &Path) -> Result<(), Error> {
    let mut dir = root.to_owned();
    for part in relative {
        delegate(&dir)?;
        dir.push(part);
        path::make(&dir)?;
    }
    Ok(())
}

/// Enables in the children of `dir` every controller that it has itself.
fn delegate(dir: &Path) -> Result<(), Error> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = path::read(&file)?;
    let has = |list: &str, name: &str| list.split_ascii_whitespace().any(|c| c == name);
    if V2_CONTROLLERS.iter().all(|c| has(&enabled, c)) {
        return Ok(());
    }
    let available = path::read(&dir.join("cgroup.controllers"))?;
    let missing: Vec<&str> =
        V2_CONTROLLERS.iter().copied().filter(|c| has(&available, c) && !has(&enabled, c)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let all: String = missing.iter().map(|c| format!("+{c} ")).collect();
    if path::write(&file, all.trim_end()).is_ok() {
        return Ok(());
    }
    // One controller that cannot be handed down (a domain with processes, realtime threads for cpu) must not keep
    // the others away; a limit that needs it fails later with the name of its file.
    let mut refused = None;
    for controller in &missing {
        if let Err(e) = path::write(&file, &format!("+{controller}")) {
            refused = Some(e);
        }
    }
    match refused {
        Some(Error::Io { source, path, .. })
            // Who has only a part of the tree cannot change what is above.
            if ![io::ErrorKind::ResourceBusy, io::ErrorKind::PermissionDenied].contains(&source.kind())
                && missing.len() == 1 =>
        {
            Err(Error::io("enable controllers in", path, source))
        }
        _ => Ok(()),
    }
}
