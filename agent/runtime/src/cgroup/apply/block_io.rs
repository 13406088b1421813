//! Weights and limits of block devices. See blkio-controller.rst (v1) and the IO part of cgroup-v2.rst (v2).

use std::path::Path;

use oci_spec::runtime::LinuxBlockIo;

use super::Target;
use crate::cgroup::Error;

/// The four throttles: name in the OCI spec, file on v1, key in `io.max` on v2.
const THROTTLES: [(&str, &str, &str); 4] = [
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
];

impl Target<'_> {
    pub(super) fn block_io(&self, io: &LinuxBlockIo) -> Result<(), Error> {
        let dir = self.folder("blkio", "blockIO")?;
        if let Some(weight) = io.weight().filter(|w| *w != 0) {
            self.io_weight(&dir, None, weight)?;
        }
        if let Some(weight) = io.leaf_weight().filter(|w| *w != 0) {
            self.leaf_weight(&dir, None, weight)?;
        }
        for device in io.weight_device().iter().flatten() {
            let numbers = (device.major(), device.minor());
            if let Some(weight) = device.weight().filter(|w| *w != 0) {
                self.io_weight(&dir, Some(numbers), weight)?;
            }
            if let Some(weight) = device.leaf_weight().filter(|w| *w != 0) {
                self.leaf_weight(&dir, Some(numbers), weight)?;
            }
        }
        let lists = [
            io.throttle_read_bps_device(),
            io.throttle_write_bps_device(),
            io.throttle_read_iops_device(),
            io.throttle_write_iops_device(),
        ];
        for ((name, file, key), devices) in THROTTLES.into_iter().zip(lists) {
            for d in devices.iter().flatten() {
                let device = format!("{}:{}", d.major(), d.minor());
                let (file, value) = match d.rate() {
                    // Zero lifts a limit; v2 has a word for that.
                    0 if self.v2() => ("io.max", format!("{device} {key}=max")),
                    rate if self.v2() => ("io.max", format!("{device} {key}={rate}")),
                    rate => (file, format!("{device} {rate}")),
                };
                self.put(&format!("blockIO.{name}"), &dir.join(file), &value)?;
            }
        }
        Ok(())
    }

    /// The weight's file depends on the scheduler: BFQ has its own, and io.weight counts from 1 to 10000 instead of
    /// from 10 to 1000.
    fn io_weight(&self, dir: &Path, device: Option<(i64, i64)>, weight: u16) -> Result<(), Error> {
        let files: [(&str, u64); 2] = if self.v2() {
            [("io.bfq.weight", u64::from(weight)), ("io.weight", io_weight(weight))]
        } else if device.is_some() {
            [("blkio.bfq.weight_device", u64::from(weight)), ("blkio.weight_device", u64::from(weight))]
        } else {
            [("blkio.bfq.weight", u64::from(weight)), ("blkio.weight", u64::from(weight))]
        };
        match files.into_iter().find(|(file, _)| dir.join(file).exists()) {
            Some((file, value)) => self.put("blockIO.weight", &dir.join(file), &line(device, value)),
            None => Err(self.refuse("blockIO.weight", "this kernel has no scheduler that weighs")),
        }
    }

    /// Only the CFQ scheduler, which Linux 5.0 dropped, weighed a cgroup's own processes against its children.
    fn leaf_weight(&self, dir: &Path, device: Option<(i64, i64)>, weight: u16) -> Result<(), Error> {
        let file = if device.is_some() { "blkio.leaf_weight_device" } else { "blkio.leaf_weight" };
        if self.v2() || !dir.join(file).exists() {
            return Err(self.refuse("blockIO.leafWeight", "this kernel has no scheduler that knows it"));
        }
        self.put("blockIO.leafWeight", &dir.join(file), &line(device, u64::from(weight)))
    }
}

fn line(device: Option<(i64, i64)>, value: u64) -> String {
    device.map_or_else(|| value.to_string(), |(a, b)| format!("{a}:{b} {value}"))
}

/// From the range of v1 (10 to 1000) to that of io.weight (1 to 10000), by the formula of runc and crun.
pub fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::io_weight;

    #[test]
    fn both_ends_of_the_range() {
        assert_eq!([10, 500, 1000].map(io_weight), [1, 4950, 10_000]);
    }
}
