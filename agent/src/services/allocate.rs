//! Addresses and node ports of Services: a pure function of the Service, what it had, and what the others have.
//!
//! Where the search begins follows from the Service's name, so that one that is removed and comes again has, as a rule,
//! what it had before.

use std::collections::BTreeSet;
use std::net::IpAddr;

use berth_reconciler::services::{IpFamily, NODE_PORTS, families as families_of, is_alias, is_headless};
use k8s_openapi::api::core::v1;

use super::Refusal;
use super::families;
use super::ranges::Ranges;

/// The first addresses of the range are kept for those who choose one, as Kubernetes keeps them (KEP 3070): as many, at
/// most, as this, and no more than a sixteenth of the range.
const KEPT: u32 = 256;

/// What Services have.
#[derive(Debug, Default)]
pub(super) struct Taken {
    addresses: BTreeSet<IpAddr>,
    /// By protocol.
    node_ports: BTreeSet<(String, u16)>,
}

impl Taken {
    /// What these have.
    pub(super) fn by<'a>(services: impl Iterator<Item = &'a v1::Service>) -> Self {
        let mut taken = Self::default();
        for spec in services.filter_map(|service| service.spec.as_ref()) {
            let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
            taken.addresses.extend(ips.filter_map(|ip| ip.parse::<IpAddr>().ok()));
            taken.node_ports.extend(
                spec.ports.iter().flatten().filter_map(|port| Some((protocol(port), node_port(port)?))),
            );
        }
        taken
    }
}

/// The port's protocol.
pub(super) fn protocol(port: &v1::ServicePort) -> String {
    port.protocol.clone().unwrap_or_else(|| "TCP".into())
}

/// The port of the node that leads to it, if there is one.
pub(super) fn node_port(port: &v1::ServicePort) -> Option<u16> {
    port.node_port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

/// Gives a Service what it lacks: what it had before, else something that is free. `update` tells that it says only what is to
/// be different from before.
///
/// # Errors
/// What it asks for is not to be had.
pub(super) fn fill_in(
    service: &mut v1::Service,
    old: Option<&v1::Service>,
    update: bool,
    taken: &Taken,
    ranges: Option<&Ranges>,
) -> Result<(), Refusal> {
    let seed = format!(
        "{}/{}",
        service.metadata.namespace.as_deref().unwrap_or_default(),
        service.metadata.name.as_deref().unwrap_or_default()
    );
    let Some(spec) = service.spec.as_mut().filter(|spec| !is_alias(spec)) else { return Ok(()) };
    let old = old.and_then(|old| old.spec.as_ref());
    let Some(ranges) = ranges else {
        if is_headless(spec) {
            return Ok(());
        }
        let why =
            "must be \"None\": the pods' network is that of CNI plugins, in which Services have no addresses";
        return Err(Refusal::Field { field: "spec.clusterIP".into(), why: why.into() });
    };
    spec.cluster_ip.take_if(|ip| ip.is_empty());
    if spec.cluster_ips.as_ref().is_none_or(Vec::is_empty) {
        let same = |old: &&v1::ServiceSpec| {
            update && (spec.cluster_ip.is_none() || spec.cluster_ip == old.cluster_ip)
        };
        if let Some(old) = old.filter(same) {
            spec.cluster_ips.clone_from(&old.cluster_ips);
            if spec.ip_families.as_ref().is_none_or(Vec::is_empty) {
                spec.ip_families.clone_from(&old.ip_families);
            }
        } else {
            spec.cluster_ips = spec.cluster_ip.clone().map(|ip| vec![ip]);
        }
    }
    families::fill_in(spec, old.filter(|_| update), ranges)?;
    addresses(spec, old, taken, ranges, &seed)?;
    if spec.type_.as_deref() == Some("NodePort") {
        node_ports(spec, old, taken, &seed)?;
    }
    Ok(())
}

/// An address of each family.
fn addresses(
    spec: &mut v1::ServiceSpec,
    old: Option<&v1::ServiceSpec>,
    taken: &Taken,
    ranges: &Ranges,
    seed: &str,
) -> Result<(), Refusal> {
    let refuse = |i: usize, why: String| Err(Refusal::Field { field: format!("spec.clusterIPs[{i}]"), why });
    let asked = spec.cluster_ips.take().unwrap_or_default();
    if asked.first().or(spec.cluster_ip.as_ref()).is_some_and(|first| first == "None") {
        spec.cluster_ip = Some("None".into());
        spec.cluster_ips = Some(vec!["None".into()]);
        return Ok(());
    }
    let had: Vec<IpAddr> = old
        .and_then(|old| old.cluster_ips.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let mut given = Vec::new();
    for (i, family) in families_of(spec).into_iter().enumerate() {
        let before = had.iter().copied().find(|ip| IpFamily::of(*ip) == family);
        let before = before.filter(|ip| ranges.allow(*ip) && !taken.addresses.contains(ip));
        given.push(match asked.get(i) {
            Some(text) => {
                let failed =
                    |why: &str| format!("Invalid value: {text:?}: failed to allocate IP {text}: {why}");
                let Ok(ip) = text.parse::<IpAddr>() else { return refuse(i, failed("it is no IP address")) };
                if !ranges.allow(ip) {
                    let range = ranges.shown(IpFamily::of(ip));
                    let why = format!(
                        "the provided IP is not in the valid range. The range of valid IPs is {range}"
                    );
                    return refuse(i, failed(&why));
                }
                if taken.addresses.contains(&ip) {
                    return refuse(i, failed("provided IP is already allocated"));
                }
                ip
            }
            None => match before.or_else(|| free_address(taken, ranges, family, seed)) {
                Some(ip) => ip,
                None => {
                    let range = ranges.shown(family);
                    return refuse(i, format!("failed to allocate an address: range {range} is full"));
                }
            },
        });
    }
    let given: Vec<String> = given.iter().map(IpAddr::to_string).collect();
    spec.cluster_ip = given.first().cloned();
    spec.cluster_ips = Some(given);
    Ok(())
}

fn free_address(taken: &Taken, ranges: &Ranges, family: IpFamily, seed: &str) -> Option<IpAddr> {
    let size = ranges.size(family);
    let kept = (size / 16).min(KEPT);
    let count = size.saturating_sub(kept);
    let start = hash(seed).checked_rem(count)?;
    let above = (0..count).map(|step| {
        let place = (u64::from(start) + u64::from(step)) % u64::from(count);
        kept.saturating_add(u32::try_from(place).unwrap_or_default())
    });
    let mut free = above.chain(0..kept).filter_map(|place| ranges.nth(family, place));
    free.find(|ip| ranges.allow(*ip) && !taken.addresses.contains(ip))
}

fn node_ports(
    spec: &mut v1::ServiceSpec,
    old: Option<&v1::ServiceSpec>,
    taken: &Taken,
    seed: &str,
) -> Result<(), Refusal> {
    let before: Vec<&v1::ServicePort> = old.iter().flat_map(|old| old.ports.iter().flatten()).collect();
    let mut mine = taken.node_ports.clone();
    // What is asked for comes before what is merely found.
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(number) = node_port(port)
            && !mine.insert((protocol(port), number))
        {
            let why = format!("Invalid value: {number}: provided port is already allocated");
            return Err(Refusal::Field { field: format!("spec.ports[{i}].nodePort"), why });
        }
    }
    for (i, port) in spec.ports.iter_mut().flatten().enumerate() {
        if node_port(port).is_some() {
            continue;
        }
        let protocol = protocol(port);
        let had = before.iter().find(|old| old.port == port.port && self::protocol(old) == protocol);
        let had = had.and_then(|old| node_port(old)).filter(|n| !mine.contains(&(protocol.clone(), *n)));
        let found = had.or_else(|| free_port(&mine, &protocol, &format!("{seed}/{}", port.port)));
        let Some(number) = found else {
            let why = "failed to allocate a nodePort: range is full".to_owned();
            return Err(Refusal::Field { field: format!("spec.ports[{i}].nodePort"), why });
        };
        mine.insert((protocol, number));
        port.node_port = Some(i32::from(number));
    }
    Ok(())
}

fn free_port(taken: &BTreeSet<(String, u16)>, protocol: &str, seed: &str) -> Option<u16> {
    let count = u32::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
    let start = hash(seed) % count;
    let ports = (0..count).filter_map(|step| u16::try_from((start + step) % count).ok());
    ports
        .map(|offset| NODE_PORTS.start() + offset)
        .find(|port| !taken.contains(&(protocol.to_owned(), *port)))
}

/// FNV-1a: the same in every release, unlike what the standard library promises.
pub(super) fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> v1::Service {
        let meta = json!({"name": name, "namespace": "default"});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn filled(
        mut service: v1::Service,
        old: Option<&v1::Service>,
        others: &[v1::Service],
        range: &str,
    ) -> Result<v1::Service, String> {
        let taken = Taken::by(others.iter());
        fill_in(&mut service, old, false, &taken, Ranges::parse(range).ok().as_ref())
            .map_err(|e| e.to_string())?;
        Ok(service)
    }

    fn address(service: &v1::Service) -> &str {
        service.spec.as_ref().unwrap().cluster_ip.as_deref().unwrap()
    }

    fn ports(service: &v1::Service) -> Vec<Option<i32>> {
        service.spec.as_ref().unwrap().ports.iter().flatten().map(|port| port.node_port).collect()
    }

    const RANGE: &str = "10.86.0.0/16";

    #[test]
    fn a_service_that_comes_again_has_the_address_it_had() {
        let web = || service("web", json!({"type": "NodePort", "ports": [{"port": 80}]}));
        let first = filled(web(), None, &[], RANGE).unwrap();
        assert_eq!(filled(web(), None, &[], RANGE).unwrap(), first);
        let spec = first.spec.as_ref().unwrap();
        assert_eq!(spec.cluster_ips.as_deref(), Some(&[address(&first).to_owned()][..]));
        assert_eq!(spec.ip_families.as_deref(), Some(&["IPv4".to_owned()][..]));
        // With its address and port taken by others meanwhile it has others.
        let second = filled(web(), None, std::slice::from_ref(&first), RANGE).unwrap();
        assert_ne!(address(&second), address(&first));
        assert_ne!(ports(&second), ports(&first));
        // What it has it keeps, whatever it would find now.
        assert_eq!(filled(web(), Some(&second), &[], RANGE).unwrap(), second);
    }

    #[test]
    fn every_address_of_the_range_is_given_once() {
        let mut services: Vec<v1::Service> = Vec::new();
        for n in 0..14 {
            let one = filled(service(&format!("s{n}"), json!({})), None, &services, "10.86.0.0/28").unwrap();
            services.push(one);
        }
        let all: BTreeSet<&str> = services.iter().map(address).collect();
        assert_eq!(all.len(), 14);
        assert!(!all.contains("10.86.0.0") && !all.contains("10.86.0.15"));
        let error = filled(service("late", json!({})), None, &services, "10.86.0.0/28").unwrap_err();
        assert_eq!(error, "spec.clusterIPs[0]: failed to allocate an address: range 10.86.0.0/28 is full");
    }

    #[test]
    fn an_address_that_is_asked_for_must_be_free_and_in_range() {
        let asks = |ip: &str| service("web", json!({"clusterIP": ip}));
        let other = filled(asks("10.86.0.10"), None, &[], RANGE).unwrap();
        assert_eq!(address(&other), "10.86.0.10");
        let error = filled(asks("10.86.0.10"), None, &[other], RANGE).unwrap_err();
        assert_eq!(
            error,
            "spec.clusterIPs[0]: Invalid value: \"10.86.0.10\": failed to allocate IP 10.86.0.10: provided IP is already allocated"
        );
        for ip in ["10.96.0.1", "10.86.0.0", "10.86.255.255"] {
            let error = filled(asks(ip), None, &[], RANGE).unwrap_err();
            assert!(error.contains("The range of valid IPs is 10.86.0.0/16"), "{error}");
        }
        assert_eq!(address(&filled(asks("None"), None, &[], RANGE).unwrap()), "None");
    }

    #[test]
    fn a_service_of_both_families_has_an_address_of_each() {
        const DUAL: &str = "10.86.0.0/16,fd00:86::/112";
        let ips = |service: &v1::Service| service.spec.as_ref().unwrap().cluster_ips.clone().unwrap();
        let both = || service("web", json!({"ipFamilyPolicy": "PreferDualStack"}));
        let first = filled(both(), None, &[], DUAL).unwrap();
        let given = ips(&first);
        assert!(given[0].starts_with("10.86.") && given[1].starts_with("fd00:86::"), "{given:?}");
        assert_eq!(address(&first), given[0]);
        let other = filled(both(), None, std::slice::from_ref(&first), DUAL).unwrap();
        assert!(ips(&other).iter().all(|ip| !given.contains(ip)));
        // A file that wants the other family alone keeps that address.
        let six = filled(service("web", json!({"ipFamilies": ["IPv6"]})), Some(&first), &[], DUAL).unwrap();
        assert_eq!(ips(&six), given[1..]);
        let asks = service("web", json!({"clusterIP": "fd00:87::1"}));
        let error = filled(asks, None, &[], DUAL).unwrap_err();
        assert!(error.contains("The range of valid IPs is fd00:86::/112"), "{error}");
        let headless = service("web", json!({"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack"}));
        let headless = filled(headless, None, &[], DUAL).unwrap();
        assert_eq!(ips(&headless), ["None"]);
        assert_eq!(headless.spec.unwrap().ip_families.unwrap(), ["IPv4", "IPv6"]);
    }

    #[test]
    fn an_alias_gets_nothing() {
        let alias = json!({"type": "ExternalName", "externalName": "example.org"});
        let spec = filled(service("web", alias), None, &[], RANGE).unwrap().spec.unwrap();
        assert_eq!((spec.cluster_ip, spec.cluster_ips, spec.ip_families), (None, None, None));
    }

    #[test]
    fn without_a_range_a_service_is_only_a_name() {
        let error = filled(service("web", json!({})), None, &[], "").unwrap_err();
        assert!(error.starts_with("spec.clusterIP: must be \"None\""), "{error}");
        filled(service("web", json!({"clusterIP": "None"})), None, &[], "").unwrap();
    }

    #[test]
    fn node_ports_are_unique_by_protocol() {
        let ports_of = |name: &str, list: Value| service(name, json!({"type": "NodePort", "ports": list}));
        let dns = ports_of(
            "dns",
            json!([{"port": 53, "nodePort": 30053}, {"port": 53, "protocol": "UDP", "nodePort": 30053}, {"port": 9}]),
        );
        let dns = filled(dns, None, &[], RANGE).unwrap();
        assert_eq!(ports(&dns)[..2], [Some(30053), Some(30053)]);
        assert!(NODE_PORTS.contains(&u16::try_from(ports(&dns)[2].unwrap()).unwrap()));
        let thief = ports_of("thief", json!([{"port": 1}, {"port": 2, "nodePort": 30053}]));
        let error = filled(thief, None, &[dns], RANGE).unwrap_err();
        assert_eq!(error, "spec.ports[1].nodePort: Invalid value: 30053: provided port is already allocated");
    }
}
