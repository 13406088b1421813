//! The kinds of PATCH that Kubernetes knows.

use serde_json::Value;

use super::{ApiError, strategic};

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902, a list of operations.
    Json,
    /// RFC 7386, a partial object where null deletes.
    Merge,
    /// A partial object whose lists are merged by key.
    Strategic,
    /// The fields that the caller wants (server-side apply); creates what is missing. One writer only is known, so no field
    /// is ever another's and none is taken away.
    Apply,
}

impl PatchType {
    /// By the request's content type.
    pub fn of(content_type: &str) -> Result<PatchType, ApiError> {
        match content_type {
            "application/json-patch+json" => Ok(PatchType::Json),
            "application/merge-patch+json" => Ok(PatchType::Merge),
            "application/strategic-merge-patch+json" => Ok(PatchType::Strategic),
            "application/apply-patch+yaml" => Ok(PatchType::Apply),
            other => Err(unsupported(
                other,
                "application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json, application/apply-patch+yaml",
            )),
        }
    }
}

/// 415.
pub fn unsupported(given: &str, accepted: &str) -> ApiError {
    let text = format!(
        "the body of the request was in an unknown format ({given:?}) - accepted media types include: {accepted}"
    );
    ApiError::new(415, "UnsupportedMediaType", text)
}

/// Reads a patch.
pub fn parse(kind: PatchType, body: &[u8]) -> Result<Value, ApiError> {
    let bad = |e: String| ApiError::bad_request(format!("error decoding patch: {e}"));
    match kind {
        PatchType::Apply => serde_yaml::from_slice(body).map_err(|e| bad(e.to_string())),
        _ => serde_json::from_slice(body).map_err(|e| bad(e.to_string())),
    }
}

/// The object that a patch makes of another.
pub fn apply(kind: PatchType, mut object: Value, patch: Value) -> Result<Value, ApiError> {
    if kind != PatchType::Json && !patch.is_object() {
        return Err(ApiError::bad_request("error decoding patch: it is no object"));
    }
    match kind {
        PatchType::Json => {
            let operations: json_patch::Patch = serde_json::from_value(patch)
                .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
            json_patch::patch(&mut object, &operations).map_err(|e| {
                ApiError::new(422, "Invalid", format!("the server rejected our request: {e}"))
            })?;
        }
        PatchType::Merge => json_patch::merge(&mut object, &patch),
        PatchType::Strategic | PatchType::Apply => strategic::merge(&mut object, patch)?,
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn each_type() {
        let object = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        let merged =
            apply(PatchType::Merge, object.clone(), json!({"metadata": {"labels": {"a": null}}})).unwrap();
        assert_eq!(merged, json!({"metadata": {"labels": {"b": "2"}}}));
        let operations = json!([{"op": "test", "path": "/metadata/labels/a", "value": "1"},
            {"op": "replace", "path": "/metadata/labels/b", "value": "3"}]);
        let patched = apply(PatchType::Json, object.clone(), operations).unwrap();
        assert_eq!(patched["metadata"]["labels"]["b"], "3");
        let failing = json!([{"op": "test", "path": "/metadata/labels/a", "value": "9"}]);
        assert_eq!(apply(PatchType::Json, object.clone(), failing).unwrap_err().code, 422);
        assert_eq!(apply(PatchType::Json, object.clone(), json!({"op": "x"})).unwrap_err().code, 400);
        assert_eq!(apply(PatchType::Merge, object, json!([1])).unwrap_err().code, 400);
        assert_eq!(PatchType::of("text/plain").unwrap_err().code, 415);
    }
}
