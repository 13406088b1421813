//! System calls that a filter leaves to somebody else (`SCMP_ACT_NOTIFY`): that one gets the filter's descriptor.
//!
//! Source: OCI runtime-spec, config-linux.md "Seccomp" (`listenerPath`) and "The Container Process State";
//! seccomp_unotify(2).

use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{ContainerState, LinuxSeccomp, LinuxSeccompAction, Spec, State};
use serde_json::json;

use super::Error;
use super::channel::{Channel, Order, hand};
use super::hooks;
use super::seccomp::rules_of;
use crate::sys::process::take_fd;

/// Whom a container's filter asks.
#[derive(Clone, Debug)]
pub struct Notify {
    path: PathBuf,
    metadata: Option<String>,
    /// The container's.
    state: State,
}

impl Notify {
    /// Nothing when no rule of the spec asks anybody. A socket without such a rule is not used then.
    pub fn of_spec(spec: &Spec, id: &str, bundle: &Path) -> Result<Option<Notify>, Error> {
        rules_of(spec).map_or(Ok(None), |rules| Notify::of_rules(rules, || hooks::state(id, spec, bundle)))
    }

    /// The same for rules that are not in the spec. `state` is that of the container.
    pub fn of_rules(seccomp: &LinuxSeccomp, state: impl FnOnce() -> State) -> Result<Option<Notify>, Error> {
        let asks = |action| action == LinuxSeccompAction::ScmpActNotify;
        if !seccomp.syscalls().iter().flatten().any(|rule| asks(rule.action())) {
            return Ok(None);
        }
        let path = seccomp.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
        let path = path.ok_or_else(|| {
            Error::spec("linux.seccomp.listenerPath", "it is missing, but a rule has SCMP_ACT_NOTIFY")
        })?;
        let metadata = seccomp.listener_metadata().clone();
        Ok(Some(Notify { path, metadata, state: state() }))
    }

    /// Takes the listener out of a process of the container, which has told its `number` there and waits, and hands it on. `init`
    /// is the container's first process if this is another one.
    pub fn serve(
        &self,
        channel: &Channel,
        number: RawFd,
        (pid, pidfd): (i32, BorrowedFd<'_>),
        init: Option<i32>,
    ) -> Result<(), Error> {
        let listener = take_fd(pidfd, number)
            .map_err(|e| Error::sys("take the seccomp listener of", format!("process {pid}"), e))?;
        let mut state = self.state.clone();
        let status = if init.is_some() { ContainerState::Running } else { ContainerState::Creating };
        state.set_status(status).set_pid(Some(init.unwrap_or(pid)));
        let mut message = json!({
            "ociVersion": self.state.version(),
            "fds": ["seccompFd"],
            "pid": pid,
            "state": state,
        });
        if let Some(metadata) = &self.metadata {
            message["metadata"] = json!(metadata);
        }
        hand(&self.path, &listener, message.to_string().as_bytes())
            .map_err(|e| Error::sys("send the seccomp listener to", self.path.display().to_string(), e))?;
        // Not before: the process could ask when nobody listens.
        channel.order(Order::ListenerTaken).map_err(|e| Error::sys("talk to", "the container's process", e))
    }
}
