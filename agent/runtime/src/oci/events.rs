//! `events`: what a container uses, in the form that runc's callers read.

use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde_json::{Value, json};

use super::kill::cgroup;
use super::{Error, Runtime, Status, process};
use crate::cgroup::Stats;

/// Something that is told of a container. Its fields are written in the order that other runtimes have.
#[derive(Debug, Serialize)]
pub struct Event {
    /// `stats` or `oom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The container's.
    pub id: String,
    /// The figures, if it has any.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl Runtime {
    /// One event with the figures of now.
    pub fn stats(&self, id: &str) -> Result<Event, Error> {
        let folder = self.store.open(id)?;
        let record = folder.record()?;
        match record.status(&folder) {
            Status::Stopped | Status::Creating => Err(Error::NotRunning { id: id.to_owned() }),
            _ => Ok(event("stats", id, data(&cgroup(&record, |c, path| c.stats(path))?))),
        }
    }

    /// Calls `tell` with the figures once per `interval`, and when the out-of-memory killer was at work, until the
    /// container ends or `tell` says stop by returning false.
    pub fn events(
        &self,
        id: &str,
        interval: Duration,
        mut tell: impl FnMut(&Event) -> bool,
    ) -> Result<(), Error> {
        let folder = self.store.open(id)?;
        let record = folder.record()?;
        let gone = || Error::NotRunning { id: id.to_owned() };
        let init = process::open(record.pid, record.pid_start_time)?.ok_or_else(gone)?;
        let mut kills = cgroup(&record, |c, path| c.oom_kills(path))?;
        let timeout = PollTimeout::try_from(interval.as_millis() as u64).unwrap_or(PollTimeout::MAX);
        loop {
            let ended = poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&init), PollFlags::POLLIN)], timeout)
                .map_err(Error::sys("wait for", "the container"))?;
            let now = match cgroup(&record, |c, path| c.oom_kills(path)) {
                Err(Error::Cgroup(e)) if e.is_not_found() => return Ok(()),
                other => other?,
            };
            if now > kills && !tell(&event("oom", id, Value::Null)) {
                return Ok(());
            }
            kills = now;
            if ended > 0 {
                return Ok(());
            }
            let stats = match cgroup(&record, |c, path| c.stats(path)) {
                Err(Error::Cgroup(e)) if e.is_not_found() => return Ok(()),
                other => other?,
            };
            if !tell(&event("stats", id, data(&stats))) {
                return Ok(());
            }
        }
    }
}

fn event(kind: &'static str, id: &str, data: Value) -> Event {
    Event { kind, id: id.to_owned(), data }
}

/// Field names are runc's (types/events.go). Block device figures are summed over the devices.
fn data(stats: &Stats) -> Value {
    let io = |read: u64, write: u64| {
        json!([
            {"major": 0, "minor": 0, "op": "Read", "value": read},
            {"major": 0, "minor": 0, "op": "Write", "value": write},
        ])
    };
    json!({
        "cpu": {
            "usage": {"total": stats.cpu.usage_ns, "kernel": stats.cpu.system_ns, "user": stats.cpu.user_ns},
            "throttling": {
                "periods": stats.cpu.periods,
                "throttledPeriods": stats.cpu.throttled_periods,
                "throttledTime": stats.cpu.throttled_ns,
            },
        },
        "memory": {
            "cache": stats.memory.cache,
            "usage": {
                "limit": stats.memory.limit.unwrap_or(u64::MAX),
                "usage": stats.memory.usage,
                "max": stats.memory.max_usage,
                "failcnt": stats.memory.failcnt,
            },
            "swap": {"usage": stats.memory.swap},
            "raw": {
                "rss": stats.memory.rss,
                "cache": stats.memory.cache,
                "mapped_file": stats.memory.mapped_file,
                "pgfault": stats.memory.pgfault,
                "pgmajfault": stats.memory.pgmajfault,
            },
        },
        "pids": {"current": stats.pids.current, "limit": stats.pids.limit.unwrap_or(0)},
        "blkio": {
            "ioServiceBytesRecursive": io(stats.io.read_bytes, stats.io.write_bytes),
            "ioServicedRecursive": io(stats.io.reads, stats.io.writes),
        },
    })
}
