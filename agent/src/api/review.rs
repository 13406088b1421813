//! What callers ask about themselves: `kubectl auth whoami`, `kubectl auth can-i`.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::caller::{ASKING, Caller};
use super::read::json_response;

/// Whether that is where something is asked.
pub fn is_asked(path: &str) -> bool {
    ASKING.contains(&path)
}

/// The answer to what was POSTed to a path; none if nothing is asked there.
pub fn answer(path: &str, caller: &Caller, asked: &Value) -> Option<Response> {
    let (version, kind) = match path {
        "/apis/authentication.k8s.io/v1/selfsubjectreviews" => {
            ("authentication.k8s.io/v1", "SelfSubjectReview")
        }
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
            ("authorization.k8s.io/v1", "SelfSubjectAccessReview")
        }
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews" => {
            ("authorization.k8s.io/v1", "SelfSubjectRulesReview")
        }
        _ => return None,
    };
    let everything = ["*"];
    let status = match kind {
        "SelfSubjectReview" => json!({"userInfo": {"username": caller.name(), "groups": caller.groups()}}),
        "SelfSubjectAccessReview" => json!({"allowed": caller.is_admin()}),
        _ if caller.is_admin() => json!({
            "resourceRules": [{"verbs": everything, "apiGroups": everything, "resources": everything}],
            "nonResourceRules": [{"verbs": everything, "nonResourceURLs": everything}],
            "incomplete": false,
        }),
        _ => json!({"resourceRules": [], "nonResourceRules": [], "incomplete": false}),
    };
    let mut body = json!({"kind": kind, "apiVersion": version,
        "metadata": {"creationTimestamp": jiff::Timestamp::now().round(jiff::Unit::Second).ok()}, "status": status});
    if let Some(spec) = asked.get("spec") {
        body["spec"] = spec.clone();
    }
    Some(json_response(StatusCode::CREATED, body.to_string()))
}
