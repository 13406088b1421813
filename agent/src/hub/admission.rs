//! What the API server adds to a pod before it is kept (Kubernetes documentation, "Admission Control in Kubernetes": Priority,
//! RuntimeClass, ServiceAccount, DefaultTolerationSeconds), and what every namespace has for that.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::{How, Hub, Key, account_of, now};
use crate::api::ApiError;
use crate::configs::{self, Owner};
use crate::facts;
use crate::store::{Kind, Object};

/// The service account of pods that name none.
const DEFAULT: &str = "default";
/// The ConfigMap by which pods know the API server.
pub const ROOT_CA: &str = "kube-root-ca.crt";
/// How long a pod stays on a node that is not ready or cannot be reached, in seconds.
const TOLERATED: i64 = 300;
/// Where a pod finds its token.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How the volume of the token is called; the rest is random.
const TOKEN_VOLUME: &str = "kube-api-access-";
/// How long that token is good for, in seconds: the odd number by which clients that never read it again are found.
const TOKEN_SECONDS: i64 = 3607;

/// The classes that every cluster has, with their values.
const CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

impl Hub {
    /// Shows the priority classes that every cluster has.
    pub(super) fn show_classes(&self) {
        for (name, value, description) in CLASSES {
            let uid = facts::built_in_uid(&self.folder, Kind::PriorityClass, name);
            let class = json!({"metadata": {"uid": uid, "creationTimestamp": now(), "generation": 1}, "value": value,
                "description": description, "preemptionPolicy": "PreemptLowerPriority"});
            self.store.put(Kind::PriorityClass, "", name, &class);
        }
    }

    /// Whether an object is one that every cluster has.
    pub(super) fn is_built_in(key: &Key) -> bool {
        key.kind == Kind::PriorityClass && CLASSES.iter().any(|(name, ..)| *name == key.name)
    }

    /// Completes a pod of another node.
    ///
    /// # Errors
    /// 403 when it names a class or an account that is not there.
    pub(super) fn admit(&self, key: &Key, pod: &mut Value, mirror: bool) -> Result<(), ApiError> {
        let forbidden = |why: &str| ApiError::forbidden(Kind::Pod, &key.name, why);
        self.priority(pod, true).map_err(|why| forbidden(&why))?;
        self.runtime(pod).map_err(|why| forbidden(&why))?;
        if !mirror {
            self.account(key, pod).map_err(|why| forbidden(&why))?;
        }
        tolerate(pod);
        Ok(())
    }

    /// The priority that a pod's class gives it. One of this node may name a class that is not there, as it may without any.
    pub fn priority(&self, pod: &mut Value, all: bool) -> Result<(), String> {
        let named =
            pod["spec"]["priorityClassName"].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
        let class = match &named {
            Some(name) => self.store.get(Kind::PriorityClass, "", name).map(|class| class.value()),
            None if all => self.usual_class(),
            None => None,
        };
        let given = pod["spec"]["priority"].as_i64();
        let (value, policy) = match (&class, &named) {
            (Some(class), _) => (class["value"].as_i64().unwrap_or(0), class["preemptionPolicy"].as_str()),
            (None, _) if !all => return Ok(()),
            (None, Some(name)) => return Err(format!("no PriorityClass with name {name} was found")),
            (None, None) => (0, None),
        };
        if given.is_some_and(|given| given != value) && all {
            return Err(format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed \
                 {value} from the given PriorityClass name",
                given.unwrap_or_default()
            ));
        }
        let policy = policy.unwrap_or("PreemptLowerPriority").to_owned();
        if let (None, Some(class)) = (&named, &class) {
            pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
        }
        if given.is_none() {
            pod["spec"]["priority"] = json!(value);
        }
        if pod["spec"]["preemptionPolicy"].is_null() {
            pod["spec"]["preemptionPolicy"] = json!(policy);
        }
        Ok(())
    }

    /// The class of pods that name none: of several, the lowest.
    fn usual_class(&self) -> Option<Value> {
        let classes = self.store.list(Kind::PriorityClass, None).0;
        let usual = classes.iter().map(|class| class.value()).filter(|class| class["globalDefault"] == true);
        usual.min_by_key(|class| class["value"].as_i64())
    }

    /// What the pod's RuntimeClass costs, and where it is.
    fn runtime(&self, pod: &mut Value) -> Result<(), String> {
        let Some(name) = pod["spec"]["runtimeClassName"].as_str().filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let class = self.store.get(Kind::RuntimeClass, "", name);
        let class = class.ok_or_else(|| format!("pod rejected: RuntimeClass {name:?} not found"))?.value();
        if let Some(overhead) = class["overhead"].get("podFixed") {
            pod["spec"]["overhead"] = overhead.clone();
        }
        for (label, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
            let wanted = &mut pod["spec"]["nodeSelector"][label];
            if !wanted.is_null() && wanted != value {
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{label}] = {value}, {wanted}"
                ));
            }
            *wanted = value.clone();
        }
        for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
            push(&mut pod["spec"]["tolerations"], toleration.clone());
        }
        Ok(())
    }

    fn account(&self, key: &Key, pod: &mut Value) -> Result<(), String> {
        let name = account_of(pod).to_owned();
        if name == DEFAULT {
            self.provide(&key.namespace);
        }
        let account = self.store.get(Kind::ServiceAccount, &key.namespace, &name);
        let missing = || {
            format!(
                "error looking up service account {0}/{name}: serviceaccount {name:?} not found",
                key.namespace
            )
        };
        let account = account.ok_or_else(missing)?.value();
        pod["spec"]["serviceAccountName"] = json!(name);
        pod["spec"]["serviceAccount"] = json!(name);
        let secrets = account["imagePullSecrets"].as_array().filter(|secrets| !secrets.is_empty());
        if let Some(secrets) =
            secrets.filter(|_| pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty))
        {
            pod["spec"]["imagePullSecrets"] = json!(secrets);
        }
        let wanted = pod["spec"]["automountServiceAccountToken"].as_bool();
        if wanted.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
            mount_token(pod);
        }
        Ok(())
    }

    /// Gives a namespace what every one has: an account for its pods, and the certificate authority's certificate.
    pub fn provide(&self, namespace: &str) {
        let key =
            Key { kind: Kind::ServiceAccount, namespace: namespace.to_owned(), name: DEFAULT.to_owned() };
        if self.store.get(key.kind, namespace, DEFAULT).is_none()
            && let Err(error) = self.create(&key, json!({}), How::default())
        {
            tracing::error!(namespace, %error, "cannot make the default service account");
        }
        let Some((configs, pem)) = self.root.get() else { return };
        if self.store.get(Kind::ConfigMap, namespace, ROOT_CA).is_some() {
            return;
        }
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(ROOT_CA.to_owned()),
                namespace: Some(namespace.to_owned()),
                uid: Some(uuid::Uuid::new_v4().to_string()),
                creation_timestamp: Some(Time(now())),
                ..ObjectMeta::default()
            },
            data: Some([("ca.crt".to_owned(), pem.clone())].into()),
            ..ConfigMap::default()
        };
        configs.put(Owner::Agent, configs::Object::ConfigMap(Arc::new(map)));
    }

    /// Takes away again what a namespace was given.
    fn withdraw(&self, namespace: &str) {
        let key =
            Key { kind: Kind::ServiceAccount, namespace: namespace.to_owned(), name: DEFAULT.to_owned() };
        self.forget(&key);
        if let Some((configs, _)) = self.root.get() {
            configs.remove(&Owner::Agent, &(Kind::ConfigMap, namespace.to_owned(), ROOT_CA.to_owned()));
        }
    }

    /// Looks after all namespaces, as they come and go.
    pub async fn follow_namespaces(self: Arc<Self>) {
        loop {
            let (namespaces, version) = self.store.list(Kind::Namespace, None);
            namespaces.iter().for_each(|namespace| self.provide(&namespace.name));
            let Ok(mut watch) = self.store.watch(Kind::Namespace, version) else { continue };
            // An error means that changes were missed: then all are looked at again.
            while let Ok(change) = watch.next().await {
                match change.after {
                    Some(namespace) => self.provide(&namespace.name),
                    None => self.withdraw(&change.last.name),
                }
            }
        }
    }
}

/// Whether an object is what each namespace is given: it does not count as something in it.
pub fn is_provided(object: &Object) -> bool {
    matches!(
        (object.kind, object.name.as_str()),
        (Kind::ServiceAccount, DEFAULT) | (Kind::ConfigMap, ROOT_CA)
    )
}

fn push(list: &mut Value, value: Value) {
    match list {
        Value::Array(list) => list.push(value),
        other => *other = json!([value]),
    }
}

/// A pod stays for some minutes on a node that is away.
pub(super) fn tolerate(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerations = pod["spec"]["tolerations"].as_array().map(Vec::as_slice).unwrap_or_default();
        let covers = |toleration: &Value| {
            let of_key = toleration["key"] == key || toleration["key"].as_str().is_none_or(str::is_empty);
            let of_effect =
                toleration["effect"].as_str().is_none_or(|effect| ["", "NoExecute"].contains(&effect));
            of_key && of_effect
        };
        if !tolerations.iter().any(covers) {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATED});
            push(&mut pod["spec"]["tolerations"], toleration);
        }
    }
}

/// Puts the account's token where programs look for it, unless something is mounted there.
fn mount_token(pod: &mut Value) {
    let has = |container: &Value| {
        container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|mount| mount["mountPath"] == TOKEN_DIR)
    };
    let random = uuid::Uuid::new_v4().simple().to_string();
    let volume = format!("{TOKEN_VOLUME}{}", random.get(..5).unwrap_or_default());
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in
            pod["spec"][list].as_array_mut().into_iter().flatten().filter(|container| !has(container))
        {
            push(
                &mut container["volumeMounts"],
                json!({"name": volume, "readOnly": true, "mountPath": TOKEN_DIR}),
            );
            mounted = true;
        }
    }
    if mounted {
        let field = json!({"apiVersion": "v1", "fieldPath": "metadata.namespace"});
        push(
            &mut pod["spec"]["volumes"],
            json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
            ]}}),
        );
    }
}

/// Takes the token's volume out again, for a node that runs pods without one.
pub(super) fn unmount_token(pod: &mut Value) {
    let ours = |name: &Value| name.as_str().is_some_and(|name| name.starts_with(TOKEN_VOLUME));
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.retain(|mount| !(ours(&mount["name"]) && mount["mountPath"] == TOKEN_DIR));
            }
        }
    }
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.retain(|volume| !ours(&volume["name"]));
    }
}
