//! Strategic merge patches: objects are merged, and lists whose elements have a key are merged element by element.
//!
//! The directives are those of k8s.io/apimachinery/pkg/util/strategicpatch; which list is merged by what is taken from the
//! `patchMergeKey` tags of the core/v1 types that this node serves.

use serde_json::{Map, Value};

use super::ApiError;

/// How a list is patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListRule {
    /// Element by element; equal by this field.
    ByKey(&'static str),
    /// As a set of plain values.
    Set,
    /// As one value.
    Replace,
}

/// The rule for the list `field` of an object that is the value of `parent`.
fn rule(parent: &str, field: &str) -> ListRule {
    match (parent, field) {
        (_, "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env") => {
            ListRule::ByKey("name")
        }
        // Those of a ServiceAccount lie at its top.
        ("", "imagePullSecrets" | "secrets") => ListRule::ByKey("name"),
        ("spec", "imagePullSecrets" | "resourceClaims" | "schedulingGates") => ListRule::ByKey("name"),
        ("containers" | "initContainers" | "ephemeralContainers", "ports") => {
            ListRule::ByKey("containerPort")
        }
        (_, "volumeMounts") => ListRule::ByKey("mountPath"),
        (_, "volumeDevices") => ListRule::ByKey("devicePath"),
        ("spec", "hostAliases") => ListRule::ByKey("ip"),
        ("spec", "topologySpreadConstraints") => ListRule::ByKey("topologyKey"),
        ("status", "conditions" | "addresses") => ListRule::ByKey("type"),
        ("status", "podIPs" | "hostIPs") => ListRule::ByKey("ip"),
        ("metadata", "ownerReferences") => ListRule::ByKey("uid"),
        ("metadata", "finalizers") => ListRule::Set,
        _ => ListRule::Replace,
    }
}

/// Merges a patch into an object.
///
/// # Errors
/// 400 when a directive or a list element is malformed.
pub fn merge(object: &mut Value, patch: Value) -> Result<(), ApiError> {
    merge_value("", object, patch)
}

fn merge_value(name: &str, object: &mut Value, patch: Value) -> Result<(), ApiError> {
    match patch {
        Value::Object(patch) => merge_map(name, object, patch),
        other => {
            *object = other;
            Ok(())
        }
    }
}

fn merge_map(name: &str, object: &mut Value, mut patch: Map<String, Value>) -> Result<(), ApiError> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    match patch.remove("$patch").as_ref().map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => {
            *object = Value::Object(patch);
            return Ok(());
        }
        Some(Some("delete")) => {
            *object = Value::Object(Map::new());
            return Ok(());
        }
        Some(_) => return Err(malformed("unknown $patch directive")),
    }
    let Some(fields) = object.as_object_mut() else { return Ok(()) };
    if let Some(keep) = patch.remove("$retainKeys") {
        let keep = keep.as_array().cloned().ok_or_else(|| malformed("$retainKeys is no list"))?;
        fields.retain(|key, _| keep.iter().any(|k| k.as_str() == Some(key)));
    }
    let (directives, values): (Vec<_>, Vec<_>) = patch.into_iter().partition(|(key, _)| key.starts_with('$'));
    for (key, value) in values {
        match value {
            Value::Null => {
                fields.remove(&key);
            }
            Value::Array(elements) => {
                let list = fields.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(&key, rule(name, &key), list, elements)?;
            }
            other => merge_value(&key, fields.entry(key.clone()).or_insert(Value::Null), other)?,
        }
    }
    for (key, value) in directives {
        directive(name, fields, &key, value)?;
    }
    Ok(())
}

/// `$deleteFromPrimitiveList/x` and `$setElementOrder/x`.
fn directive(name: &str, fields: &mut Map<String, Value>, key: &str, value: Value) -> Result<(), ApiError> {
    let Some((word, field)) = key.split_once('/') else {
        return Err(malformed(&format!("unknown directive {key}")));
    };
    let Value::Array(wanted) = value else { return Err(malformed(&format!("{key} is no list"))) };
    let Some(list) = fields.get_mut(field).and_then(Value::as_array_mut) else { return Ok(()) };
    match word {
        "$deleteFromPrimitiveList" => list.retain(|element| !wanted.contains(element)),
        "$setElementOrder" => {
            let key = match rule(name, field) {
                ListRule::ByKey(key) => Some(key),
                ListRule::Set | ListRule::Replace => None,
            };
            let identity = |v: &Value| key.map_or_else(|| v.clone(), |key| v[key].clone());
            let order: Vec<Value> = wanted.iter().map(identity).collect();
            // What the order does not name stays behind what it names, as it was.
            list.sort_by_key(|v| order.iter().position(|o| *o == identity(v)).unwrap_or(usize::MAX));
        }
        _ => return Err(malformed(&format!("unknown directive {key}"))),
    }
    Ok(())
}

fn merge_list(name: &str, rule: ListRule, list: &mut Value, patch: Vec<Value>) -> Result<(), ApiError> {
    let Some(elements) = list.as_array_mut() else {
        *list = Value::Array(patch);
        return Ok(());
    };
    match rule {
        ListRule::Replace => *elements = patch,
        ListRule::Set => {
            for value in patch {
                if !elements.contains(&value) {
                    elements.push(value);
                }
            }
        }
        ListRule::ByKey(key) => merge_keyed(name, key, elements, patch)?,
    }
    Ok(())
}

fn merge_keyed(name: &str, key: &str, elements: &mut Vec<Value>, patch: Vec<Value>) -> Result<(), ApiError> {
    let replace = |p: &Value| p["$patch"] == "replace" && p.get(key).is_none();
    if patch.iter().any(replace) {
        *elements = patch.into_iter().filter(|p| !replace(p)).collect();
        return Ok(());
    }
    for value in patch {
        let Some(identity) = value.get(key).cloned() else {
            return Err(malformed(&format!(
                "an element of {name} has no {key}, by which the list is merged"
            )));
        };
        let found = elements.iter().position(|element| element.get(key) == Some(&identity));
        match (value["$patch"].as_str(), found) {
            (Some("delete"), Some(at)) => {
                elements.remove(at);
            }
            (Some("delete"), None) => {}
            (_, Some(at)) => merge_value(name, &mut elements[at], value)?,
            (_, None) => {
                let mut fresh = Value::Null;
                merge_value(name, &mut fresh, value)?;
                elements.push(fresh);
            }
        }
    }
    Ok(())
}

fn malformed(why: &str) -> ApiError {
    ApiError::bad_request(format!("invalid strategic merge patch: {why}"))
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
