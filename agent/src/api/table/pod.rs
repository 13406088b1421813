//! The columns of pods, computed as `printPod` of kubernetes/pkg/printers does.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};
use serde_json::{Value, json};

use super::duration::since;
use super::{Column, age, or_none};

pub const COLUMNS: &[Column] = &[
    ("Name", "string", "name", 0),
    ("Ready", "string", "", 0),
    ("Status", "string", "", 0),
    ("Restarts", "string", "", 0),
    ("Age", "string", "", 0),
    ("IP", "string", "", 1),
    ("Node", "string", "", 1),
    ("Nominated Node", "string", "", 1),
    ("Readiness Gates", "string", "", 1),
];

/// What a person wants to know of a pod first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSummary {
    /// Containers that are ready.
    pub ready: usize,
    /// Containers that should be: the main ones and the sidecars.
    pub total: usize,
    /// One word: the phase, or what keeps the pod from it.
    pub status: String,
    /// Restarts of all containers.
    pub restarts: i32,
    /// When the last restarted container had ended.
    pub last_restart: Option<Timestamp>,
}

/// The restarts counted so far.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i32,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &ContainerStatus) {
        self.count += container.restart_count;
        let ended = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        self.last = self.last.max(ended.and_then(|t| t.finished_at.as_ref()).map(|t| t.0));
    }
}

fn is_sidecar(container: Option<&Container>) -> bool {
    container.is_some_and(|c| c.restart_policy.as_deref() == Some("Always"))
}

fn condition(status: &PodStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
}

/// The summary of a pod.
pub fn summary(pod: &Pod) -> PodSummary {
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&no_spec);
    let status = pod.status.as_ref().unwrap_or(&no_status);
    let phase = status.phase.as_deref().unwrap_or_default();
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let mut out = PodSummary {
        total: spec.containers.len() + inits.iter().filter(|c| is_sidecar(Some(c))).count(),
        status: status.reason.clone().filter(|r| !r.is_empty()).unwrap_or_else(|| phase.to_owned()),
        ..PodSummary::default()
    };
    let (all, sidecars, initializing) = init_containers(inits, status, &mut out);
    let mut restarts = all;
    if !initializing || condition(status, "Initialized") {
        restarts = sidecars;
        main_containers(status, &mut restarts, &mut out);
    }
    if phase == "Running" && condition(status, berth_reconciler::status::PAUSED) {
        out.status = "Paused".to_owned();
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if status.reason.as_deref() == Some("NodeLost") {
            out.status = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            out.status = "Terminating".to_owned();
        }
    }
    out.restarts = restarts.count;
    out.last_restart = restarts.last;
    out
}

/// Counts over the init containers: restarts of all, restarts of sidecars, whether one is not done yet.
fn init_containers(
    inits: &[Container],
    status: &PodStatus,
    out: &mut PodSummary,
) -> (Restarts, Restarts, bool) {
    let (mut all, mut sidecars) = (Restarts::default(), Restarts::default());
    for (n, container) in status.init_container_statuses.iter().flatten().enumerate() {
        let sidecar = is_sidecar(inits.iter().find(|c| c.name == container.name));
        all.add(container);
        if sidecar {
            sidecars.add(container);
        }
        let state = container.state.clone().unwrap_or_default();
        let waiting = state.waiting.and_then(|w| w.reason).filter(|r| !r.is_empty());
        let reason = match (&state.terminated, waiting) {
            (Some(end), _) if end.exit_code == 0 => continue,
            _ if sidecar && container.started == Some(true) => {
                out.ready += usize::from(container.ready);
                continue;
            }
            (Some(end), _) => match (end.reason.as_deref().filter(|r| !r.is_empty()), end.signal) {
                (Some(reason), _) => reason.to_owned(),
                (None, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
                (None, _) => format!("ExitCode:{}", end.exit_code),
            },
            (None, Some(reason)) if reason != "PodInitializing" => reason,
            _ => format!("{n}/{}", inits.len()),
        };
        out.status = format!("Init:{reason}");
        return (all, sidecars, true);
    }
    (all, sidecars, false)
}

fn main_containers(status: &PodStatus, restarts: &mut Restarts, out: &mut PodSummary) {
    let mut running = false;
    for container in status.container_statuses.iter().flatten().rev() {
        restarts.add(container);
        let state = container.state.clone().unwrap_or_default();
        let waiting = state.waiting.and_then(|w| w.reason).filter(|r| !r.is_empty());
        match (waiting, state.terminated) {
            (Some(reason), _) => out.status = reason,
            (None, Some(end)) => {
                out.status = match (end.reason.filter(|r| !r.is_empty()), end.signal) {
                    (Some(reason), _) => reason,
                    (None, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
                    (None, _) => format!("ExitCode:{}", end.exit_code),
                }
            }
            (None, None) if container.ready && state.running.is_some() => {
                running = true;
                out.ready += 1;
            }
            (None, None) => {}
        }
    }
    // One container is done, another still runs.
    if out.status == "Completed" && running {
        out.status = if condition(status, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

/// The cells of a pod's row.
pub fn cells(pod: &Pod) -> Vec<Value> {
    let summary = summary(pod);
    let restarts = match (summary.restarts, summary.last_restart) {
        (0, _) | (_, None) => summary.restarts.to_string(),
        (count, Some(last)) => format!("{count} ({} ago)", since(last)),
    };
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let pod_ip = status.and_then(|s| {
        let first = s.pod_ips.as_ref().and_then(|ips| ips.first()).map(|ip| ip.ip.as_str());
        first.or(s.pod_ip.as_deref())
    });
    vec![
        json!(pod.metadata.name),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.status),
        json!(restarts),
        json!(age(pod.metadata.creation_timestamp.as_ref())),
        or_none(pod_ip),
        or_none(spec.and_then(|s| s.node_name.as_deref())),
        or_none(status.and_then(|s| s.nominated_node_name.as_deref())),
        json!(gates(spec, status)),
    ]
}

fn gates(spec: Option<&PodSpec>, status: Option<&PodStatus>) -> String {
    let gates: Vec<&str> = spec
        .iter()
        .flat_map(|s| s.readiness_gates.iter().flatten())
        .map(|g| g.condition_type.as_str())
        .collect();
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let passed = gates.iter().filter(|gate| status.is_some_and(|s| condition(s, gate))).count();
    format!("{passed}/{}", gates.len())
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
