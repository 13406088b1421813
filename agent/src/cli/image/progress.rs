//! Progress of pulls, loads and imports: a line that moves per layer on a terminal, a line per step elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};

use berth_image::{Progress, ProgressFn, Status};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::super::output::bytes;

/// What is shown on standard error.
pub fn reporter() -> ProgressFn {
    if std::io::stderr().is_terminal() { bars() } else { lines() }
}

fn bars() -> ProgressFn {
    let all = MultiProgress::new();
    let known: Mutex<HashMap<String, ProgressBar>> = Mutex::default();
    Arc::new(move |progress: Progress| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = known.entry(progress.layer.clone()).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(0));
            bar.set_prefix(progress.layer.clone());
            bar.set_style(style("{prefix}: {msg}"));
            bar
        });
        if bar.is_finished() {
            return;
        }
        let moving =
            matches!(progress.status, Status::Downloading | Status::Extracting) && progress.total > 0;
        if bar.message() != progress.status.to_string() {
            bar.set_style(style(if moving {
                "{prefix}: {msg:12} [{bar:40}] {bytes}/{total_bytes}"
            } else {
                "{prefix}: {msg}"
            }));
            bar.set_message(progress.status.to_string());
        }
        bar.set_length(progress.total);
        bar.set_position(progress.current);
        if matches!(progress.status, Status::PullComplete | Status::AlreadyExists) {
            bar.finish();
        }
    })
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

/// One line whenever a layer comes to another step.
fn lines() -> ProgressFn {
    let known: Mutex<HashMap<String, Status>> = Mutex::default();
    Arc::new(move |progress: Progress| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.insert(progress.layer.clone(), progress.status) == Some(progress.status) {
            return;
        }
        match progress.total {
            0 => eprintln!("{}: {}", progress.layer, progress.status),
            total => eprintln!("{}: {} ({})", progress.layer, progress.status, bytes(total)),
        }
    })
}
