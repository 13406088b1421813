//! The columns of CertificateSigningRequests, as kubernetes/pkg/printers has them.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use serde_json::{Value, json};

use super::duration::human;
use super::{Column, age};

pub const COLUMNS: &[Column] = &[
    ("Name", "string", "name", 0),
    ("Age", "string", "", 0),
    ("SignerName", "string", "", 0),
    ("Requestor", "string", "", 0),
    ("RequestedDuration", "string", "", 0),
    ("Condition", "string", "", 0),
];

/// The cells of a row.
pub fn cells(request: &CertificateSigningRequest) -> Vec<Value> {
    let spec = &request.spec;
    let seconds = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    vec![
        json!(request.metadata.name),
        json!(age(request.metadata.creation_timestamp.as_ref())),
        json!(spec.signer_name),
        json!(spec.username),
        json!(seconds.map_or_else(|| "<none>".to_owned(), |seconds| human(seconds.cast_signed()))),
        json!(condition(request)),
    ]
}

fn condition(request: &CertificateSigningRequest) -> String {
    let status = request.status.clone().unwrap_or_default();
    let has = |kind: &str| status.conditions.iter().flatten().any(|c| c.type_ == kind);
    let mut words: Vec<&str> = ["Denied", "Approved"].into_iter().filter(|kind| has(kind)).take(1).collect();
    if words.is_empty() {
        words.push("Pending");
    }
    if has("Failed") {
        words.push("Failed");
    }
    if status.certificate.is_some_and(|certificate| !certificate.0.is_empty()) {
        words.push("Issued");
    }
    words.join(",")
}
