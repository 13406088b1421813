//! `/dev` of a container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use super::mounts::attach_to;
use super::root::Kind;
use super::sources::Sources;
use super::user_namespace::Maps;
use super::{Error, Root};
use crate::sys::mount::{FsContext, clone_tree};

/// What the OCI spec promises every container, with the numbers of Linux' device list.
const DEFAULTS: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The rules that a container's cgroup gets after its own: the default devices, terminals, and making device files,
/// which gives no access by itself.
pub fn default_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true).set_typ(Some(kind)).set_major(major).set_minor(minor);
        rule.set_access(Some(access.to_owned()));
        rule
    };
    let c = LinuxDeviceType::C;
    let mut rules = vec![rule(c, None, None, "m"), rule(LinuxDeviceType::B, None, None, "m")];
    rules.extend(DEFAULTS.iter().map(|(_, a, b)| rule(c, Some(*a as i64), Some(*b as i64), "rwm")));
    // /dev/console, the slaves of devpts, its master.
    rules.extend([
        rule(c, Some(5), Some(1), "rwm"),
        rule(c, Some(136), None, "rwm"),
        rule(c, Some(5), Some(2), "rwm"),
    ]);
    rules
}

/// Makes the default devices, the links and the spec's own devices. A `/dev` that the spec binds from the host stays
/// as it is.
///
/// Those that the parent has made are taken from `sources`.
pub fn populate(root: &Root, spec: &Spec, sources: &mut Sources) -> Result<(), Error> {
    let host_dev = spec.mounts().iter().flatten().any(|m| {
        let bind = |o: &String| o == "bind" || o == "rbind";
        m.destination().components().eq(Path::new("/dev").components())
            && (m.typ().as_deref() == Some("bind") || m.options().iter().flatten().any(bind))
    });
    if host_dev {
        return Ok(());
    }
    let dev = root.ensure(Path::new("/dev"), Kind::Folder)?;
    for (name, major, minor) in DEFAULTS {
        let node = Node { kind: SFlag::S_IFCHR, mode: 0o666, number: makedev(major, minor), owner: None };
        node.make(dev.as_fd(), Path::new(name), Path::new("/dev").join(name))?;
    }
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) => {}
            Err(Errno::EEXIST) => relink(dev.as_fd(), name, target)?,
            Err(e) => return Err(Error::sys("link", format!("/dev/{name}"), e.into())),
        }
    }
    let wanted = spec.linux().as_ref().and_then(|l| l.devices().as_ref()).into_iter().flatten();
    // The master of the terminals is there already: that of the container's own devpts, which no device file could be.
    for (at, device) in wanted.enumerate().filter(|(_, device)| device.path() != Path::new("/dev/ptmx")) {
        match sources.take_device(at) {
            Some(made) => attach_device(root, device, made.as_fd())?,
            None => make_device(root, device)?,
        }
    }
    Ok(())
}

/// An image may bring its own `/dev/ptmx` and the like; the mount point of a bound file stays.
fn relink(dev: BorrowedFd<'_>, name: &str, target: &str) -> Result<(), Error> {
    let replaced =
        unlinkat(dev, name, UnlinkatFlags::NoRemoveDir).and_then(|()| symlinkat(target, dev, name));
    match replaced {
        Ok(()) | Err(Errno::EBUSY | Errno::EISDIR | Errno::EROFS) => Ok(()),
        Err(e) => Err(Error::sys("replace", format!("/dev/{name}"), e.into())),
    }
}

fn make_device(root: &Root, device: &LinuxDevice) -> Result<(), Error> {
    let path = device.path();
    let name = path.file_name().ok_or_else(|| refuse(device, "it has no name"))?;
    let parent = root.ensure(path.parent().unwrap_or(Path::new("/")), Kind::Folder)?;
    Node::of_spec(device)?.make(parent.as_fd(), Path::new(name), path.clone())
}

fn refuse(device: &LinuxDevice, reason: &str) -> Error {
    Error::spec(format!("linux.devices[{}]", device.path().display()), reason)
}

/// Makes device files for a container in a user namespace, which may make none itself: each is a mount that is attached nowhere.
/// Otherwise it would have those that the host has at the same paths, with their owners and modes.
///
/// Nothing where the kernel is too old to bind what is in a mount that is attached nowhere (before Linux 6.15).
pub fn make_outside(devices: &[LinuxDevice], maps: &Maps) -> Result<Vec<(usize, OwnedFd)>, Error> {
    let failed = |e: io::Error| Error::sys("make", "a file system for devices", e);
    let folder = FsContext::open("tmpfs").and_then(|context| context.mount(0)).map_err(failed)?;
    let mut made = Vec::new();
    for (at, device) in devices.iter().enumerate() {
        let mut node = Node::of_spec(device)?;
        // Nobody can own it, then.
        node.owner = node.owner.and_then(|(uid, gid)| maps.outside(uid, gid));
        let name = at.to_string();
        if node.owner.is_none() || node.make_own(folder.as_fd(), &name).is_err() {
            continue;
        }
        match clone_tree(Some(folder.as_fd()), Path::new(&name), false) {
            Ok(tree) => made.push((at, tree)),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(made)
}

/// Puts such a device in its place, unless it is there already.
fn attach_device(root: &Root, device: &LinuxDevice, made: BorrowedFd<'_>) -> Result<(), Error> {
    let place = root.ensure(device.path(), Kind::File)?;
    attach_to(made, place.as_fd(), device.path())
}

/// A device file to be made; the umask is 0 meanwhile.
struct Node {
    kind: SFlag,
    mode: u32,
    number: u64,
    owner: Option<(u32, u32)>,
}

impl Node {
    fn of_spec(device: &LinuxDevice) -> Result<Node, Error> {
        let kind = match device.typ() {
            LinuxDeviceType::B => SFlag::S_IFBLK,
            LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
            LinuxDeviceType::P => SFlag::S_IFIFO,
            LinuxDeviceType::A => return Err(refuse(device, "it has no type")),
        };
        let number = match (u64::try_from(device.major()), u64::try_from(device.minor())) {
            (Ok(major), Ok(minor)) => makedev(major, minor),
            _ => return Err(refuse(device, "its numbers must not be negative")),
        };
        Ok(Node {
            kind,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            number,
            owner: Some((device.uid().unwrap_or(0), device.gid().unwrap_or(0))),
        })
    }

    /// Makes it in a folder that nobody else has, whatever the umask is.
    fn make_own(&self, folder: BorrowedFd<'_>, name: &str) -> nix::Result<()> {
        let mode = Mode::from_bits_truncate(self.mode);
        mknodat(folder, name, self.kind, mode, self.number)?;
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            fchownat(folder, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        fchmodat(folder, name, mode, FchmodatFlags::FollowSymlink)
    }

    fn make(&self, parent: BorrowedFd<'_>, name: &Path, path: PathBuf) -> Result<(), Error> {
        let failed = |e: Errno| Error::sys("make device", path.display().to_string(), e.into());
        match mknodat(parent, name, self.kind, Mode::from_bits_truncate(self.mode), self.number) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return self.check(parent, name).map_err(failed),
            // Without the right to make device files the host's can still be bound.
            Err(Errno::EPERM) => return self.bind(parent, name, &path),
            Err(e) => return Err(failed(e)),
        }
        match self.owner {
            Some((uid, gid)) if (uid, gid) != (0, 0) => {
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)
            }
            _ => Ok(()),
        }
    }

    /// What the image or a mount put there must be the device asked for.
    fn check(&self, parent: BorrowedFd<'_>, name: &Path) -> nix::Result<()> {
        let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let same = stat.st_mode & SFlag::S_IFMT.bits() == self.kind.bits()
            && (self.kind == SFlag::S_IFIFO || stat.st_rdev == self.number);
        if same { Ok(()) } else { Err(Errno::EEXIST) }
    }

    fn bind(&self, parent: BorrowedFd<'_>, name: &Path, path: &Path) -> Result<(), Error> {
        let failed = |e: io::Error| Error::sys("bind device", path.display().to_string(), e);
        let stat = fstatat(AT_FDCWD, path, AtFlags::empty()).map_err(|e| failed(e.into()))?;
        if stat.st_rdev != self.number {
            return Err(failed(Errno::EPERM.into()));
        }
        let tree = clone_tree(None, path, false).map_err(failed)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file: OwnedFd = nix::fcntl::openat(parent, name, flags, Mode::from_bits_truncate(0o644))
            .map_err(|e| failed(e.into()))?;
        attach_to(tree.as_fd(), file.as_fd(), path)
    }
}
