//! Mounts that the parent prepares, since the new process may not: what it cannot reach any more from within a user
//! namespace, and what it may not map to other users.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::unistd::geteuid;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::Error;
use super::devices;
use super::labels;
use super::mount_options::Options;
use super::mounts::{bind_tree, is_bind, refuse};
use super::namespaces::Namespaces;
use super::root_mount::{Layers, idmapped_overlay, root_path, root_propagation};
use super::user_namespace::Maps;
use crate::rootfs::Rootfs;
use crate::sys::mount::{Attributes, clone_tree};

/// Detached mounts.
#[derive(Debug, Default)]
pub struct Sources {
    /// The root file system.
    pub root: Option<OwnedFd>,
    /// For each of the spec's mounts that needs it, by its place in the list.
    pub binds: Vec<(usize, OwnedFd)>,
    /// For the spec's devices, by their places in the list.
    pub devices: Vec<(usize, OwnedFd)>,
}

impl Sources {
    /// Prepares what this container needs, mostly nothing.
    pub fn prepare(
        spec: &Spec,
        rootfs: &Rootfs,
        bundle: &Path,
        namespaces: &Namespaces,
    ) -> Result<Sources, Error> {
        let wanted = spec.linux().as_ref().and_then(|l| l.rootfs_propagation().as_deref());
        let (flag, _) = root_propagation(wanted)?;
        // These are copies of the host's mounts, not of the container's, which are cut off from the host's already.
        let cut_off = |tree: OwnedFd, what: String| {
            Attributes { propagation: flag, ..Attributes::default() }
                .apply(tree.as_fd(), true)
                .map_err(|e| Error::sys("set mount propagation of", what, e))?;
            Ok::<OwnedFd, Error>(tree)
        };
        // A user without rights sees inside a namespace of their own what they see outside.
        let user = namespaces.lists(LinuxNamespaceType::User) && geteuid().is_root();
        let mut sources = Sources::default();
        let mut container = ContainerMaps { spec, namespaces, made: None };
        if user {
            sources.root = Some(match rootfs {
                Rootfs::Path(path) => {
                    let path = root_path(path, bundle);
                    let tree = clone_tree(None, &path, true)
                        .map_err(|e| Error::sys("bind root file system", path.display().to_string(), e))?;
                    cut_off(tree, path.display().to_string())?
                }
                Rootfs::Overlay { lowers, upper, work } => {
                    let label = spec.linux().as_ref().and_then(labels::of_mounts);
                    idmapped_overlay(&Layers { lowers, upper, work, label }, container.namespace()?)?
                }
            });
        }
        if user && namespaces.is_new(LinuxNamespaceType::User) {
            sources.devices = devices(spec)?;
        }
        for (at, mount) in spec.mounts().iter().flatten().enumerate() {
            let mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
            if !user && !mapped && !mount.options().iter().flatten().any(|o| o == "idmap" || o == "ridmap") {
                continue;
            }
            let options = Options::parse(mount.options().as_deref().unwrap_or_default());
            let idmap = mapped || options.idmap.is_some();
            if !is_bind(mount, &options) {
                if idmap {
                    return Err(refuse(mount.destination(), "only a bind mount can be id-mapped"));
                }
                continue;
            }
            let own = if mapped { Some(own_namespace(mount)?) } else { None };
            let map = match &own {
                Some(own) => Some(own.as_fd()),
                None if idmap => Some(container.namespace()?),
                None => None,
            };
            let tree = bind_tree(mount, &options, bundle, map)?;
            sources.binds.push((at, cut_off(tree, mount.destination().display().to_string())?));
        }
        Ok(sources)
    }

    /// All descriptors, the root's first.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.root.iter().chain(self.binds.iter().chain(&self.devices).map(|(_, fd)| fd)).map(AsFd::as_fd)
    }

    /// The same mounts with the descriptors that a new process has them at.
    pub fn at(&self, mut moved: impl Iterator<Item = OwnedFd>) -> Sources {
        let root = self.root.as_ref().and_then(|_| moved.next());
        let mut places = |list: &[(usize, OwnedFd)]| {
            list.iter().map(|(at, _)| *at).zip(moved.by_ref()).collect::<Vec<_>>()
        };
        Sources { root, binds: places(&self.binds), devices: places(&self.devices) }
    }

    /// Takes the tree of one of the spec's mounts.
    pub fn take(&mut self, at: usize) -> Option<OwnedFd> {
        take(&mut self.binds, at)
    }

    /// Takes one of the spec's devices.
    pub fn take_device(&mut self, at: usize) -> Option<OwnedFd> {
        take(&mut self.devices, at)
    }
}

fn take(list: &mut Vec<(usize, OwnedFd)>, at: usize) -> Option<OwnedFd> {
    let found = list.iter().position(|(place, _)| *place == at)?;
    Some(list.swap_remove(found).1)
}

/// The spec's devices, if it has any.
fn devices(spec: &Spec) -> Result<Vec<(usize, OwnedFd)>, Error> {
    let Some(linux) = spec.linux() else { return Ok(Vec::new()) };
    match linux.devices().as_deref() {
        Some(list @ [_, ..]) => devices::make_outside(list, &Maps::of_container(linux)?),
        _ => Ok(Vec::new()),
    }
}

fn own_namespace(mount: &Mount) -> Result<OwnedFd, Error> {
    let field = format!("mounts[{}]", mount.destination().display());
    Maps::new(&field, mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref())?.into_namespace()
}

/// A user namespace with the container's maps, made when it is asked for.
struct ContainerMaps<'a> {
    spec: &'a Spec,
    namespaces: &'a Namespaces,
    made: Option<OwnedFd>,
}

impl ContainerMaps<'_> {
    fn namespace(&mut self) -> Result<BorrowedFd<'_>, Error> {
        if let Some(joined) = self.namespaces.joined_fd(LinuxNamespaceType::User) {
            return Ok(joined);
        }
        if self.made.is_none() {
            let linux = self.spec.linux().clone().unwrap_or_default();
            self.made = Some(Maps::of_container(&linux)?.into_namespace()?);
        }
        match &self.made {
            Some(made) => Ok(made.as_fd()),
            None => Err(Error::spec("linux.uidMappings", "there are none")),
        }
    }
}
