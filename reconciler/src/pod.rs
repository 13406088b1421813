//! The checked pod: what a source hands to the reconciler once a manifest has passed every check.

use std::path::PathBuf;

use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

/// Where a pod comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A manifest file; its pod is replaced when the text changes and deleted when the file goes.
    File(PathBuf),
    /// The agent's own API.
    Api,
}

/// A pod whose manifest has been checked and whose defaults have been filled in.
///
/// `object.metadata` has name, namespace, uid and creationTimestamp; `object.spec` has a node name and every
/// default that the Kubernetes API server would have written. `object.status` is always empty here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// The Kubernetes object.
    pub object: v1::Pod,
    /// Where it comes from.
    pub source: Source,
}

impl Pod {
    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.object.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        self.object.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// `namespace/name`, as it is shown to people.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }

    /// `spec`; a checked pod always has one.
    pub fn spec(&self) -> &v1::PodSpec {
        self.object.spec.as_ref().expect("a checked pod has a spec")
    }

    /// Init containers, then main containers.
    pub fn all_containers(&self) -> impl Iterator<Item = &v1::Container> {
        self.spec().init_containers.iter().flatten().chain(&self.spec().containers)
    }

    /// The container or init container of that name.
    pub fn container(&self, name: &str) -> Option<&v1::Container> {
        self.all_containers().find(|c| c.name == name)
    }
}
