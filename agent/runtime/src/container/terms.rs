//! What all processes that are started inside a container later have in common.

use std::path::Path;

use oci_spec::runtime::{Linux, Process, Spec};

use super::Error;
use super::identity::Identity;
use super::notify::Notify;
use super::seccomp::{Filter, Shape, rules_of};

/// What a container's spec says of further processes, worked out once: its system call filter is compiled, and what only
/// counts when a container is made is left out, so that it is a few KB.
#[derive(Debug)]
pub struct Terms {
    first: Option<Process>,
    pub(super) linux: Option<Linux>,
    pub(super) filter: Option<Filter>,
    pub(super) notify: Option<Notify>,
    pub(super) keep_groups: bool,
}

impl Terms {
    /// Takes what is needed of the spec that the container was made from, with its id and bundle.
    ///
    /// # Errors
    /// When its seccomp rules cannot be compiled.
    pub fn of_spec(spec: &Spec, id: &str, bundle: &Path) -> Result<Terms, Error> {
        let linux = spec.linux().as_ref();
        Ok(Terms {
            first: spec.process().clone(),
            linux: linux.map(essence),
            filter: rules_of(spec).map(|rules| Filter::compile(rules, Shape::FewCalls)).transpose()?,
            notify: Notify::of_spec(spec, id, bundle)?,
            keep_groups: Identity::keeps_groups(spec),
        })
    }

    /// The container's first process, if its spec has one.
    pub fn first(&self) -> Option<&Process> {
        self.first.as_ref()
    }

    /// What a process leaves open is as in the container's first process.
    pub(crate) fn complete(&self, mut process: Process) -> Process {
        let Some(first) = &self.first else { return process };
        if process.capabilities().is_none() {
            process.set_capabilities(first.capabilities().clone());
        }
        if process.rlimits().is_none() {
            process.set_rlimits(first.rlimits().clone());
        }
        if process.no_new_privileges().is_none() {
            process.set_no_new_privileges(first.no_new_privileges());
        }
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(first.oom_score_adj());
        }
        if process.apparmor_profile().is_none() {
            process.set_apparmor_profile(first.apparmor_profile().clone());
        }
        if process.selinux_label().is_none() {
            process.set_selinux_label(first.selinux_label().clone());
        }
        if process.scheduler().is_none() {
            process.set_scheduler(first.scheduler().clone());
        }
        if process.io_priority().is_none() {
            process.set_io_priority(*first.io_priority());
        }
        if process.exec_cpu_affinity().is_none() {
            process.set_exec_cpu_affinity(first.exec_cpu_affinity().clone());
        }
        process
    }
}

/// What counts for a process that joins the container.
fn essence(linux: &Linux) -> Linux {
    let mut essence = Linux::default();
    essence
        .set_namespaces(linux.namespaces().clone())
        .set_mount_label(linux.mount_label().clone())
        .set_memory_policy(linux.memory_policy().clone())
        .set_personality(linux.personality().clone())
        // The defaults of a new one are lists.
        .set_masked_paths(None)
        .set_readonly_paths(None)
        .set_resources(None);
    essence
}
