//! Mounts that are made ready for another OCI runtime, in the mount namespace that its call has to itself.
//!
//! Some it cannot make alone, or not in every release: of a file that another process hands over as a descriptor (a
//! `subPath`), of files that belong to the users of a pod (runc maps mounts since 1.2, crun by words of its own), and of what is
//! to be seen outside when it is mounted inside. So each of these is made here and attached below the runtime's folder, and
//! that is what the runtime binds.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::Error;
use super::labels;
use super::mount_options::Options;
use super::mounts::{bind_tree, file_type, is_bind};
use super::root_mount::{self, Layers, idmapped_overlay};
use crate::rootfs::Rootfs;
use crate::sys::mount::{Attributes, attach, clone_tree};

/// Folder of the places, below the runtime's.
const PLACES: &str = "mounts";

/// Who is nobody special may pass, and see nothing.
const PASSAGE: u32 = 0o711;

/// What is to be made ready for one container.
#[derive(Debug)]
pub(crate) struct Staged {
    /// The user namespace that the container joins.
    users: Option<PathBuf>,
    /// The spec's `mountLabel`, which the other runtime cannot give what is mounted here.
    label: Option<String>,
    binds: Vec<Bind>,
}

#[derive(Debug)]
struct Bind {
    mount: Mount,
    place: PathBuf,
}

impl Staged {
    /// Takes the mounts over that need it: in `spec` their sources become places below `dir`, which must be absolute.
    pub fn take_from(spec: &mut Spec, dir: &Path) -> Staged {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let users = namespaces
            .and_then(|all| all.iter().find(|one| one.typ() == LinuxNamespaceType::User))
            .and_then(|one| one.path().clone());
        let label = spec.linux().as_ref().and_then(labels::of_mounts).map(str::to_owned);
        let mut binds = Vec::new();
        for (at, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
            let given = mount.options().clone().unwrap_or_default();
            let options = Options::parse(&given);
            if !is_bind(mount, &options) || !(users.is_some() || needs_staging(mount, &given)) {
                continue;
            }
            let place = dir.join(PLACES).join(at.to_string());
            binds.push(Bind { mount: mount.clone(), place: place.clone() });
            mount.set_source(Some(place));
            let rest = given.into_iter().filter(|option| !is_mapping(option)).collect();
            mount.set_options(Some(rest));
        }
        Staged { users, label, binds }
    }

    /// Cuts the mount namespace off the host's, mounts the root file system at `rootfs` below `dir` and everything else at its
    /// place.
    pub fn mount(&self, rootfs: &Rootfs, dir: &Path) -> Result<(), Error> {
        let users = self.users.as_deref().map(open_namespace).transpose()?;
        // Before the rest is cut off: what is shared with the host is to stay so.
        let trees = self.binds.iter().map(|bind| bind.tree(dir, users.as_ref().map(AsFd::as_fd)));
        let trees = trees.collect::<Result<Vec<_>, _>>()?;
        match (&users, rootfs) {
            (Some(users), Rootfs::Overlay { lowers, upper, work }) => {
                cut_off(None)?;
                let layers = Layers { lowers, upper, work, label: self.label.as_deref() };
                let tree = idmapped_overlay(&layers, users.as_fd())?;
                attach_at(&tree, &dir.join("rootfs"))?;
            }
            _ => drop(root_mount::mount_root(rootfs, dir, None, self.label.as_deref(), None)?),
        }
        for (bind, tree) in self.binds.iter().zip(trees) {
            if !is_shared(&bind.mount) {
                cut_off(Some(tree.as_fd()))?;
            }
            attach_at(&tree, &bind.place)?;
        }
        if users.is_some() { open_the_way(dir) } else { Ok(()) }
    }
}

impl Bind {
    fn tree(&self, dir: &Path, users: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Error> {
        let options = Options::parse(self.mount.options().as_deref().unwrap_or_default());
        bind_tree(&self.mount, &options, dir, users.filter(|_| options.idmap.is_some()))
    }
}

fn needs_staging(mount: &Mount, options: &[String]) -> bool {
    let of_a_process = mount.source().as_ref().is_some_and(|source| source.starts_with("/proc"));
    of_a_process || is_shared(mount) || options.iter().any(|option| is_mapping(option))
}

fn is_mapping(option: &str) -> bool {
    matches!(option, "idmap" | "ridmap")
}

/// Whether what is mounted in it is to be seen outside.
fn is_shared(mount: &Mount) -> bool {
    mount.options().iter().flatten().any(|option| matches!(option.as_str(), "shared" | "rshared"))
}

fn open_namespace(path: &Path) -> Result<OwnedFd, Error> {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| Error::sys("open user namespace", path.display().to_string(), e.into()))
}

/// Has mounts in a tree, or in all of this mount namespace, stay here.
fn cut_off(tree: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let slave = Attributes { propagation: libc::MS_SLAVE, ..Attributes::default() };
    match tree {
        Some(tree) => slave.apply(tree, true),
        None => slave.apply_to_path(Path::new("/"), true),
    }
    .map_err(|e| Error::sys("set mount propagation of", "/", e))
}

/// Attaches a tree to a place of its kind, which is made.
fn attach_at(tree: &OwnedFd, place: &Path) -> Result<(), Error> {
    let failed = |e: io::Error| Error::sys("mount on", place.display().to_string(), e);
    let above = place.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(PASSAGE).create(above).map_err(failed)?;
    if file_type(tree.as_fd()).map_err(failed)? == SFlag::S_IFDIR {
        DirBuilder::new().recursive(true).mode(PASSAGE).create(place).map_err(failed)?;
    } else {
        File::create(place).map_err(failed)?;
    }
    let found = nix::fcntl::open(place, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    attach(tree.as_fd(), found.as_fd()).map_err(failed)
}

/// The users of a namespace are nobody special on the way to `dir`, which root keeps to itself. In this mount namespace an empty
/// way of the same names takes the place of the part that is closed to them.
fn open_the_way(dir: &Path) -> Result<(), Error> {
    let failed = |e: io::Error| Error::sys("open the way to", dir.display().to_string(), e);
    fs::set_permissions(dir, fs::Permissions::from_mode(PASSAGE)).map_err(failed)?;
    let Some(closed) = first_closed(dir).map_err(failed)? else { return Ok(()) };
    let tree = clone_tree(None, dir, true).map_err(failed)?;
    mount(Some("tmpfs"), &closed, Some("tmpfs"), MsFlags::empty(), Some("mode=711,size=64k"))
        .map_err(|e| failed(e.into()))?;
    attach_at(&tree, dir)
}

/// The topmost folder above `dir` that others may not pass.
fn first_closed(dir: &Path) -> io::Result<Option<PathBuf>> {
    let mut above: Vec<&Path> = dir.ancestors().skip(1).collect();
    above.reverse();
    for folder in above {
        if fs::metadata(folder)?.mode() & 0o001 == 0 {
            return Ok(Some(folder.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(namespaces: serde_json::Value, mounts: serde_json::Value) -> Spec {
        let spec = json!({"ociVersion": "1.0.2", "linux": {"namespaces": namespaces}, "mounts": mounts});
        serde_json::from_value(spec).unwrap()
    }

    fn bind(source: &str, options: serde_json::Value) -> serde_json::Value {
        json!({"destination": "/x", "type": "bind", "source": source, "options": options})
    }

    fn sources(spec: &Spec) -> Vec<String> {
        let mounts = spec.mounts().iter().flatten();
        mounts.map(|mount| mount.source().clone().unwrap().display().to_string()).collect()
    }

    #[test]
    fn only_what_another_runtime_cannot_bind_is_staged() {
        let mounts = json!([
            bind("/a", json!(["rbind", "ro"])),
            bind("/proc/7/fd/8", json!(["rbind", "rw"])),
            bind("/b", json!(["rbind", "rshared"])),
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ]);
        let mut spec = spec(json!([{"type": "mount"}]), mounts);
        let staged = Staged::take_from(&mut spec, Path::new("/d"));
        assert_eq!(sources(&spec), ["/a", "/d/mounts/1", "/d/mounts/2", "proc"]);
        assert_eq!(staged.binds[0].mount.source().as_deref(), Some(Path::new("/proc/7/fd/8")));
        assert_eq!(staged.users, None);
    }

    #[test]
    fn in_a_user_namespace_every_bind_is_staged_and_mapped_here() {
        let mounts = json!([bind("/a", json!(["rbind", "ro", "idmap"])), bind("/b", json!(["rbind"]))]);
        let mut spec = spec(json!([{"type": "user", "path": "/proc/7/fd/8"}]), mounts);
        let staged = Staged::take_from(&mut spec, Path::new("/d"));
        assert_eq!(sources(&spec), ["/d/mounts/0", "/d/mounts/1"]);
        let options = spec.mounts().as_ref().unwrap()[0].options().clone().unwrap();
        assert_eq!(options, ["rbind", "ro"]);
        assert!(staged.binds[0].mount.options().as_ref().unwrap().contains(&"idmap".to_owned()));
        assert_eq!(staged.users.as_deref(), Some(Path::new("/proc/7/fd/8")));
    }

    #[test]
    fn the_topmost_closed_folder_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let inner = dir.path().join("a/b/c");
        fs::create_dir_all(&inner).unwrap();
        set(dir.path(), 0o755);
        assert_eq!(first_closed(&inner).unwrap(), None);
        set(&dir.path().join("a/b"), 0o700);
        assert_eq!(first_closed(&inner).unwrap(), Some(dir.path().join("a/b")));
        set(&dir.path().join("a"), 0o750);
        assert_eq!(first_closed(&inner).unwrap(), Some(dir.path().join("a")));
        // It counts who may pass, not what the folder itself allows.
        assert_eq!(first_closed(&dir.path().join("a")).unwrap(), None);
    }
}
