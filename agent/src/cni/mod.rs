//! Pods in the network of other CNI plugins, in place of Berth's own: what libcni does for a container engine.
//!
//! With `cniConfDir` set, each pod is connected by the first network configuration of that folder. A record of the attachment
//! is on disk before the first plugin is called, so that an agent that was killed in between undoes all of it.

mod cache;
mod conf;
mod plugin;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use berth_netplug::{Attachment, HostPort, PodNetwork, Rate, mac_text};
use serde_json::{Map, Value, json};

use cache::{Cache, Record};
use conf::List;
use plugin::{Call, Folders};

const INTERFACE: &str = "eth0";

/// Where plugins are looked for when no folder is named: where most put them, and where Debian does.
pub const DEFAULT_BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// The networks of other plugins.
#[derive(Clone, Debug)]
pub struct Cni {
    /// None while pods get Berth's own network; what is left of an earlier setting is taken down all the same.
    confs: Option<PathBuf>,
    folders: Folders,
    cache: Cache,
}

impl Cni {
    /// Networks configured in `confs`, plugins in `bins`, records below `root`.
    pub fn new(confs: Option<PathBuf>, bins: Vec<PathBuf>, root: &Path) -> Self {
        Self { confs, folders: Folders(bins), cache: Cache::new(root) }
    }

    /// Whether pods get their network here.
    pub fn is_on(&self) -> bool {
        self.confs.is_some()
    }

    /// Whether a pod was connected here and not disconnected since.
    pub fn holds(&self, pod: &str) -> bool {
        !self.cache.of(pod).is_empty()
    }

    /// Connects a pod. None if pods get Berth's own network.
    ///
    /// # Errors
    /// There is no network, or a plugin failed; what was done until then has been taken back, as far as that works.
    pub async fn attach(&self, pod: &PodNetwork) -> Option<Result<Attachment, String>> {
        let confs = self.confs.as_ref()?;
        let list = match conf::choose(confs) {
            Ok(list) => list,
            Err(why) => return Some(Err(why)),
        };
        // A repeated call finds what the first one left, which the plugins would refuse to make again.
        if let Err(why) = self.detach(&pod.id, None).await {
            return Some(Err(why));
        }
        let outcome = self.add(&list, pod).await;
        if outcome.is_err()
            && let Err(error) = self.detach(&pod.id, Some(&pod.netns)).await
        {
            tracing::warn!(pod = pod.id, error, "cannot undo what plugins did");
        }
        Some(outcome)
    }

    async fn add(&self, list: &List, pod: &PodNetwork) -> Result<Attachment, String> {
        let capabilities = capabilities(pod);
        if let Some(name) = capabilities.keys().find(|name| !list.has_capability(name)) {
            return Err(format!(
                "network {} has no plugin with the capability {name}, which the pod needs",
                list.name
            ));
        }
        // Before anything is done: what was never begun need not be undone, for which all of them are needed, too.
        self.folders.have_all(&list.name, &list.plugins)?;
        let mut record = Record::new(&pod.id, INTERFACE, list, arguments(pod), capabilities);
        self.cache.keep(&record)?;
        // Engines run the plugin `loopback` for this.
        berth_netplug::bring_up_loopback(&pod.netns).await.map_err(|e| e.to_string())?;
        let call = call(&record, Some(&pod.netns));
        let mut result = None;
        for plugin in &list.plugins {
            let conf = list.for_plugin(plugin, &record.capability_args, result.as_ref());
            result = self.folders.call("ADD", Some(&call), &conf).await?.or(result);
        }
        record.result =
            result.ok_or_else(|| format!("the plugins of network {} gave no result", list.name))?;
        let attachment = attachment(&record.result).ok_or_else(|| {
            format!("the result of network {} has no address: {}", list.name, record.result)
        })?;
        self.cache.keep(&record)?;
        Ok(attachment)
    }

    /// Disconnects a pod by the configuration that it was connected with. Without its namespace the plugins release what they
    /// hold elsewhere. Repeatable; a pod that was never connected is fine.
    ///
    /// # Errors
    /// What a plugin said; call it again then.
    pub async fn detach(&self, pod: &str, netns: Option<&Path>) -> Result<(), String> {
        for record in self.cache.of(pod) {
            self.del(&record, netns).await?;
        }
        Ok(())
    }

    async fn del(&self, record: &Record, netns: Option<&Path>) -> Result<(), String> {
        let list =
            record.list().map_err(|e| format!("the record of network {}: {e}", record.network_name))?;
        let call = call(record, netns);
        let previous = Some(&record.result).filter(|result| list.tells_result() && !result.is_null());
        for plugin in list.plugins.iter().rev() {
            let conf = list.for_plugin(plugin, &record.capability_args, previous);
            self.folders.call("DEL", Some(&call), &conf).await?;
        }
        self.cache.forget(record)
    }

    /// Disconnects every pod that is not in `live`, and tells plugins that know how to (CNI 1.1) to collect their own garbage.
    /// Gives the pods disconnected.
    ///
    /// # Errors
    /// The first thing that failed; the rest is done all the same.
    pub async fn gc(&self, live: &[String]) -> Result<Vec<String>, String> {
        let mut outcome = Ok(());
        let mut gone = Vec::new();
        for record in self.cache.all().into_iter().filter(|record| !live.contains(&record.container_id)) {
            match self.del(&record, None).await {
                Ok(()) => gone.push(record.container_id),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        let list = self.confs.as_deref().and_then(|confs| conf::choose(confs).ok());
        if let Some(list) = list.filter(List::has_gc) {
            outcome = outcome.and(self.collect(&list).await);
        }
        outcome.map(|()| gone)
    }

    async fn collect(&self, list: &List) -> Result<(), String> {
        let ours = self.cache.all().into_iter().filter(|record| record.network_name == list.name);
        let valid: Vec<Value> = ours
            .map(|record| json!({"containerID": record.container_id, "ifname": record.if_name}))
            .collect();
        let mut outcome = Ok(());
        for plugin in &list.plugins {
            let mut conf = list.for_plugin(plugin, &Map::new(), None);
            conf["cni.dev/valid-attachments"] = valid.clone().into();
            // Its name in drafts of the specification, which libcni also gives.
            conf["cni.dev/attachments"] = valid.clone().into();
            outcome = outcome.and(self.folders.call("GC", None, &conf).await.map(drop));
        }
        outcome
    }
}

fn call(record: &Record, netns: Option<&Path>) -> Call {
    let args: Vec<String> = record.cni_args.iter().map(|[key, value]| format!("{key}={value}")).collect();
    Call {
        container: record.container_id.clone(),
        netns: netns.map(|path| path.display().to_string()).unwrap_or_default(),
        interface: record.if_name.clone(),
        args: args.join(";"),
    }
}

/// What engines of Kubernetes say of a pod.
fn arguments(pod: &PodNetwork) -> Vec<[String; 2]> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &pod.id),
        ("K8S_POD_UID", &pod.id),
    ];
    pairs.map(|(key, value)| [key.to_owned(), value.to_owned()]).to_vec()
}

/// What plugins with capabilities are told.
fn capabilities(pod: &PodNetwork) -> Map<String, Value> {
    let mut all = Map::new();
    if !pod.host_ports.is_empty() {
        all.insert("portMappings".into(), pod.host_ports.iter().map(mapping).collect());
    }
    let wishes = &pod.wishes;
    if wishes.ingress.is_some() || wishes.egress.is_some() {
        let mut bandwidth = Map::new();
        for (name, rate) in [("ingress", wishes.ingress), ("egress", wishes.egress)] {
            if let Some(Rate { bits_per_second, .. }) = rate {
                bandwidth.insert(format!("{name}Rate"), bits_per_second.into());
                // The plugin wants one: a tenth of a second, as with our own network, but a few packets.
                bandwidth.insert(
                    format!("{name}Burst"),
                    (bits_per_second / 10).clamp(64_000, 34_000_000_000).into(),
                );
            }
        }
        all.insert("bandwidth".into(), bandwidth.into());
    }
    if !wishes.ips.is_empty() {
        all.insert("ips".into(), wishes.ips.iter().map(|ip| Value::from(ip.to_string())).collect());
    }
    if let Some(mac) = wishes.mac {
        all.insert("mac".into(), mac_text(&mac).into());
    }
    all
}

fn mapping(port: &HostPort) -> Value {
    let mut mapping = json!({
        "hostPort": port.host_port, "containerPort": port.container_port, "protocol": port.protocol.to_string(),
    });
    if let Some(ip) = port.host_ip.filter(|ip| !ip.is_unspecified()) {
        mapping["hostIP"] = ip.to_string().into();
    }
    mapping
}

/// What a pod got by a result of version 0.3.0 or later: the addresses of interfaces in it, IPv4 first. None without any.
fn attachment(result: &Value) -> Option<Attachment> {
    let interfaces = result["interfaces"].as_array().cloned().unwrap_or_default();
    let is_inside =
        |interface: &Value| interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty());
    let of_pod =
        |ip: &&Value| match ip["interface"].as_u64().and_then(|n| interfaces.get(usize::try_from(n).ok()?)) {
            Some(interface) => is_inside(interface),
            None => true,
        };
    let given: Vec<&Value> = result["ips"].as_array()?.iter().filter(of_pod).collect();
    let parse = |ip: &&&Value| ip["address"].as_str()?.split('/').next()?.parse::<IpAddr>().ok();
    let mut ips: Vec<IpAddr> = given.iter().filter_map(|ip| parse(&ip)).collect();
    ips.sort_by_key(IpAddr::is_ipv6);
    let gateway = given.iter().find_map(|ip| ip["gateway"].as_str()?.parse().ok());
    let name = |interface: &Value| interface["name"].as_str().unwrap_or_default().to_owned();
    let inside = interfaces.iter().find(|interface| is_inside(interface) && interface["name"] == INTERFACE);
    (!ips.is_empty()).then(|| Attachment {
        ips,
        interface: INTERFACE.into(),
        mac: inside.and_then(|interface| interface["mac"].as_str()).unwrap_or_default().to_owned(),
        // The plugins name the bridge, if there is one, before the pair.
        host_if: interfaces.iter().rfind(|interface| !is_inside(interface)).map(name).unwrap_or_default(),
        gateway: gateway.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        mtu: inside
            .and_then(|i| i["mtu"].as_u64())
            .and_then(|mtu| u32::try_from(mtu).ok())
            .unwrap_or_default(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
