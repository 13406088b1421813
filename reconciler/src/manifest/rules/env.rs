//! Checks of `env`, `envFrom` and the downward API's references.

use k8s_openapi::api::core::v1;

use super::names;
use crate::env::subscript;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::quantity::Quantity;

const FIELDS: [&str; 12] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "metadata.labels['KEY']",
];

const RESOURCES: [&str; 8] = [
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.hugepages-SIZE",
    "requests.hugepages-SIZE",
];

/// Checks a container's variables. `known` are the names of the pod's containers.
pub(crate) fn check(
    spec: &v1::PodSpec,
    container: &v1::Container,
    known: &[&str],
    path: &FieldPath,
    issues: &mut Issues,
) {
    for (i, var) in container.env.iter().flatten().enumerate() {
        let path = path.field("env").index(i);
        match var.name.as_str() {
            "" => {
                issues.required(&path.field("name"), "");
            }
            name => issues.all(&path.field("name"), name, names::env_name(name)),
        }
        if let Some(source) = &var.value_from {
            let path = path.field("valueFrom");
            if var.value.as_deref().is_some_and(|value| !value.is_empty()) {
                issues.invalid(&path, "", "may not be specified when `value` is not empty");
            }
            check_source(source, known, &path, issues);
            if let Some(reference) = &source.file_key_ref {
                check_file(reference, spec, &path.field("fileKeyRef"), issues);
            }
        }
    }
    for (i, source) in container.env_from.iter().flatten().enumerate() {
        check_from(source, &path.field("envFrom").index(i), issues);
    }
}

fn check_source(source: &v1::EnvVarSource, known: &[&str], path: &FieldPath, issues: &mut Issues) {
    let count = usize::from(source.field_ref.is_some())
        + usize::from(source.resource_field_ref.is_some())
        + usize::from(source.config_map_key_ref.is_some())
        + usize::from(source.secret_key_ref.is_some())
        + usize::from(source.file_key_ref.is_some());
    match count {
        0 => {
            issues.invalid(
                path,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            );
        }
        1 => {}
        _ => {
            issues.invalid(path, "", "may not have more than one field specified at a time");
        }
    }
    if let Some(field) = &source.field_ref {
        field_ref(field, &path.field("fieldRef"), issues);
    }
    if let Some(resource) = &source.resource_field_ref {
        resource_ref(resource, known, &path.field("resourceFieldRef"), issues);
    }
    if let Some(reference) = &source.config_map_key_ref {
        key_ref(&reference.name, &reference.key, &path.field("configMapKeyRef"), issues);
    }
    if let Some(reference) = &source.secret_key_ref {
        key_ref(&reference.name, &reference.key, &path.field("secretKeyRef"), issues);
    }
}

/// Checks a `fileKeyRef`: the file lies in an emptyDir of the pod, which the container need not have mounted.
fn check_file(reference: &v1::FileKeySelector, spec: &v1::PodSpec, path: &FieldPath, issues: &mut Issues) {
    match reference.key.as_str() {
        "" => {
            issues.required(&path.field("key"), "");
        }
        key => issues.all(&path.field("key"), key, names::env_name(key)),
    }
    let volume = reference.volume_name.as_str();
    match spec.volumes.iter().flatten().find(|v| v.name == volume) {
        _ if volume.is_empty() => {
            issues.required(&path.field("volumeName"), "");
        }
        None => {
            issues.not_found(&path.field("volumeName"), volume);
        }
        Some(found) if found.empty_dir.is_none() => {
            issues.invalid(&path.field("volumeName"), volume, "must be an emptyDir volume");
        }
        Some(_) => {}
    }
    if reference.path.is_empty() {
        issues.required(&path.field("path"), "");
    } else if let Some(detail) = names::local_path(&reference.path) {
        issues.invalid(&path.field("path"), reference.path.as_str(), detail);
    }
}

fn key_ref(name: &str, key: &str, path: &FieldPath, issues: &mut Issues) {
    object_name(name, &path.field("name"), issues);
    match key {
        "" => {
            issues.required(&path.field("key"), "");
        }
        key => issues.all(&path.field("key"), key, names::config_key(key)),
    }
}

fn object_name(name: &str, path: &FieldPath, issues: &mut Issues) {
    match name {
        "" => {
            issues.required(path, "");
        }
        name => issues.all(path, name, names::dns_subdomain(name)),
    }
}

fn check_from(source: &v1::EnvFromSource, path: &FieldPath, issues: &mut Issues) {
    if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
        issues.all(&path.field("prefix"), prefix, names::env_name(prefix));
    }
    match (&source.config_map_ref, &source.secret_ref) {
        (None, None) => {
            issues.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`");
        }
        (Some(_), Some(_)) => {
            issues.invalid(path, "", "may not have more than one field specified at a time");
        }
        (Some(reference), None) => {
            object_name(&reference.name, &path.field("configMapRef").field("name"), issues)
        }
        (None, Some(reference)) => {
            object_name(&reference.name, &path.field("secretRef").field("name"), issues)
        }
    }
}

/// Checks a `fieldRef`. Every field works in variables and in volumes.
pub(crate) fn field_ref(field: &v1::ObjectFieldSelector, path: &FieldPath, issues: &mut Issues) {
    let name = field.field_path.as_str();
    let at = path.field("fieldPath");
    if let Some(version) = field.api_version.as_deref().filter(|version| *version != "v1") {
        issues.not_supported(&path.field("apiVersion"), version, &["v1"]);
    }
    let key = subscript(name, "metadata.labels").or_else(|| subscript(name, "metadata.annotations"));
    match key {
        _ if name.is_empty() => {
            issues.required(&at, "");
        }
        Some(key) => issues.all(&at, name, names::qualified(&key.to_ascii_lowercase())),
        None if FIELDS.contains(&name) && !name.contains('[') => {}
        None => {
            issues.not_supported(&at, name, &FIELDS);
        }
    }
}

/// Checks a `resourceFieldRef`.
pub(crate) fn resource_ref(
    selector: &v1::ResourceFieldSelector,
    known: &[&str],
    path: &FieldPath,
    issues: &mut Issues,
) {
    if let Some(name) =
        selector.container_name.as_deref().filter(|name| !name.is_empty() && !known.contains(name))
    {
        issues.not_found(&path.field("containerName"), name);
    }
    let at = path.field("resource");
    let Some(resource) =
        selector.resource.strip_prefix("limits.").or_else(|| selector.resource.strip_prefix("requests."))
    else {
        if selector.resource.is_empty() {
            issues.required(&at, "");
        } else {
            issues.not_supported(&at, &selector.resource, &RESOURCES);
        }
        return;
    };
    let divisors: &[&str] = match resource {
        "cpu" => &["1m", "1"],
        "memory" | "ephemeral-storage" => &BYTES,
        _ if resource.starts_with("hugepages-") => &BYTES,
        _ => {
            issues.not_supported(&at, &selector.resource, &RESOURCES);
            return;
        }
    };
    let Some(divisor) = selector.divisor.as_ref().map(|q| q.0.as_str()).filter(|q| !matches!(*q, "" | "0"))
    else {
        return;
    };
    match Quantity::parse(divisor) {
        Err(error) => {
            issues.invalid(&path.field("divisor"), divisor, &error.to_string());
        }
        Ok(value) if divisors.iter().any(|text| Quantity::parse(text) == Ok(value)) => {}
        Ok(_) => {
            let detail = format!(
                "only divisor's values {} are supported with the {resource} resource",
                divisors.join(", ")
            );
            issues.invalid(&path.field("divisor"), divisor, &detail);
        }
    }
}

const BYTES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
