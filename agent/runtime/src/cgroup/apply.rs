//! Setting the limits of an OCI `LinuxResources` on one cgroup.
//!
//! The controllers of `cgroups-rs` write the values; the conversions that it leaves to its callers are here.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::error::Error as LibraryError;
use cgroups_rs::fs::hugetlb::HugeTlbController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources,
    LinuxThrottleDevice,
};

use super::hierarchy::Hierarchy;
use super::weight::CpuWeight;
use super::{Error, devices, path};

/// One cgroup whose limits are to be set.
pub struct Target<'a> {
    /// Where the controllers are.
    pub hierarchy: &'a Hierarchy,
    /// The cgroup as the caller named it, for messages.
    pub name: &'a str,
    /// The same below a hierarchy's root.
    pub relative: &'a Path,
    /// How cpu shares become a v2 weight.
    pub weight: CpuWeight,
}

impl Target<'_> {
    /// Sets every limit that is given.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        if let Some(memory) = resources.memory() {
            self.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            self.cpu(cpu)?;
            self.cpuset(cpu)?;
        }
        if let Some(pids) = resources.pids() {
            self.pids(*pids)?;
        }
        if let Some(block_io) = resources.block_io() {
            self.block_io(block_io)?;
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            self.hugepages(limit)?;
        }
        if let Some(network) = resources.network() {
            self.network(network)?;
        }
        for (device, limit) in resources.rdma().iter().flatten() {
            let part = |key, v: Option<u32>| v.map_or(String::new(), |v| format!(" {key}={v}"));
            let line = format!(
                "{device}{}{}",
                part("hca_handle", limit.hca_handles()),
                part("hca_object", limit.hca_objects())
            );
            path::write(&self.folder("rdma", "rdma")?.join("rdma.max"), &line)?;
        }
        if let Some(rules) = resources.devices().as_ref().filter(|r| !r.is_empty()) {
            devices::apply(self.hierarchy, &self.folder("devices", "devices")?, rules)?;
        }
        self.unified(resources)
    }

    fn v2(&self) -> bool {
        matches!(self.hierarchy, Hierarchy::V2(_))
    }

    fn folder(&self, controller: &str, resource: &str) -> Result<PathBuf, Error> {
        self.hierarchy
            .folder(controller, self.relative)
            .ok_or_else(|| self.refuse(resource, format!("this machine has no {controller} controller")))
    }

    fn refuse(&self, resource: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Resource { resource: resource.into(), path: self.name.to_owned(), reason: reason.into() }
    }

    /// Turns an error of the library, which hides the reason in its source, into ours.
    fn set(&self, resource: &str, result: Result<(), LibraryError>) -> Result<(), Error> {
        result.map_err(|e| match e.source().and_then(|s| s.downcast_ref::<io::Error>()) {
            Some(source) if source.kind() == io::ErrorKind::NotFound => {
                self.refuse(resource, "its controller is missing or not enabled")
            }
            Some(source) => self.refuse(resource, format!("{}: {source}", e.kind())),
            None => self.refuse(resource, e.to_string()),
        })
    }

    fn cpu(&self, cpu: &LinuxCpu) -> Result<(), Error> {
        let dir = self.folder("cpu", "cpu")?;
        let controller = CpuController::new(dir.clone(), dir.clone(), self.v2());
        if let Some(idle) = cpu.idle() {
            path::write(&dir.join("cpu.idle"), &idle.to_string())?;
        }
        // An idle cgroup has no weight, and writing one fails.
        if let Some(shares) = cpu.shares().filter(|s| *s != 0 && cpu.idle() != Some(1)) {
            let value = if self.v2() { self.weight.of_shares(shares) } else { shares };
            self.set("cpu.shares", controller.set_shares(value))?;
        }
        let period = cpu.period().filter(|p| *p != 0);
        let quota = cpu.quota().filter(|q| *q != 0);
        if self.v2() {
            if period.is_some() || quota.is_some() {
                self.set("cpu.quota", controller.set_cfs_quota_and_period(quota, period))?;
            }
        } else {
            // A period too small for the quota in force is refused; then the quota has to change first.
            let early = period.map(|p| controller.set_cfs_period(p));
            if let Some(quota) = quota {
                self.set("cpu.quota", controller.set_cfs_quota(quota))?;
            }
            if let (Some(Err(_)), Some(period)) = (early, period) {
                self.set("cpu.period", controller.set_cfs_period(period))?;
            }
        }
        if let Some(burst) = cpu.burst() {
            let file = if self.v2() { "cpu.max.burst" } else { "cpu.cfs_burst_us" };
            path::write(&dir.join(file), &burst.to_string())?;
        }
        self.realtime(cpu, &controller)
    }

    fn realtime(&self, cpu: &LinuxCpu, controller: &CpuController) -> Result<(), Error> {
        let period = cpu.realtime_period().filter(|p| *p != 0);
        let runtime = cpu.realtime_runtime().filter(|r| *r != 0);
        if self.v2() && (period.is_some() || runtime.is_some()) {
            return Err(self.refuse("cpu.realtimeRuntime", "cgroup v2 has no realtime limits"));
        }
        if let Some(period) = period {
            self.set("cpu.realtimePeriod", controller.set_rt_period_us(period))?;
        }
        if let Some(runtime) = runtime {
            self.set("cpu.realtimeRuntime", controller.set_rt_runtime(runtime))?;
        }
        Ok(())
    }

    fn cpuset(&self, cpu: &LinuxCpu) -> Result<(), Error> {
        let given = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
        let (cpus, mems) = (given(cpu.cpus()), given(cpu.mems()));
        if cpus.is_none() && mems.is_none() {
            return Ok(());
        }
        let dir = self.folder("cpuset", "cpu.cpus")?;
        let controller = CpuSetController::new(dir.clone(), dir, self.v2());
        if let Some(cpus) = cpus {
            self.set("cpu.cpus", controller.set_cpus(&cpus))?;
        }
        if let Some(mems) = mems {
            self.set("cpu.mems", controller.set_mems(&mems))?;
        }
        Ok(())
    }

    fn memory(&self, memory: &LinuxMemory) -> Result<(), Error> {
        let dir = self.folder("memory", "memory")?;
        let controller = MemController::new(dir.clone(), dir.clone(), self.v2());
        let limit = memory.limit().filter(|l| *l != 0);
        let swap = memory.swap().filter(|s| *s != 0);
        if let (Some(limit), true) = (limit, memory.check_before_update() == Some(true)) {
            let file = if self.v2() { "memory.current" } else { "memory.usage_in_bytes" };
            let used: i64 = path::read(&dir.join(file))?.trim().parse().unwrap_or(0);
            if limit > 0 && used > limit {
                return Err(
                    self.refuse("memory.limit", format!("{limit} is below the current use of {used}"))
                );
            }
        }
        if self.v2() {
            self.memory_v2(&controller, limit, swap)?;
        } else {
            self.memory_v1(&controller, &dir, limit, swap)?;
            if let Some(swappiness) = memory.swappiness() {
                self.set("memory.swappiness", controller.set_swappiness(swappiness))?;
            }
            if memory.disable_oom_killer() == Some(true) {
                self.set("memory.disableOOMKiller", controller.disable_oom_killer())?;
            }
            if let Some(tcp) = memory.kernel_tcp().filter(|t| *t != 0) {
                self.set("memory.kernelTCP", controller.set_tcp_limit(tcp))?;
            }
        }
        match memory.reservation().filter(|r| *r != 0) {
            // memory.low has no word for "no limit below which it is protected"; -1 means unprotected.
            Some(r) if self.v2() => self.set("memory.reservation", controller.set_soft_limit(r.max(0))),
            Some(r) => self.set("memory.reservation", controller.set_soft_limit(r)),
            None => Ok(()),
        }
    }

    /// v2 counts swap on its own, the OCI spec counts memory and swap together.
    fn memory_v2(
        &self,
        controller: &MemController,
        limit: Option<i64>,
        swap: Option<i64>,
    ) -> Result<(), Error> {
        match (limit, swap) {
            (_, None) => {}
            (_, Some(-1)) | (Some(-1), _) => self.set("memory.swap", controller.set_memswap_limit(-1))?,
            (Some(limit), Some(swap)) if swap >= limit => {
                self.set("memory.swap", controller.set_memswap_limit(swap - limit))?;
            }
            _ => {
                return Err(
                    self.refuse("memory.swap", "it counts memory too and must not be below memory.limit")
                );
            }
        }
        match limit {
            Some(limit) => self.set("memory.limit", controller.set_limit(limit)),
            None => Ok(()),
        }
    }

    /// v1 refuses a memory limit above the limit of memory and swap, so that the order of the two writes matters.
    fn memory_v1(
        &self,
        controller: &MemController,
        dir: &Path,
        limit: Option<i64>,
        swap: Option<i64>,
    ) -> Result<(), Error> {
        let both = dir.join("memory.memsw.limit_in_bytes");
        let current = path::read_optional(&both)?.and_then(|t| t.trim().parse::<u64>().ok());
        let swap_first = match (swap, current) {
            (Some(-1), _) => true,
            (Some(new), Some(current)) => new as u64 > current,
            _ => false,
        };
        let set_swap = || match swap {
            None => Ok(()),
            // Without swap accounting there is nothing to limit; "no swap" and "no limit" hold by themselves.
            Some(new) if current.is_none() && (new == -1 || Some(new) == limit) => Ok(()),
            Some(new) => self.set("memory.swap", controller.set_memswap_limit(new)),
        };
        if swap_first {
            set_swap()?;
        }
        if let Some(limit) = limit {
            self.set("memory.limit", controller.set_limit(limit))?;
        }
        if swap_first { Ok(()) } else { set_swap() }
    }

    fn pids(&self, pids: LinuxPids) -> Result<(), Error> {
        let dir = self.folder("pids", "pids.limit")?;
        let controller = PidController::new(dir.clone(), dir, self.v2());
        let limit = if pids.limit() > 0 { MaxValue::Value(pids.limit()) } else { MaxValue::Max };
        self.set("pids.limit", controller.set_pid_max(limit))
    }

    fn hugepages(&self, limit: &LinuxHugepageLimit) -> Result<(), Error> {
        let resource = format!("hugepageLimits.{}", limit.page_size());
        let dir = match self.folder("hugetlb", &resource) {
            Ok(dir) => dir,
            // Where huge pages cannot be counted there are none to have.
            Err(_) if limit.limit() == 0 => return Ok(()),
            Err(e) => return Err(e),
        };
        let controller = HugeTlbController::new(dir.clone(), dir.clone(), self.v2());
        let value = u64::try_from(limit.limit()).unwrap_or(i64::MAX as u64);
        match self.set(&resource, controller.set_limit_in_bytes(limit.page_size(), value)) {
            Err(_) if value == 0 => return Ok(()),
            other => other?,
        }
        let kind = if self.v2() { "rsvd.max" } else { "rsvd.limit_in_bytes" };
        let reserved = dir.join(format!("hugetlb.{}.{kind}", limit.page_size()));
        match path::write(&reserved, &value.to_string()) {
            // Limits on reservations exist since Linux 5.7.
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }

    fn block_io(&self, io: &LinuxBlockIo) -> Result<(), Error> {
        let dir = self.folder("blkio", "blockIO")?;
        let controller = BlkIoController::new(dir.clone(), dir.clone(), self.v2());
        if let Some(weight) = io.weight().filter(|w| *w != 0) {
            self.io_weight(&dir, None, weight)?;
        }
        for device in io.weight_device().iter().flatten() {
            if let Some(weight) = device.weight().filter(|w| *w != 0) {
                self.io_weight(&dir, Some((device.major(), device.minor())), weight)?;
            }
        }
        type Throttle = fn(&BlkIoController, u64, u64, u64) -> Result<(), LibraryError>;
        let throttles: [(&str, &Option<Vec<LinuxThrottleDevice>>, Throttle); 4] = [
            (
                "throttleReadBpsDevice",
                io.throttle_read_bps_device(),
                BlkIoController::throttle_read_bps_for_device,
            ),
            (
                "throttleWriteBpsDevice",
                io.throttle_write_bps_device(),
                BlkIoController::throttle_write_bps_for_device,
            ),
            (
                "throttleReadIOPSDevice",
                io.throttle_read_iops_device(),
                BlkIoController::throttle_read_iops_for_device,
            ),
            (
                "throttleWriteIOPSDevice",
                io.throttle_write_iops_device(),
                BlkIoController::throttle_write_iops_for_device,
            ),
        ];
        for (name, devices, throttle) in throttles {
            for d in devices.iter().flatten() {
                let result = throttle(&controller, d.major() as u64, d.minor() as u64, d.rate());
                self.set(&format!("blockIO.{name}"), result)?;
            }
        }
        Ok(())
    }

    /// The weight's file depends on the scheduler: BFQ has its own, and io.weight counts from 1 to 10000 instead of
    /// from 10 to 1000.
    fn io_weight(&self, dir: &Path, device: Option<(i64, i64)>, weight: u16) -> Result<(), Error> {
        let files: [(&str, u64); 2] = if self.v2() {
            let scaled = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
            [("io.bfq.weight", u64::from(weight)), ("io.weight", scaled)]
        } else if device.is_some() {
            [("blkio.bfq.weight_device", u64::from(weight)), ("blkio.weight_device", u64::from(weight))]
        } else {
            [("blkio.bfq.weight", u64::from(weight)), ("blkio.weight", u64::from(weight))]
        };
        for (file, value) in files {
            let file = dir.join(file);
            if file.exists() {
                let value = device.map_or_else(|| value.to_string(), |(a, b)| format!("{a}:{b} {value}"));
                return path::write(&file, &value);
            }
        }
        Err(self.refuse("blockIO.weight", "this kernel has no scheduler that weighs"))
    }

    fn network(&self, network: &LinuxNetwork) -> Result<(), Error> {
        let priorities = network.priorities().iter().flatten();
        if self.v2() {
            if network.class_id().is_some() || network.priorities().as_ref().is_some_and(|p| !p.is_empty()) {
                return Err(self.refuse("network", "cgroup v2 has no network classes and priorities"));
            }
            return Ok(());
        }
        if let Some(class) = network.class_id() {
            path::write(
                &self.folder("net_cls", "network.classID")?.join("net_cls.classid"),
                &class.to_string(),
            )?;
        }
        for p in priorities {
            let line = format!("{} {}", p.name(), p.priority());
            path::write(&self.folder("net_prio", "network.priorities")?.join("net_prio.ifpriomap"), &line)?;
        }
        Ok(())
    }

    fn unified(&self, resources: &LinuxResources) -> Result<(), Error> {
        let Some(unified) = resources.unified().as_ref().filter(|u| !u.is_empty()) else { return Ok(()) };
        if !self.v2() {
            return Err(self.refuse("unified", "this machine has cgroup v1"));
        }
        let dir = self.folder("unified", "unified")?;
        let mut files: Vec<_> = unified.iter().collect();
        files.sort_unstable();
        for (file, value) in files {
            if file.contains('/') || !file.contains('.') {
                return Err(self.refuse(format!("unified.{file}"), "it is not the name of a cgroup file"));
            }
            path::write(&dir.join(file), value)?;
        }
        Ok(())
    }
}
