//! Events as `kubectl get events` shows them: one object per thing that happens, counted when it happens again.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use berth_reconciler::node::PodEvent;
use berth_reconciler::pod::Pod;
use berth_reconciler::status::whole_seconds;
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

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

/// How often things alike but for their messages have been heard of lately.
#[derive(Default)]
struct Alike {
    /// Messages kept apart.
    apart: usize,
    last: Timestamp,
}

impl Alike {
    /// Whether an event is one too many to be kept apart; `known` if one with its message is kept already.
    fn combines(&mut self, known: bool, now: Timestamp) -> bool {
        if now.as_second() - self.last.as_second() > APART_SECONDS {
            self.apart = 0;
        }
        self.last = now;
        if known {
            return false;
        }
        self.apart += 1;
        self.apart > APART
    }
}

struct Series {
    uid: Uuid,
    /// Ends the name of the event.
    number: u64,
    count: u32,
    first: Timestamp,
    last: Timestamp,
}

/// What is known of the events in the store. Hundreds of them are kept for an hour: so this has no memory of its own for any of
/// them, which would lie scattered among everything that has come and gone since (`store::packed` says what that costs).
#[derive(Default)]
struct Known {
    /// By what makes two of them one: object, field, reason, and message.
    series: HashMap<u64, Series>,
    /// The oldest first, with the lengths of namespace and name.
    order: VecDeque<(u64, [usize; 2])>,
    /// Namespace and name of each, in the same order.
    names: VecDeque<u8>,
    /// By what is alike: object, field, reason, and whether it is a warning.
    alike: HashMap<u64, Alike>,
    serial: u64,
    /// For hashes: nobody can choose texts that have the same, and by chance two of a thousand have it once in 10^13 times.
    keys: RandomState,
}

impl Known {
    /// Takes the oldest event off: its namespace and name.
    fn pop(&mut self) -> Option<[String; 2]> {
        let (key, lengths) = self.order.pop_front()?;
        self.series.remove(&key);
        Some(lengths.map(|len| {
            let text = self.names.drain(..len).collect();
            String::from_utf8(text).expect("a name was put there")
        }))
    }
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
        let known = &mut *known;
        let exactly =
            |message: &str| known.keys.hash_one((&about.uid, &about.name, &about.field, reason, message));
        let key = exactly(message);
        let likeness = known.keys.hash_one((&about.uid, &about.name, &about.field, reason, warning));
        let is_known = known.series.contains_key(&key);
        let combines = known.alike.entry(likeness).or_default().combines(is_known, now);
        let key = if combines { exactly(COMBINED) } else { key };
        let combined = combines.then(|| format!("{COMBINED}{message}"));
        let message = combined.as_deref().unwrap_or(message);
        known.serial += 1;
        let name = |number: u64| format!("{}.{number:x}", about.name);
        let series = known.series.entry(key).or_insert_with(|| {
            let number = now.as_nanosecond() as u64 ^ known.serial;
            let (namespace, name) = (&about.namespace, name(number));
            known.order.push_back((key, [namespace.len(), name.len()]));
            known.names.extend(namespace.bytes().chain(name.bytes()));
            Series { uid: Uuid::new_v4(), number, count: 0, first: now, last: now }
        });
        series.count += 1;
        series.last = now;
        let name = name(series.number);
        let object = self.object(about, series, &name, warning, reason, message);
        self.store.put(Kind::Event, &about.namespace, &name, &object);
    }

    fn object(
        &self,
        about: &Regarding,
        series: &Series,
        name: &str,
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
            "metadata": {"name": name, "namespace": about.namespace, "uid": series.uid.to_string(),
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
        while let Some((key, _)) = known.order.front() {
            let old =
                known.series.get(key).is_none_or(|s| now.as_second() - s.last.as_second() > TTL_SECONDS);
            if !old && known.order.len() < KEEP {
                return;
            }
            let Some([namespace, name]) = known.pop() else { return };
            self.store.delete(Kind::Event, &namespace, &name);
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
        assert!((0..10).all(|_| !alike.combines(false, at(1000))));
        assert!(alike.combines(false, at(1600)));
        assert!(!alike.combines(true, at(1600)), "one of the ten");
        assert!(alike.combines(false, at(2200)));
        assert!(!alike.combines(false, at(2801)));
    }

    #[test]
    fn old_events_go_by_the_name_that_they_came_by() {
        let store = ObjectStore::new();
        let recorder = Recorder::new(store.clone(), "n");
        for name in ["first", "second", "first", "third"] {
            let about = Regarding { namespace: format!("of-{name}"), ..pod(name) };
            recorder.record(&about, false, "Started", "m");
        }
        let known = |at: i64| {
            let now = Timestamp::from_second(Timestamp::now().as_second() + at).unwrap();
            recorder.forget_old(&mut recorder.known.lock().unwrap(), now);
            store.list(Kind::Event, None).0.iter().map(|e| e.namespace.clone()).collect::<Vec<_>>()
        };
        assert_eq!(known(TTL_SECONDS - 60), ["of-first", "of-second", "of-third"]);
        let mut left = recorder.known.lock().unwrap();
        let [namespace, name] = left.pop().unwrap();
        assert_eq!(namespace, "of-first");
        assert!(store.delete(Kind::Event, &namespace, &name));
        drop(left);
        assert!(known(TTL_SECONDS + 60).is_empty());
        let left = recorder.known.lock().unwrap();
        assert!(left.names.is_empty() && left.series.is_empty() && left.order.is_empty());
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
