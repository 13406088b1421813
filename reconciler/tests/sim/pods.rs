//! Random pods.

use std::collections::BTreeMap;

use berth_reconciler::pod::{Pod, Source};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::rng::Rng;

pub fn pod(rng: &mut Rng) -> Pod {
    let policy = *rng.pick(&["Always", "Always", "OnFailure", "Never"]);
    let inits = if rng.percent(50) { 0 } else { rng.between(1, 3) };
    let mut spec = v1::PodSpec {
        restart_policy: Some(policy.to_owned()),
        termination_grace_period_seconds: Some(*rng.pick(&[0, 1, 5, 30, 30])),
        active_deadline_seconds: rng.percent(10).then(|| rng.between(1, 120)),
        ..v1::PodSpec::default()
    };
    let inits: Vec<_> = (0..inits).map(|index| init_container(rng, index)).collect();
    spec.init_containers = (!inits.is_empty()).then_some(inits);
    spec.containers = (0..rng.between(1, 3)).map(|index| main_container(rng, index)).collect();
    let mut object = v1::Pod { spec: Some(spec), ..v1::Pod::default() };
    object.metadata.name = Some("sim".to_owned());
    object.metadata.namespace = Some("default".to_owned());
    object.metadata.uid = Some("uid".to_owned());
    Pod::new(object, Source::Api)
}

/// What each container asks for.
pub fn wanted(pod: &Pod) -> BTreeMap<String, v1::ResourceRequirements> {
    pod.all_containers().map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// More cpu than the node has.
const TOO_MUCH: &str = "1000";

/// Whether the node can never give what the pod asks for.
pub fn infeasible(pod: &Pod) -> bool {
    let asks = |r: &v1::ResourceRequirements| r.requests.as_ref()?.get("cpu").map(|q| q.0.clone());
    wanted(pod).values().any(|resources| asks(resources).as_deref() == Some(TOO_MUCH))
}

pub fn resources(rng: &mut Rng) -> v1::ResourceRequirements {
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
        container.startup_probe = rng.percent(30).then(|| probe(rng));
        container.readiness_probe = rng.percent(20).then(|| probe(rng));
        container.lifecycle = lifecycle(rng);
    }
    container
}

fn main_container(rng: &mut Rng, index: i64) -> v1::Container {
    let mut container = bare(format!("main{index}"));
    container.startup_probe = rng.percent(20).then(|| probe(rng));
    container.liveness_probe = rng.percent(25).then(|| probe(rng));
    container.readiness_probe = rng.percent(25).then(|| probe(rng));
    container.lifecycle = lifecycle(rng);
    container.resources = rng.percent(50).then(|| resources(rng));
    container.resize_policy = resize_policy(rng);
    if rng.percent(15) {
        container.restart_policy = Some((*rng.pick(&["Always", "OnFailure", "Never"])).to_owned());
        let exit_codes = v1::ContainerRestartRuleOnExitCodes {
            operator: (*rng.pick(&["In", "NotIn"])).to_owned(),
            values: Some(vec![3, 137]),
        };
        let action = (*rng.pick(&["Restart", "RestartAllContainers"])).to_owned();
        let rule = v1::ContainerRestartRule { action, exit_codes: Some(exit_codes) };
        container.restart_policy_rules = rng.percent(50).then(|| vec![rule]);
    }
    container
}

/// The same pod with one ephemeral container more.
pub fn debugged(pod: &Pod) -> Pod {
    let mut object = pod.object.clone();
    let spec = object.spec.as_mut().unwrap();
    let list = spec.ephemeral_containers.get_or_insert_default();
    let (name, image) = (format!("debug{}", list.len()), Some("image:0".to_owned()));
    list.push(v1::EphemeralContainer { name, image, ..v1::EphemeralContainer::default() });
    Pod::new(object, pod.source.clone())
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

fn probe(rng: &mut Rng) -> v1::Probe {
    v1::Probe {
        period_seconds: Some(i32::try_from(rng.between(5, 30)).unwrap()),
        initial_delay_seconds: rng.percent(30).then(|| i32::try_from(rng.between(0, 20)).unwrap()),
        failure_threshold: Some(i32::try_from(rng.between(1, 3)).unwrap()),
        success_threshold: Some(1),
        termination_grace_period_seconds: rng.percent(20).then(|| rng.between(0, 10)),
        ..v1::Probe::default()
    }
}
