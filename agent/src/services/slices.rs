//! The EndpointSlices of a Service (`discovery.k8s.io/v1`), as Kubernetes' controller makes them: of one family each, of
//! pods that have the same ports, and of no more than a hundred.

use std::collections::BTreeMap;

use berth_reconciler::services::{Endpoint, IpFamily, families, is_alias, is_headless};
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1::{Endpoint as Member, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest, Sha256};

/// As many endpoints are in a slice at most (kube-controller-manager's `--max-endpoints-per-slice`).
const MOST: usize = 100;
/// By this label the slices of a Service are found.
const SERVICE: &str = "kubernetes.io/service-name";
const MANAGER: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The slices of a Service: of each family one at least, which may be empty.
pub(super) fn of(service: &v1::Service, endpoints: &[Endpoint], node: &str) -> Vec<EndpointSlice> {
    let Some(spec) = service.spec.as_ref().filter(|spec| !is_alias(spec)) else { return Vec::new() };
    let asked = spec.ports.as_deref().unwrap_or_default();
    let mut alike: BTreeMap<(IpFamily, Vec<Option<u16>>), Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        // A pod that has none of the ports is no endpoint, unless none is asked for.
        if asked.is_empty() || endpoint.ports.iter().any(Option::is_some) {
            alike.entry((IpFamily::of(endpoint.ip), endpoint.ports.clone())).or_default().push(endpoint);
        }
    }
    for family in families(spec) {
        if !alike.keys().any(|(known, _)| *known == family) {
            alike.insert((family, Vec::new()), Vec::new());
        }
    }
    let mut slices = Vec::new();
    for ((family, numbers), members) in alike {
        let chunks: Vec<&[&Endpoint]> =
            if members.is_empty() { vec![&[]] } else { members.chunks(MOST).collect() };
        for (i, chunk) in chunks.into_iter().enumerate() {
            let digest = digest(&format!("{}/{numbers:?}/{i}", family.as_str()), service);
            slices.push(EndpointSlice {
                metadata: metadata(service, is_headless(spec), &digest),
                address_type: family.as_str().into(),
                endpoints: (!chunk.is_empty())
                    .then(|| chunk.iter().map(|one| member(one, service, node)).collect()),
                ports: (!numbers.is_empty()).then(|| ports(asked, &numbers)),
            });
        }
    }
    slices
}

fn member(endpoint: &Endpoint, service: &v1::Service, node: &str) -> Member {
    Member {
        addresses: vec![endpoint.ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(endpoint.ready),
            serving: Some(endpoint.serving),
            terminating: Some(endpoint.terminating),
        }),
        hostname: endpoint.hostname.clone(),
        node_name: Some(node.to_owned()),
        target_ref: Some(super::derive::pod_reference(endpoint, service)),
        ..Default::default()
    }
}

fn ports(asked: &[v1::ServicePort], numbers: &[Option<u16>]) -> Vec<EndpointPort> {
    let known = asked.iter().zip(numbers).filter_map(|(port, number)| Some((port, (*number)?)));
    known
        .map(|(port, number)| EndpointPort {
            // Kubernetes always writes a name, an empty one for a single port without.
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(i32::from(number)),
            protocol: port.protocol.clone(),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

/// What makes the slice differ from all others, also from those of an earlier Service of that name.
fn digest(what: &str, service: &v1::Service) -> [u8; 32] {
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    Sha256::digest(format!("{uid}/{what}")).into()
}

fn metadata(service: &v1::Service, headless: bool, digest: &[u8; 32]) -> ObjectMeta {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let meta = &service.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let suffix: String =
        digest[16..21].iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect();
    let mut uid = [0; 16];
    uid.copy_from_slice(&digest[..16]);
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE.into(), name.clone());
    labels.insert(MANAGER.into(), "berth.dev".into());
    labels.remove(HEADLESS);
    if headless {
        labels.insert(HEADLESS.into(), String::new());
    }
    ObjectMeta {
        // As the API server makes names of a prefix.
        name: Some(format!("{name}-{suffix}")),
        generate_name: Some(format!("{name}-")),
        namespace: meta.namespace.clone(),
        uid: Some(uuid::Builder::from_custom_bytes(uid).into_uuid().to_string()),
        creation_timestamp: meta.creation_timestamp.clone(),
        labels: Some(labels),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Service".into(),
            name,
            uid: meta.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..Default::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> v1::Service {
        let meta = json!({"name": "web", "namespace": "shop", "uid": "u", "labels": {"tier": "front"}});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn endpoint(ip: &str, port: u16) -> Endpoint {
        let ready = port != 0;
        Endpoint {
            ip: ip.parse().unwrap(),
            pod: format!("pod-{port}"),
            uid: "p".into(),
            hostname: None,
            ready,
            serving: true,
            terminating: !ready,
            ports: vec![Some(port)],
        }
    }

    fn dual() -> v1::Service {
        service(
            json!({"ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80, "protocol": "TCP", "appProtocol": "http"}]}),
        )
    }

    #[test]
    fn each_family_and_each_set_of_ports_has_a_slice() {
        let all = [endpoint("10.85.0.2", 8080), endpoint("10.85.0.3", 9090), endpoint("10.85.0.4", 8080)];
        let slices = of(&dual(), &all, "n1");
        let short: Vec<(String, usize)> = slices
            .iter()
            .map(|slice| (slice.address_type.clone(), slice.endpoints.as_ref().map_or(0, Vec::len)))
            .collect();
        assert_eq!(short, [("IPv4".into(), 2), ("IPv4".into(), 1), ("IPv6".into(), 0)]);
        let names: std::collections::BTreeSet<_> = slices.iter().map(|slice| &slice.metadata.name).collect();
        assert_eq!(names.len(), 3);
        assert_eq!(slices, of(&dual(), &all, "n1"), "their names stay");
        assert_eq!(slices[2].ports, None);
    }

    #[test]
    fn a_slice_as_kubernetes_shows_it() {
        let slices = of(&dual(), &[endpoint("fd00::2", 0)], "n1");
        let shown = serde_json::to_value(&slices[1]).unwrap();
        assert_eq!(
            shown["metadata"]["labels"],
            json!({
            "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "berth.dev", "tier": "front"})
        );
        assert_eq!(shown["metadata"]["ownerReferences"][0]["kind"], "Service");
        assert_eq!(
            shown["ports"],
            json!([{"name": "", "port": 0, "protocol": "TCP", "appProtocol": "http"}])
        );
        assert_eq!(
            shown["endpoints"],
            json!([{
            "addresses": ["fd00::2"], "nodeName": "n1",
            "conditions": {"ready": false, "serving": true, "terminating": true},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "pod-0", "uid": "p"}}])
        );
        let headless = service(json!({"clusterIP": "None", "ipFamilies": ["IPv4"]}));
        let labels = of(&headless, &[], "n1")[0].metadata.labels.clone().unwrap();
        assert!(labels.contains_key("service.kubernetes.io/headless"));
    }

    #[test]
    fn a_slice_has_room_for_a_hundred() {
        let all: Vec<Endpoint> = (0..250).map(|n| endpoint(&format!("10.85.1.{n}"), 80)).collect();
        let sizes: Vec<usize> =
            of(&service(json!({"ipFamilies": ["IPv4"], "ports": [{"port": 80}]})), &all, "n1")
                .iter()
                .map(|slice| slice.endpoints.as_ref().unwrap().len())
                .collect();
        assert_eq!(sizes, [100, 100, 50]);
        assert!(of(&service(json!({"type": "ExternalName", "externalName": "x"})), &[], "n1").is_empty());
    }
}
