//! A name server for pods, at the bridge's address: the names of the node's own pods and Services ([`zone`]), and all others
//! from the host's name servers ([`forward`]).
//!
//! It is the name server of pods with `dnsPolicy: ClusterFirst` unless `clusterDNS` names others.

pub mod forward;
pub mod names;
pub mod server;
pub mod zone;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::Config;
use crate::node::AgentNode;
use forward::Forwarder;
use server::{Server, Sockets};
use zone::Zone;

/// The port of name servers.
const PORT: u16 = 53;

/// Whether the settings have a use for a name server.
pub fn is_wanted(config: &Config) -> bool {
    config.local_dns && config.cluster_dns.is_empty() && config.cni_conf_dir.is_none()
}

/// Listens at the bridge's addresses. Gives the sockets, and the addresses for pods; none if the settings have no use for a
/// name server, or somebody else is one there.
pub async fn listen(config: &Config, gateways: &[IpAddr]) -> Vec<Sockets> {
    if !is_wanted(config) {
        return Vec::new();
    }
    let mut all = Vec::new();
    for gateway in gateways {
        match Sockets::bind(SocketAddr::new(*gateway, PORT)).await {
            Ok(sockets) => all.push(sockets),
            Err(error) => tracing::warn!(
                address = %gateway, %error,
                "no name server for pods there: they get the host's (localDNS: false says that this is meant)"
            ),
        }
    }
    all
}

/// Answers pods and the node itself for as long as the agent lives.
pub fn serve(node: &Arc<AgentNode>, all: Vec<Sockets>) {
    let own: Vec<IpAddr> =
        all.iter().filter_map(|one| one.address().ok()).map(|address| address.ip()).collect();
    let forwarder = Forwarder::new(node.config.resolv_conf.clone(), own, PORT);
    let domain = node.config.cluster_domain.to_ascii_lowercase();
    let names = {
        let (node, domain) = (node.clone(), domain.clone());
        Box::new(move |asker| zone(&node, &domain, asker))
    };
    let network = node.network.clone();
    // Whoever is on the wire of a network without a bridge is not a pod.
    let admits =
        Box::new(move |ip| network.all().any(|one| one.config().parent.is_none() && one.contains(ip)));
    let server = Server::new(domain, names, admits, forwarder);
    for sockets in all {
        tokio::spawn(server.clone().serve(sockets));
    }
}

/// The names, with the addresses that whoever asks can reach.
fn zone(node: &AgentNode, domain: &str, asker: IpAddr) -> Zone {
    let sight = node.sight_of(asker);
    let views = node.views();
    let mut services = Vec::new();
    node.services.each(|service, endpoints| services.extend(names::of_service(service, endpoints)));
    Zone {
        domain: domain.to_owned(),
        pods: views
            .iter()
            .filter_map(|view| {
                let mut pod = names::of_pod(view, &node.config.node_name)?;
                pod.ips = node.seen(&sight, view.pod.uid(), pod.ips);
                (!pod.ips.is_empty()).then_some(pod)
            })
            .collect(),
        services,
    }
}
