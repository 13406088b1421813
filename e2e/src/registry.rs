//! Debian's docker-registry on a machine's loopback.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::machine::Machine;
use crate::{poll, tools};

/// Its address on the machine.
pub const ADDRESS: &str = "127.0.0.1:5000";

/// A running registry; dropped, it ends.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    machine: Arc<Machine>,
    dir: TempDir,
}

impl Registry {
    /// Starts one and returns when it answers.
    pub fn start(machine: &Arc<Machine>) -> Result<Self> {
        let dir = tempfile::tempdir().context("make the registry's folder")?;
        let config = format!(
            "version: 0.1\nlog: {{ level: warn }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\n\
             http: {{ addr: '{ADDRESS}' }}\n",
            dir.path().join("data").display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).context("write the registry's configuration")?;
        let mut command = machine.command(tools::find("docker-registry")?);
        command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("start docker-registry")?;
        let registry = Self { process, machine: machine.clone(), dir };
        poll::until_true("the registry answers", Duration::from_secs(20), || {
            machine.shell(&format!("curl -sS --fail --max-time 2 http://{ADDRESS}/v2/ 2>/dev/null")).is_ok()
        })?;
        Ok(registry)
    }

    /// Puts an image from an OCI archive (a tar) into the registry as `repository:tag`, with skopeo.
    pub fn push(&self, archive: &Path, repository: &str) -> Result<String> {
        let mut skopeo = self.machine.command(tools::find("skopeo")?);
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        skopeo
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{ADDRESS}/{repository}"));
        tools::run(skopeo)?.ok()?;
        Ok(format!("{ADDRESS}/{repository}"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // `process` is nsenter; the registry is its child and would outlive it.
        let words = format!("serve {}", self.dir.path().join("config.yml").display());
        let processes = self.machine.processes().unwrap_or_default();
        let pids: Vec<i32> =
            processes.into_iter().filter(|p| p.command.ends_with(&words)).map(|p| p.pid).collect();
        let _ = self.machine.kill("KILL", &pids);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
