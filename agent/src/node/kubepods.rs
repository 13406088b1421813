//! The tree `kubepods[/burstable|/besteffort]/pod<uid>/<container>` of control groups.
//!
//! With systemd's driver the folders but the last are slices, `kubepods-burstable-pod<uid>.slice`, and the last one is a
//! scope. A scope must have a process from the first moment on, and the shim knows nothing of systemd: so a process of ours
//! holds the scope until the container is in it, see [`Hold`].

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use berth_reconciler::memory_qos::{MemoryQos, Setting};
use berth_reconciler::pod::Pod;
use berth_reconciler::resources::{self, QosClass};
use berth_runtime::cgroup::{Cgroups, CpuWeight, Driver, Error, Version, slice_path};
use berth_runtime::container::complete_device_rules;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::config::eviction::Reserved;
use crate::config::{Cfs, Config};
use crate::oci::{cgroup_resources, huge_pages};

/// The tree under the configured parent.
pub(super) struct Tree {
    cgroups: Cgroups,
    driver: Driver,
    /// Path of the configured parent, empty for the root.
    parent: String,
    pids_limit: Option<i64>,
    cfs: Cfs,
    memory_qos: Option<MemoryQos>,
    /// What all pods together are kept to.
    whole: Whole,
    /// What each pod asks for: the tiers above get the sums.
    asks: Mutex<HashMap<String, Ask>>,
}

/// What all pods together may have (`enforceNodeAllocatable: [pods]`); none: what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Whole {
    /// Bytes of memory.
    memory: Option<u64>,
    /// Process ids.
    pids: Option<u64>,
}

impl Whole {
    /// What is left of the machine beside what is reserved. As with a kubelet, what has to be left before pods are evicted
    /// is not taken away here: pods are to be evicted, not killed.
    fn of(reserved: &Reserved, memory: Option<u64>, pids: Option<u64>) -> Self {
        let left = |all: Option<u64>, reserved: u64| {
            all.filter(|_| reserved > 0).map(|all| all.saturating_sub(reserved))
        };
        match reserved.enforced {
            true => Self { memory: left(memory, reserved.memory), pids: left(pids, reserved.pids) },
            false => Self::default(),
        }
    }

    fn limits(self) -> LinuxResources {
        let limit = |amount: Option<u64>| amount.map_or(-1, |amount| i64::try_from(amount).unwrap_or(-1));
        typed(json!({"memory": {"limit": limit(self.memory)}, "pids": {"limit": limit(self.pids)}}))
    }
}

/// What a pod's cgroup asks of those above it.
#[derive(Clone, Copy, Debug)]
struct Ask {
    class: QosClass,
    /// Processor shares.
    shares: u64,
    /// Bytes of memory requested.
    memory: u64,
}

/// What all pods ask for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sums {
    /// Processor shares of the Burstable pods.
    shares: u64,
    /// Bytes that the Burstable pods request.
    burstable: u64,
    /// Bytes that the Guaranteed pods request.
    guaranteed: u64,
}

impl Sums {
    fn of(asks: &HashMap<String, Ask>) -> Sums {
        let sum = |class: QosClass, of: fn(&Ask) -> u64| {
            asks.values().filter(|ask| ask.class == class).map(of).fold(0, u64::saturating_add)
        };
        Sums {
            shares: sum(QosClass::Burstable, |ask| ask.shares).clamp(MIN_SHARES, MAX_SHARES),
            burstable: sum(QosClass::Burstable, |ask| ask.memory),
            guaranteed: sum(QosClass::Guaranteed, |ask| ask.memory),
        }
    }
}

/// `linux.resources.unified` of some files.
pub(super) fn unified(settings: Vec<Setting>) -> Value {
    settings.into_iter().map(|(file, value)| (file.to_owned(), Value::String(value))).collect()
}

/// The word that all paths begin with, below the configured parent.
const ROOT: &str = "kubepods";

fn tier_words(class: QosClass) -> &'static [&'static str] {
    match class {
        QosClass::Guaranteed => &[ROOT],
        QosClass::Burstable => &[ROOT, "burstable"],
        QosClass::BestEffort => &[ROOT, "besteffort"],
    }
}

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

fn typed(value: Value) -> LinuxResources {
    serde_json::from_value(value).expect("resources made here are well-formed")
}

impl Tree {
    pub fn new(cgroups: Cgroups, config: &Config) -> Self {
        let memory_qos = config.memory_qos.filter(|_| cgroups.version() == Version::V2);
        Self {
            // Pods and tiers get the weights that a kubelet gives them, containers those of newer runtimes.
            cgroups: cgroups.with_cpu_weight(CpuWeight::Linear).with_driver(config.cgroup_driver),
            driver: config.cgroup_driver,
            parent: config.cgroup_parent.clone(),
            pids_limit: config.pod_pids_limit,
            cfs: config.cfs,
            memory_qos,
            whole: Whole::of(
                &config.room.reserved,
                crate::facts::meminfo("MemTotal:"),
                crate::pressure::pid_limit(),
            ),
            asks: Mutex::default(),
        }
    }

    /// A cgroup below the configured parent.
    fn path(&self, words: &[&str]) -> String {
        if self.driver == Driver::Systemd {
            let all: Vec<&str> = self.parent.split('/').chain(words.iter().copied()).collect();
            return slice_path(&all);
        }
        words.iter().fold(self.parent.clone(), |path, word| format!("{path}/{word}"))
    }

    fn tier(&self, class: QosClass) -> String {
        self.path(tier_words(class))
    }

    /// The pod's cgroup.
    pub fn pod(&self, pod: &Pod) -> String {
        let own = format!("pod{}", pod.uid());
        self.path(&[tier_words(resources::qos_class(pod.spec())), &[&own]].concat())
    }

    /// A container's cgroup.
    pub fn container(&self, pod: &Pod, id: &str) -> String {
        match self.driver {
            Driver::Systemd => format!("{}/berth-{id}.scope", self.pod(pod)),
            _ => format!("{}/{id}", self.pod(pod)),
        }
    }

    /// Whether systemd makes the cgroups of containers: [`Hold`] asks for those of our own engine, and it is told the limits.
    pub fn has_scopes(&self) -> bool {
        self.driver == Driver::Systemd
    }

    /// Tells who makes the cgroups of the limits of a container.
    pub fn tell(&self, path: &str, mut limits: LinuxResources) -> Result<(), Error> {
        complete_device_rules(&mut limits);
        // Containers have the other formula, see `new`.
        self.cgroups.with_cpu_weight(CpuWeight::default()).tell(path, &limits)
    }

    /// Whether there is swap accounting to limit by: cgroup v2, and a kernel that can swap.
    pub fn limits_swap(&self) -> bool {
        let dir = Path::new("/sys/fs/cgroup").join(self.path(&[ROOT]).trim_start_matches('/'));
        self.cgroups.version() == Version::V2 && dir.join("memory.swap.max").exists()
    }

    /// Makes the tiers; once, when the agent starts.
    pub fn prepare(&self) -> Result<(), Error> {
        let root = self.path(&[ROOT]);
        if self.whole == Whole::default() {
            self.cgroups.create(&root, &LinuxResources::default())?;
            // An earlier agent may have had reservations.
            if let Err(error) = self.cgroups.update(&root, &self.whole.limits()) {
                tracing::debug!(%error, "cannot lift the limits of all pods");
            }
        } else {
            self.cgroups.create(&root, &self.whole.limits())?;
        }
        let least = typed(json!({"cpu": {"shares": MIN_SHARES}}));
        for class in [QosClass::Burstable, QosClass::BestEffort] {
            self.cgroups.create(&self.tier(class), &least)?;
        }
        Ok(())
    }

    /// Makes the pod's cgroup with these limits. May be repeated with others.
    pub fn limit(&self, pod: &Pod, values: &resources::CpuMem) -> Result<(), Error> {
        let mut limits = cgroup_resources(values, self.cfs);
        let pages = huge_pages(&resources::pod_huge_pages(pod.spec()));
        if !pages.is_empty() {
            limits["hugepageLimits"] = Value::Array(pages);
        }
        if let Some(limit) = self.pids_limit {
            limits["pids"] = json!({ "limit": limit });
        }
        let class = resources::qos_class(pod.spec());
        if let Some(qos) = &self.memory_qos {
            limits["unified"] = unified(qos.pod(class, values.memory_request));
        }
        // Those above must have it first for the pod to have it.
        self.ask(pod.uid(), Some(Ask { class, shares: values.shares, memory: values.memory_request }))?;
        self.cgroups.create(&self.pod(pod), &typed(limits))
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
        self.ask(pod.uid(), None)
    }

    /// Records what a pod asks for and gives the tiers the sums of all.
    fn ask(&self, uid: &str, ask: Option<Ask>) -> Result<(), Error> {
        let mut all = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Sums::of(&all);
        match ask {
            Some(ask) => all.insert(uid.to_owned(), ask),
            None => all.remove(uid),
        };
        let after = Sums::of(&all);
        if let Some(qos) = self
            .memory_qos
            .filter(|_| (after.burstable, after.guaranteed) != (before.burstable, before.guaranteed))
        {
            let files = unified(qos.root(after.guaranteed, after.burstable));
            self.cgroups.update(&self.path(&[ROOT]), &typed(json!({ "unified": files })))?;
        }
        if (after.shares, after.burstable) == (before.shares, before.burstable) {
            return Ok(());
        }
        let mut limits = json!({"cpu": {"shares": after.shares}});
        if let Some(qos) = &self.memory_qos {
            limits["unified"] = unified(qos.burstable_tier(after.burstable));
        }
        self.cgroups.update(&self.tier(QosClass::Burstable), &typed(limits))
    }

    /// Removes the cgroups of pods that nobody knows; gives their names.
    pub fn collect_garbage(&self, known: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut removed = Vec::new();
        for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            let tier = self.tier(class);
            for name in self.cgroups.list(&tier) {
                let Some(uid) = self.uid_of(class, &name) else { continue };
                if known(&uid) {
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

    /// The pod whose cgroup in a tier has this name.
    fn uid_of(&self, class: QosClass, name: &str) -> Option<String> {
        if self.driver != Driver::Systemd {
            return name.strip_prefix("pod").map(str::to_owned);
        }
        let tier = self.tier(class);
        let stem = tier.rsplit('/').next()?.strip_suffix(".slice")?;
        let own = name.strip_prefix(stem)?.strip_prefix("-pod")?.strip_suffix(".slice")?;
        Some(own.replace('_', "-"))
    }

    /// Removes the whole tree, and the configured parent if nothing else is in it.
    pub fn remove_all(&self) -> Result<(), Error> {
        self.cgroups.remove(&self.path(&[ROOT]))?;
        let parent = &*self.path(&[]);
        let empty = |path: &str| {
            self.cgroups.list(path).is_empty() && self.cgroups.pids(path).is_ok_and(|pids| pids.is_empty())
        };
        if parent.is_empty() || !empty(parent) {
            return Ok(());
        }
        self.cgroups.remove(parent)
    }
}

/// A process that keeps a container's scope until the container is in it. It ends with this, or with the agent.
pub(super) struct Hold {
    child: tokio::process::Child,
}

impl Hold {
    /// Has a process of our own ask systemd for the scope, so that this one need not wait for it, and stay in it.
    pub async fn scope(path: &str) -> anyhow::Result<Hold> {
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.args([HOLD, path]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().context("start a process for the scope")?;
        let mut said = String::new();
        let mut output = BufReader::new(child.stdout.take().context("it has no output")?);
        output.read_line(&mut said).await.context("wait for the scope")?;
        if said == READY {
            return Ok(Hold { child });
        }
        let ended = child.wait_with_output().await.context("wait for the scope")?;
        bail!("{}", String::from_utf8_lossy(&ended.stderr).trim())
    }

    /// Lets go.
    pub async fn release(mut self) {
        drop(self.child.stdin.take());
        // It has been told; when it cannot be waited for it is killed.
        let _ = self.child.wait().await;
    }
}

/// The word for [`hold`] on the command line, which is for the agent itself only.
pub const HOLD: &str = "hold-scope";
const READY: &str = "ready\n";

/// What the process does: gets itself a scope, says so, and waits for the end of its input.
pub fn hold(path: &str) -> anyhow::Result<()> {
    Cgroups::detect()?.with_driver(Driver::Systemd).hold_scope(path)?;
    let mut out = std::io::stdout();
    out.write_all(READY.as_bytes()).and_then(|()| out.flush()).context("say that the scope is there")?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("wait for the end")?;
    Ok(())
}
