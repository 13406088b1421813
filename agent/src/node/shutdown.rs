//! The end of the machine: its pods end before it does, in turns, by priority.
//!
//! A kubelet holds the machine up by an inhibitor of logind, which has to be told how long that may take. This asks PID 1, when it
//! is told to end itself, whether all ends, and has systemd wait for it: that works without logind and its limit of five seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_reconciler::node::Eviction;
use berth_reconciler::shutdown::{self, TERMINATED, TERMINATED_MESSAGE, Turn};
use berth_reconciler::status::has_ended;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::AgentNode;
use super::entry::Entry;
use super::ephemeral::evict;

/// How much longer than all turns together systemd is asked to wait.
const SLACK: Duration = Duration::from_secs(10);
/// What is killed at the end of its turn is gone soon after.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// The event of a pod that ends with the machine, as of a kubelet.
const EVENT: &str = "NodeShutdown";

impl AgentNode {
    /// How long the end of all pods may take, in microseconds, as systemd's `EXTEND_TIMEOUT_USEC` wants it.
    pub fn shutdown_micros(&self) -> u32 {
        let turns = self.config.shutdown.iter();
        let all: Duration = turns.map(|turn| Duration::from_secs(turn.seconds) + AFTER_KILL).sum();
        u32::try_from((all + SLACK).as_micros()).unwrap_or(u32::MAX)
    }

    /// Ends all pods, those of low priority first. Returns when they have ended or their time is over.
    pub async fn shut_down(&self) {
        let turns = &self.config.shutdown;
        for (index, pods) in self.by_turn(turns) {
            let seconds = turns[index].seconds;
            tracing::info!(pods = pods.len(), priority = turns[index].priority, seconds, "ending pods");
            let end = Instant::now() + Duration::from_secs(seconds) + AFTER_KILL;
            for entry in &pods {
                let eviction = Eviction {
                    reason: TERMINATED.into(),
                    message: TERMINATED_MESSAGE.into(),
                    since: Timestamp::now(),
                    grace_seconds: seconds,
                };
                evict(self, entry, eviction, EVENT);
            }
            self.wait_for_end(&pods, end.saturating_duration_since(Instant::now())).await;
        }
    }

    /// Waits until pods have ended and nothing of them is in use any more, for that long at most.
    pub(super) async fn wait_for_end(&self, pods: &[Arc<Entry>], at_most: Duration) {
        let end = Instant::now() + at_most;
        let mut changes = self.store.changes();
        let mut stopped = self.sandbox_stopped.subscribe();
        while let left = self.not_ended(pods)
            && !left.is_empty()
        {
            let change = async {
                tokio::select! {
                    change = changes.changed() => change,
                    change = stopped.changed() => change,
                }
            };
            if !matches!(timeout_at(end, change).await, Ok(Ok(()))) {
                tracing::warn!(pods = left.join(", "), "these pods have not ended in time");
                break;
            }
        }
    }

    /// The pods that have not ended, by the turn in which they are to.
    fn by_turn(&self, turns: &[Turn]) -> BTreeMap<usize, Vec<Arc<Entry>>> {
        let mut all: BTreeMap<usize, Vec<Arc<Entry>>> = BTreeMap::new();
        for entry in self.all_entries() {
            let Some(index) = shutdown::turn_of(turns, shutdown::priority(entry.pod().spec())) else {
                continue;
            };
            if !self.has_ended_for_good(&entry) {
                all.entry(index).or_default().push(entry);
            }
        }
        all
    }

    fn not_ended(&self, pods: &[Arc<Entry>]) -> Vec<String> {
        let left = pods.iter().filter(|entry| !self.has_ended_for_good(entry) || entry.has_sandbox());
        left.map(|entry| entry.pod().full_name()).collect()
    }

    pub(super) fn has_ended_for_good(&self, entry: &Entry) -> bool {
        let view = self.reconciler.get().and_then(|reconciler| reconciler.get(entry.pod().uid()));
        view.is_none_or(|view| has_ended(&view.status))
    }
}
