//! The checked pod: what a source hands to the reconciler once a manifest has passed every check.

use std::path::PathBuf;
use std::sync::OnceLock;

use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

use crate::planner::spec_hash;
use crate::resources::{QosClass, qos_class};

/// Where a pod comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A manifest file; its pod is replaced when the text changes and deleted when the file goes.
    File(PathBuf),
    /// The agent's own API.
    Api,
    /// The API server of a cluster that the machine is a node of.
    Cluster,
}

/// A pod whose manifest has been checked and whose defaults have been filled in.
///
/// `object.metadata` has name, namespace, uid and creationTimestamp; `object.spec` has a node name and every
/// default that the Kubernetes API server would have written. `object.status` is always empty here.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// The Kubernetes object.
    pub object: v1::Pod,
    /// Where it comes from.
    pub source: Source,
    /// What every look at the pod needs and only a change of the object changes.
    #[serde(skip)]
    derived: Derived,
}

/// What follows from the rest and is made when it is asked for first.
#[derive(Debug, Default)]
struct Derived {
    /// The ephemeral containers as containers, which differ in type only.
    ephemeral: OnceLock<Vec<v1::Container>>,
    /// Names of containers and the hashes of their specs.
    hashes: OnceLock<Vec<(String, String)>>,
    qos: OnceLock<QosClass>,
}

impl Clone for Derived {
    /// The copy of a pod may be changed, so nothing is taken over.
    fn clone(&self) -> Self {
        Derived::default()
    }
}

impl PartialEq for Pod {
    fn eq(&self, other: &Pod) -> bool {
        self.object == other.object && self.source == other.source
    }
}

impl Pod {
    /// A checked object and where it comes from.
    pub fn new(object: v1::Pod, source: Source) -> Pod {
        Pod { object, source, derived: Derived::default() }
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.object.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        self.object.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// `namespace/name`, as it is shown to people.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }

    /// `spec`; a checked pod always has one.
    pub fn spec(&self) -> &v1::PodSpec {
        self.object.spec.as_ref().expect("a checked pod has a spec")
    }

    /// Init containers, main containers, ephemeral containers.
    pub fn all_containers(&self) -> impl Iterator<Item = &v1::Container> {
        self.spec().init_containers.iter().flatten().chain(&self.spec().containers).chain(self.ephemeral())
    }

    /// Ephemeral containers as containers, in their order.
    pub fn ephemeral(&self) -> &[v1::Container] {
        match self.spec().ephemeral_containers.as_deref() {
            None | Some([]) => &[],
            Some(list) => self.derived.ephemeral.get_or_init(|| list.iter().map(as_container).collect()),
        }
    }

    /// The container whose processes an ephemeral container is to see (`targetContainerName`).
    pub fn target_of(&self, ephemeral: &str) -> Option<&str> {
        let mut list = self.spec().ephemeral_containers.iter().flatten();
        let target = list.find(|container| container.name == ephemeral)?.target_container_name.as_deref();
        target.filter(|name| !name.is_empty())
    }

    /// [`spec_hash`] of the container of that name; empty for a name that is unknown.
    pub fn hash_of(&self, container: &str) -> &str {
        let all = || self.all_containers().map(|c| (c.name.clone(), spec_hash(c))).collect();
        let known: &Vec<_> = self.derived.hashes.get_or_init(all);
        known.iter().find(|(name, _)| name == container).map_or("", |(_, hash)| hash)
    }

    /// The pod's QoS class.
    pub fn qos_class(&self) -> QosClass {
        *self.derived.qos.get_or_init(|| qos_class(self.spec()))
    }

    /// The container of that name, of whichever kind.
    pub fn container(&self, name: &str) -> Option<&v1::Container> {
        self.all_containers().find(|c| c.name == name)
    }
}

/// An ephemeral container without its target. Fields that Kubernetes forbids for it are there as they are: the checks
/// have refused them.
pub fn as_container(ephemeral: &v1::EphemeralContainer) -> v1::Container {
    let e = ephemeral.clone();
    v1::Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}
