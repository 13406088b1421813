//! The environment of a container and the downward API.
//!
//! Order and semantics are those of kubelet's `makeEnvironmentVariables`. Unlike kubelet, every field works both in
//! variables and in volumes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1;

use crate::envfile;
use crate::pod::Pod;
use crate::quantity::Quantity;
use crate::resources;
use crate::services;

/// Where ConfigMaps and Secrets are found.
pub trait Lookup: Send + Sync {
    /// The ConfigMap of that namespace and name.
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<v1::ConfigMap>>;
    /// The Secret of that namespace and name.
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<v1::Secret>>;
    /// The Services that containers of the pod are told of.
    fn services(&self, _pod: &Pod) -> Vec<Arc<v1::Service>> {
        Vec::new()
    }
    /// A token of the pod's service account, for this source of a volume.
    ///
    /// # Errors
    /// Why there is none.
    fn token(&self, _pod: &Pod, _source: &v1::ServiceAccountTokenProjection) -> Result<String, String> {
        Err("there are no service accounts without a cluster".to_owned())
    }
    /// The text of a file in an emptyDir volume of the pod, none when it does not exist.
    ///
    /// # Errors
    /// When it cannot be read.
    fn volume_file(&self, _pod: &Pod, volume: &str, path: &str) -> Result<Option<String>, String> {
        Err(format!("volume {volume:?}: no file {path:?} can be read here"))
    }
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

/// Why an environment cannot be made; the text of `CreateContainerConfigError`, as kubelet words it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret does not exist.
    #[error("{kind} {name:?} not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It exists but lacks the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Namespace of the pod.
        namespace: String,
        /// Its name.
        name: String,
        /// The missing key.
        key: String,
    },
    /// A value of a Secret or of binaryData that no environment variable can hold.
    #[error("environment variable {name:?}: the value of key {key} is not UTF-8 text without NUL bytes")]
    NotText {
        /// The variable.
        name: String,
        /// The key.
        key: String,
    },
    /// An environment file that cannot be read or understood.
    #[error("environment variable {name:?}: {path} in volume {volume}: {reason}")]
    BadFile {
        /// The variable.
        name: String,
        /// The volume.
        volume: String,
        /// The file in it.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// An environment file without the key.
    #[error("environment variable key {key:?} not found in file {path:?}")]
    NoFileKey {
        /// The key.
        key: String,
        /// The file.
        path: String,
    },
    /// A fieldRef that does not exist.
    #[error("unsupported fieldPath: {0}")]
    UnknownField(String),
    /// A resourceFieldRef that does not exist.
    #[error("unsupported container resource : {0}")]
    UnknownResource(String),
    /// A resourceFieldRef to a container that does not exist.
    #[error("container {0} not found")]
    UnknownContainer(String),
    /// A divisor that is no quantity or zero.
    #[error("invalid divisor {0:?}")]
    BadDivisor(String),
    /// `subPathExpr` with a variable that is not set.
    #[error("missing value for {0:?}")]
    Unset(String),
}

/// The variables of a container in order (Services first, then envFrom, then env; a later one replaces the value of an
/// earlier one of the same name), without those of the image.
pub fn container_env(
    pod: &Pod,
    container: &v1::Container,
    facts: &Facts,
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Vec::new();
    if pod.spec().enable_service_links != Some(false) {
        let known = lookup.services(pod);
        env = services::variables(&known.iter().map(Arc::as_ref).collect::<Vec<_>>());
    }
    for source in container.env_from.iter().flatten() {
        for (key, value) in env_from(pod, source, lookup)? {
            let name = format!("{}{key}", source.prefix.as_deref().unwrap_or_default());
            set(&mut env, &name, value);
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (var.value.as_deref().unwrap_or_default(), &var.value_from) {
            ("", Some(source)) => match value_from(pod, container, &var.name, source, facts, lookup)? {
                Some(value) => value,
                None => continue,
            },
            (text, _) => expand(text, &env),
        };
        set(&mut env, &var.name, value);
    }
    Ok(env)
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name.to_owned(), value)),
    }
}

/// Names and values of one envFrom entry, without the prefix. Values that no variable can hold are left out.
fn env_from(
    pod: &Pod,
    source: &v1::EnvFromSource,
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, EnvError> {
    if let Some(reference) = &source.config_map_ref {
        return match lookup.config_map(pod.namespace(), &reference.name) {
            Some(map) => Ok(map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()),
            None if reference.optional == Some(true) => Ok(Vec::new()),
            None => Err(EnvError::NotFound { kind: "configmap", name: reference.name.clone() }),
        };
    }
    let Some(reference) = &source.secret_ref else { return Ok(Vec::new()) };
    let Some(secret) = lookup.secret(pod.namespace(), &reference.name) else {
        return match reference.optional {
            Some(true) => Ok(Vec::new()),
            _ => Err(EnvError::NotFound { kind: "secret", name: reference.name.clone() }),
        };
    };
    let mut pairs = Vec::new();
    for (key, value) in secret.data.iter().flatten() {
        pairs.push((key.clone(), text_of(key, key, &value.0)?));
    }
    Ok(pairs)
}

fn text_of(name: &str, key: &str, bytes: &[u8]) -> Result<String, EnvError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(EnvError::NotText { name: name.to_owned(), key: key.to_owned() }),
    }
}

/// The value of one `valueFrom`; none when an optional reference leads nowhere.
fn value_from(
    pod: &Pod,
    container: &v1::Container,
    name: &str,
    source: &v1::EnvVarSource,
    facts: &Facts,
    lookup: &dyn Lookup,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return field_ref(pod, facts, &field.field_path).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_ref(pod, &container.name, resource, facts).map(Some);
    }
    let namespace = pod.namespace();
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = lookup.config_map(namespace, &reference.name) else {
            return absent(optional, EnvError::NotFound { kind: "configmap", name: reference.name.clone() });
        };
        return match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None => absent(optional, no_key("ConfigMap", namespace, &reference.name, &reference.key)),
        };
    }
    if let Some(reference) = &source.file_key_ref {
        return from_file(pod, name, reference, lookup);
    }
    let Some(reference) = &source.secret_key_ref else { return Ok(Some(String::new())) };
    let optional = reference.optional == Some(true);
    let Some(secret) = lookup.secret(namespace, &reference.name) else {
        return absent(optional, EnvError::NotFound { kind: "secret", name: reference.name.clone() });
    };
    match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
        Some(value) => text_of(name, &reference.key, &value.0).map(Some),
        None => absent(optional, no_key("Secret", namespace, &reference.name, &reference.key)),
    }
}

/// The value of a variable in an environment file of a volume.
fn from_file(
    pod: &Pod,
    name: &str,
    reference: &v1::FileKeySelector,
    lookup: &dyn Lookup,
) -> Result<Option<String>, EnvError> {
    let bad = |reason: String| EnvError::BadFile {
        name: name.to_owned(),
        volume: reference.volume_name.clone(),
        path: reference.path.clone(),
        reason,
    };
    let optional = reference.optional == Some(true);
    let text = match lookup.volume_file(pod, &reference.volume_name, &reference.path).map_err(bad)? {
        Some(text) => text,
        None => return absent(optional, bad("it does not exist".to_owned())),
    };
    match envfile::value(&text, &reference.key).map_err(|e| bad(e.to_string()))? {
        Some(value) if value.contains('\0') => Err(bad("the value has a NUL byte".to_owned())),
        Some(value) => Ok(Some(value)),
        None => {
            let missing = EnvError::NoFileKey { key: reference.key.clone(), path: reference.path.clone() };
            absent(optional, missing)
        }
    }
}

fn absent(optional: bool, error: EnvError) -> Result<Option<String>, EnvError> {
    if optional { Ok(None) } else { Err(error) }
}

fn no_key(kind: &'static str, namespace: &str, name: &str, key: &str) -> EnvError {
    EnvError::NoKey { kind, namespace: namespace.to_owned(), name: name.to_owned(), key: key.to_owned() }
}

/// Replaces `$(VAR)`; `$$` stands for `$`; a reference to an unknown variable stays as it is.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let known = |name: &str| Ok::<_, EnvError>(lookup_var(env, name).unwrap_or_else(|| format!("$({name})")));
    expand_with(text, known).unwrap_or_else(|_| text.to_owned())
}

/// [`expand`] as `subPathExpr` wants it: an unknown variable is an error.
pub fn expand_strict(text: &str, env: &[(String, String)]) -> Result<String, EnvError> {
    expand_with(text, |name| lookup_var(env, name).ok_or_else(|| EnvError::Unset(name.to_owned())))
}

fn lookup_var(env: &[(String, String)], name: &str) -> Option<String> {
    env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

fn expand_with(text: &str, value: impl Fn(&str) -> Result<String, EnvError>) -> Result<String, EnvError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            escaped
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|name| name.split_once(')')) {
            out.push_str(&value(name)?);
            tail
        } else {
            out.push('$');
            after
        };
    }
    out.push_str(rest);
    Ok(out)
}

/// The key in `metadata.labels['key']`.
pub(crate) fn subscript<'a>(path: &'a str, map: &str) -> Option<&'a str> {
    path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")
}

/// The value of a `fieldRef`, the same in variables and volumes. A label or annotation that does not exist is empty.
pub fn field_ref(pod: &Pod, facts: &Facts, path: &str) -> Result<String, EnvError> {
    let meta = &pod.object.metadata;
    let from = |map: &Option<BTreeMap<String, String>>, key| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(from(&meta.labels, key));
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(from(&meta.annotations, key));
    }
    let spec = pod.spec();
    // A pod in the host's network has the host's addresses.
    let host_network = spec.host_network == Some(true) && facts.pod_ips.is_empty();
    let pod_ips = if host_network { &facts.host_ips } else { &facts.pod_ips };
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_else(|| facts.node_name.clone()),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => join(&facts.host_ips[..facts.host_ips.len().min(1)]),
        "status.hostIPs" => join(&facts.host_ips),
        "status.podIP" => join(&pod_ips[..pod_ips.len().min(1)]),
        "status.podIPs" => join(pod_ips),
        _ => return Err(EnvError::UnknownField(path.to_owned())),
    })
}

/// The value of a `resourceFieldRef` in units of its divisor, rounded up; `container` is used when the reference names none.
/// A limit that is not set is the pod's, and what that does not limit either is what the node can give.
pub fn resource_ref(
    pod: &Pod,
    container: &str,
    selector: &v1::ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, EnvError> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(container);
    let container = pod.container(name).ok_or_else(|| EnvError::UnknownContainer(name.to_owned()))?;
    let unknown = || EnvError::UnknownResource(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unknown)?;
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") && !resource.starts_with("hugepages-") {
        return Err(unknown());
    }
    let limit = resources::amount(resources::limits(container), resource).filter(|q| !q.is_zero());
    let pods = resources::pod_level(pod.spec()).and_then(|pods| pods.limits.as_ref());
    let pods = resources::amount(pods, resource).filter(|q| !q.is_zero());
    let capped = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let amount = match list {
        "limits" => limit.or(pods).unwrap_or_else(|| match resource {
            "cpu" => Quantity::from_milli(capped(facts.allocatable_cpu_milli)),
            "memory" => Quantity::from_value(capped(facts.allocatable_memory)),
            "ephemeral-storage" => Quantity::from_value(capped(facts.allocatable_ephemeral_storage)),
            _ => Quantity::ZERO,
        }),
        "requests" => {
            resources::amount(resources::requests(container), resource).or(limit).unwrap_or(Quantity::ZERO)
        }
        _ => return Err(unknown()),
    };
    let text = selector.divisor.as_ref().map_or("1", |q| q.0.as_str());
    let bad = || EnvError::BadDivisor(text.to_owned());
    let divisor = Quantity::parse(if matches!(text, "" | "0") { "1" } else { text }).map_err(|_| bad())?;
    amount.div_ceil(&divisor).map(|n| n.to_string()).ok_or_else(bad)
}

/// The content of one file of a downwardAPI volume.
pub fn volume_file(pod: &Pod, facts: &Facts, file: &v1::DownwardAPIVolumeFile) -> Result<String, EnvError> {
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), _) => field_ref(pod, facts, &field.field_path),
        (None, Some(resource)) => resource_ref(pod, "", resource, facts),
        (None, None) => Ok(String::new()),
    }
}

/// `key="escaped value"` lines in the order of the keys, as kubelet writes labels and annotations.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<_> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", go_quote(value))).collect();
    lines.join("\n")
}

/// Go's `%q`.
fn go_quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            ' '..='~' => out.push(c),
            _ => {
                let code = u32::from(c);
                // Writing to a String cannot fail.
                let _ = match code {
                    0..=0x7f => write!(out, "\\x{code:02x}"),
                    _ if is_printable(c) => write!(out, "{c}"),
                    0x80..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push('"');
    out
}

fn is_printable(c: char) -> bool {
    !c.is_whitespace() && (c.is_alphanumeric() || c.escape_debug().count() == 1)
}
