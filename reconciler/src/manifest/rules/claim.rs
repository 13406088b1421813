//! Checks of PersistentVolumeClaims and PersistentVolumes.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::{names, resources, volume};
use crate::claims::{RECLAIM_ANNOTATION, node_affinity_matches};
use crate::manifest::Context;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::quantity::Quantity;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Checks a PersistentVolumeClaim.
pub(crate) fn check_claim(claim: &v1::PersistentVolumeClaim, issues: &mut Issues) {
    check_policy_annotation(&claim.metadata, &FieldPath::of("metadata"), issues);
    match &claim.spec {
        None => {
            issues.required(&FieldPath::of("spec"), "");
        }
        Some(spec) => check_claim_spec(spec, &FieldPath::of("spec"), issues),
    }
}

/// Checks the annotation that says what becomes of a claim's data.
pub(crate) fn check_policy_annotation(meta: &ObjectMeta, path: &FieldPath, issues: &mut Issues) {
    let policy = meta.annotations.as_ref().and_then(|all| all.get(RECLAIM_ANNOTATION));
    let at = path.field("annotations").key(RECLAIM_ANNOTATION);
    issues.one_of(&at, policy.map(String::as_str), &["Delete", "Retain"]);
}

/// Checks the spec of a claim or of a claim template.
pub(crate) fn check_claim_spec(spec: &v1::PersistentVolumeClaimSpec, path: &FieldPath, issues: &mut Issues) {
    check_access_modes(spec.access_modes.as_deref(), &path.field("accessModes"), issues);
    check_mode(spec.volume_mode.as_deref(), &path.field("volumeMode"), issues);
    check_class(spec.storage_class_name.as_deref(), &path.field("storageClassName"), issues);
    let at = path.field("resources").field("requests");
    let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    check_storage(requests, &at, issues);
    if let Some(name) = spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
        issues.all(&path.field("volumeName"), name, names::dns_subdomain(name));
    }
    if let Some(selector) = &spec.selector {
        check_selector(selector, &path.field("selector"), issues);
    }
}

fn check_access_modes(modes: Option<&[String]>, path: &FieldPath, issues: &mut Issues) {
    let modes = modes.unwrap_or_default();
    if modes.is_empty() {
        issues.required(path, "at least 1 access mode is required");
    }
    for (i, mode) in modes.iter().enumerate() {
        issues.one_of(&path.index(i), Some(mode), &ACCESS_MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        issues.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn check_mode(mode: Option<&str>, path: &FieldPath, issues: &mut Issues) {
    match mode {
        Some("Block") => issues.forbidden(path, "raw block volumes are not supported").hint("use Filesystem"),
        mode => issues.one_of(path, mode, &["Filesystem"]),
    }
}

fn check_class(class: Option<&str>, path: &FieldPath, issues: &mut Issues) {
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        issues.all(path, class, names::dns_subdomain(class));
    }
}

type Amounts = std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

/// A map of resources that must hold `storage`, more than nothing, and nothing else.
fn check_storage(amounts: Option<&Amounts>, path: &FieldPath, issues: &mut Issues) {
    let at = path.key("storage");
    match amounts.and_then(|amounts| amounts.get("storage")) {
        None => {
            issues.required(&at, "");
        }
        Some(text) => {
            if resources::quantity(text, &at, issues).is_some_and(|amount| amount <= Quantity::ZERO) {
                issues.invalid(&at, text.0.as_str(), "must be greater than zero");
            }
        }
    }
    for name in amounts.into_iter().flat_map(|amounts| amounts.keys()).filter(|name| *name != "storage") {
        issues.not_supported(&path.key(name), name, &["storage"]);
    }
}

pub(super) fn check_selector(selector: &LabelSelector, path: &FieldPath, issues: &mut Issues) {
    for (key, value) in selector.match_labels.iter().flatten() {
        issues.all(&path.field("matchLabels").key(key), key, names::qualified(key));
        issues.all(&path.field("matchLabels").key(key), value, names::label_value(value));
    }
    for (i, term) in selector.match_expressions.iter().flatten().enumerate() {
        let path = path.field("matchExpressions").index(i);
        issues.all(&path.field("key"), &term.key, names::qualified(&term.key));
        let operators = ["DoesNotExist", "Exists", "In", "NotIn"];
        issues.one_of(&path.field("operator"), Some(&term.operator), &operators);
        let values = term.values.as_deref().unwrap_or_default();
        match term.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                issues
                    .required(&path.field("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                issues.forbidden(&path.field("values"), detail);
            }
            _ => {}
        }
    }
}

/// Checks a PersistentVolume.
pub(crate) fn check_volume(volume: &v1::PersistentVolume, context: &Context, issues: &mut Issues) {
    let path = FieldPath::of("spec");
    let Some(spec) = &volume.spec else {
        issues.required(&path, "");
        return;
    };
    check_access_modes(spec.access_modes.as_deref(), &path.field("accessModes"), issues);
    check_mode(spec.volume_mode.as_deref(), &path.field("volumeMode"), issues);
    check_class(spec.storage_class_name.as_deref(), &path.field("storageClassName"), issues);
    check_storage(spec.capacity.as_ref(), &path.field("capacity"), issues);
    match (&spec.host_path, &spec.local) {
        (None, None) => {
            issues.required(&path, "must specify a volume type").hint("supported: hostPath, local");
        }
        (Some(_), Some(_)) => {
            issues.forbidden(&path.field("local"), "may not specify more than 1 volume type");
        }
        (Some(host), None) => volume::check_host_path(host, &path.field("hostPath"), issues),
        (None, Some(local)) => {
            volume::check_absolute(&local.path, &path.field("local").field("path"), issues)
        }
    }
    check_reclaim_policy(volume, spec, &path, issues);
    check_claim_ref(spec, &path.field("claimRef"), issues);
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    if let (Some(required), Some(labels)) = (required, &context.node_labels)
        && !node_affinity_matches(required, labels, &context.node_name)
    {
        let at = path.field("nodeAffinity").field("required");
        let detail = format!("does not match this node ({})", context.node_name);
        issues.invalid(&at, "nodeSelectorTerms", &detail);
    }
}

/// Berth deletes data only in folders that it has made itself.
fn check_reclaim_policy(
    volume: &v1::PersistentVolume,
    spec: &v1::PersistentVolumeSpec,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let at = path.field("persistentVolumeReclaimPolicy");
    let policy = spec.persistent_volume_reclaim_policy.as_deref();
    match policy {
        Some("Recycle") => {
            issues.forbidden(&at, "volumes are not recycled").hint("use Retain");
        }
        Some("Delete") if !crate::claims::is_provisioned(volume) => {
            let detail = "only volumes that Berth has made for a claim are deleted with it";
            issues.forbidden(&at, detail).hint("use Retain");
        }
        policy => issues.one_of(&at, policy, &["Delete", "Retain"]),
    }
}

fn check_claim_ref(spec: &v1::PersistentVolumeSpec, path: &FieldPath, issues: &mut Issues) {
    let Some(claim) = &spec.claim_ref else { return };
    for (field, value, check) in [
        ("name", &claim.name, names::dns_subdomain as fn(&str) -> Vec<String>),
        ("namespace", &claim.namespace, names::dns_label),
    ] {
        match value.as_deref().unwrap_or_default() {
            "" => {
                issues.required(&path.field(field), "");
            }
            value => issues.all(&path.field(field), value, check(value)),
        }
    }
}
