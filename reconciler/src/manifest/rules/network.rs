//! Annotations that a pod's network heeds.

use k8s_openapi::api::core::v1;

use crate::manifest::Context;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::network::{DEFAULT, FIRST, First, OF_FIRST, OF_NETWORKS, Wishes, first_of};

fn path(key: &str) -> FieldPath {
    FieldPath::of("metadata").field("annotations").key(key)
}

/// Checks them; those of a pod without a network of its own would be without effect.
pub(crate) fn check(pod: &v1::Pod, spec: &v1::PodSpec, context: &Context, issues: &mut Issues) {
    let annotations = pod.metadata.annotations.as_ref();
    match Wishes::read(annotations) {
        Err(refusal) => {
            issues.invalid(&path(refusal.key), refusal.value.as_str(), &refusal.reason);
        }
        Ok(wishes) => {
            check_known(&wishes, context, issues);
            if wishes.first == First::None {
                check_none(pod, spec, issues);
            }
        }
    }
    let all = OF_NETWORKS.into_iter().chain(OF_FIRST);
    if let Some(key) = first_of(annotations, all).filter(|_| spec.host_network == Some(true)) {
        issues.forbidden(&path(key), "a pod with hostNetwork has no network of its own");
    }
}

/// The node must have the networks.
fn check_known(wishes: &Wishes, context: &Context, issues: &mut Issues) {
    let Some(known) = &context.networks else { return };
    let unknown = |(_, name): &(&str, &str)| *name != DEFAULT && !known.iter().any(|other| other == name);
    for (key, name) in wishes.networks().filter(unknown) {
        let reason = match known.as_slice() {
            [] => "this node has no further networks".to_owned(),
            known => format!("the node's networks are {DEFAULT}, {}", known.join(", ")),
        };
        issues
            .invalid(&path(key), name, &reason)
            .hint("name it under `networks` in the agent's configuration");
    }
}

/// A pod without networks has no address that anything could lead to.
fn check_none(pod: &v1::Pod, spec: &v1::PodSpec, issues: &mut Issues) {
    if let Some(key) = first_of(pod.metadata.annotations.as_ref(), OF_FIRST) {
        issues.forbidden(&path(key), &format!("{FIRST} says that the pod has no network"));
    }
    let lists = [("containers", Some(&spec.containers)), ("initContainers", spec.init_containers.as_ref())];
    for (list, containers) in lists {
        for (number, container) in containers.into_iter().flatten().enumerate() {
            for (place, port) in container.ports.iter().flatten().enumerate() {
                if port.host_port.is_some_and(|port| port != 0) {
                    let at = FieldPath::of("spec").field(list).index(number).field("ports").index(place);
                    let reason = format!("annotation {FIRST} says that the pod has no network");
                    issues.forbidden(&at.field("hostPort"), &reason);
                }
            }
        }
    }
}

/// Whether a running pod's annotations may become these: its networks are made from some of them, once.
pub(crate) fn check_update(old: &v1::Pod, new: &v1::Pod, issues: &mut Issues) {
    let value =
        |pod: &v1::Pod, key: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(key).cloned());
    for key in OF_NETWORKS.into_iter().chain(OF_FIRST) {
        if value(old, key) != value(new, key) {
            issues
                .forbidden(&path(key), "may not change while the pod runs: its network was made by it")
                .hint("delete the pod and create it anew");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, mut spec: Value) -> v1::Pod {
        spec["containers"] =
            json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 8080}]}]);
        serde_json::from_value(json!({"metadata": {"name": "p", "annotations": annotations}, "spec": spec}))
            .unwrap()
    }

    fn said(annotations: Value, spec: Value, networks: Option<&[&str]>) -> Vec<String> {
        let pod = pod(annotations, spec);
        let mut issues = Issues::default();
        let networks = networks.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let context = Context { networks, ..Context::default() };
        check(&pod, pod.spec.as_ref().unwrap(), &context, &mut issues);
        issues.0.iter().map(|issue| format!("{}: {}", issue.path, issue.reason)).collect()
    }

    #[test]
    fn networks_are_the_nodes() {
        let asking = json!({"k8s.v1.cni.cncf.io/networks": "front,nowhere"});
        assert_eq!(said(asking.clone(), json!({}), None), Vec::<String>::new());
        let issues = said(asking.clone(), json!({}), Some(&["front", "back"]));
        assert_eq!(issues.len(), 1);
        let words = "metadata.annotations[k8s.v1.cni.cncf.io/networks]: Invalid value: \"nowhere\": \
                     the node's networks are default, front, back";
        assert_eq!(issues[0], words);
        let first = json!({"v1.multus-cni.io/default-network": "nowhere"});
        assert!(said(first, json!({}), Some(&[]))[0].contains("this node has no further networks"));
        let issues = said(asking, json!({"hostNetwork": true}), None);
        assert!(issues[0].contains("a pod with hostNetwork has no network"), "{issues:?}");
    }

    #[test]
    fn a_pod_without_networks_has_nothing_of_one() {
        let none = json!({"v1.multus-cni.io/default-network": "none", "berth.dev/ips": "10.85.0.9"});
        let issues = said(none, json!({}), Some(&[]));
        assert!(issues[0].starts_with("metadata.annotations[berth.dev/ips]: Forbidden"), "{issues:?}");
        assert!(issues[1].starts_with("spec.containers[0].ports[0].hostPort: Forbidden"), "{issues:?}");
    }

    #[test]
    fn the_networks_of_a_running_pod_stay() {
        let of = |text: &str| pod(json!({"k8s.v1.cni.cncf.io/networks": text, "other": text}), json!({}));
        let mut issues = Issues::default();
        check_update(&of("front"), &of("front"), &mut issues);
        assert!(issues.0.is_empty());
        check_update(&of("front"), &of("front,back"), &mut issues);
        assert!(issues.0[0].reason.contains("may not change while the pod runs"));
        assert_eq!(issues.0.len(), 1);
    }
}
