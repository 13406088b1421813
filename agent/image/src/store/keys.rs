//! Who works on what: one lock per digest, so that concurrent pulls share work, and pins, so that nothing in work is
//! removed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Keys {
    held: Mutex<HashSet<String>>,
    pins: Mutex<HashMap<String, usize>>,
    freed: Condvar,
    freed_async: Notify,
}

/// The lock of one key; it ends when dropped.
#[derive(Debug)]
pub(crate) struct KeyGuard {
    keys: Arc<Keys>,
    key: String,
}

/// Keeps keys from being removed until dropped.
#[derive(Debug)]
pub(crate) struct Pins {
    keys: Arc<Keys>,
    pinned: Vec<String>,
}

/// These maps stay consistent whatever panicked while they were locked: every change is one call.
fn inner<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keys {
    fn try_lock(self: &Arc<Self>, key: &str) -> Option<KeyGuard> {
        inner(&self.held)
            .insert(key.to_owned())
            .then(|| KeyGuard { keys: Arc::clone(self), key: key.to_owned() })
    }

    /// Waits for the lock without blocking the thread.
    pub(crate) async fn lock(self: &Arc<Self>, key: &str) -> KeyGuard {
        loop {
            // Registered before looking, so that a release in between is not missed.
            let mut freed = std::pin::pin!(self.freed_async.notified());
            freed.as_mut().enable();
            if let Some(guard) = self.try_lock(key) {
                return guard;
            }
            freed.await;
        }
    }

    /// Waits for the lock, blocking the thread.
    pub(crate) fn lock_blocking(self: &Arc<Self>, key: &str) -> KeyGuard {
        let mut held = inner(&self.held);
        while held.contains(key) {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.insert(key.to_owned());
        KeyGuard { keys: Arc::clone(self), key: key.to_owned() }
    }

    pub(crate) fn pin(self: &Arc<Self>) -> Pins {
        Pins { keys: Arc::clone(self), pinned: Vec::new() }
    }

    /// Does something to a key that nobody works with, and lets nobody begin to meanwhile. None if it is in work.
    pub(crate) fn unless_pinned<T>(&self, key: &str, act: impl FnOnce() -> T) -> Option<T> {
        let pins = inner(&self.pins);
        (!pins.contains_key(key)).then(act)
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        inner(&self.keys.held).remove(&self.key);
        self.keys.freed.notify_all();
        self.keys.freed_async.notify_waiters();
    }
}

impl Pins {
    pub(crate) fn add(&mut self, key: &str) {
        *inner(&self.keys.pins).entry(key.to_owned()).or_default() += 1;
        self.pinned.push(key.to_owned());
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = inner(&self.keys.pins);
        for key in &self.pinned {
            if let Some(count) = pins.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_holder_at_a_time_from_threads_and_tasks() {
        let keys = Arc::new(Keys::default());
        let (inside, total) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let enter = {
            let (inside, total) = (Arc::clone(&inside), Arc::clone(&total));
            move || {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                std::thread::yield_now();
                inside.fetch_sub(1, Ordering::SeqCst);
                total.fetch_add(1, Ordering::SeqCst);
            }
        };
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (keys, enter) = (Arc::clone(&keys), enter.clone());
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let _guard = keys.lock_blocking("k");
                        enter();
                    }
                })
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let tasks: Vec<_> = (0..4)
                .map(|_| {
                    let (keys, enter) = (Arc::clone(&keys), enter.clone());
                    tokio::spawn(async move {
                        for _ in 0..200 {
                            let _guard = keys.lock("k").await;
                            enter();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(total.load(Ordering::SeqCst), 1600);
    }

    #[test]
    fn pins_count() {
        let keys = Arc::new(Keys::default());
        let (mut a, mut b) = (keys.pin(), keys.pin());
        a.add("x");
        b.add("x");
        drop(a);
        assert_eq!(keys.unless_pinned("x", || ()), None);
        drop(b);
        assert_eq!(keys.unless_pinned("x", || ()), Some(()));
    }
}
