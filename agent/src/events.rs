//! Events as `kubectl get events` shows them: one object per thing that happens, counted when it happens again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use berth_reconciler::node::PodEvent;
use berth_reconciler::pod::Pod;
use berth_reconciler::status::whole_seconds;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::store::{Group, Kind, ObjectStore};

/// Most events that are kept.
const KEEP: usize = 1000;
/// How long an event is kept after it happened last, in seconds (the API server's `--event-ttl`).
const TTL_SECONDS: i64 = 3600;

/// So many different messages of one kind of event about one object are kept apart; those after them are shown as one, whose
/// message is the newest (client-go's `EventAggregator`).
const APART: usize = 10;
/// After so many seconds without any they count anew.
const APART_SECONDS: i64 = 600;
/// How the message of several begins.
const COMBINED: &str = "(combined from similar events): ";

type Key = (String, String, String, String);

/// What is alike but for its message: object, field, reason, and whether it is a warning.
type Likeness = (String, String, String, bool);

#[derive(Default)]
struct Alike {
    messages: BTreeSet<String>,
    last: Timestamp,
}

impl Alike {
    /// Whether a message is one too many to be kept apart.
    fn combines(&mut self, message: &str, now: Timestamp) -> bool {
        if now.as_second() - self.last.as_second() > APART_SECONDS {
            self.messages.clear();
        }
        self.last = now;
        if self.messages.len() < APART {
            self.messages.insert(message.to_owned());
        }
        !self.messages.contains(message)
    }
}

struct Series {
    namespace: String,
    uid: String,
    name: String,
    count: u32,
    first: Timestamp,
    last: Timestamp,
}

#[derive(Default)]
struct Known {
    series: HashMap<Arc<Key>, Series>,
    order: VecDeque<Arc<Key>>,
    alike: HashMap<Likeness, Alike>,
    serial: u64,
}

/// What an event is about.
#[derive(Clone, Debug)]
pub struct Regarding {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its namespace; `default` for a Node's events.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty if it has none.
    pub uid: String,
    /// Part of it, as `spec.containers{web}`; empty for the whole.
    pub field: String,
}

/// The `apiVersion` of a kind.
fn api_version(kind: &str) -> String {
    let known = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
    known.map_or(Group::CORE, Kind::group).to_string()
}

/// Records events into the store.
pub struct Recorder {
    store: ObjectStore,
    node: String,
    known: Mutex<Known>,
}

impl Recorder {
    /// A recorder for the node of that name.
    pub fn new(store: ObjectStore, node: &str) -> Self {
        Self { store, node: node.to_owned(), known: Mutex::default() }
    }

    /// Records an event about a pod.
    pub fn pod(&self, pod: &Pod, event: &PodEvent) {
        let field = event.container.as_ref().map_or_else(String::new, |name| {
            let init = pod.spec().init_containers.iter().flatten().any(|c| c.name == *name);
            let ephemeral = pod.ephemeral().iter().any(|c| c.name == *name);
            let list = match (init, ephemeral) {
                (true, _) => "initContainers",
                (_, true) => "ephemeralContainers",
                _ => "containers",
            };
            format!("spec.{list}{{{name}}}")
        });
        let regarding = Regarding {
            kind: "Pod",
            namespace: pod.namespace().into(),
            name: pod.name().into(),
            uid: pod.uid().into(),
            field,
        };
        self.record(&regarding, event.warning, event.reason, &event.message);
    }

    /// Records an event about any object.
    pub fn record(&self, about: &Regarding, warning: bool, reason: &str, message: &str) {
        let now = Timestamp::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_old(&mut known, now);
        let (object, field, reason_of) =
            (format!("{}/{}", about.uid, about.name), about.field.clone(), reason.to_owned());
        let likeness = (object.clone(), field.clone(), reason_of.clone(), warning);
        let combines = known.alike.entry(likeness).or_default().combines(message, now);
        let combined = combines.then(|| format!("{COMBINED}{message}"));
        let message = combined.as_deref().unwrap_or(message);
        let key = Arc::new((object, field, reason_of, if combines { COMBINED } else { message }.to_owned()));
        known.serial += 1;
        let serial = known.serial;
        if !known.series.contains_key(&key) {
            known.order.push_back(key.clone());
        }
        let series = known.series.entry(key).or_insert_with(|| Series {
            namespace: about.namespace.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            name: format!("{}.{:x}", about.name, now.as_nanosecond() as u64 ^ serial),
            count: 0,
            first: now,
            last: now,
        });
        series.count += 1;
        series.last = now;
        let object = self.object(about, series, warning, reason, message);
        self.store.put(Kind::Event, &series.namespace, &series.name, &object);
    }

    fn object(
        &self,
        about: &Regarding,
        series: &Series,
        warning: bool,
        reason: &str,
        message: &str,
    ) -> Value {
        let mut involved = json!({
            "apiVersion": api_version(about.kind), "kind": about.kind, "namespace": about.namespace, "name": about.name,
        });
        if !about.uid.is_empty() {
            involved["uid"] = json!(about.uid);
        }
        if !about.field.is_empty() {
            involved["fieldPath"] = json!(about.field);
        }
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": series.name, "namespace": series.namespace, "uid": series.uid,
                "creationTimestamp": whole_seconds(series.first)},
            "involvedObject": involved,
            "type": if warning { "Warning" } else { "Normal" },
            "reason": reason, "message": message, "count": series.count,
            "firstTimestamp": whole_seconds(series.first), "lastTimestamp": whole_seconds(series.last),
            "source": {"component": "berth", "host": self.node},
            "reportingComponent": "berth", "reportingInstance": self.node,
        })
    }

    fn forget_old(&self, known: &mut Known, now: Timestamp) {
        if known.alike.len() >= KEEP {
            known.alike.retain(|_, alike| now.as_second() - alike.last.as_second() <= APART_SECONDS);
            if known.alike.len() >= KEEP {
                // So many at once that nobody reads them one by one: counting anew costs less than remembering all.
                known.alike.clear();
            }
        }
        while let Some(key) = known.order.front() {
            let old =
                known.series.get(key).is_none_or(|s| now.as_second() - s.last.as_second() > TTL_SECONDS);
            if !old && known.order.len() < KEEP {
                return;
            }
            let Some(key) = known.order.pop_front() else { return };
            if let Some(series) = known.series.remove(&key) {
                self.store.delete(Kind::Event, &series.namespace, &series.name);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Regarding {
        Regarding {
            kind: "Pod",
            namespace: "default".into(),
            name: name.into(),
            uid: format!("{name}-uid"),
            field: String::new(),
        }
    }

    #[test]
    fn the_same_event_is_counted() {
        let store = ObjectStore::new();
        let recorder = Recorder::new(store.clone(), "n");
        let about = pod("p");
        recorder.record(&about, true, "BackOff", "m");
        recorder.record(&about, true, "BackOff", "m");
        recorder.record(&about, false, "Started", "m");
        let (events, _) = store.list(Kind::Event, Some("default"));
        let counts: Vec<i64> = events.iter().map(|e| e.value()["count"].as_i64().unwrap()).collect();
        assert_eq!(counts.iter().sum::<i64>(), 3);
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn events_that_differ_in_their_message_only_become_one_after_the_tenth() {
        let store = ObjectStore::new();
        let recorder = Recorder::new(store.clone(), "n");
        let about = pod("p");
        let all = || {
            let (events, _) = store.list(Kind::Event, None);
            let pair = |event: Value| {
                (event["message"].as_str().unwrap().to_owned(), event["count"].as_u64().unwrap())
            };
            events.iter().map(|event| pair(event.value())).collect::<HashMap<_, _>>()
        };
        for n in 1..=12 {
            recorder.record(&about, true, "Unhealthy", &format!("answer {n}"));
        }
        recorder.record(&about, true, "Unhealthy", "answer 3");
        let seen = all();
        assert_eq!(seen.len(), 11, "{seen:?}");
        assert_eq!(seen["answer 3"], 2, "one of the first is still counted as itself");
        assert_eq!(seen["(combined from similar events): answer 12"], 2);
        // Another reason is another matter.
        recorder.record(&about, true, "BackOff", "answer 13");
        assert_eq!(all()["answer 13"], 1);
    }

    #[test]
    fn messages_are_kept_apart_again_after_a_while() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let mut alike = Alike::default();
        assert!((0..10).all(|n| !alike.combines(&n.to_string(), at(1000))));
        assert!(alike.combines("a", at(1600)));
        assert!(alike.combines("b", at(2200)));
        assert!(!alike.combines("c", at(2801)));
    }

    #[test]
    fn the_number_of_events_is_bounded() {
        let store = ObjectStore::new();
        let recorder = Recorder::new(store.clone(), "n");
        for i in 0..KEEP + 50 {
            recorder.record(&pod(&format!("p{i}")), false, "Started", "m");
        }
        assert!(store.list(Kind::Event, None).0.len() <= KEEP);
    }
}
