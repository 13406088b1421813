//! Services: which pods are behind one, and what containers are told of it.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The ports of a node that Services may have (kube-apiserver's `--service-node-port-range`).
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Whether the Service is only a name for its pods.
pub fn is_headless(spec: &v1::ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// Whether the Service is only another name for something (`type: ExternalName`).
pub fn is_alias(spec: &v1::ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("ExternalName")
}

/// A family of addresses, as `ipFamilies` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpFamily {
    /// `IPv4`.
    V4,
    /// `IPv6`.
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The one with that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }

    /// The name in `ipFamilies`, and in the `addressType` of EndpointSlices.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// The families of a Service, the first one first; none if it was not given any, where the network is not our own.
pub fn families(spec: &v1::ServiceSpec) -> Vec<IpFamily> {
    spec.ip_families.iter().flatten().filter_map(|name| IpFamily::named(name)).collect()
}

/// A pod that may be behind a Service.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The pod.
    pub pod: &'a v1::Pod,
    /// Its status.
    pub status: &'a v1::PodStatus,
    /// Whether its deletion was asked for.
    pub ending: bool,
}

impl Candidate<'_> {
    fn is_ready(&self) -> bool {
        let conditions = self.status.conditions.iter().flatten();
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    /// Its addresses of these families; its first one if no family is named.
    fn addresses(&self, families: &[IpFamily]) -> Vec<IpAddr> {
        let ips = self.status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let all: Vec<IpAddr> =
            ips.chain(self.status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
        if families.is_empty() {
            return all.into_iter().take(1).collect();
        }
        families
            .iter()
            .filter_map(|family| all.iter().copied().find(|ip| IpFamily::of(*ip) == *family))
            .collect()
    }
}

/// A pod behind a Service at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Its name.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// The name by which the Service's domain knows it, if it has one.
    pub hostname: Option<String>,
    /// Whether it gets connections.
    pub ready: bool,
    /// Whether it could serve them: its Ready condition.
    pub serving: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Its port for each port of the Service; none if the pod has no port of that name.
    pub ports: Vec<Option<u16>>,
}

/// The pods behind a Service, in the order of their addresses, as Kubernetes' EndpointSlice controller finds them: a pod
/// with addresses of two of the Service's families is there twice.
pub fn endpoints<'a>(
    service: &v1::Service,
    candidates: impl Iterator<Item = Candidate<'a>>,
) -> Vec<Endpoint> {
    let Some(spec) = service.spec.as_ref().filter(|spec| !is_alias(spec)) else { return Vec::new() };
    let families = families(spec);
    let anyway = spec.publish_not_ready_addresses == Some(true);
    let behind = candidates.filter(|candidate| {
        let ended = matches!(candidate.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        selects(service, candidate.pod) && !ended
    });
    let mut found = Vec::new();
    for candidate in behind {
        let meta = &candidate.pod.metadata;
        let Some(pod) = &candidate.pod.spec else { continue };
        let in_domain = pod.subdomain.is_some() && pod.subdomain == service.metadata.name;
        let serving = candidate.is_ready();
        found.extend(candidate.addresses(&families).into_iter().map(|ip| Endpoint {
            ip,
            pod: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            hostname: pod.hostname.clone().filter(|_| in_domain),
            ready: anyway || (serving && !candidate.ending),
            serving,
            terminating: candidate.ending,
            ports: spec.ports.iter().flatten().map(|port| target(pod, port)).collect(),
        }));
    }
    found.sort();
    found
}

/// Those of a Service that get connections: the ready ones, or in a family that has none, those that still serve while they
/// are being deleted, so that the last pod of a rollout answers until it is gone (KEP 1669).
pub fn receiving(endpoints: &[Endpoint]) -> impl Iterator<Item = &Endpoint> {
    let has_ready = |family| endpoints.iter().any(|one| one.ready && IpFamily::of(one.ip) == family);
    let ready = [IpFamily::V4, IpFamily::V6].map(|family| (family, has_ready(family)));
    endpoints.iter().filter(move |one| {
        let any_ready = ready.iter().any(|(family, any)| *family == IpFamily::of(one.ip) && *any);
        one.ready || (!any_ready && one.serving && one.terminating)
    })
}

/// Whether the pod is in the Service's namespace and has all the labels that it asks for.
fn selects(service: &v1::Service, pod: &v1::Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = pod.metadata.labels.as_ref();
    let has = |(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value);
    service.metadata.namespace == pod.metadata.namespace
        && selector.is_some_and(|selector| !selector.is_empty() && selector.iter().all(has))
}

fn target(pod: &v1::PodSpec, port: &v1::ServicePort) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            // Sidecars are init containers that stay.
            let containers = pod.containers.iter().chain(
                pod.init_containers
                    .iter()
                    .flatten()
                    .filter(|init| init.restart_policy.as_deref() == Some("Always")),
            );
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let named = ports.find(|port| {
                port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            named.and_then(|port| u16::try_from(port.container_port).ok())
        }
    }
}

/// The variables that tell containers of these Services, as kubelet and Docker's links have them. Headless ones are left out.
pub fn variables(services: &[&v1::Service]) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for service in services {
        let Some(spec) = service.spec.as_ref().filter(|spec| !is_headless(spec)) else { continue };
        let (Some(ip), Some(ports)) = (spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty()), &spec.ports)
        else {
            continue;
        };
        let name = variable(service.metadata.name.as_deref().unwrap_or_default());
        let Some(first) = ports.first() else { continue };
        variables.push((format!("{name}_SERVICE_HOST"), ip.to_owned()));
        variables.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        let named =
            ports.iter().filter_map(|port| Some((port.name.as_deref().filter(|n| !n.is_empty())?, port)));
        for (port_name, port) in named {
            variables.push((format!("{name}_SERVICE_PORT_{}", variable(port_name)), port.port.to_string()));
        }
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                variables.push((format!("{name}_PORT"), url.clone()));
            }
            let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
            variables.push((prefix.clone(), url));
            variables.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            variables.push((format!("{prefix}_PORT"), port.port.to_string()));
            variables.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    variables
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> v1::Service {
        let meta = json!({"name": "my-web", "namespace": "default"});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn web() -> v1::Service {
        service(json!({
            "selector": {"app": "web"}, "clusterIP": "10.86.0.9",
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}],
        }))
    }

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> (v1::Pod, v1::PodStatus) {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web", "tier": "x"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": "10.85.0.2", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        change(&mut pod);
        let status = serde_json::from_value(pod["status"].take()).unwrap();
        (serde_json::from_value(pod).unwrap(), status)
    }

    fn found(service: &v1::Service, pods: &[(v1::Pod, v1::PodStatus)], ending: bool) -> Vec<Endpoint> {
        endpoints(service, pods.iter().map(|(pod, status)| Candidate { pod, status, ending }))
    }

    #[test]
    fn pods_with_the_labels_are_behind_it() {
        let pods = [
            pod("b", |pod| pod["status"]["podIP"] = json!("10.85.0.3")),
            pod("a", |_| {}),
            pod("unready", |pod| {
                pod["status"]["conditions"][0]["status"] = json!("False");
                pod["status"]["podIP"] = json!("10.85.0.4");
            }),
            pod("elsewhere", |pod| pod["metadata"]["namespace"] = json!("other")),
            pod("other", |pod| pod["metadata"]["labels"]["app"] = json!("db")),
            pod("ended", |pod| pod["status"]["phase"] = json!("Succeeded")),
            pod("young", |pod| pod["status"]["podIP"] = Value::Null),
        ];
        let all = found(&web(), &pods, false);
        let short: Vec<_> = all.iter().map(|one| (one.pod.as_str(), one.ready)).collect();
        assert_eq!(short, [("a", true), ("b", true), ("unready", false)]);
        assert_eq!(all[0].ports, [Some(8080), Some(5353)]);
        let ending = found(&web(), &pods, true);
        assert!(ending.iter().all(|one| one.terminating && !one.ready), "{ending:?}");
        let last: Vec<_> = receiving(&ending).map(|one| one.pod.as_str()).collect();
        assert_eq!(last, ["a", "b"], "while nobody else is there, those that still serve answer");
        let mut mixed = all;
        mixed[0].ready = false;
        mixed[0].terminating = true;
        let others: Vec<_> = receiving(&mixed).map(|one| one.pod.as_str()).collect();
        assert_eq!(others, ["b"]);
    }

    #[test]
    fn a_pod_is_there_with_each_family_of_the_service() {
        let dual =
            |pod: &mut Value| pod["status"]["podIPs"] = json!([{"ip": "10.85.0.2"}, {"ip": "fd00::2"}]);
        let pods = [pod("a", dual)];
        let of = |families: &[&str]| -> Vec<String> {
            let mut service = web();
            service.spec.as_mut().unwrap().ip_families =
                (!families.is_empty()).then(|| families.iter().map(|one| (*one).to_owned()).collect());
            found(&service, &pods, false).iter().map(|one| one.ip.to_string()).collect()
        };
        assert_eq!(of(&["IPv6"]), ["fd00::2"]);
        assert_eq!(of(&["IPv6", "IPv4"]), ["10.85.0.2", "fd00::2"]);
        assert_eq!(of(&[]), ["10.85.0.2"]);
        assert!(found(&web(), &[pod("b", |pod| pod["status"]["podIP"] = json!("x"))], false).is_empty());
    }

    #[test]
    fn unready_pods_too_if_asked_for() {
        let pods = [pod("a", |pod| pod["status"]["conditions"] = json!([]))];
        let mut service = web();
        service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        assert!(found(&service, &pods, true)[0].ready);
    }

    #[test]
    fn a_port_by_name_is_of_its_protocol_and_perhaps_a_sidecars() {
        let by_name = |change: fn(&mut Value)| found(&web(), &[pod("a", change)], false)[0].ports[0];
        assert_eq!(by_name(|pod| pod["spec"]["containers"][0]["ports"][0]["protocol"] = json!("UDP")), None);
        let init = |policy: &str| json!([{"name": "i", "restartPolicy": policy, "ports": [{"name": "web", "containerPort": 9}]}]);
        let with = |policy: &str| {
            let init = init(policy);
            let one = pod("a", |pod| {
                pod["spec"]["containers"][0]["ports"] = json!([]);
                pod["spec"]["initContainers"] = init;
            });
            found(&web(), &[one], false)[0].ports[0]
        };
        assert_eq!((with("Always"), with("")), (Some(9), None));
    }

    #[test]
    fn a_hostname_counts_in_the_domain_of_its_service() {
        let named = |subdomain: &str| {
            let subdomain = json!(subdomain);
            let one = pod("a", |pod| {
                pod["spec"]["hostname"] = json!("db-0");
                pod["spec"]["subdomain"] = subdomain;
            });
            found(&web(), &[one], false)[0].hostname.clone()
        };
        assert_eq!((named("my-web"), named("other")), (Some("db-0".into()), None));
    }

    #[test]
    fn variables_are_those_of_kubelet() {
        let headless = service(json!({"clusterIP": "None", "ports": [{"port": 1}]}));
        let v6 = service(json!({"clusterIP": "fd00:86::9", "ports": [{"port": 1}]}));
        let of_v6 = variables(&[&v6]);
        let urls: Vec<&str> =
            of_v6.iter().map(|(_, value)| value.as_str()).filter(|v| v.contains("//")).collect();
        assert_eq!(urls, ["tcp://[fd00:86::9]:1"; 2]);
        let all = variables(&[&web(), &headless]);
        let lines: Vec<String> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = [
            "MY_WEB_SERVICE_HOST=10.86.0.9",
            "MY_WEB_SERVICE_PORT=80",
            "MY_WEB_SERVICE_PORT_HTTP=80",
            "MY_WEB_SERVICE_PORT_DNS=53",
            "MY_WEB_PORT=tcp://10.86.0.9:80",
            "MY_WEB_PORT_80_TCP=tcp://10.86.0.9:80",
            "MY_WEB_PORT_80_TCP_PROTO=tcp",
            "MY_WEB_PORT_80_TCP_PORT=80",
            "MY_WEB_PORT_80_TCP_ADDR=10.86.0.9",
            "MY_WEB_PORT_53_UDP=udp://10.86.0.9:53",
            "MY_WEB_PORT_53_UDP_PROTO=udp",
            "MY_WEB_PORT_53_UDP_PORT=53",
            "MY_WEB_PORT_53_UDP_ADDR=10.86.0.9",
        ];
        assert_eq!(lines, expected);
    }
}
