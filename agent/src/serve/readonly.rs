//! The read-only HTTP server: health and figures, for monitoring on the machine itself.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use berth_reconciler::manifest::MIRROR_ANNOTATION;
use berth_reconciler::node::ContainerState;
use http::{StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::quiet::Activity;
use crate::hub::node_of;
use crate::metrics::{self, Page};
use crate::node::AgentNode;
use crate::store::Kind;

#[derive(Clone)]
struct Served {
    node: Arc<AgentNode>,
    ready: watch::Receiver<bool>,
}

/// Serves until the task is ended.
pub(super) fn serve(
    listener: TcpListener,
    node: Arc<AgentNode>,
    ready: watch::Receiver<bool>,
    activity: &Activity,
) -> JoinHandle<()> {
    let router = activity.of(pages(node, ready));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the read-only server ended");
        }
    })
}

/// What there is to read, for everybody who gets as far as this.
pub(super) fn pages(node: Arc<AgentNode>, ready: watch::Receiver<bool>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|State(s): State<Served>| page(s, Page::All)))
        .route("/metrics/cadvisor", get(|State(s): State<Served>| page(s, Page::Containers)))
        .route("/metrics/resource", get(|State(s): State<Served>| page(s, Page::Resource)))
        .route("/stats/summary", get(summary))
        .route("/pods", get(pods))
        // Clients of kubelets ask for it with the slash, too.
        .route("/runningpods", get(running_pods))
        .route("/runningpods/", get(running_pods))
        .with_state(Served { node, ready })
}

async fn readyz(State(served): State<Served>) -> Response {
    if *served.ready.borrow() {
        "ok".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "manifests are being read\n").into_response()
    }
}

async fn page(served: Served, page: Page) -> Response {
    match metrics::page(&served.node, page).await {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn summary(State(served): State<Served>) -> axum::Json<serde_json::Value> {
    axum::Json(metrics::summary::summary(&served.node).await)
}

/// All pods, as kubelet's `/pods`.
async fn pods(State(served): State<Served>) -> Response {
    let all = served.node.store.list(Kind::Pod, None).0;
    let own = all.iter().map(|pod| pod.value()).filter(|pod| node_of(pod) == served.node.facts.name);
    let items: Vec<Value> = own.map(without_mirror).collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    axum::Json(list).into_response()
}

/// The pods of which containers run now, with those, as kubelet's `/runningpods/`.
async fn running_pods(State(served): State<Served>) -> Response {
    let mut items = Vec::new();
    for entry in served.node.all_entries() {
        let pod = entry.pod();
        let instances = entry.state().instances.clone();
        let running = instances.iter().filter(|i| matches!(i.record.state, ContainerState::Running { .. }));
        let containers: Vec<Value> = running
            .map(|i| json!({"name": i.record.name, "image": i.record.image, "resources": {}}))
            .collect();
        if !containers.is_empty() {
            let meta = json!({"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()});
            items.push(json!({"metadata": meta, "spec": {"containers": containers}, "status": {}}));
        }
    }
    axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})).into_response()
}

/// The pod of a manifest itself, not what an API server shows of it.
fn without_mirror(mut pod: Value) -> Value {
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        annotations.remove(MIRROR_ANNOTATION);
    }
    pod
}
