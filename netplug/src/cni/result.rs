//! What ADD answers with, in the form of each version.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::conf::Conf;
use super::request::Request;
use crate::config::{Attachment, mac_text};
use crate::ipam::mac;

/// Whether results of this version tell the family of each address.
fn tells_family(version: &str) -> bool {
    version.starts_with("0.")
}

/// The result of an ADD: that of the plugins before, with what this one adds.
pub(super) fn result(request: &Request, conf: &Conf, attachment: &Attachment) -> Value {
    let previous = conf.prev_result.clone().unwrap_or_default();
    let list = |name: &str| previous[name].as_array().cloned().unwrap_or_default();
    let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
    let first = interfaces.len();
    let octets = mac_text(&mac(conf.network.gateway()));
    interfaces.push(json!({"name": conf.network.bridge, "mac": octets}));
    interfaces.push(json!({"name": attachment.host_if}));
    let netns = request.netns.as_deref().map(|path| path.display().to_string());
    interfaces.push(json!({"name": request.interface, "mac": attachment.mac, "sandbox": netns}));
    if conf.version == "1.1.0" {
        for interface in &mut interfaces[first..] {
            interface["mtu"] = attachment.mtu.into();
        }
    }
    let gateways = conf.network.gateways().collect::<Vec<_>>();
    for ip in &attachment.ips {
        let Some((gateway, prefix)) = gateways.iter().find(|(gateway, _)| gateway.is_ipv4() == ip.is_ipv4())
        else {
            continue;
        };
        let mut entry =
            json!({"address": format!("{ip}/{prefix}"), "gateway": gateway, "interface": first + 2});
        if tells_family(&conf.version) {
            entry["version"] = if ip.is_ipv4() { "4" } else { "6" }.into();
        }
        ips.push(entry);
        if conf.network.default_route {
            routes.push(json!({"dst": everywhere(*ip), "gw": gateway}));
        }
    }
    let dns = conf.dns.clone().or_else(|| previous.get("dns").cloned()).unwrap_or_else(|| json!({}));
    json!({"cniVersion": conf.version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": dns})
}

fn everywhere(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}

/// What an earlier result says of the interface inside.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub mac: Option<String>,
    /// Addresses with prefix lengths.
    pub addresses: Vec<String>,
}

/// Finds the interface of `request` in a result. None if it is not there.
pub(super) fn told(request: &Request, result: &Value) -> Option<Told> {
    let interfaces = result["interfaces"].as_array()?;
    let index = interfaces.iter().position(|interface| {
        interface["name"] == request.interface.as_str()
            && interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty())
    })?;
    let of_it = |ip: &&Value| ip["interface"].as_u64() == u64::try_from(index).ok();
    let addresses = result["ips"].as_array().into_iter().flatten().filter(of_it);
    Some(Told {
        mac: interfaces[index]["mac"].as_str().map(str::to_ascii_lowercase),
        addresses: addresses.filter_map(|ip| ip["address"].as_str().map(str::to_owned)).collect(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cni::request::{Args, Command};

    fn request() -> Request {
        Request {
            command: Command::Add,
            container: "c".into(),
            netns: Some("/run/netns/c".into()),
            interface: "net1".into(),
            args: Args::default(),
        }
    }

    fn made(version: &str, previous: Value) -> Value {
        let conf = json!({
            "cniVersion": version, "name": "pods", "subnets": ["10.9.0.0/24", "fd09::/64"], "mtu": 1400, "prevResult": previous,
        });
        let attachment = Attachment {
            interface: "eth0".into(),
            ips: vec!["10.9.0.2".parse().unwrap(), "fd09::2".parse().unwrap()],
            mac: "0a:58:0a:09:00:02".into(),
            host_if: "vethc".into(),
            gateway: "10.9.0.1".parse().unwrap(),
            mtu: 1400,
        };
        result(&request(), &Conf::read(conf).unwrap(), &attachment)
    }

    #[test]
    fn each_version_has_its_form() {
        let newest = made("1.1.0", Value::Null);
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni-pods", "mac": "0a:58:0a:09:00:01", "mtu": 1400},
                {"name": "vethc", "mtu": 1400},
                {"name": "net1", "mac": "0a:58:0a:09:00:02", "sandbox": "/run/netns/c", "mtu": 1400},
            ],
            "ips": [
                {"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 2},
                {"address": "fd09::2/64", "gateway": "fd09::1", "interface": 2},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}, {"dst": "::/0", "gw": "fd09::1"}],
            "dns": {},
        });
        assert_eq!(newest, expected);
        let older = made("1.0.0", Value::Null);
        assert_eq!(older["interfaces"][1], json!({"name": "vethc"}));
        assert_eq!(older["ips"], newest["ips"]);
        for version in ["0.3.1", "0.4.0"] {
            let old = made(version, Value::Null);
            assert_eq!(old["cniVersion"], version);
            let first =
                json!({"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 2, "version": "4"});
            assert_eq!((&old["ips"][0], &old["ips"][1]["version"]), (&first, &json!("6")));
        }
    }

    #[test]
    fn what_came_before_is_kept() {
        let before = json!({
            "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c"}],
            "ips": [{"address": "192.0.2.5/24", "interface": 0}], "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["192.0.2.1"]},
        });
        let all = made("1.0.0", before.clone());
        assert_eq!(all["interfaces"][0], before["interfaces"][0]);
        assert_eq!((&all["ips"][0], &all["ips"][1]["interface"]), (&before["ips"][0], &json!(3)));
        assert_eq!((&all["routes"][0], &all["dns"]), (&before["routes"][0], &before["dns"]));
        let told = told(&request(), &all).unwrap();
        assert_eq!(told.mac.as_deref(), Some("0a:58:0a:09:00:02"));
        assert_eq!(told.addresses, ["10.9.0.2/24", "fd09::2/64"]);
        assert_eq!(super::told(&request(), &before), None);
    }
}
