//! Claims and volumes of the API.

use berth_reconciler::manifest;
use serde_json::Value;

use super::AgentBackend;
use crate::api::{ApiError, Cause};
use crate::store::Kind;
use crate::volumes::claims::Refusal;

fn refusal(kind: Kind, name: &str, refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::NotFound => ApiError::not_found(kind, name),
        Refusal::Owner(why) => ApiError::forbidden(kind, name, &why),
        Refusal::Field { field, why } => {
            let cause = Cause { reason: "FieldValueForbidden", field: field.into(), message: why };
            ApiError::invalid(kind, name, vec![cause])
        }
    }
}

impl AgentBackend {
    /// Creates or replaces a PersistentVolumeClaim or PersistentVolume that has been checked.
    pub(super) async fn put_storage(
        &self,
        kind: Kind,
        object: manifest::Object,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        let claims = self.node.claims.clone();
        // It writes files.
        let put = tokio::task::spawn_blocking(move || match object {
            manifest::Object::PersistentVolumeClaim(claim) => {
                let name = claim.metadata.name.clone().unwrap_or_default();
                let put = claims.put_claim(*claim, dry_run).map_err(|e| refusal(kind, &name, e))?;
                serde_json::to_value(put).map_err(ApiError::internal)
            }
            manifest::Object::PersistentVolume(volume) => {
                let name = volume.metadata.name.clone().unwrap_or_default();
                let put = claims.put_volume(*volume, dry_run).map_err(|e| refusal(kind, &name, e))?;
                serde_json::to_value(put).map_err(ApiError::internal)
            }
            _ => Err(ApiError::bad_request(format!("the object is no {kind}"))),
        });
        put.await.map_err(ApiError::internal)?
    }

    /// Asks for the deletion of a PersistentVolumeClaim or PersistentVolume.
    pub(super) async fn delete_storage(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let claims = self.node.claims.clone();
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let deleted = tokio::task::spawn_blocking(move || {
            let deleted = match kind {
                Kind::PersistentVolume => claims.delete_volume(&name),
                _ => claims.delete_claim(&(namespace, name.clone())),
            };
            deleted.map_err(|e| refusal(kind, &name, e))
        });
        deleted.await.map_err(ApiError::internal)?
    }
}
