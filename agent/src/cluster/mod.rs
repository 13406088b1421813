//! A node of a cluster: the machine's pods come from an API server too, and it is told how they are.
//!
//! [`join`] gets the node a certificate and [`client`] a way to the server; [`registration`] makes the Node and [`lease`]
//! says that it lives. [`pods`] follows the pods that are bound to this node: what they need comes first ([`objects`],
//! [`claims`], [`tokens`], [`services`], [`classes`]), then the reconciler gets them like those of any other source. [`status`] tells the server
//! how pods are and deletes them at their end, [`callers`] asks it who may use the node's own API, [`mirror`] shows it the pods of manifest files, [`events`] what happened.
//!
//! Everything here may fail for as long as it likes: nothing that runs waits for the server, what is known of it lies in
//! `<root>/cluster`, and every loop goes on where it was, after a pause that grows and that no two nodes share.

mod callers;
mod claims;
mod classes;
mod client;
mod events;
mod follow;
mod join;
mod lease;
mod mirror;
mod objects;
mod pods;
mod registration;
mod rotation;
mod services;
mod status;
mod tokens;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use berth_reconciler::manifest;
use berth_reconciler::node::Deletion;
use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::status::has_ended;
use berth_reconciler::worker::Reconciler;
use k8s_openapi::api::core::v1;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};
use tokio::sync::{Notify, watch};

use crate::backend::objects::{Objects, StoredPod};
use crate::config::cluster::ClusterConfig;
use crate::configs::Owner;
use crate::node::AgentNode;

pub use claims::ClusterClaims;
pub use classes::{ClusterClasses, OWN as OWN_HANDLER};
pub use client::Access;
pub use services::ClusterServices;
pub use tokens::Tokens;

/// How long an agent that ends waits for the server.
const LEAVE: Duration = Duration::from_secs(5);

/// A machine that is a node of a cluster.
pub struct Cluster {
    node: Arc<AgentNode>,
    reconciler: Arc<Reconciler<AgentNode>>,
    config: ClusterConfig,
    /// What pods are checked against; the labels are the Node's own.
    context: manifest::Context,
    /// The last known pods, ConfigMaps, Secrets and Services.
    saved: Objects,
    /// The Node as the server has it.
    registered: Mutex<Option<Arc<v1::Node>>>,
    pods: pods::Known,
    statuses: status::Statuses,
    objects: objects::Watched,
    /// Told when mirrors may have to be made or removed.
    mirrors: Notify,
    /// Whether every manifest has been read.
    manifests_read: watch::Receiver<bool>,
    /// Whether the server has been asked for its RuntimeClasses.
    classes_known: watch::Sender<bool>,
    /// Whether the node is about to leave: it takes no pods any more.
    leaving: AtomicBool,
    /// Who calls the node's own API, and what they may do.
    answers: callers::Answers,
    /// There once the node has joined.
    access: OnceLock<Arc<Access>>,
}

/// How long something that failed is left alone: it grows from try to try, and is never the same for two nodes.
#[derive(Debug)]
struct Pause {
    next: Duration,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(10);

    fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// It worked.
    fn reset(&mut self) {
        self.next = Self::FIRST;
    }

    /// It failed: between half of the time and all of it.
    fn take(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(Self::LONGEST);
        longest / 2 + (longest / 2).mul_f64(chance())
    }
}

/// Removes a pod of the server now, if it is still the one with this uid; it is as well if somebody else has.
async fn remove(api: &Api<v1::Pod>, name: &str, uid: String) -> Result<(), kube::Error> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Err(error) if !matches!(code(&error), Some(404 | 409)) => Err(error),
        _ => Ok(()),
    }
}

/// A number from 0 to 1 that nobody can foresee.
fn chance() -> f64 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    f64::from(u16::from_le_bytes([bytes[0], bytes[1]])) / f64::from(u16::MAX)
}

/// An error in one line: a refusal in the server's words.
fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// The status code of the server's refusal; none for an error on the way to it.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

impl Cluster {
    /// The node's part in a cluster. Nothing happens before [`Self::run`].
    pub fn new(
        node: Arc<AgentNode>,
        reconciler: Arc<Reconciler<AgentNode>>,
        config: ClusterConfig,
        context: &manifest::Context,
        manifests_read: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let saved = Objects::of_cluster(&node.config.root);
        let context = manifest::Context { cluster: true, ..context.clone() };
        Arc::new(Self {
            objects: objects::Watched::new(),
            node,
            reconciler,
            config,
            context,
            saved,
            registered: Mutex::default(),
            pods: pods::Known::default(),
            statuses: status::Statuses::default(),
            mirrors: Notify::new(),
            leaving: AtomicBool::new(false),
            answers: callers::Answers::new(),
            manifests_read,
            classes_known: watch::Sender::new(false),
            access: OnceLock::new(),
        })
    }

    /// Puts the last known ConfigMaps, Secrets and Services in place and gives the last known pods: what the node goes on
    /// with until the server says something else.
    pub fn recall(&self) -> Vec<StoredPod> {
        for object in self.saved.configs() {
            if self.node.configs.owner(&object.key()).is_none() {
                self.node.configs.put(Owner::Cluster, object);
            }
        }
        self.recall_services();
        self.recall_classes();
        self.recall_claims();
        self.node.configs.tokens.recall(&self.node.config.root);
        self.saved.pods()
    }

    /// Forgets the last known state of a cluster that the machine is a node of no more.
    pub fn forget(root: &std::path::Path) {
        let dir = root.join("cluster");
        if let Err(error) = std::fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove what is left of a cluster");
        }
    }

    /// Joins the cluster and is its node, for ever.
    pub async fn run(self: Arc<Self>) {
        let access = self.join().await;
        let _ = self.access.set(access.clone());
        let client = access.client.clone();
        tracing::info!(
            server = access.server,
            node = self.node.facts.name,
            "this machine is a node of a cluster"
        );
        tokio::spawn(self.clone().keep_certificate(access));
        tokio::spawn(self.clone().renew_lease(client.clone()));
        tokio::spawn(self.clone().send_events(client.clone()));
        if self.config.register {
            self.register(&client).await;
            tokio::spawn(self.clone().report_node(client.clone()));
        }
        tokio::spawn(self.clone().follow_node(client.clone()));
        tokio::spawn(self.clone().follow_services(client.clone()));
        tokio::spawn(self.clone().follow_classes(client.clone()));
        tokio::spawn(self.clone().send_statuses(client.clone()));
        tokio::spawn(self.clone().keep_mirrors(client.clone()));
        tokio::spawn(self.clone().look_for_strays());
        tokio::spawn(self.clone().keep_tokens(client.clone()));
        // Which of its runtimes a pod wants has to be known before the first one.
        let _ = self.classes_known.subscribe().wait_for(|known| *known).await;
        self.follow_pods(client).await;
    }

    /// Once all manifests have been read, mirrors of pods that no file wants any more can be told.
    async fn look_for_strays(self: Arc<Self>) {
        let mut read = self.manifests_read.clone();
        if read.wait_for(|read| *read).await.is_ok() {
            self.mirrors.notify_one();
        }
    }

    /// From now on nothing that the server says makes a pod begin.
    pub fn begin_to_leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Takes the Node out of the cluster. Its own certificate does not let a node do that; an administrator's does.
    pub async fn leave(&self) {
        let (Some(client), true) = (self.client(), self.config.register) else { return };
        let (api, name) = (Api::<v1::Node>::all(client), &self.node.facts.name);
        let params = DeleteParams::default();
        match tokio::time::timeout(LEAVE, api.delete(name, &params)).await {
            Ok(Ok(_)) => tracing::info!(node = name, "the node has left the cluster"),
            Ok(Err(error)) if code(&error) == Some(404) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    node = name,
                    error = why(&error),
                    "the Node object is still there; remove it with `kubectl delete node {name}`"
                );
            }
            Err(_) => tracing::warn!(
                node = name,
                "the API server does not answer; remove the Node object with `kubectl delete node {name}`"
            ),
        }
    }

    fn client(&self) -> Option<Client> {
        self.access.get().map(|access| access.client.clone())
    }

    fn registered(&self) -> MutexGuard<'_, Option<Arc<v1::Node>>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod's status has been published.
    pub fn published(&self, pod: &Arc<Pod>, deletion: Option<&Deletion>, status: &Arc<v1::PodStatus>) {
        if pod.source == Source::Api {
            return;
        }
        if pod.source == Source::Cluster && (has_ended(status) || deletion.is_some()) {
            // What has ended must not begin again because the server cannot be asked after a reboot.
            self.saved.remove_pod(pod);
        }
        self.statuses.published(pod, status);
        if pod.source != Source::Cluster && self.pods.mirror(pod.namespace(), pod.name()).is_none() {
            self.mirrors.notify_one();
        }
    }

    /// Nothing of a pod is left on this machine.
    pub fn gone(&self, pod: &Arc<Pod>) {
        if pod.source == Source::Api {
            return;
        }
        self.saved.remove_pod(pod);
        self.release(pod.uid());
        self.statuses.gone(pod);
        if pod.source != Source::Cluster {
            self.mirrors.notify_one();
        }
    }

    /// Lets go of what a pod has needed.
    fn release(&self, uid: &str) {
        for key in self.objects.release(uid) {
            self.object_gone(&key);
        }
        self.node.configs.tokens.release(uid);
        self.release_claims(uid);
    }
}
