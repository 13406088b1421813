//! Waiting for what has no event: a process that goes, a link that vanishes. Always bounded.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Looks every 10 ms until `look` gives a value, and fails after `limit` with `what` and what the last look said.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let last = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => String::new(),
            Err(why) => format!(": {why}"),
        };
        if Instant::now() >= end {
            bail!("not within {} s: {what}{last}", limit.as_secs_f32());
        }
        pause(Duration::from_millis(10));
    }
}

/// [`until`] for a plain condition.
pub fn until_true(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || Ok(look().then_some(())))
}

/// Lets time pass. Not for waiting until something is so: for faults at arbitrary moments, and for showing that nothing happens.
#[allow(clippy::disallowed_methods)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
