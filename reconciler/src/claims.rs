//! Which volume a claim gets: the rules of Kubernetes' volume binder, as pure functions.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::quantity::Quantity;

/// Annotation of a claim: `Retain` (the default) or `Delete` its data with it.
pub const RECLAIM_ANNOTATION: &str = "berth.dev/reclaim-policy";
/// Annotation of a volume that was made for a claim; its value is [`PROVISIONER`].
pub const PROVISIONED_ANNOTATION: &str = "pv.kubernetes.io/provisioned-by";
/// Who makes volumes here.
pub const PROVISIONER: &str = "berth.dev/local";
/// The storage class of volumes that are made for claims which name none.
pub const LOCAL_CLASS: &str = "local";

/// What becomes of a claim that has no volume yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It gets the volume at this place of the list.
    Bind(usize),
    /// A volume is made for it at once.
    Provision,
    /// A volume is made for it when the first pod uses it: until then somebody may bring one of that class.
    ProvisionForConsumer,
    /// It waits for somebody to bring a volume that fits.
    Wait,
}

/// Whether Berth made the volume for a claim.
pub fn is_provisioned(volume: &v1::PersistentVolume) -> bool {
    let annotations = volume.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(PROVISIONED_ANNOTATION)).is_some_and(|by| by == PROVISIONER)
}

/// The storage that a claim asks for.
pub fn requested(spec: &v1::PersistentVolumeClaimSpec) -> Quantity {
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    crate::resources::amount(requests, "storage").unwrap_or(Quantity::ZERO)
}

/// The storage that a volume offers.
pub fn capacity(spec: &v1::PersistentVolumeSpec) -> Quantity {
    crate::resources::amount(spec.capacity.as_ref(), "storage").unwrap_or(Quantity::ZERO)
}

/// Chooses for a claim among volumes: the one that it names or that names it, else the smallest that fits, else one
/// is made, unless the claim says that only existing volumes will do.
pub fn choose(
    namespace: &str,
    name: &str,
    spec: &v1::PersistentVolumeClaimSpec,
    volumes: &[&v1::PersistentVolume],
) -> Choice {
    if let Some(wanted) = spec.volume_name.as_deref().filter(|wanted| !wanted.is_empty()) {
        let found = volumes.iter().position(|v| v.metadata.name.as_deref() == Some(wanted));
        let free = found.filter(|i| reserved_for(volumes[*i]).is_none_or(|by| by == (namespace, name)));
        return free.filter(|i| serves(volumes[*i], spec)).map_or(Choice::Wait, Choice::Bind);
    }
    if let Some(own) = volumes.iter().position(|v| reserved_for(v) == Some((namespace, name)))
        && serves(volumes[own], spec)
    {
        return Choice::Bind(own);
    }
    let smallest = (0..volumes.len())
        .filter(|i| reserved_for(volumes[*i]).is_none() && fits(volumes[*i], spec))
        .min_by_key(|i| (volumes[*i].spec.as_ref().map(capacity), volumes[*i].metadata.name.clone()));
    match smallest {
        Some(volume) => Choice::Bind(volume),
        None if spec.selector.is_some() => Choice::Wait,
        None => match spec.storage_class_name.as_deref() {
            Some("") => Choice::Wait,
            None | Some(LOCAL_CLASS) => Choice::Provision,
            Some(_) => Choice::ProvisionForConsumer,
        },
    }
}

/// The claim that a volume is for.
pub fn reserved_for(volume: &v1::PersistentVolume) -> Option<(&str, &str)> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some((claim.namespace.as_deref()?, claim.name.as_deref()?))
}

/// Whether a volume that is meant for a claim can be used by it: all its access modes, and large enough. A volume that was
/// made for the claim is as large as the claim says.
fn serves(volume: &v1::PersistentVolume, spec: &v1::PersistentVolumeClaimSpec) -> bool {
    let Some(offered) = &volume.spec else { return false };
    if is_provisioned(volume) {
        return true;
    }
    let modes = offered.access_modes.as_deref().unwrap_or_default();
    spec.access_modes.iter().flatten().all(|mode| modes.contains(mode))
        && capacity(offered) >= requested(spec)
}

/// Whether a volume that nobody has chosen will do for a claim.
fn fits(volume: &v1::PersistentVolume, spec: &v1::PersistentVolumeClaimSpec) -> bool {
    let offered =
        volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
    // A claim that names no class is content with volumes of none, too.
    let class = match spec.storage_class_name.as_deref() {
        Some(class) => offered == class,
        None => matches!(offered, "" | LOCAL_CLASS),
    };
    let labels = volume.metadata.labels.clone().unwrap_or_default();
    class
        && serves(volume, spec)
        && volume.metadata.deletion_timestamp.is_none()
        && spec.selector.as_ref().is_none_or(|selector| selector_matches(selector, &labels))
}

/// Whether labels fulfil every term of a selector.
pub fn selector_matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    let fulfils = |term: &LabelSelectorRequirement| {
        requirement(&term.operator, term.values.as_deref().unwrap_or_default(), labels.get(&term.key))
    };
    selector.match_labels.iter().flatten().all(has)
        && selector.match_expressions.iter().flatten().all(fulfils)
}

/// Whether a node fulfils any term of a node selector; a term without requirements matches nothing.
pub fn node_affinity_matches(
    selector: &v1::NodeSelector,
    labels: &BTreeMap<String, String>,
    node_name: &str,
) -> bool {
    selector.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let node_name = node_name.to_owned();
        let check = |one: &v1::NodeSelectorRequirement, value: Option<&String>| {
            requirement(&one.operator, one.values.as_deref().unwrap_or_default(), value)
        };
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|one| check(one, labels.get(&one.key)))
            && fields.iter().all(|one| check(one, (one.key == "metadata.name").then_some(&node_name)))
    })
}

/// The volume of a claim that an API server keeps, by name.
///
/// # Errors
/// Why the claim has none that a pod could use: it is not bound, or its volume is to be a device.
pub fn volume_of(claim: &v1::PersistentVolumeClaim) -> Result<&str, String> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let spec = claim.spec.as_ref();
    let volume = spec.and_then(|spec| spec.volume_name.as_deref()).filter(|volume| !volume.is_empty());
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    match volume {
        Some(volume) if phase == "Bound" => Ok(volume),
        _ => Err(format!("persistentvolumeclaim {name:?} is not bound: its phase is {phase}")),
    }
}

/// Whether pods of a node can use the volume that a claim is bound to: what kubelet checks before it mounts one.
///
/// # Errors
/// What is wrong with the volume, or that it is of a kind that this node cannot mount.
pub fn check_bound(
    claim: &v1::PersistentVolumeClaim,
    volume: &v1::PersistentVolume,
    labels: &BTreeMap<String, String>,
    node_name: &str,
) -> Result<(), String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.as_ref().ok_or_else(|| format!("volume {name:?} has no spec"))?;
    let whose = spec.claim_ref.as_ref().and_then(|claim| claim.uid.as_deref());
    if whose.is_none() || whose != claim.metadata.uid.as_deref() {
        return Err(format!("volume {name:?} is bound to another claim"));
    }
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    if required.is_some_and(|required| !node_affinity_matches(required, labels, node_name)) {
        return Err(format!("volume {name:?}: its nodeAffinity does not match this node"));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!("volume {name:?}: volumeMode Block is not supported; use Filesystem"));
    }
    if spec.host_path.is_none() && spec.local.is_none() {
        let kind = source_name(spec);
        return Err(format!(
            "volume {name:?} is of type {kind}, which this node cannot mount; supported: hostPath, local"
        ));
    }
    if spec.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Err(format!(
            "volume {name:?}: mountOptions are not supported by volumes of type {}",
            source_name(spec)
        ));
    }
    Ok(())
}

/// The kind of a volume, as its field is called.
fn source_name(spec: &v1::PersistentVolumeSpec) -> String {
    let bare = v1::PersistentVolumeSpec {
        access_modes: None,
        capacity: None,
        claim_ref: None,
        mount_options: None,
        node_affinity: None,
        persistent_volume_reclaim_policy: None,
        storage_class_name: None,
        volume_attributes_class_name: None,
        volume_mode: None,
        ..spec.clone()
    };
    let value = serde_json::to_value(bare).unwrap_or_default();
    value.as_object().and_then(|all| all.keys().next().cloned()).unwrap_or_else(|| "unknown".to_owned())
}

/// Whether the claim of a generic ephemeral volume belongs to the pod of that uid: a claim by the same name may be somebody's data.
pub fn is_made_for(claim: &v1::PersistentVolumeClaim, uid: &str) -> bool {
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| owner.controller == Some(true) && owner.kind == "Pod" && owner.uid == uid)
}

fn requirement(operator: &str, values: &[String], value: Option<&String>) -> bool {
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    match operator {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" | "Lt" => match (number(value), number(values.first())) {
            (Some(value), Some(bound)) if operator == "Gt" => value > bound,
            (Some(value), Some(bound)) => value < bound,
            _ => false,
        },
        _ => false,
    }
}
