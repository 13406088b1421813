//! Checks of ConfigMaps and Secrets.

use k8s_openapi::api::core::v1;

use super::names;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

/// A ConfigMap or Secret may hold this many bytes.
const MAX_SIZE: usize = 1 << 20;

/// Checks a ConfigMap.
pub(crate) fn check_config_map(map: &v1::ConfigMap, issues: &mut Issues) {
    let mut size = 0;
    for (key, value) in map.data.iter().flatten() {
        issues.all(&FieldPath::of("data").key(key), key, names::config_key(key));
        size += value.len();
    }
    for (key, value) in map.binary_data.iter().flatten() {
        let path = FieldPath::of("binaryData").key(key);
        issues.all(&path, key, names::config_key(key));
        if map.data.as_ref().is_some_and(|data| data.contains_key(key)) {
            issues.invalid(&path, key.as_str(), "duplicate of key present in data");
        }
        size += value.0.len();
    }
    check_size(size, issues);
}

/// Checks a Secret whose `stringData` is merged.
pub(crate) fn check_secret(secret: &v1::Secret, issues: &mut Issues) {
    let mut size = 0;
    for (key, value) in secret.data.iter().flatten() {
        issues.all(&FieldPath::of("data").key(key), key, names::config_key(key));
        size += value.0.len();
    }
    let needed: &[&str] = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
        Some("kubernetes.io/dockercfg") => &[".dockercfg"],
        Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in needed {
        match secret.data.as_ref().and_then(|data| data.get(*key)) {
            None => {
                issues.required(&FieldPath::of("data").key(key), "");
            }
            Some(value)
                if key.starts_with(".docker")
                    && serde_json::from_slice::<serde_json::Value>(&value.0).is_err() =>
            {
                issues.invalid(&FieldPath::of("data").key(key), "<secret contents redacted>", "is no JSON");
            }
            Some(_) => {}
        }
    }
    check_size(size, issues);
}

fn check_size(size: usize, issues: &mut Issues) {
    if size > MAX_SIZE {
        let reason = format!("Too long: may not be more than {MAX_SIZE} bytes");
        issues.forbidden(&FieldPath::of("data"), &reason);
    }
}
