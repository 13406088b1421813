//! Annotations that a pod's network heeds.

use k8s_openapi::api::core::v1;

use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::network::{Wishes, first_of};

/// Checks them; those of a pod without a network of its own would be without effect.
pub(crate) fn check(pod: &v1::Pod, spec: &v1::PodSpec, issues: &mut Issues) {
    let annotations = pod.metadata.annotations.as_ref();
    let path = |key: &str| FieldPath::of("metadata").field("annotations").key(key);
    if let Err(refusal) = Wishes::read(annotations) {
        issues.invalid(&path(refusal.key), refusal.value.as_str(), &refusal.reason);
    }
    if let Some(key) = first_of(annotations).filter(|_| spec.host_network == Some(true)) {
        issues.forbidden(&path(key), "a pod with hostNetwork has no network of its own");
    }
}
