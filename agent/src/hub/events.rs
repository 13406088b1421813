//! Events that others report. They are kept for an hour, and not on disk.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::Value;

use super::{Hub, Key};
use crate::api::Cause;

/// Most events of others that are kept.
const KEEP: usize = 1000;
/// How long an event is kept after it was reported last, in seconds (the API server's `--event-ttl`).
const TTL_SECONDS: i64 = 3600;

/// The events that others have reported, the oldest report first.
#[derive(Default)]
pub(super) struct Reported(Mutex<VecDeque<(Key, i64)>>);

impl Reported {
    /// Notes a report; gives what is to be forgotten for it.
    fn note(&self, key: &Key, now: i64) -> Vec<Key> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| known != key);
        all.push_back((key.clone(), now));
        let mut old = Vec::new();
        while let Some((_, reported)) = all.front() {
            if all.len() <= KEEP && now - reported <= TTL_SECONDS {
                break;
            }
            old.extend(all.pop_front().map(|(key, _)| key));
        }
        old
    }
}

impl Hub {
    /// An event was reported: old ones go.
    pub(super) fn event_reported(&self, key: &Key) {
        for old in self.reported.note(key, Timestamp::now().as_second()) {
            self.store.delete(old.kind, &old.namespace, &old.name);
        }
    }
}

/// An event lies in the namespace of what it is about.
pub(super) fn check(key: &Key, event: &Value) -> Vec<Cause> {
    let about = event["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let nowhere = about.is_empty() && ["default", "kube-system"].contains(&key.namespace.as_str());
    if nowhere || about == key.namespace {
        return Vec::new();
    }
    let message = format!("Invalid value: {about:?}: does not match event.namespace");
    vec![Cause { reason: "FieldValueInvalid", field: "involvedObject.namespace".to_owned(), message }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Kind;

    #[test]
    fn old_events_and_too_many_go() {
        let key = |n: usize| Key { kind: Kind::Event, namespace: "a".into(), name: n.to_string() };
        let reported = Reported::default();
        assert!((0..KEEP).all(|n| reported.note(&key(n), 0).is_empty()));
        assert_eq!(reported.note(&key(0), 1), []);
        assert_eq!(reported.note(&key(KEEP), 1), [key(1)]);
        let gone = reported.note(&key(KEEP + 1), TTL_SECONDS + 1);
        assert_eq!(gone.len(), KEEP - 2);
        assert!(!gone.contains(&key(0)));
    }
}
