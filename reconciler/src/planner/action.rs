//! What a plan consists of.

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::node::{Hook, StartContainer, StopSignal};

/// The next steps of one pod, and when to look again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Steps that can be taken at once and side by side.
    pub actions: Vec<Action>,
    /// When time alone makes another plan: the end of a back-off or of a grace period, the next probe.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Asks to be planned again at that time at the latest.
    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    pub(crate) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// The three kinds of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// `startupProbe`.
    Startup,
    /// `livenessProbe`.
    Liveness,
    /// `readinessProbe`.
    Readiness,
}

impl ProbeKind {
    /// All kinds.
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// The word that a kubelet's events begin with.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// Why a running instance is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The pod is being deleted, or has ended while this one still ran.
    PodEnds,
    /// A probe found it failed.
    Probe(ProbeKind),
    /// Its part of the spec was changed.
    SpecChanged,
    /// It gets other resources, and its `resizePolicy` says that it must be started anew for them.
    Resized,
    /// A container's exit has all containers of the pod restarted.
    AllRestart,
    /// Its `postStart` hook failed.
    PostStartFailed,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the sandbox, after removing what is left of a dead one.
    CreateSandbox,
    /// Make the image of a container present.
    EnsureImage {
        /// The container.
        container: String,
        /// Its image reference at the time of planning.
        image: String,
    },
    /// Make and start one instance.
    StartContainer(StartContainer),
    /// Remove an instance that was made but never started.
    RemoveContainer {
        /// The container.
        container: String,
        /// The instance.
        id: String,
    },
    /// Run a lifecycle hook.
    RunHook {
        /// The container.
        container: String,
        /// The instance.
        id: String,
        /// Which hook.
        hook: Hook,
    },
    /// Run one probe.
    Probe {
        /// The container.
        container: String,
        /// The instance.
        id: String,
        /// Which probe.
        kind: ProbeKind,
    },
    /// Signal a running instance.
    StopContainer {
        /// The container.
        container: String,
        /// The instance.
        id: String,
        /// How hard.
        signal: StopSignal,
    },
    /// Let the containers have the resources that the spec asks for now.
    Allocate,
    /// Give a running instance other resources.
    ResizeContainer {
        /// The container.
        container: String,
        /// The instance.
        id: String,
        /// What it gets.
        resources: v1::ResourceRequirements,
    },
    /// Take down the sandbox of a pod that has ended; its records stay.
    StopSandbox,
    /// Remove everything of the pod.
    RemovePod,
    /// Drop an image pull whose image is no longer wanted. Takes no time.
    DropPull {
        /// The container.
        container: String,
    },
    /// Remember a decision and tell about it in an event. Takes no time.
    Note(Note),
}

/// A decision to remember, so that it is made (and told) once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The sandbox died and is made anew.
    SandboxChanged,
    /// An instance is to be stopped.
    Stopping {
        /// The container.
        container: String,
        /// The instance.
        id: String,
        /// Why.
        cause: StopCause,
        /// Whether another instance will follow.
        restart: bool,
    },
    /// An instance does not react to its stop signal.
    StoppingSlowly {
        /// The container.
        container: String,
        /// The instance.
        id: String,
        /// Seconds since the stop signal.
        waited: i64,
        /// Seconds until KILL.
        left: i64,
    },
    /// The container waits in CrashLoopBackOff.
    BackingOff {
        /// The container.
        container: String,
        /// The instance that ended last.
        id: String,
    },
    /// The container waits in ImagePullBackOff.
    PullBackingOff {
        /// The container.
        container: String,
    },
    /// `activeDeadlineSeconds` is over.
    DeadlineExceeded,
}

/// What an action in flight occupies: two actions with equal keys never run at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The sandbox or the pod as a whole.
    Pod,
    /// A container's image.
    Image(String),
    /// The making or removing of a container's instances.
    Instance(String),
    /// A container's hook.
    Hook(String, Hook),
    /// A container's probe.
    Probe(String, ProbeKind),
    /// A container's stopping.
    Stop(String),
    /// The pod's resources.
    Resources,
}

impl Action {
    /// What the action occupies while it runs; none for actions that take no time.
    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Action::CreateSandbox | Action::StopSandbox | Action::RemovePod => Key::Pod,
            Action::EnsureImage { container, .. } => Key::Image(container.clone()),
            Action::StartContainer(start) => Key::Instance(start.name.clone()),
            Action::RemoveContainer { container, .. } => Key::Instance(container.clone()),
            Action::RunHook { container, hook, .. } => Key::Hook(container.clone(), *hook),
            Action::Probe { container, kind, .. } => Key::Probe(container.clone(), *kind),
            Action::StopContainer { container, .. } => Key::Stop(container.clone()),
            Action::Allocate | Action::ResizeContainer { .. } => Key::Resources,
            Action::DropPull { .. } | Action::Note(_) => return None,
        })
    }
}
