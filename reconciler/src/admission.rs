//! Whether a node takes a pod that a scheduler has sent: a kubelet's admission (`pkg/kubelet/lifecycle/predicate.go`).
//!
//! A scheduler that knows this node sends only what fits; but two may send at once, and what runs from manifests takes room
//! that it does not know of. A pod that is not taken fails, so that its owner makes another elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1;

use crate::resources::{huge_pages_name, pod_huge_pages, pod_requests};

/// What a node has for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// CPU in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Bytes of the disk.
    pub storage: u64,
    /// Bytes in huge pages, by the size of a page.
    pub huge_pages: BTreeMap<u64, u64>,
    /// Pods.
    pub pods: usize,
}

/// Why a pod is not taken: `status.reason` and `status.message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// In one word, as `OutOfcpu`.
    pub reason: String,
    /// In a sentence.
    pub message: String,
}

fn rejected(reason: &str, message: &str) -> Rejection {
    Rejection { reason: reason.to_owned(), message: format!("Pod was rejected: {message}") }
}

/// Checks a pod against the pods that the node has taken and that have not ended.
///
/// # Errors
/// The first reason for not taking it.
pub fn admit(
    pod: &v1::PodSpec,
    taken: &[&v1::PodSpec],
    capacity: &Capacity,
    taints: &[v1::Taint],
) -> Result<(), Rejection> {
    if taken.len() >= capacity.pods {
        return Err(out_of("pods", 1, taken.len() as u64, capacity.pods as u64));
    }
    let requested = amounts(pod);
    let used: Vec<_> = taken.iter().map(|spec| amounts(spec)).collect();
    let room = [capacity.cpu_milli, capacity.memory, capacity.storage];
    for (i, resource) in ["cpu", "memory", "ephemeral-storage"].into_iter().enumerate() {
        let (requested, used) = (requested[i], used.iter().map(|one| one[i]).fold(0, u64::saturating_add));
        if requested > 0 && requested.saturating_add(used) > room[i] {
            return Err(out_of(resource, requested, used, room[i]));
        }
    }
    for (size, requested) in pod_huge_pages(pod) {
        let of = |spec: &&v1::PodSpec| pod_huge_pages(spec).get(&size).copied().unwrap_or(0);
        let used = taken.iter().map(of).fold(0, u64::saturating_add);
        let room = capacity.huge_pages.get(&size).copied().unwrap_or(0);
        if requested > 0 && requested.saturating_add(used) > room {
            return Err(out_of(&huge_pages_name(size), requested, used, room));
        }
    }
    let theirs: BTreeSet<HostPort<'_>> = taken.iter().flat_map(|spec| host_ports(spec)).collect();
    if host_ports(pod).iter().any(|port| theirs.iter().any(|other| port.clashes_with(other))) {
        return Err(rejected(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ));
    }
    let evicting = |taint: &&v1::Taint| taint.effect == "NoExecute";
    if let Some(taint) = taints.iter().filter(evicting).find(|taint| !tolerates(pod, taint)) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Err(rejected(
            "TaintToleration",
            &format!(
                "Predicate TaintToleration failed: node(s) had untolerated taint {{{}: {value}}}",
                taint.key
            ),
        ));
    }
    Ok(())
}

/// What a pod requests of cpu, memory and disk.
fn amounts(spec: &v1::PodSpec) -> [u64; 3] {
    let requests = pod_requests(spec);
    [requests.cpu_milli, requests.memory, requests.ephemeral_storage]
}

fn out_of(resource: &str, requested: u64, used: u64, room: u64) -> Rejection {
    rejected(
        &format!("OutOf{resource}"),
        &format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {room}"
        ),
    )
}

/// A port of the node: protocol, address (empty for all) and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HostPort<'a> {
    protocol: &'a str,
    address: &'a str,
    port: i32,
}

impl HostPort<'_> {
    fn clashes_with(&self, other: &HostPort<'_>) -> bool {
        let meets = self.address == other.address || self.address.is_empty() || other.address.is_empty();
        self.port == other.port && self.protocol == other.protocol && meets
    }
}

fn host_ports(spec: &v1::PodSpec) -> Vec<HostPort<'_>> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| crate::resources::is_sidecar(c));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let address = port.host_ip.as_deref().unwrap_or_default();
            Some(HostPort {
                protocol: port.protocol.as_deref().unwrap_or("TCP"),
                address: if matches!(address, "0.0.0.0" | "::") { "" } else { address },
                port: port.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}

/// Whether a pod bears a taint (`v1.Toleration.ToleratesTaint`).
pub fn tolerates(pod: &v1::PodSpec, taint: &v1::Taint) -> bool {
    pod.tolerations.iter().flatten().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        if !effect.is_empty() && effect != taint.effect {
            return false;
        }
        let key = toleration.key.as_deref().unwrap_or_default();
        if !key.is_empty() && key != taint.key {
            return false;
        }
        let wanted = toleration.value.as_deref().unwrap_or_default();
        let value = taint.value.as_deref().unwrap_or_default();
        let numbers = || Some((value.parse::<i64>().ok()?, wanted.parse::<i64>().ok()?));
        match toleration.operator.as_deref().unwrap_or_default() {
            "Exists" => true,
            "" | "Equal" => !key.is_empty() && wanted == value,
            "Gt" => numbers().is_some_and(|(value, wanted)| value > wanted),
            "Lt" => numbers().is_some_and(|(value, wanted)| value < wanted),
            _ => false,
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn room() -> Capacity {
        let huge_pages = [(2 << 20, 8 << 20)].into();
        Capacity { cpu_milli: 2000, memory: 1 << 30, storage: 1 << 30, huge_pages, pods: 3 }
    }

    fn spec(container: Value, pod: Value) -> v1::PodSpec {
        let mut spec = pod;
        spec["containers"] = json!([container]);
        serde_json::from_value(spec).unwrap()
    }

    fn asking(requests: Value) -> v1::PodSpec {
        spec(json!({"name": "c", "resources": {"requests": requests}}), json!({}))
    }

    fn reason(pod: &v1::PodSpec, taken: &[&v1::PodSpec], taints: &[v1::Taint]) -> Option<Rejection> {
        admit(pod, taken, &room(), taints).err()
    }

    #[test]
    fn what_does_not_fit_beside_the_others_is_told_with_the_numbers() {
        let (half, most) = (asking(json!({"cpu": "600m"})), asking(json!({"cpu": "1500m"})));
        assert_eq!(reason(&half, &[], &[]), None);
        let refused = reason(&half, &[&most], &[]).unwrap();
        assert_eq!(refused.reason, "OutOfcpu");
        assert_eq!(
            refused.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000"
        );
        let big = asking(json!({"memory": "2Gi"}));
        assert_eq!(reason(&big, &[], &[]).unwrap().reason, "OutOfmemory");
        let pages = |limits: Value| spec(json!({"name": "c", "resources": {"limits": limits}}), json!({}));
        let some = pages(json!({"hugepages-2Mi": "6Mi"}));
        assert_eq!(reason(&some, &[], &[]), None);
        let refused = reason(&some, &[&some], &[]).unwrap();
        assert_eq!(refused.reason, "OutOfhugepages-2Mi");
        assert!(
            refused.message.ends_with("requested: 6291456, used: 6291456, capacity: 8388608"),
            "{refused:?}"
        );
        let other = pages(json!({"hugepages-1Gi": "1Gi"}));
        assert_eq!(reason(&other, &[], &[]).unwrap().reason, "OutOfhugepages-1Gi");
    }

    #[test]
    fn who_asks_for_nothing_fits_on_a_full_node() {
        let all = asking(json!({"cpu": "3"}));
        assert_eq!(reason(&asking(json!({})), &[&all], &[]), None);
    }

    #[test]
    fn there_are_only_so_many_pods() {
        let any = asking(json!({}));
        assert_eq!(reason(&any, &[&any, &any, &any], &[]).unwrap().reason, "OutOfpods");
    }

    #[test]
    fn a_host_port_belongs_to_one_pod_per_address_and_protocol() {
        let with = |port: Value| spec(json!({"name": "c", "ports": [port]}), json!({}));
        let all = with(json!({"containerPort": 1, "hostPort": 80, "protocol": "TCP"}));
        let one = with(json!({"containerPort": 1, "hostPort": 80, "protocol": "TCP", "hostIP": "10.0.0.1"}));
        let other =
            with(json!({"containerPort": 1, "hostPort": 80, "protocol": "TCP", "hostIP": "10.0.0.2"}));
        let udp = with(json!({"containerPort": 1, "hostPort": 80, "protocol": "UDP"}));
        assert_eq!(reason(&all, &[&one], &[]).unwrap().reason, "NodePorts");
        assert_eq!(reason(&one, &[&all], &[]).unwrap().reason, "NodePorts");
        assert_eq!(reason(&one, &[&other, &udp], &[]), None);
    }

    #[test]
    fn only_noexecute_taints_keep_a_pod_off_that_was_sent_here() {
        let taint = |effect: &str| v1::Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: effect.into(),
            time_added: None,
        };
        let plain = asking(json!({}));
        assert_eq!(reason(&plain, &[], &[taint("NoSchedule")]), None);
        assert_eq!(reason(&plain, &[], &[taint("NoExecute")]).unwrap().reason, "TaintToleration");
        for (toleration, bears) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "operator": "Equal", "value": "w"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
        ] {
            let pod = spec(json!({"name": "c"}), json!({"tolerations": [toleration]}));
            assert_eq!(tolerates(&pod, &taint("NoExecute")), bears, "{toleration}");
        }
    }
}
