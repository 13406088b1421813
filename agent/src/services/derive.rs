//! What follows from a Service and the pods behind it: the object that shows its endpoints, and what the network does.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use berth_netplug::Protocol;
use berth_reconciler::services::{Endpoint, IpFamily, families, is_alias, is_headless, receiving};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::allocate::node_port;

/// What the network does for a Service; nothing for one that is only a name.
pub(super) fn for_network(service: &v1::Service, endpoints: &[Endpoint]) -> Option<berth_netplug::Service> {
    let spec = service.spec.as_ref().filter(|spec| !is_headless(spec) && !is_alias(spec))?;
    let texts = spec.cluster_ips.iter().flatten().chain(spec.external_ips.iter().flatten());
    let addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    let ports = spec.ports.iter().flatten().enumerate().filter_map(|(i, port)| {
        Some(berth_netplug::ServicePort {
            protocol: Protocol::of_port(port.protocol.as_deref()),
            port: u16::try_from(port.port).ok()?,
            node_port: node_port(port),
            endpoints: receiving(endpoints)
                .filter_map(|endpoint| Some(SocketAddr::new(endpoint.ip, endpoint.ports.get(i).copied()??)))
                .collect(),
        })
    });
    let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = client.and_then(|client| client.timeout_seconds).and_then(|s| u64::try_from(s).ok());
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    Some(berth_netplug::Service {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
        cluster_ips: addresses,
        ports: ports.collect(),
        affinity: seconds.filter(|_| sticky).map(Duration::from_secs),
    })
}

/// A pod, as endpoints refer to it.
pub(super) fn pod_reference(endpoint: &Endpoint, service: &v1::Service) -> v1::ObjectReference {
    v1::ObjectReference {
        kind: Some("Pod".into()),
        namespace: service.metadata.namespace.clone(),
        name: Some(endpoint.pod.clone()),
        uid: Some(endpoint.uid.clone()),
        ..Default::default()
    }
}

/// The `v1 Endpoints` of a Service, which have no more than its first family, and pods that are being deleted only if those
/// that are not ready are asked for.
pub(super) fn shown(service: &v1::Service, endpoints: &[Endpoint], node: &str) -> v1::Endpoints {
    let first = service.spec.as_ref().and_then(|spec| families(spec).first().copied());
    let endpoints = endpoints.iter().filter(|one| {
        first.is_none_or(|family| IpFamily::of(one.ip) == family) && (one.ready || !one.terminating)
    });
    // Pods that have the same ports, which may differ where they are asked for by name, share a subset.
    let mut alike: BTreeMap<&[Option<u16>], v1::EndpointSubset> = BTreeMap::new();
    for endpoint in endpoints {
        let subset = alike.entry(&endpoint.ports).or_default();
        let list = if endpoint.ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(v1::EndpointAddress {
            ip: endpoint.ip.to_string(),
            hostname: endpoint.hostname.clone(),
            node_name: Some(node.to_owned()),
            target_ref: Some(pod_reference(endpoint, service)),
        });
    }
    let asked = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let subsets = alike.into_iter().filter_map(|(numbers, mut subset)| {
        let ports = asked.iter().zip(numbers).filter_map(|(port, number)| {
            Some(v1::EndpointPort {
                name: port.name.clone(),
                port: i32::from((*number)?),
                protocol: port.protocol.clone(),
                app_protocol: port.app_protocol.clone(),
            })
        });
        let ports: Vec<v1::EndpointPort> = ports.collect();
        // A pod that has none of the ports is no endpoint, unless none is asked for.
        if ports.is_empty() && !asked.is_empty() {
            return None;
        }
        subset.ports = (!ports.is_empty()).then_some(ports);
        Some(subset)
    });
    let subsets: Vec<v1::EndpointSubset> = subsets.collect();
    let meta = &service.metadata;
    v1::Endpoints {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            creation_timestamp: meta.creation_timestamp.clone(),
            labels: meta.labels.clone(),
            ..Default::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}
