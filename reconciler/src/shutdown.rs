//! The end of the machine: in which order its pods end, and how long each may take.
//!
//! The rules and texts are those of kubelet's graceful node shutdown (`pkg/kubelet/nodeshutdown`).

use k8s_openapi::api::core::v1;

/// `status.reason` of a pod that ended with the machine.
pub const TERMINATED: &str = "Terminated";
/// Its `status.message`.
pub const TERMINATED_MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// The lowest priority that Kubernetes takes for critical.
pub const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// Pods that end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The lowest priority of them.
    pub priority: i32,
    /// How long they may take, in seconds.
    pub seconds: u64,
}

/// `shutdownGracePeriod` and `shutdownGracePeriodCriticalPods`: the critical pods come last, and have the end of the whole time.
pub fn turns(whole: u64, critical: u64) -> Vec<Turn> {
    if whole == 0 {
        return Vec::new();
    }
    let ordinary = Turn { priority: 0, seconds: whole.saturating_sub(critical) };
    vec![ordinary, Turn { priority: SYSTEM_CRITICAL, seconds: critical }]
}

/// Which of the turns, in ascending order of priority, a pod of that priority ends in: the highest that is not above it, or the
/// first. None if there are no turns.
pub fn turn_of(turns: &[Turn], priority: i32) -> Option<usize> {
    let below = turns.iter().rposition(|turn| turn.priority <= priority);
    below.or((!turns.is_empty()).then_some(0))
}

/// A pod's priority: its own, or that of the classes that every cluster has.
pub fn priority(spec: &v1::PodSpec) -> i32 {
    spec.priority.unwrap_or(match spec.priority_class_name.as_deref() {
        Some("system-node-critical") => SYSTEM_CRITICAL + 1000,
        Some("system-cluster-critical") => SYSTEM_CRITICAL,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_pods_come_last_and_within_the_whole_time() {
        let turn = |priority, seconds| Turn { priority, seconds };
        assert_eq!(turns(30, 10), [turn(0, 20), turn(SYSTEM_CRITICAL, 10)]);
        assert_eq!(turns(30, 0), [turn(0, 30), turn(SYSTEM_CRITICAL, 0)]);
        assert_eq!(turns(0, 0), []);
    }

    #[test]
    fn a_pod_ends_with_the_highest_turn_that_is_not_above_it() {
        let turns: Vec<Turn> = [-5, 0, 100, 1000].map(|priority| Turn { priority, seconds: 1 }).into();
        for (priority, wanted) in
            [(i32::MIN, 0), (-5, 0), (-1, 0), (0, 1), (99, 1), (100, 2), (999, 2), (1000, 3), (i32::MAX, 3)]
        {
            assert_eq!(turn_of(&turns, priority), Some(wanted), "{priority}");
        }
        assert_eq!(turn_of(&[], 0), None);
    }

    #[test]
    fn priorities_of_classes_that_every_cluster_has() {
        let spec = |priority, class: Option<&str>| v1::PodSpec {
            priority,
            priority_class_name: class.map(str::to_owned),
            ..v1::PodSpec::default()
        };
        assert_eq!(priority(&spec(None, None)), 0);
        assert_eq!(priority(&spec(Some(7), Some("system-node-critical"))), 7);
        assert_eq!(priority(&spec(None, Some("system-node-critical"))), SYSTEM_CRITICAL + 1000);
        assert_eq!(priority(&spec(None, Some("system-cluster-critical"))), SYSTEM_CRITICAL);
        assert_eq!(priority(&spec(None, Some("other"))), 0);
    }
}
