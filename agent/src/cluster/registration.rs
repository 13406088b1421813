//! The Node object: made once, its labels kept, its status told when it changes and now and then when it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_reconciler::eviction::Pressure;
use berth_reconciler::status::whole_seconds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::follow::{Seen, follow, key_of};
use super::{Cluster, Pause, code, why};
use crate::pressure;

/// Images that the status names, the largest first (kubelet's `nodeStatusMaxImages`).
const IMAGES: usize = 50;

/// After so many looks at the node memory is given back.
const LOOKS_PER_TRIM: u32 = 6;

impl Cluster {
    /// Makes the Node, or takes the one that is there; returns once that is done.
    pub(super) async fn register(&self, client: &Client) {
        let api: Api<v1::Node> = Api::all(client.clone());
        let mut pause = Pause::new();
        loop {
            match self.try_register(&api).await {
                Ok(node) => {
                    tracing::info!(node = self.node.facts.name, "the node is registered");
                    *self.registered() = Some(Arc::new(node));
                    return;
                }
                Err(error) => {
                    tracing::warn!(
                        node = self.node.facts.name,
                        error = why(&error),
                        "cannot register the node; trying again"
                    );
                    tokio::time::sleep(pause.take()).await;
                }
            }
        }
    }

    async fn try_register(&self, api: &Api<v1::Node>) -> Result<v1::Node, kube::Error> {
        let name = &self.node.facts.name;
        let wanted = self.node_object(None).await?;
        match api.create(&PostParams::default(), &wanted).await {
            Err(error) if code(&error) == Some(409) => {}
            other => return other,
        }
        // It was here before: what the owner has changed stays, what the node knows better is brought up to date.
        let there = api.get(name).await?;
        let mut patch = json!({});
        let labels = wanted.metadata.labels.unwrap_or_default();
        let known = there.metadata.labels.clone().unwrap_or_default();
        let differ: BTreeMap<_, _> =
            labels.into_iter().filter(|(key, value)| known.get(key) != Some(value)).collect();
        if !differ.is_empty() {
            patch["metadata"] = json!({"labels": differ});
        }
        let provider = |node: &v1::Node| node.spec.as_ref().and_then(|spec| spec.provider_id.clone());
        if provider(&there).is_none()
            && let Some(id) = &self.config.provider_id
        {
            patch["spec"] = json!({"providerID": id});
        }
        if patch == json!({}) {
            return Ok(there);
        }
        api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await
    }

    /// The Node as this machine sees itself.
    async fn node_object(&self, before: Option<&v1::Node>) -> Result<v1::Node, kube::Error> {
        let config = &self.node.config;
        let mut object = self.node.facts.node_object(config);
        object["metadata"] = json!({"name": self.node.facts.name, "labels": self.labels()});
        // Ranges of pods are given by the cluster.
        object["spec"] = json!({});
        if let Some(id) = &self.config.provider_id {
            object["spec"]["providerID"] = json!(id);
        }
        if !self.config.taints.is_empty() {
            object["spec"]["taints"] = json!(self.config.taints);
        }
        object["status"]["conditions"] = self.conditions(before);
        if let Some(address) = self.config.server.address {
            object["status"]["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": address.port()}});
        }
        object["status"]["images"] = self.images().await;
        object["status"]["runtimeHandlers"] = self.handlers();
        object["status"]["features"] = json!({"supplementalGroupsPolicy": true});
        serde_json::from_value(object).map_err(kube::Error::SerdeError)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.node.facts.labels();
        labels.extend(self.config.labels.clone());
        labels
    }

    /// The runtime itself, without a name, and those of the config.
    fn handlers(&self) -> Value {
        let features = json!({"recursiveReadOnlyMounts": true, "userNamespaces": true});
        let own = json!({"name": "", "features": features});
        let others = self.node.config.runtimes.keys().map(|name| {
            json!({"name": name, "features": {"recursiveReadOnlyMounts": false, "userNamespaces": false}})
        });
        std::iter::once(own).chain(others).collect()
    }

    async fn images(&self) -> Value {
        let store = self.node.images.clone();
        let listed = tokio::task::spawn_blocking(move || store.list()).await;
        let mut images = match listed {
            Ok(Ok(images)) => images,
            _ => return json!([]),
        };
        images.sort_by_key(|image| std::cmp::Reverse(image.size));
        images
            .iter()
            .take(IMAGES)
            .map(|image| {
                let names: Vec<&String> = image.repo_digests.iter().chain(&image.repo_tags).collect();
                json!({"names": names, "sizeBytes": image.size})
            })
            .collect()
    }

    fn conditions(&self, before: Option<&v1::Node>) -> Value {
        let pressures = *self.node.pressures.borrow();
        let known = before.and_then(|node| node.status.as_ref()?.conditions.as_deref()).unwrap_or_default();
        conditions(known, &pressures, Timestamp::now())
    }

    /// Tells how the node is, for ever.
    pub(super) async fn report_node(self: Arc<Self>, client: Client) {
        let api: Api<v1::Node> = Api::all(client);
        let mut pause = Pause::new();
        let (mut told, mut looks): (Option<Instant>, u32) = (None, 0);
        let mut pressures = self.node.pressures.subscribe();
        loop {
            match self.report(&api, told).await {
                Ok(sent) => {
                    pause.reset();
                    if sent {
                        told = Some(Instant::now());
                    }
                    looks += 1;
                    if looks % LOOKS_PER_TRIM == 0 {
                        // What only joining, listing and looking needed; a pod's changes are followed by this anyway.
                        berth_runtime::heap::forget_program();
                        berth_runtime::heap::trim();
                    }
                    let every = self.config.status_every;
                    let rest = tokio::time::sleep(every + every.mul_f64(super::chance() / 25.0));
                    // A shortage is told at once.
                    tokio::select! {
                        () = rest => {}
                        Ok(()) = pressures.changed() => {}
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot tell the cluster how the node is; trying again");
                    tokio::time::sleep(pause.take().min(self.config.status_every)).await;
                }
            }
        }
    }

    /// Sends the status if it differs, or has not been sent for long. Says whether it was sent.
    async fn report(&self, api: &Api<v1::Node>, told: Option<Instant>) -> Result<bool, kube::Error> {
        let name = &self.node.facts.name;
        if self.is_leaving() {
            return Ok(false);
        }
        let known = self.registered().clone();
        let Some(known) = known else {
            // Somebody has deleted it.
            let node = self.try_register(api).await?;
            *self.registered() = Some(Arc::new(node));
            return Ok(true);
        };
        let wanted = self.node_object(Some(&known)).await?;
        let (theirs, ours) = (status_of(&known), status_of(&wanted));
        let is_old = told.is_none_or(|told| told.elapsed() >= self.config.report_every);
        if !is_old && without_times(&theirs) == without_times(&ours) {
            return Ok(false);
        }
        let status = difference(&theirs, &ours);
        let patch = json!({"metadata": {"uid": known.metadata.uid}, "status": status});
        let patched = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        match patched {
            Ok(node) => *self.registered() = Some(Arc::new(node)),
            Err(error) if matches!(code(&error), Some(404 | 409)) => {
                // It is another one by now, or none: the next look finds out.
                *self.registered() = api.get_opt(name).await?.map(Arc::new);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Follows the Node: its labels and taints decide which pods the node takes.
    pub(super) async fn follow_node(self: Arc<Self>, client: Client) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.node.facts.name));
        let known = self.registered().iter().map(|node| key_of(node.as_ref())).collect();
        let mut told = None;
        let see = |seen| match seen {
            Seen::Is(node) => {
                self.compare_ranges(&node, &mut told);
                *self.registered() = Some(Arc::new(node));
            }
            Seen::Gone(_) => {
                if !self.is_leaving() {
                    tracing::warn!(node = self.node.facts.name, "somebody has deleted the Node object");
                }
                *self.registered() = None;
            }
            Seen::Listed => {}
            Seen::Failed(error) => tracing::debug!(%error, "cannot follow the Node object"),
        };
        follow(Api::<v1::Node>::all(client), config, known, see).await;
    }
}

impl Cluster {
    /// Says, once for each, that the cluster has given the node another range of pod addresses than it uses: whoever routes
    /// to pods by that range does not reach them.
    fn compare_ranges(&self, node: &v1::Node, told: &mut Option<Vec<String>>) {
        let given = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let config = &self.node.config;
        let own = std::iter::once(&config.pod_cidr).chain(&config.pod_cidr6);
        if given.is_empty()
            || config.cni_conf_dir.is_some()
            || given.iter().eq(own)
            || told.as_ref() == Some(&given)
        {
            return;
        }
        let given_text = given.join(",");
        tracing::warn!(
            given = given_text,
            own = config.pod_cidr,
            "the cluster has given this node another range of pod addresses than its own; set podCIDR to it, or cniConfDir if a CNI plugin connects pods"
        );
        *told = Some(given);
    }
}

fn status_of(node: &v1::Node) -> Value {
    serde_json::to_value(&node.status).unwrap_or_default()
}

/// A status without the times that only say that somebody has looked.
fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition.as_object_mut().map(|one| one.remove("lastHeartbeatTime"));
    }
    // Conditions of others, and what the cluster's controllers write, are not compared.
    let own = |c: &Value| OWN.contains(&c["type"].as_str().unwrap_or_default());
    if let Some(list) = status["conditions"].as_array_mut() {
        list.retain(own);
        list.sort_by_key(|c| c["type"].as_str().unwrap_or_default().to_owned());
    }
    let kept =
        ["conditions", "addresses", "capacity", "allocatable", "nodeInfo", "images", "daemonEndpoints"];
    let fields = kept.iter().map(|field| ((*field).to_owned(), status[*field].clone()));
    Value::Object(fields.collect())
}

/// The conditions that a node says of itself.
const OWN: [&str; 4] = ["DiskPressure", "MemoryPressure", "PIDPressure", "Ready"];

/// The part of the status that is the node's, as a strategic merge patch: addresses are replaced, where the server would add
/// them to the old ones; conditions are merged by their types.
fn difference(theirs: &Value, ours: &Value) -> Value {
    let mut status = ours.clone();
    if theirs["addresses"] != ours["addresses"]
        && let Some(addresses) = status["addresses"].as_array_mut()
    {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    status
}

fn conditions(known: &[v1::NodeCondition], pressures: &[Pressure], now: Timestamp) -> Value {
    let seconds = whole_seconds(now);
    let condition = |type_: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let before = known.iter().find(|one| one.type_ == type_ && one.status == status);
        let since = before.and_then(|one| one.last_transition_time.as_ref()).map_or(seconds, |time| time.0);
        json!({"type": type_, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": seconds, "lastTransitionTime": since})
    };
    let mut list: Vec<Value> = pressures
        .iter()
        .map(|one| {
            let (reason, message) = pressure::words(one);
            condition(one.condition, one.under, reason, message)
        })
        .collect();
    list.push(condition("Ready", true, "KubeletReady", "berth agent is posting ready status"));
    Value::Array(list)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_condition_keeps_the_time_at_which_it_came() {
        let pressures = |under: bool| vec![Pressure { condition: "MemoryPressure", under }];
        let first: Vec<v1::NodeCondition> =
            serde_json::from_value(conditions(&[], &pressures(false), at(100))).unwrap();
        let later: Vec<v1::NodeCondition> =
            serde_json::from_value(conditions(&first, &pressures(false), at(200))).unwrap();
        assert_eq!(later[0].last_transition_time.as_ref().unwrap().0, at(100));
        assert_eq!(later[0].last_heartbeat_time.as_ref().unwrap().0, at(200));
        let other: Vec<v1::NodeCondition> =
            serde_json::from_value(conditions(&later, &pressures(true), at(300))).unwrap();
        assert_eq!(other[0].last_transition_time.as_ref().unwrap().0, at(300));
        assert_eq!(
            (other[0].status.as_str(), other[0].reason.as_deref()),
            ("True", Some("KubeletHasInsufficientMemory"))
        );
    }

    #[test]
    fn a_look_alone_changes_no_status_nor_do_the_conditions_of_others() {
        let status = |beat: &str, more: Value| {
            let mut conditions = vec![json!({"type": "Ready", "status": "True", "lastHeartbeatTime": beat})];
            conditions.extend(more.as_array().unwrap().iter().cloned());
            json!({"conditions": conditions, "capacity": {"cpu": "2"}})
        };
        let theirs = status("a", json!([{"type": "NetworkUnavailable", "status": "False"}]));
        assert_eq!(without_times(&theirs), without_times(&status("b", json!([]))));
        let mut other = status("b", json!([]));
        other["capacity"]["cpu"] = json!("3");
        assert_ne!(without_times(&theirs), without_times(&other));
    }
}
