//! The network configuration: the JSON of one plugin, with what the runtime adds to it. docs/cni.md describes it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::failure::{CONFIG, DECODE, Failure, UNSUPPORTED, VERSION};
use super::request::id;
use crate::config::{Config, HostPort, LINK_NAME_MAX, Protocol, Rate};

const DATA_DIR: &str = "/var/lib/cni/berth";
const CAPABILITIES: [&str; 4] = ["portMappings", "bandwidth", "ips", "mac"];

/// What the plugin `bridge` has beside ours, and what there is in its place.
const INSTEAD: [(&str, &str); 7] = [
    ("vlan", "bridges do not look at VLAN tags: give each VLAN a network and a bridge of its own"),
    ("vlanTrunk", "bridges do not look at VLAN tags: give each VLAN a network and a bridge of its own"),
    ("preserveDefaultVlan", "bridges do not look at VLAN tags"),
    ("forceAddress", "other addresses of the bridge are left alone"),
    ("ipMasqBackend", "masquerading is always by nftables"),
    ("uplinkInterface", "traffic leaves by the host's routes"),
    ("disableContainerInterface", "the container's interface always has an address"),
];

/// As it is written. What is left in `rest` is not known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    _plugin: Option<String>,
    bridge: Option<String>,
    #[serde(default)]
    subnets: Vec<String>,
    gateway: Option<std::net::Ipv4Addr>,
    range_start: Option<std::net::Ipv4Addr>,
    range_end: Option<std::net::Ipv4Addr>,
    mtu: Option<u32>,
    is_gateway: Option<bool>,
    is_default_gateway: Option<bool>,
    ip_masq: Option<bool>,
    hairpin_mode: Option<bool>,
    promisc_mode: Option<bool>,
    port_isolation: Option<bool>,
    #[serde(rename = "macspoofchk")]
    mac_spoof_check: Option<bool>,
    internal: Option<bool>,
    nft_table: Option<String>,
    data_dir: Option<PathBuf>,
    quarantine_seconds: Option<u64>,
    dns: Option<Value>,
    #[serde(default)]
    capabilities: Map<String, Value>,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    #[serde(default)]
    args: Map<String, Value>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<AttachmentId>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct AttachmentId {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// `runtimeConfig`: what the runtime says for the capabilities that the configuration declares.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Vec<PortMapping>,
    bandwidth: Bandwidth,
    ips: Vec<String>,
    mac: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    host_port: i64,
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

/// In bits, and bits per second; 0 is no limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Bandwidth {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

/// A checked configuration.
#[derive(Debug)]
pub(super) struct Conf {
    pub version: String,
    pub name: String,
    pub network: Config,
    pub dns: Option<Value>,
    pub host_ports: Vec<HostPort>,
    pub ips: Vec<String>,
    pub mac: Option<String>,
    pub ingress: Option<Rate>,
    pub egress: Option<Rate>,
    pub prev_result: Option<Value>,
    /// Keys of the leases that GC is to keep.
    pub valid: Option<Vec<String>>,
}

fn refuse<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(CONFIG, text))
}

fn unsupported<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(UNSUPPORTED, text))
}

impl Conf {
    /// Reads and checks a configuration.
    pub(super) fn read(mut value: Value) -> Result<Self, Failure> {
        let version = value["cniVersion"].take();
        // Version 0.1.0 had no such field.
        let version = version.as_str().unwrap_or("0.1.0").to_owned();
        if !super::VERSIONS.contains(&version.as_str()) {
            let text = format!("cniVersion {version:?} is not one of {}", super::VERSIONS.join(", "));
            return Err(Failure::new(VERSION, text));
        }
        let raw: Raw = serde_json::from_value(value)
            .map_err(|e| Failure::new(DECODE, "the network configuration cannot be read").because(e))?;
        raw.refuse_unsupported()?;
        let network = raw.network()?;
        let given = |ips: &Map<String, Value>| -> Vec<String> {
            let list = ips.get("cni").and_then(|cni| cni["ips"].as_array().cloned()).unwrap_or_default();
            list.into_iter().filter_map(|ip| ip.as_str().map(str::to_owned)).collect()
        };
        let mut ips = given(&raw.args);
        ips.extend(raw.runtime_config.ips.iter().cloned());
        let bandwidth = &raw.runtime_config.bandwidth;
        Ok(Self {
            version,
            network,
            dns: raw.dns,
            host_ports: raw.runtime_config.port_mappings.iter().map(host_port).collect::<Result<_, _>>()?,
            ips,
            mac: raw.runtime_config.mac,
            ingress: rate(bandwidth.ingress_rate, bandwidth.ingress_burst),
            egress: rate(bandwidth.egress_rate, bandwidth.egress_burst),
            prev_result: raw.prev_result.filter(|result| !result.is_null()),
            valid: raw.valid.map(|valid| valid.iter().map(|one| id(&one.container, &one.ifname)).collect()),
            name: raw.name,
        })
    }
}

impl Raw {
    /// Refuses what would otherwise be ignored.
    fn refuse_unsupported(&self) -> Result<(), Failure> {
        if self.rest.contains_key("ipam") {
            return unsupported(
                "ipam is not supported: addresses are given out by the plugin itself, from subnets",
            );
        }
        if let Some((key, instead)) = INSTEAD.into_iter().find(|(key, _)| self.rest.contains_key(*key)) {
            return unsupported(format!("{key} is not supported: {instead}"));
        }
        // `cni.dev/` is the runtime's and may hold more than is known today.
        let ignored = |key: &str| key == "cniVersion" || key == "cniVersions" || key.starts_with("cni.dev/");
        if let Some(key) = self.rest.keys().find(|key| !ignored(key)) {
            return unsupported(format!("{key} is not supported"));
        }
        if self.is_gateway == Some(false) {
            return unsupported("isGateway: false is not supported: the bridge always has an address");
        }
        let declared =
            self.capabilities.iter().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name);
        let unknown = |name: &&String| !CAPABILITIES.contains(&name.as_str());
        if let Some(name) = declared.chain(self.runtime_config.rest.keys()).find(unknown) {
            let known = CAPABILITIES.join(", ");
            return unsupported(format!("capability {name} is not supported: only {known} are"));
        }
        Ok(())
    }

    fn network(&self) -> Result<Config, Failure> {
        let name = &self.name;
        if !super::is_name(name) || name.len() > 60 {
            return refuse(format!(
                "name {name:?} is not 1 to 60 letters, digits, _ . -, beginning with one of the first two"
            ));
        }
        let mut config = Config::new(self.data_dir.clone().unwrap_or_else(|| DATA_DIR.into()).join(name));
        config.bridge = match &self.bridge {
            Some(bridge) => bridge.clone(),
            None => format!("cni-{name}"),
        };
        if self.bridge.is_none() && config.bridge.len() > LINK_NAME_MAX {
            return refuse(format!("{} is too long for a bridge's name: give one by bridge", config.bridge));
        }
        config.table = self.nft_table.clone().unwrap_or_else(|| format!("cni-{name}"));
        self.addresses(&mut config)?;
        config.mtu = self.mtu.filter(|mtu| *mtu != 0);
        config.masquerade = self.ip_masq.unwrap_or(true);
        config.default_route = self.is_default_gateway.unwrap_or(true);
        config.promiscuous = self.promisc_mode.unwrap_or(false);
        config.hairpin = self.hairpin_mode.unwrap_or(!config.promiscuous);
        config.port_isolation = self.port_isolation.unwrap_or(false);
        config.mac_spoof_check = self.mac_spoof_check.unwrap_or(false);
        config.internal = self.internal.unwrap_or(false);
        if config.internal && self.is_default_gateway == Some(true) {
            return refuse(
                "internal and isDefaultGateway cannot both be: nothing leaves an internal network",
            );
        }
        config.default_route &= !config.internal;
        if config.hairpin && config.promiscuous {
            return refuse("hairpinMode and promiscMode cannot both be: packets would come twice");
        }
        if let Some(seconds) = self.quarantine_seconds {
            config.quarantine = Duration::from_secs(seconds);
        }
        config.check()?;
        Ok(config)
    }

    fn addresses(&self, config: &mut Config) -> Result<(), Failure> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for subnet in &self.subnets {
            if subnet.contains(':') { v6.push(subnet.parse()?) } else { v4.push(subnet.parse()?) }
        }
        config.ipv4 = match v4[..] {
            [one] => one,
            [] => return refuse("subnets has no IPv4 network: one is needed"),
            _ => return refuse("subnets has more than one IPv4 network"),
        };
        config.ipv6 = match v6[..] {
            [] => None,
            [one] => Some(one),
            _ => return refuse("subnets has more than one IPv6 network"),
        };
        config.gateway = self.gateway;
        if self.range_start.is_some() || self.range_end.is_some() {
            let last = u32::try_from(config.ipv4.size().saturating_sub(2)).unwrap_or(u32::MAX);
            let ends = (self.range_start.or(config.ipv4.nth(1)), self.range_end.or(config.ipv4.nth(last)));
            config.range = ends.0.zip(ends.1);
        }
        Ok(())
    }
}

fn rate(bits_per_second: u64, burst_bits: u64) -> Option<Rate> {
    let burst_bytes = (burst_bits > 0).then(|| u32::try_from(burst_bits / 8).unwrap_or(u32::MAX));
    (bits_per_second > 0).then_some(Rate { bits_per_second, burst_bytes })
}

fn host_port(mapping: &PortMapping) -> Result<HostPort, Failure> {
    let port = |field: &str, number: i64| {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        port.map_or_else(|| refuse(format!("portMappings: {field} {number} is not from 1 to 65535")), Ok)
    };
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return refuse(format!("portMappings: protocol {:?} is not tcp, udp or sctp", mapping.protocol)),
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => match text.parse::<IpAddr>() {
            Ok(ip) => Some(ip),
            Err(_) => return refuse(format!("portMappings: hostIP {text:?} is not an address")),
        },
    };
    Ok(HostPort {
        host_ip,
        host_port: port("hostPort", mapping.host_port)?,
        container_port: port("containerPort", mapping.container_port)?,
        protocol,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: Value) -> Result<Conf, Failure> {
        let mut conf =
            json!({"cniVersion": "1.1.0", "name": "pods", "type": "berth-cni", "subnets": ["10.9.0.0/24"]});
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        Conf::read(conf)
    }

    fn refusal(more: Value) -> (u32, String) {
        let failure = read(more).unwrap_err();
        (failure.code, failure.to_string())
    }

    #[test]
    fn defaults_come_from_the_name() {
        let conf = read(json!({})).unwrap();
        let network = conf.network;
        assert_eq!((network.bridge.as_str(), network.table.as_str()), ("cni-pods", "cni-pods"));
        assert_eq!(network.state_dir, PathBuf::from("/var/lib/cni/berth/pods"));
        assert!(network.masquerade && network.hairpin && network.default_route && !network.promiscuous);
        assert_eq!((network.mtu, network.gateway, network.range), (None, None, None));
    }

    #[test]
    fn internal_networks_have_no_default_route() {
        let more = json!({"internal": true, "portIsolation": true, "macspoofchk": true});
        let network = read(more).unwrap().network;
        assert!(
            network.internal && network.port_isolation && network.mac_spoof_check && !network.default_route
        );
    }

    #[test]
    fn every_key_has_its_place() {
        let conf = read(json!({
            "bridge": "br9", "subnets": ["10.9.0.0/24", "fd09::/64"], "gateway": "10.9.0.254", "rangeStart": "10.9.0.10",
            "mtu": 1400, "isGateway": true, "isDefaultGateway": false, "ipMasq": false, "promiscMode": true,
            "nftTable": "t9", "dataDir": "/d", "quarantineSeconds": 5, "dns": {"nameservers": ["10.9.0.254"]},
            "capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true, "aliases": false},
            "runtimeConfig": {
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "UDP", "hostIP": "127.0.0.1"}],
                "bandwidth": {"ingressRate": 8000, "ingressBurst": 80000, "egressRate": 16000, "egressBurst": 0},
                "ips": ["10.9.0.5/24"], "mac": "02:00:00:00:00:05",
            },
            "args": {"cni": {"ips": ["10.9.0.6"]}},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}], "cni.dev/attachments": [],
        }))
        .unwrap();
        let network = &conf.network;
        assert_eq!((network.bridge.as_str(), network.table.as_str(), network.mtu), ("br9", "t9", Some(1400)));
        assert_eq!(network.range, Some(("10.9.0.10".parse().unwrap(), "10.9.0.254".parse().unwrap())));
        assert_eq!((network.gateway, network.quarantine.as_secs()), (Some("10.9.0.254".parse().unwrap()), 5));
        assert!(!network.masquerade && !network.hairpin && !network.default_route && network.promiscuous);
        assert_eq!(network.state_dir, PathBuf::from("/d/pods"));
        assert_eq!(conf.host_ports[0].host_ip, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(conf.host_ports[0].protocol, Protocol::Udp);
        assert_eq!(conf.ingress, Some(Rate { bits_per_second: 8000, burst_bytes: Some(10_000) }));
        assert_eq!(conf.egress, Some(Rate { bits_per_second: 16000, burst_bytes: None }));
        assert_eq!(conf.ips, ["10.9.0.6", "10.9.0.5/24"]);
        assert_eq!(conf.valid.unwrap(), ["a:eth0"]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (more, code, words) in [
            (json!({"vlan": 3}), UNSUPPORTED, "vlan is not supported: bridges do not look at VLAN tags"),
            (json!({"forceAddress": true}), UNSUPPORTED, "forceAddress is not supported"),
            (json!({"other": true}), UNSUPPORTED, "other is not supported"),
            (json!({"internal": true, "isDefaultGateway": true}), CONFIG, "cannot both be"),
            (json!({"ipam": {}}), UNSUPPORTED, "ipam is not supported"),
            (json!({"isGateway": false}), UNSUPPORTED, "isGateway"),
            (json!({"capabilities": {"aliases": true}}), UNSUPPORTED, "capability aliases"),
            (json!({"runtimeConfig": {"dns": {}}}), UNSUPPORTED, "capability dns"),
            (json!({"name": ""}), CONFIG, "name \"\""),
            (json!({"name": "a/b"}), CONFIG, "name \"a/b\""),
            (json!({"name": "a-rather-long-name"}), CONFIG, "give one by bridge"),
            (json!({"subnets": []}), CONFIG, "no IPv4 network"),
            (json!({"subnets": ["10.0.0.0/8", "11.0.0.0/8"]}), CONFIG, "more than one IPv4"),
            (json!({"subnets": ["10.0.0.0/99"]}), CONFIG, "prefix length 99"),
            (json!({"gateway": "10.8.0.1"}), CONFIG, "gateway 10.8.0.1"),
            (json!({"rangeEnd": "10.8.0.1"}), CONFIG, "10.8.0.1 is no range"),
            (json!({"hairpinMode": true, "promiscMode": true}), CONFIG, "cannot both be"),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 1}]}}),
                CONFIG,
                "hostPort 0",
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "x"}]}}),
                CONFIG,
                "protocol \"x\"",
            ),
        ] {
            let (got, text) = refusal(more);
            assert!(got == code && text.contains(words), "{got} {text}");
        }
    }
}
