#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::json;

use super::packed::WORTH;
use super::*;

fn store() -> ObjectStore {
    ObjectStore::starting_at(100, 8 << 20)
}

#[test]
fn versions_grow_and_are_in_the_object() {
    let store = store();
    assert_eq!(store.put(Kind::Pod, "default", "a", &json!({"spec": {}})), 101);
    assert_eq!(store.put(Kind::Node, "ignored", "n", &json!({})), 102);
    let pod = store.get(Kind::Pod, "default", "a").unwrap().value();
    assert_eq!(pod["metadata"], json!({"name": "a", "namespace": "default", "resourceVersion": "101"}));
    let node = store.get(Kind::Node, "", "n").unwrap();
    assert_eq!(node.namespace, "");
    assert_eq!(node.value()["kind"], "Node");
}

#[test]
fn an_equal_object_is_no_change() {
    let store = store();
    let version = store.put(Kind::Pod, "default", "a", &json!({"spec": {"x": 1}}));
    assert_eq!(store.put(Kind::Pod, "default", "a", &json!({"spec": {"x": 1}})), version);
    assert_eq!(store.version(), version);
}

#[test]
fn only_what_is_still_there_is_replaced() {
    let store = store();
    let pod = |uid: &str, n: u32| json!({"metadata": {"uid": uid}, "spec": {"n": n}});
    assert_eq!(store.replace(Kind::Pod, "default", "a", "1", &pod("1", 1)), None);
    assert!(store.get(Kind::Pod, "default", "a").is_none());
    let version = store.put(Kind::Pod, "default", "a", &pod("1", 1));
    assert_eq!(store.replace(Kind::Pod, "default", "a", "1", &pod("1", 2)), Some(version + 1));
    assert_eq!(store.replace(Kind::Pod, "default", "a", "1", &pod("1", 2)), Some(version + 1), "no change");
    // By now the name is another pod's.
    assert_eq!(store.replace(Kind::Pod, "default", "a", "2", &pod("2", 3)), None);
    assert_eq!(store.get(Kind::Pod, "default", "a").unwrap().value()["spec"]["n"], 2);
}

#[test]
fn lists_one_namespace_only() {
    let store = store();
    for (namespace, name) in [("b", "2"), ("a", "1"), ("b", "1"), ("c", "1")] {
        store.put(Kind::Pod, namespace, name, &json!({}));
    }
    store.put(Kind::Secret, "b", "1", &json!({}));
    let names = |ns| {
        let (objects, _) = store.list(Kind::Pod, ns);
        objects.iter().map(|o| format!("{}/{}", o.namespace, o.name)).collect::<Vec<_>>()
    };
    assert_eq!(names(None), ["a/1", "b/1", "b/2", "c/1"]);
    assert_eq!(names(Some("b")), ["b/1", "b/2"]);
    assert!(names(Some("nowhere")).is_empty());
}

#[test]
fn old_and_future_versions_are_gone() {
    let store = ObjectStore::starting_at(100, 200);
    for n in 0..50 {
        store.put(Kind::Pod, "default", "a", &json!({"spec": {"n": n}}));
    }
    assert!(store.watch(Kind::Pod, 100).is_err());
    assert!(store.watch(Kind::Pod, 151).is_err());
    assert!(store.watch(Kind::Pod, 150).is_ok());
    assert!(store.watch(Kind::Pod, 149).is_ok());
}

#[test]
fn a_history_that_is_forgotten_leaves_the_objects_and_who_was_up_to_date() {
    let store = store();
    store.put(Kind::Pod, "default", "a", &json!({"spec": {"n": 1}}));
    let before = store.version();
    let version = store.put(Kind::Pod, "default", "a", &json!({"spec": {"n": 2}}));
    let mut watch = store.watch(Kind::Pod, version).unwrap();
    store.forget_history();
    assert!(store.watch(Kind::Pod, before).is_err());
    assert_eq!(store.get(Kind::Pod, "default", "a").unwrap().version, version);
    let next = store.put(Kind::Pod, "default", "a", &json!({"spec": {"n": 3}}));
    assert_eq!(watch.try_next().unwrap().unwrap().version, next);
}

#[test]
fn what_has_settled_is_smaller_and_still_bounded() {
    let store = ObjectStore::starting_at(100, 4 * WORTH);
    let event = |n: u64| json!({"message": "m".repeat(WORTH / 4), "n": n});
    for n in 0..40 {
        store.put(Kind::Event, "default", &n.to_string(), &event(n));
        if n % 8 == 7 {
            store.settle();
            let state = store.lock();
            assert!(state.history.is_empty());
            assert!(!state.objects.keys().any(|(kind, ..)| *kind == Kind::Event));
            assert!(state.history_bytes <= 4 * WORTH);
        }
    }
    assert_eq!(store.list(Kind::Event, Some("default")).0.len(), 40);
    assert!(store.list(Kind::Event, Some("other")).0.is_empty());
    assert!(store.watch(Kind::Event, 101).is_err(), "a chapter too many is gone");
    let mut watch = store.watch(Kind::Event, 138).unwrap();
    assert_eq!(watch.try_next().unwrap().unwrap().last.name, "38");
    // A name that begins or ends like others is on no shelf.
    assert!(store.get(Kind::Event, "default", "400").is_none());
    assert!(!store.delete(Kind::Event, "", "default39"));
}

#[test]
fn little_is_left_as_it_is() {
    let store = store();
    let version = store.put(Kind::Event, "default", "e", &json!({"n": 1}));
    store.settle();
    assert_eq!(store.lock().history.len(), 1);
    assert_eq!(store.get(Kind::Event, "default", "e").unwrap().version, version);
}

#[tokio::test]
async fn a_watcher_wakes_up() {
    let store = store();
    let mut watch = store.watch(Kind::Pod, 100).unwrap();
    let task = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    store.put(Kind::Event, "default", "e", &json!({}));
    store.put(Kind::Pod, "default", "a", &json!({}));
    let change = task.await.unwrap().unwrap();
    assert_eq!((change.version, change.before), (102, None));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Other(u8),
    NoOther(u8),
    Settle,
    Forget,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u8..5, 0u8..4).prop_map(|(name, content)| Step::Put(name, content)),
        (0u8..5).prop_map(Step::Delete),
        (0u8..5).prop_map(Step::Other),
        (0u8..5).prop_map(Step::NoOther),
        Just(Step::Settle),
    ];
    // Now and then.
    let step = prop_oneof![
        40 => step,
        1 => Just(Step::Forget),
    ];
    prop::collection::vec(step, 0..80)
}

type Contents = BTreeMap<String, Value>;

fn contents(store: &ObjectStore) -> Contents {
    store.list(Kind::Pod, None).0.iter().map(|o| (o.name.clone(), o.value())).collect()
}

/// The names of all events.
fn messages(store: &ObjectStore) -> Vec<String> {
    store.list(Kind::Event, None).0.iter().map(|o| o.name.clone()).collect()
}

proptest! {
    /// Whoever lists at any moment and then watches sees exactly the changes that lead to the state at the end.
    #[test]
    fn a_watch_from_any_version_sees_exactly_the_changes(steps in steps()) {
        let store = store();
        let mut events = Contents::new();
        let mut seen: Vec<(u64, Contents)> = vec![(store.version(), contents(&store))];
        for step in steps {
            match step {
                Step::Put(n, c) => { store.put(Kind::Pod, "default", &n.to_string(), &json!({"spec": c})); }
                Step::Delete(n) => { store.delete(Kind::Pod, "default", &n.to_string()); }
                Step::Other(n) => {
                    let event = json!({"n": store.version(), "message": "m".repeat(WORTH / 3)});
                    store.put(Kind::Event, "default", &n.to_string(), &event);
                    events.insert(n.to_string(), event);
                }
                Step::NoOther(n) => {
                    prop_assert_eq!(store.delete(Kind::Event, "default", &n.to_string()), events.remove(&n.to_string()).is_some());
                }
                Step::Settle => store.settle(),
                Step::Forget => {
                    store.forget_history();
                    seen.clear();
                }
            }
            prop_assert_eq!(messages(&store), events.keys().cloned().collect::<Vec<_>>());
            for (name, event) in &events {
                let kept = store.get(Kind::Event, "default", name).unwrap().value();
                prop_assert_eq!(&kept["n"], &event["n"]);
            }
            seen.push((store.version(), contents(&store)));
        }
        let end = contents(&store);
        for (version, mut state) in seen {
            let mut watch = store.watch(Kind::Pod, version).unwrap();
            let mut last = version;
            while let Some(change) = watch.try_next().unwrap() {
                prop_assert!(change.version > last);
                last = change.version;
                prop_assert_eq!(&change.last.value()["metadata"]["resourceVersion"], &json!(last.to_string()));
                let before = match &change.after {
                    Some(after) => state.insert(after.name.clone(), after.value()),
                    None => state.remove(&change.last.name),
                };
                prop_assert_eq!(before, change.before.map(|o| o.value()));
            }
            prop_assert_eq!(&state, &end);
            prop_assert_eq!(watch.version(), store.version());
        }
    }
}

#[test]
fn every_kind_is_of_a_group_that_is_served() {
    let of_kinds: std::collections::BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.group().name).collect();
    let served = std::iter::once(Group::CORE).chain(Group::NAMED).map(|group| group.name);
    assert!(served.eq(of_kinds), "in the order of names, and none without a kind");
}
