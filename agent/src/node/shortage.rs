//! What is done when the machine runs short of memory, disk or processes: images that nobody uses go, then pods, one after the
//! other (kubelet's eviction manager). What is short and who goes first decides [`berth_reconciler::eviction`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_reconciler::eviction::{
    Candidate, Manager, Settings, Shortage, Signal, Signals, Taken, first, message,
};
use berth_reconciler::node::Eviction;
use berth_reconciler::pod::Source;
use berth_reconciler::storage::EVICTED;
use jiff::Timestamp;

use super::AgentNode;
use super::entry::Entry;
use super::ephemeral::{evict, measure};
use super::image_gc::ImageKeeper;
use crate::config::eviction::ImageGc;
use crate::{metrics, pressure};

/// A kubelet looks as often.
const PERIOD: Duration = Duration::from_secs(10);
/// Images are looked at once in so many looks: every five minutes.
const IMAGES_EVERY: u32 = 30;
/// How long is waited for a pod to be gone before the machine is looked at again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks after the machine, for ever; at once only if the settings want it looked after.
pub async fn watch(node: Arc<AgentNode>) {
    let (eviction, gc) = (node.config.room.eviction.clone(), node.config.room.image_gc);
    if eviction.is_none() && gc.is_none() {
        return;
    }
    let mut keeper = Keeper {
        node,
        manager: Manager::default(),
        images: ImageKeeper::default(),
        begun: Instant::now(),
        told: BTreeSet::new(),
        stuck: BTreeSet::new(),
    };
    for look in 0u32.. {
        let signals = pressure::gather(&keeper.node.config.root);
        if let Some(settings) = &eviction {
            keeper.look(settings, gc.as_ref(), &signals).await;
        }
        if let Some(gc) = gc.as_ref().filter(|_| look % IMAGES_EVERY == 0) {
            let node = keeper.node.clone();
            keeper.images.look(&node, gc, &signals).await;
        }
        tokio::time::sleep(PERIOD).await;
    }
}

struct Keeper {
    node: Arc<AgentNode>,
    manager: Manager,
    images: ImageKeeper,
    begun: Instant,
    /// What was short at the last look, and has been logged.
    told: BTreeSet<Signal>,
    /// What is short and no pod can be made to go for; it has been logged.
    stuck: BTreeSet<Signal>,
}

impl Keeper {
    async fn look(&mut self, settings: &Settings, gc: Option<&ImageGc>, signals: &Signals) {
        let mut verdict = self.manager.look(settings, signals, self.begun.elapsed());
        self.node
            .pressures
            .send_if_modified(|known| std::mem::replace(known, verdict.pressures) != verdict.pressures);
        let now: BTreeSet<Signal> = verdict.short.iter().map(|short| short.signal).collect();
        self.stuck.retain(|signal| now.contains(signal));
        let known = std::mem::replace(&mut self.told, now);
        if verdict.short.is_empty() {
            if !known.is_empty() {
                tracing::info!("the machine does not run short any more");
            }
            return;
        }
        for short in &verdict.short {
            let resource = short.signal.resource();
            let (threshold, available) = (short.threshold, short.available);
            if !known.contains(&short.signal) {
                tracing::warn!(signal = short.signal.name(), threshold, available, "the machine runs short");
            }
            let text = format!("Attempting to reclaim {resource}");
            self.node.events.record(&self.node.regarding(), true, "EvictionThresholdMet", &text);
        }
        if verdict.short.iter().any(|short| short.signal.is_of_disk()) {
            // Images that nobody uses go before any pod does.
            if let Some(gc) = gc {
                let node = self.node.clone();
                let freed = self.images.free(&node, gc).await;
                if freed > 0 {
                    tracing::info!(freed, "removed images that nobody uses");
                }
            }
            let signals = pressure::gather(&self.node.config.root);
            verdict = self.manager.look(settings, &signals, self.begun.elapsed());
        }
        for short in verdict.short {
            if self.reclaim(&short).await {
                self.stuck.clear();
                return;
            }
            if self.stuck.insert(short.signal) {
                tracing::warn!(signal = short.signal.name(), "no pod can be made to go");
            }
        }
    }

    /// Makes the pod go that is first, and waits for its end. False if there is none.
    async fn reclaim(&self, short: &Shortage) -> bool {
        let entries: Vec<Arc<Entry>> =
            self.node.all_entries().into_iter().filter(|e| self.may_go(e)).collect();
        let taken = self.taken(short.signal, &entries).await;
        let pods: Vec<_> = entries.iter().map(|entry| entry.pod()).collect();
        let candidates: Vec<Candidate<'_>> =
            pods.iter().zip(taken).map(|(pod, taken)| Candidate { spec: pod.spec(), taken }).collect();
        let Some(at) = first(short.signal, &candidates) else { return false };
        let message = message(short, &candidates[at]);
        tracing::warn!(pod = pods[at].full_name(), "evicting: {message}");
        let own = pods[at].spec().termination_grace_period_seconds.and_then(|own| u64::try_from(own).ok());
        let grace_seconds = own.map_or(short.grace_seconds, |own| own.min(short.grace_seconds));
        let eviction = Eviction { reason: EVICTED.into(), message, since: Timestamp::now(), grace_seconds };
        evict(&self.node, &entries[at], eviction, EVICTED);
        self.node.wait_for_end(&entries[at..=at], PATIENCE).await;
        true
    }

    /// Manifests are the owner's own word, as static pods are; so are, in a cluster, pods of the node's own API.
    fn may_go(&self, entry: &Entry) -> bool {
        let mine = match entry.pod().source {
            Source::Cluster => true,
            Source::Api => self.node.config.cluster.is_none(),
            _ => false,
        };
        mine && !entry.is_evicted() && !self.node.has_ended_for_good(entry)
    }

    /// What each pod takes of what is short.
    async fn taken(&self, signal: Signal, entries: &[Arc<Entry>]) -> Vec<Taken> {
        let mut all = Vec::new();
        match signal {
            Signal::Memory | Signal::Pids => {
                let samples = metrics::gather(&self.node).await;
                for entry in entries {
                    let pod = entry.pod();
                    let of_pod =
                        samples.iter().filter(|sample| sample.is_of(pod.uid())).flat_map(|s| &s.containers);
                    let containers = of_pod.map(|container| {
                        let amount = match signal {
                            Signal::Memory => container.working_set(),
                            _ => container.processes(),
                        };
                        (container.name().to_owned(), amount)
                    });
                    all.push(Taken { containers: containers.collect(), shared: 0 });
                }
            }
            Signal::Disk | Signal::ImageDisk | Signal::Inodes | Signal::ImageInodes => {
                let inodes = matches!(signal, Signal::Inodes | Signal::ImageInodes);
                for entry in entries {
                    all.push(match measure(&self.node, entry).await {
                        Ok(usage) => {
                            let pick = |used: &crate::volumes::usage::Used| if inodes { used.inodes } else { used.bytes };
                            let containers: BTreeMap<String, u64> =
                                usage.containers.iter().map(|(name, used)| (name.clone(), pick(used))).collect();
                            Taken { containers, shared: usage.volumes.values().map(pick).sum() }
                        }
                        Err(error) => {
                            tracing::warn!(pod = entry.pod().full_name(), %error, "cannot measure what the pod takes of the disk");
                            Taken::default()
                        }
                    });
                }
            }
        }
        all
    }
}
