//! Checks of `metadata`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::names;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

/// All annotations together may have this many bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Checks names, labels and annotations. `generate_name` tells whether a server may make the name up.
pub(crate) fn check(meta: &ObjectMeta, generate_name: bool, issues: &mut Issues) {
    let path = FieldPath::of("metadata");
    let name = meta.name.as_deref().unwrap_or_default();
    let prefix = meta.generate_name.as_deref().unwrap_or_default();
    match (name.is_empty(), prefix.is_empty()) {
        (false, _) => issues.all(&path.field("name"), name, names::dns_subdomain(name)),
        (true, true) if generate_name => {
            issues.required(&path.field("name"), "name or generateName is required");
        }
        (true, true) => issues.required(&path.field("name"), "").hint("give the object a name"),
        (true, false) if generate_name => {
            let whole = format!("{prefix}x");
            issues.all(&path.field("generateName"), prefix, names::dns_subdomain(&whole));
        }
        (true, false) => {
            let detail = "a file gives its pods fixed names";
            issues.forbidden(&path.field("generateName"), detail).hint("use name instead");
        }
    }
    if meta.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty()) {
        let detail = "Berth runs no controllers that would take finalizers away again";
        issues.forbidden(&path.field("finalizers"), detail).hint("remove the field");
    }
    if let Some(namespace) = meta.namespace.as_deref() {
        issues.all(&path.field("namespace"), namespace, names::dns_label(namespace));
    }
    let labels = path.field("labels");
    for (key, value) in meta.labels.iter().flatten() {
        issues.all(&labels.key(key), key, names::qualified(key));
        issues.all(&labels.key(key), value, names::label_value(value));
    }
    let annotations = path.field("annotations");
    let mut size = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        issues.all(&annotations.key(key), key, names::qualified(&key.to_ascii_lowercase()));
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        issues.invalid(&annotations, size as i64, &format!("must have at most {MAX_ANNOTATIONS} bytes"));
    }
}
