//! The columns of Services and their endpoints, as kubernetes/pkg/printers has them.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Endpoints, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};
use serde_json::{Value, json};

use super::{Column, age, or_none};

pub const SERVICE: &[Column] = &[
    ("Name", "string", "name", 0),
    ("Type", "string", "", 0),
    ("Cluster-IP", "string", "", 0),
    ("External-IP", "string", "", 0),
    ("Port(s)", "string", "", 0),
    ("Age", "string", "", 0),
    ("Selector", "string", "", 1),
];

pub const ENDPOINTS: &[Column] =
    &[("Name", "string", "name", 0), ("Endpoints", "string", "", 0), ("Age", "string", "", 0)];

pub const SLICES: &[Column] = &[
    ("Name", "string", "name", 0),
    ("AddressType", "string", "", 0),
    ("Ports", "string", "", 0),
    ("Endpoints", "string", "", 0),
    ("Age", "string", "", 0),
];

/// Endpoints shown before it says how many more there are.
const MOST: usize = 3;

fn port(port: &ServicePort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match port.node_port.filter(|number| *number != 0) {
        Some(on_node) => format!("{}:{on_node}/{protocol}", port.port),
        None => format!("{}/{protocol}", port.port),
    }
}

/// The cells of a Service's row.
pub fn service(service: &Service) -> Vec<Value> {
    let spec = service.spec.clone().unwrap_or_default();
    let ports: Vec<String> = spec.ports.iter().flatten().map(port).collect();
    let selector: Vec<String> = spec.selector.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    let outside = match spec.type_.as_deref() {
        Some("ExternalName") => spec.external_name.clone().unwrap_or_default(),
        _ => spec.external_ips.clone().unwrap_or_default().join(","),
    };
    vec![
        json!(service.metadata.name),
        json!(spec.type_.unwrap_or_default()),
        or_none(spec.cluster_ip.as_deref()),
        or_none(Some(&outside)),
        or_none(Some(&ports.join(","))),
        json!(age(service.metadata.creation_timestamp.as_ref())),
        or_none(Some(&selector.join(","))),
    ]
}

/// The cells of a row of endpoints.
pub fn endpoints(endpoints: &Endpoints) -> Vec<Value> {
    let text = summary(endpoints);
    vec![
        json!(endpoints.metadata.name),
        or_none(Some(&text)),
        json!(age(endpoints.metadata.creation_timestamp.as_ref())),
    ]
}

/// The cells of a row of an EndpointSlice. Those that are not ready are shown, too.
pub fn slice(slice: &EndpointSlice) -> Vec<Value> {
    let number = |port: &discovery::EndpointPort| match (port.port, &port.name) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.clone(),
        (None, None) => "*".to_owned(),
    };
    let ports: Vec<String> = slice.ports.iter().flatten().map(number).collect();
    let addresses: Vec<String> =
        slice.endpoints.iter().flatten().flat_map(|one| one.addresses.iter().cloned()).collect();
    let or_unset = |all: &[String]| json!(if all.is_empty() { "<unset>".to_owned() } else { first_few(all) });
    vec![
        json!(slice.metadata.name),
        json!(slice.address_type),
        or_unset(&ports),
        or_unset(&addresses),
        json!(age(slice.metadata.creation_timestamp.as_ref())),
    ]
}

/// The first few of those that are ready, with the port of that name.
pub fn ready_members(slices: &[EndpointSlice], port: &str) -> String {
    let mut all = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let number =
            ports.filter(|known| known.name.as_deref().unwrap_or_default() == port).find_map(|p| p.port);
        let ready = |conditions: &discovery::EndpointConditions| conditions.ready != Some(false);
        let members = slice.endpoints.iter().flatten();
        let ready = members.filter(|one| one.conditions.as_ref().is_none_or(ready));
        let ips = ready.flat_map(|one| &one.addresses);
        all.extend(number.into_iter().flat_map(|number| ips.clone().map(move |ip| at(ip, number))));
    }
    first_few(&all)
}

/// The addresses of those that are ready, of all ports.
fn ready_endpoints(endpoints: &Endpoints) -> Vec<String> {
    let mut all = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ips = || subset.addresses.iter().flatten().map(|address| address.ip.clone());
        match subset.ports.as_deref().unwrap_or_default() {
            [] => all.extend(ips()),
            ports => all.extend(ports.iter().flat_map(|port| ips().map(|ip| at(&ip, port.port)))),
        }
    }
    all
}

/// The first few ready ones.
fn summary(endpoints: &Endpoints) -> String {
    first_few(&ready_endpoints(endpoints))
}

fn first_few(all: &[String]) -> String {
    let more = all.len().saturating_sub(MOST);
    let shown = all[..all.len() - more].join(",");
    if more == 0 { shown } else { format!("{shown} + {more} more...") }
}

fn at(ip: &str, port: i32) -> String {
    match (ip.parse::<IpAddr>(), u16::try_from(port)) {
        (Ok(ip), Ok(port)) => SocketAddr::new(ip, port).to_string(),
        _ => format!("{ip}:{port}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn services_as_kubectl_shows_them() {
        let object = json!({"metadata": {"name": "web"}, "spec": {
            "type": "NodePort", "clusterIP": "10.86.1.2", "selector": {"app": "web", "b": "c"},
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}],
        }});
        let cells = service(&serde_json::from_value(object).unwrap());
        let expected = ["web", "NodePort", "10.86.1.2", "<none>", "80:30080/TCP,53/UDP"];
        assert_eq!(cells[..5], expected.map(|text| json!(text)));
        assert_eq!(cells[6], json!("app=web,b=c"));
        let outside = |spec: Value| {
            service(&serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": spec})).unwrap())[2..4]
                .to_vec()
        };
        assert_eq!(outside(json!({"type": "ExternalName", "externalName": "a.b"})), ["<none>", "a.b"]);
        let ips = json!({"clusterIP": "10.86.0.1", "externalIPs": ["192.0.2.1", "192.0.2.2"]});
        assert_eq!(outside(ips), ["10.86.0.1", "192.0.2.1,192.0.2.2"]);
    }

    #[test]
    fn slices_show_all_addresses_of_their_family() {
        let of = |ports: Value, ips: &[&str]| {
            let endpoints: Vec<Value> = ips.iter().map(|ip| json!({"addresses": [ip]})).collect();
            let object = json!({"metadata": {"name": "web-1"}, "addressType": "IPv6", "ports": ports,
                "endpoints": endpoints});
            slice(&serde_json::from_value(object).unwrap())[1..4].to_vec()
        };
        let cells =
            of(json!([{"port": 80}, {"name": "x"}, {}]), &["fd00::2", "fd00::3", "fd00::4", "fd00::5"]);
        assert_eq!(cells, ["IPv6", "80,x,*", "fd00::2,fd00::3,fd00::4 + 1 more..."].map(|text| json!(text)));
        assert_eq!(of(json!([]), &[]), ["IPv6", "<unset>", "<unset>"].map(|text| json!(text)));
    }

    #[test]
    fn the_first_three_endpoints_are_shown() {
        let address = |n: u8| json!({"ip": format!("10.85.0.{n}")});
        let of = |count: u8| {
            let ready: Vec<Value> = (2..2 + count).map(address).collect();
            let subset =
                json!({"addresses": ready, "notReadyAddresses": [address(99)], "ports": [{"port": 80}]});
            serde_json::from_value(json!({"metadata": {"name": "web"}, "subsets": [subset]})).unwrap()
        };
        assert_eq!(endpoints(&of(0))[1], json!("<none>"));
        assert_eq!(endpoints(&of(2))[1], json!("10.85.0.2:80,10.85.0.3:80"));
        assert_eq!(endpoints(&of(5))[1], json!("10.85.0.2:80,10.85.0.3:80,10.85.0.4:80 + 2 more..."));
    }
}
