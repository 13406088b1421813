//! `metrics.k8s.io/v1beta1`: what pods and the node use now, for `kubectl top`. Elsewhere metrics-server answers this.

use axum::response::Response;
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::params::Params;
use super::read::json_response;
use super::selector::Filter;
use super::{Api, ApiError};
use crate::metrics::usage::{PodUsage, Usage};
use crate::store::{Group, Kind, Object};

/// The group. It has no objects in the store.
pub const GROUP: Group = Group { name: "metrics.k8s.io", version: "v1beta1" };

/// The kinds of the group: the name in URLs, the kind, the kind that it is about.
pub const RESOURCES: [(&str, &str, Kind); 2] =
    [("nodes", "NodeMetrics", Kind::Node), ("pods", "PodMetrics", Kind::Pod)];

/// Answers a path of the group; none if it is not one.
pub async fn answer(api: &Api, path: &str, parts: &Parts) -> Option<Result<Response, ApiError>> {
    let rest = path.strip_prefix(&GROUP.path())?.strip_prefix('/')?;
    let words: Vec<&str> = rest.split('/').collect();
    let (namespace, words) = match words.as_slice() {
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let (kind, name) = match (words, &namespace) {
        (["pods"], _) => (Kind::Pod, None),
        (["pods", name], Some(_)) => (Kind::Pod, Some(*name)),
        (["nodes"], None) => (Kind::Node, None),
        (["nodes", name], None) => (Kind::Node, Some(*name)),
        _ => return Some(Err(ApiError::no_such_path())),
    };
    if parts.method != Method::GET {
        return Some(Err(ApiError::method_not_allowed()));
    }
    Some(figures(api, kind, namespace, name, parts).await)
}

async fn figures(
    api: &Api,
    kind: Kind,
    namespace: Option<String>,
    name: Option<&str>,
    parts: &Parts,
) -> Result<Response, ApiError> {
    let params = Params::of(&parts.uri)?;
    let filter = Filter::of(kind, namespace, &params)?;
    let (mut objects, version) = api.store.list(kind, filter.namespace());
    objects.retain(|object| filter.matches(object) && name.is_none_or(|name| object.name == name));
    // What another one uses, it measures itself.
    objects.retain(|object| kind != Kind::Node || object.name == api.hub.own());
    if let (Some(name), []) = (name, objects.as_slice()) {
        return Err(ApiError::not_found(kind, name));
    }
    let usage = api.backend.usage().await;
    let mut items = objects.iter().filter_map(|object| item(kind, object, &usage));
    if let Some(name) = name {
        // One that does not run yet, or not any more.
        let item = items.next().ok_or_else(|| ApiError::not_found(kind, name))?;
        return Ok(json_response(StatusCode::OK, item.to_string()));
    }
    let items: Vec<Value> = items.collect();
    let list = format!("{}List", of(kind));
    let body = json!({"kind": list, "apiVersion": GROUP.to_string(),
        "metadata": {"resourceVersion": version.to_string()}, "items": items});
    Ok(json_response(StatusCode::OK, body.to_string()))
}

fn of(kind: Kind) -> &'static str {
    RESOURCES.iter().find(|(_, _, about)| *about == kind).map_or("", |(_, of, _)| of)
}

fn item(kind: Kind, object: &Object, usage: &Usage) -> Option<Value> {
    let amounts = |nanocores: u64, memory: u64| json!({"cpu": format!("{nanocores}n"), "memory": format!("{}Ki", memory / 1024)});
    let value = object.value();
    let metadata =
        json!({"name": object.name, "creationTimestamp": usage.at, "labels": value["metadata"]["labels"]});
    let mut item = json!({
        "kind": of(kind), "apiVersion": GROUP.to_string(), "metadata": metadata,
        "timestamp": usage.at, "window": format!("{:.3}s", usage.window.as_secs_f64()),
    });
    if kind == Kind::Node {
        item["usage"] = amounts(usage.nanocores, usage.memory);
        return Some(item);
    }
    let same = |pod: &&PodUsage| pod.namespace == object.namespace && pod.name == object.name;
    let pod = usage.pods.iter().find(same)?;
    item["metadata"]["namespace"] = json!(object.namespace);
    item["containers"] = pod
        .containers
        .iter()
        .map(|container| json!({"name": container.name, "usage": amounts(container.nanocores, container.memory)}))
        .collect();
    Some(item)
}
