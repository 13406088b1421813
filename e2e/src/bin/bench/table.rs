//! The table that `make bench` prints: one line a figure, beside it the peer's, the ratio, what was aimed at, and whether it was
//! reached.

use std::time::Duration;

/// What a figure should be at most.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// In the figure's own unit.
    Most(f64),
    /// As a share of the peer's.
    Share(f64),
}

/// One line.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    unit: &'static str,
    ours: Vec<f64>,
    peer: Option<(&'static str, f64)>,
    target: Option<Target>,
}

impl Row {
    /// Times, shown in milliseconds.
    pub fn times(what: impl Into<String>, times: &[Duration]) -> Row {
        Row::new(what, "ms", times.iter().map(|t| t.as_secs_f64() * 1000.0).collect())
    }

    /// A single figure.
    pub fn figure(what: impl Into<String>, unit: &'static str, value: f64) -> Row {
        Row::new(what, unit, vec![value])
    }

    /// Several figures of one unit.
    pub fn of(what: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Row {
        Row::new(what, unit, values)
    }

    fn new(what: impl Into<String>, unit: &'static str, ours: Vec<f64>) -> Row {
        Row { what: what.into(), unit, ours, peer: None, target: None }
    }

    /// With what a peer needs for the same: its median.
    pub fn beside(mut self, name: &'static str, times: &[Duration]) -> Row {
        let times: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1000.0).collect();
        self.peer = quantile(&times, 0.5).map(|median| (name, median));
        self
    }

    /// With what is aimed at.
    pub fn target(mut self, target: Target) -> Row {
        self.target = Some(target);
        self
    }

    /// Prints the line.
    pub fn print(self) {
        let Some(median) = quantile(&self.ours, 0.5) else { return };
        let figure = |value: f64| match self.unit {
            "KB" => format!("{value:.0} KB"),
            "%" => format!("{value:.4} %"),
            unit => format!("{value:.2} {unit}"),
        };
        let p95 = quantile(&self.ours, 0.95).filter(|_| self.ours.len() > 1).map(&figure).unwrap_or_default();
        let ratio = self.peer.map(|(_, peer)| median / peer);
        let peer = self.peer.map(|(name, peer)| format!("{name} {}", figure(peer))).unwrap_or_default();
        let (aim, verdict) = match (self.target, ratio) {
            (Some(Target::Most(most)), _) => (format!("<= {}", figure(most)), verdict(median <= most)),
            (Some(Target::Share(share)), Some(ratio)) => {
                (format!("<= {share:.3} x"), verdict(ratio <= share))
            }
            (Some(Target::Share(share)), None) => (format!("<= {share:.3} x"), "no peer"),
            (None, _) => (String::new(), ""),
        };
        let ratio = ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default();
        line(&[&self.what, &figure(median), &p95, &peer, &ratio, &aim, verdict]);
    }
}

fn verdict(reached: bool) -> &'static str {
    if reached { "ok" } else { "missed" }
}

fn line(cells: &[&str; 7]) {
    let [what, median, p95, peer, ratio, target, verdict] = cells;
    let text = format!("{what:<55} {median:>11} {p95:>11} {peer:>17} {ratio:>7} {target:>14}  {verdict}");
    println!("{}", text.trim_end());
}

/// Prints the head of a part of the table.
pub fn head(part: &str) {
    println!();
    line(&[part, "median", "p95", "peer", "ratio", "target", ""]);
}

/// The value below which that share of the values lies; none of none.
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1))).copied()
}
