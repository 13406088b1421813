//! Following objects of the server: each as it is, and which are no more, whatever was missed in between.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// Namespace, empty for kinds that have none, and name.
pub(super) type Key = (String, String);

/// What has been seen.
pub(super) enum Seen<K> {
    /// An object is this now.
    Is(K),
    /// There is none of that name any more.
    Gone(Key),
    /// All that there are have been seen.
    Listed,
    /// The server could not be asked; it is tried again.
    Failed(watcher::Error),
}

pub(super) fn key_of<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Follows objects, for ever. `known` are those that were there before: whichever of them is not any more is told as gone.
pub(super) async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    mut known: BTreeSet<Key>,
    mut see: impl FnMut(Seen<K>),
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let stream = watcher::watcher(api, config).default_backoff();
    futures::pin_mut!(stream);
    let mut listing = BTreeSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listing.clear(),
            Ok(Event::InitApply(object)) => {
                listing.insert(key_of(&object));
                see(Seen::Is(object));
            }
            Ok(Event::InitDone) => {
                let before = std::mem::replace(&mut known, std::mem::take(&mut listing));
                before.difference(&known).for_each(|key| see(Seen::Gone(key.clone())));
                see(Seen::Listed);
            }
            Ok(Event::Apply(object)) => {
                known.insert(key_of(&object));
                see(Seen::Is(object));
            }
            Ok(Event::Delete(object)) => {
                let key = key_of(&object);
                known.remove(&key);
                see(Seen::Gone(key));
            }
            Err(error) => see(Seen::Failed(error)),
        }
    }
}
