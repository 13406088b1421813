//! What callers ask about themselves (`kubectl auth whoami`, `kubectl auth can-i`) and about others: who shows a token, and what
//! somebody may. Nothing of it is kept.

use axum::response::Response;
use berth_reconciler::status::whole_seconds;
use http::StatusCode;
use serde_json::{Value, json};

use super::caller::{ADMINS, Caller};
use super::read::json_response;
use super::{Api, ApiError};
use crate::hub::{Attributes, User};
use crate::store::Group;

/// Who is who.
const AUTHENTICATION: Group = Group { name: "authentication.k8s.io", version: "v1" };
/// Who may do what.
const AUTHORIZATION: Group = Group { name: "authorization.k8s.io", version: "v1" };

/// The groups of questions.
pub const GROUPS: [Group; 2] = [AUTHENTICATION, AUTHORIZATION];

/// A question: its group, the name in URLs, its kind, whether it is asked in a namespace.
pub type Question = (Group, &'static str, &'static str, bool);

/// All questions.
pub const QUESTIONS: [Question; 6] = [
    (AUTHENTICATION, "selfsubjectreviews", "SelfSubjectReview", false),
    (AUTHENTICATION, "tokenreviews", "TokenReview", false),
    (AUTHORIZATION, "localsubjectaccessreviews", "LocalSubjectAccessReview", true),
    (AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
    (AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
    (AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview", false),
];

/// What is asked at a path, and in which namespace.
pub fn asked_at(path: &str) -> Option<(Question, Option<&str>)> {
    QUESTIONS.into_iter().find_map(|question| {
        let rest = path.strip_prefix(&question.0.path())?.strip_prefix('/')?;
        match rest.strip_prefix("namespaces/").and_then(|rest| rest.split_once('/')) {
            Some((namespace, plural)) if question.3 && plural == question.1 => {
                Some((question, Some(namespace)))
            }
            None if !question.3 && rest == question.1 => Some((question, None)),
            _ => None,
        }
    })
}

/// The answer to a question.
///
/// # Errors
/// 400 and 422 when it is none.
pub fn answer(
    api: &Api,
    (question, namespace): (Question, Option<&str>),
    caller: &Caller,
    asked: &Value,
) -> Result<Response, ApiError> {
    let (group, _, kind, _) = question;
    let differs =
        |field: &str, want: &str| asked[field].as_str().is_some_and(|has| !has.is_empty() && has != want);
    if differs("kind", kind) || differs("apiVersion", &group.to_string()) {
        return Err(ApiError::bad_request(format!("the object provided is no {kind} of {group}")));
    }
    let spec = &asked["spec"];
    let status = match kind {
        "SelfSubjectReview" => json!({"userInfo": {"username": caller.name(), "groups": caller.groups()}}),
        "TokenReview" => token(api, spec)?,
        "SelfSubjectAccessReview" => access(api, caller.name(), &caller.groups(), spec, None)?,
        "SelfSubjectRulesReview" => rules(caller),
        _ => {
            let groups: Vec<String> = texts(&spec["groups"]);
            let user = spec["user"].as_str().unwrap_or_default();
            if user.is_empty() && groups.is_empty() {
                let why = "spec.user: Invalid value: \"\": at least one of user or group must be specified";
                let text = format!("{kind}.{} \"\" is invalid: {why}", group.name);
                return Err(ApiError::new(422, "Invalid", text));
            }
            access(api, user, &groups, spec, namespace)?
        }
    };
    let mut body = json!({"kind": kind, "apiVersion": group.to_string(),
        "metadata": {"creationTimestamp": whole_seconds(jiff::Timestamp::now())}, "status": status});
    if let Some(spec) = asked.get("spec") {
        body["spec"] = spec.clone();
    }
    Ok(json_response(StatusCode::CREATED, body.to_string()))
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// Whose a token is.
fn token(api: &Api, spec: &Value) -> Result<Value, ApiError> {
    let Some(token) = spec["token"].as_str().filter(|token| !token.is_empty()) else {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    };
    Ok(match api.hub.user_of(token, &texts(&spec["audiences"])) {
        Ok(User { name, uid, mut groups, extra, audiences }) => {
            groups.push("system:authenticated".to_owned());
            let extra: serde_json::Map<String, Value> =
                extra.into_iter().map(|(k, v)| (k, json!([v]))).collect();
            let mut user = json!({"username": name, "groups": groups});
            if !uid.is_empty() {
                user["uid"] = json!(uid);
            }
            if !extra.is_empty() {
                user["extra"] = json!(extra);
            }
            let mut status = json!({"authenticated": true, "user": user});
            if !audiences.is_empty() {
                status["audiences"] = json!(audiences);
            }
            status
        }
        Err(error) => json!({"user": {}, "error": error}),
    })
}

/// Whether somebody may do something.
fn access(
    api: &Api,
    user: &str,
    groups: &[String],
    spec: &Value,
    namespace: Option<&str>,
) -> Result<Value, ApiError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let asked = match (resource.is_object(), other.is_object()) {
        (true, false) => Attributes {
            verb: text(&resource["verb"]),
            path: None,
            group: text(&resource["group"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            namespace: text(&resource["namespace"]),
            name: text(&resource["name"]),
            on_node: String::new(),
        },
        (false, true) => Attributes {
            verb: text(&other["verb"]),
            path: Some(text(&other["path"])),
            ..Attributes::default()
        },
        _ => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(ApiError::bad_request(why));
        }
    };
    if namespace.is_some_and(|namespace| namespace != asked.namespace) {
        return Err(ApiError::bad_request(
            "spec.resourceAttributes.namespace must match the namespace of the path",
        ));
    }
    Ok(match api.hub.authorize(user, groups, &asked) {
        Ok(()) => json!({"allowed": true}),
        Err(why) if why.is_empty() => json!({"allowed": false}),
        Err(why) => json!({"allowed": false, "reason": why}),
    })
}

fn rules(caller: &Caller) -> Value {
    let everything = ["*"];
    if caller.is_admin() {
        return json!({
            "resourceRules": [{"verbs": everything, "apiGroups": everything, "resources": everything}],
            "nonResourceRules": [{"verbs": everything, "nonResourceURLs": everything}],
            "incomplete": false,
        });
    }
    let error = format!("rules are not told apart for users outside of {ADMINS}");
    json!({"resourceRules": [], "nonResourceRules": [], "incomplete": true, "evaluationError": error})
}
