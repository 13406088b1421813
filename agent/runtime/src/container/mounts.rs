//! The mounts of a spec, made inside the root file system through descriptors only.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs};
use oci_spec::runtime::{Mount, Spec};

use super::copy_up::copy_up;
use super::handed::source_tree;
use super::mount_options::Options;
use super::root::Kind;
use super::{Error, Root};
use crate::sys::cstring;
use crate::sys::mount::{Attributes, FsContext, attach, attach_below, clone_tree, set_idmap, set_label};

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// The inode of the IPC namespace that the machine starts with (`PROC_IPC_INIT_INO` of linux/proc_ns.h).
const HOST_IPC: u64 = 0xEFFF_FFFF;
/// Files of procfs that a mount may cover: they only tell about resources (lxcfs does this).
const COVERABLE: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/crypto/fips_enabled",
];

/// Makes mounts, one after the other.
pub struct Mounter<'a> {
    /// Where they go.
    pub root: &'a Root,
    /// Where relative bind sources start.
    pub bundle: &'a Path,
    /// The container's cgroup in each hierarchy, see [`crate::cgroup::Cgroups::visible_folders`].
    pub cgroups: &'a [(String, PathBuf)],
    /// The spec's `mountLabel`.
    pub label: Option<&'a str>,
    /// Mounts that become read-only when all is in place, because something is still put into them.
    late_readonly: Vec<OwnedFd>,
}

impl<'a> Mounter<'a> {
    /// Starts with nothing mounted.
    pub fn new(root: &'a Root, bundle: &'a Path, cgroups: &'a [(String, PathBuf)]) -> Self {
        Mounter { root, bundle, cgroups, label: None, late_readonly: Vec::new() }
    }

    /// Makes one mount; `prepared` is its tree if the parent has made it.
    pub fn mount(&mut self, mount: &Mount, prepared: Option<OwnedFd>) -> Result<(), Error> {
        let destination = mount.destination();
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        match mount.typ().as_deref() {
            _ if is_bind(mount, &options) => self.bind(mount, &options, prepared),
            Some("cgroup" | "cgroup2") => self.cgroup(destination, &options),
            Some(fstype) => self.file_system(mount, fstype, &options).map(drop),
            None => Err(refuse(destination, "it has neither a type nor bind among its options")),
        }
    }

    /// Makes read-only what had to stay writable for the mounts inside it.
    pub fn finish(self) -> Result<(), Error> {
        for fd in self.late_readonly {
            Attributes { set: RDONLY, ..Attributes::default() }
                .apply(fd.as_fd(), false)
                .map_err(|e| Error::sys("make read-only", "a tmpfs", e))?;
        }
        Ok(())
    }

    fn bind(&mut self, mount: &Mount, options: &Options, prepared: Option<OwnedFd>) -> Result<(), Error> {
        let tree = prepared.map_or_else(|| bind_tree(mount, options, self.bundle, None), Ok)?;
        let failed = |e| Error::sys("look at source of", mount.destination().display().to_string(), e);
        let folder = file_type(tree.as_fd()).map_err(failed)? == SFlag::S_IFDIR;
        let target =
            self.target(mount.destination(), if folder { Kind::Folder } else { Kind::File }, false)?;
        self.guard_proc(mount.destination(), target.as_fd(), Some(tree.as_fd()))?;
        attach_to(tree.as_fd(), target.as_fd(), mount.destination())?;
        propagate(tree.as_fd(), options, mount.destination())
    }

    /// A new file system; its root is returned.
    fn file_system(&mut self, mount: &Mount, fstype: &str, options: &Options) -> Result<OwnedFd, Error> {
        let destination = mount.destination();
        let kernel = matches!(fstype, "proc" | "sysfs");
        let found = self.root.open_path(destination, OFlag::O_PATH).ok();
        let target = self.target(destination, Kind::Folder, kernel)?;
        if fstype != "proc" {
            self.guard_proc(destination, target.as_fd(), None)?;
        }
        if options.copy_up && fstype != "tmpfs" {
            return Err(refuse(destination, "only a tmpfs can have tmpcopyup"));
        }
        let failed = |operation: String, e| Error::sys(operation, destination.display().to_string(), e);
        let context =
            FsContext::open(fstype).map_err(|e| failed(format!("open file system {fstype} for"), e))?;
        let configured = self
            .set_label(&context, fstype)
            .and_then(|()| inherit_mode(&context, fstype, options, found.as_ref().map(AsFd::as_fd)))
            .and_then(|()| configure(&context, mount, fstype, options));
        let late = options.attributes.set & RDONLY != 0 && fstype == "tmpfs";
        let attributes = options.attributes.set & !if late { RDONLY } else { 0 };
        let mounted = configured.and_then(|()| context.mount(attributes)).map_err(|e| {
            let why = context.complaint();
            failed(
                if why.is_empty() {
                    format!("mount {fstype} on")
                } else {
                    format!("mount {fstype} ({why}) on")
                },
                e,
            )
        })?;
        attach_to(mounted.as_fd(), target.as_fd(), destination)?;
        if let Some(label) = self.label.filter(|_| fstype == "mqueue") {
            label_queues(mounted.as_fd(), label).map_err(|e| failed(format!("label with {label}"), e))?;
        }
        if options.copy_up {
            copy_up(target.as_fd(), mounted.as_fd())
                .map_err(|e| failed("copy the image's files to the tmpfs on".to_owned(), e))?;
        }
        propagate(mounted.as_fd(), options, destination)?;
        if late {
            let copy = mounted.try_clone();
            self.late_readonly.push(copy.map_err(|e| failed("keep open the tmpfs on".to_owned(), e))?);
        }
        Ok(mounted)
    }

    /// Labels a new file system for SELinux. Those of the kernel itself have labels of their own; see [`label_queues`].
    fn set_label(&self, context: &FsContext, fstype: &str) -> io::Result<()> {
        match self.label {
            Some(label) if !matches!(fstype, "proc" | "sysfs" | "mqueue") => {
                context.set("context", &cstring(label)?)
            }
            _ => Ok(()),
        }
    }

    /// The container's own cgroup. A bind of its folder shows the same as a new mount in a cgroup namespace would,
    /// and needs none. On v1 a tmpfs carries one folder per hierarchy.
    fn cgroup(&mut self, destination: &Path, options: &Options) -> Result<(), Error> {
        if let [(name, folder)] = self.cgroups
            && name.is_empty()
        {
            let target = self.target(destination, Kind::Folder, true)?;
            let tree = cgroup_tree(folder, options)?;
            return attach_to(tree.as_fd(), target.as_fd(), destination);
        }
        let mut outer = Mount::default();
        outer.set_destination(destination.to_owned()).set_typ(Some("tmpfs".to_owned()));
        let list = ["nosuid", "nodev", "noexec", "mode=755", "size=1m", "ro"];
        let ro = options.attributes.set & RDONLY != 0;
        let tmpfs = self.file_system(&outer, "tmpfs", &Options::parse(&list[..if ro { 6 } else { 5 }]))?;
        let failed = |operation: &str, name: &str, e: io::Error| {
            Error::sys(operation, format!("{}/{name}", destination.display()), e)
        };
        for (name, folder) in self.cgroups {
            let tree = match cgroup_tree(folder, options) {
                Err(Error::Sys { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            // Nobody but this process has the tmpfs yet.
            mkdirat(&tmpfs, name.as_str(), Mode::from_bits_truncate(0o755))
                .map_err(|e| failed("create mount point", name, e.into()))?;
            cstring(name)
                .and_then(|path| attach_below(tree.as_fd(), tmpfs.as_fd(), &path))
                .map_err(|e| failed("mount on", name, e))?;
            // Programs look for the single names where controllers share a hierarchy.
            for alias in name.split(',').filter(|alias| alias != name) {
                nix::unistd::symlinkat(name.as_str(), &tmpfs, alias)
                    .map_err(|e| failed("link", alias, e.into()))?;
            }
        }
        Ok(())
    }

    /// Finds or makes the place of a mount. Kernel file systems are never mounted behind a link, which could lead
    /// to a place that the masked and read-only paths do not cover (CVE-2019-19921, CVE-2023-27561).
    fn target(&self, destination: &Path, kind: Kind, plain: bool) -> Result<OwnedFd, Error> {
        if !plain {
            return self.root.ensure(destination, kind);
        }
        match self.root.open_plain(destination, OFlag::O_PATH) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.root.ensure(destination, kind)?;
                self.root.open_plain(destination, OFlag::O_PATH)
            }
            other => other,
        }
        .map_err(|e| Error::sys("refuse a link in the mount point", destination.display().to_string(), e))
    }

    /// A mount over a part of procfs would hide what the masked and read-only paths are about, or fool whoever writes
    /// there (CVE-2019-16884, CVE-2025-52881).
    fn guard_proc(
        &self,
        destination: &Path,
        target: BorrowedFd<'_>,
        source: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let is_proc =
            |fd: BorrowedFd<'_>| fstatfs(fd).map(|s| s.filesystem_type() == FsType(PROC_SUPER_MAGIC.0));
        let failed = |e: nix::Error| Error::sys("look at", destination.display().to_string(), e.into());
        if !is_proc(target).map_err(failed)? {
            // The place of /proc itself, before procfs is there, takes procfs and nothing else.
            let normal: PathBuf = destination.components().collect();
            let over_all = normal == Path::new("/proc");
            let from_proc = source.map(is_proc).transpose().map_err(failed)?.unwrap_or(false);
            return if over_all && !from_proc {
                Err(refuse(destination, "only procfs may be mounted on /proc"))
            } else {
                Ok(())
            };
        }
        if COVERABLE.iter().any(|p| Path::new(p) == destination) {
            return Ok(());
        }
        Err(refuse(destination, "it is inside procfs"))
    }
}

/// Labels the message queues of an IPC namespace, which all mounts in it show, so that no mount option can. Those of the host are
/// the host's.
fn label_queues(mounted: BorrowedFd<'_>, label: &str) -> io::Result<()> {
    if fs::metadata("/proc/thread-self/ns/ipc")?.ino() == HOST_IPC {
        return Ok(());
    }
    match set_label(mounted, &cstring(label)?) {
        // The policy does not have their files labelled.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// The folder of a cgroup as a mount that is attached nowhere.
fn cgroup_tree(folder: &Path, options: &Options) -> Result<OwnedFd, Error> {
    let failed = |e| Error::sys("bind mount", folder.display().to_string(), e);
    let tree = clone_tree(None, folder, false).map_err(failed)?;
    let set =
        options.attributes.set | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    Attributes { set, clear: options.attributes.clear & libc::MOUNT_ATTR__ATIME, propagation: 0 }
        .apply(tree.as_fd(), false)
        .map_err(failed)?;
    Ok(tree)
}

/// Whether a mount is a bind.
pub fn is_bind(mount: &Mount, options: &Options) -> bool {
    options.bind.is_some() || mount.typ().as_deref() == Some("bind")
}

/// Options of a bind mount that only a new file system could have, each as a warning. mount(2) takes no notice of them, nor
/// does crun.
pub fn without_effect(spec: &Spec) -> impl Iterator<Item = String> {
    spec.mounts().iter().flatten().filter_map(|mount| {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        let names: Vec<&str> = options.data.iter().map(|(key, _)| key.as_str()).collect();
        (is_bind(mount, &options) && !names.is_empty()).then(|| {
            let destination = mount.destination().display();
            format!("mounts[{destination}]: a bind mount takes no notice of the option {}", names.join(", "))
        })
    })
}

/// What a bind mount shows, with its attributes, mapped by a user namespace if one is given; attached nowhere.
pub fn bind_tree(
    mount: &Mount,
    options: &Options,
    bundle: &Path,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Error> {
    let source =
        mount.source().as_ref().ok_or_else(|| refuse(mount.destination(), "a bind needs a source"))?;
    let source = bundle.join(source);
    let recursive = options.bind == Some(true);
    let failed = |e| Error::sys("bind mount", source.display().to_string(), e);
    let tree = source_tree(&source, recursive).map_err(failed)?;
    // `rw`, `exec` and their like do not loosen what the source has: that is how others read the spec.
    let tighten =
        Attributes { clear: options.attributes.clear & libc::MOUNT_ATTR__ATIME, ..options.attributes };
    for (attributes, recursive) in [(tighten, false), (options.recursive, true)] {
        if !attributes.is_empty() {
            attributes.apply(tree.as_fd(), recursive).map_err(failed)?;
        }
    }
    if let Some(namespace) = idmap {
        set_idmap(tree.as_fd(), namespace, options.idmap == Some(true))
            .map_err(|e| Error::sys("map the users of", source.display().to_string(), e))?;
    }
    Ok(tree)
}

pub fn refuse(destination: &Path, reason: impl Into<String>) -> Error {
    Error::spec(format!("mounts[{}]", destination.display()), reason)
}

pub fn file_type(fd: BorrowedFd<'_>) -> io::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode & SFlag::S_IFMT.bits()))
}

pub fn attach_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>, destination: &Path) -> Result<(), Error> {
    attach(mount, target).map_err(|e| Error::sys("mount on", destination.display().to_string(), e))
}

fn propagate(mount: BorrowedFd<'_>, options: &Options, destination: &Path) -> Result<(), Error> {
    for (flag, recursive) in &options.propagation {
        Attributes { propagation: *flag, ..Attributes::default() }
            .apply(mount, *recursive)
            .map_err(|e| Error::sys("set mount propagation of", destination.display().to_string(), e))?;
    }
    Ok(())
}

/// A tmpfs has the mode of the folder that it covers, as with crun and runc, unless it is to have another; `found` is that folder.
fn inherit_mode(
    context: &FsContext,
    fstype: &str,
    options: &Options,
    found: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    match found {
        Some(folder) if fstype == "tmpfs" && !options.data.iter().any(|(key, _)| key == "mode") => {
            let mode = fstat(folder)?.st_mode & 0o7777;
            context.set("mode", &cstring(format!("{mode:o}"))?)
        }
        _ => Ok(()),
    }
}

fn configure(context: &FsContext, mount: &Mount, fstype: &str, options: &Options) -> io::Result<()> {
    if let Some(source) = mount.source() {
        context.set("source", &cstring(source.as_os_str())?)?;
    }
    // procfs, sysfs and their like are one for many containers; only a disk must not be written to at all.
    let shared = matches!(fstype, "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "ramfs");
    if options.attributes.set & RDONLY != 0 && !shared {
        context.flag("ro")?;
    }
    for flag in &options.flags {
        context.flag(flag)?;
    }
    for (key, value) in &options.data {
        match (key.as_str(), value) {
            // An instance of devpts is always new since Linux 4.7.
            ("newinstance", None) if fstype == "devpts" => {}
            (key, Some(value)) => context.set(key, &cstring(value)?)?,
            (key, None) => context.flag(key)?,
        }
    }
    Ok(())
}

/// Opens a device of the host and makes sure that it is the one meant (CVE-2025-31133).
pub fn open_device(path: &Path, major: u64, minor: u64, flags: OFlag) -> io::Result<OwnedFd> {
    let fd = nix::fcntl::open(path, flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())?;
    check_device(fd.as_fd(), major, minor)?;
    Ok(fd)
}

/// Fails unless `fd` is the character device with these numbers.
pub fn check_device(fd: BorrowedFd<'_>, major: u64, minor: u64) -> io::Result<()> {
    let stat = fstat(fd)?;
    let device = file_type(fd)? == SFlag::S_IFCHR && stat.st_rdev == nix::sys::stat::makedev(major, minor);
    if device { Ok(()) } else { Err(io::Error::other(format!("it is not the device {major}:{minor}"))) }
}
