//! Units as systemd shows them, and runtimes that make some.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use berth_e2e::bundle::{Bundle, Runtime, is_v2};
use berth_e2e::poll::until_true;
use berth_e2e::tools::{Ran, run};
use serde_json::{Value, json};

pub fn berth() -> Runtime {
    Runtime::berth().with(&["--systemd-cgroup"])
}

pub fn crun() -> Runtime {
    Runtime::other("crun").unwrap().with(&["--systemd-cgroup"])
}

pub fn runc() -> Runtime {
    Runtime::other("runc").unwrap().with(&["--systemd-cgroup"])
}

pub fn systemctl(words: &[&str]) -> Ran {
    let mut command = Command::new("systemctl");
    command.args(words);
    run(command).unwrap()
}

/// A container in a scope of its own.
pub struct Unit {
    pub bundle: Bundle,
    pub scope: String,
    /// The folder of its cgroup below a hierarchy.
    pub path: String,
}

impl Unit {
    /// In a slice that is two levels deep.
    pub fn new(runtime: &Runtime) -> Unit {
        let mut bundle = Bundle::new(runtime).unwrap();
        bundle.shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done");
        // A slice's name must not have more than the dashes that make its parents.
        let slice = format!("berthtest-{}.slice", bundle.id.replace('-', "_"));
        bundle.config["linux"]["cgroupsPath"] = json!(format!("{slice}:e2e:{}", bundle.id));
        let scope = format!("e2e-{}.scope", bundle.id);
        let path = format!("berthtest.slice/{slice}/{scope}");
        Unit { bundle, scope, path }
    }

    /// Whether the kernel has the controller; the VM's one has not all in version 1.
    pub fn has(controller: &str) -> bool {
        is_v2() || Path::new("/sys/fs/cgroup").join(controller).exists()
    }

    pub fn resources(&mut self, resources: &Value) {
        let all = self.bundle.config["linux"]["resources"].as_object_mut().unwrap();
        all.extend(resources.as_object().unwrap().clone());
    }

    pub fn launch(&self) {
        self.bundle.launch().unwrap();
        self.bundle.wait_output("up").unwrap();
    }

    /// Properties of the scope, as `systemctl show` prints them.
    pub fn show(&self, names: &[&str]) -> BTreeMap<String, String> {
        let shown = systemctl(&["show", "-p", &names.join(","), &self.scope]).ok().unwrap();
        shown.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    pub fn property(&self, name: &str) -> String {
        self.show(&[name]).remove(name).unwrap_or_default()
    }

    /// The folder of the cgroup, in the hierarchy of a controller on v1.
    pub fn folder(&self, controller: &str) -> PathBuf {
        let top = Path::new("/sys/fs/cgroup");
        // crun makes one more inside, to have files that systemd does not touch.
        let inner = |dir: PathBuf| if dir.join("container").exists() { dir.join("container") } else { dir };
        inner(if is_v2() { top.join(&self.path) } else { top.join(controller).join(&self.path) })
    }

    /// A file of the cgroup.
    pub fn file(&self, controller: &str, v1: &str, v2: &str) -> String {
        let name = if is_v2() { v2 } else { v1 };
        let file = self.folder(controller).join(name);
        // What crun's inner cgroup is not limited to, the outer one is.
        let text = std::fs::read_to_string(&file).unwrap();
        text.trim().to_owned()
    }

    /// Waits until systemd knows the scope no more and nothing of the cgroup is there.
    pub fn assert_gone(&self) {
        let gone = || self.property("LoadState") == "not-found" || self.property("ActiveState") == "inactive";
        until_true("the scope is gone", Duration::from_secs(30), gone).unwrap();
        let left: Vec<PathBuf> = walk(Path::new("/sys/fs/cgroup"), &self.scope);
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = self.bundle.call(&["delete", "--force", &self.bundle.id]);
        systemctl(&["stop", &self.scope]);
    }
}

/// The folders of this name, at any depth.
fn walk(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if entry.file_name() == name {
                found.push(entry.path());
            }
            found.extend(walk(&entry.path(), name));
        }
    }
    found
}
