//! Mounting the root file system in the container's own mount namespace, and changing into it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

use super::mount_options::propagation;
use super::{Error, Root};
use crate::rootfs::Rootfs;
use crate::sys::mount::{Attributes, FsContext, attach, clone_tree, is_mount_root, set_idmap};
use crate::sys::{credentials, cstring};

/// A single fsconfig value may be this long (`strndup_user` in fs/fsopen.c, with its end).
const MAX_VALUE: usize = 255;
/// mount(2) takes one page of options; some is left for upperdir and workdir.
const MAX_LOWER_OPTIONS: usize = 3000;
/// overlayfs stacks no more lower layers than this (OVL_MAX_STACK).
const MAX_LOWERS: usize = 500;

/// What an overlay is made of, see [`Rootfs::Overlay`].
#[derive(Clone, Copy)]
pub struct Layers<'a> {
    /// Read-only layers, top first.
    pub lowers: &'a [PathBuf],
    /// The writable layer.
    pub upper: &'a Path,
    /// overlayfs' work folder.
    pub work: &'a Path,
    /// The SELinux context of everything in it, in place of the layers' own: layers belong to many containers.
    pub label: Option<&'a str>,
}

/// Cuts the mount namespace off the host's and mounts the root file system. `wanted` is the spec's
/// `rootfsPropagation`, `label` its `mountLabel`, which an overlay gets, `prepared` the mount if the parent has made it.
pub fn mount_root(
    rootfs: &Rootfs,
    bundle: &Path,
    wanted: Option<&str>,
    label: Option<&str>,
    prepared: Option<OwnedFd>,
) -> Result<Root, Error> {
    let change = root_propagation(wanted)?;
    // Slave, so that what is mounted here stays here, while the host's later mounts still come in.
    // What is unbindable could not become a root or a bind mount; it does in the end, see `pivot`.
    let first = if change.0 == libc::MS_UNBINDABLE { libc::MS_PRIVATE } else { change.0 };
    Attributes { propagation: first, ..Attributes::default() }
        .apply_to_path(Path::new("/"), change.1)
        .map_err(|e| Error::sys("set mount propagation of", "/", e))?;
    if let Some(tree) = prepared {
        return attach_prepared(tree);
    }
    let target = bundle.join("rootfs");
    match rootfs {
        Rootfs::Path(path) => {
            let path = root_path(path, bundle);
            if change.0 == libc::MS_SHARED || !change.1 {
                make_private_above(&path)?;
            }
            let failed = |e| Error::sys("bind root file system", path.display().to_string(), e);
            let tree = clone_tree(None, &path, true).map_err(failed)?;
            let place = nix::fcntl::open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|e| failed(e.into()))?;
            attach(tree.as_fd(), place.as_fd()).map_err(failed)?;
            Root::open(&path)
        }
        Rootfs::Overlay { lowers, upper, work } => {
            match fs::create_dir(&target) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::sys("create", target.display().to_string(), e));
                }
                _ => {}
            }
            if change.0 == libc::MS_SHARED || !change.1 {
                make_private_above(&target)?;
            }
            mount_overlay(&Layers { lowers, upper, work, label }, &target)?;
            Root::open(&target)
        }
    }
}

/// Mounts the root file system where it lies, in the mount namespace that the container shares with its creator. Nothing else is
/// changed there, and nothing that is mounted in it later leaves it. Somebody has to unmount it in the end.
pub fn mount_root_here(rootfs: &Rootfs, bundle: &Path) -> Result<Root, Error> {
    let Rootfs::Path(path) = rootfs else {
        return Err(Error::spec("linux.namespaces", "an overlay needs a mount namespace"));
    };
    let path = root_path(path, bundle);
    let failed = |e| Error::sys("bind root file system", path.display().to_string(), e);
    let private = Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() };
    let tree = clone_tree(None, &path, true).map_err(failed)?;
    private.apply(tree.as_fd(), true).map_err(failed)?;
    let place = open_layer(&path)?;
    attach(tree.as_fd(), place.as_fd()).map_err(failed)?;
    // Where the mount above is shared, this has become so, too.
    private.apply(tree.as_fd(), true).map_err(failed)?;
    Ok(Root::of_folder(tree))
}

/// Makes `root` the root of this process only. One that may do so can leave it: there is no other way in a mount namespace
/// that belongs to others.
pub fn change_root(root: &Root) -> Result<(), Error> {
    let failed = |operation: &'static str| move |e: Errno| Error::sys(operation, "/", e.into());
    fchdir(root.fd()).map_err(failed("enter root file system"))?;
    chroot(".").map_err(failed("change root to"))
}

/// How the container's mounts shall follow the host's, from `rootfsPropagation`; the flag, and whether it goes for mounts
/// below, too.
pub fn root_propagation(wanted: Option<&str>) -> Result<(u64, bool), Error> {
    match wanted {
        None | Some("") => Ok((libc::MS_SLAVE, true)),
        Some(name) => match propagation(name) {
            // While it is being set up it has to be bound; in the end pivot() makes it so.
            Some((libc::MS_UNBINDABLE, recursive)) => Ok((libc::MS_PRIVATE, recursive)),
            Some(change) => Ok(change),
            None => Err(Error::spec("linux.rootfsPropagation", format!("unknown: {name:?}"))),
        },
    }
}

/// Where a root file system of this path is.
pub fn root_path(path: &Path, bundle: &Path) -> PathBuf {
    if path.is_absolute() { path.to_owned() } else { bundle.join(path) }
}

/// Its own place may be out of reach from within a user namespace, so it goes over the host's root, which pivot_root takes
/// away from under it.
fn attach_prepared(tree: OwnedFd) -> Result<Root, Error> {
    let failed = |e| Error::sys("attach root file system to", "/", e);
    // A new user namespace has made all mounts slaves, but not the host's root of a joined mount namespace.
    Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() }
        .apply_to_path(Path::new("/"), false)
        .map_err(failed)?;
    let place = open_layer(Path::new("/"))?;
    attach(tree.as_fd(), place.as_fd()).map_err(failed)?;
    Ok(Root::of_folder(tree))
}

/// An overlay whose layers are mapped to the users of a user namespace, so that the image's root is the container's root;
/// attached nowhere. Needs Linux 6.15, which lets overlayfs use mounts that are attached nowhere.
pub fn idmapped_overlay(layers: &Layers<'_>, namespace: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let Layers { lowers, upper, work, label } = *layers;
    check_layers(lowers)?;
    let map = |path: &Path| -> Result<OwnedFd, Error> {
        let failed = |e| Error::sys("map the users of", path.display().to_string(), e);
        let tree = clone_tree(None, path, false).map_err(failed)?;
        set_idmap(tree.as_fd(), namespace, false).map_err(failed)?;
        Ok(tree)
    };
    let lowers = lowers.iter().map(|path| map(path)).collect::<Result<Vec<_>, _>>()?;
    // Upper and work folder must lie in one mount: that of the folder above both.
    let (Some(above), Some(upper_name), Some(work_name)) =
        (upper.parent(), upper.file_name(), work.file_name())
    else {
        return Err(Error::spec("rootfs.upper", "it has no name"));
    };
    if work.parent() != Some(above) {
        return Err(Error::spec("rootfs.work", "in a user namespace it must lie beside the upper folder"));
    }
    let above = map(above)?;
    let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let layers: Vec<PathBuf> = lowers.iter().map(path).collect();
    let work = path(&above).join(work_name);
    // overlayfs works as who mounts it, who must be somebody in the mapped layers: the owner of its work folder.
    let owner = fs::metadata(&work).map_err(|e| Error::sys("look at", "the overlay's work folder", e))?;
    let failed = |e| Error::sys("act as", "the owner of the overlay's work folder", e);
    credentials::act_as(owner.uid(), owner.gid()).map_err(failed)?;
    let upper = path(&above).join(upper_name);
    let mapped = Layers { lowers: &layers, upper: &upper, work: &work, label };
    let made = configure_overlay(&mapped, "the root file system");
    credentials::act_as(0, 0).map_err(failed)?;
    made
}

/// pivot_root refuses a root whose parent mount is shared, as the host's may still be when the spec's propagation is not
/// recursive, and a root mounted on one would show on the host.
fn make_private_above(path: &Path) -> Result<(), Error> {
    let failed = |e| Error::sys("make private the mount of", path.display().to_string(), e);
    let mut point = fs::canonicalize(path).map_err(failed)?;
    while !is_mount_root(&point).map_err(failed)? && point.pop() {}
    Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() }
        .apply_to_path(&point, false)
        .map_err(failed)
}

fn mount_overlay(layers: &Layers<'_>, target: &Path) -> Result<(), Error> {
    check_layers(layers.lowers)?;
    match overlay_by_context(layers, target) {
        Err(Error::Sys { source, operation, .. })
            if operation == LOWERDIR_ADD && matches!(source.raw_os_error(), Some(libc::EINVAL)) =>
        {
            overlay_by_options(layers, target)
        }
        other => other,
    }
}

fn check_layers(lowers: &[PathBuf]) -> Result<(), Error> {
    if lowers.is_empty() || lowers.len() > MAX_LOWERS {
        let reason = format!("an overlay needs 1 to {MAX_LOWERS} layers, not {}", lowers.len());
        return Err(Error::spec("rootfs.lowers", reason));
    }
    Ok(())
}

const LOWERDIR_ADD: &str = "add overlay layer";

/// One layer per option (Linux 6.8 and later): no limit on the sum of the paths, no characters to escape.
fn overlay_by_context(layers: &Layers<'_>, target: &Path) -> Result<(), Error> {
    let object = target.display().to_string();
    let mounted = configure_overlay(layers, &object)?;
    let place = open_layer(target)?;
    attach(mounted.as_fd(), place.as_fd()).map_err(|e| Error::sys("attach overlay to", object, e))
}

fn configure_overlay(layers: &Layers<'_>, object: &str) -> Result<OwnedFd, Error> {
    let context = FsContext::open("overlay").map_err(|e| Error::sys("open file system", "overlay", e))?;
    // Descriptors must live until the mount is made.
    let mut long_paths = Vec::new();
    let mut set = |operation: &str, key: &str, path: &Path| {
        let failed = |e| Error::sys(operation, path.display().to_string(), e);
        let value = if path.as_os_str().len() > MAX_VALUE {
            long_paths.push(open_layer(path)?);
            PathBuf::from(format!("/proc/self/fd/{}", long_paths[long_paths.len() - 1].as_raw_fd()))
        } else {
            path.to_owned()
        };
        context.set(key, &cstring(value.as_os_str()).map_err(failed)?).map_err(failed)
    };
    for lower in layers.lowers {
        set(LOWERDIR_ADD, "lowerdir+", lower)?;
    }
    set("set overlay upper folder", "upperdir", layers.upper)?;
    set("set overlay work folder", "workdir", layers.work)?;
    if let Some(label) = layers.label {
        cstring(label)
            .and_then(|label| context.set("context", &label))
            .map_err(|e| Error::sys("label the overlay with", format!("linux.mountLabel {label}"), e))?;
    }
    context.mount(0).map_err(|e| {
        let why = context.complaint();
        let object = if why.is_empty() { object.to_owned() } else { format!("{object} ({why})") };
        Error::sys("mount overlay on", object, e)
    })
}

fn open_layer(path: &Path) -> Result<OwnedFd, Error> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| Error::sys("open", path.display().to_string(), e.into()))
}

/// All layers in one page of options (before Linux 6.8). When the paths are too long, or hold characters that
/// overlayfs would split at, descriptors stand for them: `/proc/self/fd` becomes the working folder, so that a layer
/// costs three or four characters.
fn overlay_by_options(layers: &Layers<'_>, target: &Path) -> Result<(), Error> {
    let Layers { lowers, upper, work, label } = *layers;
    let failed = |e: Errno| Error::sys("mount overlay on", target.display().to_string(), e.into());
    let all: Vec<&Path> = lowers.iter().map(PathBuf::as_path).chain([upper, work]).collect();
    let length: usize = all.iter().map(|p| p.as_os_str().len() + 1).sum();
    let special = |p: &&Path| p.as_os_str().as_bytes().iter().any(|b| b":,\\".contains(b));
    if length <= MAX_LOWER_OPTIONS && !all.iter().any(special) {
        let names: Vec<String> = all.iter().map(|p| p.display().to_string()).collect();
        return mount(
            Some("overlay"),
            target,
            Some("overlay"),
            MsFlags::empty(),
            Some(&*overlay_options(&names, label)),
        )
        .map_err(failed);
    }
    let fds: Vec<OwnedFd> = all.iter().map(|p| open_layer(p)).collect::<Result<_, _>>()?;
    let names: Vec<String> = fds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let before = open_layer(Path::new("."))?;
    let absolute =
        fs::canonicalize(target).map_err(|e| Error::sys("resolve", target.display().to_string(), e))?;
    chdir("/proc/self/fd").map_err(failed)?;
    let options = overlay_options(&names, label);
    let result = mount(Some("overlay"), &absolute, Some("overlay"), MsFlags::empty(), Some(&*options));
    fchdir(before).map_err(failed)?;
    result.map_err(failed)
}

/// The last two names are the upper and the work folder.
fn overlay_options(names: &[String], label: Option<&str>) -> String {
    let (lowers, rest) = names.split_at(names.len() - 2);
    // Quoted, because categories have commas between them (mount(8), context).
    let context = label.map_or_else(String::new, |label| format!(",context=\"{label}\""));
    format!("lowerdir={},upperdir={},workdir={}{context}", lowers.join(":"), rest[0], rest[1])
}

/// Makes `root` the root of the mount namespace and lets go of the host's.
pub fn pivot(root: &Root, wanted: Option<&str>) -> Result<(), Error> {
    let failed = |operation: &'static str| move |e: Errno| Error::sys(operation, "/", e.into());
    let old = nix::fcntl::open("/", OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed("open"))?;
    fchdir(root.fd()).map_err(failed("enter root file system"))?;
    // The new root is put on top of the old one at the same place, and the old one is then taken off from below
    // (pivot_root(2), NOTES): no folder for the old root is needed.
    pivot_root(".", ".").map_err(failed("pivot_root to"))?;
    fchdir(&old).map_err(failed("enter old root of"))?;
    let change = wanted.and_then(propagation);
    if change.is_some() {
        // The umount below must not reach the host through a mount that is still shared with it.
        mount(None::<&str>, ".", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
            .map_err(failed("cut off old root of"))?;
    }
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("unmount old root of"))?;
    chdir("/").map_err(failed("change folder to"))?;
    if let Some((flag, recursive)) = change {
        Attributes { propagation: flag, ..Attributes::default() }
            .apply_to_path(Path::new("/"), recursive && flag != libc::MS_SHARED)
            .map_err(|e| Error::sys("set mount propagation of", "/", e))?;
    }
    Ok(())
}

/// The same where pivot_root is impossible, since the host's root is the one that the kernel began with: the new root is moved
/// over it. Whoever may call chroot(2) can get below again, so that what was mounted there is taken away first. A whole procfs or
/// sysfs among it would besides let a user namespace in the container mount another one.
pub fn move_over(root: &Root, wanted: Option<&str>) -> Result<(), Error> {
    let failed = |operation: &'static str| move |e: Errno| Error::sys(operation, "/", e.into());
    let own = fs::read_link(format!("/proc/self/fd/{}", root.fd().as_raw_fd()))
        .map_err(|e| Error::sys("find", "the root file system", e))?;
    // Nor must that reach the host.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .map_err(failed("cut off"))?;
    let mounts =
        fs::read_to_string("/proc/self/mounts").map_err(|e| Error::sys("read", "/proc/self/mounts", e))?;
    for (point, fstype) in mounts.lines().filter_map(mount_point) {
        let inside = own != Path::new("/") && point.starts_with(&own);
        if !inside && !own.starts_with(&point) {
            take_away(&point, &fstype)?;
        }
    }
    fchdir(root.fd()).map_err(failed("enter root file system"))?;
    // A prepared one is there already.
    if own != Path::new("/") {
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(failed("move the root file system to"))?;
    }
    chroot(".").map_err(failed("change root to"))?;
    chdir("/").map_err(failed("change folder to"))?;
    match wanted.and_then(propagation) {
        Some((flag, recursive)) => Attributes { propagation: flag, ..Attributes::default() }
            .apply_to_path(Path::new("/"), recursive && flag != libc::MS_SHARED)
            .map_err(|e| Error::sys("set mount propagation of", "/", e)),
        None => Ok(()),
    }
}

/// Unmounts what the container is not to reach. In a user namespace that is not allowed, and it is covered.
fn take_away(point: &Path, fstype: &str) -> Result<(), Error> {
    let gone = match umount2(point, MntFlags::MNT_DETACH) {
        Err(Errno::EINVAL | Errno::EPERM) if matches!(fstype, "proc" | "sysfs") => {
            mount(Some("tmpfs"), point, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)
        }
        other => other,
    };
    match gone {
        // Without one that was above it there is no such path any more.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(e) => Err(Error::sys("unmount", point.display().to_string(), e.into())),
    }
}

/// The place and the type of a line of `/proc/self/mounts`, where blanks are written as octal numbers (proc_pid_mountinfo(5)).
fn mount_point(line: &str) -> Option<(PathBuf, String)> {
    let mut words = line.split(' ').skip(1);
    let (point, fstype) = (words.next()?, words.next()?);
    let blanks = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let point = blanks.iter().fold(point.to_owned(), |point, (code, blank)| point.replace(code, blank));
    Some((point.into(), fstype.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// What kernels before 6.8 get, on whatever kernel this runs. Needs root; the mount namespace is this thread's own.
    #[test]
    fn the_classic_options_take_many_long_paths() {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (upper, work, target) = (make("upper"), make("work"), make("target"));
        for count in [2, 200] {
            let layer = |n: usize| {
                let path = make(&format!("{}-{n}:{}", count, "x".repeat(if count > 2 { 150 } else { 5 })));
                fs::write(path.join(format!("file-{n}")), "").unwrap();
                path
            };
            let lowers: Vec<PathBuf> = (0..count).map(layer).collect();
            let before = std::env::current_dir().unwrap();
            let layers = Layers { lowers: &lowers, upper: &upper, work: &work, label: None };
            overlay_by_options(&layers, &target).unwrap();
            assert_eq!(std::env::current_dir().unwrap(), before);
            assert_eq!(fs::read_dir(&target).unwrap().count(), count);
            umount2(&target, MntFlags::empty()).unwrap();
        }
        let plain = vec![make("a"), make("b")];
        fs::write(plain[1].join("below"), "").unwrap();
        let layers = Layers { lowers: &plain, upper: &upper, work: &work, label: None };
        overlay_by_options(&layers, &target).unwrap();
        assert!(target.join("below").exists());
        umount2(&target, MntFlags::empty()).unwrap();
    }

    #[test]
    fn a_label_with_commas_is_one_option() {
        let names = ["l".to_owned(), "u".to_owned(), "w".to_owned()];
        assert_eq!(overlay_options(&names, None), "lowerdir=l,upperdir=u,workdir=w");
        let labelled = overlay_options(&names, Some("u:r:t:s0:c1,c2"));
        assert_eq!(labelled, "lowerdir=l,upperdir=u,workdir=w,context=\"u:r:t:s0:c1,c2\"");
    }
}
