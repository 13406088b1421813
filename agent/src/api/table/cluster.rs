//! The columns of what nodes need of a cluster, as kubernetes/pkg/printers has them.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

use super::{Column, age};

pub const LEASE: &[Column] =
    &[("Name", "string", "name", 0), ("Holder", "string", "", 0), ("Age", "string", "", 0)];

pub const ACCOUNT: &[Column] =
    &[("Name", "string", "name", 0), ("Secrets", "string", "", 0), ("Age", "string", "", 0)];

pub const RUNTIME: &[Column] =
    &[("Name", "string", "name", 0), ("Handler", "string", "", 0), ("Age", "string", "", 0)];

pub const PRIORITY: &[Column] = &[
    ("Name", "string", "name", 0),
    ("Value", "integer", "", 0),
    ("Global-Default", "boolean", "", 0),
    ("Age", "string", "", 0),
    ("PreemptionPolicy", "string", "", 0),
];

/// The cells of a Lease's row.
pub fn lease(lease: &Lease) -> Vec<Value> {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
    vec![
        json!(lease.metadata.name),
        json!(holder.unwrap_or_default()),
        json!(age(lease.metadata.creation_timestamp.as_ref())),
    ]
}

/// The cells of a ServiceAccount's row.
pub fn account(account: &ServiceAccount) -> Vec<Value> {
    vec![
        json!(account.metadata.name),
        json!(account.secrets.iter().flatten().count().to_string()),
        json!(age(account.metadata.creation_timestamp.as_ref())),
    ]
}

/// The cells of a RuntimeClass's row.
pub fn runtime(class: &RuntimeClass) -> Vec<Value> {
    vec![
        json!(class.metadata.name),
        json!(class.handler),
        json!(age(class.metadata.creation_timestamp.as_ref())),
    ]
}

/// The cells of a PriorityClass's row.
pub fn priority(class: &PriorityClass) -> Vec<Value> {
    vec![
        json!(class.metadata.name),
        json!(class.value),
        json!(class.global_default.unwrap_or(false)),
        json!(age(class.metadata.creation_timestamp.as_ref())),
        json!(class.preemption_policy.as_deref().unwrap_or("PreemptLowerPriority")),
    ]
}
