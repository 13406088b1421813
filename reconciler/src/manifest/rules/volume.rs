//! Checks of volumes and volume mounts.

use std::collections::HashSet;

use k8s_openapi::api::core::v1;

use super::{claim, env, names, resources};
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::resources::page_size_of_medium;

const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks `spec.volumes`. `known` are the names of the pod's containers.
pub(crate) fn check_all(spec: &v1::PodSpec, known: &[&str], path: &FieldPath, issues: &mut Issues) {
    let mut seen = HashSet::new();
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = path.index(i);
        let name = path.field("name");
        if volume.name.is_empty() {
            issues.required(&name, "");
        } else {
            issues.all(&name, &volume.name, names::dns_label(&volume.name));
        }
        if !seen.insert(volume.name.as_str()) && !volume.name.is_empty() {
            issues.duplicate(&name, volume.name.as_str());
        }
        check(volume, known, &path, issues);
        if let Some(empty) = &volume.empty_dir {
            check_empty_dir(empty, spec, &path.field("emptyDir"), issues);
        }
    }
}

fn check(volume: &v1::Volume, known: &[&str], path: &FieldPath, issues: &mut Issues) {
    let sources = [
        ("emptyDir", volume.empty_dir.is_some()),
        ("hostPath", volume.host_path.is_some()),
        ("configMap", volume.config_map.is_some()),
        ("secret", volume.secret.is_some()),
        ("downwardAPI", volume.downward_api.is_some()),
        ("projected", volume.projected.is_some()),
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("image", volume.image.is_some()),
    ];
    for (name, _) in sources.iter().filter(|(_, set)| *set).skip(1) {
        issues.forbidden(&path.field(name), "may not specify more than 1 volume type");
    }
    if let Some(host) = &volume.host_path {
        check_host_path(host, &path.field("hostPath"), issues);
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        check_reference(&claim.claim_name, &path.field("persistentVolumeClaim").field("claimName"), issues);
    }
    if let Some(ephemeral) = &volume.ephemeral {
        check_ephemeral(ephemeral, &path.field("ephemeral").field("volumeClaimTemplate"), issues);
    }
    if let Some(image) = &volume.image {
        check_image(image, &path.field("image"), issues);
    }
    if let Some(map) = &volume.config_map {
        let path = path.field("configMap");
        check_reference(&map.name, &path.field("name"), issues);
        check_mode(map.default_mode, &path.field("defaultMode"), issues);
        check_items(map.items.as_deref(), &path.field("items"), issues);
    }
    if let Some(secret) = &volume.secret {
        let path = path.field("secret");
        check_reference(secret.secret_name.as_deref().unwrap_or_default(), &path.field("secretName"), issues);
        check_mode(secret.default_mode, &path.field("defaultMode"), issues);
        check_items(secret.items.as_deref(), &path.field("items"), issues);
    }
    if let Some(downward) = &volume.downward_api {
        let path = path.field("downwardAPI");
        check_mode(downward.default_mode, &path.field("defaultMode"), issues);
        check_downward(downward.items.as_deref(), known, &path.field("items"), issues);
    }
    if let Some(projected) = &volume.projected {
        check_projected(projected, known, &path.field("projected"), issues);
    }
}

fn check_empty_dir(
    empty: &v1::EmptyDirVolumeSource,
    spec: &v1::PodSpec,
    path: &FieldPath,
    issues: &mut Issues,
) {
    match empty.medium.as_deref().unwrap_or_default() {
        "" | "Memory" => {}
        medium if medium.starts_with("HugePages") => {
            if let Err(detail) = page_size_of_medium(medium, spec) {
                issues.invalid(&path.field("medium"), medium, &detail);
            }
        }
        medium => {
            let supported = ["", "Memory", "HugePages", "HugePages-<size>"];
            issues.not_supported(&path.field("medium"), medium, &supported);
        }
    }
    if let Some(limit) = &empty.size_limit {
        resources::quantity(limit, &path.field("sizeLimit"), issues);
    }
}

fn check_ephemeral(ephemeral: &v1::EphemeralVolumeSource, path: &FieldPath, issues: &mut Issues) {
    let Some(template) = &ephemeral.volume_claim_template else {
        issues.required(path, "");
        return;
    };
    if let Some(meta) = &template.metadata {
        let at = path.field("metadata");
        for (field, set) in [
            ("name", meta.name.is_some()),
            ("generateName", meta.generate_name.is_some()),
            ("namespace", meta.namespace.is_some()),
        ] {
            if set {
                issues.forbidden(&at.field(field), "only labels and annotations may be set");
            }
        }
        claim::check_policy_annotation(meta, &at, issues);
    }
    claim::check_claim_spec(&template.spec, &path.field("spec"), issues);
}

fn check_image(image: &v1::ImageVolumeSource, path: &FieldPath, issues: &mut Issues) {
    if image.reference.as_deref().unwrap_or_default().is_empty() {
        issues.required(&path.field("reference"), "").hint("name the image whose files to mount");
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    issues.one_of(&path.field("pullPolicy"), image.pull_policy.as_deref(), &policies);
}

/// Checks a path on the host.
pub(crate) fn check_absolute(text: &str, at: &FieldPath, issues: &mut Issues) {
    if text.is_empty() {
        issues.required(at, "");
    } else if text.split('/').any(|part| part == "..") {
        issues.invalid(at, text, "must not contain '..'");
    } else if !text.starts_with('/') {
        issues.invalid(at, text, "must be an absolute path");
    }
}

/// Checks a folder or file of the host.
pub(crate) fn check_host_path(host: &v1::HostPathVolumeSource, path: &FieldPath, issues: &mut Issues) {
    check_absolute(&host.path, &path.field("path"), issues);
    issues.one_of(&path.field("type"), host.type_.as_deref(), &HOST_PATH_TYPES);
}

fn check_reference(name: &str, path: &FieldPath, issues: &mut Issues) {
    match name {
        "" => {
            issues.required(path, "");
        }
        name => issues.all(path, name, names::dns_subdomain(name)),
    }
}

fn check_mode(mode: Option<i32>, path: &FieldPath, issues: &mut Issues) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        issues
            .invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive")
            .hint("in YAML a leading 0 makes a number octal: 0644 is 420");
    }
}

fn check_items(items: Option<&[v1::KeyToPath]>, path: &FieldPath, issues: &mut Issues) {
    for (i, item) in items.into_iter().flatten().enumerate() {
        let path = path.index(i);
        if item.key.is_empty() {
            issues.required(&path.field("key"), "");
        }
        check_file(&item.path, &path.field("path"), issues);
        check_mode(item.mode, &path.field("mode"), issues);
    }
}

fn check_file(file: &str, path: &FieldPath, issues: &mut Issues) {
    if file.is_empty() {
        issues.required(path, "");
    } else if let Some(detail) = names::file_path(file) {
        issues.invalid(path, file, detail);
    }
}

fn check_downward(
    items: Option<&[v1::DownwardAPIVolumeFile]>,
    known: &[&str],
    path: &FieldPath,
    issues: &mut Issues,
) {
    for (i, item) in items.into_iter().flatten().enumerate() {
        let path = path.index(i);
        check_file(&item.path, &path.field("path"), issues);
        check_mode(item.mode, &path.field("mode"), issues);
        match (&item.field_ref, &item.resource_field_ref) {
            (None, None) => {
                issues.required(&path, "one of fieldRef and resourceFieldRef is required");
            }
            (Some(_), Some(_)) => {
                issues.invalid(
                    &path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (Some(field), None) => env::field_ref(field, &path.field("fieldRef"), issues),
            (None, Some(resource)) => {
                let path = path.field("resourceFieldRef");
                if resource.container_name.as_deref().unwrap_or_default().is_empty() {
                    issues.required(&path.field("containerName"), "");
                }
                env::resource_ref(resource, known, &path, issues);
            }
        }
    }
}

/// Tokens of service accounts, which only a cluster can give: `cluster` says that the pod comes from one.
pub(crate) fn check_tokens(spec: &v1::PodSpec, cluster: bool, issues: &mut Issues) {
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for (j, source) in sources.enumerate() {
            let Some(token) = &source.service_account_token else { continue };
            let path = FieldPath::of("spec").field("volumes").index(i).field("projected");
            let path = path.field("sources").index(j).field("serviceAccountToken");
            if !cluster {
                issues.forbidden(&path, "there are no service accounts without a cluster").hint(
                    "remove the source; with it also a kube-api-access volume that a cluster has added",
                );
            } else if token.path.is_empty() {
                issues.required(&path.field("path"), "");
            }
        }
    }
}

fn check_projected(
    projected: &v1::ProjectedVolumeSource,
    known: &[&str],
    path: &FieldPath,
    issues: &mut Issues,
) {
    check_mode(projected.default_mode, &path.field("defaultMode"), issues);
    let mut seen = HashSet::new();
    for (i, source) in projected.sources.iter().flatten().enumerate() {
        let path = path.field("sources").index(i);
        let sources = [
            source.config_map.is_some(),
            source.secret.is_some(),
            source.downward_api.is_some(),
            source.service_account_token.is_some(),
        ];
        if sources.iter().filter(|set| **set).count() > 1 {
            issues.forbidden(&path, "may not specify more than 1 volume type");
        }
        let mut files: Vec<(&str, FieldPath)> = Vec::new();
        if let Some(map) = &source.config_map {
            let path = path.field("configMap");
            check_reference(&map.name, &path.field("name"), issues);
            check_items(map.items.as_deref(), &path.field("items"), issues);
            files.extend(item_paths(map.items.as_deref(), &path.field("items")));
        }
        if let Some(secret) = &source.secret {
            let path = path.field("secret");
            check_reference(&secret.name, &path.field("name"), issues);
            check_items(secret.items.as_deref(), &path.field("items"), issues);
            files.extend(item_paths(secret.items.as_deref(), &path.field("items")));
        }
        if let Some(downward) = &source.downward_api {
            let path = path.field("downwardAPI").field("items");
            check_downward(downward.items.as_deref(), known, &path, issues);
            let items = downward.items.iter().flatten().enumerate();
            files.extend(items.map(|(i, item)| (item.path.as_str(), path.index(i).field("path"))));
        }
        if let Some(token) = &source.service_account_token {
            files.push((token.path.as_str(), path.field("serviceAccountToken").field("path")));
        }
        for (file, path) in files {
            if !seen.insert(file) && !file.is_empty() {
                issues.invalid(&path, file, "conflicting duplicate paths");
            }
        }
    }
}

fn item_paths<'a>(items: Option<&'a [v1::KeyToPath]>, path: &FieldPath) -> Vec<(&'a str, FieldPath)> {
    items
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(i, item)| (item.path.as_str(), path.index(i).field("path")))
        .collect()
}

/// Checks a container's `volumeMounts`.
pub(crate) fn check_mounts(
    container: &v1::Container,
    volumes: &[&str],
    path: &FieldPath,
    issues: &mut Issues,
) {
    let mut seen = HashSet::new();
    for (i, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = path.field("volumeMounts").index(i);
        if mount.name.is_empty() {
            issues.required(&path.field("name"), "");
        } else if !volumes.contains(&mount.name.as_str()) {
            issues.not_found(&path.field("name"), &mount.name).hint("no volume of that name in spec.volumes");
        }
        check_mount_path(&mount.mount_path, &path.field("mountPath"), issues);
        if !seen.insert(mount.mount_path.as_str()) && !mount.mount_path.is_empty() {
            issues.invalid(&path.field("mountPath"), mount.mount_path.as_str(), "must be unique");
        }
        for (field, sub) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
            if let Some((sub, detail)) = sub.as_deref().and_then(|sub| Some((sub, names::local_path(sub)?))) {
                issues.invalid(&path.field(field), sub, detail);
            }
        }
        let set = |sub: &Option<String>| sub.as_deref().is_some_and(|sub| !sub.is_empty());
        if let Some(expr) =
            mount.sub_path_expr.as_deref().filter(|_| set(&mount.sub_path) && set(&mount.sub_path_expr))
        {
            issues.invalid(
                &path.field("subPathExpr"),
                expr,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        check_propagation(container, mount, &path, issues);
    }
}

fn check_mount_path(mount_path: &str, path: &FieldPath, issues: &mut Issues) {
    if mount_path.is_empty() {
        issues.required(path, "");
    } else if mount_path.contains(':') {
        issues.invalid(path, mount_path, "must not contain ':'");
    } else if !mount_path.starts_with('/') {
        issues.invalid(path, mount_path, "must be an absolute path");
    }
}

fn check_propagation(
    container: &v1::Container,
    mount: &v1::VolumeMount,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let privileged = container.security_context.as_ref().and_then(|context| context.privileged) == Some(true);
    let at = path.field("mountPropagation");
    let propagation = mount.mount_propagation.as_deref();
    issues.one_of(&at, propagation, &["Bidirectional", "HostToContainer", "None"]);
    if propagation == Some("Bidirectional") && !privileged {
        issues.forbidden(&at, "Bidirectional mount propagation is available only to privileged containers");
    }
    let recursive = path.field("recursiveReadOnly");
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("IfPossible" | "Enabled") => {
            if mount.read_only != Some(true) {
                issues.forbidden(&recursive, "may only be specified when readOnly is true");
            }
            if propagation.is_some_and(|propagation| propagation != "None") {
                issues.forbidden(
                    &recursive,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        Some(other) => {
            issues.not_supported(&recursive, other, &["Disabled", "Enabled", "IfPossible"]);
        }
    }
}
