//! AppArmor in the annotations that were there before the field (`container.apparmor.security.beta.kubernetes.io/<container>`).
//!
//! As the API server does since the field is there, an annotation becomes the field of a container that has none; where both are,
//! they must agree.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use super::container::all_names;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The profile that a value names; none for a value that names none, an error for one that cannot be read.
fn profile(value: &str) -> Result<Option<v1::AppArmorProfile>, ()> {
    let (type_, localhost_profile) = match value {
        "" => return Ok(None),
        "runtime/default" => ("RuntimeDefault", None),
        "unconfined" => ("Unconfined", None),
        _ => match value.strip_prefix("localhost/") {
            Some(name) if !name.trim().is_empty() => ("Localhost", Some(name.to_owned())),
            _ => return Err(()),
        },
    };
    Ok(Some(v1::AppArmorProfile { localhost_profile, type_: type_.to_owned() }))
}

/// Fills in the fields that annotations stand for.
pub(crate) fn fill_in(pod: &mut v1::Pod) {
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let Some(spec) = pod.spec.as_mut().filter(|_| annotations.keys().any(|key| key.starts_with(PREFIX)))
    else {
        return;
    };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let value = annotations.get(&format!("{PREFIX}{}", container.name));
        let Some(Ok(Some(found))) = value.map(|value| profile(value)) else { continue };
        container.security_context.get_or_insert_default().app_armor_profile.get_or_insert(found);
    }
}

/// Checks the annotations; the fields must have been filled in.
pub(crate) fn check(annotations: Option<&BTreeMap<String, String>>, spec: &v1::PodSpec, issues: &mut Issues) {
    for (key, value) in annotations.into_iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let path = FieldPath::of("metadata").field("annotations").key(key);
        if !all_names(spec).contains(&name) {
            issues.invalid(&path, name, "container not found");
            continue;
        }
        let Ok(wanted) = profile(value) else {
            issues
                .invalid(&path, value.as_str(), "invalid AppArmor profile name")
                .hint("runtime/default, unconfined, or localhost/ with the name of a profile");
            continue;
        };
        let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let field = containers
            .find(|container| container.name == name)
            .and_then(|container| container.security_context.as_ref()?.app_armor_profile.as_ref());
        if let (Some(wanted), Some(field)) = (&wanted, field)
            && wanted != field
        {
            issues.forbidden(&path, "the AppArmor profile in the annotation and in the field must match");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use crate::manifest::{Context, check_pod};

    /// The profile of container `c`, or what is wrong.
    fn with(annotation: &str, value: &str, own: Value) -> Result<Value, String> {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "annotations": {
                format!("container.apparmor.security.beta.kubernetes.io/{annotation}"): value}},
            "spec": {"containers": [{"name": "c", "image": "i", "securityContext": {"appArmorProfile": own}}]}});
        let checked = check_pod(&pod, &Context { app_armor: Some(true), ..Context::default() });
        let words = |errors: Vec<_>| {
            errors
                .iter()
                .map(|e: &crate::manifest::ManifestError| e.to_string())
                .collect::<Vec<_>>()
                .join("; ")
        };
        checked
            .map(|pod| json!(pod)["spec"]["containers"][0]["securityContext"]["appArmorProfile"].clone())
            .map_err(words)
    }

    #[test]
    fn an_annotation_is_the_field_of_a_container_that_has_none() {
        let local = json!({"type": "Localhost", "localhostProfile": "mine"});
        assert_eq!(with("c", "localhost/mine", json!(null)), Ok(local.clone()));
        assert_eq!(with("c", "runtime/default", json!(null)), Ok(json!({"type": "RuntimeDefault"})));
        assert_eq!(with("c", "unconfined", json!(null)), Ok(json!({"type": "Unconfined"})));
        assert_eq!(with("c", "", json!(null)), Ok(json!(null)));
        assert_eq!(with("c", "localhost/mine", local.clone()), Ok(local));
    }

    #[test]
    fn an_annotation_that_says_nothing_or_something_else_is_refused() {
        let at = "metadata.annotations[container.apparmor.security.beta.kubernetes.io";
        for (name, value, own, said) in [
            ("d", "unconfined", json!(null), "Invalid value: \"d\": container not found"),
            ("c", "mine", json!(null), "Invalid value: \"mine\": invalid AppArmor profile name"),
            ("c", "localhost/", json!(null), "invalid AppArmor profile name"),
            (
                "c",
                "unconfined",
                json!({"type": "RuntimeDefault"}),
                "Forbidden: the AppArmor profile in the annotation",
            ),
        ] {
            let error = with(name, value, own).unwrap_err();
            assert!(error.contains(at) && error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_kernel_without_app_armor_refuses_the_annotation_like_the_field() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "annotations": {"container.apparmor.security.beta.kubernetes.io/c": "runtime/default"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let context = Context { app_armor: Some(false), ..Context::default() };
        let errors = check_pod(&pod, &context).unwrap_err();
        assert!(errors[0].to_string().contains("Cannot enforce AppArmor"), "{errors:?}");
    }
}
