//! What an idle node does without: memory that was needed for a while goes back to the kernel.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use tokio::sync::watch;

use crate::store::ObjectStore;

/// Tells when somebody has asked for something.
#[derive(Clone, Default)]
pub(super) struct Activity(watch::Sender<()>);

impl Activity {
    /// The same router, whose requests are noticed once they are answered.
    pub(super) fn of(&self, router: Router) -> Router {
        let activity = self.clone();
        router.layer(from_fn(move |request: Request, next: Next| {
            let activity = activity.clone();
            async move {
                let response = next.run(request).await;
                activity.0.send_replace(());
                response
            }
        }))
    }
}

/// Sees to it, from now on, that what is not needed any more is given back.
pub(super) fn follow(store: ObjectStore, activity: Activity) {
    tokio::spawn(give_memory_back(store.clone(), activity));
    tokio::spawn(forget_history(store));
}

/// How long nothing must have happened before what was freed goes back, and from then on before code and events do, too.
const QUIET: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// What happens without end does not put off the first of them for longer than this.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing must have changed before the history of changes goes: a watch that was cut can be taken up again for as
/// long as an API server's `--etcd-compaction-interval` is.
const HISTORY: Duration = Duration::from_secs(300);

/// After every burst of changes and requests, gives the memory that it took back to the kernel: first what was freed, then what
/// events and history can do without and the code that it ran.
async fn give_memory_back(store: ObjectStore, activity: Activity) {
    let (mut changes, mut requests) = (store.changes(), activity.0.subscribe());
    let (mut step, mut begun) = (0, Instant::now());
    loop {
        let limit = QUIET.get(step).copied().unwrap_or(Duration::MAX);
        let something = async {
            tokio::select! {
                changed = changes.changed() => changed,
                asked = requests.changed() => asked,
            }
        };
        match tokio::time::timeout(limit, something).await {
            Ok(Ok(())) if step > 0 => (step, begun) = (0, Instant::now()),
            Ok(Ok(())) if begun.elapsed() < PATIENCE => {}
            Ok(Ok(())) => {
                begun = Instant::now();
                berth_runtime::heap::trim();
            }
            Ok(Err(_)) => return,
            Err(_) => {
                if step == 1 {
                    store.settle();
                    berth_runtime::heap::forget_program();
                }
                berth_runtime::heap::trim();
                step += 1;
            }
        }
    }
}

/// Forgets the history of changes whenever there have been none for long.
async fn forget_history(store: ObjectStore) {
    let mut changes = store.changes();
    while changes.changed().await.is_ok() {
        while let Ok(Ok(())) = tokio::time::timeout(HISTORY, changes.changed()).await {}
        store.forget_history();
        berth_runtime::heap::trim();
    }
}
