//! What each command does.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::conf::Conf;
use super::failure::{
    CHECK_FAILED, CONFIG, ENVIRONMENT, Failure, INTERFACE_TAKEN, LIMITED, NO_CONTAINER, OWN_NETNS,
    UNAVAILABLE,
};
use super::inspect;
use super::request::{Command, Request};
use super::result::{result, told};
use crate::config::{PodNetwork, Wishes};
use crate::network::Network;

/// Carries out `request`; what to print, if anything.
pub(super) async fn run(request: &Request, conf: &Conf) -> Result<Option<Value>, Failure> {
    match request.command {
        Command::Add => add(request, conf).await.map(Some),
        Command::Del => del(request, conf).await.map(|()| None),
        Command::Check => check(request, conf).await.map(|()| None),
        Command::Status => status(conf).await.map(|()| None),
        Command::Gc => gc(conf).await.map(|()| None),
        // Answered before there was a configuration.
        Command::Version => Ok(None),
    }
}

async fn add(request: &Request, conf: &Conf) -> Result<Value, Failure> {
    let netns = container(request)?;
    if inspect::find(Some(netns), &request.interface).await?.is_some() {
        let text = format!("container {} already has an interface {}", request.container, request.interface);
        return Err(Failure::new(INTERFACE_TAKEN, text));
    }
    let pod = PodNetwork {
        id: request.id(),
        name: request.args.pod.clone().unwrap_or_else(|| request.container.clone()),
        namespace: request.args.namespace.clone().unwrap_or_else(|| conf.name.clone()),
        netns: netns.to_owned(),
        host_ports: conf.host_ports.clone(),
        wishes: wishes(request, conf)?,
    };
    let network = Network::visit(conf.network.clone()).await?;
    let attachment = network.attach(&pod).await?;
    Ok(result(request, conf, &attachment))
}

/// The file of the container's namespace, which must not be our own.
fn container(request: &Request) -> Result<&Path, Failure> {
    let netns = request.netns.as_deref().unwrap_or(Path::new(""));
    let theirs = fs::metadata(netns).map_err(|e| {
        let text = format!("container {} has no network namespace {}", request.container, netns.display());
        Failure::new(NO_CONTAINER, text).because(e)
    })?;
    let own = fs::metadata("/proc/self/ns/net");
    if own.is_ok_and(|own| (own.dev(), own.ino()) == (theirs.dev(), theirs.ino())) {
        return Err(Failure::new(OWN_NETNS, format!("CNI_NETNS {} is the host's own", netns.display())));
    }
    Ok(netns)
}

fn wishes(request: &Request, conf: &Conf) -> Result<Wishes, Failure> {
    let ips =
        request.args.ips.iter().map(|ip| (ip, ENVIRONMENT)).chain(conf.ips.iter().map(|ip| (ip, CONFIG)));
    let mut wanted: Vec<IpAddr> = Vec::new();
    for (text, code) in ips {
        let (address, _) = text.split_once('/').unwrap_or((text, ""));
        let address =
            address.parse().map_err(|_| Failure::new(code, format!("ips: {text:?} is not an address")))?;
        if !wanted.contains(&address) {
            wanted.push(address);
        }
    }
    let asked = request
        .args
        .mac
        .as_ref()
        .map(|mac| (mac, ENVIRONMENT))
        .or(conf.mac.as_ref().map(|mac| (mac, CONFIG)));
    let mac = asked.map(|(text, code)| {
        let refuse =
            || Failure::new(code, format!("mac: {text:?} is not the hardware address of one interface"));
        mac(text).ok_or_else(refuse)
    });
    Ok(Wishes {
        interface: Some(request.interface.clone()),
        ips: wanted,
        mac: mac.transpose()?,
        ingress: conf.ingress,
        egress: conf.egress,
        default_routes: None,
    })
}

/// Reads a hardware address; those of groups are nobody's own.
fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let bytes: [u8; 6] = bytes?.try_into().ok()?;
    (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(bytes)
}

async fn del(request: &Request, conf: &Conf) -> Result<(), Failure> {
    let network = Network::visit(conf.network.clone()).await?;
    Ok(network.detach(&request.id()).await?)
}

async fn check(request: &Request, conf: &Conf) -> Result<(), Failure> {
    let fail = |text: String| Err(Failure::new(CHECK_FAILED, text));
    let Some(previous) = &conf.prev_result else {
        return Err(Failure::new(CONFIG, "CHECK needs prevResult, the result of ADD"));
    };
    let name = &request.interface;
    let Some(told) = told(request, previous) else {
        return fail(format!("prevResult has no interface {name} of a container"));
    };
    let network = Network::visit(conf.network.clone()).await?;
    let Some(attachment) = network.attached(&request.id())? else {
        return fail(format!("container {} has no lease for {name}", request.container));
    };
    let Some(inside) = inspect::find(Some(container(request)?), name).await? else {
        return fail(format!("container {} has no interface {name}", request.container));
    };
    if !inside.is_up {
        return fail(format!("interface {name} is down"));
    }
    if told.mac.as_ref().is_some_and(|mac| *mac != inside.mac) {
        return fail(format!("interface {name} has the hardware address {}, not {:?}", inside.mac, told.mac));
    }
    if let Some(address) = told.addresses.iter().find(|address| !inside.addresses.contains(address)) {
        return fail(format!("interface {name} does not have the address {address}"));
    }
    let leased =
        |ip: &&IpAddr| told.addresses.iter().any(|told| told.split('/').next() == Some(&ip.to_string()));
    if let Some(ip) = attachment.ips.iter().find(|ip| !leased(ip)) {
        return fail(format!("the lease of {name} has the address {ip}, which prevResult does not"));
    }
    let routed = |ip: &&IpAddr| inside.default_routes.contains(if ip.is_ipv4() { &4 } else { &6 });
    if let Some(ip) = attachment.ips.iter().find(|ip| conf.network.default_route && !routed(ip)) {
        return fail(format!("interface {name} has no default route for {ip}"));
    }
    let bridge = inspect::find(None, &conf.network.bridge).await?;
    let host = inspect::find(None, &attachment.host_if).await?;
    match (bridge, host) {
        (None, _) => fail(format!("bridge {} is not there", conf.network.bridge)),
        (_, None) => fail(format!("link {} is not there", attachment.host_if)),
        (Some(bridge), Some(host)) if host.bridge != bridge.index => {
            fail(format!("link {} is not on bridge {}", attachment.host_if, conf.network.bridge))
        }
        _ => Ok(()),
    }
}

async fn status(conf: &Conf) -> Result<(), Failure> {
    let unavailable = |why: Failure| Failure::new(UNAVAILABLE, "no container can be added").because(why);
    let network = Network::visit(conf.network.clone()).await.map_err(|e| unavailable(e.into()))?;
    let attached = !network.ids().map_err(|e| unavailable(e.into()))?.is_empty();
    let bridge = inspect::find(None, &conf.network.bridge).await.map_err(|e| unavailable(e.into()))?;
    if attached && !bridge.is_some_and(|bridge| bridge.is_up) {
        let text = format!("bridge {} is not there or down", conf.network.bridge);
        return Err(Failure::new(LIMITED, text));
    }
    network.has_room().map_err(|e| unavailable(e.into()))
}

/// Takes back what belongs to no valid attachment.
async fn gc(conf: &Conf) -> Result<(), Failure> {
    let Some(valid) = &conf.valid else {
        return Err(Failure::new(CONFIG, "GC needs cni.dev/valid-attachments"));
    };
    let network = Network::visit(conf.network.clone()).await?;
    network.detach_all_but(valid).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::mac;

    #[test]
    fn hardware_addresses_of_one_interface() {
        assert_eq!(mac("02:00:00:00:00:aF"), Some([2, 0, 0, 0, 0, 0xaf]));
        for text in [
            "",
            "02:00:00:00:00",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "02:00:00:00:00:xx",
            "2:0:0:0:0:0:0",
        ] {
            assert_eq!(mac(text), None, "{text}");
        }
    }
}
