//! Whether a pod has come to its end by itself: all done, failed for good, or out of time.

use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::after;
use crate::planner::context::{Context, Role, exit_of};

/// How a pod ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Whether the phase is Succeeded, else Failed.
    pub succeeded: bool,
    /// `status.reason` and `status.message`.
    pub why: Option<(String, String)>,
    /// When.
    pub since: Timestamp,
    /// The node ends it, and gives its containers no longer than that.
    pub at_most: Option<Duration>,
}

impl End {
    /// Whether the node has ended it.
    pub fn is_eviction(&self) -> bool {
        self.at_most.is_some()
    }
}

/// `status.reason` of a pod that was active for too long.
pub(crate) const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// Its `status.message`.
pub(crate) const DEADLINE_MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

/// How the pod ends, if it has come to that. Containers may still run.
pub(crate) fn end_of(ctx: &Context<'_>) -> Option<End> {
    let at_most = ctx.observed.evicted.as_ref().map(|eviction| Duration::from_secs(eviction.grace_seconds));
    if let Some(ended) = &ctx.memory.ended {
        let why = ended.reason.clone().map(|reason| (reason, ended.message.clone().unwrap_or_default()));
        return Some(End {
            succeeded: ended.phase == "Succeeded",
            why,
            since: ctx.memory.start_time,
            at_most,
        });
    }
    if let Some(eviction) = &ctx.observed.evicted {
        let why = Some((eviction.reason.clone(), eviction.message.clone()));
        let since = ctx.memory.evicted_since.unwrap_or(eviction.since);
        return Some(End { succeeded: false, why, since, at_most });
    }
    let deadline = deadline_of(ctx);
    let completed = init_failure(ctx).or_else(|| completion(ctx));
    if let Some(end) = completed.filter(|end| deadline.is_none_or(|deadline| end.since <= deadline)) {
        return Some(end);
    }
    deadline.filter(|deadline| *deadline <= ctx.now).map(|since| End {
        succeeded: false,
        why: Some((DEADLINE_EXCEEDED.to_owned(), DEADLINE_MESSAGE.to_owned())),
        since,
        at_most: None,
    })
}

/// How long what still runs has to end.
pub(crate) fn grace_of(ctx: &Context<'_>, end: &End) -> Duration {
    let own = Duration::from_secs(u64::try_from(ctx.pod_grace()).unwrap_or(0));
    end.at_most.map_or(own, |most| own.min(most))
}

/// When `activeDeadlineSeconds` is over.
pub(crate) fn deadline_of(ctx: &Context<'_>) -> Option<Timestamp> {
    let seconds = u64::try_from(ctx.pod.spec().active_deadline_seconds?).unwrap_or(0);
    Some(after(ctx.memory.start_time, Duration::from_secs(seconds)))
}

/// An init container has failed and is not started again.
fn init_failure(ctx: &Context<'_>) -> Option<End> {
    ctx.containers().filter(|(_, role)| *role == Role::Init).find_map(|(container, role)| {
        let record = ctx.newest(&container.name)?;
        let exit = exit_of(record).filter(|exit| exit.code != 0)?;
        let failed = !ctx.restarts(container, role, record, exit);
        failed.then_some(End { succeeded: false, why: None, since: exit.finished_at, at_most: None })
    })
}

/// Every main container has ended and none is started again.
fn completion(ctx: &Context<'_>) -> Option<End> {
    let mut end = End { succeeded: true, why: None, since: Timestamp::MIN, at_most: None };
    for container in ctx.mains() {
        let record = ctx.newest(&container.name)?;
        let exit = exit_of(record)?;
        if ctx.restarts(container, Role::Main, record, exit) {
            return None;
        }
        end.succeeded &= exit.code == 0;
        end.since = end.since.max(exit.finished_at);
    }
    Some(end)
}
