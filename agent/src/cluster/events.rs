//! What happens on this node, told to the cluster: the node's own events, sent as they are recorded.

use std::collections::{HashMap, HashSet};
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
const ALL: Rate = Rate { burst: 100.0, per_second: 50.0 };
/// The same of one object, of which more are not sent at all (client-go's `EventSourceObjectSpamFilter`).
const OF_ONE: Rate = Rate { burst: 25.0, per_second: 1.0 / 300.0 };
/// The name by which clusters know the component that runs pods.
const KUBELET: &str = "kubelet";
/// Events that have been sent and may be counted on.
const REMEMBERED: usize = 1000;

#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// Lets so many through, and no more.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    left: f64,
    looked: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, looked: now }
    }

    fn fill(&mut self, now: Instant) {
        let gained = now.duration_since(self.looked).as_secs_f64() * self.rate.per_second;
        self.left = (self.left + gained).min(self.rate.burst);
        self.looked = now;
    }

    /// How long the next one has to wait.
    fn take(&mut self, now: Instant) -> Duration {
        self.fill(now);
        self.left -= 1.0;
        Duration::from_secs_f64((-self.left / self.rate.per_second).max(0.0))
    }

    /// Whether the next one may pass at once; if not, it never does.
    fn passes(&mut self, now: Instant) -> bool {
        self.fill(now);
        let passes = self.left >= 1.0;
        self.left -= if passes { 1.0 } else { 0.0 };
        passes
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.rate.burst
    }
}

/// What has been sent, and how much more may be.
struct Sending {
    all: Bucket,
    of_one: HashMap<String, Bucket>,
    sent: HashSet<String>,
    pause: Pause,
}

impl Sending {
    fn new() -> Self {
        let all = Bucket::new(ALL, Instant::now());
        Self { all, of_one: HashMap::new(), sent: HashSet::new(), pause: Pause::new() }
    }

    /// Whether one more about that object may be sent.
    fn may_send(&mut self, event: &Value, now: Instant) -> bool {
        if self.of_one.len() >= REMEMBERED {
            self.of_one.retain(|_, bucket| !bucket.is_full(now));
            if self.of_one.len() >= REMEMBERED {
                self.of_one.clear();
            }
        }
        let about = &event["involvedObject"];
        let key = format!("{}/{}/{}", about["kind"], about["name"], about["uid"]);
        self.of_one.entry(key).or_insert_with(|| Bucket::new(OF_ONE, now)).passes(now)
    }
}

impl Cluster {
    /// Sends events, for ever. Those of a time at which the server was away are sent as far as the node still has them.
    pub(super) async fn send_events(self: Arc<Self>, client: Client) {
        let store = &self.node.store;
        let mut sending = Sending::new();
        loop {
            let (events, version) = store.list(Kind::Event, None);
            for event in events {
                self.send_event(&client, &event.value(), &mut sending).await;
            }
            let Ok(mut watch) = store.watch(Kind::Event, version) else { continue };
            // An error says that changes were missed: they are in the list.
            while let Ok(change) = watch.next().await {
                if let Some(event) = &change.after {
                    self.send_event(&client, &event.value(), &mut sending).await;
                } else {
                    sending.sent.remove(&change.last.name);
                }
            }
        }
    }

    async fn send_event(&self, client: &Client, event: &Value, sending: &mut Sending) {
        if !self.concerns_cluster(event) || !sending.may_send(event, Instant::now()) {
            return;
        }
        let (namespace, name) = match (&event["metadata"]["namespace"], &event["metadata"]["name"]) {
            (Value::String(namespace), Value::String(name)) => (namespace, name),
            _ => return,
        };
        tokio::time::sleep(sending.all.take(Instant::now())).await;
        let Sending { sent, pause, .. } = sending;
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
    // Whoever looks for what nodes say looks for this name (`kubectl get events --field-selector source=kubelet`).
    event["source"]["component"] = json!(KUBELET);
    event["reportingComponent"] = json!(KUBELET);
    let event: v1::Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
    api.create(&PostParams::default(), &event).await.map(drop)
}

async fn again(api: &Api<v1::Event>, name: &str, event: &Value) -> Result<(), kube::Error> {
    let patch = json!({"count": event["count"], "lastTimestamp": event["lastTimestamp"], "message": event["message"]});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::new(ALL, start);
        assert!((0..100).all(|_| bucket.take(start).is_zero()));
        assert_eq!(bucket.take(start).as_millis(), 20);
        assert!(bucket.take(start + Duration::from_secs(10)).is_zero());
    }

    #[test]
    fn one_object_does_not_drown_the_others() {
        let start = Instant::now();
        let mut sending = Sending::new();
        let event = |name: &str| json!({"involvedObject": {"kind": "Pod", "name": name, "uid": name}});
        assert!((0..25).all(|_| sending.may_send(&event("loud"), start)));
        assert!(!sending.may_send(&event("loud"), start));
        assert!(sending.may_send(&event("quiet"), start));
        let later = start + Duration::from_secs(301);
        assert!(sending.may_send(&event("loud"), later));
        assert!(!sending.may_send(&event("loud"), later));
    }
}
