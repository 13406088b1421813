//! Where the controllers are mounted.

use std::path::{Path, PathBuf};

use cgroups_rs::fs::hierarchies;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{Error, Version, path};

/// The v1 controllers that every cgroup is made in, because they count, kill or isolate.
const ALWAYS: [&str; 7] = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer", "blkio"];
/// The v1 controllers that a cgroup is made in only when one of their limits is asked for: each further hierarchy
/// costs a folder and an attach at every container start.
const ON_DEMAND: [&str; 5] = ["cpuset", "hugetlb", "net_cls", "net_prio", "rdma"];
/// Hierarchies without a limit to ask for: who may mount them must be in a cgroup there, too, see
/// [`super::Cgroups::make_everywhere`]. The last stands for the v2 hierarchy of a hybrid machine.
const BARE: [&str; 4] = ["perf_event", "misc", "name=systemd", UNIFIED];
const UNIFIED: &str = "unified";
/// Where systemd mounts that.
const UNIFIED_BESIDE: &str = "/sys/fs/cgroup/unified";

/// One mounted v1 hierarchy.
#[derive(Clone, Debug)]
pub struct Mount {
    /// The controllers in it; `cpu,cpuacct` share one on many machines.
    pub controllers: Vec<&'static str>,
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Mount {
    /// True when cgroups are made here without being asked for.
    pub fn always(&self) -> bool {
        self.controllers.iter().any(|c| ALWAYS.contains(c))
    }

    /// The name of the folder below `/sys/fs/cgroup` that shows this hierarchy in a container.
    pub fn name(&self) -> String {
        self.controllers.join(",").trim_start_matches("name=").to_owned()
    }

    /// The file in each cgroup that moves the thread which writes `0` there.
    pub fn entrance(&self) -> &'static str {
        if self.controllers == [UNIFIED] { "cgroup.procs" } else { "tasks" }
    }
}

/// All hierarchies in use.
#[derive(Clone, Debug)]
pub enum Hierarchy {
    /// One per controller.
    V1(Vec<Mount>),
    /// One for all, mounted here.
    V2(PathBuf),
}

impl Hierarchy {
    /// Looks at what is mounted. A machine with v1 controllers and an empty v2 beside them ("hybrid") is v1.
    pub fn detect() -> Result<Hierarchy, Error> {
        if hierarchies::is_cgroup2_unified_mode() {
            return Ok(Hierarchy::V2(PathBuf::from(hierarchies::UNIFIED_MOUNTPOINT)));
        }
        let mut mounts: Vec<Mount> = Vec::new();
        for info in hierarchies::mountinfo_self() {
            let known = ALWAYS.iter().chain(&ON_DEMAND).chain(&BARE);
            let controllers: Vec<&'static str> =
                known.filter(|c| info.super_opts.iter().any(|o| o == *c)).copied().collect();
            let seen = mounts.iter().any(|m| m.controllers == controllers);
            if !controllers.is_empty() && !seen {
                mounts.push(Mount { controllers, root: info.mount_point });
            }
        }
        if mounts.is_empty() {
            return Err(Error::NoHierarchy(
                "neither cgroup v2 on /sys/fs/cgroup nor v1 controllers".to_owned(),
            ));
        }
        let unified = Path::new(UNIFIED_BESIDE);
        if statfs(unified).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            mounts.push(Mount { controllers: vec![UNIFIED], root: unified.to_owned() });
        }
        Ok(Hierarchy::V1(mounts))
    }

    /// Which kind this is.
    pub fn version(&self) -> Version {
        match self {
            Hierarchy::V1(_) => Version::V1,
            Hierarchy::V2(_) => Version::V2,
        }
    }

    /// The folders of a cgroup in all hierarchies, whether they exist or not.
    pub fn folders(&self, relative: &Path) -> Vec<PathBuf> {
        match self {
            Hierarchy::V1(mounts) => mounts.iter().map(|m| m.root.join(relative)).collect(),
            Hierarchy::V2(root) => vec![root.join(relative)],
        }
    }

    /// The folder of a cgroup in the hierarchy of `controller`; on v2 there is only one.
    pub fn folder(&self, controller: &str, relative: &Path) -> Option<PathBuf> {
        match self {
            Hierarchy::V1(mounts) => {
                mounts.iter().find(|m| m.controllers.contains(&controller)).map(|m| m.root.join(relative))
            }
            Hierarchy::V2(root) => Some(root.join(relative)),
        }
    }

    /// The folders of a process by its `/proc/<pid>/cgroup`, with the names that they have in a container.
    pub fn own_folders(&self, cgroups: &str) -> Vec<(String, PathBuf)> {
        let of = |wanted: &dyn Fn(&str) -> bool, root: &Path| {
            let path = cgroups.lines().find_map(|line| {
                let (list, path) = line.split_once(':')?.1.split_once(':')?;
                list.split(',').any(wanted).then_some(path)
            });
            // What lies outside of the cgroup namespace cannot be shown.
            let inside = path.filter(|p| !p.starts_with("/..")).unwrap_or("/");
            root.join(inside.trim_start_matches('/'))
        };
        match self {
            Hierarchy::V1(mounts) => mounts
                .iter()
                .map(|m| {
                    let listed = |name: &str| {
                        m.controllers.contains(&name) || (m.controllers == [UNIFIED] && name.is_empty())
                    };
                    (m.name(), of(&listed, &m.root))
                })
                .collect(),
            Hierarchy::V2(root) => vec![(String::new(), of(&str::is_empty, root))],
        }
    }

    /// The names of the cgroups directly below, in any hierarchy, sorted.
    pub fn children(&self, relative: &Path) -> Vec<String> {
        let mut names: Vec<String> = self.folders(relative).iter().flat_map(|d| path::children(d)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_of_a_process() {
        let text = "5:cpu,cpuacct:/a/b\n4:pids:/../x\n1:name=systemd:/s\n0::/u\n";
        let own = |hierarchy: Hierarchy| {
            let folders = hierarchy.own_folders(text).into_iter();
            folders.map(|(name, dir)| (name, dir.display().to_string())).collect::<Vec<_>>()
        };
        let pair = |name: &str, dir: &str| (name.to_owned(), dir.to_owned());
        assert_eq!(own(Hierarchy::V2("/c".into())), [pair("", "/c/u")]);
        let mount = |controllers: &[&'static str], root: &str| Mount {
            controllers: controllers.to_vec(),
            root: root.into(),
        };
        let mounts = vec![
            mount(&["cpu", "cpuacct"], "/c/cpu"),
            mount(&["pids"], "/c/pids"),
            mount(&["name=systemd"], "/c/systemd"),
            mount(&[UNIFIED], "/c/unified"),
        ];
        let expected = [
            pair("cpu,cpuacct", "/c/cpu/a/b"),
            pair("pids", "/c/pids/"),
            pair("systemd", "/c/systemd/s"),
            pair("unified", "/c/unified/u"),
        ];
        assert_eq!(own(Hierarchy::V1(mounts)), expected);
    }
}
