//! The networks of a pod: its first one and those it asks for by annotation.

use std::net::IpAddr;
use std::sync::Arc;

use berth_netplug::{Attachment, Config, Network, PodNetwork, Rate, Stats, Wishes, bring_up_loopback};
use berth_reconciler::network::{DEFAULT, FIRST, First, Limit, NETWORKS, STATUS, Selection, Wishes as Asked};
use berth_reconciler::node::Deletion;
use berth_reconciler::pod::Pod;
use futures::future::join_all;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::AgentNode;
use super::entry::Entry;
use super::sandbox::network_namespace;

/// What a pod has got in one of its networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Joined {
    /// The network's name.
    pub network: String,
    /// What it gave.
    pub attachment: Attachment,
}

/// A pod's place in a network.
struct Place<'a> {
    /// The annotation that names the network.
    key: &'static str,
    name: &'a str,
    network: &'a Network,
    pod: PodNetwork,
}

/// Puts a pod on all its networks, the first one first; on none if that is what it asks for. If one fails, the caller takes
/// back all of them.
///
/// # Errors
/// What cannot be had and the annotation that asks for it, or what the kernel refused.
pub(super) async fn join(node: &AgentNode, asked: &Asked, pod: PodNetwork) -> Result<Vec<Joined>, String> {
    if asked.first == First::None {
        bring_up_loopback(&pod.netns).await.map_err(|e| e.to_string())?;
        return Ok(Vec::new());
    }
    if let Some(attached) = node.cni.attach(&pod).await {
        let attachment = attached?;
        return Ok(vec![Joined { network: DEFAULT.into(), attachment }]);
    }
    let places = places(&node.network, asked, pod)?;
    let joined = places.iter().map(async |place| {
        let attachment = place.network.attach(&place.pod).await.map_err(|error| {
            let why = with_causes(&error);
            if place.name == DEFAULT && place.key == FIRST {
                return why;
            }
            format!("annotation {}: network {}: {why}", place.key, place.name)
        })?;
        Ok(Joined { network: place.name.to_owned(), attachment })
    });
    // All of them come to their end: what goes on while the caller takes all back would be left.
    join_all(joined).await.into_iter().collect()
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

/// Which network gets which part of what the pod asks for.
fn places<'a>(own: &'a Network, asked: &'a Asked, pod: PodNetwork) -> Result<Vec<Place<'a>>, String> {
    let find = |key, name: &str| {
        if name == DEFAULT {
            return Ok(own);
        }
        own.named(name).ok_or_else(|| {
            let known: Vec<&str> = own.all().map(|network| network.name().unwrap_or(DEFAULT)).collect();
            format!("annotation {key}: this node has no network {name}: there are {}", known.join(", "))
        })
    };
    let first = find(FIRST, asked.first.name())?;
    let closed = match first.config() {
        settings if settings.internal => Some("is internal: nothing from outside gets into it"),
        settings if settings.parent.is_some() => {
            Some("is of driver macvlan: the pod has its own address outside")
        }
        _ => None,
    };
    if let Some((port, why)) = pod.host_ports.first().zip(closed) {
        let (port, name) = (port.host_port, asked.first.name());
        return Err(format!("host port {port}: the pod's first network {name} {why}"));
    }
    let mut all = vec![Place { key: FIRST, name: asked.first.name(), network: first, pod: pod.clone() }];
    for one in &asked.further {
        let network = find(NETWORKS, &one.network)?;
        if let Some(gateway) = one.default_route.iter().find(|ip| !network.contains(**ip)) {
            return Err(format!(
                "annotation {NETWORKS}: network {}: default-route {gateway} is no address of this network",
                one.network
            ));
        }
        let pod = PodNetwork { host_ports: Vec::new(), wishes: wishes(one), ..pod.clone() };
        all.push(Place { key: NETWORKS, name: &one.network, network, pod });
    }
    let limited =
        |place: &&Place<'_>| place.network.config().parent.is_some() && place.pod.wishes.ingress.is_some();
    if let Some(place) = all.iter().find(limited) {
        return Err(format!(
            "network {}: what a pod receives cannot be limited with driver macvlan",
            place.name
        ));
    }
    route(&mut all, &asked.further);
    Ok(all)
}

fn wishes(one: &Selection) -> Wishes {
    let rate = |limit: Limit| Rate {
        bits_per_second: limit.bits,
        burst_bytes: limit.burst.and_then(|bits| u32::try_from(bits / 8).ok()),
    };
    Wishes {
        interface: Some(one.interface.clone()),
        ips: one.ips.clone(),
        mac: one.mac,
        ingress: one.ingress.map(rate),
        egress: one.egress.map(rate),
        default_routes: Some(Vec::new()),
    }
}

/// Gives each family one default route: where the pod says, else by the first of its networks that has a way out.
fn route(all: &mut [Place<'_>], further: &[Selection]) {
    if all.len() < 2 {
        return;
    }
    let mut routes: Vec<Vec<IpAddr>> = vec![Vec::new(); all.len()];
    for family in [true, false] {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == family;
        let said =
            (1..).zip(further).find_map(|(at, one)| Some((at, *one.default_route.iter().find(of_family)?)));
        let found = said.or_else(|| {
            let ways = all.iter().enumerate().filter(|(_, place)| !place.network.config().internal);
            ways.into_iter().find_map(|(at, place)| {
                Some((at, place.network.gateways().into_iter().find(|ip| of_family(&ip))?))
            })
        });
        if let Some((at, gateway)) = found {
            routes[at].push(gateway);
        }
    }
    for (place, routes) in all.iter_mut().zip(routes) {
        place.pod.wishes.default_routes = Some(routes);
    }
}

impl AgentNode {
    /// A pod as the API shows it: with its status and deletion, and what it has got in its networks.
    pub fn shown_pod(&self, pod: &Pod, deletion: Option<&Deletion>, status: &v1::PodStatus) -> v1::Pod {
        let mut shown = crate::backend::shown_pod(pod, deletion, status);
        let annotations = shown.metadata.annotations.get_or_insert_default();
        // One that came with the manifest is of another pod.
        annotations.remove(STATUS);
        if let Ok(asked) = Asked::read(pod.object.metadata.annotations.as_ref())
            && asked.networks().next().is_some()
            && let Some(entry) = self.find(pod.uid())
            && let Some(text) = describe(&entry.state().networks)
        {
            annotations.insert(STATUS.into(), text);
        }
        if annotations.is_empty() {
            shown.metadata.annotations = None;
        }
        shown
    }
}

impl AgentNode {
    /// The counters of one of a pod's interfaces, where it is there.
    pub(crate) async fn interface_stats(&self, entry: &Entry, attachment: &Attachment) -> Option<Stats> {
        if !attachment.host_if.is_empty() {
            return self.network.stats(&attachment.host_if).await.ok();
        }
        let namespace = network_namespace(&entry.dir)?;
        self.network.stats_inside(namespace, &attachment.interface).await.ok()
    }
}

/// Whether a pod that runs still has the networks that it was given: the settings may have become others.
pub(super) fn still_there(network: &Network, pod: &Pod, joined: &[Joined]) -> Result<(), String> {
    for one in joined {
        let there = if one.network == DEFAULT { Some(network) } else { network.named(&one.network) };
        let known =
            there.map(|network| network.attached(pod.uid())).transpose().map_err(|e| e.to_string())?;
        match known.flatten() {
            Some(now) if now.ips == one.attachment.ips => {}
            Some(now) => {
                return Err(format!("its addresses in network {} would be {:?} now", one.network, now.ips));
            }
            None => return Err(format!("network {} is no more, or has other addresses now", one.network)),
        }
    }
    Ok(())
}

/// The annotation that says what a pod has got.
fn describe(joined: &[Joined]) -> Option<String> {
    let entry = |(number, one): (usize, &Joined)| {
        let attachment = &one.attachment;
        let mut entry = json!({
            "name": one.network,
            "interface": attachment.interface,
            "ips": attachment.ips,
            "mac": attachment.mac,
            "dns": {},
        });
        if number == 0 {
            entry["default"] = Value::Bool(true);
        }
        entry
    };
    let list: Vec<Value> = joined.iter().enumerate().map(entry).collect();
    if list.is_empty() { None } else { serde_json::to_string_pretty(&list).ok() }
}

/// What decides which addresses a pod is told of another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight {
    /// The networks of who asks, in its order; none if it is no pod, and reaches all.
    networks: Option<Vec<String>>,
}

impl AgentNode {
    /// What is to be seen from an address.
    pub(crate) fn sight_of(&self, asker: IpAddr) -> Sight {
        if self.network.all().nth(1).is_none() {
            return Sight::default();
        }
        let has = |entry: &Arc<Entry>| {
            let state = entry.state();
            let found = state.networks.iter().any(|one| one.attachment.ips.contains(&asker));
            found.then(|| state.networks.iter().map(|one| one.network.clone()).collect())
        };
        Sight { networks: self.all_entries().iter().find_map(has) }
    }

    /// The addresses by which a pod is reached: those in the first network that it shares with who asks. Without such a
    /// network none, unless nothing keeps their first networks apart.
    pub(crate) fn seen(&self, sight: &Sight, pod: &str, ips: Vec<IpAddr>) -> Vec<IpAddr> {
        let Some(of_asker) = &sight.networks else { return ips };
        let Some(entry) = self.find(pod) else { return ips };
        let state = entry.state();
        let Some(first) = state.networks.first() else { return ips };
        let shared = of_asker.iter().find_map(|name| state.networks.iter().find(|one| one.network == *name));
        match shared {
            Some(one) => one.attachment.ips.clone(),
            None if self.is_open(&first.network) && of_asker.iter().any(|name| self.is_open(name)) => ips,
            None => Vec::new(),
        }
    }

    /// Whether a network lets others in.
    fn is_open(&self, name: &str) -> bool {
        let network = if name == DEFAULT { Some(&self.network) } else { self.network.named(name) };
        let open = |settings: &Config| !settings.isolated && !settings.internal && settings.parent.is_none();
        network.is_some_and(|network| open(network.config()))
    }
}
