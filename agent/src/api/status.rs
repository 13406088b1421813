//! What others may say in a pod's status: conditions that are not the node's own, such as those that readiness gates wait for.

use berth_reconciler::status::is_own_condition;
use k8s_openapi::api::core::v1::PodCondition;
use serde_json::{Map, Value};

use super::Cause;

/// The conditions of others in the new version of a pod's status. All else must be as it was: a node says that itself.
///
/// # Errors
/// The fields that may not be changed, and conditions that are none.
pub fn conditions(old: &Value, new: &Value) -> Result<Vec<PodCondition>, Vec<Cause>> {
    let (before, after) = (fields(old), fields(new));
    let mut causes: Vec<Cause> = before
        .keys()
        .chain(after.keys().filter(|key| !before.contains_key(*key)))
        .filter(|key| *key != "conditions" && value(&before, key) != value(&after, key))
        .map(|key| forbidden(format!("status.{key}")))
        .collect();
    let (had, has) = (list(&before), list(&after));
    let own = |list: &[Value]| -> Vec<Value> {
        let mut own: Vec<Value> = list.iter().filter(|c| is_own_condition(type_of(c))).cloned().collect();
        own.sort_by_key(|condition| type_of(condition).to_owned());
        own
    };
    if own(&had) != own(&has) {
        causes.push(forbidden("status.conditions".into()));
    }
    let mut conditions: Vec<PodCondition> = Vec::new();
    for (i, condition) in has.iter().enumerate().filter(|(_, c)| !is_own_condition(type_of(c))) {
        match read(condition) {
            Ok(new) if conditions.iter().any(|known| known.type_ == new.type_) => {
                let message = format!("Duplicate value: {:?}", new.type_);
                causes.push(cause(i, "type", "FieldValueDuplicate", message));
            }
            Ok(new) => conditions.push(new),
            Err((field, message)) => causes.push(cause(i, field, "FieldValueInvalid", message)),
        }
    }
    if causes.is_empty() { Ok(conditions) } else { Err(causes) }
}

fn fields(pod: &Value) -> Map<String, Value> {
    pod["status"].as_object().cloned().unwrap_or_default()
}

/// A field; one that is not there is like one that is null.
fn value<'a>(fields: &'a Map<String, Value>, key: &str) -> &'a Value {
    fields.get(key).unwrap_or(&Value::Null)
}

fn list(fields: &Map<String, Value>) -> Vec<Value> {
    value(fields, "conditions").as_array().cloned().unwrap_or_default()
}

fn type_of(condition: &Value) -> &str {
    condition["type"].as_str().unwrap_or_default()
}

fn read(value: &Value) -> Result<PodCondition, (&'static str, String)> {
    let condition: PodCondition =
        serde_json::from_value(value.clone()).map_err(|error| ("", format!("Invalid value: {error}")))?;
    if condition.type_.is_empty() {
        return Err(("type", "Required value".into()));
    }
    if !["True", "False", "Unknown"].contains(&condition.status.as_str()) {
        let status = &condition.status;
        let message = format!("Invalid value: {status:?}: must be \"True\", \"False\" or \"Unknown\"");
        return Err(("status", message));
    }
    Ok(condition)
}

fn forbidden(field: String) -> Cause {
    let message = "Forbidden: the node itself says this; only conditions of other types can be set";
    Cause { reason: "FieldValueForbidden", field, message: message.into() }
}

fn cause(index: usize, field: &str, reason: &'static str, message: String) -> Cause {
    let dot = if field.is_empty() { "" } else { "." };
    Cause { reason, field: format!("status.conditions[{index}]{dot}{field}"), message }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    const GATE: &str = "example.org/gate";

    fn pod(conditions: Value) -> Value {
        json!({"status": {"phase": "Running", "conditions": conditions}})
    }

    fn words(result: Result<Vec<PodCondition>, Vec<Cause>>) -> Vec<String> {
        match result {
            Ok(conditions) => conditions.into_iter().map(|c| format!("{}={}", c.type_, c.status)).collect(),
            Err(causes) => {
                let words = causes.into_iter().map(|c| format!("{}: {}", c.field, c.message));
                words.map(|text| text.split(';').next().unwrap_or_default().to_owned()).collect()
            }
        }
    }

    #[test]
    fn only_conditions_of_others_can_be_set() {
        let ready = json!({"type": "Ready", "status": "False"});
        let gate = |status: &str| json!({"type": GATE, "status": status});
        let old = pod(json!([ready, gate("False")]));
        for (new, want) in [
            (pod(json!([ready, gate("True")])), vec!["example.org/gate=True"]),
            (pod(json!([gate("Unknown"), ready])), vec!["example.org/gate=Unknown"]),
            (pod(json!([ready])), vec![]),
            (pod(json!([gate("True")])), vec!["status.conditions: Forbidden: the node itself says this"]),
            (
                pod(json!([{"type": "Ready", "status": "True"}])),
                vec!["status.conditions: Forbidden: the node itself says this"],
            ),
            (
                pod(json!([ready, gate("yes")])),
                vec![
                    "status.conditions[1].status: Invalid value: \"yes\": must be \"True\", \"False\" or \"Unknown\"",
                ],
            ),
            (pod(json!([ready, {"status": "True"}])), vec!["status.conditions[1].type: Required value"]),
            (
                pod(json!([ready, gate("True"), gate("False")])),
                vec!["status.conditions[2].type: Duplicate value: \"example.org/gate\""],
            ),
            (
                json!({"status": {"phase": "Failed", "message": "x", "conditions": [ready]}}),
                vec![
                    "status.phase: Forbidden: the node itself says this",
                    "status.message: Forbidden: the node itself says this",
                ],
            ),
        ] {
            assert_eq!(words(conditions(&old, &new)), want, "{new}");
        }
    }
}
