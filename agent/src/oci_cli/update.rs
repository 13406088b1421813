//! `update`: flags or a file to limits.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::args::UpdateArgs;

/// The limits to change; what is not named stays.
pub fn resources(args: &UpdateArgs) -> Result<LinuxResources> {
    match &args.resources {
        Some(path) => of_file(path),
        None => of_flags(args),
    }
}

fn of_file(path: &Path) -> Result<LinuxResources> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().read_to_string(&mut text)
    } else {
        File::open(path).and_then(|mut f| f.read_to_string(&mut text))
    };
    read.with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn of_flags(args: &UpdateArgs) -> Result<LinuxResources> {
    let mut cpu = LinuxCpu::default();
    cpu.set_period(args.cpu_period)
        .set_quota(args.cpu_quota)
        .set_burst(args.cpu_burst)
        .set_shares(args.cpu_share)
        .set_realtime_period(args.cpu_rt_period)
        .set_realtime_runtime(args.cpu_rt_runtime)
        .set_idle(args.cpu_idle)
        .set_cpus(args.cpuset_cpus.clone())
        .set_mems(args.cpuset_mems.clone());
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(bytes("--memory", args.memory.as_deref())?)
        .set_reservation(bytes("--memory-reservation", args.memory_reservation.as_deref())?)
        .set_swap(bytes("--memory-swap", args.memory_swap.as_deref())?);
    let mut resources = LinuxResources::default();
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = args.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if args.blkio_weight.is_some() {
        let mut block = LinuxBlockIo::default();
        block.set_weight(args.blkio_weight);
        resources.set_block_io(Some(block));
    }
    resources.set_devices(None);
    Ok(resources)
}

/// A number of bytes: plain, or with a unit of 1024's powers as in `64m`.
fn bytes(flag: &str, text: Option<&str>) -> Result<Option<i64>> {
    let Some(text) = text else { return Ok(None) };
    let lower = text.to_ascii_lowercase();
    let plain = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, shift) = match plain.chars().last() {
        Some('k') => (&plain[..plain.len() - 1], 10),
        Some('m') => (&plain[..plain.len() - 1], 20),
        Some('g') => (&plain[..plain.len() - 1], 30),
        Some('t') => (&plain[..plain.len() - 1], 40),
        _ => (plain, 0),
    };
    let value: Option<i64> = number.parse::<i64>().ok().and_then(|n| n.checked_mul(1 << shift));
    value.map(Some).with_context(|| format!("{flag}: {text:?} is not a number of bytes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes() {
        for (text, wanted) in
            [("5", 5), ("-1", -1), ("2k", 2048), ("64M", 64 << 20), ("1GiB", 1 << 30), ("3b", 3)]
        {
            assert_eq!(bytes("--memory", Some(text)).unwrap(), Some(wanted), "{text}");
        }
        for bad in ["", "x", "1.5g", "9999999999999g", "m"] {
            assert!(bytes("--memory", Some(bad)).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn only_what_is_named() {
        let args = UpdateArgs { pids_limit: Some(7), ..UpdateArgs::default() };
        let resources = resources(&args).unwrap();
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 7);
        assert!(resources.memory().is_none() && resources.cpu().is_none() && resources.devices().is_none());
    }
}
