//! Memory and swap. v1 and the OCI spec count swap and memory together, v2 counts swap on its own.
//!
//! `memory.kernel` is taken and has no effect, as with runc: Linux 5.16 and later have no such limit.

use std::path::Path;

use oci_spec::runtime::LinuxMemory;

use super::Target;
use crate::cgroup::{Error, path};

impl Target<'_> {
    pub(super) fn memory(&self, memory: &LinuxMemory) -> Result<(), Error> {
        let dir = self.folder("memory", "memory")?;
        let limit = memory.limit().filter(|l| *l != 0);
        if let (Some(limit), Some(true)) = (limit, memory.check_before_update()) {
            self.check(&dir, limit)?;
        }
        if self.v2() { self.memory_v2(&dir, memory, limit) } else { self.memory_v1(&dir, memory, limit) }
    }

    /// Refuses a limit that would have processes killed at once.
    fn check(&self, dir: &Path, limit: i64) -> Result<(), Error> {
        let file = if self.v2() { "memory.current" } else { "memory.usage_in_bytes" };
        let used: i64 = path::read(&dir.join(file))?.trim().parse().unwrap_or(0);
        if limit < 0 || used <= limit {
            return Ok(());
        }
        Err(self.refuse("memory.limit", format!("{limit} is below the current use of {used}")))
    }

    fn memory_v2(&self, dir: &Path, memory: &LinuxMemory, limit: Option<i64>) -> Result<(), Error> {
        if memory.swappiness().is_some() {
            return Err(self.refuse("memory.swappiness", "cgroup v2 has no swappiness of its own"));
        }
        if memory.disable_oom_killer() == Some(true) {
            return Err(self.refuse("memory.disableOOMKiller", "cgroup v2 always has the killer"));
        }
        let current = || -> Result<i64, Error> {
            // What is not a number is "max".
            let text = path::read_optional(&dir.join("memory.max"))?.unwrap_or_default();
            Ok(text.trim().parse().unwrap_or(-1))
        };
        let swap = memory.swap().filter(|s| *s != 0);
        let base = match (limit, swap) {
            (None, Some(swap)) if swap > 0 => current()?,
            _ => limit.unwrap_or(0),
        };
        match v2_swap(base, swap).map_err(|reason| self.refuse("memory.swap", reason))? {
            // Without swap there is nothing to limit: "none" and "as much as you like" hold by themselves.
            Some(value) if value <= 0 && !dir.join("memory.swap.max").exists() => {}
            Some(value) => self.put("memory.swap", &dir.join("memory.swap.max"), &v2_value(value))?,
            None => {}
        }
        if let Some(limit) = limit {
            self.put("memory.limit", &dir.join("memory.max"), &v2_value(limit))?;
        }
        match memory.reservation().filter(|r| *r != 0) {
            // No limit below which it is protected: not protected at all.
            Some(r) => self.put("memory.reservation", &dir.join("memory.low"), &r.max(0).to_string()),
            None => Ok(()),
        }
    }

    fn memory_v1(&self, dir: &Path, memory: &LinuxMemory, limit: Option<i64>) -> Result<(), Error> {
        if memory.use_hierarchy() == Some(true) {
            // Linux 5.11 and later know nothing else.
            match path::read_optional(&dir.join("memory.use_hierarchy"))? {
                Some(text) if text.trim() == "0" => {
                    self.put("memory.useHierarchy", &dir.join("memory.use_hierarchy"), "1")?;
                }
                _ => {}
            }
        }
        self.limits_v1(dir, limit, memory.swap().filter(|s| *s != 0))?;
        if let Some(r) = memory.reservation().filter(|r| *r != 0) {
            self.put("memory.reservation", &dir.join("memory.soft_limit_in_bytes"), &r.to_string())?;
        }
        if let Some(swappiness) = memory.swappiness() {
            self.put("memory.swappiness", &dir.join("memory.swappiness"), &swappiness.to_string())?;
        }
        if let Some(disable) = memory.disable_oom_killer() {
            let file = dir.join("memory.oom_control");
            let now = path::keyed(&path::read(&file)?, "oom_kill_disable") == Some(1);
            if disable != now {
                self.put("memory.disableOOMKiller", &file, if disable { "1" } else { "0" })?;
            }
        }
        match memory.kernel_tcp().filter(|t| *t != 0) {
            Some(tcp) => {
                self.put("memory.kernelTCP", &dir.join("memory.kmem.tcp.limit_in_bytes"), &tcp.to_string())
            }
            None => Ok(()),
        }
    }

    /// v1 refuses a memory limit above the limit of memory and swap, so that the order of the two writes matters.
    fn limits_v1(&self, dir: &Path, limit: Option<i64>, swap: Option<i64>) -> Result<(), Error> {
        let both = dir.join("memory.memsw.limit_in_bytes");
        let current = path::read_optional(&both)?.and_then(|t| t.trim().parse::<u64>().ok());
        // To be unlimited means both, when nothing is said of swap.
        let swap = if limit == Some(-1) && current.is_some() { swap.or(Some(-1)) } else { swap };
        let swap_first = match (swap, current) {
            (Some(-1), _) => true,
            (Some(new), Some(current)) => new as u64 > current,
            _ => false,
        };
        let set_swap = || match swap {
            None => Ok(()),
            // Without swap accounting there is nothing to limit; "no swap" and "no limit" hold by themselves.
            Some(new) if current.is_none() && (new == -1 || Some(new) == limit) => Ok(()),
            Some(new) => self.put("memory.swap", &both, &new.to_string()),
        };
        if swap_first {
            set_swap()?;
        }
        if let Some(limit) = limit {
            self.put("memory.limit", &dir.join("memory.limit_in_bytes"), &limit.to_string())?;
        }
        if swap_first { Ok(()) } else { set_swap() }
    }
}

fn v2_value(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// The v2 swap limit for an OCI memory limit and an OCI limit of memory and swap together; -1 is "no limit", a memory
/// limit of 0 "not given". Nothing when swap is to stay as it is.
pub fn v2_swap(limit: i64, swap: Option<i64>) -> Result<Option<i64>, &'static str> {
    match (limit, swap) {
        (-1, None) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some(-1)),
        (-1, Some(swap)) => Ok(Some(swap)),
        (limit, Some(swap)) if limit > 0 && swap >= limit => Ok(Some(swap - limit)),
        (0, Some(_)) => Err("it needs a memory.limit"),
        _ => Err("it counts memory too and must not be below memory.limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::v2_swap;

    #[test]
    fn swap_alone_from_swap_with_memory() {
        for (limit, swap, expected) in [
            (100, None, Ok(None)),
            (-1, None, Ok(Some(-1))),
            (100, Some(-1), Ok(Some(-1))),
            (0, Some(-1), Ok(Some(-1))),
            (100, Some(100), Ok(Some(0))),
            (100, Some(150), Ok(Some(50))),
            (-1, Some(150), Ok(Some(150))),
        ] {
            assert_eq!(v2_swap(limit, swap), expected, "{limit} {swap:?}");
        }
        assert!(v2_swap(100, Some(50)).is_err() && v2_swap(0, Some(50)).is_err());
    }
}
