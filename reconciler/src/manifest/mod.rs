//! Manifests: text in, checked objects or errors with file, line and field out.
//!
//! The steps, one module each: [`documents`] cuts a text into documents and reads them with [`yaml`] or [`json`] into [`node`]s,
//! which know their lines; [`object`] finds the kind and unrolls Lists; [`read`] turns a node into the Kubernetes type and notes
//! unknown, mistyped and unsupported ([`supported`]) fields; [`defaults`] writes what the API server would; [`rules`] checks the
//! values; [`identity`] gives a pod its place on this node; [`update`] compares an old spec with a new one.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod coverage;
mod defaults;
mod documents;
mod error;
mod identity;
mod issue;
mod json;
mod node;
mod object;
mod read;
mod rules;
mod scalar;
mod supported;
mod update;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

pub use error::{Cause, ManifestError, ObjectRef};
pub use identity::{HASH_ANNOTATION, MIRROR_ANNOTATION, SEEN_ANNOTATION, SOURCE_ANNOTATION, admit};
pub use rules::sysctls::check_pattern as check_sysctl_pattern;

use issue::{Issue, Issues};
use node::{FieldPath, Node, Position};
use yaml::{Document, Fault};

/// An object that Berth keeps.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A pod, checked and with the API server's defaults; not yet admitted (see [`admit`]).
    Pod(Box<v1::Pod>),
    /// A ConfigMap; its namespace is filled in.
    ConfigMap(Box<v1::ConfigMap>),
    /// A Secret; its namespace is filled in and `stringData` is merged into `data`.
    Secret(Box<v1::Secret>),
    /// A PersistentVolumeClaim; its namespace is filled in.
    PersistentVolumeClaim(Box<v1::PersistentVolumeClaim>),
    /// A PersistentVolume, which is in no namespace.
    PersistentVolume(Box<v1::PersistentVolume>),
    /// A Service, with the API server's defaults; its namespace is filled in.
    Service(Box<v1::Service>),
    /// A Namespace, which is in no namespace; it has the label of its name.
    Namespace(Box<v1::Namespace>),
    /// A NetworkPolicy, with the API server's defaults; its namespace is filled in.
    NetworkPolicy(Box<NetworkPolicy>),
}

/// The label that every namespace has; its value is the namespace's name.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its file.
    pub file: Option<PathBuf>,
    /// The line on which it starts, from 1.
    pub line: usize,
}

/// What a text holds. A document with an error gives no object; the others are not disturbed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// The good objects, in the text's order.
    pub objects: Vec<Located<Object>>,
    /// Every error of every document.
    pub errors: Vec<ManifestError>,
}

/// What a node makes of SELinux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selinux {
    /// Its kernel has none on: labels mean nothing, as to every runtime.
    Absent,
    /// Its kernel has it, but the node's settings do not ask for labels (`selinux: false`).
    Unused,
    /// Its pods are labelled.
    Used,
}

/// What a manifest is checked against. The default checks nothing that depends on a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context {
    /// This node's name; a pod for another node is refused. Empty: not checked.
    pub node_name: String,
    /// This node's labels; a pod whose nodeSelector does not match is refused. None: not checked.
    pub node_labels: Option<BTreeMap<String, String>>,
    /// The names that a pod's runtimeClassName may have here; any other is refused. None: not checked.
    pub runtimes: Option<Vec<String>>,
    /// What a pod of a runtime costs beside its containers, by the runtime's name.
    pub overheads: BTreeMap<String, BTreeMap<String, ApiQuantity>>,
    /// The further networks that a pod can be on here; any other is refused. None: not checked.
    pub networks: Option<Vec<String>>,
    /// Unsafe sysctls that pods may set here: names, or prefixes with `*` at their end.
    pub unsafe_sysctls: Vec<String>,
    /// Whether the kernel has AppArmor. None: not checked.
    pub app_armor: Option<bool>,
    /// What SELinux is here. None: not checked.
    pub selinux: Option<Selinux>,
    /// The pod runs already: it may have ephemeral containers.
    pub running: bool,
    /// The pod is another node's, which says itself what it supports: every field that Kubernetes knows is taken.
    pub elsewhere: bool,
    /// The pod comes from a cluster's API server: it may have tokens of its service account.
    pub cluster: bool,
}

/// Reads YAML or JSON as Kubernetes does: any number of documents, Lists unrolled. Never panics, and takes time and memory in
/// proportion to the text.
pub fn parse(text: &str, file: Option<&Path>, context: &Context) -> Parsed {
    let mut parsed = Parsed::default();
    let documents = documents::read(text);
    let unreadable = |fault: Fault| {
        let issue = Issue::new(fault.field, Cause::Unreadable, fault.reason);
        manifest_error(issue, Some(fault.at), file, None)
    };
    parsed.errors.extend(documents.faults.into_iter().map(unreadable));
    for Document { node: document, faults } in documents.documents {
        let whole = faults.is_empty();
        parsed.errors.extend(faults.into_iter().map(unreadable));
        let mut list_issues = Vec::new();
        for (path, node) in object::unroll(&document, &mut list_issues) {
            let outcome = object::check(&node, context, false);
            for issue in outcome.issues {
                let at = node.locate(&issue.path);
                let full = FieldPath([&path.0[..], &issue.path.0[..]].concat());
                let issue = Issue { path: full, ..issue };
                parsed.errors.push(manifest_error(issue, Some(at), file, Some(&outcome.about)));
            }
            parsed.objects.extend(outcome.object.filter(|_| whole).map(|value| Located {
                value,
                file: file.map(Path::to_owned),
                line: node.at.line,
            }));
        }
        for issue in list_issues {
            let at = document.locate(&issue.path);
            parsed.errors.push(manifest_error(issue, Some(at), file, None));
        }
    }
    parsed.errors.sort_by_key(|error| error.line);
    parsed
}

/// The same checks for one object that came as JSON over the API.
pub fn check(value: &serde_json::Value, context: &Context) -> Result<Object, Vec<ManifestError>> {
    let outcome = object::check(&Node::from_json(value), context, true);
    match outcome.object {
        Some(object) => Ok(object),
        None => Err(outcome
            .issues
            .into_iter()
            .map(|issue| manifest_error(issue, None, None, Some(&outcome.about)))
            .collect()),
    }
}

/// [`check`] for a pod.
pub fn check_pod(value: &serde_json::Value, context: &Context) -> Result<v1::Pod, Vec<ManifestError>> {
    match check(value, context)? {
        Object::Pod(pod) => Ok(*pod),
        _ => {
            let issue = Issue::new(FieldPath::of("kind"), Cause::FieldValueInvalid, "must be Pod".to_owned());
            Err(vec![manifest_error(issue, None, None, None)])
        }
    }
}

/// Whether a running pod may be changed from `old` into `new`. Kubernetes allows new images, a lower activeDeadlineSeconds and
/// more tolerations; of metadata only the annotations are looked at that a pod's network is made by.
pub fn pod_update_allowed(old: &v1::Pod, new: &v1::Pod) -> Result<(), Vec<ManifestError>> {
    change_allowed(old, new, |old, new, issues| {
        rules::network::check_update(old, new, issues);
        of_specs(old, new, issues, update::check);
    })
}

/// Whether `new` is `old` with other cpu and memory, as the `resize` subresource takes it: nothing taken away, and of the
/// same QoS class.
pub fn pod_resize_allowed(old: &v1::Pod, new: &v1::Pod) -> Result<(), Vec<ManifestError>> {
    change_allowed(old, new, |old, new, issues| of_specs(old, new, issues, update::check_resize))
}

/// Whether `new` is `old` with more ephemeral containers.
pub fn pod_ephemeral_allowed(old: &v1::Pod, new: &v1::Pod) -> Result<(), Vec<ManifestError>> {
    change_allowed(old, new, |old, new, issues| of_specs(old, new, issues, update::check_ephemeral))
}

/// Whether a running pod of a manifest file can take up the file's new text as it runs: images, cpu and memory,
/// activeDeadlineSeconds and tolerations; for anything else it is replaced.
pub fn changes_in_place(old: &v1::Pod, new: &v1::Pod) -> bool {
    update::in_place(old, new)
}

fn of_specs(
    old: &v1::Pod,
    new: &v1::Pod,
    issues: &mut Issues,
    check: fn(&v1::PodSpec, &v1::PodSpec, &mut Issues),
) {
    if let (Some(old), Some(new)) = (&old.spec, &new.spec) {
        check(old, new, issues);
    }
}

fn change_allowed(
    old: &v1::Pod,
    new: &v1::Pod,
    check: impl FnOnce(&v1::Pod, &v1::Pod, &mut Issues),
) -> Result<(), Vec<ManifestError>> {
    let mut issues = Issues::default();
    check(old, new, &mut issues);
    let about = ObjectRef {
        kind: "Pod".to_owned(),
        namespace: new.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: new.metadata.name.clone().unwrap_or_default(),
    };
    let errors: Vec<_> =
        issues.0.into_iter().map(|issue| manifest_error(issue, None, None, Some(&about))).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn manifest_error(
    issue: Issue,
    at: Option<Position>,
    file: Option<&Path>,
    about: Option<&ObjectRef>,
) -> ManifestError {
    let at = at.filter(|at| at.line > 0);
    ManifestError {
        file: file.map(Path::to_owned),
        line: at.map(|at| at.line),
        column: at.map(|at| at.column),
        field: (!issue.path.is_empty()).then(|| issue.path.to_string()),
        reason: issue.reason,
        hint: issue.hint,
        object: about.cloned(),
        cause: issue.cause,
    }
}
