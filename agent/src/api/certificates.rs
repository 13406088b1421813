//! CertificateSigningRequests: how a client gets the certificate with which it may use this API (`berth kubeconfig`,
//! `kubectl certificate approve`). They are kept in memory: what they are for is over in a moment.

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_reconciler::status::time;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use jiff::{Timestamp, ToSpan};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::caller::Caller;
use super::params::Params;
use super::patch::{self, PatchType};
use super::read::{self, Format, json_response};
use super::write::{self, Target};
use super::{Api, ApiError, Cause};
use crate::hub::BOOTSTRAPPERS;
use crate::pki::{Authority, NODE_CLIENT, NODE_SERVING, Refused, Request, SIGNER};
use crate::store::Kind;

const KIND: Kind = Kind::CertificateSigningRequest;
/// Requests that are kept. Each is a few kilobytes.
const MOST: usize = 100;
/// How long one is kept that has been answered, and how long one that has not: as the controller manager does.
const ANSWERED_HOURS: i64 = 1;
const PENDING_HOURS: i64 = 24;

fn authority(api: &Api) -> Result<&Authority, ApiError> {
    api.authority.as_deref().ok_or_else(|| {
        let why = "this node signs no certificates, since its API is not served over TLS: set apiAddress \
                   (berth agent --api-address)";
        ApiError::new(503, "ServiceUnavailable", why)
    })
}

/// `POST` to the collection.
pub async fn create(
    api: &Api,
    caller: &Caller,
    params: &Params,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    authority(api)?;
    let dry_run = params.dry_run()?;
    let mut object = write::read_object(headers, body).await?;
    let name = write::claim_new(KIND, &mut object)?;
    let mut request = typed(&name, object)?;
    let checked = check(&name, &request)?;
    restrict(caller, &name, &request, &checked)?;
    request.spec.username = Some(caller.name().to_owned());
    request.spec.groups = Some(caller.groups());
    (request.spec.uid, request.spec.extra, request.status) = (None, None, None);
    let metadata = &mut request.metadata;
    metadata.uid = Some(uuid::Uuid::new_v4().to_string());
    metadata.creation_timestamp = Some(now());
    if let Some(why) = approved_at_once(api, caller, &request, &checked) {
        let decision = condition("Approved", "AutoApproved", why);
        request.status.get_or_insert_default().conditions = Some(vec![decision]);
        sign(authority(api)?, &name, &mut request);
    }
    let _guard = api.writes.lock().await;
    let target = Target { kind: KIND, namespace: String::new(), name };
    if target.find(api).is_ok() {
        return Err(ApiError::already_exists(KIND, &target.name));
    }
    if dry_run {
        return Ok(json_response(StatusCode::CREATED, json!(request).to_string()));
    }
    forget_old(api)?;
    api.store.put(KIND, "", &target.name, &request);
    Ok(json_response(StatusCode::CREATED, target.find(api)?.json.clone()))
}

/// A node asks for certificates of its own only (NodeRestriction).
fn restrict(
    caller: &Caller,
    name: &str,
    request: &CertificateSigningRequest,
    checked: &Request,
) -> Result<(), ApiError> {
    let Some(node) = caller.node() else { return Ok(()) };
    if request.spec.signer_name == SIGNER || checked.name() == caller.name() {
        return Ok(());
    }
    let why = format!(
        "can only create a node CSR with CN={}, not CN={}: node {node:?}",
        caller.name(),
        checked.name()
    );
    Err(ApiError::forbidden(KIND, name, &why))
}

/// Why a request is good without anybody's word; none if somebody has to look at it. A machine with a bootstrap token becomes
/// a node, a node has its certificate renewed, and serves under the addresses that its Node object has.
fn approved_at_once(
    api: &Api,
    caller: &Caller,
    request: &CertificateSigningRequest,
    checked: &Request,
) -> Option<&'static str> {
    let own = checked.name() == caller.name();
    match request.spec.signer_name.as_str() {
        NODE_CLIENT if caller.groups().iter().any(|group| group == BOOTSTRAPPERS) => {
            Some("Auto approving kubelet client certificate after SubjectAccessReview.")
        }
        NODE_CLIENT if own => {
            Some("Auto approving self kubelet client certificate after SubjectAccessReview.")
        }
        NODE_SERVING if own => {
            let node = api.store.get(Kind::Node, "", caller.node()?)?.value();
            let addresses = node["status"]["addresses"].as_array()?;
            let known = |host: &String| addresses.iter().any(|address| address["address"] == host.as_str());
            checked
                .hosts()
                .iter()
                .all(known)
                .then_some("The names and addresses are those of the Node object.")
        }
        _ => None,
    }
}

/// Removes requests that nobody waits for any more.
fn forget_old(api: &Api) -> Result<(), ApiError> {
    let (objects, _) = api.store.list(KIND, None);
    let mut left = objects.len();
    for object in objects {
        let Ok(request) = serde_json::from_slice::<CertificateSigningRequest>(&object.json) else { continue };
        let hours = if answered(&request) { ANSWERED_HOURS } else { PENDING_HOURS };
        let made = request.metadata.creation_timestamp.map(|time| time.0);
        if made.and_then(|made| made.checked_add(hours.hours()).ok()).is_none_or(|end| end < Timestamp::now())
        {
            api.store.delete(KIND, "", &object.name);
            left -= 1;
        }
    }
    if left >= MOST {
        let why = format!("there are {left} certificate signing requests; delete some");
        return Err(ApiError::new(429, "TooManyRequests", why));
    }
    Ok(())
}

/// The subresource `approval`.
pub async fn approval(
    api: &Api,
    target: &Target,
    params: &Params,
    parts: &Parts,
    body: Body,
) -> Result<Response, ApiError> {
    match parts.method {
        Method::GET => read::get(api, target, Format::of(&parts.headers, params)),
        Method::PUT => {
            let mut object = write::read_object(&parts.headers, body).await?;
            target.claim(&mut object)?;
            approve(api, target, params, |_| Ok(object)).await
        }
        Method::PATCH => {
            let kind = PatchType::of(write::content_type(&parts.headers))?;
            let patch = patch::parse(kind, &write::read_body(body).await?)?;
            approve(api, target, params, |current| {
                let mut object = patch::apply(kind, current, patch)?;
                target.claim(&mut object)?;
                Ok(object)
            })
            .await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// Takes the conditions of the changed object; a request that is approved is signed.
async fn approve(
    api: &Api,
    target: &Target,
    params: &Params,
    change: impl FnOnce(Value) -> Result<Value, ApiError>,
) -> Result<Response, ApiError> {
    let authority = authority(api)?;
    let dry_run = params.dry_run()?;
    let _guard = api.writes.lock().await;
    let current = target.find(api)?;
    let object = change(current.value())?;
    write::check_version(target, &current, &object["metadata"])?;
    let conditions = typed(&target.name, object)?.status.unwrap_or_default().conditions.unwrap_or_default();
    let mut request = typed(&target.name, current.value())?;
    let status = request.status.get_or_insert_default();
    status.conditions = Some(decided(&target.name, status, conditions)?);
    if is(&request, "Approved") && !is(&request, "Denied") {
        sign(authority, &target.name, &mut request);
    }
    if dry_run {
        return Ok(json_response(StatusCode::OK, json!(request).to_string()));
    }
    api.store.put(KIND, "", &target.name, &request);
    Ok(json_response(StatusCode::OK, target.find(api)?.json.clone()))
}

fn now() -> Time {
    time(Timestamp::now())
}

fn typed(name: &str, object: Value) -> Result<CertificateSigningRequest, ApiError> {
    const FIELDS: [&str; 8] =
        ["expirationSeconds", "extra", "groups", "request", "signerName", "uid", "usages", "username"];
    let unknown =
        object["spec"].as_object().into_iter().flatten().find(|(key, _)| !FIELDS.contains(&key.as_str()));
    if let Some((key, _)) = unknown {
        return Err(invalid(name, "FieldUnknown", &format!("spec.{key}"), "unknown field"));
    }
    serde_json::from_value(object).map_err(|e| ApiError::bad_request(format!("no {KIND}: {e}")))
}

fn invalid(name: &str, reason: &'static str, field: &str, message: &str) -> ApiError {
    ApiError::invalid(
        KIND,
        name,
        vec![Cause { reason, field: field.to_owned(), message: message.to_owned() }],
    )
}

fn check(name: &str, request: &CertificateSigningRequest) -> Result<Request, ApiError> {
    let spec = &request.spec;
    let usages = spec.usages.clone().unwrap_or_default();
    Request::check(&spec.signer_name, &STANDARD.encode(&spec.request.0), &usages, spec.expiration_seconds)
        .map_err(|Refused { field, why }| {
            invalid(name, "FieldValueInvalid", field, &format!("Invalid value: {why}"))
        })
}

fn is(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == kind)
}

fn answered(request: &CertificateSigningRequest) -> bool {
    is(request, "Approved") || is(request, "Denied") || is(request, "Failed")
}

/// The conditions that a caller may set: decisions are not taken back, and times are the node's.
fn decided(
    name: &str,
    status: &CertificateSigningRequestStatus,
    mut wanted: Vec<CertificateSigningRequestCondition>,
) -> Result<Vec<CertificateSigningRequestCondition>, ApiError> {
    const FIELD: &str = "status.conditions";
    let has = |conditions: &[CertificateSigningRequestCondition], kind: &str| {
        conditions.iter().any(|c| c.type_ == kind)
    };
    for old in status.conditions.iter().flatten() {
        if !has(&wanted, &old.type_) {
            let why = format!("Forbidden: updates may not remove a condition of type {:?}", old.type_);
            return Err(invalid(name, "FieldValueForbidden", FIELD, &why));
        }
    }
    if has(&wanted, "Approved") && has(&wanted, "Denied") {
        let why = "Invalid value: Approved and Denied conditions are mutually exclusive";
        return Err(invalid(name, "FieldValueInvalid", FIELD, why));
    }
    for condition in &mut wanted {
        if !["Approved", "Denied", "Failed"].contains(&condition.type_.as_str()) || condition.status != "True"
        {
            let why = "Invalid value: must be Approved, Denied or Failed with the status \"True\"";
            return Err(invalid(name, "FieldValueInvalid", FIELD, why));
        }
        let old = status.conditions.iter().flatten().find(|old| old.type_ == condition.type_);
        condition.last_update_time = Some(now());
        condition.last_transition_time =
            old.and_then(|old| old.last_transition_time.clone()).or_else(|| Some(now()));
    }
    Ok(wanted)
}

fn sign(authority: &Authority, name: &str, request: &mut CertificateSigningRequest) {
    if request.status.as_ref().is_some_and(|status| status.certificate.is_some()) {
        return;
    }
    let signed =
        check(name, request).map_err(|error| error.message).and_then(|checked| authority.sign(checked));
    let status = request.status.get_or_insert_default();
    match signed {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(message) => {
            let failed = condition("Failed", "SignerValidationFailure", &message);
            status.conditions.get_or_insert_default().push(failed);
        }
    }
}

fn condition(kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now()),
        last_transition_time: Some(now()),
    }
}
