//! Processor time and processors. See Documentation/scheduler/sched-bwc.rst and cgroup-v2.rst of the kernel.

use std::path::Path;

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use oci_spec::runtime::LinuxCpu;

use super::Target;
use crate::cgroup::{Error, path};

/// A value that the kernel may refuse for now because it does not fit another one that is about to change.
struct Pending(&'static str, &'static str, String);

impl Target<'_> {
    pub(super) fn cpu(&self, cpu: &LinuxCpu) -> Result<(), Error> {
        let dir = self.folder("cpu", "cpu")?;
        if let Some(idle) = cpu.idle() {
            self.idle(&dir, idle)?;
        }
        // An idle cgroup has no weight, and writing one fails.
        if let Some(shares) = cpu.shares().filter(|s| *s != 0 && cpu.idle() != Some(1)) {
            let controller = CpuController::new(dir.clone(), dir.clone(), self.v2());
            let value = if self.v2() { self.weight.of_shares(shares) } else { shares };
            self.set("cpu.shares", controller.set_shares(value))?;
        }
        if self.v2() {
            self.bandwidth_v2(&dir, cpu)?
        } else {
            self.bandwidth_v1(&dir, cpu)?
        }
        self.realtime(&dir, cpu)
    }

    fn idle(&self, dir: &Path, idle: i64) -> Result<(), Error> {
        let file = dir.join("cpu.idle");
        // Not to be idle is all that kernels before 5.15 know.
        if idle == 0 && !file.exists() {
            return Ok(());
        }
        self.put("cpu.idle", &file, &idle.to_string())
    }

    /// Writes what may be refused before the quota, then the quota, then again what was refused.
    fn around(&self, dir: &Path, values: Vec<Pending>, quota: Option<Pending>) -> Result<(), Error> {
        let mut refused = Vec::new();
        for pending in values {
            match self.put(pending.0, &dir.join(pending.1), &pending.2) {
                Err(_) if quota.is_some() => refused.push(pending),
                other => other?,
            }
        }
        quota.into_iter().chain(refused).try_for_each(|p| self.put(p.0, &dir.join(p.1), &p.2))
    }

    /// A burst of nothing is what a kernel without bursts (before 5.14) has anyway.
    fn burst(&self, dir: &Path, cpu: &LinuxCpu, file: &'static str) -> Option<Pending> {
        let burst = cpu.burst().filter(|b| *b != 0 || dir.join(file).exists())?;
        Some(Pending("cpu.burst", file, burst.to_string()))
    }

    /// A shorter period, or a bigger burst, may not fit the quota in force: then the quota has to change first.
    fn bandwidth_v1(&self, dir: &Path, cpu: &LinuxCpu) -> Result<(), Error> {
        let period = cpu.period().filter(|p| *p != 0);
        let period = period.map(|p| Pending("cpu.period", "cpu.cfs_period_us", p.to_string()));
        let burst = self.burst(dir, cpu, "cpu.cfs_burst_us");
        let quota = cpu.quota().filter(|q| *q != 0);
        let quota = quota.map(|q| Pending("cpu.quota", "cpu.cfs_quota_us", q.to_string()));
        self.around(dir, period.into_iter().chain(burst).collect(), quota)
    }

    /// Quota and period share a file; the one that is not given stays.
    fn bandwidth_v2(&self, dir: &Path, cpu: &LinuxCpu) -> Result<(), Error> {
        let quota = cpu.quota().filter(|q| *q != 0);
        let period = cpu.period().filter(|p| *p != 0);
        let mut both = None;
        if quota.is_some() || period.is_some() {
            let now = path::read_optional(&dir.join("cpu.max"))?.unwrap_or_default();
            let mut now = now.split_ascii_whitespace();
            let (old_quota, old_period) = (now.next().unwrap_or("max"), now.next().unwrap_or("100000"));
            let quota = match quota {
                Some(q) if q > 0 => q.to_string(),
                Some(_) => "max".to_owned(),
                None => old_quota.to_owned(),
            };
            let period = period.map_or_else(|| old_period.to_owned(), |p| p.to_string());
            both = Some(Pending("cpu.quota", "cpu.max", format!("{quota} {period}")));
        }
        self.around(dir, self.burst(dir, cpu, "cpu.max.burst").into_iter().collect(), both)
    }

    fn realtime(&self, dir: &Path, cpu: &LinuxCpu) -> Result<(), Error> {
        let period = cpu.realtime_period().filter(|p| *p != 0);
        let runtime = cpu.realtime_runtime().filter(|r| *r != 0);
        if self.v2() && (period.is_some() || runtime.is_some()) {
            return Err(self.refuse("cpu.realtimeRuntime", "cgroup v2 has no realtime limits"));
        }
        let period = period.map(|p| Pending("cpu.realtimePeriod", "cpu.rt_period_us", p.to_string()));
        let runtime = runtime.map(|r| Pending("cpu.realtimeRuntime", "cpu.rt_runtime_us", r.to_string()));
        self.around(dir, period.into_iter().collect(), runtime)
    }

    pub(super) fn cpuset(&self, cpu: &LinuxCpu) -> Result<(), Error> {
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
}
