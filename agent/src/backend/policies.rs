//! NetworkPolicies and Namespaces of the API.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Serialize;
use serde_json::Value;

use super::AgentBackend;
use crate::api::ApiError;
use crate::policies::{Policies, Refusal};
use crate::store::Kind;

fn refusal(kind: Kind, name: &str, refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::NotFound => ApiError::not_found(kind, name),
        Refusal::Exists => ApiError::already_exists(kind, name),
        Refusal::Forbidden(why) => ApiError::forbidden(kind, name, &why),
        error @ (Refusal::Storage(_) | Refusal::Unstored(_)) => ApiError::internal(error),
    }
}

impl AgentBackend {
    /// Creates or replaces a NetworkPolicy that has been checked.
    pub(super) async fn put_policy(
        &self,
        policy: NetworkPolicy,
        create_only: bool,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        let meta = policy.metadata.clone();
        let at = (Kind::NetworkPolicy, meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
        self.put(at, dry_run, move |policies| policies.put_policy(policy, create_only, dry_run)).await
    }

    /// Creates or replaces a Namespace that has been checked.
    pub(super) async fn put_namespace(
        &self,
        namespace: Namespace,
        create_only: bool,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        let at = (Kind::Namespace, String::new(), namespace.metadata.name.clone().unwrap_or_default());
        self.put(at, dry_run, move |policies| policies.put_namespace(namespace, create_only, dry_run)).await
    }

    async fn put<T: Serialize + Send + 'static>(
        &self,
        (kind, namespace, name): (Kind, String, String),
        dry_run: bool,
        work: impl FnOnce(&Policies) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<Value, ApiError> {
        let policies = self.node.policies.clone();
        // It writes a file.
        let put = tokio::task::spawn_blocking(move || work(&policies)).await;
        let put = put.map_err(ApiError::internal)?.map_err(|e| refusal(kind, &name, e))?;
        match self.node.store.get(kind, &namespace, &name) {
            Some(stored) if !dry_run => Ok(stored.value()),
            _ => serde_json::to_value(&put).map_err(ApiError::internal),
        }
    }

    /// Removes a NetworkPolicy or a Namespace.
    pub(super) async fn delete_policy(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let policies = self.node.policies.clone();
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let deleted = tokio::task::spawn_blocking(move || {
            let outcome = match kind {
                Kind::Namespace => policies.delete_namespace(&name),
                _ => policies.delete_policy(&namespace, &name),
            };
            outcome.map_err(|e| refusal(kind, &name, e))
        });
        deleted.await.map_err(ApiError::internal)?
    }
}
