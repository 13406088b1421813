//! The little of `/openapi/v3` that kubectl looks at: which paths take the `fieldValidation` parameter, so that it leaves the
//! checking of manifests to the server instead of downloading a schema.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::discovery::verbs;
use super::read::json_response;
use crate::store::{Group, Kind};

/// `/openapi/v3`: the documents there are.
pub fn index() -> Response {
    let mut paths = Map::new();
    for group in std::iter::once(Group::CORE).chain(Group::NAMED) {
        let path = group.path();
        let url = format!("/openapi/v3{path}?hash={}", env!("CARGO_PKG_VERSION"));
        paths.insert(path.trim_start_matches('/').to_owned(), json!({"serverRelativeURL": url}));
    }
    json_response(StatusCode::OK, json!({"paths": paths}).to_string())
}

/// The document of one group.
pub fn document(group: Group) -> Response {
    let mut paths = Map::new();
    let writable = |kind: &Kind| kind.group() == group && verbs(*kind).contains(&"create");
    for kind in Kind::ALL.into_iter().filter(writable) {
        let namespace = if kind.namespaced() { "namespaces/{namespace}/" } else { "" };
        let collection = format!("{}/{namespace}{}", group.path(), kind.plural());
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({
                "get": operation(kind, "get", &[]), "put": operation(kind, "put", &CHANGE),
                "patch": operation(kind, "patch", &CHANGE), "delete": operation(kind, "delete", &["dryRun"]),
            }),
        );
        paths.insert(
            collection,
            json!({"get": operation(kind, "list", &[]), "post": operation(kind, "post", &CHANGE)}),
        );
    }
    let body = json!({"openapi": "3.0.0", "info": {"title": "Berth", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths, "components": {"schemas": {}}});
    json_response(StatusCode::OK, body.to_string())
}

const CHANGE: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];

fn operation(kind: Kind, action: &str, parameters: &[&str]) -> Value {
    let parameter =
        |name: &&str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let group = kind.group();
    json!({
        "parameters": parameters.iter().map(parameter).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group.name, "version": group.version, "kind": kind.as_str()},
    })
}
