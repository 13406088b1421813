//! One document: which kind it is, its reading, defaults and checks.

use std::rc::Rc;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::error::{Cause, ObjectRef};
use super::issue::{Issue, Issues};
use super::node::{Entry, FieldPath, Node, Value};
use super::rules;
use super::{Context, Object, defaults, read};

/// The kinds that manifests may have, each with its `apiVersion`.
const KINDS: [(&str, &str); 8] = [
    ("Pod", "v1"),
    ("ConfigMap", "v1"),
    ("Secret", "v1"),
    ("PersistentVolumeClaim", "v1"),
    ("PersistentVolume", "v1"),
    ("Service", "v1"),
    ("Namespace", "v1"),
    ("NetworkPolicy", "networking.k8s.io/v1"),
];

/// The `apiVersion` of a known kind.
fn api_version(kind: &str) -> Option<&'static str> {
    KINDS.iter().find(|(known, _)| *known == kind).map(|(_, version)| *version)
}

/// What one document gave.
pub(crate) struct Outcome {
    pub object: Option<Object>,
    pub issues: Vec<Issue>,
    pub about: ObjectRef,
}

/// Unrolls Lists: the objects of a document with the paths that lead to them.
pub(crate) fn unroll(document: &Rc<Node>, issues: &mut Vec<Issue>) -> Vec<(FieldPath, Rc<Node>)> {
    let kind = document.get("kind").and_then(|kind| kind.as_str()).unwrap_or_default();
    let list_of = kind.strip_suffix("List").filter(|of| of.is_empty() || api_version(of).is_some());
    let Some(of) = list_of else { return vec![(FieldPath::default(), document.clone())] };
    let items = match document.get("items").map(|items| &items.value) {
        Some(Value::Seq(items)) => items.clone(),
        None | Some(Value::Null) => Vec::new(),
        Some(_) => {
            let path = FieldPath::of("items");
            issues.push(Issue::new(path, Cause::FieldValueTypeInvalid, "must be a list".to_owned()));
            return Vec::new();
        }
    };
    if let Value::Map(entries) = &document.value {
        for entry in
            entries.iter().filter(|e| !["apiVersion", "kind", "metadata", "items"].contains(&e.key.as_str()))
        {
            let path = FieldPath::of(&entry.key);
            issues.push(Issue::new(path, Cause::FieldUnknown, "unknown field".to_owned()));
        }
    }
    let items = items.into_iter().enumerate();
    items.map(|(i, item)| (FieldPath::of("items").index(i), typed(item, of))).collect()
}

/// Items of a PodList need not say that they are pods.
fn typed(item: Rc<Node>, kind: &str) -> Rc<Node> {
    let Value::Map(entries) = &item.value else { return item };
    if kind.is_empty() || item.get("kind").is_some() {
        return item;
    }
    let mut entries = entries.clone();
    for (key, text) in [("apiVersion", api_version(kind).unwrap_or("v1")), ("kind", kind)] {
        if item.get(key).is_none() {
            let value = Node::new(Value::String(text.to_owned()), item.at);
            entries.push(Entry { key: key.to_owned(), key_at: item.at, value });
        }
    }
    Node::new(Value::Map(entries), item.at)
}

/// Reads and checks one object. `from_api` allows `generateName`.
pub(crate) fn check(node: &Node, context: &Context, from_api: bool) -> Outcome {
    let text = |path: &[&str]| {
        let mut at = Some(node);
        for key in path {
            at = at.and_then(|node| node.get(key)).map(Rc::as_ref);
        }
        at.and_then(Node::as_str).unwrap_or_default().to_owned()
    };
    let namespace =
        Some(text(&["metadata", "namespace"])).filter(|n| !n.is_empty()).unwrap_or("default".to_owned());
    let about = ObjectRef { kind: text(&["kind"]), namespace, name: text(&["metadata", "name"]) };
    let (object, issues) = match kind_of(node) {
        Err(issue) => (None, vec![*issue]),
        Ok("Pod") => pod(node, context, from_api),
        Ok("ConfigMap") => config_map(node, from_api),
        Ok("PersistentVolumeClaim") => claim(node, from_api),
        Ok("PersistentVolume") => volume(node, context, from_api),
        Ok("Service") => service(node, from_api),
        Ok("Namespace") => namespace_object(node, from_api),
        Ok("NetworkPolicy") => network_policy(node, from_api),
        Ok(_) => secret(node, from_api),
    };
    let object = if issues.is_empty() { object } else { None };
    Outcome { object, issues, about }
}

fn kind_of(node: &Node) -> Result<&'static str, Box<Issue>> {
    let issue = |field: &str, cause, reason: String, hint: Option<String>| {
        let path = if field.is_empty() { FieldPath::default() } else { FieldPath::of(field) };
        Err(Box::new(Issue { hint, ..Issue::new(path, cause, reason) }))
    };
    if !matches!(node.value, Value::Map(_)) {
        let reason = format!("a Kubernetes object must be a map, is {}", node.describe());
        return issue("", Cause::Unreadable, reason, None);
    }
    let field =
        |name: &str| node.get(name).map(|value| (value.as_str().unwrap_or_default(), value.describe()));
    let (version, _) = match field("apiVersion") {
        None => {
            let kind = field("kind").map_or("", |(kind, _)| kind);
            return issue(
                "apiVersion",
                Cause::FieldValueRequired,
                "Required value".to_owned(),
                Some(format!("add `apiVersion: {}`", api_version(kind).unwrap_or("v1"))),
            );
        }
        Some(version) => version,
    };
    let (kind, shown) = match field("kind") {
        None => {
            return issue(
                "kind",
                Cause::FieldValueRequired,
                "Required value".to_owned(),
                Some("for example `kind: Pod`".to_owned()),
            );
        }
        Some(kind) => kind,
    };
    match KINDS.iter().find(|(known, _)| *known == kind) {
        Some((known, wanted)) if version == *wanted => Ok(known),
        Some((known, wanted)) => {
            let reason = format!("Unsupported value: {version:?}: supported values: {wanted:?}");
            let hint = Some(format!("a {known} has `apiVersion: {wanted}`"));
            issue("apiVersion", Cause::FieldValueNotSupported, reason, hint)
        }
        None => {
            let name = if kind.is_empty() { shown } else { format!("{version} {kind}") };
            let reason = format!("{name} is not supported");
            let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
            let hint = match read::suggest(kind, &known) {
                Some(known) => format!("did you mean {known:?}? {}", supported()),
                None => supported(),
            };
            issue("kind", Cause::FieldValueNotSupported, reason, Some(hint))
        }
    }
}

/// What there is in place of a kind that is not known: `supported: v1 Pod, ConfigMap and Service, and Lists of them`.
fn supported() -> String {
    let mut text = "supported: ".to_owned();
    let mut group = "";
    for (n, (kind, version)) in KINDS.iter().enumerate() {
        let last = n + 1 == KINDS.len();
        text.push_str(match n {
            0 => "",
            _ if last => " and ",
            _ => ", ",
        });
        if *version != group {
            text.push_str(version);
            text.push(' ');
            group = version;
        }
        text.push_str(kind);
    }
    text + ", and Lists of them"
}

/// Adds the issues of the rules, except those that only follow from a value that could not be read.
fn merge(mut read: Vec<Issue>, checked: Issues) -> Vec<Issue> {
    let unread: Vec<_> = read.iter().map(|issue| issue.path.clone()).collect();
    let follows = |issue: &Issue| {
        unread
            .iter()
            .any(|path| issue.path.is_within(path) || (!path.is_empty() && is_consequence(issue, path)))
    };
    read.extend(checked.0.into_iter().filter(|issue| !follows(issue)));
    read
}

/// Whether a "must have one of" complaint about an object comes from the refusal of its very member.
fn is_consequence(issue: &Issue, unread: &FieldPath) -> bool {
    let parent = &unread.0[..unread.0.len() - 1];
    issue.path.0 == parent && matches!(issue.cause, Cause::FieldValueRequired | Cause::FieldValueInvalid)
}

fn pod(node: &Node, context: &Context, from_api: bool) -> (Option<Object>, Vec<Issue>) {
    let (pod, read) = if context.elsewhere { read::read_all(node) } else { read::read::<v1::Pod>(node) };
    let Some(mut pod) = pod else { return (None, read) };
    let mut issues = Issues::default();
    if pod.spec.is_none() {
        issues.required(&FieldPath::of("spec"), "");
    }
    let named = pod.spec.is_some();
    defaults::pod(&mut pod);
    rules::apparmor::fill_in(&mut pod);
    if let Some(spec) = pod.spec.as_mut().filter(|_| named) {
        defaults::overhead(spec, context);
    }
    rules::meta::check(&pod.metadata, from_api, &mut issues);
    if let Some(spec) = pod.spec.as_ref().filter(|_| named) {
        rules::apparmor::check(pod.metadata.annotations.as_ref(), spec, &mut issues);
        rules::network::check(&pod, spec, context, &mut issues);
        rules::spec::check(spec, context, &mut issues);
    }
    namespace(&mut pod.metadata);
    (Some(Object::Pod(Box::new(pod))), merge(read, issues))
}

fn config_map(node: &Node, from_api: bool) -> (Option<Object>, Vec<Issue>) {
    let (map, read) = read::read::<v1::ConfigMap>(&folded(node, &["binaryData"]));
    let Some(mut map) = map else { return (None, read) };
    let mut issues = Issues::default();
    rules::meta::check(&map.metadata, from_api, &mut issues);
    rules::data::check_config_map(&map, &mut issues);
    namespace(&mut map.metadata);
    (Some(Object::ConfigMap(Box::new(map))), merge(read, issues))
}

fn secret(node: &Node, from_api: bool) -> (Option<Object>, Vec<Issue>) {
    let (secret, read) = read::read::<v1::Secret>(&folded(node, &["data"]));
    let Some(mut secret) = secret else { return (None, read) };
    defaults::secret(&mut secret);
    let mut issues = Issues::default();
    rules::meta::check(&secret.metadata, from_api, &mut issues);
    rules::data::check_secret(&secret, &mut issues);
    namespace(&mut secret.metadata);
    (Some(Object::Secret(Box::new(secret))), merge(read, issues))
}

/// Takes out the finalizers that this API itself shows on claims and volumes: who sends one back means nothing by it.
fn without_protection(meta: &mut ObjectMeta) {
    const OURS: [&str; 2] = ["kubernetes.io/pvc-protection", "kubernetes.io/pv-protection"];
    if let Some(finalizers) = &mut meta.finalizers {
        finalizers.retain(|name| !OURS.contains(&name.as_str()));
    }
    meta.finalizers.take_if(|left| left.is_empty());
}

fn claim(node: &Node, from_api: bool) -> (Option<Object>, Vec<Issue>) {
    let (claim, read) = read::read::<v1::PersistentVolumeClaim>(node);
    let Some(mut claim) = claim else { return (None, read) };
    let mut issues = Issues::default();
    defaults::claim(&mut claim);
    without_protection(&mut claim.metadata);
    rules::meta::check(&claim.metadata, from_api, &mut issues);
    rules::claim::check_claim(&claim, &mut issues);
    namespace(&mut claim.metadata);
    (Some(Object::PersistentVolumeClaim(Box::new(claim))), merge(read, issues))
}

fn volume(node: &Node, context: &Context, from_api: bool) -> (Option<Object>, Vec<Issue>) {
    let (volume, read) = read::read::<v1::PersistentVolume>(node);
    let Some(mut volume) = volume else { return (None, read) };
    let mut issues = Issues::default();
    defaults::volume_object(&mut volume);
    without_protection(&mut volume.metadata);
    rules::meta::check(&volume.metadata, from_api, &mut issues);
    rules::claim::check_volume(&volume, context, &mut issues);
    if volume.metadata.namespace.take().is_some_and(|namespace| !namespace.is_empty()) {
        let path = FieldPath::of("metadata").field("namespace");
        issues.forbidden(&path, "a PersistentVolume is in no namespace").hint("remove the field");
    }
    (Some(Object::PersistentVolume(Box::new(volume))), merge(read, issues))
}

fn service(node: &Node, from_api: bool) -> (Option<Object>, Vec<Issue>) {
    let (service, read) = read::read::<v1::Service>(node);
    let Some(mut service) = service else { return (None, read) };
    let mut issues = Issues::default();
    defaults::service(&mut service);
    rules::meta::check(&service.metadata, from_api, &mut issues);
    rules::service::check(&service, &mut issues);
    namespace(&mut service.metadata);
    (Some(Object::Service(Box::new(service))), merge(read, issues))
}

fn namespace_object(node: &Node, from_api: bool) -> (Option<Object>, Vec<Issue>) {
    let (namespace, read) = read::read::<v1::Namespace>(node);
    let Some(mut namespace) = namespace else { return (None, read) };
    let mut issues = Issues::default();
    rules::meta::check(&namespace.metadata, from_api, &mut issues);
    rules::policy::check_namespace(&namespace, &mut issues);
    defaults::namespace(&mut namespace);
    (Some(Object::Namespace(Box::new(namespace))), merge(read, issues))
}

fn network_policy(node: &Node, from_api: bool) -> (Option<Object>, Vec<Issue>) {
    let (policy, read) = read::read::<NetworkPolicy>(node);
    let Some(mut policy) = policy else { return (None, read) };
    let mut issues = Issues::default();
    defaults::network_policy(&mut policy);
    rules::meta::check(&policy.metadata, from_api, &mut issues);
    rules::policy::check(&policy, &mut issues);
    namespace(&mut policy.metadata);
    (Some(Object::NetworkPolicy(Box::new(policy))), merge(read, issues))
}

fn namespace(meta: &mut ObjectMeta) {
    if meta.namespace.as_deref().unwrap_or_default().is_empty() {
        meta.namespace = Some("default".to_owned());
    }
}

/// The node with line breaks taken out of the strings in these maps: base64 may be folded.
fn folded(node: &Node, fields: &[&str]) -> Node {
    let mut node = node.clone();
    let Value::Map(entries) = &mut node.value else { return node };
    for entry in entries.iter_mut().filter(|e| fields.contains(&e.key.as_str())) {
        if let Value::Map(data) = &mut Rc::make_mut(&mut entry.value).value {
            for item in data {
                if let Value::String(text) = &mut Rc::make_mut(&mut item.value).value {
                    text.retain(|c| !matches!(c, '\n' | '\r'));
                }
            }
        }
    }
    node
}
