//! From the OCI resources to properties of a unit. See systemd.resource-control(5).

use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxResources};

use super::manager::Property;
use super::message::Value;
use crate::cgroup::apply::{io_weight, v2_swap};
use crate::cgroup::details::range_list;
use crate::cgroup::device_program::{Exception, Kind, MKNOD, READ, WRITE};
use crate::cgroup::{CpuWeight, Version, devices};

/// "No limit" in every property that is a number.
const INFINITY: u64 = u64::MAX;
/// systemd rounds quotas to this many microseconds per second; rounded up, none becomes smaller than asked for.
const QUOTA_STEP: u64 = 10_000;
const DEFAULT_PERIOD: u64 = 100_000;

/// A list of properties in the making.
struct List {
    version: Version,
    weight: CpuWeight,
    all: Vec<Property>,
}

/// What makes the scope of a container.
pub fn of_scope(slice: &str, unit: &str, pid: i32, version: Version) -> Vec<Property> {
    let mut list = accounting(version);
    list.push("Description", Value::Text(format!("container {unit}")));
    list.push("Slice", Value::Text(slice.to_owned()));
    list.push("Delegate", Value::Bool(true));
    list.push("PIDs", Value::Numbers(vec![u32::try_from(pid).unwrap_or_default()]));
    // Else a shutdown would stop it at its very beginning.
    list.push("DefaultDependencies", Value::Bool(false));
    // One whose last process was killed is not kept for somebody to look at.
    list.push("CollectMode", Value::Text("inactive-or-failed".to_owned()));
    list.all
}

/// What makes a slice.
pub fn of_slice(unit: &str, version: Version) -> Vec<Property> {
    let mut list = accounting(version);
    list.push("Description", Value::Text(format!("pods in {unit}")));
    list.push("DefaultDependencies", Value::Bool(false));
    list.all
}

/// Has systemd enable the controllers that count.
fn accounting(version: Version) -> List {
    let mut list = List { version, weight: CpuWeight::default(), all: Vec::new() };
    let io = if version == Version::V1 { "BlockIOAccounting" } else { "IOAccounting" };
    for name in ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io] {
        list.push(name, Value::Bool(true));
    }
    list
}

/// The limits that have properties.
pub fn of_limits(resources: &LinuxResources, version: Version, weight: CpuWeight) -> Vec<Property> {
    let mut list = List { version, weight, all: Vec::new() };
    if let Some(memory) = resources.memory() {
        list.memory(memory);
    }
    if let Some(cpu) = resources.cpu() {
        list.cpu(cpu);
    }
    if let Some(limit) = resources.pids().map(|p| p.limit()).filter(|l| *l != 0) {
        list.number("TasksMax", amount(limit));
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|b| b.weight()).filter(|w| *w != 0) {
        match version {
            Version::V1 => list.number("BlockIOWeight", u64::from(weight)),
            Version::V2 => list.number("IOWeight", io_weight(weight)),
        }
    }
    if let Some(rules) = resources.devices().as_ref().filter(|r| !r.is_empty()) {
        list.devices(rules);
    }
    let mut files: Vec<_> = resources.unified().iter().flatten().collect();
    files.sort_unstable();
    for (file, value) in files {
        list.unified(file, value);
    }
    list.all
}

fn amount(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(INFINITY)
}

impl List {
    fn push(&mut self, name: &str, value: Value) {
        self.all.push((name.to_owned(), value));
    }

    fn number(&mut self, name: &str, value: u64) {
        self.push(name, Value::U64(value));
    }

    fn memory(&mut self, memory: &LinuxMemory) {
        let limit = memory.limit().filter(|l| *l != 0);
        if self.version == Version::V1 {
            limit.into_iter().for_each(|l| self.number("MemoryLimit", amount(l)));
            return;
        }
        limit.into_iter().for_each(|l| self.number("MemoryMax", amount(l)));
        // What is wrong with it, setting the file tells.
        if let Ok(Some(swap)) = v2_swap(limit.unwrap_or(0), memory.swap().filter(|s| *s != 0)) {
            self.number("MemorySwapMax", amount(swap));
        }
        if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
            self.number("MemoryLow", u64::try_from(reservation).unwrap_or(0));
        }
    }

    fn cpu(&mut self, cpu: &LinuxCpu) {
        let idle = cpu.idle() == Some(1);
        match (cpu.shares().filter(|s| *s != 0), self.version) {
            // Zero is how systemd spells idle.
            (_, Version::V2) if idle => self.number("CPUWeight", 0),
            (None, _) => {}
            (Some(shares), Version::V1) => self.number("CPUShares", shares),
            (Some(shares), Version::V2) => self.number("CPUWeight", self.weight.of_shares(shares)),
        }
        self.quota(cpu.quota(), cpu.period());
        if self.version == Version::V2 {
            self.set_of("AllowedCPUs", cpu.cpus().as_deref());
            self.set_of("AllowedMemoryNodes", cpu.mems().as_deref());
        }
    }

    fn quota(&mut self, quota: Option<i64>, period: Option<u64>) {
        let period = period.filter(|p| *p != 0);
        period.into_iter().for_each(|p| self.number("CPUQuotaPeriodUSec", p));
        match quota.filter(|q| *q != 0).map(u64::try_from) {
            None => {}
            Some(Err(_)) => self.number("CPUQuotaPerSecUSec", INFINITY),
            Some(Ok(quota)) => {
                let per_second = quota.saturating_mul(1_000_000) / period.unwrap_or(DEFAULT_PERIOD);
                let rounded = per_second.div_ceil(QUOTA_STEP).saturating_mul(QUOTA_STEP);
                self.number("CPUQuotaPerSecUSec", rounded);
            }
        }
    }

    /// A set of numbers as bits, the lowest in the first byte.
    fn set_of(&mut self, name: &str, list: Option<&str>) {
        let Some(list) = list.filter(|l| !l.is_empty()) else { return };
        let mut mask = Vec::new();
        for number in range_list(list).into_iter().map(usize::from) {
            if mask.len() <= number / 8 {
                mask.resize(number / 8 + 1, 0);
            }
            mask[number / 8] |= 1 << (number % 8);
        }
        self.push(name, Value::Bytes(mask));
    }

    /// Without these, systemd opens all devices of a v1 cgroup again when it reloads.
    fn devices(&mut self, rules: &[LinuxDeviceCgroup]) {
        let policy = devices::policy(rules);
        let (kind, allowed) = match policy.allowed() {
            Some(allowed) => ("strict", allowed.iter().map(device).collect()),
            None => ("auto", Vec::new()),
        };
        self.push("DevicePolicy", Value::Text(kind.to_owned()));
        // The list is added to; an empty one clears it.
        self.push("DeviceAllow", Value::Pairs(Vec::new()));
        if !allowed.is_empty() {
            self.push("DeviceAllow", Value::Pairs(allowed));
        }
    }

    /// The v2 files that have properties; the others are only written.
    fn unified(&mut self, file: &str, value: &str) {
        let number = match value.trim() {
            "max" => Some(INFINITY),
            other => other.parse::<u64>().ok(),
        };
        let name = match file {
            "memory.max" => "MemoryMax",
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            "cpuset.cpus" => return self.set_of("AllowedCPUs", Some(value)),
            "cpuset.mems" => return self.set_of("AllowedMemoryNodes", Some(value)),
            "cpu.max" => {
                let mut parts = value.split_ascii_whitespace();
                let quota = parts.next().map(|q| if q == "max" { Some(-1) } else { q.parse().ok() });
                return self.quota(quota.flatten(), parts.next().and_then(|p| p.parse().ok()));
            }
            _ => return,
        };
        number.into_iter().for_each(|n| self.number(name, n));
    }
}

/// systemd has no word for one minor number of all majors: it lets all pass then, and the rules in the cgroup decide.
fn device(e: &Exception) -> (String, String) {
    let kind = match e.kind {
        Kind::Block => "block",
        Kind::Char => "char",
    };
    let node = match (e.major, e.minor) {
        (None, _) => format!("{kind}-*"),
        (Some(major), None) => format!("{kind}-{major}"),
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
    };
    let access = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    (node, access.iter().filter(|(bit, _)| e.access & bit != 0).map(|(_, c)| *c).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limits(version: Version, resources: serde_json::Value) -> Vec<(String, Value)> {
        of_limits(&serde_json::from_value(resources).unwrap(), version, CpuWeight::Curved)
    }

    fn numbers(list: &[(&str, u64)]) -> Vec<(String, Value)> {
        list.iter().map(|(name, n)| ((*name).to_owned(), Value::U64(*n))).collect()
    }

    #[test]
    fn limits_become_properties() {
        let all = json!({
            "memory": {"limit": 100, "swap": 150, "reservation": 50},
            "cpu": {"shares": 1024, "quota": 50_001, "period": 200_000, "cpus": "0,9", "mems": "0"},
            "pids": {"limit": -1},
            "blockIO": {"weight": 500},
        });
        let mut v2 = numbers(&[
            ("MemoryMax", 100),
            ("MemorySwapMax", 50),
            ("MemoryLow", 50),
            ("CPUWeight", 100),
            ("CPUQuotaPeriodUSec", 200_000),
            ("CPUQuotaPerSecUSec", 260_000),
            ("TasksMax", INFINITY),
            ("IOWeight", 4950),
        ]);
        v2.insert(6, ("AllowedCPUs".to_owned(), Value::Bytes(vec![1, 2])));
        v2.insert(7, ("AllowedMemoryNodes".to_owned(), Value::Bytes(vec![1])));
        assert_eq!(limits(Version::V2, all.clone()), v2);
        let v1 = [
            ("MemoryLimit", 100),
            ("CPUShares", 1024),
            ("CPUQuotaPeriodUSec", 200_000),
            ("CPUQuotaPerSecUSec", 260_000),
            ("TasksMax", INFINITY),
            ("BlockIOWeight", 500),
        ];
        assert_eq!(limits(Version::V1, all), numbers(&v1));
        assert!(limits(Version::V2, json!({"cpu": {"quota": 0}, "pids": {"limit": 0}})).is_empty());
        let unified = json!({"unified": {"cpu.max": "max 50000", "memory.oom.group": "1"}});
        let expected = [("CPUQuotaPeriodUSec", 50_000), ("CPUQuotaPerSecUSec", INFINITY)];
        assert_eq!(limits(Version::V2, unified), numbers(&expected));
        let idle = json!({"cpu": {"idle": 1, "shares": 512}});
        assert_eq!(limits(Version::V2, idle), numbers(&[("CPUWeight", 0)]));
    }

    #[test]
    fn devices_become_properties() {
        let rule = |kind: &str, major: i64, minor: i64| json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": "rw"});
        let rules = json!({"devices": [
            {"allow": false, "access": "rwm"}, rule("c", 1, 3), rule("c", 136, -1), rule("b", -1, -1),
        ]});
        let pairs = |list: &[&str]| {
            let pairs = list.iter().map(|node| ((*node).to_owned(), "rw".to_owned())).collect();
            ("DeviceAllow".to_owned(), Value::Pairs(pairs))
        };
        let policy = |text: &str| ("DevicePolicy".to_owned(), Value::Text(text.to_owned()));
        let expected = [policy("strict"), pairs(&[]), pairs(&["/dev/char/1:3", "char-136", "block-*"])];
        assert_eq!(limits(Version::V2, rules), expected);
        let all = json!({"devices": [{"allow": true, "access": "rwm"}]});
        assert_eq!(limits(Version::V2, all), [policy("auto"), pairs(&[])]);
    }
}
