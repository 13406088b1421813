//! What happens on this node, told to the cluster: the node's own events, sent as they are recorded.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use berth_reconciler::pod::Source;
use k8s_openapi::api::core::v1;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Cluster, Pause, code};
use crate::store::Kind;

/// Events that may be sent at once, and each second after that (kubelet's `eventBurst` and `eventRecordQPS`).
const BURST: f64 = 100.0;
const PER_SECOND: f64 = 50.0;
/// Events that have been sent and may be counted on.
const REMEMBERED: usize = 1000;

/// Lets so many through, and no more.
#[derive(Debug)]
struct Bucket {
    left: f64,
    looked: Instant,
}

impl Bucket {
    fn new() -> Self {
        Self { left: BURST, looked: Instant::now() }
    }

    /// How long the next one has to wait.
    fn take(&mut self, now: Instant) -> Duration {
        let gained = now.duration_since(self.looked).as_secs_f64() * PER_SECOND;
        self.left = (self.left + gained).min(BURST) - 1.0;
        self.looked = now;
        Duration::from_secs_f64((-self.left / PER_SECOND).max(0.0))
    }
}

impl Cluster {
    /// Sends events, for ever. Those of a time at which the server was away are sent as far as the node still has them.
    pub(super) async fn send_events(self: Arc<Self>, client: Client) {
        let store = &self.node.store;
        let (mut bucket, mut pause) = (Bucket::new(), Pause::new());
        let mut sent: HashSet<String> = HashSet::new();
        loop {
            let (events, version) = store.list(Kind::Event, None);
            for event in events {
                self.send_event(&client, &event.value(), &mut sent, &mut bucket, &mut pause).await;
            }
            let Ok(mut watch) = store.watch(Kind::Event, version) else { continue };
            // An error says that changes were missed: they are in the list.
            while let Ok(change) = watch.next().await {
                if let Some(event) = &change.after {
                    self.send_event(&client, &event.value(), &mut sent, &mut bucket, &mut pause).await;
                } else {
                    sent.remove(&change.last.name);
                }
            }
        }
    }

    async fn send_event(
        &self,
        client: &Client,
        event: &Value,
        sent: &mut HashSet<String>,
        bucket: &mut Bucket,
        pause: &mut Pause,
    ) {
        if !self.concerns_cluster(event) {
            return;
        }
        let (namespace, name) = match (&event["metadata"]["namespace"], &event["metadata"]["name"]) {
            (Value::String(namespace), Value::String(name)) => (namespace, name),
            _ => return,
        };
        tokio::time::sleep(bucket.take(Instant::now())).await;
        let api: Api<v1::Event> = Api::namespaced(client.clone(), namespace);
        loop {
            let outcome = match sent.contains(name) {
                true => again(&api, name, event).await,
                false => first(&api, event).await,
            };
            match outcome {
                Ok(()) => {
                    if sent.len() >= REMEMBERED {
                        sent.clear();
                    }
                    sent.insert(name.clone());
                    return pause.reset();
                }
                // It has expired there; or it was sent before, by an agent before this one.
                Err(error) if code(&error) == Some(404) && sent.remove(name) => {}
                Err(error) if code(&error) == Some(409) => {
                    sent.insert(name.clone());
                }
                // Such as for a namespace that is being removed: nobody is going to look.
                Err(error) if code(&error).is_some_and(|code| (400..500).contains(&code) && code != 429) => {
                    tracing::debug!(%error, "the cluster does not take an event");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot send an event; trying again");
                    tokio::time::sleep(pause.take()).await;
                }
            }
        }
    }

    /// Whether the cluster knows what the event is about.
    fn concerns_cluster(&self, event: &Value) -> bool {
        let about = &event["involvedObject"];
        match about["kind"].as_str() {
            Some("Node") => true,
            Some("Pod") => {
                let uid = about["uid"].as_str().unwrap_or_default();
                let of_cluster = self.pods.get(uid).is_some();
                of_cluster || self.reconciler.get(uid).is_some_and(|view| view.pod.source != Source::Api)
            }
            _ => false,
        }
    }
}

async fn first(api: &Api<v1::Event>, event: &Value) -> Result<(), kube::Error> {
    let mut event = event.clone();
    event["metadata"] =
        json!({"name": event["metadata"]["name"], "namespace": event["metadata"]["namespace"]});
    if event["involvedObject"]["kind"] == "Node" {
        // As a kubelet has it, and `kubectl describe node` looks for it.
        event["involvedObject"]["uid"] = event["involvedObject"]["name"].clone();
        event["involvedObject"].as_object_mut().map(|about| about.remove("namespace"));
    }
    let event: v1::Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
    api.create(&PostParams::default(), &event).await.map(drop)
}

async fn again(api: &Api<v1::Event>, name: &str, event: &Value) -> Result<(), kube::Error> {
    let patch = json!({"count": event["count"], "lastTimestamp": event["lastTimestamp"]});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket { left: BURST, looked: start };
        assert!((0..100).all(|_| bucket.take(start).is_zero()));
        assert_eq!(bucket.take(start).as_millis(), 20);
        assert!(bucket.take(start + Duration::from_secs(10)).is_zero());
    }
}
