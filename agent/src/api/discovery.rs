//! What this server serves, told in the forms that kubectl and client libraries ask for.

use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::read::json_response;
use super::{metrics, review};
use crate::store::{Group, Kind};

/// Version of the Kubernetes API whose objects are understood.
const KUBERNETES: &str = "v1.36.0";

/// `/version`.
pub fn version() -> Response {
    let body = json!({
        "major": "1", "minor": "36", "gitVersion": format!("{KUBERNETES}+berth-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    });
    json_response(StatusCode::OK, body.to_string())
}

/// The machine's architecture by its Go name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/api`.
pub fn api(headers: &HeaderMap) -> Response {
    if let Some(version) = aggregated(headers) {
        return aggregated_response(version, &[described_group(Group::CORE)]);
    }
    let body = json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]});
    json_response(StatusCode::OK, body.to_string())
}

/// `/apis`: the groups beside the core one.
pub fn apis(headers: &HeaderMap) -> Response {
    match aggregated(headers) {
        Some(version) => {
            let groups: Vec<Value> = named().map(described_group).collect();
            aggregated_response(version, &groups)
        }
        None => {
            let groups: Vec<Value> = named().map(listed_group).collect();
            let body = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
            json_response(StatusCode::OK, body.to_string())
        }
    }
}

/// `/apis/<group>`.
pub fn group(group: Group) -> Response {
    let mut body = listed_group(group);
    body["kind"] = json!("APIGroup");
    body["apiVersion"] = json!("v1");
    json_response(StatusCode::OK, body.to_string())
}

/// Every group but the core one.
pub(super) fn named() -> impl Iterator<Item = Group> {
    Group::NAMED.into_iter().chain(review::GROUPS).chain([metrics::GROUP])
}

/// The questions of a group.
fn questions(group: Group) -> impl Iterator<Item = review::Question> {
    review::QUESTIONS.into_iter().filter(move |question| question.0 == group)
}

/// One group in the plain form.
fn listed_group(group: Group) -> Value {
    let version = json!({"groupVersion": group.to_string(), "version": group.version});
    json!({"name": group.name, "versions": [version], "preferredVersion": version})
}

/// One group in the aggregated form.
fn described_group(group: Group) -> Value {
    let mut resources: Vec<Value> = kinds(group).map(described).collect();
    resources.extend(questions(group).map(|(_, plural, kind, namespaced)| {
        json!({"resource": plural, "singularResource": kind.to_lowercase(), "verbs": ["create"],
            "responseKind": {"group": group.name, "version": group.version, "kind": kind},
            "scope": if namespaced { "Namespaced" } else { "Cluster" }})
    }));
    if group == metrics::GROUP {
        resources.extend(metrics::RESOURCES.map(|(plural, name, about)| {
            json!({"resource": plural, "singularResource": "", "verbs": ["get", "list"],
                "responseKind": {"group": group.name, "version": group.version, "kind": name},
                "scope": if about.namespaced() { "Namespaced" } else { "Cluster" }})
        }));
    }
    json!({"metadata": {"name": group.name, "creationTimestamp": null},
        "versions": [{"version": group.version, "resources": resources, "freshness": "Current"}]})
}

fn kinds(group: Group) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(move |kind| kind.group() == group)
}

/// `/api/v1`, `/apis/<group>/<version>`.
pub fn resources(group: Group) -> Response {
    let mut resources = Vec::new();
    for kind in kinds(group) {
        resources.push(json!({
            "name": kind.plural(), "singularName": kind.as_str().to_lowercase(), "namespaced": kind.namespaced(),
            "kind": kind.as_str(), "verbs": verbs(kind), "shortNames": kind.short_names(),
            "categories": categories(kind),
        }));
        for (sub, sub_kind, verbs) in subresources(kind) {
            let mut resource = json!({"name": format!("{}/{sub}", kind.plural()), "singularName": "",
                "namespaced": kind.namespaced(), "kind": sub_kind, "verbs": verbs});
            if let Some(other) = foreign(sub_kind) {
                (resource["group"], resource["version"]) = (json!(other.name), json!(other.version));
            }
            resources.push(resource);
        }
    }
    resources.extend(questions(group).map(|(_, plural, kind, namespaced)| {
        json!({"name": plural, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind, "verbs": ["create"]})
    }));
    if group == metrics::GROUP {
        resources.extend(metrics::RESOURCES.map(|(plural, name, about)| {
            json!({"name": plural, "singularName": "", "namespaced": about.namespaced(), "kind": name,
                "verbs": ["get", "list"]})
        }));
    }
    let body = json!({"kind": "APIResourceList", "groupVersion": group.to_string(), "resources": resources});
    json_response(StatusCode::OK, body.to_string())
}

/// One kind in the aggregated form.
fn described(kind: Kind) -> Value {
    let group = kind.group();
    let group_version_kind =
        |kind: &str| json!({"group": group.name, "version": group.version, "kind": kind});
    let subresources: Vec<Value> = subresources(kind)
        .iter()
        .map(|(sub, sub_kind, verbs)| {
            let mut kind = group_version_kind(sub_kind);
            if let Some(other) = foreign(sub_kind) {
                (kind["group"], kind["version"]) = (json!(other.name), json!(other.version));
            }
            json!({"subresource": sub, "responseKind": kind, "verbs": verbs})
        })
        .collect();
    json!({
        "resource": kind.plural(), "responseKind": group_version_kind(kind.as_str()),
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.as_str().to_lowercase(), "verbs": verbs(kind),
        "shortNames": kind.short_names(), "categories": categories(kind), "subresources": subresources,
    })
}

pub(super) fn verbs(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Pod
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::PersistentVolume
        | Kind::PersistentVolumeClaim
        | Kind::Service
        | Kind::Namespace
        | Kind::NetworkPolicy
        | Kind::Node
        | Kind::Lease
        | Kind::ServiceAccount
        | Kind::RuntimeClass
        | Kind::PriorityClass
        | Kind::Event => &["create", "delete", "get", "list", "patch", "update", "watch"],
        Kind::CertificateSigningRequest => &["create", "delete", "get", "list", "watch"],
        Kind::Endpoints | Kind::EndpointSlice => &["get", "list", "watch"],
    }
}

/// The group of a subresource's kind, if it is not the object's.
fn foreign(kind: &str) -> Option<Group> {
    match kind {
        // By this kubectl drain knows that it can evict.
        "Eviction" => Some(Group { name: "policy", version: "v1" }),
        "TokenRequest" => Some(review::GROUPS[0]),
        _ => None,
    }
}

fn categories(kind: Kind) -> &'static [&'static str] {
    if matches!(kind, Kind::Pod | Kind::Service) { &["all"] } else { &[] }
}

type Subresource = (&'static str, &'static str, &'static [&'static str]);

fn subresources(kind: Kind) -> &'static [Subresource] {
    match kind {
        Kind::Pod => &[
            ("attach", "PodAttachOptions", &["create", "get"]),
            ("binding", "Binding", &["create"]),
            ("ephemeralcontainers", "Pod", &["get", "patch", "update"]),
            ("eviction", "Eviction", &["create"]),
            ("exec", "PodExecOptions", &["create", "get"]),
            ("log", "Pod", &["get"]),
            ("pause", "Pod", &["create"]),
            ("portforward", "PodPortForwardOptions", &["create", "get"]),
            ("resize", "Pod", &["get", "patch", "update"]),
            ("resume", "Pod", &["create"]),
            ("status", "Pod", &["get", "patch", "update"]),
        ],
        Kind::Node => &[("status", "Node", &["get", "patch", "update"])],
        Kind::ServiceAccount => &[("token", "TokenRequest", &["create"])],
        Kind::CertificateSigningRequest => {
            &[("approval", "CertificateSigningRequest", &["get", "patch", "update"])]
        }
        _ => &[],
    }
}

/// The version of aggregated discovery that the caller prefers, if it wants that form.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    accept.split(',').filter(|one| one.contains("as=APIGroupDiscoveryList")).find_map(|one| {
        let version = one.split(';').find_map(|part| part.trim().strip_prefix("v="))?;
        match version {
            "v2" => Some("v2"),
            "v2beta1" => Some("v2beta1"),
            _ => None,
        }
    })
}

fn aggregated_response(version: &'static str, items: &[Value]) -> Response {
    let body = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items});
    let mut response = json_response(StatusCode::OK, body.to_string());
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
