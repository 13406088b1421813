//! Setting the limits of an OCI `LinuxResources` on one cgroup.
//!
//! The controllers of `cgroups-rs` write the plain values; the conversions and the order of writes that it leaves to
//! its callers are here. A limit whose controller or file the machine lacks is an error; asking for nothing is not.

mod block_io;
mod cpu;
mod memory;

pub use block_io::io_weight;
pub use memory::v2_swap;

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::error::Error as LibraryError;
use cgroups_rs::fs::pid::PidController;
use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxPids, LinuxRdma, LinuxResources};

use super::hierarchy::Hierarchy;
use super::weight::CpuWeight;
use super::{Error, devices, path, rights};

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
            self.rdma(device, limit)?;
        }
        if let Some(rules) = resources.devices().as_ref().filter(|r| !r.is_empty()) {
            match devices::apply(self.hierarchy, &self.folder("devices", "devices")?, rules) {
                // Who may not make rules may not make device nodes either, and those of others have their own guard.
                Err(error) if rights::is_denied(&error) && rights::rootless() => {}
                other => other?,
            }
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

    /// Writes a value; an error names the resource, and the file that a kernel or a controller lacks.
    fn put(&self, resource: &str, file: &Path, value: &str) -> Result<(), Error> {
        path::write(file, value).map_err(|e| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            match e {
                e if e.is_not_found() => {
                    self.refuse(resource, format!("there is no {name}: kernel or controller lacks it"))
                }
                Error::Io { source, .. } => {
                    self.refuse(resource, format!("write {value:?} to {name}: {source}"))
                }
                other => other,
            }
        })
    }

    /// Zero leaves the limit as it is, as runc and crun have it; a negative number takes it away.
    fn pids(&self, pids: LinuxPids) -> Result<(), Error> {
        if pids.limit() == 0 {
            return Ok(());
        }
        let dir = self.folder("pids", "pids.limit")?;
        let controller = PidController::new(dir.clone(), dir, self.v2());
        let limit = if pids.limit() > 0 { MaxValue::Value(pids.limit()) } else { MaxValue::Max };
        self.set("pids.limit", controller.set_pid_max(limit))
    }

    /// Limits both the use and the reservation of huge pages, of which the latter exists since Linux 5.7.
    fn hugepages(&self, limit: &LinuxHugepageLimit) -> Result<(), Error> {
        let size = limit.page_size();
        let resource = format!("hugepageLimits.{size}");
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(self.refuse(resource, "that is no page size; one is 2MB"));
        }
        let (kind, reserved) =
            if self.v2() { ("max", "rsvd.max") } else { ("limit_in_bytes", "rsvd.limit_in_bytes") };
        // Where huge pages cannot be counted there are none to have.
        let optional = |result: Result<(), Error>| if limit.limit() == 0 { Ok(()) } else { result };
        let dir = match self.folder("hugetlb", &resource) {
            Ok(dir) => dir,
            Err(e) => return optional(Err(e)),
        };
        let value = match u64::try_from(limit.limit()) {
            Ok(value) => value.to_string(),
            Err(_) if self.v2() => "max".to_owned(),
            Err(_) => i64::MAX.to_string(),
        };
        let file = dir.join(format!("hugetlb.{size}.{kind}"));
        if !file.exists() {
            return optional(Err(self.refuse(resource, "this machine has no such huge pages to limit")));
        }
        self.put(&resource, &file, &value)?;
        let file = dir.join(format!("hugetlb.{size}.{reserved}"));
        if file.exists() { self.put(&resource, &file, &value) } else { Ok(()) }
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
            let resource = "network.classID";
            let file = self.folder("net_cls", resource)?.join("net_cls.classid");
            self.put(resource, &file, &class.to_string())?;
        }
        for p in priorities {
            let resource = "network.priorities";
            let file = self.folder("net_prio", resource)?.join("net_prio.ifpriomap");
            self.put(resource, &file, &format!("{} {}", p.name(), p.priority()))?;
        }
        Ok(())
    }

    fn rdma(&self, device: &str, limit: &LinuxRdma) -> Result<(), Error> {
        let part = |key, v: Option<u32>| v.map_or(String::new(), |v| format!(" {key}={v}"));
        let (handles, objects) =
            (part("hca_handle", limit.hca_handles()), part("hca_object", limit.hca_objects()));
        let resource = format!("rdma.{device}");
        let file = self.folder("rdma", &resource)?.join("rdma.max");
        self.put(&resource, &file, &format!("{device}{handles}{objects}"))
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
            let resource = format!("unified.{file}");
            if file.contains('/') || !file.contains('.') {
                return Err(self.refuse(resource, "it is not the name of a cgroup file"));
            }
            // Some files, such as io.max, take one device per write.
            for line in value.lines() {
                self.put(&resource, &dir.join(file), line)?;
            }
        }
        Ok(())
    }
}
