//! The namespaces of a container: new ones, joined ones and inherited ones.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
        let mut namespaces = Namespaces::default();
        for namespace in list {
            namespaces.add(namespace)?;
        }
        if !namespaces.is_new(LinuxNamespaceType::Mount) {
            return Err(Error::spec("linux.namespaces", "a container needs a mount namespace of its own"));
        }
        Ok(namespaces)
    }

    fn add(&mut self, namespace: &LinuxNamespace) -> Result<(), Error> {
        let kind = namespace.typ();
        let field = || format!("linux.namespaces[{kind}]");
        if self.new.contains(&kind) || self.joined.iter().any(|(k, _)| *k == kind) {
            return Err(Error::spec(field(), "it is listed twice"));
        }
        if matches!(kind, LinuxNamespaceType::User | LinuxNamespaceType::Time) {
            return Err(Error::spec(field(), "user and time namespaces are not supported"));
        }
        match namespace.path().as_ref().filter(|p| !p.as_os_str().is_empty()) {
            None => self.new.push(kind),
            Some(_) if kind == LinuxNamespaceType::Mount => {
                return Err(Error::spec(field(), "joining a mount namespace is not supported"));
            }
            Some(path) => {
                let file = File::open(path)
                    .map_err(|e| Error::sys("open namespace", path.display().to_string(), e))?;
                self.joined.push((kind, file));
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
    /// makes it.
    pub fn clone_flags(&self) -> u64 {
        self.new
            .iter()
            .filter(|k| **k != LinuxNamespaceType::Cgroup)
            .fold(0, |flags, kind| flags | *kind as u64)
    }

    /// The PID namespace to join: only children of the process that joins are in it.
    pub fn joined_pid(&self) -> Option<BorrowedFd<'_>> {
        self.joined.iter().find(|(k, _)| *k == LinuxNamespaceType::Pid).map(|(_, f)| f.as_fd())
    }

    /// Joins the others.
    pub fn join(&self) -> Result<(), Error> {
        for (kind, file) in self.joined.iter().filter(|(k, _)| *k != LinuxNamespaceType::Pid) {
            setns(file, CloneFlags::from_bits_truncate(*kind as i32))
                .map_err(|e| Error::sys("join namespace", kind.to_string(), e.into()))?;
        }
        Ok(())
    }
}

/// While this lives, children of this process are born into another PID namespace.
pub struct ChildrenElsewhere(OwnedFd);

impl ChildrenElsewhere {
    /// `namespace` is a PID namespace or a pidfd of a process in it.
    pub fn enter(namespace: BorrowedFd<'_>) -> Result<ChildrenElsewhere, Error> {
        let failed = |e: std::io::Error| Error::sys("join namespace", "pid", e);
        let own = File::open("/proc/self/ns/pid").map_err(failed)?;
        setns(namespace, CloneFlags::CLONE_NEWPID).map_err(|e| failed(e.into()))?;
        Ok(ChildrenElsewhere(own.into()))
    }
}

impl Drop for ChildrenElsewhere {
    fn drop(&mut self) {
        // Cannot fail: a process may always go back to the namespace that it is in itself.
        let _ = setns(&self.0, CloneFlags::CLONE_NEWPID);
    }
}
