//! Pods of other nodes: kept and shown, and run by those. A pod is another node's if it names one, and nobody's as long as it
//! waits for somebody to bind it.

use berth_reconciler::manifest::{self, Context, MIRROR_ANNOTATION as MIRROR};
use berth_reconciler::resources::qos_class;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

use super::admission::tolerate;
use super::{How, Hub, Key, now, typed};
use crate::api::{ApiError, Part};
use crate::store::{Kind, Object};

/// The scheduler of pods that name none; here it puts every pod onto this node.
const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// How long a pod gets to end that does not say.
const GRACE_SECONDS: i64 = 30;

/// What a deletion leaves.
pub enum Deleted {
    /// The pod is there until its node has ended it.
    Going(Value),
    /// It is gone.
    Gone(Value),
}

impl Hub {
    /// Whether a new pod is not for this node: it names another one that is registered here, or waits to be bound.
    pub fn takes(&self, pod: &Value) -> bool {
        let spec = &pod["spec"];
        match spec["nodeName"].as_str().filter(|name| !name.is_empty()) {
            Some(name) => name != self.own && self.store.get(Kind::Node, "", name).is_some(),
            None => {
                let scheduler = spec["schedulerName"].as_str().unwrap_or_default();
                let gated = spec["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
                gated || !["", DEFAULT_SCHEDULER].contains(&scheduler)
            }
        }
    }

    /// Whether a pod that there is runs elsewhere, or nowhere yet.
    pub fn has(&self, pod: &Object) -> bool {
        pod.kind == Kind::Pod && node_of(&pod.value()) != self.own
    }

    /// Keeps a new pod; gives it as it is then.
    ///
    /// # Errors
    /// 422 when it breaks a rule, 500 when it cannot be stored.
    pub fn create_pod(&self, key: &Key, given: &Value, how: How) -> Result<Value, ApiError> {
        let mirror = given["metadata"]["annotations"].get(MIRROR).is_some();
        let mut completed = given.clone();
        self.admit(key, &mut completed, mirror)?;
        let pod = self.checked(key, &completed, false)?;
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).is_some_and(|n| !n.is_empty());
        let gated = pod.spec.as_ref().is_some_and(|spec| spec.scheduling_gates.iter().flatten().count() > 0);
        if bound && gated {
            let message =
                "Invalid value: cannot be set until all schedulingGates have been cleared".to_owned();
            let cause = super::Cause { reason: "FieldValueInvalid", field: "spec.nodeName".into(), message };
            return Err(ApiError::invalid(Kind::Pod, &key.name, vec![cause]));
        }
        let qos = pod.spec.as_ref().map(|spec| qos_class(spec).as_str());
        let mut pod = json!(pod);
        let metadata = &mut pod["metadata"];
        metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
        metadata["creationTimestamp"] = json!(now());
        metadata["generation"] = json!(1);
        keep_from(metadata, &given["metadata"], &["ownerReferences", "finalizers"]);
        pod["status"] = json!({"phase": "Pending", "qosClass": qos});
        if gated {
            pod["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates", "lastTransitionTime": now()}]);
        }
        self.keep(key, &pod, how.dry_run)
    }

    /// Puts a part of `given` in the place of what there is; gives the pod as it is then.
    ///
    /// # Errors
    /// 422 when that may not be changed, 500 when it cannot be stored.
    pub fn update_pod(
        &self,
        key: &Key,
        part: Part,
        old: &Object,
        given: &Value,
        how: How,
    ) -> Result<Value, ApiError> {
        let old = old.value();
        let mut pod = match part {
            Part::Status => self.with_status(&old, given, how)?,
            part => self.with_spec(key, part, &old, given)?,
        };
        for server in
            ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"]
        {
            let before = old["metadata"].get(server).cloned();
            typed::put_or_remove(&mut pod["metadata"], server, before);
        }
        if pod["spec"] != old["spec"] {
            pod["metadata"]["generation"] = json!(generation(&old) + 1);
        }
        let ended = pod["metadata"]["deletionGracePeriodSeconds"] == 0 && !held(&pod);
        if ended && pod["metadata"].get("deletionTimestamp").is_some() {
            if !how.dry_run {
                self.forget(key);
            }
            return Ok(pod);
        }
        self.keep(key, &pod, how.dry_run)
    }

    /// The status is all that its path changes, but for labels and annotations.
    fn with_status(&self, old: &Value, given: &Value, how: How) -> Result<Value, ApiError> {
        let read = typed::read(Kind::Pod, given.clone(), how.strict)?;
        let mut pod = old.clone();
        typed::put_or_remove(&mut pod, "status", read.get("status").cloned());
        for field in ["labels", "annotations"] {
            typed::put_or_remove(&mut pod["metadata"], field, read["metadata"].get(field).cloned());
        }
        Ok(pod)
    }

    fn with_spec(&self, key: &Key, part: Part, old: &Value, given: &Value) -> Result<Value, ApiError> {
        let mut given = given.clone();
        let mut tolerant = old.clone();
        tolerate(&mut tolerant);
        if part == Part::Whole && tolerant == *old {
            // Who applies a pod's manifest anew does not mean what was added to it.
            tolerate(&mut given);
        }
        let pod = self.checked(key, &given, true)?;
        let before: v1::Pod = serde_json::from_value(old.clone()).map_err(ApiError::internal)?;
        let allowed = match part {
            Part::Resize => manifest::pod_resize_allowed(&before, &pod),
            Part::Ephemeral => manifest::pod_ephemeral_allowed(&before, &pod),
            Part::Whole | Part::Status => manifest::pod_update_allowed(&before, &pod),
        };
        allowed.map_err(|errors| ApiError::from_manifest(Kind::Pod, &key.name, &errors))?;
        let mut pod = json!(pod);
        // Only a binding says where it runs.
        typed::put_or_remove(&mut pod["spec"], "nodeName", old["spec"].get("nodeName").cloned());
        if part == Part::Whole {
            keep_from(&mut pod["metadata"], &given["metadata"], &["ownerReferences", "finalizers"]);
        } else {
            pod["metadata"] = old["metadata"].clone();
        }
        typed::put_or_remove(&mut pod, "status", old.get("status").cloned());
        Ok(pod)
    }

    /// The pod with the API server's defaults, checked by the rules that hold on every node.
    fn checked(&self, key: &Key, given: &Value, running: bool) -> Result<v1::Pod, ApiError> {
        let mut bare = given.clone();
        typed::remove(&mut bare["metadata"], "finalizers");
        let mut context = Context { running, elsewhere: true, ..Context::default() };
        if let Some(class) = bare["spec"]["runtimeClassName"].as_str() {
            let overhead = serde_json::from_value(bare["spec"]["overhead"].clone()).unwrap_or_default();
            context.overheads.insert(class.to_owned(), overhead);
        }
        manifest::check_pod(&bare, &context)
            .map_err(|errors| ApiError::from_manifest(Kind::Pod, &key.name, &errors))
    }

    /// Asks for a pod's end, or takes it away: one that nobody runs, that has ended, or with a grace period of zero.
    ///
    /// # Errors
    /// 500 when it cannot be stored.
    pub fn delete_pod(&self, key: &Key, old: &Object, grace: Option<u64>) -> Result<Deleted, ApiError> {
        let mut pod = old.value();
        let node = node_of(&pod);
        let runs = !node.is_empty() && self.store.get(Kind::Node, "", node).is_some();
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let mirror = pod["metadata"]["annotations"].get(MIRROR).is_some();
        let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(GRACE_SECONDS);
        let asked = grace.map_or(own, |seconds| i64::try_from(seconds).unwrap_or(i64::MAX));
        let seconds = if runs && !ended && !mirror { asked } else { 0 };
        if seconds == 0 && !held(&pod) {
            self.forget(key);
            return Ok(Deleted::Gone(pod));
        }
        let metadata = &pod["metadata"];
        let known = metadata["deletionGracePeriodSeconds"].as_i64();
        let begun = metadata["deletionTimestamp"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        let since = match (known, begun) {
            // It ends earlier at most.
            (Some(known), Some(_)) if known <= seconds => return Ok(Deleted::Going(pod)),
            (Some(known), Some(end)) => end.checked_sub(SignedDuration::from_secs(known)).unwrap_or(end),
            _ => now(),
        };
        let end = since.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        pod["metadata"]["deletionTimestamp"] = json!(end);
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
        if known.is_none() {
            pod["metadata"]["generation"] = json!(generation(&pod) + 1);
        }
        self.keep(key, &pod, false).map(Deleted::Going)
    }

    /// Gives a pod that waits for it its node. One that is for this node is this agent's from then on: it is given back and kept
    /// here no more.
    ///
    /// # Errors
    /// 404 for a node that is not registered, 409 when the pod has a node, has gates before it, or is being deleted.
    pub fn bind(
        &self,
        key: &Key,
        old: &Object,
        binding: &Value,
        dry_run: bool,
    ) -> Result<Option<Value>, ApiError> {
        let mut pod = old.value();
        let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
        let kind = binding["target"]["kind"].as_str().unwrap_or("Node");
        if node.is_empty() || !["", "Node"].contains(&kind) {
            return Err(ApiError::bad_request("the binding's target must be a Node and have a name"));
        }
        let conflict = |why: String| Err(ApiError::conflict(Kind::Pod, &key.name, &why));
        let (asked, has) = (binding["metadata"]["uid"].as_str(), pod["metadata"]["uid"].as_str());
        if asked.is_some_and(|uid| !uid.is_empty() && Some(uid) != has) {
            return conflict("Precondition failed: UID in precondition is not that of the pod".to_owned());
        }
        if pod["metadata"].get("deletionTimestamp").is_some() {
            return conflict(format!("pod {} is being deleted, cannot be assigned to a host", key.name));
        }
        if !node_of(&pod).is_empty() {
            return conflict(format!("pod {} is already assigned to node {:?}", key.name, node_of(&pod)));
        }
        if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            return conflict(format!("pod {} has non-empty .spec.schedulingGates", key.name));
        }
        if node != self.own && self.store.get(Kind::Node, "", &node).is_none() {
            return Err(ApiError::not_found(Kind::Node, &node));
        }
        pod["spec"]["nodeName"] = json!(node);
        for (name, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            pod["metadata"]["annotations"][name] = value.clone();
        }
        scheduled(&mut pod);
        if dry_run {
            return Ok(None);
        }
        if node == self.own {
            super::admission::unmount_token(&mut pod);
            return Ok(Some(pod));
        }
        self.keep(key, &pod, false).map(|_| None)
    }

    /// What the hub has stored of a pod goes, since this agent has it now.
    pub fn hand_over(&self, key: &Key) {
        self.objects.remove(key.kind, &key.namespace, &key.name);
    }

    /// The pods of a node go with it.
    pub(super) fn pods_gone(&self, node: &str) {
        for pod in self.store.list(Kind::Pod, None).0.iter().filter(|pod| node_of(&pod.value()) == node) {
            let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
            self.forget(&Key { kind: Kind::Pod, namespace, name });
        }
    }
}

/// The node that a pod is on; empty if it has none yet.
pub fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

/// Whether finalizers hold a pod.
fn held(pod: &Value) -> bool {
    pod["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}

fn generation(pod: &Value) -> i64 {
    pod["metadata"]["generation"].as_i64().unwrap_or(1)
}

/// Takes over fields that the manifest's reading leaves out.
fn keep_from(metadata: &mut Value, given: &Value, fields: &[&str]) {
    for field in fields {
        typed::put_or_remove(metadata, field, given.get(*field).filter(|value| !value.is_null()).cloned());
    }
}

/// Says in its status that a pod has a node.
fn scheduled(pod: &mut Value) {
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}));
    pod["status"]["conditions"] = Value::Array(conditions);
}
