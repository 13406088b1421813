//! The defaults that the API server writes into a pod (`pkg/apis/core/v1/defaults.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Context;
use crate::pod::as_container;
use crate::quantity::Quantity;
use crate::resources::is_pod_level;

/// Fills in what the pod leaves open.
pub(crate) fn pod(pod: &mut v1::Pod) {
    let spec = pod.spec.get_or_insert_default();
    or(&mut spec.dns_policy, "ClusterFirst");
    or(&mut spec.restart_policy, "Always");
    or(&mut spec.scheduler_name, "default-scheduler");
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    if spec.service_account_name.as_deref().unwrap_or_default().is_empty() {
        spec.service_account_name = spec.service_account.clone();
    }
    spec.service_account = spec.service_account_name.clone();
    let host_network = spec.host_network == Some(true);
    for c in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        container(c, host_network);
    }
    spec.ephemeral_containers.iter_mut().flatten().for_each(ephemeral);
    for v in spec.volumes.iter_mut().flatten() {
        volume(v);
    }
    pod_resources(spec);
}

/// Fills in what the pod's runtime costs, as the API server does from the RuntimeClass.
pub(crate) fn overhead(spec: &mut v1::PodSpec, context: &Context) {
    let runtime = spec.runtime_class_name.as_deref().unwrap_or_default();
    if spec.overhead.is_none() {
        spec.overhead = context.overheads.get(runtime).cloned();
    }
    spec.overhead.iter_mut().for_each(canonical);
}

/// What the pod as a whole requests follows from its containers' requests, else from its own limits.
fn pod_resources(spec: &mut v1::PodSpec) {
    let alone = v1::PodSpec { resources: None, overhead: None, ..spec.clone() };
    let Some(resources) = &mut spec.resources else { return };
    for list in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
        canonical(list);
    }
    let Some(limits) = resources.limits.clone().filter(|limits| !limits.is_empty()) else { return };
    let sum = crate::resources::pod_requests(&alone);
    let requests = resources.requests.get_or_insert_default();
    for (name, sum) in sum.quantities() {
        if !sum.is_zero() {
            requests.entry(name.to_owned()).or_insert_with(|| sum.to_api());
        }
    }
    let good = |(name, limit): &(&String, &ApiQuantity)| is_pod_level(name) && Quantity::of(limit).is_ok();
    for (name, limit) in limits.iter().filter(good) {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

/// Fills in what a Secret leaves open and merges `stringData`, which wins.
pub(crate) fn secret(secret: &mut v1::Secret) {
    or(&mut secret.type_, "Opaque");
    let strings = secret.string_data.take().unwrap_or_default();
    if !strings.is_empty() {
        let data = secret.data.get_or_insert_default();
        data.extend(strings.into_iter().map(|(key, text)| (key, k8s_openapi::ByteString(text.into_bytes()))));
    }
}

/// Fills in what a claim leaves open.
pub(crate) fn claim(claim: &mut v1::PersistentVolumeClaim) {
    if let Some(spec) = &mut claim.spec {
        claim_spec(spec);
    }
}

fn claim_spec(spec: &mut v1::PersistentVolumeClaimSpec) {
    or(&mut spec.volume_mode, "Filesystem");
    if let Some(requests) = spec.resources.as_mut().and_then(|resources| resources.requests.as_mut()) {
        canonical(requests);
    }
}

/// Fills in what a PersistentVolume leaves open.
pub(crate) fn volume_object(volume: &mut v1::PersistentVolume) {
    let Some(spec) = &mut volume.spec else { return };
    or(&mut spec.volume_mode, "Filesystem");
    or(&mut spec.persistent_volume_reclaim_policy, "Retain");
    if let Some(capacity) = &mut spec.capacity {
        canonical(capacity);
    }
    if let Some(host) = &mut spec.host_path {
        host.type_.get_or_insert_default();
    }
}

/// Gives a Namespace the label of its name.
pub(crate) fn namespace(namespace: &mut v1::Namespace) {
    let name = namespace.metadata.name.clone().unwrap_or_default();
    namespace.metadata.labels.get_or_insert_default().insert(super::NAMESPACE_NAME.to_owned(), name);
}

/// Fills in what a NetworkPolicy leaves open: it always says what pods may receive, and what they may send if it has rules
/// for that.
pub(crate) fn network_policy(policy: &mut NetworkPolicy) {
    let Some(spec) = &mut policy.spec else { return };
    spec.pod_selector.get_or_insert_default();
    if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let types = [Some("Ingress"), egress.then_some("Egress")];
        spec.policy_types = Some(types.into_iter().flatten().map(str::to_owned).collect());
    }
    let ingress = spec.ingress.iter_mut().flatten().flat_map(|rule| &mut rule.ports);
    let egress = spec.egress.iter_mut().flatten().flat_map(|rule| &mut rule.ports);
    for port in ingress.chain(egress).flatten() {
        or(&mut port.protocol, "TCP");
    }
}

/// Fills in what a Service leaves open, but for what is allocated to it.
pub(crate) fn service(service: &mut v1::Service) {
    const AFFINITY_SECONDS: i32 = 10_800;
    let Some(spec) = &mut service.spec else { return };
    or(&mut spec.type_, "ClusterIP");
    or(&mut spec.session_affinity, "None");
    if spec.type_.as_deref() != Some("ExternalName") {
        or(&mut spec.internal_traffic_policy, "Cluster");
    }
    if spec.type_.as_deref() == Some("NodePort") {
        or(&mut spec.external_traffic_policy, "Cluster");
    }
    // Each may be given by the other.
    if spec.cluster_ip.as_deref().unwrap_or_default().is_empty() {
        spec.cluster_ip = spec.cluster_ips.as_ref().and_then(|all| all.first()).cloned();
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config = spec.session_affinity_config.get_or_insert_default();
        config.client_ip.get_or_insert_default().timeout_seconds.get_or_insert(AFFINITY_SECONDS);
    }
    for port in spec.ports.iter_mut().flatten() {
        or(&mut port.protocol, "TCP");
        match &port.target_port {
            Some(IntOrString::Int(0)) | None => port.target_port = Some(IntOrString::Int(port.port)),
            Some(IntOrString::String(name)) if name.is_empty() => {
                port.target_port = Some(IntOrString::Int(port.port));
            }
            _ => {}
        }
    }
}

/// Sets a field that is absent or empty.
fn or(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

fn container(container: &mut v1::Container, host_network: bool) {
    let policy =
        if tag_is_latest(container.image.as_deref().unwrap_or_default()) { "Always" } else { "IfNotPresent" };
    or(&mut container.image_pull_policy, policy);
    or(&mut container.termination_message_path, "/dev/termination-log");
    or(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        or(&mut port.protocol, "TCP");
        if host_network && port.host_port.unwrap_or_default() == 0 {
            port.host_port = Some(port.container_port);
        }
    }
    for probe in [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe]
    {
        probe.iter_mut().for_each(self::probe);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        for hook in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
            hook.http_get.iter_mut().for_each(http_get);
        }
    }
    for var in container.env.iter_mut().flatten() {
        for field in var.value_from.iter_mut().filter_map(|source| source.field_ref.as_mut()) {
            or(&mut field.api_version, "v1");
        }
    }
    let resources = container.resources.get_or_insert_default();
    for list in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
        canonical(list);
    }
    if let Some(limits) = &resources.limits {
        let requests = resources.requests.get_or_insert_default();
        // A limit that is no quantity is reported once, as a limit.
        for (name, limit) in limits.iter().filter(|(_, limit)| Quantity::of(limit).is_ok()) {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
}

/// Quantities as the API server shows them: `1000m` is `1`.
fn canonical(list: &mut BTreeMap<String, ApiQuantity>) {
    for text in list.values_mut() {
        if let Ok(quantity) = Quantity::of(text) {
            *text = quantity.to_api();
        }
    }
}

fn ephemeral(ephemeral: &mut v1::EphemeralContainer) {
    let mut filled = as_container(ephemeral);
    container(&mut filled, false);
    ephemeral.image_pull_policy = filled.image_pull_policy;
    ephemeral.termination_message_path = filled.termination_message_path;
    ephemeral.termination_message_policy = filled.termination_message_policy;
    ephemeral.env = filled.env;
}

fn probe(probe: &mut v1::Probe) {
    let fields = [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ];
    for (field, value) in fields {
        if field.unwrap_or_default() == 0 {
            *field = Some(value);
        }
    }
    probe.http_get.iter_mut().for_each(http_get);
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn http_get(get: &mut v1::HTTPGetAction) {
    or(&mut get.path, "/");
    or(&mut get.scheme, "HTTP");
}

fn volume(volume: &mut v1::Volume) {
    const MODE: i32 = 0o644;
    /// How long a token of a service account is good for where nothing is said.
    const TOKEN_SECONDS: i64 = 3600;
    let any = volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.ephemeral.is_some()
        || volume.image.is_some();
    if !any && !is_of_other_type(volume) {
        volume.empty_dir = Some(v1::EmptyDirVolumeSource::default());
    }
    if let Some(host) = &mut volume.host_path {
        host.type_.get_or_insert_default();
    }
    if let Some(template) = volume.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()) {
        claim_spec(&mut template.spec);
    }
    if let Some(image) = &mut volume.image {
        let latest = tag_is_latest(image.reference.as_deref().unwrap_or_default());
        or(&mut image.pull_policy, if latest { "Always" } else { "IfNotPresent" });
    }
    if let Some(map) = &mut volume.config_map {
        map.default_mode.get_or_insert(MODE);
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(MODE);
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(MODE);
        downward.items.iter_mut().flatten().for_each(downward_file);
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(MODE);
        for downward in
            projected.sources.iter_mut().flatten().filter_map(|source| source.downward_api.as_mut())
        {
            downward.items.iter_mut().flatten().for_each(downward_file);
        }
        for token in
            projected.sources.iter_mut().flatten().filter_map(|source| source.service_account_token.as_mut())
        {
            token.expiration_seconds.get_or_insert(TOKEN_SECONDS);
        }
    }
}

/// Whether a volume has a source that is not supported here, as one of another node may have.
fn is_of_other_type(volume: &v1::Volume) -> bool {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    fields.as_object().is_some_and(|fields| fields.keys().any(|field| field != "name"))
}

fn downward_file(file: &mut v1::DownwardAPIVolumeFile) {
    if let Some(field) = &mut file.field_ref {
        or(&mut field.api_version, "v1");
    }
}

/// Whether an image reference means the tag `latest`: by name, or by naming neither tag nor digest.
fn tag_is_latest(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    match (name.split_once('@'), name.rsplit_once(':')) {
        (Some((name, _)), _) => name.ends_with(":latest"),
        (None, Some((_, tag))) => tag == "latest",
        (None, None) => true,
    }
}
