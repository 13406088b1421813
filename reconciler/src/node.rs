//! The seam between deciding and doing: what a pod's worker needs of the machine, and the facts it gets back.
//!
//! The agent implements [`Node`] with shims, images and the pod network; tests and the simulator implement it with a script.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

use crate::pod::Pod;

/// Why an action failed, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// CamelCase reason as a kubelet shows it: `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`,
    /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`, `FailedCreatePodSandBox`, `FailedMount` ...
    pub reason: String,
    /// One line for a person: what failed, on which object, why, and what to do where that is known.
    pub message: String,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Exit code; 128 + signal for a signalled process; 128 when it could not be started.
    pub code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// Termination message, or why it could not be started.
    pub message: Option<String>,
    /// When it was started; none if it never ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// What one container instance is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContainerState {
    /// Made, its process does not run yet. After an agent crash such a leftover is removed and made anew.
    Created,
    /// Running since.
    Running {
        /// When its process was started.
        started_at: Timestamp,
    },
    /// Ended.
    Exited(Exit),
}

/// One instance of a container as found on the machine. Instances of one container differ by `attempt`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// 64 hex characters.
    pub id: String,
    /// The container's name in the pod.
    pub name: String,
    /// 0 for the first instance; equals the restart count while it is the newest.
    pub attempt: u32,
    /// The back-off that was waited before this instance, none for a first start. The next one follows from it,
    /// so that back-off survives the agent.
    pub delay: Option<Duration>,
    /// Hash of what makes two instances interchangeable (image, command, resources ...), from [`crate::planner::spec_hash`].
    pub spec_hash: String,
    /// Image reference that the pod asked for.
    pub image: String,
    /// What it resolved to: `sha256:...` or `repo@sha256:...`.
    pub image_id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it does now.
    pub state: ContainerState,
    /// Whether the container's own `lifecycle.postStart` has finished.
    #[serde(default)]
    pub post_start_done: bool,
    /// Who its first process is; none in records of agents that did not note it.
    #[serde(default)]
    pub user: Option<LinuxUser>,
    /// The resources that its cgroup was given last; none in records of agents that could not resize.
    #[serde(default)]
    pub resources: Option<v1::ResourceRequirements>,
    /// The exit that had all containers of the pod restarted before this instance was made (a rule with the action
    /// `RestartAllContainers`); it has to survive the record of that exit.
    #[serde(default)]
    pub round: Option<Timestamp>,
}

/// User and groups of a container's first process, as it sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinuxUser {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All groups, the primary one among them, in ascending order.
    pub groups: Vec<u32>,
}

/// The pod's sandbox: its shim, namespaces and network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sandbox {
    /// None was made, or it has been removed.
    #[default]
    Absent,
    /// Running.
    Ready {
        /// Pod addresses, the primary one first; the host's for hostNetwork.
        ips: Vec<IpAddr>,
        /// When it was made.
        created_at: Timestamp,
    },
    /// Its shim died; what is left must be removed before a new one is made.
    Dead,
}

/// Everything of one pod that exists on the machine now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observation {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// All instances that still have a record: the running ones and, per container, the last dead one.
    pub containers: Vec<ContainerRecord>,
    /// Its processes are frozen, at somebody's wish: nothing is probed or started until they go on.
    #[serde(default)]
    pub paused: bool,
    /// The node has decided to end it because it took too much; that stays so.
    #[serde(default)]
    pub evicted: Option<Eviction>,
    /// The resources that each container may have since the pod was resized last ([`Node::allocate`]); empty before.
    #[serde(default)]
    pub allocated: BTreeMap<String, v1::ResourceRequirements>,
}

/// Why and since when the node ends a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Eviction {
    /// `status.reason`: [`EVICTED`](crate::storage::EVICTED), [`TERMINATED`](crate::shutdown::TERMINATED).
    #[serde(default = "evicted")]
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// When it was decided.
    pub since: Timestamp,
    /// How long its containers may take at most, in seconds.
    #[serde(default = "one")]
    pub grace_seconds: u64,
}

/// What records of agents mean that knew of no other reason.
fn evicted() -> String {
    crate::storage::EVICTED.to_owned()
}

/// kubelet: `immediateEvictionGracePeriodSeconds`.
fn one() -> u64 {
    1
}

impl Eviction {
    /// Of a pod that takes too much: at once.
    pub fn at_once(message: String, since: Timestamp) -> Eviction {
        Eviction { reason: evicted(), message, since, grace_seconds: one() }
    }
}

/// An order to make and start one container instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartContainer {
    /// The container's name.
    pub name: String,
    /// Attempt number to record.
    pub attempt: u32,
    /// Back-off to record.
    pub delay: Option<Duration>,
    /// Hash to record.
    pub spec_hash: String,
    /// What its cgroup is given, and what is to be recorded.
    pub resources: v1::ResourceRequirements,
    /// The last restart of all containers, to be recorded.
    pub round: Option<Timestamp>,
}

/// How hard to ask a container to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StopSignal {
    /// The container's stop signal (`lifecycle.stopSignal`, else the image's, else TERM).
    Stop,
    /// KILL to everything in it.
    Kill,
}

/// Which of a container's lifecycle hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Hook {
    /// `lifecycle.postStart`, run once right after the start.
    PostStart,
    /// `lifecycle.preStop`, run before the stop signal, inside the grace period.
    PreStop,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// It succeeded.
    Success,
    /// It counts as a success, but somebody should look: the text of kubelet's `ProbeWarning` event.
    Warning(String),
    /// It failed or ran out of time; the text says how, as in kubelet's `Unhealthy` events.
    Failure(String),
}

/// What has come of a probe that the node has made again and again by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// What it found last; before that it has succeeded.
    pub outcome: ProbeOutcome,
    /// How long ago it was begun last.
    pub ago: Duration,
}

/// Probes until something is to be told.
pub type Probing = Pin<Box<dyn Future<Output = Probed> + Send>>;

/// An event to record about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// `true` for type Warning, `false` for Normal.
    pub warning: bool,
    /// `Pulling`, `Started`, `BackOff` ...
    pub reason: &'static str,
    /// One line.
    pub message: String,
    /// The container it is about; gives `involvedObject.fieldPath` (`spec.containers{name}`).
    pub container: Option<String>,
}

/// A deletion in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// When it was asked for; `metadata.deletionTimestamp` is this plus the grace period.
    pub requested_at: Timestamp,
    /// Grace period in seconds; 0 means KILL at once.
    pub grace_seconds: u64,
}

/// What a worker needs of the machine. Every verb can be repeated; each is told of one pod only, and no verb is
/// called twice at once for the same container of the same pod. What a verb has done shows in the next observation.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// What exists of the pod now. Cheap; it is asked before every plan.
    async fn observe(&self, uid: &str) -> Observation;

    /// Starts the shim and the pod's network, makes volumes, after removing what is left of a dead sandbox; records of
    /// its instances stay, as exited, and later instances are created after the new sandbox's `created_at`.
    /// When it fails, all that it had done is undone.
    async fn create_sandbox(&self, pod: &Arc<Pod>) -> Result<(), Failure>;

    /// Makes the container's image present as its imagePullPolicy says. Emits `Pulling` and `Pulled` itself; failures
    /// are reported by the caller. It may be dropped half-way, when the pod goes or wants another image.
    async fn ensure_image(&self, pod: &Arc<Pod>, container: &str) -> Result<(), Failure>;

    /// Makes and starts one instance; removes older dead instances of the same container but the last. A process that cannot be executed is no failure here but
    /// an instance that exited with `StartError`. Emits `Created` and `Started` itself.
    async fn start_container(&self, pod: &Arc<Pod>, start: &StartContainer) -> Result<(), Failure>;

    /// Removes one instance that was made but never started, as an agent that died half-way leaves it; no record of
    /// it stays.
    async fn remove_container(&self, pod: &Arc<Pod>, id: &str) -> Result<(), Failure>;

    /// Runs a lifecycle handler for a running instance and returns when it is done. A `postStart` that succeeded is
    /// recorded durably ([`ContainerRecord::post_start_done`]), so that the next agent does not run it again.
    async fn run_hook(
        &self,
        pod: &Arc<Pod>,
        id: &str,
        hook: Hook,
        handler: &v1::LifecycleHandler,
    ) -> Result<(), Failure>;

    /// Runs one probe against a running instance; the caller enforces nothing, the implementation honours `probe.timeoutSeconds`.
    async fn probe(&self, pod: &Arc<Pod>, id: &str, probe: &v1::Probe) -> ProbeOutcome;

    /// Makes a probe that has succeeded again, first after `wait`, then each time its period is over, and tells when it no longer
    /// succeeds, or after a while. Dropped, it makes no more. `None` where that would be no better than to be asked each time.
    fn probe_again(
        self: Arc<Self>,
        _pod: &Arc<Pod>,
        _id: &str,
        _probe: &v1::Probe,
        _wait: Duration,
    ) -> Option<Probing> {
        None
    }

    /// Signals a running instance and returns at once; its exit comes as a wake-up.
    async fn stop_container(&self, pod: &Arc<Pod>, id: &str, signal: StopSignal) -> Result<(), Failure>;

    /// Lets the pod's containers have the resources that its spec asks for, durably: they show in
    /// [`Observation::allocated`] from then on. Nothing that runs is changed yet. Fails with the reason `Infeasible` when
    /// the node is too small, `Deferred` when other pods have what is missing.
    async fn allocate(&self, pod: &Arc<Pod>) -> Result<(), Failure>;

    /// Gives a running instance's cgroup other cpu and memory values and records them durably
    /// ([`ContainerRecord::resources`]).
    async fn resize_container(
        &self,
        pod: &Arc<Pod>,
        id: &str,
        resources: &v1::ResourceRequirements,
    ) -> Result<(), Failure>;

    /// Removes everything of the pod that exists: containers, cgroups, sandbox, network, volumes, run folder.
    async fn remove_pod(&self, pod: &Arc<Pod>) -> Result<(), Failure>;

    /// Removes the sandbox and its containers' processes but keeps the records of exits, for a pod that has ended
    /// (phase Succeeded or Failed) and whose object stays.
    async fn stop_sandbox(&self, pod: &Arc<Pod>) -> Result<(), Failure>;

    /// The node's addresses, the primary one first, for `status.hostIPs`.
    fn host_ips(&self) -> Vec<IpAddr>;

    /// Makes status (and deletion) durable and visible. Called only when one of them or the pod itself changed.
    fn publish(&self, pod: &Arc<Pod>, deletion: Option<&Deletion>, status: &Arc<v1::PodStatus>);

    /// The pod is gone: nothing of it exists any more.
    fn gone(&self, pod: &Arc<Pod>);

    /// Records an event.
    fn event(&self, pod: &Arc<Pod>, event: PodEvent);
}
