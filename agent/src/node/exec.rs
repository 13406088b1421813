//! Running commands in running containers.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use berth_reconciler::node::ContainerState;
use berth_runtime::shim::client::{AttachSession, Client, ExecRequest, ExecSession};
use oci_spec::runtime::{BoxBuilder, Process};
use serde::Deserialize;

use super::AgentNode;
use super::entry::{Entry, Instance, read_json};

/// A command to be run.
#[derive(Clone, Debug)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// On a terminal.
    pub tty: bool,
    /// With an input.
    pub stdin: bool,
    /// Columns and rows of the terminal.
    pub size: Option<(u16, u16)>,
}

/// What is needed of a bundle's `config.json`: the rest, most of all its system calls, is passed over.
#[derive(Deserialize)]
struct Document {
    process: Option<Process>,
}

/// The container's own process, with another command: user, environment, capabilities and folder stay.
fn process(entry: &Entry, instance: &Instance, spec: &ExecSpec) -> Result<Process, String> {
    let path = entry.bundle(&instance.record.id).join("config.json");
    let document: Document = read_json(&path).ok_or_else(|| format!("cannot read {}", path.display()))?;
    let mut process = document.process.ok_or("the container's specification has no process")?;
    process.set_args(Some(spec.command.clone()));
    process.set_terminal(Some(spec.tty));
    if spec.tty {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        process.set_env(Some(env));
        if let Some((width, height)) = spec.size {
            let size = BoxBuilder::default().width(u64::from(width)).height(u64::from(height)).build();
            process.set_console_size(Some(size.map_err(|e| e.to_string())?));
        }
    }
    Ok(process)
}

/// Starts a command in an instance; gives the session and the client to wait with.
pub(super) async fn run(
    entry: &Entry,
    instance: &Instance,
    spec: &ExecSpec,
) -> Result<(Client, ExecSession), String> {
    let client = entry.client().ok_or("the pod is not running")?;
    let request = ExecRequest {
        container_id: instance.record.id.clone(),
        process: process(entry, instance, spec)?,
        tty: spec.tty,
        stdin: spec.stdin,
    };
    let session = client.exec(request).await.map_err(|e| e.to_string())?;
    Ok((client, session))
}

impl AgentNode {
    /// Starts a command in the running instance of a pod's container.
    ///
    /// # Errors
    /// When the container does not run, or the command cannot be executed.
    pub async fn exec(
        &self,
        uid: &str,
        container: &str,
        spec: &ExecSpec,
    ) -> Result<(Client, ExecSession), String> {
        let (entry, instance) = self.running(uid, container)?;
        run(&entry, &instance, spec).await
    }

    /// Attaches to the running instance of a pod's container; gives its id, too.
    ///
    /// # Errors
    /// When the container does not run.
    pub async fn attach(
        &self,
        uid: &str,
        container: &str,
        [stdin, stdout, stderr]: [bool; 3],
    ) -> Result<(String, AttachSession), String> {
        let (entry, instance) = self.running(uid, container)?;
        let client = entry.client().ok_or("the pod is not running")?;
        let id = instance.record.id;
        let session = client.attach(&id, stdin, stdout, stderr).await.map_err(|e| e.to_string())?;
        Ok((id, session))
    }

    /// A socket connected to a port on the pod's loopback.
    ///
    /// # Errors
    /// When the pod does not run, or nobody listens there.
    pub async fn dial(&self, uid: &str, port: u16) -> Result<OwnedFd, String> {
        let client = self.find(uid).and_then(|entry| entry.client()).ok_or("the pod is not running")?;
        client.connect_tcp(port).await.map_err(|e| e.to_string())
    }

    /// Freezes a pod's processes, or lets them go on.
    ///
    /// # Errors
    /// When the pod has no running container, or one cannot be frozen.
    pub async fn pause(&self, uid: &str, paused: bool) -> Result<(), String> {
        let entry = self.find(uid).ok_or("the pod is not running")?;
        let client = entry.client().ok_or("the pod is not running")?;
        if !paused {
            return entry.resume().await;
        }
        let runs = |i: &Instance| matches!(i.record.state, ContainerState::Running { .. });
        if !entry.state().instances.iter().any(runs) {
            return Err("the pod has no running container".into());
        }
        client.pause().await.map_err(|e| e.to_string())?;
        entry.set_paused(true);
        Ok(())
    }

    fn running(&self, uid: &str, container: &str) -> Result<(Arc<Entry>, Instance), String> {
        let entry = self.find(uid).ok_or("the pod is not running")?;
        let instance =
            entry.running(container).ok_or_else(|| format!("container {container} is not running"))?;
        Ok((entry, instance))
    }

    /// The log of a container's newest instance, or of the one before; and the id of the instance.
    pub fn log_of(&self, uid: &str, container: &str, previous: bool) -> Option<(std::path::PathBuf, String)> {
        let entry = self.find(uid)?;
        let state = entry.state();
        let mut all: Vec<_> = state.instances.iter().filter(|i| i.record.name == container).collect();
        all.sort_by_key(|i| std::cmp::Reverse(i.record.attempt));
        let chosen = all.into_iter().nth(usize::from(previous))?;
        Some((chosen.log_path.clone(), chosen.record.id.clone()))
    }

    /// Whether that instance has ended (or is not known any more).
    pub fn has_ended(&self, uid: &str, id: &str) -> bool {
        let Some(entry) = self.find(uid) else { return true };
        entry.instance(id).is_none_or(|i| matches!(i.record.state, ContainerState::Exited(_)))
    }
}
