//! Who may do what: administrators everything, a node what a node needs, a machine that joins ask for its certificate.
//!
//! What nodes may is what Kubernetes' node authoriser and its admission plugin NodeRestriction let them (Kubernetes
//! documentation, "Using Node Authorization").

use berth_reconciler::manifest::MIRROR_ANNOTATION as MIRROR;
use berth_reconciler::pod::{Pod, Source};
use serde_json::Value;

use super::{BOOTSTRAPPERS, Hub, Key, account_of, node_of};
use crate::api::ADMINS;
use crate::configs::{references, uses};
use crate::store::Kind;

/// The group of nodes, and what their names begin with.
const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";
/// Labels with this prefix are never a node's own to set.
const RESTRICTED: &str = "node-restriction.kubernetes.io/";

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`; the method in small letters for other paths.
    pub verb: String,
    /// The path, if it is not of an object.
    pub path: Option<String>,
    /// The group of the API; empty for the core group.
    pub group: String,
    /// The resource, as `pods`.
    pub resource: String,
    /// The part of it, as `status`; empty for the whole.
    pub subresource: String,
    /// The namespace; empty for all, and for what is in none.
    pub namespace: String,
    /// The object's name; empty for all.
    pub name: String,
    /// The node that a list of pods is of, by its field selector.
    pub on_node: String,
}

/// The node that a user is; none for others.
pub fn node_user<'a>(user: &'a str, groups: &[String]) -> Option<&'a str> {
    let member = groups.iter().any(|group| group == NODES);
    user.strip_prefix(NODE).filter(|name| member && !name.is_empty())
}

impl Hub {
    /// Whether a user may do that; if not, why, as far as there is more to say.
    ///
    /// # Errors
    /// The reason, which may be empty.
    pub fn authorize(&self, user: &str, groups: &[String], asked: &Attributes) -> Result<(), String> {
        let member = |group: &str| groups.iter().any(|one| one == group);
        if member(ADMINS) {
            return Ok(());
        }
        let allowed = if let Some(path) = &asked.path {
            member("system:authenticated") && asked.verb == "get" && told_to_all(path)
        } else if selfish(asked) {
            member("system:authenticated")
        } else if let Some(node) = node_user(user, groups) {
            return self.node_may(node, asked);
        } else {
            member(BOOTSTRAPPERS)
                && asked.group == "certificates.k8s.io"
                && asked.resource == "certificatesigningrequests"
                && asked.subresource.is_empty()
                && one_of(&asked.verb, &["create", "get", "list", "watch"])
        };
        if allowed { Ok(()) } else { Err(String::new()) }
    }

    fn node_may(&self, node: &str, asked: &Attributes) -> Result<(), String> {
        if node == self.own {
            return Err(format!("node '{node}' is the one that serves this API, and needs no rights here"));
        }
        let unknown = || Err(format!("no relationship found between node '{node}' and this object"));
        let read = one_of(&asked.verb, &["get", "list", "watch"]);
        let own = asked.name == node;
        let written = one_of(&asked.verb, &["create", "update", "patch"]);
        match (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()) {
            ("", "nodes", "") if asked.verb == "create" || own && (read || written) => Ok(()),
            ("", "nodes", "status") if own && one_of(&asked.verb, &["get", "update", "patch"]) => Ok(()),
            ("", "nodes", _) => Err(format!("node '{node}' can only use its own node object")),
            ("", "pods", "") if one_of(&asked.verb, &["list", "watch"]) => match asked.on_node == node {
                true => Ok(()),
                false => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
            },
            ("", "pods", "") if one_of(&asked.verb, &["create"]) => Ok(()),
            ("", "pods", "" | "status" | "eviction") => match self.pod_is_on(asked, node) {
                // What is gone may be asked for, as the answer tells nothing.
                Some(true) | None => match (asked.subresource.as_str(), asked.verb.as_str()) {
                    ("", "get" | "delete")
                    | ("status", "get" | "update" | "patch")
                    | ("eviction", "create") => Ok(()),
                    _ => Err(String::new()),
                },
                Some(false) => unknown(),
            },
            ("", "services", "") if read => Ok(()),
            ("", "events", "") | ("events.k8s.io", "events", "") if written => Ok(()),
            ("node.k8s.io", "runtimeclasses", "") if read => Ok(()),
            ("certificates.k8s.io", "certificatesigningrequests", "") if read || asked.verb == "create" => {
                Ok(())
            }
            ("authentication.k8s.io", "tokenreviews", "") if asked.verb == "create" => Ok(()),
            ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "")
                if asked.verb == "create" =>
            {
                Ok(())
            }
            ("coordination.k8s.io", "leases", "") if asked.namespace == "kube-node-lease" => {
                let made = asked.verb == "create";
                match made || own && one_of(&asked.verb, &["get", "update", "patch", "delete"]) {
                    true => Ok(()),
                    false => {
                        Err("can only access node lease with the same name as the requesting node".to_owned())
                    }
                }
            }
            ("", "configmaps" | "secrets", "") | ("", "serviceaccounts", "") if read => {
                if self.is_used_on(asked, node) { Ok(()) } else { unknown() }
            }
            ("", "persistentvolumeclaims" | "persistentvolumes", "") if asked.verb == "get" => {
                if self.is_used_on(asked, node) { Ok(()) } else { unknown() }
            }
            ("", "serviceaccounts", "token") if asked.verb == "create" => {
                if self.is_used_on(asked, node) {
                    Ok(())
                } else {
                    unknown()
                }
            }
            _ => Err(String::new()),
        }
    }

    /// Whether a pod is on that node; none if there is no such pod.
    fn pod_is_on(&self, asked: &Attributes, node: &str) -> Option<bool> {
        let pod = self.store.get(Kind::Pod, &asked.namespace, &asked.name)?;
        Some(node_of(&pod.value()) == node)
    }

    /// Whether a pod of the node refers to that object.
    fn is_used_on(&self, asked: &Attributes, node: &str) -> bool {
        if asked.name.is_empty() {
            return false;
        }
        let namespace = Some(asked.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let pods = self.store.list(Kind::Pod, namespace).0;
        pods.iter()
            .map(|pod| pod.value())
            // A mirror shows what the node has made by itself: nothing follows from it.
            .filter(|pod| node_of(pod) == node && pod["metadata"]["annotations"].get(MIRROR).is_none())
            .any(|pod| self.uses(&pod, asked))
    }

    fn uses(&self, pod: &Value, asked: &Attributes) -> bool {
        let name = asked.name.as_str();
        let kind = match asked.resource.as_str() {
            "serviceaccounts" => return account_of(pod) == name,
            "persistentvolumeclaims" => return claims_of(pod).any(|claim| claim == name),
            "persistentvolumes" => {
                let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
                let volume = |claim: &str| self.store.get(Kind::PersistentVolumeClaim, namespace, claim);
                return claims_of(pod)
                    .filter_map(|claim| volume(&claim))
                    .any(|c| c.value()["spec"]["volumeName"] == name);
            }
            "secrets" => Kind::Secret,
            _ => Kind::ConfigMap,
        };
        let Ok(typed) = serde_json::from_value(pod.clone()) else { return false };
        if uses(&Pod::new(typed, Source::Api), &(kind, asked.namespace.clone(), name.to_owned())) {
            return true;
        }
        let account = self.store.get(Kind::ServiceAccount, &asked.namespace, account_of(pod));
        let of_account = |account: &Value, field: &str| {
            account[field].as_array().into_iter().flatten().any(|secret| secret["name"] == name)
        };
        let account = account.map(|account| account.value()).unwrap_or_default();
        kind == Kind::Secret && (of_account(&account, "imagePullSecrets") || of_account(&account, "secrets"))
    }

    /// Refuses what a node may not write although it may write objects of that kind. `old` is none for a new object, `new` for
    /// one that is to be removed.
    ///
    /// # Errors
    /// The reason.
    pub fn restrict(
        &self,
        node: &str,
        key: &Key,
        status: bool,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<(), String> {
        match key.kind {
            Kind::Node if key.name != node => {
                Err(format!("node {node:?} is not allowed to modify node {:?}", key.name))
            }
            Kind::Node => restrict_node(node, old, new),
            Kind::Lease if key.name != node => {
                Err("can only access node lease with the same name as the requesting node".to_owned())
            }
            Kind::Pod => match (old, new) {
                (None, Some(pod)) => restrict_mirror(node, pod),
                (Some(pod), None) if node_of(pod) != node => {
                    Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
                }
                (Some(pod), Some(_)) if node_of(pod) != node => Err(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                )),
                (Some(old), Some(new))
                    if status && old["metadata"]["labels"] != new["metadata"]["labels"] =>
                {
                    Err(format!("node {node:?} cannot update labels through pod status"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Refuses a token for a node that is not bound to a pod of its own.
    ///
    /// # Errors
    /// The reason.
    pub fn restrict_token(&self, node: &str, account: &Key, request: &Value) -> Result<(), String> {
        let bound = &request["spec"]["boundObjectRef"];
        if bound["kind"] != "Pod" || bound["uid"].as_str().is_none_or(str::is_empty) {
            return Err("node requested token not bound to a pod".to_owned());
        }
        let name = bound["name"].as_str().unwrap_or_default();
        let pod =
            self.store.get(Kind::Pod, &account.namespace, name).map(|pod| pod.value()).unwrap_or_default();
        if pod["metadata"]["uid"] != bound["uid"] || node_of(&pod) != node {
            return Err(format!("node requested token bound to a pod scheduled on a different node: {name}"));
        }
        Ok(())
    }
}

fn one_of(verb: &str, verbs: &[&str]) -> bool {
    verbs.contains(&verb)
}

/// What whoever is known may read: which API there is.
fn told_to_all(path: &str) -> bool {
    let below =
        |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    !path.contains("..")
        && ["/api", "/apis", "/openapi", "/healthz", "/livez", "/readyz", "/version"].into_iter().any(below)
}

/// What somebody asks about themselves.
fn selfish(asked: &Attributes) -> bool {
    asked.verb == "create" && asked.resource.starts_with("selfsubject") && asked.subresource.is_empty()
}

/// The claims of a pod's volumes.
fn claims_of(pod: &Value) -> impl Iterator<Item = String> {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.filter_map(move |volume| {
        let named = volume["persistentVolumeClaim"]["claimName"].as_str().map(str::to_owned);
        let made = volume
            .get("ephemeral")
            .map(|_| format!("{pod_name}-{}", volume["name"].as_str().unwrap_or_default()));
        named.or(made)
    })
}

fn restrict_node(node: &str, old: Option<&Value>, new: Option<&Value>) -> Result<(), String> {
    let Some(new) = new else { return Err(format!("node {node:?} is not allowed to delete node {node:?}")) };
    let labels = |object: &Value| object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let before = old.map(labels).unwrap_or_default();
    let after = labels(new);
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value)).map(|(key, _)| key);
    let removed = before.keys().filter(|key| !after.contains_key(*key));
    let mut bad: Vec<&str> =
        changed.chain(removed).map(String::as_str).filter(|key| key.contains(RESTRICTED)).collect();
    bad.sort_unstable();
    if !bad.is_empty() {
        return Err(format!("is not allowed to modify labels: {}", bad.join(", ")));
    }
    match old {
        Some(old) if old["spec"]["taints"] != new["spec"]["taints"] => {
            Err(format!("node {node:?} is not allowed to modify taints"))
        }
        _ => Ok(()),
    }
}

/// A node creates pods only to show those that it has from files.
fn restrict_mirror(node: &str, pod: &Value) -> Result<(), String> {
    if pod["metadata"]["annotations"].get(MIRROR).is_none() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if node_of(pod) != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    if pod["spec"]["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Err(format!("node {node:?} can not create pods that reference a service account"));
    }
    let Ok(typed) = serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(pod.clone()) else {
        return Ok(());
    };
    if claims_of(pod).next().is_some() {
        return Err(format!("node {node:?} can not create pods that reference persistentvolumeclaims"));
    }
    if typed.spec.is_none() {
        return Ok(());
    }
    // In volumes, variables and pull secrets: with any of them it could read what is not its pods'.
    match references(&Pod::new(typed, Source::Api)).first() {
        Some((kind, _, _)) => {
            Err(format!("node {node:?} can not create pods that reference {}", kind.plural()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "rights_tests.rs"]
mod tests;
