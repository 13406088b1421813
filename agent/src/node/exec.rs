//! Running commands in running containers.

use std::sync::Arc;

use berth_runtime::shim::client::{Client, ExecRequest, ExecSession};
use oci_spec::runtime::{Process, Spec};

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
}

/// The container's own process, with another command: user, environment, capabilities and folder stay.
fn process(entry: &Entry, instance: &Instance, spec: &ExecSpec) -> Result<Process, String> {
    let path = entry.bundle(&instance.record.id).join("config.json");
    let document: Spec = read_json(&path).ok_or_else(|| format!("cannot read {}", path.display()))?;
    let mut process = document.process().clone().ok_or("the container's specification has no process")?;
    process.set_args(Some(spec.command.clone()));
    process.set_terminal(Some(spec.tty));
    if spec.tty {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        process.set_env(Some(env));
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
        use berth_reconciler::node::ContainerState;
        let Some(entry) = self.find(uid) else { return true };
        entry.instance(id).is_none_or(|i| matches!(i.record.state, ContainerState::Exited(_)))
    }
}
