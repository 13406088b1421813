//! Random pods, and the changes that can be made to one while it runs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::rng::Rng;
use crate::pod::{Pod, Source};

/// The condition that some pods wait for before they are ready.
pub(super) const GATE: &str = "example.org/gate";
/// More cpu than the node has.
const TOO_MUCH: &str = "1000";

pub(super) fn is_sidecar(container: &v1::Container) -> bool {
    is_init(&container.name) && container.restart_policy.as_deref() == Some("Always")
}

/// Whether it is an init container, be it a sidecar.
pub(super) fn is_init(name: &str) -> bool {
    name.starts_with("init")
}

pub(super) fn is_ephemeral(name: &str) -> bool {
    name.starts_with("debug")
}

/// A pod with something of everything that the planner acts on.
pub(super) fn pod(rng: &mut Rng, uid: &str) -> Pod {
    let policy = *rng.pick(&["Always", "Always", "OnFailure", "Never"]);
    let inits = if rng.percent(50) { 0 } else { rng.between(1, 3) };
    let gate = || v1::PodReadinessGate { condition_type: GATE.to_owned() };
    let mut spec = v1::PodSpec {
        restart_policy: Some(policy.to_owned()),
        termination_grace_period_seconds: Some(*rng.pick(&[0, 1, 5, 30, 30])),
        active_deadline_seconds: rng.percent(8).then(|| rng.between(1, 120)),
        readiness_gates: rng.percent(10).then(|| vec![gate()]),
        ..v1::PodSpec::default()
    };
    let inits: Vec<_> = (0..inits).map(|index| init_container(rng, index)).collect();
    spec.init_containers = (!inits.is_empty()).then_some(inits);
    spec.containers = (0..rng.between(1, 3)).map(|index| main_container(rng, index)).collect();
    let mut object = v1::Pod { spec: Some(spec), ..v1::Pod::default() };
    object.metadata.name = Some("sim".to_owned());
    object.metadata.namespace = Some("default".to_owned());
    object.metadata.uid = Some(uid.to_owned());
    object.metadata.generation = Some(1);
    Pod::new(object, Source::Api)
}

/// The same pod with another spec, one generation later.
pub(super) fn changed(pod: &Pod, change: impl FnOnce(&mut v1::PodSpec)) -> Pod {
    let mut object = pod.object.clone();
    change(object.spec.as_mut().unwrap());
    *object.metadata.generation.get_or_insert(0) += 1;
    Pod::new(object, pod.source.clone())
}

/// The same pod with one ephemeral container more.
pub(super) fn debugged(pod: &Pod) -> Pod {
    changed(pod, |spec| {
        let list = spec.ephemeral_containers.get_or_insert_default();
        let (name, image) = (format!("debug{}", list.len()), Some("image:0".to_owned()));
        list.push(v1::EphemeralContainer { name, image, ..v1::EphemeralContainer::default() });
    })
}

/// One of the pod's containers that can be changed in place.
pub(super) fn some_container<'a>(rng: &mut Rng, spec: &'a mut v1::PodSpec) -> &'a mut v1::Container {
    let sidecars = spec.init_containers.iter_mut().flatten().filter(|container| is_sidecar(container));
    let mut all: Vec<_> = spec.containers.iter_mut().chain(sidecars).collect();
    let index = usize::try_from(rng.below(all.len() as u64)).unwrap();
    all.swap_remove(index)
}

/// What each container asks for.
pub(super) fn wanted(pod: &Pod) -> BTreeMap<String, v1::ResourceRequirements> {
    pod.all_containers().map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// Whether the node can never give what the pod asks for.
pub(super) fn infeasible(pod: &Pod) -> bool {
    let asks = |c: &v1::Container| Some(c.resources.as_ref()?.requests.as_ref()?.get("cpu")?.0 == TOO_MUCH);
    pod.all_containers().any(|container| asks(container) == Some(true))
}

pub(super) fn resources(rng: &mut Rng) -> v1::ResourceRequirements {
    let cpu = *rng.pick(&["100m", "200m", "1", "2", TOO_MUCH]);
    let memory = *rng.pick(&["64Mi", "128Mi"]);
    let list = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpu.to_owned())),
        ("memory".to_owned(), Quantity(memory.to_owned())),
    ]);
    v1::ResourceRequirements { requests: Some(list), ..v1::ResourceRequirements::default() }
}

fn resize_policy(rng: &mut Rng) -> Option<Vec<v1::ContainerResizePolicy>> {
    let one = |resource: &str, restart: &str| v1::ContainerResizePolicy {
        resource_name: resource.to_owned(),
        restart_policy: restart.to_owned(),
    };
    let restart = *rng.pick(&["NotRequired", "RestartContainer"]);
    rng.percent(40).then(|| vec![one("cpu", "NotRequired"), one("memory", restart)])
}

fn init_container(rng: &mut Rng, index: i64) -> v1::Container {
    let mut container = bare(format!("init{index}"));
    if rng.percent(50) {
        container.restart_policy = Some("Always".to_owned());
        container.startup_probe = rng.percent(30).then(|| probe(rng, false));
        container.liveness_probe = rng.percent(15).then(|| probe(rng, false));
        container.readiness_probe = rng.percent(20).then(|| probe(rng, true));
        container.lifecycle = lifecycle(rng);
        container.resources = rng.percent(30).then(|| resources(rng));
        container.resize_policy = resize_policy(rng);
        let rules = || vec![rule("RestartAllContainers", "In", &[3])];
        container.restart_policy_rules = rng.percent(10).then(rules);
    } else if rng.percent(25) {
        container.restart_policy = Some((*rng.pick(&["OnFailure", "Never"])).to_owned());
        let action = *rng.pick(&["Restart", "RestartAllContainers"]);
        container.restart_policy_rules = rng.percent(50).then(|| vec![rule(action, "NotIn", &[0, 137])]);
    }
    container
}

fn main_container(rng: &mut Rng, index: i64) -> v1::Container {
    let mut container = bare(format!("main{index}"));
    container.startup_probe = rng.percent(20).then(|| probe(rng, false));
    container.liveness_probe = rng.percent(25).then(|| probe(rng, false));
    container.readiness_probe = rng.percent(25).then(|| probe(rng, true));
    container.lifecycle = lifecycle(rng);
    container.resources = rng.percent(50).then(|| resources(rng));
    container.resize_policy = resize_policy(rng);
    if rng.percent(20) {
        container.restart_policy = Some((*rng.pick(&["Always", "OnFailure", "Never"])).to_owned());
        let one = |rng: &mut Rng| {
            let action = *rng.pick(&["Restart", "RestartAllContainers"]);
            let operator = *rng.pick(&["In", "NotIn"]);
            rule(action, operator, if rng.percent(50) { &[3, 137] } else { &[1] })
        };
        let rules: Vec<_> = (0..rng.between(0, 2)).map(|_| one(rng)).collect();
        container.restart_policy_rules = (!rules.is_empty()).then_some(rules);
    }
    container
}

fn rule(action: &str, operator: &str, codes: &[i32]) -> v1::ContainerRestartRule {
    let (operator, values) = (operator.to_owned(), Some(codes.to_vec()));
    let exit_codes = Some(v1::ContainerRestartRuleOnExitCodes { operator, values });
    v1::ContainerRestartRule { action: action.to_owned(), exit_codes }
}

fn bare(name: String) -> v1::Container {
    v1::Container { name, image: Some("image:0".to_owned()), ..v1::Container::default() }
}

fn lifecycle(rng: &mut Rng) -> Option<v1::Lifecycle> {
    let handler = || v1::LifecycleHandler {
        sleep: Some(v1::SleepAction { seconds: 1 }),
        ..v1::LifecycleHandler::default()
    };
    let post_start = rng.percent(15).then(handler);
    let pre_stop = rng.percent(15).then(handler);
    rng.percent(80).then(|| v1::Lifecycle { post_start, pre_stop, ..v1::Lifecycle::default() })
}

fn probe(rng: &mut Rng, readiness: bool) -> v1::Probe {
    let small = |rng: &mut Rng, most| i32::try_from(rng.between(1, most)).unwrap();
    v1::Probe {
        period_seconds: Some(small(rng, 26) + 4),
        initial_delay_seconds: rng.percent(30).then(|| small(rng, 20)),
        failure_threshold: Some(small(rng, 3)),
        success_threshold: Some(if readiness { small(rng, 2) } else { 1 }),
        termination_grace_period_seconds: (!readiness && rng.percent(20)).then(|| rng.between(0, 10)),
        ..v1::Probe::default()
    }
}
