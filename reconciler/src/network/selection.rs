//! Which networks a pod asks for: the annotations of the Network Plumbing Working Group's standard ("Kubernetes Network Custom
//! Resource Definition De-facto Standard", 1.3), as Multus reads them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{address, hardware_address};

/// The networks that a pod is on beside its first one.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// The pod's first network, in place of the node's own.
pub const FIRST: &str = "v1.multus-cni.io/default-network";
/// What a pod has got in its networks; written by the node.
pub const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// By what the node's own network is named.
pub const DEFAULT: &str = "default";
/// In the place of the first network: no network at all.
pub const NONE: &str = "none";
/// The first interface.
const FIRST_INTERFACE: &str = "eth0";
/// The longest name of an interface (IFNAMSIZ without the closing zero).
const INTERFACE_MAX: usize = 15;

/// A pod's first network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum First {
    /// The node's own.
    #[default]
    Default,
    /// None: the pod has only `lo`.
    None,
    /// One of the node's further networks.
    Named(String),
}

impl First {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Default => DEFAULT,
            Self::None => NONE,
            Self::Named(name) => name,
        }
    }
}

/// A limit on traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    pub bits: u64,
    /// Bits that may pass at once, if that is said.
    pub burst: Option<u64>,
}

/// A network that a pod is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The network's name.
    pub network: String,
    /// Name of the interface; `net1` and so on by its place, unless the pod says another.
    pub interface: String,
    /// Addresses wanted, at most one per family.
    pub ips: Vec<IpAddr>,
    /// Hardware address wanted.
    pub mac: Option<[u8; 6]>,
    /// Gateways of default routes that lead here, at most one per family.
    pub default_route: Vec<IpAddr>,
    /// Limit on what the pod receives by it.
    pub ingress: Option<Limit>,
    /// Limit on what the pod sends by it.
    pub egress: Option<Limit>,
}

/// An element of the JSON form. What is left in `rest` is not known.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Element {
    name: String,
    // A node's networks are in every namespace, so any will do; but it must be one.
    namespace: Option<String>,
    interface: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
    mac: Option<String>,
    #[serde(default)]
    default_route: Vec<String>,
    bandwidth: Option<Bandwidth>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// In bits, and bits per second.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bandwidth {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
}

/// Reads the networks beside the first one.
pub(super) fn networks(text: &str) -> Result<Vec<Selection>, String> {
    let all = elements(text)?;
    let mut found: Vec<Selection> = Vec::with_capacity(all.len());
    for (number, mut one) in (1..).zip(all) {
        if one.interface.is_empty() {
            one.interface = format!("net{number}");
        }
        match one.network.as_str() {
            NONE => {
                return Err(format!("{NONE} is no network to add; {FIRST}: {NONE} leaves a pod without any"));
            }
            "host" => return Err("host is no network to add; spec.hostNetwork gives a pod the node's".into()),
            _ => {}
        }
        if one.interface == FIRST_INTERFACE {
            return Err(format!(
                "interface {FIRST_INTERFACE} is that of the pod's first network, which {FIRST} names"
            ));
        }
        if found.iter().any(|other| other.network == one.network) {
            return Err(format!("network {} is named twice", one.network));
        }
        if found.iter().any(|other| other.interface == one.interface) {
            return Err(format!("interface {} is named twice", one.interface));
        }
        found.push(one);
    }
    let routes: Vec<&IpAddr> = found.iter().flat_map(|one| &one.default_route).collect();
    if one_per_family(routes.into_iter()).is_err() {
        return Err("more than one default-route of a family".into());
    }
    Ok(found)
}

/// Reads the first network.
pub(super) fn first(text: &str) -> Result<First, String> {
    let one = match <[Selection; 1]>::try_from(elements(text)?) {
        Ok([one]) => one,
        Err(_) => return Err("must name one network".into()),
    };
    if one != (Selection { network: one.network.clone(), ..Selection::default() }) {
        return Err(format!(
            "names a network and nothing more: its interface is {FIRST_INTERFACE}, and {} and {} ask for addresses",
            super::IPS,
            super::MAC
        ));
    }
    match one.network.as_str() {
        DEFAULT => Ok(First::Default),
        NONE => Ok(First::None),
        "host" => Err("is not for this: spec.hostNetwork gives a pod the node's network".into()),
        _ => Ok(First::Named(one.network)),
    }
}

/// The JSON form, if it is a list, or `[namespace/]name[@interface]`, separated by commas.
fn elements(text: &str) -> Result<Vec<Selection>, String> {
    let text = text.trim();
    if text.starts_with(['[', '{']) {
        let all: Vec<Element> =
            serde_json::from_str(text).map_err(|e| format!("cannot be read as a JSON list: {e}"))?;
        return all.into_iter().map(of_element).collect();
    }
    let parts = text.split(',').map(str::trim);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    parts.map(of_word).collect()
}

fn of_word(word: &str) -> Result<Selection, String> {
    let (path, interface) = match word.split_once('@') {
        Some((path, interface)) => (path, Some(interface)),
        None => (word, None),
    };
    let (namespace, name) = match path.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, path),
    };
    named(namespace, name, interface).map_err(|reason| format!("{word:?}: {reason}"))
}

fn of_element(element: Element) -> Result<Selection, String> {
    let fail = |reason: String| format!("network {:?}: {reason}", element.name);
    if let Some(key) = element.rest.keys().next() {
        let why = match key.as_str() {
            "portMappings" => "host ports lead to the pod's first network: use ports[].hostPort",
            _ => "only name, namespace, interface, ips, mac, default-route and bandwidth are",
        };
        return Err(fail(format!("{key} is not supported: {why}")));
    }
    let mut one =
        named(element.namespace.as_deref(), &element.name, element.interface.as_deref()).map_err(fail)?;
    // Some write the length of the prefix; it is the network's.
    let plain = |text: &String| address(text.split_once('/').map_or(text.as_str(), |(ip, _)| ip));
    one.ips = element.ips.iter().map(plain).collect::<Result<_, _>>().map_err(fail)?;
    one_per_family(one.ips.iter()).map_err(|()| fail("more than one of ips is of the same family".into()))?;
    one.mac =
        element.mac.as_deref().map(hardware_address).transpose().map_err(|e| fail(format!("mac {e}")))?;
    one.default_route =
        element.default_route.iter().map(|text| address(text)).collect::<Result<_, _>>().map_err(fail)?;
    if let Some(bandwidth) = &element.bandwidth {
        let limit = |name, rate, burst| limit(name, rate, burst).map_err(fail);
        one.ingress = limit("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst)?;
        one.egress = limit("egress", bandwidth.egress_rate, bandwidth.egress_burst)?;
    }
    Ok(one)
}

fn limit(name: &str, rate: Option<u64>, burst: Option<u64>) -> Result<Option<Limit>, String> {
    let allowed = u64::try_from(*super::BANDWIDTH.start()).unwrap_or(0)
        ..=u64::try_from(*super::BANDWIDTH.end()).unwrap_or(0);
    match (rate.filter(|rate| *rate > 0), burst.filter(|burst| *burst > 0)) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(format!("bandwidth.{name}Burst needs a {name}Rate")),
        (Some(bits), _) if !allowed.contains(&bits) => {
            Err(format!("bandwidth.{name}Rate: {bits} is not from 1000 bits per second to 10^15"))
        }
        (Some(_), Some(burst)) if !(8..=8 * u64::from(u32::MAX)).contains(&burst) => {
            Err(format!("bandwidth.{name}Burst: {burst} is not from 8 bits to {}", 8 * u64::from(u32::MAX)))
        }
        (Some(bits), burst) => Ok(Some(Limit { bits, burst })),
    }
}

fn named(namespace: Option<&str>, name: &str, interface: Option<&str>) -> Result<Selection, String> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |text: &str| {
        text.len() <= 63
            && text.starts_with(letter)
            && text.ends_with(letter)
            && text.chars().all(|c| letter(c) || c == '-')
    };
    if !label(name) {
        return Err(format!("{name:?} is not a network's name: small letters, digits and -"));
    }
    if let Some(namespace) = namespace.filter(|namespace| !label(namespace)) {
        return Err(format!("{namespace:?} is not a namespace's name"));
    }
    if let Some(interface) = interface {
        let good = |c: char| c.is_ascii_graphic() && !"/:%".contains(c);
        let is_name = (1..=INTERFACE_MAX).contains(&interface.len()) && interface.chars().all(good);
        if !is_name || [".", "..", "lo", "all", "default"].contains(&interface) {
            return Err(format!(
                "{interface:?} is not an interface's name: 1 to {INTERFACE_MAX} letters, digits, - _ ."
            ));
        }
    }
    Ok(Selection {
        network: name.to_owned(),
        interface: interface.unwrap_or_default().to_owned(),
        ..Selection::default()
    })
}

fn one_per_family<'a>(mut ips: impl Iterator<Item = &'a IpAddr>) -> Result<(), ()> {
    let mut seen = BTreeSet::new();
    let each_new = ips.all(|ip| seen.insert(ip.is_ipv4()));
    each_new.then_some(()).ok_or(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<(String, String)> {
        networks(text).unwrap().into_iter().map(|one| (one.network, one.interface)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(network, interface)| ((*network).into(), (*interface).into())).collect()
    }

    #[test]
    fn words_name_networks_and_interfaces() {
        assert_eq!(names("front"), pairs(&[("front", "net1")]));
        assert_eq!(
            names(" front , shop/back@eth5,third"),
            pairs(&[("front", "net1"), ("back", "eth5"), ("third", "net3")])
        );
        assert_eq!(names(""), pairs(&[]));
    }

    #[test]
    fn json_says_more() {
        let text = r#"[{"name": "front", "namespace": "shop", "ips": ["10.90.0.9/24", "fd00:90::9"],
            "mac": "02:00:00:00:00:09", "default-route": ["10.90.0.1"],
            "bandwidth": {"ingressRate": 1000000, "ingressBurst": 80000}}, {"name": "back", "interface": "b0"}]"#;
        let found = networks(text).unwrap();
        let expected = Selection {
            network: "front".into(),
            interface: "net1".into(),
            ips: vec!["10.90.0.9".parse().unwrap(), "fd00:90::9".parse().unwrap()],
            mac: Some([2, 0, 0, 0, 0, 9]),
            default_route: vec!["10.90.0.1".parse().unwrap()],
            ingress: Some(Limit { bits: 1_000_000, burst: Some(80_000) }),
            egress: None,
        };
        assert_eq!(found[0], expected);
        assert_eq!((found[1].network.as_str(), found[1].interface.as_str()), ("back", "b0"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let cases = [
            ("Front", "\"Front\" is not a network's name"),
            ("front,,back", "\"\" is not a network's name"),
            ("a/b/c", "\"b/c\" is not a network's name"),
            ("/b", "\"\" is not a namespace's name"),
            ("front@a-name-of-16-char", "is not an interface's name"),
            ("front@lo", "\"lo\" is not an interface's name"),
            ("front@", "\"\" is not an interface's name"),
            ("front@eth0", "interface eth0 is that of the pod's first network"),
            ("front,front", "network front is named twice"),
            ("front@net2,back", "interface net2 is named twice"),
            ("none", "none is no network to add"),
            ("host", "spec.hostNetwork"),
            ("{\"name\": \"front\"}", "cannot be read as a JSON list"),
            ("[{\"interface\": \"net1\"}]", "missing field `name`"),
            ("[{\"name\": \"f\", \"ips\": [\"x\"]}]", "network \"f\": \"x\" is not an IP address"),
            ("[{\"name\": \"f\", \"ips\": [\"10.0.0.1\", \"10.0.0.2\"]}]", "more than one of ips"),
            (
                "[{\"name\": \"f\", \"mac\": \"01:00:5e:00:00:01\"}]",
                "network \"f\": mac is not the hardware address",
            ),
            ("[{\"name\": \"f\", \"portMappings\": []}]", "portMappings is not supported: host ports lead"),
            ("[{\"name\": \"f\", \"cni-args\": {}}]", "cni-args is not supported: only name,"),
            (
                "[{\"name\": \"f\", \"bandwidth\": {\"egressRate\": 10}}]",
                "bandwidth.egressRate: 10 is not from 1000",
            ),
            ("[{\"name\": \"f\", \"bandwidth\": {\"egressBurst\": 10}}]", "egressBurst needs a egressRate"),
            ("[{\"name\": \"f\", \"bandwidth\": {\"rate\": 10}}]", "unknown field `rate`"),
            (
                "[{\"name\": \"f\", \"default-route\": [\"10.0.0.1\"]}, {\"name\": \"g\", \"default-route\": [\"10.1.0.1\"]}]",
                "more than one default-route of a family",
            ),
        ];
        for (text, said) in cases {
            let error = networks(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_network_is_one() {
        assert_eq!(first("front").unwrap(), First::Named("front".into()));
        assert_eq!(first("kube-system/front").unwrap(), First::Named("front".into()));
        assert_eq!(first("[{\"name\": \"front\"}]").unwrap(), First::Named("front".into()));
        assert_eq!((first("none").unwrap(), first("default").unwrap()), (First::None, First::Default));
        for (text, said) in [
            ("", "must name one network"),
            ("a,b", "must name one network"),
            ("a@eth1", "names a network and nothing more"),
            ("[{\"name\": \"a\", \"ips\": [\"10.0.0.1\"]}]", "berth.dev/ips"),
            ("host", "spec.hostNetwork"),
        ] {
            assert!(first(text).unwrap_err().contains(said), "{text}");
        }
    }
}
