//! The tree `kubepods[/burstable|/besteffort]/pod<uid>/<container>` of control groups.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use berth_reconciler::pod::Pod;
use berth_reconciler::resources::{self, QosClass};
use berth_runtime::cgroup::{Cgroups, CpuWeight, Error, Version};
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use crate::config::{Cfs, Config};
use crate::oci::{cgroup_resources, huge_pages};

/// The tree under the configured parent.
pub(super) struct Tree {
    cgroups: Cgroups,
    root: String,
    pids_limit: Option<i64>,
    cfs: Cfs,
    /// Processor shares of the burstable pods; their sum is the tier's share.
    burstable: Mutex<HashMap<String, u64>>,
}

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

fn typed(value: Value) -> LinuxResources {
    serde_json::from_value(value).expect("resources made here are well-formed")
}

impl Tree {
    pub fn new(cgroups: Cgroups, config: &Config) -> Self {
        Self {
            // Pods and tiers get the weights that a kubelet gives them, containers those of newer runtimes.
            cgroups: cgroups.with_cpu_weight(CpuWeight::Linear),
            root: format!("{}/kubepods", config.cgroup_parent),
            pids_limit: config.pod_pids_limit,
            cfs: config.cfs,
            burstable: Mutex::default(),
        }
    }

    fn tier(&self, class: QosClass) -> String {
        match class {
            QosClass::Guaranteed => self.root.clone(),
            QosClass::Burstable => format!("{}/burstable", self.root),
            QosClass::BestEffort => format!("{}/besteffort", self.root),
        }
    }

    /// The pod's cgroup.
    pub fn pod(&self, pod: &Pod) -> String {
        format!("{}/pod{}", self.tier(resources::qos_class(pod.spec())), pod.uid())
    }

    /// Whether there is swap accounting to limit by: cgroup v2, and a kernel that can swap.
    pub fn limits_swap(&self) -> bool {
        let dir = Path::new("/sys/fs/cgroup").join(self.root.trim_start_matches('/'));
        self.cgroups.version() == Version::V2 && dir.join("memory.swap.max").exists()
    }

    /// Makes the tiers; once, when the agent starts.
    pub fn prepare(&self) -> Result<(), Error> {
        self.cgroups.create(&self.root, &LinuxResources::default())?;
        let least = typed(json!({"cpu": {"shares": MIN_SHARES}}));
        for class in [QosClass::Burstable, QosClass::BestEffort] {
            self.cgroups.create(&self.tier(class), &least)?;
        }
        Ok(())
    }

    /// Makes the pod's cgroup with its limits.
    pub fn create(&self, pod: &Pod) -> Result<(), Error> {
        let values = resources::pod_values(pod.spec());
        let mut limits = cgroup_resources(&values, self.cfs);
        let pages = huge_pages(&resources::pod_huge_pages(pod.spec()));
        if !pages.is_empty() {
            limits["hugepageLimits"] = Value::Array(pages);
        }
        if let Some(limit) = self.pids_limit {
            limits["pids"] = json!({ "limit": limit });
        }
        self.cgroups.create(&self.pod(pod), &typed(limits))?;
        if resources::qos_class(pod.spec()) == QosClass::Burstable {
            self.share(pod.uid(), Some(values.shares))?;
        }
        Ok(())
    }

    /// Kills what runs in the pod's cgroup.
    pub fn kill(&self, pod: &Pod) -> Result<(), Error> {
        match self.cgroups.kill(&self.pod(pod)) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// Kills what runs in the pod's cgroup and removes it; can be repeated.
    pub fn remove(&self, pod: &Pod) -> Result<(), Error> {
        self.cgroups.remove(&self.pod(pod))?;
        if resources::qos_class(pod.spec()) == QosClass::Burstable {
            self.share(pod.uid(), None)?;
        }
        Ok(())
    }

    /// Records a burstable pod's shares and sets the tier's to the sum of all.
    fn share(&self, uid: &str, shares: Option<u64>) -> Result<(), Error> {
        let mut all = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
        let before = tier_shares(&all);
        match shares {
            Some(shares) => all.insert(uid.to_owned(), shares),
            None => all.remove(uid),
        };
        let after = tier_shares(&all);
        if after == before {
            return Ok(());
        }
        self.cgroups.update(&self.tier(QosClass::Burstable), &typed(json!({"cpu": {"shares": after}})))
    }

    /// Removes the cgroups of pods that nobody knows; gives their names.
    pub fn collect_garbage(&self, known: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut removed = Vec::new();
        for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            let tier = self.tier(class);
            for name in self.cgroups.list(&tier) {
                let Some(uid) = name.strip_prefix("pod") else { continue };
                if known(uid) {
                    continue;
                }
                match self.cgroups.remove(&format!("{tier}/{name}")) {
                    Ok(()) => removed.push(name),
                    Err(error) => {
                        tracing::warn!(cgroup = name, %error, "cannot remove a cgroup that no pod owns")
                    }
                }
            }
        }
        removed
    }

    /// Removes the whole tree, and the configured parent if nothing else is in it.
    pub fn remove_all(&self) -> Result<(), Error> {
        self.cgroups.remove(&self.root)?;
        let parent = self.root.trim_end_matches("/kubepods");
        let empty = |path: &str| {
            self.cgroups.list(path).is_empty() && self.cgroups.pids(path).is_ok_and(|pids| pids.is_empty())
        };
        if parent.is_empty() || !empty(parent) {
            return Ok(());
        }
        self.cgroups.remove(parent)
    }
}

fn tier_shares(pods: &HashMap<String, u64>) -> u64 {
    pods.values().sum::<u64>().clamp(MIN_SHARES, MAX_SHARES)
}
