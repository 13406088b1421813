//! Errors as the Kubernetes API reports them: a `metav1.Status` with code, reason and causes.

use axum::response::{IntoResponse, Response};
use berth_reconciler::manifest::ManifestError;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::store::{Gone, Kind};

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldValueNotSupported` ...
    pub reason: &'static str,
    /// Path of the field, `spec.containers[0].image`; may be empty.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, such as `NotFound`.
    pub reason: &'static str,
    /// One line for a person.
    pub message: String,
    /// Kind and name of the object it is about.
    pub object: Option<(Kind, String)>,
    /// The fields that are wrong.
    pub causes: Vec<Cause>,
}

impl ApiError {
    /// An error with a code and a reason.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), object: None, causes: Vec::new() }
    }

    fn about(mut self, kind: Kind, name: &str) -> ApiError {
        self.object = Some((kind, name.to_owned()));
        self
    }

    /// 404: the object does not exist.
    pub fn not_found(kind: Kind, name: &str) -> ApiError {
        let message = format!("{} \"{name}\" not found", kind.qualified());
        Self::new(404, "NotFound", message).about(kind, name)
    }

    /// 404: nothing is served under this path.
    pub fn no_such_path() -> ApiError {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409: there is such an object already.
    pub fn already_exists(kind: Kind, name: &str) -> ApiError {
        let message = format!("{} \"{name}\" already exists", kind.qualified());
        Self::new(409, "AlreadyExists", message).about(kind, name)
    }

    /// 409: the object is not in the state that the caller expects.
    pub fn conflict(kind: Kind, name: &str, why: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified());
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// 403: this object may not be changed that way.
    pub fn forbidden(kind: Kind, name: &str, why: &str) -> ApiError {
        let message = format!("{} \"{name}\" is forbidden: {why}", kind.qualified());
        Self::new(403, "Forbidden", message).about(kind, name)
    }

    /// 422: the object's fields are wrong, as `causes` say.
    pub fn invalid(kind: Kind, name: &str, causes: Vec<Cause>) -> ApiError {
        let texts: Vec<String> =
            causes
                .iter()
                .map(|c| {
                    if c.field.is_empty() { c.message.clone() } else { format!("{}: {}", c.field, c.message) }
                })
                .collect();
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let error = Self::new(422, "Invalid", format!("{} \"{name}\" is invalid: {all}", kind.typed()))
            .about(kind, name);
        ApiError { causes, ..error }
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        Self::new(400, "BadRequest", message)
    }

    /// 405: this kind does not know that verb.
    pub fn method_not_allowed() -> ApiError {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 500: it should have worked.
    pub fn internal(message: impl std::fmt::Display) -> ApiError {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if self.object.is_some() || !self.causes.is_empty() {
            status["details"] = self.details();
        }
        status
    }

    fn details(&self) -> Value {
        let mut details = json!({});
        if let Some((kind, name)) = &self.object {
            details["name"] = json!(name);
            if !kind.group().name.is_empty() {
                details["group"] = json!(kind.group().name);
            }
            // As the API server does: the type of an object that is invalid, the resource of one that is missing.
            details["kind"] = json!(if self.reason == "Invalid" { kind.as_str() } else { kind.plural() });
        }
        if !self.causes.is_empty() {
            let cause = |c: &Cause| json!({"reason": c.reason, "message": c.message, "field": c.field});
            details["causes"] = self.causes.iter().map(cause).collect();
        }
        details
    }
}

impl From<Gone> for ApiError {
    fn from(gone: Gone) -> ApiError {
        ApiError::new(410, "Expired", gone.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (code, self.status().to_string()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl ApiError {
    /// 422 with what the manifest checks found.
    pub fn from_manifest(kind: Kind, name: &str, errors: &[ManifestError]) -> ApiError {
        let cause = |error: &ManifestError| {
            let message = match &error.hint {
                Some(hint) => format!("{} ({hint})", error.reason),
                None => error.reason.clone(),
            };
            Cause { reason: error.cause.as_str(), field: error.field.clone().unwrap_or_default(), message }
        };
        Self::invalid(kind, name, errors.iter().map(cause).collect())
    }
}
