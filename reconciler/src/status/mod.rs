//! The Pod status, computed the way a kubelet computes it.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::node::{Deletion, Observation};
use crate::planner::Memory;
use crate::pod::Pod;

/// What a status says that is neither the pod's nor its containers'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The node's addresses, the primary one first.
    pub host_ips: Vec<IpAddr>,
}

/// The pod's status now. `previous` is the status computed before (by this agent or an earlier one).
pub fn pod_status(
    _pod: &Pod,
    _deletion: Option<&Deletion>,
    _observed: &Observation,
    _memory: &Memory,
    _previous: Option<&v1::PodStatus>,
    _facts: &Facts,
    _now: Timestamp,
) -> v1::PodStatus {
    v1::PodStatus::default()
}
