//! The environment of a container and the downward API.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1;

use crate::pod::Pod;

/// Where ConfigMaps and Secrets are found.
pub trait Lookup: Send + Sync {
    /// The ConfigMap of that namespace and name.
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<v1::ConfigMap>>;
    /// The Secret of that namespace and name.
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<v1::Secret>>;
}

/// What the downward API tells that is not in the pod's own object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, the primary one first.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses, the primary one first.
    pub pod_ips: Vec<IpAddr>,
    /// The node's allocatable CPU in thousandths of a core.
    pub allocatable_cpu_milli: u64,
    /// The node's allocatable memory in bytes.
    pub allocatable_memory: u64,
    /// The node's allocatable ephemeral storage in bytes.
    pub allocatable_ephemeral_storage: u64,
}

/// Why an environment cannot be made; the text of `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EnvError(pub String);

/// The variables of a container in kubelet's order, without the image's own.
pub fn container_env(
    _pod: &Pod,
    _container: &v1::Container,
    _facts: &Facts,
    _lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, EnvError> {
    Ok(Vec::new())
}

/// Replaces `$(VAR)`; `$$` stands for `$`; an unknown variable's reference stays as it is.
pub fn expand(text: &str, _env: &[(String, String)]) -> String {
    text.to_owned()
}

/// The value of a `fieldRef`.
pub fn field_ref(_pod: &Pod, _facts: &Facts, path: &str) -> Result<String, EnvError> {
    Err(EnvError(path.to_owned()))
}

/// The value of a `resourceFieldRef`; `container` is used when the reference names none.
pub fn resource_ref(
    _pod: &Pod,
    container: &str,
    _selector: &v1::ResourceFieldSelector,
    _facts: &Facts,
) -> Result<String, EnvError> {
    Err(EnvError(container.to_owned()))
}

/// The content of one file of a downwardAPI volume.
pub fn volume_file(_pod: &Pod, _facts: &Facts, file: &v1::DownwardAPIVolumeFile) -> Result<String, EnvError> {
    Err(EnvError(file.path.clone()))
}
