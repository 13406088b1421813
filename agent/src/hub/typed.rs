//! Objects as clients send them, brought into the form of their types.

use berth_reconciler::manifest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::ApiError;
use crate::store::Kind;

/// The object with the fields that its type has. Others are dropped, as the API server does, or refused if `strict`.
///
/// # Errors
/// 400 when a value is not of its field's type, or a field is unknown.
pub fn read(kind: Kind, mut object: Value, strict: bool) -> Result<Value, ApiError> {
    object["apiVersion"] = json!(kind.group().to_string());
    object["kind"] = json!(kind.as_str());
    let read = match kind {
        Kind::Node => through::<Node>(&object),
        Kind::Lease => through::<Lease>(&object),
        Kind::ServiceAccount => through::<ServiceAccount>(&object),
        Kind::RuntimeClass => through::<RuntimeClass>(&object),
        Kind::PriorityClass => through::<PriorityClass>(&object),
        Kind::Pod => through::<Pod>(&object),
        Kind::Event => through::<Event>(&object),
        _ => Ok(object.clone()),
    };
    let about = format!("{kind} in version {:?} cannot be handled as a {kind}", kind.group().version);
    let mut read = read.map_err(|error| ApiError::bad_request(format!("{about}: {error}")))?;
    if strict {
        let mut unknown = Vec::new();
        unread("", &object, &read, &mut unknown);
        if !unknown.is_empty() {
            let unknown: Vec<String> =
                unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
            let why = format!("{about}: strict decoding error: {}", unknown.join(", "));
            return Err(ApiError::bad_request(why));
        }
    }
    if !read["metadata"].is_object() {
        read["metadata"] = json!({});
    }
    complete(kind, &mut read);
    Ok(read)
}

/// Fills in what clients rely on to be there (pkg/apis/scheduling/v1/defaults.go): kubectl ends with a nil pointer where it describes a
/// class without it.
pub fn complete(kind: Kind, object: &mut Value) {
    if kind == Kind::PriorityClass && object["preemptionPolicy"].is_null() {
        object["preemptionPolicy"] = json!("PreemptLowerPriority");
    }
}

fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(T::deserialize(object)?)
}

/// The fields with a value that reading has left out.
fn unread(path: &str, given: &Value, read: &Value, unknown: &mut Vec<String>) {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            for (key, value) in given {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match read.get(key) {
                    Some(read) => unread(&path, value, read, unknown),
                    None if is_nothing(value) => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(read)) => {
            for (n, (given, read)) in given.iter().zip(read).enumerate() {
                unread(&format!("{path}[{n}]"), given, read, unknown);
            }
        }
        _ => {}
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Checks name, labels and the like, which have the same rules whatever the kind.
///
/// # Errors
/// 422 with the fields that are wrong.
pub fn check_metadata(kind: Kind, name: &str, object: &Value) -> Result<(), ApiError> {
    let metadata = &object["metadata"];
    let mut bare = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    for field in ["labels", "annotations", "namespace"] {
        if let Some(value) = metadata.get(field) {
            bare["metadata"][field] = value.clone();
        }
    }
    let checked = manifest::check(&bare, &manifest::Context::default());
    checked.map(drop).map_err(|errors| ApiError::from_manifest(kind, name, &errors))
}

/// Takes a field away.
pub fn remove(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

/// Sets a field, or takes it away.
pub fn put_or_remove(object: &mut Value, field: &str, value: Option<Value>) {
    match value {
        Some(value) => object[field] = value,
        None => remove(object, field),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_does_not_have_is_dropped_or_refused() {
        let node = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule", "x": 1}], "y": ""},
            "status": {"z": {"deep": true}}});
        let kept = read(Kind::Node, node.clone(), false).unwrap();
        assert_eq!(kept["spec"]["taints"], json!([{"key": "a", "effect": "NoSchedule"}]));
        let refused = read(Kind::Node, node, true).unwrap_err();
        assert_eq!(refused.code, 400);
        assert!(
            refused.message.ends_with(r#"unknown field "spec.taints[0].x", unknown field "status.z""#),
            "{refused}"
        );
        let wrong = json!({"metadata": {"name": "n"}, "spec": {"taints": 3}});
        assert_eq!(read(Kind::Node, wrong, false).unwrap_err().code, 400);
    }
}
