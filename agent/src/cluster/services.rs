//! The cluster's Services: containers are told of those of their namespace by environment variables.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1;
use kube::runtime::watcher;
use kube::{Api, Client};

use super::Cluster;
use super::follow::{Key, Seen, follow, key_of};
use crate::store::Kind;

/// The Services of the cluster that this machine is a node of; none without one. Clones share.
#[derive(Clone, Default)]
pub struct ClusterServices(Arc<RwLock<BTreeMap<Key, Arc<v1::Service>>>>);

impl ClusterServices {
    /// The Services that containers in a namespace are told of: its own, and the API server's.
    pub fn of(&self, namespace: &str) -> Vec<Arc<v1::Service>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let server = |key: &Key| key.0 == "default" && key.1 == "kubernetes";
        let told = all.iter().filter(|(key, _)| key.0 == namespace || server(key));
        told.map(|(_, service)| service.clone()).collect()
    }

    fn put(&self, key: Key, service: Arc<v1::Service>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, service);
    }

    fn remove(&self, key: &Key) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn keys(&self) -> BTreeSet<Key> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Cluster {
    pub(super) fn recall_services(&self) {
        for service in self.saved.all::<v1::Service>(Kind::Service) {
            self.node.cluster_services.put(key_of(&service), Arc::new(service));
        }
    }

    /// Follows the cluster's Services, for ever.
    pub(super) async fn follow_services(self: Arc<Self>, client: Client) {
        let known = self.node.cluster_services.keys();
        let see = |seen| match seen {
            Seen::Is(service) => self.service_is(service),
            Seen::Gone(key) => self.service_gone(&key),
            Seen::Listed => {}
            Seen::Failed(error) => tracing::debug!(%error, "cannot follow the cluster's Services"),
        };
        follow(Api::all(client), watcher::Config::default(), known, see).await;
    }

    fn service_is(&self, mut service: v1::Service) {
        // Only what variables are made of is kept, which does not change with every look at the rest.
        service.metadata = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: service.metadata.name,
            namespace: service.metadata.namespace,
            ..Default::default()
        };
        service.status = None;
        let key = key_of(&service);
        if let Err(error) = self.saved.save(Kind::Service, &key.0, &key.1, &service) {
            tracing::warn!(namespace = key.0, name = key.1, %error, "cannot store a Service of the cluster");
        }
        self.node.cluster_services.put(key, Arc::new(service));
    }

    fn service_gone(&self, key: &Key) {
        self.saved.remove(Kind::Service, &key.0, &key.1);
        self.node.cluster_services.remove(key);
    }
}
