//! The Pod status, computed the way a kubelet computes it.
//!
//! [`pod_status`] is pure: everything follows from the pod, what is observed, the worker's memory and the status that
//! was published before, so an agent that starts anew goes on where the last one was killed. `container` holds the
//! container statuses, `phase` the phase, `conditions` the conditions.

mod conditions;
mod container;
mod phase;

pub use conditions::{PAUSED, is_own_condition, with_conditions};

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::node::{Deletion, Observation, Sandbox};
use crate::planner::{Context, Memory};
use crate::pod::Pod;

/// What a status says that is neither the pod's nor its containers'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The node's addresses, the primary one first.
    pub host_ips: Vec<IpAddr>,
}

/// The pod's status now. `previous` is the status computed before (by this agent or an earlier one).
pub fn pod_status(
    pod: &Pod,
    deletion: Option<&Deletion>,
    observed: &Observation,
    memory: &Memory,
    previous: Option<&v1::PodStatus>,
    facts: &Facts,
    now: Timestamp,
) -> v1::PodStatus {
    let ctx = Context::new(pod, deletion, observed, memory, now);
    let phase = phase::phase(&ctx);
    let mut statuses = container::Statuses::new(&ctx, previous);
    let ended = matches!(phase.name, "Succeeded" | "Failed");
    if ended || deletion.is_some() {
        statuses.keep_ends(previous);
    }
    if ended {
        statuses.close(previous, phase::initialised(&ctx, previous));
    }
    let ips = pod_ips(observed, previous);
    let mut status = v1::PodStatus {
        phase: Some(phase.name.to_owned()),
        reason: phase.reason,
        message: phase.message,
        conditions: Some(conditions::conditions(&ctx, phase.name, &statuses, previous)),
        host_ip: facts.host_ips.first().map(ToString::to_string),
        host_ips: host_ips(facts),
        pod_ip: ips.first().map(|ip| ip.ip.clone()),
        pod_ips: (!ips.is_empty()).then_some(ips),
        qos_class: Some(pod.qos_class().as_str().to_owned()),
        start_time: Some(time(memory.start_time)),
        observed_generation: pod.object.metadata.generation,
        ..v1::PodStatus::default()
    };
    status.init_container_statuses = (!statuses.init.is_empty()).then_some(statuses.init);
    status.container_statuses = Some(statuses.main);
    status.ephemeral_container_statuses = (!statuses.ephemeral.is_empty()).then_some(statuses.ephemeral);
    status
}

/// The sandbox's addresses; those known last when there is none, as in a kubelet.
fn pod_ips(observed: &Observation, previous: Option<&v1::PodStatus>) -> Vec<v1::PodIP> {
    match &observed.sandbox {
        Sandbox::Ready { ips, .. } => ips.iter().map(|ip| v1::PodIP { ip: ip.to_string() }).collect(),
        Sandbox::Absent | Sandbox::Dead => {
            previous.and_then(|status| status.pod_ips.clone()).unwrap_or_default()
        }
    }
}

fn host_ips(facts: &Facts) -> Option<Vec<v1::HostIP>> {
    let ips: Vec<_> = facts.host_ips.iter().map(|ip| v1::HostIP { ip: ip.to_string() }).collect();
    (!ips.is_empty()).then_some(ips)
}

/// Whether a pod is at its end: nothing of it runs again.
pub fn has_ended(status: &v1::PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The second that has begun: Kubernetes' times have no fractions.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// A point in time as the Kubernetes API shows it: whole seconds.
pub fn time(at: Timestamp) -> Time {
    Time(whole_seconds(at))
}
