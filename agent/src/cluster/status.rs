//! How pods are, told to the server: each change as a patch of what is the node's own, the newest state only, and at a pod's
//! end its removal.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::status::{has_ended, is_own_condition};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Cluster, Pause, code, remove, why};

/// Requests that may be under way at once.
const AT_ONCE: usize = 8;

/// A pod as this node has it.
#[derive(Clone)]
struct Local {
    namespace: String,
    name: String,
    /// Whether it comes from a manifest file, so that its mirror is what the server has.
    of_file: bool,
    /// None: the node knows nothing of it but that it is to be removed.
    status: Option<Arc<v1::PodStatus>>,
    /// Nothing of it is left here.
    gone: bool,
}

#[derive(Default)]
struct State {
    pods: HashMap<String, Local>,
    /// Those of which the server may have to be told something.
    dirty: HashSet<String>,
}

/// What the server is to know.
#[derive(Default)]
pub(super) struct Statuses {
    state: Mutex<State>,
    changed: Notify,
}

impl Statuses {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, uid: &str, local: Local) {
        let mut state = self.lock();
        state.pods.insert(uid.to_owned(), local);
        state.dirty.insert(uid.to_owned());
        drop(state);
        self.changed.notify_one();
    }

    /// A pod's status has been published here.
    pub fn published(&self, pod: &Pod, status: &Arc<v1::PodStatus>) {
        let local = Local {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            of_file: pod.source != Source::Cluster,
            status: Some(status.clone()),
            gone: false,
        };
        self.put(pod.uid(), local);
    }

    /// A pod that this node does not take has this status.
    pub fn rejected(&self, uid: &str, namespace: &str, name: &str, status: v1::PodStatus) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let status = Some(Arc::new(status));
        self.put(uid, Local { namespace, name, of_file: false, status, gone: false });
    }

    /// Nothing of a pod is left here.
    pub fn gone(&self, pod: &Pod) {
        match pod.source {
            Source::Cluster => self.absent(pod.uid(), pod.namespace(), pod.name()),
            _ => self.forget(pod.uid()),
        }
    }

    /// Nothing of a pod of the server is here: once it is to end, it can be removed.
    pub fn absent(&self, uid: &str, namespace: &str, name: &str) {
        let mut state = self.lock();
        let local = state.pods.entry(uid.to_owned()).or_insert_with(|| Local {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            of_file: false,
            status: None,
            gone: true,
        });
        local.gone = true;
        state.dirty.insert(uid.to_owned());
        drop(state);
        self.changed.notify_one();
    }

    /// The server has nothing to be told of this pod any more.
    pub fn forget(&self, uid: &str) {
        let mut state = self.lock();
        state.pods.remove(uid);
        state.dirty.remove(uid);
    }

    /// The server's state of a pod is another: it is compared again.
    pub fn look_at(&self, uid: &str) {
        let mut state = self.lock();
        if state.pods.contains_key(uid) {
            state.dirty.insert(uid.to_owned());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// All of them are compared again.
    pub fn look_at_all(&self) {
        let mut state = self.lock();
        state.dirty = state.pods.keys().cloned().collect();
        drop(state);
        self.changed.notify_one();
    }

    fn take(&self, most: usize, busy: &HashSet<String>) -> Vec<String> {
        let mut state = self.lock();
        let taken: Vec<String> =
            state.dirty.iter().filter(|uid| !busy.contains(*uid)).take(most).cloned().collect();
        state.dirty.retain(|uid| !taken.contains(uid));
        taken
    }

    fn get(&self, uid: &str) -> Option<Local> {
        self.lock().pods.get(uid).cloned()
    }
}

impl Cluster {
    /// Tells the server of every change, for ever. What was not sent because of an error is sent later, in its newest state.
    pub(super) async fn send_statuses(self: Arc<Self>, client: Client) {
        let (mut flights, mut busy) = (FuturesUnordered::new(), HashSet::new());
        let (mut pause, mut resting): (Pause, Option<Instant>) = (Pause::new(), None);
        loop {
            if resting.is_none() {
                for uid in self.statuses.take(AT_ONCE.saturating_sub(busy.len()), &busy) {
                    busy.insert(uid.clone());
                    let (me, client) = (self.clone(), client.clone());
                    flights.push(async move {
                        let outcome = me.send(&client, &uid).await;
                        (uid, outcome)
                    });
                }
            }
            let rested = async {
                match resting {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((uid, outcome)) = flights.next(), if !flights.is_empty() => {
                    busy.remove(&uid);
                    match outcome {
                        Ok(()) => pause.reset(),
                        Err(error) => {
                            tracing::debug!(uid, %error, "cannot tell the cluster how a pod is; trying again");
                            self.statuses.look_at(&uid);
                            resting = resting.or_else(|| Some(Instant::now() + pause.take()));
                        }
                    }
                }
                () = self.statuses.changed.notified() => {}
                () = rested => resting = None,
            }
        }
    }

    /// Brings the server's state of one pod up to date.
    async fn send(&self, client: &Client, uid: &str) -> Result<(), kube::Error> {
        let Some(local) = self.statuses.get(uid) else { return Ok(()) };
        let found = match local.of_file {
            true => self.pods.mirror(&local.namespace, &local.name),
            false => self.pods.get(uid).map(|remote| (uid.to_owned(), remote)),
        };
        let Some((remote_uid, remote)) = found else {
            // A pod of the cluster that its list does not have is nobody's; a mirror will be made.
            if !local.of_file && self.pods.listed() {
                self.statuses.forget(uid);
            }
            return Ok(());
        };
        let api: Api<v1::Pod> = Api::namespaced(client.clone(), &local.namespace);
        let patch = local.status.as_ref().and_then(|status| patch(&remote_uid, &remote.status, status));
        if let Some(patch) = patch {
            match api.patch_status(&local.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(pod) => self.pods.told(&remote_uid, pod.status.unwrap_or_default()),
                Err(error) if matches!(code(&error), Some(404 | 409)) => {
                    // It is no more, or its name is another's: the watch says so in a moment.
                    return Ok(());
                }
                Err(error) if matches!(code(&error), Some(400 | 422)) => {
                    // It is sent again once something in it changes. A pod whose end the server does not believe has ended all the same.
                    tracing::error!(
                        pod = format!("{}/{}", local.namespace, local.name),
                        error = why(&error),
                        "the API server does not take a pod's status"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        if local.gone && remote.deleting {
            remove(&api, &local.name, remote_uid).await?;
            self.statuses.forget(uid);
        }
        Ok(())
    }
}

/// Fields of a status that others say, or that are compared in another way.
const NOT_PLAIN: [&str; 6] = [
    "conditions",
    "extendedResourceClaimStatus",
    "nominatedNodeName",
    "qosClass",
    "resize",
    "resourceClaimStatuses",
];
/// Lists that the server merges by their items' `ip`.
const MERGED: [&str; 2] = ["hostIPs", "podIPs"];
/// The scheduler's word; a node only says it where nobody has.
const SCHEDULED: &str = "PodScheduled";

/// The strategic merge patch that makes the server's status the node's, in what is the node's to say; none if it is.
fn patch(uid: &str, theirs: &v1::PodStatus, ours: &v1::PodStatus) -> Option<Value> {
    let map = |status: &v1::PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    // Who has ended has ended, whoever said so first, and why.
    let decided: &[&str] = if has_ended(theirs) { &["phase", "reason", "message"] } else { &[] };
    let (theirs, ours) = (map(theirs), map(ours));
    let mut status = Map::new();
    for (field, value) in ours.iter().filter(|(field, _)| !NOT_PLAIN.contains(&field.as_str())) {
        if theirs.get(field) == Some(value) {
            continue;
        }
        let value = match value {
            Value::Array(items) if MERGED.contains(&field.as_str()) => {
                std::iter::once(json!({"$patch": "replace"})).chain(items.iter().cloned()).collect()
            }
            other => other.clone(),
        };
        status.insert(field.clone(), value);
    }
    for field in theirs.keys().filter(|field| !NOT_PLAIN.contains(&field.as_str())) {
        if !ours.contains_key(field) {
            status.insert(field.clone(), Value::Null);
        }
    }
    if let Some(class) = ours.get("qosClass").filter(|_| !theirs.contains_key("qosClass")) {
        status.insert("qosClass".to_owned(), class.clone());
    }
    decided.iter().for_each(|field| drop(status.remove(*field)));
    let conditions = conditions(&list(&theirs), &list(&ours));
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), Value::Array(conditions));
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

fn list(status: &Map<String, Value>) -> Vec<Value> {
    status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn kind(condition: &Value) -> &str {
    condition["type"].as_str().unwrap_or_default()
}

/// The conditions that differ, of those that are the node's own; the server merges them by type.
fn conditions(theirs: &[Value], ours: &[Value]) -> Vec<Value> {
    let of = |list: &[Value], type_: &str| list.iter().find(|c| kind(c) == type_).cloned();
    let mut changed = Vec::new();
    for condition in ours.iter().filter(|condition| is_own_condition(kind(condition))) {
        let known = of(theirs, kind(condition));
        if known.as_ref() == Some(condition) || (known.is_some() && kind(condition) == SCHEDULED) {
            continue;
        }
        let mut condition = condition.clone();
        // Merged field by field: what is no more has to be said.
        for field in known.iter().filter_map(Value::as_object).flat_map(Map::keys) {
            if condition.get(field).is_none() {
                condition[field] = Value::Null;
            }
        }
        changed.push(condition);
    }
    let left_out = theirs
        .iter()
        .map(kind)
        .filter(|type_| is_own_condition(type_) && *type_ != SCHEDULED && of(ours, type_).is_none());
    changed.extend(left_out.map(|type_| json!({"$patch": "delete", "type": type_})));
    changed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn status(value: Value) -> v1::PodStatus {
        serde_json::from_value(value).unwrap()
    }

    fn difference(theirs: Value, ours: Value) -> Option<Value> {
        patch("u", &status(theirs), &status(ours)).map(|patch| {
            assert_eq!(patch["metadata"], json!({"uid": "u"}));
            patch["status"].clone()
        })
    }

    #[test]
    fn the_same_status_is_not_sent() {
        let same = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(difference(same.clone(), same), None);
    }

    #[test]
    fn only_what_differs_is_sent_and_what_is_no_more_is_taken_away() {
        let theirs =
            json!({"phase": "Running", "reason": "X", "message": "m", "startTime": "2026-01-01T00:00:00Z"});
        let ours = json!({"phase": "Failed", "reason": "Y", "startTime": "2026-01-01T00:00:00Z"});
        let sent = difference(theirs, ours).unwrap();
        assert_eq!(sent, json!({"phase": "Failed", "reason": "Y", "message": null}));
    }

    #[test]
    fn addresses_are_replaced_where_the_server_would_add_them() {
        let sent = difference(
            json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}),
            json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}),
        );
        assert_eq!(
            sent.unwrap(),
            json!({"podIP": "10.0.0.2", "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}]})
        );
    }

    #[test]
    fn who_has_ended_stays_so() {
        let theirs = json!({"phase": "Failed", "reason": "NodeLost"});
        let ours = json!({"phase": "Running", "containerStatuses": []});
        assert_eq!(difference(theirs, ours).unwrap(), json!({"containerStatuses": []}));
    }

    #[test]
    fn what_others_say_is_left_alone() {
        let theirs = json!({"nominatedNodeName": "n", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "example.com/gate", "status": "True"},
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
            {"type": "PodResizeInProgress", "status": "True"}]});
        let ours = json!({"conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-02-02T00:00:00Z"},
            {"type": "Ready", "status": "True"}]});
        assert_eq!(
            difference(theirs, ours).unwrap(),
            json!({"conditions": [
                {"type": "Ready", "status": "True", "reason": null},
                {"$patch": "delete", "type": "PodResizeInProgress"}]})
        );
    }
}
