//! Probes that the node makes again and again by itself, as long as nothing comes of them.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use jiff::Timestamp;

use super::slot::Desired;
use crate::node::{ContainerState, Node, Observation, Probed, Probing};
use crate::planner::{Action, Memory, ProbeKind, probe_of};
use crate::pod::Pod;

/// One of them.
struct Delegated {
    pod: Arc<Pod>,
    action: Action,
    /// When it is made first.
    first: Timestamp,
    probing: Probing,
}

/// Those of a pod. For its memory each is under way all the time.
#[derive(Default)]
pub(super) struct Standing(Vec<Delegated>);

impl Standing {
    /// Has the node make a probe, from `first` on. False where it is to be asked each time.
    pub fn delegate<N: Node>(
        &mut self,
        node: &Arc<N>,
        memory: &mut Memory,
        (pod, action): (&Arc<Pod>, &Action),
        (first, now): (Timestamp, Timestamp),
    ) -> bool {
        let Action::Probe { container, id, kind } = action else { return false };
        let Some(probe) = probe_of(pod, container, *kind) else { return false };
        let wait = Duration::try_from(first.duration_since(now)).unwrap_or_default();
        let Some(probing) = node.clone().probe_again(pod, id, probe, wait) else { return false };
        memory.delegated(action);
        self.0.push(Delegated { pod: pod.clone(), action: action.clone(), first, probing });
        true
    }

    /// What has come of the next one of which something has.
    pub async fn next(&mut self) -> (Action, Probed) {
        poll_fn(|context| {
            let mut all = self.0.iter_mut().enumerate();
            let done = all.find_map(|(index, one)| match one.probing.as_mut().poll(context) {
                Poll::Ready(probed) => Some((index, probed)),
                Poll::Pending => None,
            });
            done.map_or(Poll::Pending, |(index, probed)| {
                Poll::Ready((self.0.swap_remove(index).action, probed))
            })
        })
        .await
    }

    /// Takes back those that a plan may not want any more; it is free to want them again. An instance on its way out is probed for
    /// readiness as before.
    pub fn review(&mut self, desired: &Desired, observed: &Observation, memory: &mut Memory, now: Timestamp) {
        let goes_on = desired.deletion.is_none() && observed.evicted.is_none() && !observed.paused;
        self.0.retain(|one| {
            let Action::Probe { container, id, kind } = &one.action else { return false };
            let runs = observed
                .containers
                .iter()
                .any(|record| record.id == *id && matches!(record.state, ContainerState::Running { .. }));
            let probed = *kind == ProbeKind::Readiness || !memory.is_stopping(container, id);
            let wanted = goes_on && runs && probed && Arc::ptr_eq(&one.pod, &desired.pod);
            if !wanted {
                memory.taken_back(&one.pod, &one.action, one.first, now);
            }
            wanted
        });
    }
}
