//! Services of the API.

use k8s_openapi::api::core::v1;
use serde_json::Value;

use super::AgentBackend;
use crate::api::{ApiError, Cause};
use crate::services::Refusal;
use crate::store::Kind;

fn refusal(name: &str, refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::NotFound => ApiError::not_found(Kind::Service, name),
        Refusal::Exists => ApiError::already_exists(Kind::Service, name),
        Refusal::Owner(why) => ApiError::forbidden(Kind::Service, name, &why),
        Refusal::Field { field, why } => ApiError::invalid(
            Kind::Service,
            name,
            vec![Cause { reason: "FieldValueInvalid", field, message: why }],
        ),
        error @ (Refusal::Storage(_) | Refusal::Unstored(_)) => ApiError::internal(error),
    }
}

impl AgentBackend {
    /// Creates or replaces a Service that has been checked.
    pub(super) async fn put_service(
        &self,
        service: v1::Service,
        create_only: bool,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        let services = self.node.services.clone();
        let name = service.metadata.name.clone().unwrap_or_default();
        // It writes a file.
        let put =
            tokio::task::spawn_blocking(move || services.put_from_api(service, create_only, dry_run)).await;
        let put = put.map_err(ApiError::internal)?.map_err(|e| refusal(&name, e))?;
        match self.node.store.get(Kind::Service, put.metadata.namespace.as_deref().unwrap_or_default(), &name)
        {
            Some(stored) if !dry_run => Ok(stored.value()),
            _ => serde_json::to_value(put.as_ref()).map_err(ApiError::internal),
        }
    }

    /// Removes a Service.
    pub(super) async fn delete_service(&self, namespace: &str, name: &str) -> Result<(), ApiError> {
        let services = self.node.services.clone();
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let deleted = tokio::task::spawn_blocking(move || {
            services.delete(&namespace, &name).map_err(|e| refusal(&name, e))
        });
        deleted.await.map_err(ApiError::internal)?
    }
}
