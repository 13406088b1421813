//! The namespaces of a container: new ones, joined ones and inherited ones.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use super::Error;

/// The namespaces that a spec lists; what it does not list is inherited from the caller.
#[derive(Debug, Default)]
pub struct Namespaces {
    new: Vec<LinuxNamespaceType>,
    joined: Vec<(LinuxNamespaceType, File)>,
}

impl Namespaces {
    /// Reads the list and opens the namespaces to join.
    pub fn of_spec(spec: &Spec) -> Result<Namespaces, Error> {
        let list = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
        let namespaces = Namespaces::of_list(list)?;
        if !namespaces.lists(LinuxNamespaceType::Mount) && namespaces.lists(LinuxNamespaceType::User) {
            let reason = "a container with a user namespace needs a mount namespace, too";
            return Err(Error::spec("linux.namespaces", reason));
        }
        Ok(namespaces)
    }

    /// Opens the namespaces to join.
    pub fn of_list(list: &[LinuxNamespace]) -> Result<Namespaces, Error> {
        let mut namespaces = Namespaces::default();
        list.iter().try_for_each(|namespace| namespaces.add(namespace))?;
        Ok(namespaces)
    }

    fn add(&mut self, namespace: &LinuxNamespace) -> Result<(), Error> {
        let kind = namespace.typ();
        let field = || format!("linux.namespaces[{kind}]");
        if self.new.contains(&kind) || self.joined.iter().any(|(k, _)| *k == kind) {
            return Err(Error::spec(field(), "it is listed twice"));
        }
        match namespace.path().as_ref().filter(|p| !p.as_os_str().is_empty()) {
            None => self.new.push(kind),
            Some(path) => {
                let file = File::open(path)
                    .map_err(|e| Error::sys("open namespace", path.display().to_string(), e))?;
                // The kernel lets nobody enter the user namespace that they are in already.
                if kind != LinuxNamespaceType::User || !is_own(&file, kind)? {
                    self.joined.push((kind, file));
                }
            }
        }
        Ok(())
    }

    /// Whether the container gets its own.
    pub fn is_new(&self, kind: LinuxNamespaceType) -> bool {
        self.new.contains(&kind)
    }

    /// Whether the container has one that the spec lists, its own or a joined one.
    pub fn lists(&self, kind: LinuxNamespaceType) -> bool {
        self.is_new(kind) || self.joined.iter().any(|(k, _)| *k == kind)
    }

    /// What clone3 shall make. The cgroup namespace comes later: its root is the cgroup that a process is in when it
    /// makes it. So does the time namespace, since its offsets can be set only before somebody is in it, and in a user
    /// namespace the IPC namespace: the file system of its message queues belongs to who makes it.
    pub fn clone_flags(&self) -> u64 {
        let ipc = self.lists(LinuxNamespaceType::User).then_some(LinuxNamespaceType::Ipc);
        let later = [Some(LinuxNamespaceType::Cgroup), Some(LinuxNamespaceType::Time), ipc];
        self.new.iter().filter(|k| !later.contains(&Some(**k))).fold(0, |flags, kind| flags | *kind as u64)
    }

    /// A namespace to join.
    pub fn joined_fd(&self, kind: LinuxNamespaceType) -> Option<BorrowedFd<'_>> {
        self.joined.iter().find(|(k, _)| *k == kind).map(|(_, f)| f.as_fd())
    }

    /// Whether new namespaces must be made by a process that has joined the others, see [`super::birth`].
    pub fn need_helper(&self) -> bool {
        self.lists(LinuxNamespaceType::User) && !self.joined.is_empty()
    }

    /// Joins all but the PID namespace, which only children come into.
    pub fn join(&self) -> Result<(), Error> {
        self.joined.iter().filter(|(k, _)| *k != LinuxNamespaceType::Pid).try_for_each(join)
    }

    /// Joins all, when there is a user namespace among them or to be made. Those that belong to the caller's user namespace
    /// must be joined before it is left, those that belong to the joined one only then.
    pub fn join_all(&self) -> Result<(), Error> {
        let (user, others): (Vec<_>, Vec<_>) =
            self.joined.iter().partition(|(k, _)| *k == LinuxNamespaceType::User);
        let mut later = Vec::new();
        for namespace in others {
            match join(namespace) {
                Err(Error::Sys { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                    later.push(namespace);
                }
                other => other?,
            }
        }
        user.into_iter().chain(later).try_for_each(join)
    }
}

fn join((kind, file): &(LinuxNamespaceType, File)) -> Result<(), Error> {
    setns(file, CloneFlags::from_bits_retain(*kind as i32))
        .map_err(|e| Error::sys("join namespace", kind.to_string(), e.into()))
}

fn is_own(file: &File, kind: LinuxNamespaceType) -> Result<bool, Error> {
    let failed = |e| Error::sys("look at namespace", kind.to_string(), e);
    let own = fs::metadata(format!("/proc/self/ns/{kind}")).map_err(failed)?;
    Ok(file.metadata().map_err(failed)?.ino() == own.ino())
}

/// The PID namespace of this process.
pub fn own_pids() -> Result<OwnedFd, Error> {
    let own = File::open("/proc/self/ns/pid").map_err(|e| Error::sys("join namespace", "pid", e))?;
    Ok(own.into())
}

/// While this lives, children of this process are born into another PID namespace.
pub struct ChildrenElsewhere<F: AsFd = OwnedFd>(F);

impl ChildrenElsewhere {
    /// `namespace` is a PID namespace or a pidfd of a process in it.
    pub fn enter(namespace: BorrowedFd<'_>) -> Result<ChildrenElsewhere, Error> {
        ChildrenElsewhere::enter_from(own_pids()?, namespace)
    }
}

impl<F: AsFd> ChildrenElsewhere<F> {
    /// The same for who knows [`own_pids`] already.
    pub fn enter_from(own: F, namespace: BorrowedFd<'_>) -> Result<ChildrenElsewhere<F>, Error> {
        setns(namespace, CloneFlags::CLONE_NEWPID)
            .map_err(|e| Error::sys("join namespace", "pid", e.into()))?;
        Ok(ChildrenElsewhere(own))
    }
}

impl<F: AsFd> Drop for ChildrenElsewhere<F> {
    fn drop(&mut self) {
        // Cannot fail: a process may always go back to the namespace that it is in itself.
        let _ = setns(&self.0, CloneFlags::CLONE_NEWPID);
    }
}
