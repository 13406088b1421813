//! The rules for Node objects.

use serde_json::{Value, json};

use super::{now, typed};
use crate::api::Cause;

/// The taint that keeps pods from a node that is cordoned.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What others may write into this node's own object: the rest is the agent's.
const OTHERS: [&str; 2] = ["taints", "unschedulable"];

/// The object that the agent shows of its own node when it starts: its own, with what others have written into the `stored` one.
pub fn restarted(mut own: Value, stored: Option<&Value>) -> Value {
    let Some(stored) = stored else { return own };
    for field in ["labels", "annotations"] {
        let mut all = stored["metadata"][field].as_object().cloned().unwrap_or_default();
        all.extend(own["metadata"][field].as_object().cloned().unwrap_or_default());
        own["metadata"][field] = Value::Object(all);
    }
    for field in OTHERS {
        if let Some(value) = stored["spec"].get(field) {
            own["spec"][field] = value.clone();
        }
    }
    own
}

/// Checks a Node that takes the place of `old`; `own` is the one of this machine. A cordoned node gets the taint of that.
pub fn check(old: Option<&Value>, new: &mut Value, own: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(old) = old {
        if own {
            causes.extend(agents_own(old, new));
        } else {
            causes.extend(fixed(old, new));
        }
    }
    cordon(new);
    causes.extend(taints(new));
    causes
}

/// What of this node's own object only its agent writes.
fn agents_own(old: &Value, new: &Value) -> Vec<Cause> {
    let without = |node: &Value| {
        let mut spec = node["spec"].clone();
        OTHERS.iter().for_each(|field| typed::remove(&mut spec, field));
        spec
    };
    let forbidden = |field: &str| {
        Cause {
        reason: "FieldValueForbidden",
        field: field.to_owned(),
        message: "Forbidden: the node itself says this; labels, annotations, taints and unschedulable can be changed".to_owned(),
    }
    };
    let mut causes = Vec::new();
    if without(old) != without(new) {
        causes.push(forbidden("spec"));
    }
    if old.get("status") != new.get("status") {
        causes.push(forbidden("status"));
    }
    causes
}

/// What is given to a node once.
fn fixed(old: &Value, new: &Value) -> Vec<Cause> {
    let changed = |field: &&&str| {
        let before = old["spec"].get(**field).filter(|value| !value.is_null());
        before.is_some_and(|before| new["spec"].get(**field) != Some(before))
    };
    let cause = |field: &&str| Cause {
        reason: "FieldValueForbidden",
        field: format!("spec.{field}"),
        message: "Forbidden: node updates may not change it once it is set".to_owned(),
    };
    ["podCIDR", "podCIDRs", "providerID"].iter().filter(changed).map(cause).collect()
}

/// A cordoned node has a taint that says so, as a cluster's node controller gives it.
fn cordon(node: &mut Value) {
    let cordoned = node["spec"]["unschedulable"] == true;
    let is_it = |taint: &Value| taint["key"] == UNSCHEDULABLE && taint["effect"] == "NoSchedule";
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    match (cordoned, taints.iter().any(is_it)) {
        (true, false) => {
            taints.push(json!({"key": UNSCHEDULABLE, "effect": "NoSchedule", "timeAdded": now()}));
        }
        (false, true) => taints.retain(|taint| !is_it(taint)),
        _ => return,
    }
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    typed::put_or_remove(&mut node["spec"], "taints", (!taints.is_empty()).then_some(Value::Array(taints)));
}

fn taints(node: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let taints = node["spec"]["taints"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (n, taint) in taints.iter().enumerate() {
        let mut complain = |reason, field: &str, message: String| {
            causes.push(Cause { reason, field: format!("spec.taints[{n}]{field}"), message });
        };
        if taint["key"].as_str().unwrap_or_default().is_empty() {
            complain("FieldValueRequired", ".key", "Required value".to_owned());
        }
        match taint["effect"].as_str().unwrap_or_default() {
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            "" => complain("FieldValueRequired", ".effect", "Required value".to_owned()),
            other => complain(
                "FieldValueNotSupported",
                ".effect",
                format!(
                    "Unsupported value: {other:?}: supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\""
                ),
            ),
        }
        let same = |other: &&Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
        if taints.iter().take(n).any(|other| same(&other)) {
            complain(
                "FieldValueDuplicate",
                "",
                "Duplicate value: taints must be unique by key and effect pair".to_owned(),
            );
        }
    }
    causes
}
