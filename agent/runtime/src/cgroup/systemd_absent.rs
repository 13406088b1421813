//! What stands for the systemd driver in the shim's own program, which is to stay small and whose cgroups the agent has
//! made: nobody there is asked, and everything is refused.

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;

use super::{CpuWeight, Error, Version};

fn refuse<T>(operation: &'static str, unit: &str) -> Result<T, Error> {
    Err(Error::systemd(operation, unit, "this program has no systemd driver"))
}

/// See `systemd::path_of`.
pub fn path_of(id: &str, _: Option<&str>) -> Result<String, Error> {
    refuse("make a scope for", id)
}

/// See `systemd::start`.
pub fn start(
    path: &str,
    _: i32,
    _: Version,
    _: &LinuxResources,
    _: Option<&HashMap<String, String>>,
) -> Result<(), Error> {
    refuse("start", path)
}

/// See `systemd::update`.
pub fn update(path: &str, _: Version, _: &LinuxResources, _: CpuWeight) -> Result<(), Error> {
    refuse("set properties of", path)
}

/// See `systemd::stop`.
pub fn stop(path: &str) -> Result<(), Error> {
    refuse("stop", path)
}

/// See `systemd::slice`.
pub fn slice(path: &str, _: Version, _: &LinuxResources, _: CpuWeight) -> Result<(), Error> {
    refuse("start", path)
}
