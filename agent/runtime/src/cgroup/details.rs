//! All figures of a cgroup, in the form that `events --stats` of OCI runtimes prints.
//!
//! The names are runc's (`types/events.go`), since tools read them. Where v2 has no figure of that kind it is left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::hierarchy::Hierarchy;
use super::path::{keyed, read_optional};
use super::{Error, Stats, read};

/// What v1 and runc show for "no limit".
const UNLIMITED: u64 = u64::MAX;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Details {
    /// Processor time.
    pub cpu: Cpu,
    /// Processors and memory nodes.
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Memory,
    /// Processes.
    pub pids: Pids,
    /// Block devices.
    pub blkio: BlockIo,
    /// Huge pages by size, such as `2MB`.
    pub hugetlb: BTreeMap<String, Counter>,
}

/// Processor time in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Time used.
    pub usage: CpuUsage,
    /// What a quota held back.
    pub throttling: Throttling,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Time used, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    /// All of it.
    pub total: u64,
    /// By processor (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel, by processor (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// In user space, by processor (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In user space.
    pub user: u64,
}

/// What a quota held back.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods that passed.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time of waiting, in nanoseconds.
    pub throttled_time: u64,
}

/// Processors and memory nodes, as lists of numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuSet {
    /// The processors that may be used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    /// The memory nodes that may be used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
}

/// A use with its limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counter {
    /// The limit; the highest number for none.
    pub limit: u64,
    /// The use now.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The highest use ever.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How many times the limit was hit.
    pub failcnt: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Page cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// All memory.
    pub usage: Counter,
    /// Swap; on v1 together with memory.
    pub swap: Counter,
    /// The kernel's own (v1).
    pub kernel: Counter,
    /// Buffers of TCP (v1).
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Counter,
    /// Everything in `memory.stat`.
    pub raw: BTreeMap<String, u64>,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 for no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// Block devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<DeviceIo>,
    /// Operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<DeviceIo>,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// One kind of traffic of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DeviceIo {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// `Read`, `Write`, ...
    pub op: String,
    /// Bytes or operations.
    pub value: u64,
}

/// Pressure stall information, see the kernel's accounting/psi.rst.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Psi {
    /// Some tasks waited.
    pub some: PsiData,
    /// All tasks waited.
    pub full: PsiData,
}

/// Shares of time in per cent over 10, 60 and 300 s, and the total in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PsiData {
    /// Over 10 s.
    pub avg10: f64,
    /// Over 60 s.
    pub avg60: f64,
    /// Over 300 s.
    pub avg300: f64,
    /// In microseconds.
    pub total: u64,
}

/// Reads everything of one cgroup.
pub fn details(hierarchy: &Hierarchy, relative: &Path) -> Result<Details, Error> {
    let stats = read::stats(hierarchy, relative)?;
    let dir = |controller: &str| hierarchy.folder(controller, relative).filter(|d| d.is_dir());
    let v2 = matches!(hierarchy, Hierarchy::V2(_));
    let mut details = common(&stats);
    if let Some(dir) = dir("cpuacct").filter(|_| !v2) {
        let list = |file: &str| numbers(&dir, file);
        details.cpu.usage.percpu = list("cpuacct.usage_percpu")?;
        details.cpu.usage.percpu_kernel = list("cpuacct.usage_percpu_sys")?;
        details.cpu.usage.percpu_user = list("cpuacct.usage_percpu_user")?;
    }
    if let Some(dir) = dir("cpuset") {
        let list = |a: &str, b: &str| -> Result<Vec<u16>, Error> {
            let text = optional(&dir, a)?.or(optional(&dir, b)?).unwrap_or_default();
            Ok(range_list(&text))
        };
        details.cpuset.cpus = list("cpuset.cpus.effective", "cpuset.effective_cpus")?;
        details.cpuset.mems = list("cpuset.mems.effective", "cpuset.effective_mems")?;
    }
    if let Some(dir) = dir("memory") {
        memory(&dir, v2, &mut details.memory)?;
    }
    if let Some(dir) = dir("blkio") {
        details.blkio =
            if v2 { io_v2(&optional(&dir, "io.stat")?.unwrap_or_default()) } else { io_v1(&dir)? };
    }
    if let Some(dir) = dir("hugetlb") {
        details.hugetlb = hugetlb(&dir, v2)?;
    }
    if let Some(dir) = v2.then(|| dir("cpu")).flatten() {
        details.cpu.psi = psi(&dir, "cpu.pressure");
        details.memory.psi = psi(&dir, "memory.pressure");
        details.blkio.psi = psi(&dir, "io.pressure");
    }
    Ok(details)
}

/// What the short statistics know already.
fn common(stats: &Stats) -> Details {
    let mut details = Details::default();
    details.cpu.usage.total = stats.cpu.usage_ns;
    details.cpu.usage.user = stats.cpu.user_ns;
    details.cpu.usage.kernel = stats.cpu.system_ns;
    details.cpu.throttling = Throttling {
        periods: stats.cpu.periods,
        throttled_periods: stats.cpu.throttled_periods,
        throttled_time: stats.cpu.throttled_ns,
    };
    details.memory.cache = stats.memory.cache;
    details.memory.usage = Counter {
        limit: stats.memory.limit.unwrap_or(UNLIMITED),
        usage: stats.memory.usage,
        max: stats.memory.max_usage,
        failcnt: stats.memory.failcnt,
    };
    details.pids = Pids { current: stats.pids.current, limit: stats.pids.limit.unwrap_or(0) };
    details
}

fn optional(dir: &Path, file: &str) -> Result<Option<String>, Error> {
    read_optional(&dir.join(file))
}

/// A number; 0 for a file that is missing, the highest number for `max`.
fn number(dir: &Path, file: &str) -> Result<u64, Error> {
    let text = optional(dir, file)?.unwrap_or_default();
    Ok(if text.trim() == "max" { UNLIMITED } else { text.trim().parse().unwrap_or(0) })
}

fn numbers(dir: &Path, file: &str) -> Result<Vec<u64>, Error> {
    let text = optional(dir, file)?.unwrap_or_default();
    Ok(text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect())
}

fn memory(dir: &Path, v2: bool, memory: &mut Memory) -> Result<(), Error> {
    let text = optional(dir, "memory.stat")?.unwrap_or_default();
    memory.raw = text
        .lines()
        .filter_map(|l| l.split_once(' ').and_then(|(k, v)| Some((k.to_owned(), v.trim().parse().ok()?))))
        .collect();
    if v2 {
        memory.swap = Counter {
            limit: number(dir, "memory.swap.max")?,
            usage: number(dir, "memory.swap.current")?,
            max: number(dir, "memory.swap.peak")?,
            failcnt: keyed(&optional(dir, "memory.swap.events")?.unwrap_or_default(), "max").unwrap_or(0),
        };
        return Ok(());
    }
    let counter = |prefix: &str| -> Result<Counter, Error> {
        Ok(Counter {
            limit: number(dir, &format!("memory.{prefix}.limit_in_bytes"))?,
            usage: number(dir, &format!("memory.{prefix}.usage_in_bytes"))?,
            max: number(dir, &format!("memory.{prefix}.max_usage_in_bytes"))?,
            failcnt: number(dir, &format!("memory.{prefix}.failcnt"))?,
        })
    };
    memory.swap = counter("memsw")?;
    memory.kernel = counter("kmem")?;
    memory.kernel_tcp = counter("kmem.tcp")?;
    Ok(())
}

/// Lines are `major:minor Read 10`, and a total without a device at the end.
fn io_v1(dir: &Path) -> Result<BlockIo, Error> {
    let list = |file: &str| -> Result<Vec<DeviceIo>, Error> {
        let text = match optional(dir, &format!("{file}_recursive"))? {
            Some(text) => text,
            None => optional(dir, file)?.unwrap_or_default(),
        };
        Ok(text.lines().filter_map(io_line_v1).collect())
    };
    Ok(BlockIo {
        io_service_bytes_recursive: list("blkio.throttle.io_service_bytes")?,
        io_serviced_recursive: list("blkio.throttle.io_serviced")?,
        psi: None,
    })
}

fn io_line_v1(line: &str) -> Option<DeviceIo> {
    let mut fields = line.split_ascii_whitespace();
    let (major, minor) = device(fields.next()?)?;
    Some(DeviceIo { major, minor, op: fields.next()?.to_owned(), value: fields.next()?.parse().ok()? })
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Lines are `major:minor rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io_v2(text: &str) -> BlockIo {
    let mut io = BlockIo::default();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some((major, minor)) = fields.next().and_then(device) else { continue };
        for (key, value) in fields.filter_map(|f| f.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let (list, op) = match key {
                "rbytes" => (&mut io.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut io.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut io.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut io.io_serviced_recursive, "Read"),
                "wios" => (&mut io.io_serviced_recursive, "Write"),
                "dios" => (&mut io.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            list.push(DeviceIo { major, minor, op: op.to_owned(), value });
        }
    }
    io
}

/// The page sizes are in the names of the files.
fn hugetlb(dir: &Path, v2: bool) -> Result<BTreeMap<String, Counter>, Error> {
    let (limit, usage) = if v2 { ("max", "current") } else { ("limit_in_bytes", "usage_in_bytes") };
    let mut sizes = BTreeMap::new();
    for file in files(dir) {
        let Some(size) = file.strip_prefix("hugetlb.").and_then(|f| f.strip_suffix(usage)?.strip_suffix('.'))
        else {
            continue;
        };
        // Reservations have files of their own.
        if size.contains('.') {
            continue;
        }
        let name = |kind: &str| format!("hugetlb.{size}.{kind}");
        let failcnt = if v2 {
            keyed(&optional(dir, &name("events"))?.unwrap_or_default(), "max").unwrap_or(0)
        } else {
            number(dir, &name("failcnt"))?
        };
        let counter = Counter {
            limit: number(dir, &name(limit))?,
            usage: number(dir, &name(usage))?,
            max: number(dir, &name("max_usage_in_bytes"))?,
            failcnt,
        };
        sizes.insert(size.to_owned(), counter);
    }
    Ok(sizes)
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(PathBuf::from(dir)) else { return Vec::new() };
    entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
}

/// Numbers and ranges with commas between, such as `0-2,5`.
pub fn range_list(text: &str) -> Vec<u16> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            all.extend(first..=last);
        }
    }
    all
}

/// Pressure files may be absent, or refuse to be read when PSI is off.
fn psi(dir: &Path, file: &str) -> Option<Psi> {
    let text = std::fs::read_to_string(dir.join(file)).ok()?;
    let line = |kind: &str| text.lines().find(|l| l.starts_with(kind)).map(psi_line).unwrap_or_default();
    Some(Psi { some: line("some"), full: line("full") })
}

fn psi_line(line: &str) -> PsiData {
    let value = |key: &str| line.split_ascii_whitespace().find_map(|f| f.strip_prefix(key));
    let average = |key: &str| value(key).and_then(|v| v.parse().ok()).unwrap_or(0.0);
    PsiData {
        avg10: average("avg10="),
        avg60: average("avg60="),
        avg300: average("avg300="),
        total: value("total=").and_then(|v| v.parse().ok()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers() {
        assert_eq!(range_list("0-2,5\n"), [0, 1, 2, 5]);
        assert!(range_list("\n").is_empty());
    }

    #[test]
    fn lines_of_both_versions() {
        let io = io_v2("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0 x=y\n");
        assert_eq!(io.io_service_bytes_recursive.len(), 3);
        let write = DeviceIo { major: 8, minor: 0, op: "Write".to_owned(), value: 20 };
        assert_eq!(io.io_service_bytes_recursive[1], write);
        assert_eq!(io_line_v1("8:0 Write 20"), Some(write));
        assert_eq!(io_line_v1("Total 20"), None);
        let psi = psi_line("some avg10=1.50 avg60=0.20 avg300=0.00 total=77");
        assert_eq!((psi.avg10, psi.avg60, psi.total), (1.5, 0.2, 77));
    }
}
