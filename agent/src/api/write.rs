//! Changing objects: what is asked is checked here as far as it concerns names and versions, and done by the backend.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde_json::{Value, json};

use super::caller::Caller;
use super::params::Params;
use super::patch::{self, PatchType};
use super::read::json_response;
use super::{Api, ApiError, Part, discovery, protobuf, status};
use crate::hub::{self, Deleted, How};
use crate::store::{Kind, Object};

/// Bytes of a request's body that are accepted, as many as the API server takes.
const MAX_BODY: usize = 3 << 20;
/// Bytes that are read, and thrown away, of a body that is too large: who still writes when the connection is closed never
/// sees the answer.
const MAX_READ: usize = 8 * MAX_BODY;

/// The object that a path names.
pub use crate::hub::Key as Target;

impl Target {
    /// The object as it is now.
    pub(super) fn find(&self, api: &Api) -> Result<Arc<Object>, ApiError> {
        api.store
            .get(self.kind, &self.namespace, &self.name)
            .ok_or_else(|| ApiError::not_found(self.kind, &self.name))
    }

    /// Refuses what discovery does not offer: what the node alone writes, for instance.
    fn must_offer(&self, verb: &str) -> Result<(), ApiError> {
        if discovery::verbs(self.kind).contains(&verb) { Ok(()) } else { Err(ApiError::method_not_allowed()) }
    }

    /// Makes the path's name and namespace the object's, which must not have others.
    pub fn claim(&self, object: &mut Value) -> Result<(), ApiError> {
        check_type(self.kind, object)?;
        let metadata = metadata(object)?;
        match metadata.get("name").map(|name| name.as_str()) {
            None => metadata["name"] = json!(self.name),
            Some(Some(name)) if name == self.name => {}
            Some(_) => {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({}) does not match the name on the URL ({})",
                    metadata["name"].as_str().unwrap_or("no text"),
                    self.name
                )));
            }
        }
        claim_namespace(self.kind, metadata, &self.namespace)
    }
}

/// `POST` to a collection.
pub async fn create(
    api: &Api,
    caller: &Caller,
    kind: Kind,
    namespace: Option<String>,
    params: &Params,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let namespace = if kind.namespaced() { namespace } else { Some(String::new()) };
    let Some(namespace) = namespace else { return Err(ApiError::method_not_allowed()) };
    let mut target = Target { kind, namespace, name: String::new() };
    target.must_offer("create")?;
    let how = how(params, Part::Whole)?;
    let mut object = read_object(headers, body).await?;
    target.name = claim_new(kind, &mut object)?;
    claim_namespace(kind, metadata(&mut object)?, &target.namespace)?;
    let _guard = api.writes.lock().await;
    if target.find(api).is_ok() {
        return Err(ApiError::already_exists(kind, &target.name));
    }
    restrict(api, caller, &target, how, None, Some(&object))?;
    let created = store_new(api, &target, object, how).await?;
    Ok(json_response(StatusCode::CREATED, created.to_string()))
}

/// Refuses what a node may not write, if the caller is one.
fn restrict(
    api: &Api,
    caller: &Caller,
    target: &Target,
    how: How,
    old: Option<&Arc<Object>>,
    new: Option<&Value>,
) -> Result<(), ApiError> {
    let Some(node) = caller.node() else { return Ok(()) };
    let old = old.map(|old| old.value());
    api.hub
        .restrict(node, target, how.status, old.as_ref(), new)
        .map_err(|why| ApiError::forbidden(target.kind, &target.name, &why))
}

/// How the parameters want a part of an object changed.
fn how(params: &Params, part: Part) -> Result<How, ApiError> {
    let strict = params.get("fieldValidation") == Some("Strict");
    Ok(How { dry_run: params.dry_run()?, strict, status: part == Part::Status })
}

/// Makes sure that a new object is of the path's kind and has a name; gives that.
pub fn claim_new(kind: Kind, object: &mut Value) -> Result<String, ApiError> {
    check_type(kind, object)?;
    name_for(kind, metadata(object)?)
}

async fn store_new(api: &Api, target: &Target, object: Value, how: How) -> Result<Value, ApiError> {
    let dry_run = how.dry_run;
    match target.kind {
        kind if hub::keeps(kind) => api.hub.create(target, object, how),
        Kind::Pod if api.hub.takes(&object) => api.hub.create_pod(target, &object, how),
        Kind::Pod => {
            let mut object = object;
            api.hub.priority(&mut object, false).map_err(ApiError::bad_request)?;
            let pod = api.backend.create_pod(object, dry_run).await?;
            Ok(newest(api, target, dry_run, &json!(pod)))
        }
        _ => {
            let object = api.backend.put_config(target.kind, object, true, dry_run).await?;
            Ok(newest(api, target, dry_run, &object))
        }
    }
}

/// What the store has of an object after a change, for it has the version; what the backend gave if it has not.
fn newest(api: &Api, target: &Target, dry_run: bool, given: &Value) -> Value {
    let stored = if dry_run { None } else { target.find(api).ok() };
    let same = |object: &Arc<Object>| object.value()["metadata"]["uid"] == given["metadata"]["uid"];
    stored.filter(same).map_or_else(|| given.clone(), |object| object.value())
}

/// `PUT` to an object, or to a part of a pod.
pub async fn replace(
    api: &Api,
    caller: &Caller,
    target: &Target,
    part: Part,
    params: &Params,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    target.must_offer("update")?;
    let how = how(params, part)?;
    let mut object = read_object(headers, body).await?;
    target.claim(&mut object)?;
    let _guard = api.writes.lock().await;
    let current = target.find(api)?;
    restrict(api, caller, target, how, Some(&current), Some(&object))?;
    let updated = store_next(api, target, part, &current, object, how).await?;
    Ok(json_response(StatusCode::OK, updated.to_string()))
}

/// `PATCH` of an object, or of a part of a pod.
pub async fn patch(
    api: &Api,
    caller: &Caller,
    target: &Target,
    part: Part,
    params: &Params,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    target.must_offer("patch")?;
    let how = how(params, part)?;
    let kind = PatchType::of(content_type(headers))?;
    let bytes = read_body(body).await?;
    let patch = patch::parse(kind, &bytes)?;
    let _guard = api.writes.lock().await;
    let current = match (target.find(api), kind) {
        (Ok(current), _) => current,
        (Err(_), PatchType::Apply) if part == Part::Whole => {
            let mut object = patch;
            target.claim(&mut object)?;
            restrict(api, caller, target, how, None, Some(&object))?;
            let created = store_new(api, target, object, how).await?;
            return Ok(json_response(StatusCode::CREATED, created.to_string()));
        }
        (Err(error), _) => return Err(error),
    };
    let mut object = patch::apply(kind, current.value(), patch)?;
    target.claim(&mut object)?;
    restrict(api, caller, target, how, Some(&current), Some(&object))?;
    let updated = store_next(api, target, part, &current, object, how).await?;
    Ok(json_response(StatusCode::OK, updated.to_string()))
}

async fn store_next(
    api: &Api,
    target: &Target,
    part: Part,
    current: &Object,
    object: Value,
    how: How,
) -> Result<Value, ApiError> {
    let dry_run = how.dry_run;
    let old = current.value();
    let metadata = &object["metadata"];
    check_version(target, current, metadata)?;
    if let (Some(asked), Some(has)) = (metadata["uid"].as_str(), old["metadata"]["uid"].as_str())
        && asked != has
    {
        return Err(uid_conflict(target, asked, has));
    }
    if object == old {
        return Ok(old);
    }
    let updated = match target.kind {
        kind if hub::keeps(kind) => api.hub.update(target, current, object, how)?,
        Kind::Pod if api.hub.has(current) => api.hub.update_pod(target, part, current, &object, how)?,
        Kind::Pod if part == Part::Status => {
            let refused = |causes| ApiError::invalid(Kind::Pod, &target.name, causes);
            let conditions = status::conditions(&old, &object).map_err(refused)?;
            json!(api.backend.set_conditions(&target.namespace, &target.name, conditions, dry_run).await?)
        }
        Kind::Pod => {
            json!(api.backend.update_pod(&target.namespace, &target.name, part, object, dry_run).await?)
        }
        _ => api.backend.put_config(target.kind, object, false, dry_run).await?,
    };
    let mut updated = newest(api, target, dry_run, &updated);
    if dry_run {
        // Nothing has changed: `kubectl diff` would show another version as a difference.
        updated["metadata"]["resourceVersion"] = json!(current.version.to_string());
    }
    Ok(updated)
}

/// Reads a body of a kind that is not stored; it need not say which it is.
async fn read_a(kind: &str, headers: &HeaderMap, body: Body) -> Result<Value, ApiError> {
    let object = read_object(headers, body).await?;
    match object["kind"].as_str() {
        Some(other) if other != kind => {
            Err(ApiError::bad_request(format!("the object provided is no {kind}")))
        }
        _ => Ok(object),
    }
}

/// `POST` to a pod's `eviction`: deletes it as the eviction's options say.
pub async fn evict(
    api: &Api,
    caller: &Caller,
    target: &Target,
    params: &Params,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let eviction = read_a("Eviction", headers, body).await?;
    let options = eviction.get("deleteOptions").filter(|options| options.is_object());
    let options = options.map_or_else(String::new, Value::to_string);
    delete(api, caller, target, params, &HeaderMap::new(), options.into()).await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(json_response(StatusCode::CREATED, status.to_string()))
}

/// `POST` to a service account's `token`.
pub async fn token(
    api: &Api,
    caller: &Caller,
    target: &Target,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request = read_a("TokenRequest", headers, body).await?;
    if let Some(node) = caller.node() {
        let refused = api.hub.restrict_token(node, target, &request);
        refused.map_err(|why| ApiError::forbidden(target.kind, &target.name, &why))?;
    }
    let answer = api.hub.request_token(target, &request)?;
    Ok(json_response(StatusCode::CREATED, answer.to_string()))
}

/// `POST` to a pod's `binding`: gives it its node.
pub async fn bind(
    api: &Api,
    target: &Target,
    params: &Params,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let dry_run = params.dry_run()?;
    let binding = read_object(headers, body).await?;
    let _guard = api.writes.lock().await;
    let current = target.find(api)?;
    if let Some(pod) = api.hub.bind(target, &current, &binding, dry_run)? {
        api.backend.take_pod(pod).await?;
        api.hub.hand_over(target);
    }
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(json_response(StatusCode::CREATED, status.to_string()))
}

/// Refuses a change of an object that somebody else has changed since it was read.
pub fn check_version(target: &Target, current: &Object, metadata: &Value) -> Result<(), ApiError> {
    match metadata["resourceVersion"].as_str().filter(|version| !version.is_empty() && *version != "0") {
        Some(version) if version != current.version.to_string() => {
            let why =
                "the object has been modified; please apply your changes to the latest version and try again";
            Err(ApiError::conflict(target.kind, &target.name, why))
        }
        _ => Ok(()),
    }
}

/// `DELETE`, with options in the body or the query.
pub async fn delete(
    api: &Api,
    caller: &Caller,
    target: &Target,
    params: &Params,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    target.must_offer("delete")?;
    let bytes = read_body(body).await?;
    let options: DeleteOptions = if bytes.iter().all(u8::is_ascii_whitespace) {
        DeleteOptions::default()
    } else {
        let options = match content_type(headers) {
            protobuf::MEDIA_TYPE => serde_json::from_value(decoded(&bytes)?),
            _ => serde_json::from_slice(&bytes),
        };
        options.map_err(|e| ApiError::bad_request(format!("the body is no DeleteOptions: {e}")))?
    };
    let seconds: Option<i64> = match options.grace_period_seconds {
        Some(seconds) => Some(seconds),
        None => params.parse("gracePeriodSeconds")?,
    };
    // The API server takes a negative grace period for the shortest one that is not "at once".
    let grace = seconds.map(|seconds| u64::try_from(seconds).unwrap_or(1));
    let _guard = api.writes.lock().await;
    let dry_run = params.dry_run()? || options.dry_run.iter().flatten().any(|word| word == "All");
    let current = target.find(api)?;
    restrict(api, caller, target, How::default(), Some(&current), None)?;
    let value = current.value();
    let expected = options.preconditions.unwrap_or_default();
    let has = value["metadata"]["uid"].as_str().unwrap_or_default();
    if let Some(asked) = expected.uid.as_deref().filter(|asked| *asked != has) {
        return Err(uid_conflict(target, asked, has));
    }
    if let Some(asked) = expected.resource_version.filter(|asked| *asked != current.version.to_string()) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in object meta: {}",
            current.version
        );
        return Err(ApiError::conflict(target.kind, &target.name, &why));
    }
    if dry_run {
        return Ok(deleted(target, &current));
    }
    if api.hub.has(&current) {
        let (Deleted::Going(pod) | Deleted::Gone(pod)) = api.hub.delete_pod(target, &current, grace)?;
        return Ok(json_response(StatusCode::OK, pod.to_string()));
    }
    if target.kind == Kind::Pod {
        let pod = api.backend.delete_pod(&target.namespace, &target.name, grace, expected.uid).await?;
        let mut pod = newest(api, target, false, &json!(pod));
        if pod["metadata"]["resourceVersion"].is_null() {
            // It is gone already.
            pod["metadata"]["resourceVersion"] = json!(current.version.to_string());
        }
        return Ok(json_response(StatusCode::OK, pod.to_string()));
    }
    match target.kind {
        // Nobody but the API has them.
        Kind::CertificateSigningRequest => drop(api.store.delete(target.kind, "", &target.name)),
        kind if hub::keeps(kind) => api.hub.delete(target, &current)?,
        kind => api.backend.delete_config(kind, &target.namespace, &target.name).await?,
    }
    // An object that is still in use goes later; whoever asked can wait for that.
    if let Ok(going) = target.find(api) {
        return Ok(json_response(StatusCode::OK, going.json.clone()));
    }
    if hub::is_provided(&current) {
        api.hub.provide(&target.namespace);
    }
    Ok(deleted(target, &current))
}

/// What is said of an object that is gone: what it was last, for the kinds of which the API server says that (ReturnDeletedObject in
/// pkg/registry/core), else that it was deleted.
fn deleted(target: &Target, last: &Object) -> Response {
    let told =
        [Kind::Pod, Kind::Service, Kind::ServiceAccount, Kind::PersistentVolume, Kind::PersistentVolumeClaim];
    if told.contains(&target.kind) {
        return json_response(StatusCode::OK, last.json.clone());
    }
    let uid = &last.value()["metadata"]["uid"];
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {"name": target.name, "kind": target.kind.plural(), "uid": uid}});
    if !target.kind.group().name.is_empty() {
        status["details"]["group"] = json!(target.kind.group().name);
    }
    json_response(StatusCode::OK, status.to_string())
}

fn uid_conflict(target: &Target, asked: &str, has: &str) -> ApiError {
    let why = format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {has}");
    ApiError::conflict(target.kind, &target.name, &why)
}

/// The type of a request's body, without its parameters.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The body of a request.
pub async fn read_body(body: Body) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|e| ApiError::bad_request(format!("cannot read the body of the request: {e}")))?;
        length += chunk.len();
        if length <= MAX_BODY {
            bytes.extend_from_slice(&chunk);
        } else if length > MAX_READ {
            break;
        }
    }
    if length > MAX_BODY {
        let text = format!("the body of the request is too large, at most {MAX_BODY} bytes are taken");
        return Err(ApiError::new(413, "RequestEntityTooLarge", text));
    }
    Ok(bytes)
}

/// The object that a request brings.
pub async fn read_object(headers: &HeaderMap, body: Body) -> Result<Value, ApiError> {
    let bytes = read_body(body).await?;
    match content_type(headers) {
        "application/json" | "" => serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::bad_request(format!("the body is no JSON: {e}"))),
        "application/yaml" => serde_yaml::from_slice(&bytes)
            .map_err(|e| ApiError::bad_request(format!("the body is no YAML: {e}"))),
        protobuf::MEDIA_TYPE => decoded(&bytes),
        other => {
            let taken = format!("application/json, application/yaml, {}", protobuf::MEDIA_TYPE);
            Err(patch::unsupported(other, &taken))
        }
    }
}

fn decoded(bytes: &[u8]) -> Result<Value, ApiError> {
    let refused = |error| ApiError::bad_request(format!("the body {error}"));
    protobuf::decode(bytes).map_err(refused)
}

/// Refuses an object of another kind than the path's; fills in what is missing.
fn check_type(kind: Kind, object: &Value) -> Result<(), ApiError> {
    let Some(fields) = object.as_object() else {
        return Err(ApiError::bad_request("the body is no object"));
    };
    let differs = |field: &str, want: &str| {
        fields
            .get(field)
            .filter(|has| !has.is_null() && has.as_str() != Some(""))
            .is_some_and(|has| has.as_str() != Some(want))
    };
    if differs("kind", kind.as_str()) || differs("apiVersion", &kind.group().to_string()) {
        return Err(ApiError::bad_request(format!(
            "the object provided is a {} of {}, but the path is for a {kind} of {}",
            fields.get("kind").unwrap_or(&Value::Null),
            fields.get("apiVersion").unwrap_or(&Value::Null),
            kind.group()
        )));
    }
    Ok(())
}

/// The object's metadata, made if it has none.
fn metadata(object: &mut Value) -> Result<&mut Value, ApiError> {
    if object.get("metadata").is_none_or(Value::is_null) {
        object["metadata"] = json!({});
    }
    let metadata = &mut object["metadata"];
    if metadata.is_object() { Ok(metadata) } else { Err(ApiError::bad_request("metadata is no object")) }
}

fn claim_namespace(kind: Kind, metadata: &mut Value, namespace: &str) -> Result<(), ApiError> {
    if !kind.namespaced() {
        // What is wrong with a namespace here, the check of the object says.
        return Ok(());
    }
    match metadata.get("namespace").map(|ns| ns.as_str().map(str::to_owned)) {
        None => metadata["namespace"] = json!(namespace),
        Some(Some(ns)) if ns == namespace => {}
        Some(_) => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    Ok(())
}

/// The name of a new object: its own, or one made from `generateName`.
fn name_for(kind: Kind, metadata: &mut Value) -> Result<String, ApiError> {
    // The letters that the API server makes names of: none that could spell a word.
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    if let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) {
        return Ok(name.to_owned());
    }
    let Some(prefix) = metadata["generateName"].as_str().filter(|prefix| !prefix.is_empty()) else {
        let cause = super::Cause {
            reason: "FieldValueRequired",
            field: "metadata.name".into(),
            message: "Required value: name or generateName is required".into(),
        };
        return Err(ApiError::invalid(kind, "", vec![cause]));
    };
    let random = uuid::Uuid::new_v4();
    let suffix =
        random.as_bytes().iter().take(5).map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]));
    let name: String = prefix.chars().chain(suffix).collect();
    metadata["name"] = json!(name);
    Ok(name)
}
