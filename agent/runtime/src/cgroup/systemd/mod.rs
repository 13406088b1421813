//! The systemd driver: a container's cgroup is a transient scope that systemd makes.
//!
//! Where systemd manages the tree, no other program should make cgroups in it without being asked to (see
//! <https://systemd.io/CGROUP_DELEGATION>). A scope is made with `Delegate=yes`, which hands what is below it, and the
//! files in it, to the runtime. Limits are set twice, as runc and crun do: as properties of the unit, so that systemd
//! does not reset them when it reloads, and in the files, since not every limit has a property.
//!
//! * `names`: from `linux.cgroupsPath` to units and folders.
//! * `properties`: from the OCI resources to properties of a unit; `annotations`: those that a container brings itself.
//! * `manager`: what systemd is asked to do, over a `bus`, in `message`s. That is an own small client of D-Bus: the engine
//!   forks, so there may be no thread, and the shim, in which this code is too, is to stay small (see ARCHITECTURE.md).

mod annotations;
mod bus;
mod manager;
mod message;
mod names;
mod properties;

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;

use super::{CpuWeight, Error, Version};
use bus::{Connection, Failure, Whose};
pub use names::scope_words;
#[cfg(feature = "agent")]
pub use names::slice_path;
use names::unit_of;

/// The cgroup of the container `id` with this `linux.cgroupsPath`, `slice:prefix:name`.
///
/// # Errors
/// When that is not the form of the path, or a user's manager cannot be asked where it has its cgroups.
pub fn path_of(id: &str, cgroups_path: Option<&str>) -> Result<String, Error> {
    let whose = Whose::own();
    let path = names::path_of(id, cgroups_path, whose)?;
    if whose == Whose::System {
        return Ok(path);
    }
    let root = ask("find the cgroup of", "the user's manager", manager::root)?;
    Ok(format!("{root}{path}"))
}

/// Starts the scope of a path made by [`path_of`] with one process in it. Parent slices come by themselves.
pub fn start(
    path: &str,
    pid: i32,
    version: Version,
    limits: &LinuxResources,
    annotations: Option<&HashMap<String, String>>,
) -> Result<(), Error> {
    let (slice, unit) = unit(path)?;
    let mut list = properties::of_scope(slice, unit, pid, version);
    list.extend(properties::of_limits(limits, version, CpuWeight::default()));
    let asked_for = annotations::properties(annotations).map_err(|(key, text)| {
        Error::systemd("set", key, format!("{text:?} is not a value for a property"))
    })?;
    // What is asked for wins.
    list.retain(|(name, _)| !asked_for.iter().any(|(n, _)| n == name));
    list.extend(asked_for);
    ask("start", unit, |bus| manager::start(bus, unit, list))
}

/// Makes a slice, or sets the limits of one that is there.
pub fn slice(path: &str, version: Version, limits: &LinuxResources, weight: CpuWeight) -> Result<(), Error> {
    let (_, unit) = unit(path)?;
    let first = properties::of_slice(unit, version);
    let limits = properties::of_limits(limits, version, weight);
    ask("start", unit, |bus| manager::ensure(bus, unit, first, limits))
}

/// Changes the limits of a running unit that have properties.
pub fn update(path: &str, version: Version, limits: &LinuxResources, weight: CpuWeight) -> Result<(), Error> {
    let (_, unit) = unit(path)?;
    let list = properties::of_limits(limits, version, weight);
    if list.is_empty() {
        return Ok(());
    }
    ask("set properties of", unit, |bus| manager::set(bus, unit, list))
}

/// Stops a unit; one that does not exist is fine.
pub fn stop(path: &str) -> Result<(), Error> {
    let (_, unit) = unit(path)?;
    ask("stop", unit, |bus| manager::stop(bus, unit))
}

/// Whether systemd is PID 1 and says that the machine is about to end (`systemctl is-system-running`: `stopping`).
///
/// # Errors
/// When it cannot be asked, as where something else is PID 1.
#[cfg(feature = "agent")]
pub fn machine_is_stopping() -> Result<bool, Error> {
    Connection::to_pid_1()
        .and_then(|mut bus| manager::stopping(&mut bus))
        .map_err(|failure| Error::systemd("ask for the state of", "the machine", failure.to_string()))
}

fn unit(path: &str) -> Result<(&str, &str), Error> {
    unit_of(path).ok_or_else(|| Error::systemd("find the unit of", path, "the path does not end in one"))
}

/// Asks the manager of this process's cgroups over a connection of its own.
fn ask<T>(
    operation: &'static str,
    unit: &str,
    work: impl FnOnce(&mut Connection) -> Result<T, Failure>,
) -> Result<T, Error> {
    Connection::open(Whose::own())
        .and_then(|mut bus| work(&mut bus))
        .map_err(|failure| Error::systemd(operation, unit, failure.to_string()))
}
