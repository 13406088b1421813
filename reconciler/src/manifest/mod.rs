//! Manifests: text in, checked objects or errors with file, line and field out.

mod error;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1;

use crate::pod::{Pod, Source};
pub use error::{Cause, ManifestError, ObjectRef};

/// An object that Berth keeps.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A pod, checked and with the API server's defaults; not yet admitted (see [`admit`]).
    Pod(Box<v1::Pod>),
    /// A ConfigMap; its namespace is filled in.
    ConfigMap(Box<v1::ConfigMap>),
    /// A Secret; its namespace is filled in and `stringData` is merged into `data`.
    Secret(Box<v1::Secret>),
}

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

/// What a manifest is checked against. The default checks nothing that depends on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// This node's name; a pod for another node is refused. Empty: not checked.
    pub node_name: String,
    /// This node's labels, for [`node_selector_matches`]. None: not checked.
    pub node_labels: Option<BTreeMap<String, String>>,
}

/// Reads YAML or JSON: any number of documents, Lists unrolled.
pub fn parse(_text: &str, _file: Option<&Path>, _context: &Context) -> Parsed {
    Parsed::default()
}

/// The same checks for one object that came as JSON over the API.
pub fn check(_value: serde_json::Value, _context: &Context) -> Result<Object, Vec<ManifestError>> {
    Err(Vec::new())
}

/// [`check`] for a pod.
pub fn check_pod(_value: serde_json::Value, _context: &Context) -> Result<v1::Pod, Vec<ManifestError>> {
    Err(Vec::new())
}

/// Gives a checked pod its identity on this node: uid, name suffix, node name, source annotations, creation time.
pub fn admit(pod: v1::Pod, source: Source, _node_name: &str) -> Pod {
    Pod { object: pod, source }
}

/// Whether a running pod may be changed from `old` into `new` (Kubernetes' mutable fields).
pub fn pod_update_allowed(_old: &v1::Pod, _new: &v1::Pod) -> Result<(), Vec<ManifestError>> {
    Ok(())
}

/// Whether `spec.nodeSelector` matches the node's labels; the error names the first label that does not.
pub fn node_selector_matches(_spec: &v1::PodSpec, _labels: &BTreeMap<String, String>) -> Result<(), String> {
    Ok(())
}
