//! `berth-runtime`: an OCI runtime-spec `Spec` in, a running container out.
//!
//! The tour: [`container`] turns a `Spec` into a process (namespaces, mounts, capabilities, seccomp), [`cgroup`]
//! bounds it on cgroup v1 and v2, [`shim`] is the small process per pod that is the parent of its containers and
//! the protocol to talk to it, [`oci`] has the operations of an OCI runtime's command line, [`log`] writes and reads CRI logs, [`rootfs`] says where a root file system comes
//! from. System calls that need `unsafe` live in `sys` only.

pub mod cgroup;
pub mod container;
#[cfg(feature = "agent")]
pub mod heap;
#[cfg(feature = "agent")]
pub mod layers;
pub mod log;
#[cfg(feature = "agent")]
pub use sys::names::look_up_by_files_and_dns;
pub use sys::scratch::Heap;
pub mod oci;
pub mod rootfs;
pub mod shim;
mod sys;
pub mod tmpfs;

#[cfg(test)]
#[global_allocator]
static HEAP: Heap = Heap;
