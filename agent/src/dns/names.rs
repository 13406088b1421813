//! What the names of a pod and of a Service are.

use std::net::IpAddr;

use berth_reconciler::services::{Endpoint, is_alias, is_headless};
use berth_reconciler::status::has_ended;
use berth_reconciler::worker::PodView;
use k8s_openapi::api::core::v1;

use super::zone::{PodNames, ServiceNames};

/// The names of a pod that has addresses and has not ended. `node` is the name of the node, which is a part of the names of pods
/// from files.
pub fn of_pod(view: &PodView, node: &str) -> Option<PodNames> {
    if has_ended(&view.status) {
        return None;
    }
    let given = view.status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let ips: Vec<IpAddr> = given.filter_map(|ip| ip.parse().ok()).collect();
    let spec = view.pod.spec();
    let name = view.pod.name();
    let of_manifest = name.strip_suffix(node).and_then(|rest| rest.strip_suffix('-'));
    let lower = |text: &str| text.to_ascii_lowercase();
    (!ips.is_empty()).then(|| PodNames {
        names: std::iter::once(name).chain(of_manifest).map(lower).collect(),
        namespace: lower(view.pod.namespace()),
        hostname: lower(spec.hostname.as_deref().filter(|host| !host.is_empty()).unwrap_or(name)),
        subdomain: spec.subdomain.as_deref().filter(|domain| !domain.is_empty()).map(lower),
        ips,
        host_network: spec.host_network == Some(true),
    })
}

/// The names of a Service; a headless one stands for its endpoints that get connections.
pub fn of_service(service: &v1::Service, endpoints: &[Endpoint]) -> Option<ServiceNames> {
    let spec = service.spec.as_ref()?;
    let parse = |text: &String| text.parse::<IpAddr>().ok();
    let (mut ips, mut hosts) = (Vec::new(), Vec::new());
    if is_headless(spec) {
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.ready) {
            ips.push(endpoint.ip);
            hosts.extend(endpoint.hostname.as_ref().map(|host| (host.to_ascii_lowercase(), endpoint.ip)));
        }
    } else {
        ips.extend(spec.cluster_ips.iter().flatten().filter_map(parse));
    }
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
        Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port).ok()?))
    });
    let external = spec.external_name.as_deref().filter(|_| is_alias(spec));
    let external = external.map(|name| name.trim_end_matches('.').to_ascii_lowercase());
    Some(ServiceNames {
        name: service.metadata.name.clone()?,
        namespace: service.metadata.namespace.clone().unwrap_or_else(|| "default".into()),
        ips,
        hosts,
        ports: ports.collect(),
        external,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use berth_reconciler::pod::{Pod, Source};
    use serde_json::{Value, json};

    use super::*;

    fn view(spec: Value, status: Value) -> PodView {
        let object = json!({"metadata": {"name": "web-n1", "namespace": "shop", "uid": "u"}, "spec": spec});
        let pod = Arc::new(Pod::new(serde_json::from_value(object).unwrap(), Source::Api));
        PodView { pod, deletion: None, status: Arc::new(serde_json::from_value(status).unwrap()) }
    }

    #[test]
    fn a_pod_of_a_file_has_the_name_of_its_manifest_too() {
        let running = json!({"phase": "Running", "podIPs": [{"ip": "10.85.0.2"}, {"ip": "fd00::2"}]});
        let plain = of_pod(&view(json!({"containers": []}), running.clone()), "n1").unwrap();
        assert_eq!(
            (plain.names, plain.hostname.as_str()),
            (vec!["web-n1".to_owned(), "web".to_owned()], "web-n1")
        );
        assert_eq!((plain.ips.len(), plain.subdomain), (2, None));
        let spec = json!({"containers": [], "hostname": "Front", "subdomain": "ring"});
        let named = of_pod(&view(spec, running), "other").unwrap();
        assert_eq!(
            (named.names.len(), named.hostname.as_str(), named.subdomain.as_deref()),
            (1, "front", Some("ring"))
        );
    }

    #[test]
    fn a_service_is_its_address_and_a_headless_one_its_ready_pods() {
        let service = |ip: &str| {
            serde_json::from_value::<v1::Service>(json!({
                "metadata": {"name": "db", "namespace": "shop"},
                "spec": {"clusterIP": ip, "clusterIPs": [ip, "fd00:86::7"], "ports": [{"name": "sql", "port": 5432}]}}))
            .unwrap()
        };
        let endpoint = |ip: &str, hostname: Option<&str>, ready| Endpoint {
            ip: ip.parse().unwrap(),
            pod: String::new(),
            uid: String::new(),
            hostname: hostname.map(str::to_owned),
            ready,
            serving: ready,
            terminating: false,
            ports: vec![Some(1)],
        };
        let endpoints = [
            endpoint("10.85.0.2", Some("db-0"), true),
            endpoint("10.85.0.9", None, false),
            endpoint("fd00::3", None, true),
        ];
        let plain = of_service(&service("10.86.0.7"), &endpoints).unwrap();
        assert_eq!(plain.ips, ["10.86.0.7".parse::<IpAddr>().unwrap(), "fd00:86::7".parse().unwrap()]);
        assert_eq!(plain.ports, [("sql".to_owned(), "tcp".to_owned(), 5432)]);
        let headless = of_service(&service("None"), &endpoints).unwrap();
        let ips: [IpAddr; 2] = ["10.85.0.2".parse().unwrap(), "fd00::3".parse().unwrap()];
        assert_eq!((headless.ips, headless.hosts), (ips.to_vec(), vec![("db-0".to_owned(), ips[0])]));
        assert!(of_service(&service("None"), &[]).unwrap().ips.is_empty());
    }

    #[test]
    fn a_pod_that_has_ended_or_has_no_address_has_no_name() {
        for status in
            [json!({"phase": "Pending"}), json!({"phase": "Succeeded", "podIPs": [{"ip": "10.85.0.2"}]})]
        {
            assert!(of_pod(&view(json!({"containers": []}), status), "n1").is_none());
        }
    }
}
