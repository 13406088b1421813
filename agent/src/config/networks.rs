//! The networks of the pods: the node's own and those under `networks`.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail};
use berth_netplug::{Ipv4Cidr, Ipv6Cidr};
use berth_reconciler::network::DEFAULT;
use serde::Deserialize;

use super::Config;

/// An entry of `networks`, with the names that podman and the CNI plugin `bridge` have for its fields.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NetworkFile {
    name: String,
    driver: Option<String>,
    bridge: Option<String>,
    parent: Option<String>,
    subnets: Vec<String>,
    gateway: Option<Ipv4Addr>,
    range_start: Option<Ipv4Addr>,
    range_end: Option<Ipv4Addr>,
    internal: Option<bool>,
    isolation: Option<bool>,
    port_isolation: Option<bool>,
    macspoofchk: Option<bool>,
    mtu: Option<u32>,
    ip_masq: Option<bool>,
    hairpin_mode: Option<bool>,
    promisc_mode: Option<bool>,
    vlan: Option<serde_yaml::Value>,
    vlan_filtering: Option<bool>,
}

/// A checked entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// By what pods name it; `default` is the node's own.
    pub name: String,
    bridge: String,
    /// The host's link that a macvlan network is on.
    parent: Option<String>,
    /// None of the node's own, which `podCIDR` says.
    ipv4: Option<Ipv4Cidr>,
    ipv6: Option<Ipv6Cidr>,
    gateway: Option<Ipv4Addr>,
    range: Option<(Option<Ipv4Addr>, Option<Ipv4Addr>)>,
    internal: bool,
    isolation: bool,
    port_isolation: bool,
    mac_spoof_check: bool,
    mtu: Option<u32>,
    ip_masq: bool,
    hairpin: bool,
    promiscuous: bool,
}

/// Checks the entries, each by itself; against each other the network does when it is opened.
pub(super) fn check(files: Vec<NetworkFile>, with_cni: bool) -> anyhow::Result<Vec<Network>> {
    if with_cni && !files.is_empty() {
        bail!(
            "networks: are Berth's own, and cniConfDir gives pods those of other plugins: only one of the two can be had"
        );
    }
    let mut checked: Vec<Network> = Vec::new();
    for (number, file) in files.into_iter().enumerate() {
        let one = check_one(file).with_context(|| format!("networks[{number}]"))?;
        if checked.iter().any(|other| other.name == one.name) {
            bail!("networks[{number}]: name: {:?} is used twice", one.name);
        }
        checked.push(one);
    }
    Ok(checked)
}

fn check_one(file: NetworkFile) -> anyhow::Result<Network> {
    if file.name.is_empty() {
        bail!("name: must be given");
    }
    let name = &file.name;
    match file.driver.as_deref() {
        None | Some("bridge") if file.parent.is_none() => {}
        None | Some("bridge") => bail!("{name}: parent: is for driver: macvlan"),
        Some("macvlan") => check_macvlan(&file)?,
        Some(other) => bail!("{name}: driver: {other:?} is not supported: only bridge and macvlan are"),
    }
    if file.vlan.is_some() {
        bail!(
            "{name}: vlan: is not supported: a network of driver macvlan, with the link of the VLAN (eth0.10) as its parent, is on it"
        );
    }
    if file.vlan_filtering == Some(true) {
        bail!("{name}: vlanFiltering: true is not supported: bridges do not look at VLAN tags");
    }
    let promiscuous = file.promisc_mode.unwrap_or(false);
    if promiscuous && file.hairpin_mode == Some(true) {
        bail!("{name}: hairpinMode and promiscMode exclude each other");
    }
    let (ipv4, ipv6) = if *name == DEFAULT { check_default(&file)? } else { subnets(&file)? };
    Ok(Network {
        bridge: file.bridge.unwrap_or_else(|| format!("br-{name}")),
        parent: file.parent,
        ipv4,
        ipv6,
        gateway: file.gateway,
        range: (file.range_start.is_some() || file.range_end.is_some())
            .then_some((file.range_start, file.range_end)),
        internal: file.internal.unwrap_or(false),
        isolation: file.isolation.unwrap_or(true),
        port_isolation: file.port_isolation.unwrap_or(false),
        mac_spoof_check: file.macspoofchk.unwrap_or(false),
        mtu: file.mtu,
        ip_masq: file.ip_masq.unwrap_or(true),
        hairpin: file.hairpin_mode.unwrap_or(!promiscuous),
        promiscuous,
        name: file.name,
    })
}

type Subnets = (Option<Ipv4Cidr>, Option<Ipv6Cidr>);

/// A network without a bridge has nothing of one.
fn check_macvlan(file: &NetworkFile) -> anyhow::Result<()> {
    let name = &file.name;
    if *name == DEFAULT {
        bail!("{DEFAULT}: driver: the node's own network is a bridge");
    }
    if file.parent.as_deref().unwrap_or_default().is_empty() {
        bail!(
            "{name}: parent: must be given: the host's link whose network the pods are to be on, such as eth0 or eth0.10"
        );
    }
    for (field, given) in [
        ("bridge", file.bridge.is_some()),
        ("internal", file.internal.is_some()),
        ("isolation", file.isolation.is_some()),
        ("portIsolation", file.port_isolation.is_some()),
        ("macspoofchk", file.macspoofchk.is_some()),
        ("ipMasq", file.ip_masq.is_some()),
        ("hairpinMode", file.hairpin_mode.is_some()),
        ("promiscMode", file.promisc_mode.is_some()),
    ] {
        if given {
            bail!(
                "{name}: {field}: is for driver: bridge; pods of a macvlan network are on the wire of {}",
                file.parent.as_deref().unwrap_or_default()
            );
        }
    }
    Ok(())
}

/// Of the node's own network much is said elsewhere.
fn check_default(file: &NetworkFile) -> anyhow::Result<Subnets> {
    for (field, given, instead) in [
        ("bridge", file.bridge.is_some(), "is `bridge` of the configuration"),
        ("subnets", !file.subnets.is_empty(), "are `podCIDR` of the configuration"),
        ("mtu", file.mtu.is_some(), "is `mtu` of the configuration"),
        (
            "internal",
            file.internal == Some(true),
            "cannot be: pods that name no network would have no way out",
        ),
    ] {
        if given {
            bail!("{DEFAULT}: {field}: of the node's own network {instead}");
        }
    }
    Ok((None, None))
}

fn subnets(file: &NetworkFile) -> anyhow::Result<Subnets> {
    let name = &file.name;
    let (mut ipv4, mut ipv6) = (None, None);
    for text in &file.subnets {
        let text = text.trim();
        let twice = match text.contains(':') {
            true => {
                ipv6.replace(text.parse().with_context(|| format!("{name}: subnets: {text:?}"))?).is_some()
            }
            false => {
                ipv4.replace(text.parse().with_context(|| format!("{name}: subnets: {text:?}"))?).is_some()
            }
        };
        if twice {
            bail!(
                "{name}: subnets: {text} is the second of its family: one IPv4 range and, if wanted, one IPv6 range can be had"
            );
        }
    }
    if ipv4.is_none() {
        bail!("{name}: subnets: must have an IPv4 range, such as 10.90.0.0/24");
    }
    Ok((ipv4, ipv6))
}

impl Config {
    /// The names of the further networks.
    pub fn network_names(&self) -> Vec<String> {
        self.networks.iter().filter(|net| net.name != DEFAULT).map(|net| net.name.clone()).collect()
    }

    /// A policy that is not enforced everywhere must not look as if it were.
    fn check_policies(&self) -> anyhow::Result<()> {
        if !self.network_policy {
            return Ok(());
        }
        if self.cni_conf_dir.is_some() {
            bail!(
                "networkPolicy: is for Berth's own network, and cniConfDir gives pods those of other plugins: policies are theirs to enforce"
            );
        }
        if let Some((net, parent)) = self.networks.iter().find_map(|net| Some((net, net.parent.as_ref()?))) {
            bail!(
                "networkPolicy: cannot be enforced on the network {}: what its pods send goes out by {parent} without passing this machine; use driver: bridge, or take one of the two back",
                net.name
            );
        }
        Ok(())
    }

    /// What the pod network is told.
    ///
    /// # Errors
    /// The field that cannot be read.
    pub fn network(&self) -> anyhow::Result<berth_netplug::Config> {
        let mut network = berth_netplug::Config::new(self.root.join("net"));
        network.bridge.clone_from(&self.bridge);
        network.ipv4 = self.pod_cidr.parse().with_context(|| format!("pod CIDR {:?}", self.pod_cidr))?;
        let v6 = self.pod_cidr6.as_ref();
        network.ipv6 = v6.map(|v6| v6.parse().with_context(|| format!("pod CIDR {v6:?}"))).transpose()?;
        network.mtu = self.mtu;
        network.name_server = crate::dns::is_wanted(self);
        network.table.clone_from(&self.nft_table);
        self.check_policies()?;
        network.policies = self.network_policy;
        for net in &self.networks {
            let Some(ipv4) = net.ipv4 else {
                net.set(&mut network);
                continue;
            };
            let mut another = network.another(&net.name, &net.bridge, ipv4);
            another.ipv6 = net.ipv6;
            net.set(&mut another);
            network.beside.push(another);
        }
        Ok(network)
    }
}

impl Network {
    fn set(&self, network: &mut berth_netplug::Config) {
        network.gateway = self.gateway;
        network.range = self.range.map(|(first, last)| {
            let ends = network.ipv4.size().saturating_sub(2);
            let last_of_all = u32::try_from(ends).ok().and_then(|offset| network.ipv4.nth(offset));
            let (from, to) = (network.ipv4.nth(1), last_of_all);
            (first.or(from).unwrap_or(Ipv4Addr::UNSPECIFIED), last.or(to).unwrap_or(Ipv4Addr::UNSPECIFIED))
        });
        network.internal = self.internal;
        network.isolated = self.isolation;
        network.port_isolation = self.port_isolation;
        network.mac_spoof_check = self.mac_spoof_check;
        network.parent.clone_from(&self.parent);
        // Without a bridge the interfaces have their parent's.
        network.mtu = if self.parent.is_some() { self.mtu } else { self.mtu.or(network.mtu) };
        network.masquerade = self.ip_masq;
        network.hairpin = self.hairpin;
        network.promiscuous = self.promiscuous;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Vec<Network>> {
        check(serde_yaml::from_str(text)?, false)
    }

    fn refusal(text: &str) -> String {
        format!("{:#}", read(text).unwrap_err())
    }

    #[test]
    fn networks_have_defaults() {
        let nets =
            read("[{ name: front, subnets: [10.90.0.0/24] }, { name: default, isolation: false }]").unwrap();
        assert_eq!((nets[0].bridge.as_str(), nets[0].isolation, nets[0].hairpin), ("br-front", true, true));
        assert!(nets[0].ip_masq && !nets[0].internal && !nets[0].promiscuous && !nets[0].port_isolation);
        assert!(!nets[1].isolation);
        let nets =
            read("[{ name: front, subnets: [10.90.0.0/24, 'fd00::/64'], promiscMode: true }]").unwrap();
        assert!(nets[0].promiscuous && !nets[0].hairpin && nets[0].ipv6.is_some());
    }

    #[test]
    fn every_field_has_its_place() {
        let text = "[{ name: a, driver: bridge, bridge: b0, subnets: [10.90.0.0/24], gateway: 10.90.0.9, internal: true, \
                    isolation: false, portIsolation: true, macspoofchk: true, mtu: 1400, ipMasq: false, hairpinMode: false }]";
        let mut config = berth_netplug::Config::new("/x").another("a", "b0", "10.90.0.0/24".parse().unwrap());
        let net = read(text).unwrap().remove(0);
        net.set(&mut config);
        assert_eq!((net.bridge.as_str(), config.gateway), ("b0", Some([10, 90, 0, 9].into())));
        assert!(config.internal && !config.isolated && config.port_isolation && config.mac_spoof_check);
        assert!(!config.masquerade && !config.hairpin && !config.promiscuous && config.parent.is_none());
        assert_eq!(config.mtu, Some(1400));
        let wire = read("[{ name: a, driver: macvlan, parent: eth0.10, subnets: [10.90.0.0/24] }]").unwrap();
        wire[0].set(&mut config);
        assert_eq!((config.parent.as_deref(), config.mtu), (Some("eth0.10"), None));
    }

    #[test]
    fn policies_are_for_what_passes_this_machine() {
        let config = |nets: &str, cni: bool| {
            let file = serde_yaml::from_str(&format!("networkPolicy: true\nnetworks: {nets}\n")).unwrap();
            let mut config = Config::merge(&Default::default(), file).unwrap();
            config.cni_conf_dir = cni.then(|| "/etc/cni/net.d".into());
            config.network()
        };
        assert!(config("[{ name: a, subnets: [10.90.0.0/24] }]", false).unwrap().policies);
        let refusal = |nets, cni| config(nets, cni).unwrap_err().to_string();
        assert!(refusal("[]", true).contains("networkPolicy: is for Berth's own network"));
        let macvlan = "[{ name: a, driver: macvlan, parent: eth7, subnets: [10.90.0.0/24] }]";
        assert!(refusal(macvlan, false).contains("cannot be enforced on the network a"));
    }

    #[test]
    fn ends_of_a_range_may_be_left_out() {
        let nets = read("[{ name: front, subnets: [10.90.0.0/24], rangeStart: 10.90.0.100 }]").unwrap();
        let mut config =
            berth_netplug::Config::new("/x").another("front", "b", "10.90.0.0/24".parse().unwrap());
        nets[0].set(&mut config);
        assert_eq!(config.range, Some(([10, 90, 0, 100].into(), [10, 90, 0, 254].into())));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_place() {
        let cases = [
            ("[{ subnets: [10.90.0.0/24] }]", "networks[0]: name: must be given"),
            ("[{ name: a }]", "networks[0]: a: subnets: must have an IPv4 range"),
            ("[{ name: a, subnets: [10.90.0.0] }]", "networks[0]: a: subnets: \"10.90.0.0\""),
            (
                "[{ name: a, subnets: [10.90.0.0/24, 10.91.0.0/24] }]",
                "10.91.0.0/24 is the second of its family",
            ),
            (
                "[{ name: a, driver: ipvlan }]",
                "driver: \"ipvlan\" is not supported: only bridge and macvlan are",
            ),
            ("[{ name: a, driver: macvlan, subnets: [10.90.0.0/24] }]", "a: parent: must be given"),
            ("[{ name: a, parent: eth0, subnets: [10.90.0.0/24] }]", "a: parent: is for driver: macvlan"),
            (
                "[{ name: a, driver: macvlan, parent: eth0, internal: true }]",
                "a: internal: is for driver: bridge",
            ),
            ("[{ name: default, driver: macvlan, parent: eth0 }]", "the node's own network is a bridge"),
            ("[{ name: a, vlan: 5 }]", "networks[0]: a: vlan: is not supported"),
            ("[{ name: a, vlanFiltering: true }]", "vlanFiltering: true is not supported"),
            ("[{ name: a, hairpinMode: true, promiscMode: true }]", "exclude each other"),
            ("[{ name: default, bridge: b }]", "default: bridge: of the node's own network is `bridge`"),
            ("[{ name: default, internal: true }]", "would have no way out"),
            (
                "[{ name: a, subnets: [10.90.0.0/24] }, { name: a, subnets: [10.91.0.0/24] }]",
                "networks[1]: name: \"a\" is used twice",
            ),
            ("[{ name: a, subnet: 10.90.0.0/24 }]", "unknown field `subnet`"),
        ];
        for (text, said) in cases {
            assert!(refusal(text).contains(said), "{text}: {}", refusal(text));
        }
        let files: Vec<NetworkFile> = serde_yaml::from_str("[{ name: a, subnets: [10.90.0.0/24] }]").unwrap();
        assert!(check(files, true).unwrap_err().to_string().contains("cniConfDir"));
    }
}
