//! How long pods have when the machine ends: `shutdownGracePeriod` and its kin.

use std::time::Duration;

use anyhow::bail;
use berth_reconciler::shutdown::{self, Turn};
use serde::Deserialize;

use super::{File, duration};

/// One of `shutdownGracePeriodByPodPriority`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TurnFile {
    priority: i32,
    shutdown_grace_period_seconds: u64,
}

/// In which turns pods end with the machine; none unless a time is given, as with a kubelet.
pub(super) fn check(file: &File) -> anyhow::Result<Vec<Turn>> {
    const WHOLE: &str = "shutdownGracePeriod";
    const CRITICAL: &str = "shutdownGracePeriodCriticalPods";
    let seconds = |field: &str, text: &Option<String>| -> anyhow::Result<u64> {
        let time = duration(field, text.as_deref(), Duration::ZERO)?;
        if !time.is_zero() && time < Duration::from_secs(1) {
            bail!("{field}: must be either zero or at least 1s, is {time:?}");
        }
        Ok(time.as_secs())
    };
    let whole = seconds(WHOLE, &file.shutdown_grace_period)?;
    let critical = seconds(CRITICAL, &file.shutdown_grace_period_critical_pods)?;
    if critical > whole {
        bail!("{CRITICAL}: must be no more than {WHOLE} ({whole}s), is {critical}s");
    }
    let Some(list) = file.shutdown_grace_period_by_pod_priority.as_deref().filter(|l| !l.is_empty()) else {
        return Ok(shutdown::turns(whole, critical));
    };
    if whole > 0 {
        bail!("shutdownGracePeriodByPodPriority: goes not with {WHOLE}; give one of them");
    }
    let turn = |t: &TurnFile| Turn { priority: t.priority, seconds: t.shutdown_grace_period_seconds };
    let mut turns: Vec<Turn> = list.iter().map(turn).collect();
    turns.sort_by_key(|turn| turn.priority);
    if let Some(twice) = turns.windows(2).find(|pair| pair[0].priority == pair[1].priority) {
        bail!("shutdownGracePeriodByPodPriority: the priority {} is there twice", twice[0].priority);
    }
    Ok(turns)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn turns_of_the_machines_end() {
        let read = |text: &str| {
            let file: File = serde_yaml::from_str(text).unwrap();
            let pairs = |turns: Vec<Turn>| turns.iter().map(|t| (t.priority, t.seconds)).collect::<Vec<_>>();
            check(&file).map(pairs).map_err(|e| e.to_string())
        };
        let by_priority = |list: &str| {
            let item = |pair: &str| {
                let (priority, seconds) = pair.split_once(':').unwrap();
                format!("{{ priority: {priority}, shutdownGracePeriodSeconds: {seconds} }}")
            };
            let list: Vec<_> = list.split(' ').map(item).collect();
            format!("shutdownGracePeriodByPodPriority: [{}]\n", list.join(", "))
        };
        assert_eq!(read("{}"), Ok(vec![]), "nothing unless it is asked for");
        assert_eq!(read("shutdownGracePeriod: 0s\nshutdownGracePeriodByPodPriority: []"), Ok(vec![]));
        assert_eq!(read("shutdownGracePeriod: 1m"), Ok(vec![(0, 60), (shutdown::SYSTEM_CRITICAL, 0)]));
        assert_eq!(
            read("shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s"),
            Ok(vec![(0, 20), (shutdown::SYSTEM_CRITICAL, 10)])
        );
        assert_eq!(read(&by_priority("100:5 -1:7 0:9")), Ok(vec![(-1, 7), (0, 9), (100, 5)]));
        for (text, said) in [
            (
                "shutdownGracePeriod: 10ms".to_owned(),
                "shutdownGracePeriod: must be either zero or at least 1s",
            ),
            ("shutdownGracePeriod: x".to_owned(), "shutdownGracePeriod: \"x\" is not a duration"),
            (
                "shutdownGracePeriod: 1s\nshutdownGracePeriodCriticalPods: 2s".to_owned(),
                "shutdownGracePeriodCriticalPods: must be no more than shutdownGracePeriod (1s), is 2s",
            ),
            (
                format!("shutdownGracePeriod: 9s\n{}", by_priority("0:9")),
                "shutdownGracePeriodByPodPriority: goes not with shutdownGracePeriod",
            ),
            (by_priority("5:1 5:2"), "shutdownGracePeriodByPodPriority: the priority 5 is there twice"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }
}
