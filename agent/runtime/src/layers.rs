//! The files of an image, mounted read-only on the host, for volumes that several containers may share.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use crate::container::user_namespace;
use crate::shim::IdRange;
use crate::sys::cstring;
use crate::sys::mount::{Attributes, FsContext, attach, clone_tree, is_mount_root, set_idmap};

const ATTRIBUTES: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// Mounts layers, top first, as one tree on `dir`: read-only, and without devices, set-user-ID and execution. Does nothing
/// when something is mounted there already. With a `label`, that is the SELinux context of everything in it.
///
/// # Errors
/// What the kernel says; a tree of no layers is invalid, and of one with a label: only an overlay can be labelled, which
/// needs two.
pub fn mount_read_only(dir: &Path, layers: &[PathBuf], label: Option<&str>) -> io::Result<()> {
    if is_mount_root(dir)? {
        return Ok(());
    }
    match layers {
        [] => Err(io::Error::new(io::ErrorKind::InvalidInput, "the image has no layers")),
        [_] if label.is_some() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "a single layer cannot be labelled"))
        }
        [layer] => {
            // An overlay wants two layers; a single one is what is to be seen.
            let tree = clone_tree(None, layer, false)?;
            let private =
                Attributes { set: ATTRIBUTES, propagation: libc::MS_PRIVATE, ..Attributes::default() };
            private.apply(tree.as_fd(), false)?;
            attach(tree.as_fd(), folder(dir)?.as_fd())
        }
        layers => overlay(dir, layers, label),
    }
}

/// The same with the users of a pod as the owners of what the image's own. An overlay cannot be mapped, so its layers are (Linux
/// 6.15). To be called by a process of one thread.
///
/// # Errors
/// What the kernel says.
pub fn mount_mapped(dir: &Path, layers: &[PathBuf], users: IdRange, label: Option<&str>) -> io::Result<()> {
    if is_mount_root(dir)? {
        return Ok(());
    }
    let namespace = user_namespace(&users.map()?).map_err(io::Error::other)?;
    let context = FsContext::open("overlay")?;
    let mut trees = Vec::new();
    for layer in layers {
        let tree = clone_tree(None, layer, false)?;
        set_idmap(tree.as_fd(), namespace.as_fd(), false)?;
        context.set("lowerdir+", &cstring(format!("/proc/self/fd/{}", tree.as_raw_fd()))?)?;
        trees.push(tree);
    }
    set_context(&context, label)?;
    let mounted = context.mount(ATTRIBUTES)?;
    attach(mounted.as_fd(), folder(dir)?.as_fd())
}

fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(io::Error::from)
}

/// Descriptors stand for the layers, whose paths may be long or hold what overlayfs would split at.
fn overlay(dir: &Path, layers: &[PathBuf], label: Option<&str>) -> io::Result<()> {
    let open = layers.iter().map(|layer| folder(layer)).collect::<io::Result<Vec<OwnedFd>>>()?;
    let names: Vec<String> = open.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    let context = FsContext::open("overlay")?;
    for name in &names {
        match context.set("lowerdir+", &cstring(name.as_str())?) {
            // Linux before 6.8 does not know the option.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return classic(dir, &names, label),
            set => set?,
        }
    }
    set_context(&context, label)?;
    let mounted = context.mount(ATTRIBUTES)?;
    attach(mounted.as_fd(), folder(dir)?.as_fd())
}

fn set_context(context: &FsContext, label: Option<&str>) -> io::Result<()> {
    label.map_or(Ok(()), |label| context.set("context", &cstring(label)?))
}

/// All layers in one page of options, which is enough for some 200.
fn classic(dir: &Path, names: &[String], label: Option<&str>) -> io::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Quoted, because categories have commas between them (mount(8), context).
    let label = label.map_or_else(String::new, |label| format!(",context=\"{label}\""));
    let options = format!("lowerdir={}{label}", names.join(":"));
    mount(Some("overlay"), dir, Some("overlay"), flags, Some(options.as_str())).map_err(io::Error::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use nix::mount::{MntFlags, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn layer(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        for (file, text) in files {
            fs::write(path.join(file), text).unwrap();
        }
        path
    }

    /// Needs root; the mount namespace is this thread's own.
    #[test]
    fn layers_are_one_tree_that_nobody_can_write() {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let top = layer(dir.path(), "top:a,b", &[("a", "new")]);
        let base = layer(dir.path(), "base", &[("a", "old"), ("b", "base")]);
        let target = layer(dir.path(), "target", &[]);
        for layers in [vec![top.clone(), base.clone()], vec![base.clone()]] {
            mount_read_only(&target, &layers, None).unwrap();
            mount_read_only(&target, &layers, None).unwrap();
            let wanted = if layers.len() == 2 { "new" } else { "old" };
            assert_eq!(fs::read_to_string(target.join("a")).unwrap(), wanted);
            assert_eq!(fs::read_to_string(target.join("b")).unwrap(), "base");
            let refused = fs::write(target.join("c"), "").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
            umount2(&target, MntFlags::empty()).unwrap();
            assert!(!is_mount_root(&target).unwrap(), "it was mounted twice");
        }
        classic(
            &target,
            &[top.parent().unwrap().join("base").display().to_string(), target.display().to_string()],
            None,
        )
        .unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "old");
        umount2(&target, MntFlags::empty()).unwrap();
        for layers in [vec![], vec![base]] {
            let refused = mount_read_only(&target, &layers, Some("u:r:t:s0")).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
