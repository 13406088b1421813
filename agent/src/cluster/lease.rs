//! The node's lease: as long as it is renewed, the cluster takes the node for alive.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};

use super::{Cluster, Pause, code};

/// Where leases of nodes are.
const NAMESPACE: &str = "kube-node-lease";

impl Cluster {
    /// Renews the node's lease, for ever: every quarter of the time for which it lasts, as a kubelet.
    pub(super) async fn renew_lease(self: Arc<Self>, client: Client) {
        let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
        let every = self.config.lease / 4;
        let mut pause = Pause::new();
        let mut known: Option<Lease> = None;
        loop {
            match self.renew(&api, known.take()).await {
                Ok(lease) => {
                    known = Some(lease);
                    pause.reset();
                    // No two nodes do it at the same time: up to a twenty-fifth later.
                    tokio::time::sleep(every + every.mul_f64(super::chance() / 25.0)).await;
                }
                Err(error) => {
                    // A conflict says that somebody has changed it, so it is read again at once.
                    if code(&error) != Some(409) {
                        tracing::debug!(%error, "cannot renew the node's lease");
                        tokio::time::sleep(pause.take().min(every)).await;
                    }
                }
            }
        }
    }

    async fn renew(&self, api: &Api<Lease>, known: Option<Lease>) -> Result<Lease, kube::Error> {
        let name = &self.node.facts.name;
        let known = match known {
            Some(lease) => Some(lease),
            None => api.get_opt(name).await?,
        };
        let is_new = known.is_none();
        let mut lease = known.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        });
        if lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
            lease.metadata.owner_references = self.owner().map(|owner| vec![owner]);
        }
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(name.clone());
        spec.lease_duration_seconds = i32::try_from(self.config.lease.as_secs()).ok();
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        match is_new {
            true => api.create(&PostParams::default(), &lease).await,
            false => api.replace(name, &PostParams::default(), &lease).await,
        }
    }

    /// The Node as the owner of an object that goes with it.
    pub(super) fn owner(&self) -> Option<OwnerReference> {
        let node = self.registered().clone()?;
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.metadata.name.clone()?,
            uid: node.metadata.uid.clone()?,
            ..OwnerReference::default()
        })
    }
}
