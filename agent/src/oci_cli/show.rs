//! What is printed.

use std::io::{self, Write};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_runtime::oci::{Event, Runtime, State};
use serde::Serialize;

use super::args::Format;

fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to standard output")
}

fn pretty(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// What this runtime can do.
pub fn features() -> Result<()> {
    pretty(&berth_runtime::oci::features())
}

/// All states.
pub fn list(states: &[State], format: &Format, quiet: bool) -> Result<()> {
    if quiet {
        return print(&states.iter().map(|s| format!("{}\n", s.id)).collect::<String>());
    }
    if *format == Format::Json {
        return print(&format!("{}\n", serde_json::to_string(states)?));
    }
    let width = states.iter().map(|s| s.id.len()).max().unwrap_or(0).max(12);
    let mut text =
        format!("{:width$}{:<12}{:<12}{:<24}CREATED{:23}OWNER\n", "ID", "PID", "STATUS", "BUNDLE", "");
    for s in states {
        let bundle = s.bundle.display().to_string();
        text += &format!(
            "{:width$}{:<12}{:<12}{bundle:<24}{:<30}{}\n",
            s.id, s.pid, s.status, s.created, s.owner
        );
    }
    print(&text)
}

/// Process ids, or the lines that ps(1) has for them.
pub fn processes(pids: &[i32], format: &Format, options: &[String]) -> Result<()> {
    if *format == Format::Json {
        return print(&format!("{}\n", serde_json::to_string(pids)?));
    }
    let default = ["-ef".to_owned()];
    let output = Command::new("ps")
        .args(if options.is_empty() { &default } else { options })
        .output()
        .context("run ps")?;
    if !output.status.success() {
        bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    print(&select(&String::from_utf8_lossy(&output.stdout), pids)?)
}

/// The head and the lines of these processes.
fn select(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let head = lines.next().unwrap_or_default();
    let column =
        head.split_whitespace().position(|c| c == "PID").context("ps: its output has no column PID")?;
    let wanted = |line: &&str| {
        line.split_whitespace()
            .nth(column)
            .and_then(|p| p.parse().ok())
            .is_some_and(|pid: i32| pids.contains(&pid))
    };
    Ok(std::iter::once(head).chain(lines.filter(wanted)).map(|l| format!("{l}\n")).collect())
}

/// Figures, once or until the container ends.
pub fn events(runtime: &Runtime, id: &str, once: bool, interval: &str) -> Result<()> {
    let line = |event: &Event| print(&format!("{}\n", serde_json::to_string(event)?));
    if once {
        return line(&runtime.stats(id)?);
    }
    let interval = duration(interval)?;
    // Nobody reads on.
    Ok(runtime.events(id, interval, |event| line(event).is_ok())?)
}

/// A time as in `1m30s` or `500ms`.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || anyhow::anyhow!("--interval: {text:?} is not a time such as 5s");
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let units = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| n + digits);
        let milliseconds = match &rest[digits..units] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => bail!(wrong()),
        };
        sum += Duration::from_millis(number.checked_mul(milliseconds).ok_or_else(wrong)?);
        rest = &rest[units..];
    }
    if sum.is_zero() { Err(wrong()) } else { Ok(sum) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        for bad in ["", "5", "0s", "x", "5y", "s"] {
            assert!(duration(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn lines_of_ps() {
        let table = "UID PID CMD\nroot 1 init\nroot 12 sh\nroot 120 1\n";
        assert_eq!(select(table, &[12]).unwrap(), "UID PID CMD\nroot 12 sh\n");
        assert!(select("UID CMD\n", &[12]).is_err());
    }
}
