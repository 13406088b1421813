//! What a pod may not leave behind, and the harness's own tidying of cgroups.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::node::{BRIDGE, Node, TABLE};

/// Every test node's cgroup parent starts with this and the PID of its test.
pub const CGROUP_PREFIX: &str = "berth-test-e2e-";

/// How the command line begins of a shim that no pod has yet.
pub const SPARE_SHIM: &str = "berth shim --await-orders ";

/// Everything on the node's machine and in its folders that should have gone with its pods. Empty is good.
pub fn of_pods(node: &Node) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let agent = node.agent().ok();
    for process in node.machine().processes()? {
        // A shim that is nobody's yet belongs to the agent.
        if Some(process.pid) != agent && (agent.is_none() || !process.command.starts_with(SPARE_SHIM)) {
            left.push(format!("process {} {} {}", process.pid, process.state, process.command));
        }
    }
    for mount in node.machine().mounts()? {
        if !node.first_mounts().contains(&mount) {
            left.push(format!("mount {mount}"));
        }
    }
    for link in node.machine().links()? {
        // The bridges are the networks', which stay.
        if !["lo", "up0", BRIDGE].contains(&link.as_str()) && !link.starts_with("br-") {
            left.push(format!("link {link}"));
        }
    }
    let ruleset = node.machine().shell(&format!("nft list table inet {TABLE} 2>/dev/null || true"))?;
    left.extend(ruleset.lines().filter(|l| l.contains("elements = ")).map(|l| format!("nft {}", l.trim())));
    for cgroup in cgroups(node.cgroup_parent()) {
        // The tiers of quality of service stay.
        let name = cgroup.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !["kubepods", "burstable", "besteffort"].contains(&name.as_str())
            && !cgroup.ends_with(&node.cgroup_parent()[1..])
        {
            left.push(format!("cgroup {}", cgroup.display()));
        }
    }
    for folder in ["run/pods", "root/rootfs", "root/volumes", "log/pods", "log/containers"] {
        for entry in std::fs::read_dir(node.path(folder)).into_iter().flatten().flatten() {
            left.push(format!("file {}", entry.path().display()));
        }
    }
    Ok(left)
}

/// The root of every cgroup hierarchy, v1 and v2.
fn hierarchies() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let mut found = vec![top.to_path_buf()];
    found.extend(
        std::fs::read_dir(top).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()),
    );
    found
}

/// Every cgroup at and below a parent, in every hierarchy, children after their parents.
pub fn cgroups(parent: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = hierarchies()
        .into_iter()
        .map(|h| h.join(parent.trim_start_matches('/')))
        .filter(|p| p.is_dir())
        .collect();
    let mut next = 0;
    while next < found.len() {
        let below = std::fs::read_dir(&found[next]).into_iter().flatten().flatten().map(|e| e.path());
        let mut dirs: Vec<PathBuf> = below.filter(|p| p.is_dir()).collect();
        found.append(&mut dirs);
        next += 1;
    }
    found
}

/// Removes a cgroup and all below it, waiting a little for processes that are being killed.
pub fn remove_cgroups(parent: &str) {
    // A process that was killed leaves its cgroup when it has been reaped, of which there is no event here.
    let _ = crate::poll::until_true("the cgroups can be removed", std::time::Duration::from_secs(5), || {
        try_remove_cgroups(parent)
    });
}

/// Removes what can be removed; says whether that is all.
fn try_remove_cgroups(parent: &str) -> bool {
    cgroups(parent).iter().rev().filter(|dir| !is_removed(dir)).count() == 0
}

/// Where the machine lacks a controller, podman makes folders and files beside those of the others all the same.
fn is_removed(dir: &Path) -> bool {
    let is_cgroup = dir.join("cgroup.procs").exists();
    if is_cgroup { std::fs::remove_dir(dir).is_ok() } else { std::fs::remove_dir_all(dir).is_ok() }
}

/// Removes the cgroups of test nodes whose test was killed, as far as nothing runs in them any more.
pub fn sweep_cgroups() {
    for hierarchy in hierarchies() {
        for entry in std::fs::read_dir(&hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix(CGROUP_PREFIX).and_then(|rest| rest.split('-').next()) else {
                continue;
            };
            if !Path::new("/proc").join(pid).exists() {
                try_remove_cgroups(&format!("/{name}"));
            }
        }
    }
}
