//! Reading what a cgroup has used, by few and small file reads.

use std::path::{Path, PathBuf};

use super::hierarchy::Hierarchy;
use super::path::{keyed, read_optional};
use super::{CpuStats, Error, IoStats, MemoryStats, PidsStats, Pressure, Psi, Stats};

/// What v1 shows for "no limit": the highest page-aligned number; anything near it means the same.
const V1_UNLIMITED: u64 = 1 << 62;

/// The figures of one cgroup.
pub fn stats(hierarchy: &Hierarchy, relative: &Path) -> Result<Stats, Error> {
    match hierarchy {
        Hierarchy::V1(_) => stats_v1(hierarchy, relative),
        Hierarchy::V2(root) => stats_v2(&root.join(relative)),
    }
}

/// Out-of-memory kills in one cgroup and below.
pub fn oom_kills(hierarchy: &Hierarchy, relative: &Path) -> Result<u64, Error> {
    let Some(dir) = hierarchy.folder("memory", relative) else { return Ok(0) };
    match hierarchy {
        Hierarchy::V1(_) => oom_kills_v1(&dir),
        Hierarchy::V2(_) => Ok(event(&dir, "oom_kill")?.unwrap_or(0)),
    }
}

/// How often all of a cgroup v2 was killed, the one of this folder or one below it. Nothing if the kernel does not count that.
pub fn oom_group_kills(dir: &Path) -> Result<Option<u64>, Error> {
    event(dir, "oom_group_kill")
}

fn event(dir: &Path, key: &str) -> Result<Option<u64>, Error> {
    Ok(optional(dir, "memory.events")?.and_then(|text| keyed(&text, key)))
}

/// v1 counts a kill only in the victim's own cgroup.
fn oom_kills_v1(dir: &Path) -> Result<u64, Error> {
    let own = optional(dir, "memory.oom_control")?.and_then(|t| keyed(&t, "oom_kill")).unwrap_or(0);
    super::path::children(dir).iter().try_fold(own, |sum, name| Ok(sum + oom_kills_v1(&dir.join(name))?))
}

fn optional(dir: &Path, file: &str) -> Result<Option<String>, Error> {
    read_optional(&dir.join(file))
}

fn number(dir: &Path, file: &str) -> Result<u64, Error> {
    Ok(limit(dir, file)?.unwrap_or(0))
}

/// A number, or nothing for `max` and for a file that does not exist.
fn limit(dir: &Path, file: &str) -> Result<Option<u64>, Error> {
    Ok(optional(dir, file)?.and_then(|t| t.trim().parse().ok()))
}

fn stats_v1(hierarchy: &Hierarchy, relative: &Path) -> Result<Stats, Error> {
    let dir =
        |controller| -> Option<PathBuf> { hierarchy.folder(controller, relative).filter(|d| d.is_dir()) };
    let mut stats = Stats::default();
    let mut found = false;
    if let Some(dir) = dir("cpuacct") {
        stats.cpu.usage_ns = number(&dir, "cpuacct.usage")?;
        stats.cpu.user_ns = number(&dir, "cpuacct.usage_user")?;
        stats.cpu.system_ns = number(&dir, "cpuacct.usage_sys")?;
        found = true;
    }
    if let Some(dir) = dir("cpu") {
        let text = optional(&dir, "cpu.stat")?.unwrap_or_default();
        stats.cpu.periods = keyed(&text, "nr_periods").unwrap_or(0);
        stats.cpu.throttled_periods = keyed(&text, "nr_throttled").unwrap_or(0);
        stats.cpu.throttled_ns = keyed(&text, "throttled_time").unwrap_or(0);
        found = true;
    }
    if let Some(dir) = dir("memory") {
        stats.memory = memory_v1(&dir)?;
        found = true;
    }
    if let Some(dir) = dir("pids") {
        stats.pids = pids(&dir)?;
        found = true;
    }
    if let Some(dir) = dir("blkio") {
        stats.io = io_v1(&dir)?;
        found = true;
    }
    if found { Ok(stats) } else { Err(missing(hierarchy, relative)) }
}

fn missing(hierarchy: &Hierarchy, relative: &Path) -> Error {
    let dir = hierarchy.folders(relative).into_iter().next().unwrap_or_else(|| relative.to_owned());
    Error::io("read cgroup", dir, std::io::Error::from_raw_os_error(libc::ENOENT))
}

fn memory_v1(dir: &Path) -> Result<MemoryStats, Error> {
    let text = optional(dir, "memory.stat")?.unwrap_or_default();
    let total = |key: &str| keyed(&text, key).unwrap_or(0);
    let usage = number(dir, "memory.usage_in_bytes")?;
    Ok(MemoryStats {
        usage,
        working_set: usage.saturating_sub(total("total_inactive_file")),
        rss: total("total_rss"),
        cache: total("total_cache"),
        swap: total("total_swap"),
        max_usage: number(dir, "memory.max_usage_in_bytes")?,
        mapped_file: total("total_mapped_file"),
        failcnt: number(dir, "memory.failcnt")?,
        pgfault: total("total_pgfault"),
        pgmajfault: total("total_pgmajfault"),
        limit: limit(dir, "memory.limit_in_bytes")?.filter(|l| *l < V1_UNLIMITED),
        oom_kills: oom_kills_v1(dir)?,
    })
}

fn pids(dir: &Path) -> Result<PidsStats, Error> {
    Ok(PidsStats { current: number(dir, "pids.current")?, limit: limit(dir, "pids.max")? })
}

/// Lines are `major:minor Read bytes`, one kind per line, and a total at the end.
fn io_v1(dir: &Path) -> Result<IoStats, Error> {
    let sum = |file: &str| -> Result<(u64, u64), Error> {
        let recursive = optional(dir, &format!("{file}_recursive"))?;
        let text = if recursive.is_some() { recursive } else { optional(dir, file)? }.unwrap_or_default();
        let mut sums = (0, 0);
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace().skip(1);
            match (fields.next(), fields.next().and_then(|v| v.parse::<u64>().ok())) {
                (Some("Read"), Some(v)) => sums.0 += v,
                (Some("Write"), Some(v)) => sums.1 += v,
                _ => {}
            }
        }
        Ok(sums)
    };
    let (read_bytes, write_bytes) = sum("blkio.throttle.io_service_bytes")?;
    let (reads, writes) = sum("blkio.throttle.io_serviced")?;
    Ok(IoStats { reads, writes, read_bytes, write_bytes })
}

fn stats_v2(dir: &Path) -> Result<Stats, Error> {
    let cpu = super::path::read(&dir.join("cpu.stat"))?;
    let micros = |key: &str| keyed(&cpu, key).unwrap_or(0) * 1000;
    Ok(Stats {
        cpu: CpuStats {
            usage_ns: micros("usage_usec"),
            user_ns: micros("user_usec"),
            system_ns: micros("system_usec"),
            periods: keyed(&cpu, "nr_periods").unwrap_or(0),
            throttled_periods: keyed(&cpu, "nr_throttled").unwrap_or(0),
            throttled_ns: micros("throttled_usec"),
        },
        memory: memory_v2(dir)?,
        pids: pids(dir)?,
        io: io_v2(&optional(dir, "io.stat")?.unwrap_or_default()),
        psi: psi(dir)?,
    })
}

fn memory_v2(dir: &Path) -> Result<MemoryStats, Error> {
    let text = optional(dir, "memory.stat")?.unwrap_or_default();
    let stat = |key: &str| keyed(&text, key).unwrap_or(0);
    let events = optional(dir, "memory.events")?.unwrap_or_default();
    let usage = number(dir, "memory.current")?;
    Ok(MemoryStats {
        usage,
        working_set: usage.saturating_sub(stat("inactive_file")),
        rss: stat("anon"),
        cache: stat("file"),
        swap: number(dir, "memory.swap.current")?,
        max_usage: number(dir, "memory.peak")?,
        mapped_file: stat("file_mapped"),
        failcnt: keyed(&events, "max").unwrap_or(0),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        limit: limit(dir, "memory.max")?,
        oom_kills: keyed(&events, "oom_kill").unwrap_or(0),
    })
}

/// Lines are `major:minor rbytes=1 wbytes=2 rios=3 wios=4 ...`.
fn io_v2(text: &str) -> IoStats {
    let mut io = IoStats::default();
    for field in text.split_ascii_whitespace() {
        let Some((key, value)) = field.split_once('=') else { continue };
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => io.read_bytes += value,
            "wbytes" => io.write_bytes += value,
            "rios" => io.reads += value,
            "wios" => io.writes += value,
            _ => {}
        }
    }
    io
}

/// Pressure files may be absent, or present and refuse to be read when PSI is off.
fn psi(dir: &Path) -> Result<Option<Psi>, Error> {
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).ok().map(|t| pressure(&t));
    let (Some(cpu), Some(memory), Some(io)) =
        (read("cpu.pressure"), read("memory.pressure"), read("io.pressure"))
    else {
        return Ok(None);
    };
    Ok(Some(Psi { cpu, memory, io }))
}

fn pressure(text: &str) -> Pressure {
    let total = |kind: &str| {
        let line = text.lines().find(|l| l.starts_with(kind))?;
        line.rsplit_once("total=")?.1.trim().parse().ok()
    };
    Pressure { some_usec: total("some").unwrap_or(0), full_usec: total("full").unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_and_pressure_lines() {
        let io = io_v2(
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=0 rios=1 wios=0\n",
        );
        assert_eq!(io, IoStats { reads: 2, writes: 2, read_bytes: 15, write_bytes: 20 });
        let p = pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 total=3\n");
        assert_eq!(p, Pressure { some_usec: 12, full_usec: 3 });
    }
}
