//! What this node is to other nodes: the API server that they belong to.
//!
//! Their Node objects, Leases and what else they need are kept here; on disk too, but for Leases, which are of no worth a
//! minute later. Nothing of it is run by this agent. [`typed`] reads what clients send as the API server does, [`nodes`] has
//! the rules for Node objects, this node's own among them, [`pods`] looks after the pods of others,
//! [`admission`] completes them, [`tokens`] says whose a token is, [`rights`] what somebody may, [`events`] keeps what is reported.

mod admission;
mod events;
mod nodes;
mod pods;
mod rights;
mod tokens;
mod typed;

use berth_reconciler::status::whole_seconds;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

pub use admission::{ROOT_CA, is_provided};
pub use pods::{Deleted, node_of};
pub use rights::{Attributes, node_user};
pub use tokens::{BOOTSTRAPPERS, User, account_of};

use crate::api::{ApiError, Cause};
use crate::backend::objects::Objects;
use crate::configs::Configs;
use crate::pki::Signer;
use crate::store::{Kind, Object, ObjectStore};

/// Names an object: kind, namespace (empty for kinds that have none), name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// How a change is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// It is only tried.
    pub dry_run: bool,
    /// Fields that the type does not have are an error instead of being dropped (`fieldValidation=Strict`).
    pub strict: bool,
    /// It came by the path of the object's status.
    pub status: bool,
}

/// The objects of other nodes.
pub struct Hub {
    store: ObjectStore,
    objects: Objects,
    /// This node's name.
    own: String,
    /// The events of others.
    reported: events::Reported,
    /// Who signs certificates, for those who must know this server.
    root: OnceLock<(Configs, String)>,
    /// The agent's state folder; the key of tokens lies in its `pki`.
    folder: PathBuf,
    /// Signs tokens, from the first on.
    signer: Mutex<Option<Arc<Signer>>>,
}

/// Whether objects of a kind are kept here.
pub fn keeps(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Node
            | Kind::Lease
            | Kind::ServiceAccount
            | Kind::RuntimeClass
            | Kind::PriorityClass
            | Kind::Event
    )
}

/// Whether objects of a kind are written to the disk.
fn durable(kind: Kind) -> bool {
    !matches!(kind, Kind::Lease | Kind::Event)
}

impl Hub {
    /// The hub of the node of that name, which keeps objects below `<root>/objects/cluster`.
    pub fn new(root: &Path, store: ObjectStore, own: &str) -> Self {
        Self {
            store,
            objects: Objects::at(root.join("objects/cluster")),
            own: own.to_owned(),
            reported: events::Reported::default(),
            root: OnceLock::new(),
            folder: root.to_owned(),
            signer: Mutex::default(),
        }
    }

    /// Has every namespace tell by which certificate this server is known.
    pub fn announce(&self, configs: Configs, pem: &str) {
        // There is one authority for as long as the agent runs.
        let _ = self.root.set((configs, pem.to_owned()));
    }

    /// This node's name.
    pub fn own(&self) -> &str {
        &self.own
    }

    fn signer(&self) -> Result<Arc<Signer>, ApiError> {
        let mut signer = self.signer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signer) = signer.as_ref() {
            return Ok(signer.clone());
        }
        let made = Signer::open(&self.folder.join("pki"))
            .map_err(|error| ApiError::internal(format!("{error:#}")))?;
        Ok(signer.insert(Arc::new(made)).clone())
    }

    /// Shows what an earlier agent has stored, and this node's own object with what others have written into it.
    pub fn load(&self, own_node: Value) {
        self.show_classes();
        for kind in Kind::ALL.into_iter().filter(|kind| keeps(*kind) && durable(*kind)) {
            for mut object in self.objects.all::<Value>(kind) {
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
                let (namespace, name) = (text("namespace"), text("name"));
                if kind != Kind::Node || name != self.own {
                    typed::complete(kind, &mut object);
                    self.store.put(kind, &namespace, &name, &object);
                }
            }
        }
        for pod in self.objects.all::<Value>(Kind::Pod) {
            let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
            self.store.put(Kind::Pod, &text("namespace"), &text("name"), &pod);
        }
        let stored: Option<Value> = self.objects.read(Kind::Node, "", &self.own);
        let own = nodes::restarted(own_node, stored.as_ref());
        self.store.put(Kind::Node, "", &self.own, &own);
    }

    /// Keeps a new object; gives it as it is then.
    ///
    /// # Errors
    /// 409 when there is one of that name, 422 when it breaks a rule, 500 when it cannot be stored.
    pub fn create(&self, key: &Key, object: Value, how: How) -> Result<Value, ApiError> {
        if self.store.get(key.kind, &key.namespace, &key.name).is_some() {
            return Err(ApiError::already_exists(key.kind, &key.name));
        }
        let mut object = typed::read(key.kind, object, how.strict)?;
        let metadata = &mut object["metadata"];
        for server in ["deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "managedFields"]
        {
            typed::remove(metadata, server);
        }
        metadata["name"] = json!(key.name);
        if key.kind.namespaced() {
            metadata["namespace"] = json!(key.namespace);
        }
        metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
        metadata["creationTimestamp"] = json!(now());
        if has_generation(key.kind) {
            metadata["generation"] = json!(1);
        }
        self.check(key, None, &mut object)?;
        self.keep(key, &object, how.dry_run)
    }

    /// Puts `object` in the place of `old`; gives it as it is then.
    ///
    /// # Errors
    /// 403 for what only the node itself may say, 422 when it breaks a rule, 500 when it cannot be stored.
    pub fn update(&self, key: &Key, old: &Object, object: Value, how: How) -> Result<Value, ApiError> {
        let old = old.value();
        let mut object = typed::read(key.kind, object, how.strict)?;
        let metadata = &mut object["metadata"];
        typed::remove(metadata, "managedFields");
        for server in
            ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"]
        {
            typed::put_or_remove(metadata, server, old["metadata"].get(server).cloned());
        }
        if key.kind == Kind::Node {
            let kept = if how.status { "spec" } else { "status" };
            typed::put_or_remove(&mut object, kept, old.get(kept).cloned());
        }
        let changed = |field: &str| object.get(field) != old.get(field);
        if has_generation(key.kind)
            && object.as_object().into_iter().flatten().any(|(f, _)| f != "metadata" && changed(f))
        {
            object["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
        }
        self.check(key, Some(&old), &mut object)?;
        let going = object["metadata"].get("deletionTimestamp").is_some();
        if going && object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
            if !how.dry_run {
                self.forget(key);
            }
            return Ok(object);
        }
        self.keep(key, &object, how.dry_run)
    }

    /// Removes an object, or marks it to go once its finalizers are gone.
    ///
    /// # Errors
    /// 403 for this node's own Node and what every cluster has; 500 when the mark cannot be stored.
    pub fn delete(&self, key: &Key, old: &Object) -> Result<(), ApiError> {
        if key.kind == Kind::Node && key.name == self.own {
            let why = "it is the node that serves this API; its agent writes it";
            return Err(ApiError::forbidden(key.kind, &key.name, why));
        }
        if Self::is_built_in(key) {
            return Err(ApiError::forbidden(
                key.kind,
                &key.name,
                "this is a system priority class and cannot be deleted",
            ));
        }
        let mut object = old.value();
        if object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty()) {
            if object["metadata"].get("deletionTimestamp").is_none() {
                object["metadata"]["deletionTimestamp"] = json!(now());
                object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
                self.keep(key, &object, false)?;
            }
            return Ok(());
        }
        self.forget(key);
        if key.kind == Kind::Node {
            self.node_gone(&object);
        }
        Ok(())
    }

    /// What belonged to a node goes with it.
    fn node_gone(&self, node: &Value) {
        let owned = |lease: &Value| {
            let owners = lease["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            owners.into_iter().any(|owner| owner["uid"] == node["metadata"]["uid"])
        };
        for lease in self.store.list(Kind::Lease, None).0.iter().filter(|lease| owned(&lease.value())) {
            self.store.delete(Kind::Lease, &lease.namespace, &lease.name);
        }
        self.pods_gone(node["metadata"]["name"].as_str().unwrap_or_default());
    }

    fn check(&self, key: &Key, old: Option<&Value>, object: &mut Value) -> Result<(), ApiError> {
        typed::check_metadata(key.kind, &key.name, object)?;
        let causes = match key.kind {
            Kind::Node => nodes::check(old, object, key.name == self.own),
            Kind::Event => events::check(key, object),
            Kind::RuntimeClass => immutable(old, object, "handler"),
            Kind::PriorityClass => immutable(old, object, "value"),
            _ => Vec::new(),
        };
        if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(key.kind, &key.name, causes)) }
    }

    fn keep(&self, key: &Key, object: &Value, dry_run: bool) -> Result<Value, ApiError> {
        if dry_run {
            return Ok(object.clone());
        }
        if durable(key.kind) {
            let stored = self.objects.save(key.kind, &key.namespace, &key.name, object);
            stored.map_err(|error| ApiError::internal(format!("store the {}: {error}", key.kind)))?;
        }
        self.store.put(key.kind, &key.namespace, &key.name, object);
        if key.kind == Kind::Event {
            self.event_reported(key);
        }
        let kept = self.store.get(key.kind, &key.namespace, &key.name);
        Ok(kept.map_or_else(|| object.clone(), |kept| kept.value()))
    }

    fn forget(&self, key: &Key) {
        if durable(key.kind) {
            self.objects.remove(key.kind, &key.namespace, &key.name);
        }
        self.store.delete(key.kind, &key.namespace, &key.name);
    }
}

/// Whether objects of a kind count the changes of what is wanted.
fn has_generation(kind: Kind) -> bool {
    matches!(kind, Kind::RuntimeClass | Kind::PriorityClass)
}

/// A field that must be there and stays as it was made.
fn immutable(old: Option<&Value>, new: &Value, field: &str) -> Vec<Cause> {
    let missing = new.get(field).is_none_or(|value| value.is_null() || value == "");
    if missing {
        let message = "Required value".to_owned();
        return vec![Cause { reason: "FieldValueRequired", field: field.to_owned(), message }];
    }
    match old.and_then(|old| old.get(field)) {
        Some(before) if Some(before) != new.get(field) => {
            let message = format!("Invalid value: {}: field is immutable", new[field]);
            vec![Cause { reason: "FieldValueInvalid", field: field.to_owned(), message }]
        }
        _ => Vec::new(),
    }
}

/// The time as metadata has it, without fractions of a second.
fn now() -> Timestamp {
    whole_seconds(Timestamp::now())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
