//! How a memory changes when a step begins and when it is done, and the events that come of it.

use jiff::Timestamp;

use crate::backoff::{Backoff, Failed};
use crate::node::{Failure, Hook, PodEvent, ProbeOutcome, StopSignal};
use crate::planner::action::{Action, Key, Note, ProbeKind, StopCause};
use crate::planner::memory::{Memory, PostStart, Stopping};
use crate::planner::probe;
use crate::planner::{end, resize};
use crate::pod::Pod;

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of every step but a probe.
    Done(Result<(), Failure>),
    /// Of a probe.
    Probed(ProbeOutcome),
}

impl Memory {
    /// A step begins (or, if it takes no time, is done). Gives the event to record about it.
    pub fn begin(&mut self, pod: &Pod, action: &Action, now: Timestamp) -> Option<PodEvent> {
        if let Some(key) = action.key() {
            self.in_flight.insert(key);
        }
        match action {
            Action::EnsureImage { container, image } => {
                let memory = self.container_mut(container);
                memory.pulling = Some(image.clone());
                memory.pull_backoff_noted = false;
            }
            Action::DropPull { container } => {
                self.container_mut(container).pulling = None;
                self.in_flight.remove(&Key::Image(container.clone()));
            }
            Action::RunHook { container, id, hook } => {
                // From here on what is remembered of the container is about this instance.
                let stopping = &mut self.instance_mut(container, id).stopping;
                if let (Hook::PreStop, Some(stopping)) = (hook, stopping) {
                    stopping.pre_stop_begun = true;
                }
            }
            Action::Probe { container, id, kind } => {
                self.instance_mut(container, id).probe_mut(*kind).last_begun = Some(now);
            }
            Action::StopContainer { container, id, signal } => {
                self.signalled(container, id, *signal, now);
            }
            Action::Allocate => self.allocating(pod),
            Action::Note(note) => return self.note(pod, note, now),
            _ => {}
        }
        None
    }

    fn signalled(&mut self, container: &str, id: &str, signal: StopSignal, now: Timestamp) {
        let instance = self.containers.get_mut(container).and_then(|memory| memory.instance.as_mut());
        match instance.filter(|i| i.id == id).and_then(|i| i.stopping.as_mut()) {
            None => {
                self.strays.insert(id.to_owned(), now);
            }
            Some(stopping) => match signal {
                StopSignal::Stop => stopping.term_at = Some(now),
                StopSignal::Kill => {
                    stopping.kill_at = Some(now);
                    stopping.kills = stopping.kills.saturating_add(1);
                }
            },
        }
    }

    fn note(&mut self, pod: &Pod, note: &Note, now: Timestamp) -> Option<PodEvent> {
        Some(match note {
            Note::SandboxChanged => {
                self.sandbox_change_noted = true;
                normal("SandboxChanged", None, "Pod sandbox changed, it will be killed and re-created.")
            }
            Note::DeadlineExceeded => {
                self.deadline_noted = true;
                normal(end::DEADLINE_EXCEEDED, None, end::DEADLINE_MESSAGE)
            }
            Note::Stopping { container, id, cause, restart } => {
                let stopping = &mut self.instance_mut(container, id).stopping;
                stopping.get_or_insert_with(|| Stopping::new(*cause, now));
                normal("Killing", Some(container), killing_text(container, *cause, *restart))
            }
            Note::StoppingSlowly { container, id, waited, left } => {
                if let Some(stopping) = &mut self.instance_mut(container, id).stopping {
                    stopping.slow_noted = true;
                }
                let text = format!(
                    "Container {container} still runs {waited}s after its stop signal; it will be killed in {left}s"
                );
                warning("StoppingSlowly", Some(container), text)
            }
            Note::BackingOff { container, id } => {
                self.container_mut(container).backoff_noted = Some(id.clone());
                let text =
                    format!("Back-off restarting failed container {container} in pod {}", pod_label(pod));
                warning("BackOff", Some(container), text)
            }
            Note::PullBackingOff { container } => {
                self.container_mut(container).pull_backoff_noted = true;
                let image = pod.container(container).and_then(|c| c.image.as_deref()).unwrap_or_default();
                normal("BackOff", Some(container), format!("Back-off pulling image \"{image}\""))
            }
        })
    }

    /// A step is done. Gives the events to record about it.
    pub fn finish(&mut self, pod: &Pod, action: &Action, outcome: &Outcome, now: Timestamp) -> Vec<PodEvent> {
        if let Some(key) = action.key() {
            self.in_flight.remove(&key);
        }
        match (action, outcome) {
            (Action::Probe { container, id, kind }, Outcome::Probed(outcome)) => {
                self.probed(pod, container, id, *kind, outcome)
            }
            (_, Outcome::Probed(_)) => Vec::new(),
            (_, Outcome::Done(Ok(()))) => {
                self.succeeded(action);
                resize::events(action).into_iter().collect()
            }
            (_, Outcome::Done(Err(failure))) => self.failed(pod, action, failure, now),
        }
    }

    /// Before [`Memory::finish`] of a probe: when it is due again, if nothing else will change because it has succeeded as it did
    /// before and its instance goes on.
    pub fn repeats(&self, pod: &Pod, action: &Action, outcome: &Outcome) -> Option<Timestamp> {
        let (Action::Probe { container, id, kind }, Outcome::Probed(ProbeOutcome::Success)) =
            (action, outcome)
        else {
            return None;
        };
        let spec = probe::spec_of(pod, container, *kind)?;
        let instance = self.instance(container, id).filter(|instance| instance.stopping.is_none())?;
        let probe = instance.probe(*kind);
        let begun = probe.last_begun.filter(|_| probe.result == Some(true))?;
        Some(probe::again(spec, begun))
    }

    /// From now on the node makes that probe by itself: it is under way all the time.
    pub fn delegated(&mut self, action: &Action) {
        self.in_flight.extend(action.key());
    }

    /// No longer. Since `first` it was made as often as it was due.
    pub fn taken_back(&mut self, pod: &Pod, action: &Action, first: Timestamp, now: Timestamp) {
        let Action::Probe { container, id, kind } = action else { return };
        self.in_flight.remove(&Key::Probe(container.clone(), *kind));
        let Some(spec) = probe::spec_of(pod, container, *kind) else { return };
        let known = self.containers.get_mut(container).and_then(|memory| memory.instance.as_mut());
        if let Some(instance) = known.filter(|instance| instance.id == *id && first <= now) {
            let each = std::iter::successors(Some(first), |last| Some(probe::again(spec, *last)));
            instance.probe_mut(*kind).last_begun = each.take_while(|begun| *begun <= now).last();
        }
    }

    /// Whether an instance is being stopped.
    pub fn is_stopping(&self, container: &str, id: &str) -> bool {
        self.instance(container, id).is_some_and(|instance| instance.stopping.is_some())
    }

    fn probed(
        &mut self,
        pod: &Pod,
        container: &str,
        id: &str,
        kind: ProbeKind,
        outcome: &ProbeOutcome,
    ) -> Vec<PodEvent> {
        let Some(spec) = probe::spec_of(pod, container, kind) else {
            return Vec::new();
        };
        let memory = self.containers.get_mut(container).and_then(|memory| memory.instance.as_mut());
        let Some(instance) = memory.filter(|instance| instance.id == id) else { return Vec::new() };
        instance.probe_mut(kind).count(spec, outcome);
        match outcome {
            ProbeOutcome::Success => Vec::new(),
            ProbeOutcome::Warning(text) => {
                vec![warning(
                    "ProbeWarning",
                    Some(container),
                    format!("{} probe warning: {text}", kind.as_str()),
                )]
            }
            ProbeOutcome::Failure(text) => {
                vec![warning("Unhealthy", Some(container), format!("{} probe failed: {text}", kind.as_str()))]
            }
        }
    }

    fn succeeded(&mut self, action: &Action) {
        match action {
            Action::CreateSandbox => {
                self.sandbox = None;
                self.sandbox_change_noted = false;
            }
            Action::EnsureImage { container, image } => {
                let memory = self.container_mut(container);
                memory.pulling = None;
                memory.pulled = Some(image.clone());
                memory.pull = None;
            }
            Action::StartContainer(start) => {
                let memory = self.container_mut(&start.name);
                memory.pulled = None;
                memory.create = None;
            }
            Action::RunHook { container, id, hook: Hook::PostStart } => {
                self.post_start(container, id, PostStart::Done);
            }
            Action::Allocate => (self.allocating, self.allocate) = (None, None),
            Action::ResizeContainer { container, .. } => self.container_mut(container).resize = None,
            Action::StopSandbox => self.stop_sandbox = None,
            Action::RemovePod => self.removed = true,
            _ => {}
        }
    }

    fn post_start(&mut self, container: &str, id: &str, outcome: PostStart) {
        let newer = self.container(container).and_then(|c| c.instance.as_ref()).is_some_and(|i| i.id != id);
        if !newer {
            self.instance_mut(container, id).post_start = outcome;
        }
    }

    fn failed(&mut self, pod: &Pod, action: &Action, failure: &Failure, now: Timestamp) -> Vec<PodEvent> {
        let again =
            |previous: Option<&Failed>, backoff| Some(Failed::again(previous, failure.clone(), backoff, now));
        let text = failure.message.as_str();
        match action {
            Action::CreateSandbox => {
                self.sandbox = again(self.sandbox.as_ref(), Backoff::RETRY);
                vec![if failure.reason == "FailedMount" {
                    warning("FailedMount", None, text)
                } else {
                    warning("FailedCreatePodSandBox", None, format!("Failed to create pod sandbox: {text}"))
                }]
            }
            Action::EnsureImage { container, image } => {
                let memory = self.container_mut(container);
                let previous = memory.pull.as_ref().filter(|(of, _)| of == image).map(|(_, failed)| failed);
                memory.pull = again(previous, Backoff::PULL).map(|failed| (image.clone(), failed));
                memory.pulling = None;
                pull_events(container, image, failure)
            }
            Action::StartContainer(start) => {
                let memory = self.container_mut(&start.name);
                memory.create = again(memory.create.as_ref(), Backoff::RETRY);
                memory.pulled = None;
                vec![warning("Failed", Some(&start.name), format!("Error: {text}"))]
            }
            Action::RunHook { container, id, hook: Hook::PostStart } => {
                self.post_start(container, id, PostStart::Failed);
                vec![warning("FailedPostStartHook", Some(container), format!("PostStartHook failed: {text}"))]
            }
            Action::RunHook { container, .. } => {
                vec![warning("FailedPreStopHook", Some(container), format!("PreStopHook failed: {text}"))]
            }
            Action::StopContainer { container, .. } => {
                vec![warning("FailedKillPod", Some(container), format!("error killing container: {text}"))]
            }
            Action::RemoveContainer { container, .. } => {
                let memory = self.container_mut(container);
                memory.create = again(memory.create.as_ref(), Backoff::RETRY);
                vec![warning("Failed", Some(container), format!("Error: {text}"))]
            }
            Action::Allocate => self.not_allocated(pod, failure, now).into_iter().collect(),
            Action::ResizeContainer { container, .. } => {
                let memory = self.container_mut(container);
                memory.resize = again(memory.resize.as_ref(), Backoff::RETRY);
                vec![warning("ResizeError", Some(container), text)]
            }
            Action::StopSandbox => {
                self.stop_sandbox = again(self.stop_sandbox.as_ref(), Backoff::RETRY);
                vec![warning("FailedKillPod", None, format!("error killing pod: {text}"))]
            }
            Action::RemovePod => {
                self.remove_pod = again(self.remove_pod.as_ref(), Backoff::RETRY);
                vec![warning("FailedKillPod", None, format!("error killing pod: {text}"))]
            }
            Action::Probe { .. } | Action::DropPull { .. } | Action::Note(_) => Vec::new(),
        }
    }
}

/// `name_namespace(uid)`, as kubelet's messages name a pod.
pub(crate) fn pod_label(pod: &Pod) -> String {
    format!("{}_{}({})", pod.name(), pod.namespace(), pod.uid())
}

fn killing_text(container: &str, cause: StopCause, restart: bool) -> String {
    let tail = if restart { ", will be restarted" } else { "" };
    match cause {
        StopCause::PodEnds => format!("Stopping container {container}"),
        StopCause::Probe(kind) => {
            format!("Container {container} failed {} probe{tail}", kind.as_str().to_lowercase())
        }
        StopCause::AllRestart => {
            format!("Stopping container {container}: an exit has all containers of the pod restarted")
        }
        StopCause::Resized => format!("Container {container} resize requires restart{tail}"),
        StopCause::SpecChanged => format!("Container {container} definition changed{tail}"),
        StopCause::PostStartFailed => "FailedPostStartHook".to_owned(),
    }
}

fn pull_events(container: &str, image: &str, failure: &Failure) -> Vec<PodEvent> {
    let first = match failure.reason.as_str() {
        "InvalidImageName" => warning("InspectFailed", Some(container), failure.message.as_str()),
        "ErrImageNeverPull" => warning("ErrImageNeverPull", Some(container), failure.message.as_str()),
        _ => {
            let text = format!("Failed to pull image \"{image}\": {}", failure.message);
            warning("Failed", Some(container), text)
        }
    };
    vec![first, warning("Failed", Some(container), format!("Error: {}", failure.reason))]
}

pub(super) fn warning(reason: &'static str, container: Option<&str>, message: impl Into<String>) -> PodEvent {
    PodEvent { warning: true, reason, message: message.into(), container: container.map(str::to_owned) }
}

pub(super) fn normal(reason: &'static str, container: Option<&str>, message: impl Into<String>) -> PodEvent {
    PodEvent { warning: false, ..warning(reason, container, message) }
}
