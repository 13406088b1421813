//! What is known of one pod that has something on this machine, and how that lies on disk.
//!
//! Memory is a copy of the run folder, never the other way round: a record is written before it is believed, so that
//! the next agent finds what this one knew.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_netplug::Attachment;
use berth_reconciler::network::DEFAULT;
use berth_reconciler::node::{ContainerRecord, ContainerState, Deletion, Eviction, Observation, Sandbox};
use berth_reconciler::pod::Pod;
use berth_reconciler::shutdown::TERMINATED;
use berth_runtime::shim::client::Client;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::networks::Joined;

/// One container instance: the reconciler's record and what the agent needs beside it. `meta.json` of the bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    /// The reconciler's record. On disk its state is always `Created`: the truth is with the shim.
    pub record: ContainerRecord,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
    /// Its log file.
    pub log_path: PathBuf,
    /// Its cgroup.
    pub cgroup: String,
    /// Process id of its first process.
    #[serde(default)]
    pub pid: Option<i32>,
}

/// `sandbox.json`: there since the sandbox is complete, until it is taken down on purpose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxRecord {
    /// Pod addresses.
    pub ips: Vec<IpAddr>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What the pod's first network gave; none with hostNetwork, or without networks.
    pub attachment: Option<Attachment>,
    /// The first network's name; none is the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    /// What further networks gave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    further: Vec<Joined>,
}

impl SandboxRecord {
    /// A record of what these networks gave, the first one first.
    pub fn new(ips: Vec<IpAddr>, created_at: Timestamp, networks: Vec<Joined>) -> Self {
        let mut networks = networks.into_iter();
        let first = networks.next();
        let network = first.as_ref().map(|one| one.network.clone()).filter(|name| name != DEFAULT);
        let attachment = first.map(|one| one.attachment);
        Self { ips, created_at, attachment, network, further: networks.collect() }
    }

    /// What the pod's networks gave, the first one first.
    pub fn networks(&self) -> Vec<Joined> {
        let name = self.network.clone().unwrap_or_else(|| DEFAULT.into());
        let first = self.attachment.clone().map(|attachment| Joined { network: name, attachment });
        first.into_iter().chain(self.further.iter().cloned()).collect()
    }
}

/// `pod.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodRecord {
    /// The pod as it was accepted.
    #[serde(with = "crate::shared")]
    pub pod: Arc<Pod>,
    /// Its deletion, once asked for.
    #[serde(default)]
    pub deletion: Option<Deletion>,
}

/// The connection to a pod's shim.
#[derive(Clone, Debug)]
pub(crate) struct Shim {
    pub client: Client,
    /// Tells one connection from a later one.
    pub generation: u64,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub sandbox: Sandbox,
    /// What the pod's networks gave, the first one first.
    pub networks: Vec<Joined>,
    pub shim: Option<Shim>,
    pub generation: u64,
    pub instances: Vec<Instance>,
    /// Set once the pod is to end because it took too much.
    pub evicted: Option<Eviction>,
    /// `resources.json`: what each container may have since the pod was resized last.
    pub allocated: BTreeMap<String, v1::ResourceRequirements>,
    /// Set while an end of the shim is expected.
    pub closing: bool,
    saved: Option<(Arc<Pod>, Option<Deletion>)>,
}

/// One pod on this machine.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its run folder.
    pub dir: PathBuf,
    pod: Mutex<Arc<Pod>>,
    state: Mutex<State>,
    /// Whether its processes are frozen; whoever waits for them to go on listens here.
    paused: watch::Sender<bool>,
}

impl Entry {
    pub fn new(dir: PathBuf, pod: Arc<Pod>) -> Self {
        Self { dir, pod: Mutex::new(pod), state: Mutex::default(), paused: watch::Sender::new(false) }
    }

    pub fn pod(&self) -> Arc<Pod> {
        self.pod.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_pod(&self, pod: &Arc<Pod>) {
        *self.pod.lock().unwrap_or_else(PoisonError::into_inner) = pod.clone();
    }

    /// The state; hold it only between two awaits.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn observation(&self) -> Observation {
        let state = self.state();
        Observation {
            sandbox: state.sandbox.clone(),
            containers: state.instances.iter().map(|i| i.record.clone()).collect(),
            paused: self.is_paused(),
            evicted: state.evicted.clone(),
            allocated: state.allocated.clone(),
        }
    }

    /// Whether it is to end because the machine does.
    pub fn ends_with_machine(&self) -> bool {
        self.state().evicted.as_ref().is_some_and(|eviction| eviction.reason == TERMINATED)
    }

    /// Whether the node has decided to end it.
    pub fn is_evicted(&self) -> bool {
        self.state().evicted.is_some()
    }

    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    pub fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Lets its processes go on, if they are frozen.
    pub async fn resume(&self) -> Result<(), String> {
        if let Some(client) = self.client().filter(|_| self.is_paused()) {
            client.resume().await.map_err(|e| e.to_string())?;
        }
        self.set_paused(false);
        Ok(())
    }

    /// Tells when the pod is paused, resumed, or forgotten.
    pub fn pauses(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    /// When a sandbox that is complete now was made: after every instance that is on record, even if the clock was set
    /// back since. Whether an instance belongs to the sandbox is told by these times.
    pub fn sandbox_time(&self) -> Timestamp {
        let state = self.state();
        let last = state.instances.iter().map(|instance| instance.record.created_at).max();
        last.map_or_else(Timestamp::now, |last| Timestamp::now().max(just_after(last)))
    }

    /// When an instance that is recorded now was made: not before the sandbox that it belongs to, and after the last
    /// restart of all containers.
    pub fn instance_time(&self, round: Option<Timestamp>) -> Timestamp {
        let since = match &self.state().sandbox {
            Sandbox::Ready { created_at, .. } => Some(*created_at),
            Sandbox::Absent | Sandbox::Dead => None,
        };
        since.into_iter().chain(round.map(just_after)).fold(Timestamp::now(), Timestamp::max)
    }

    /// Whether there is anything of a sandbox, complete or not.
    pub fn has_sandbox(&self) -> bool {
        self.state().sandbox != Sandbox::Absent
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.state().sandbox, Sandbox::Ready { .. })
    }

    pub fn ips(&self) -> Vec<IpAddr> {
        match &self.state().sandbox {
            Sandbox::Ready { ips, .. } => ips.clone(),
            _ => Vec::new(),
        }
    }

    pub fn client(&self) -> Option<Client> {
        self.state().shim.as_ref().map(|s| s.client.clone())
    }

    pub fn has_instance(&self, id: &str) -> bool {
        self.state().instances.iter().any(|i| i.record.id == id)
    }

    pub fn instance(&self, id: &str) -> Option<Instance> {
        self.state().instances.iter().find(|i| i.record.id == id).cloned()
    }

    /// The running instance of a container.
    pub fn running(&self, container: &str) -> Option<Instance> {
        let state = self.state();
        state
            .instances
            .iter()
            .find(|i| i.record.name == container && matches!(i.record.state, ContainerState::Running { .. }))
            .cloned()
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("containers").join(id)
    }

    /// Writes `pod.json` if it would say something new.
    pub fn save_pod(&self, deletion: Option<&Deletion>) -> io::Result<()> {
        let pod = self.pod();
        let deletion = deletion.cloned();
        {
            let state = self.state();
            if let Some((known, known_deletion)) = &state.saved
                && (Arc::ptr_eq(known, &pod) || *known == pod)
                && *known_deletion == deletion
            {
                return Ok(());
            }
        }
        write_json(&self.dir.join("pod.json"), &PodRecord { pod: pod.clone(), deletion: deletion.clone() })?;
        self.state().saved = Some((pod, deletion));
        Ok(())
    }

    /// Makes status and deletion durable. A pod without a run folder has nothing that would need it.
    pub fn save_status(&self, deletion: Option<&Deletion>, status: &v1::PodStatus) {
        if !self.dir.exists() {
            return;
        }
        let written =
            self.save_pod(deletion).and_then(|()| write_json(&self.dir.join("status.json"), status));
        if let Err(error) = written {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot write the pod's record");
        }
    }

    /// Writes an instance's `meta.json`.
    pub fn save_instance(&self, instance: &Instance) -> io::Result<()> {
        let mut stored = instance.clone();
        stored.record.state = ContainerState::Created;
        write_json(&self.bundle(&instance.record.id).join("meta.json"), &stored)
    }
}

fn just_after(at: Timestamp) -> Timestamp {
    at.checked_add(SignedDuration::from_millis(1)).unwrap_or(at)
}

/// Writes JSON so that a reader sees the old or the new text, never half of one.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::other)?;
    let mut staged = path.as_os_str().to_owned();
    staged.push(".tmp");
    std::fs::write(&staged, text)?;
    std::fs::rename(&staged, path)
}

/// Reads JSON; none if the file is missing or makes no sense.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = std::fs::read(path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ignoring a record that cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use berth_reconciler::pod::Source;

    use super::*;

    fn entry() -> Entry {
        let pod = Pod::new(v1::Pod { spec: Some(v1::PodSpec::default()), ..v1::Pod::default() }, Source::Api);
        Entry::new(PathBuf::from("/nonexistent"), Arc::new(pod))
    }

    #[test]
    fn times_on_record_rise_even_if_the_clock_was_set_back() {
        let entry = entry();
        let soon = Timestamp::now() + SignedDuration::from_hours(1);
        assert!(entry.sandbox_time() < soon && entry.instance_time(None) < soon);
        entry.state().sandbox = Sandbox::Ready { ips: Vec::new(), created_at: soon };
        assert_eq!(entry.instance_time(None), soon, "it belongs to the sandbox");
        let later = soon + SignedDuration::from_secs(1);
        assert!(entry.instance_time(Some(later)) > later, "it is what was started after that exit");
        let record = ContainerRecord {
            id: "a".to_owned(),
            name: "c".to_owned(),
            attempt: 0,
            delay: None,
            spec_hash: String::new(),
            image: String::new(),
            image_id: String::new(),
            created_at: later,
            state: ContainerState::Created,
            post_start_done: false,
            user: None,
            resources: None,
            round: None,
        };
        let (log_path, cgroup) = (PathBuf::new(), String::new());
        entry.state().instances.push(Instance { record, stop_signal: 15, log_path, cgroup, pid: None });
        assert!(entry.sandbox_time() > later, "no instance of an older sandbox is taken for one of this");
    }
}
