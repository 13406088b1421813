//! Debian's docker-registry, open or with TLS and a password, on a machine's loopback.

use std::path::{Path, PathBuf};
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
    secure: bool,
}

/// `htpasswd -nbB user s3cret`
const HTPASSWD: &str = "user:$2y$04$0DGPmcVQGMlNUH17GIvb3e.myddyoPlLu2ANToe61VrpCbLJLfBta\n";

impl Registry {
    /// Starts one and returns when it answers.
    pub fn start(machine: &Arc<Machine>) -> Result<Self> {
        Self::launch(machine, false)
    }

    /// The same over https, with a certificate of an authority of its own ([`Registry::authority`]), for user `user` with the
    /// password `s3cret` alone.
    pub fn start_secure(machine: &Arc<Machine>) -> Result<Self> {
        Self::launch(machine, true)
    }

    /// The certificate of the registry's authority.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    fn launch(machine: &Arc<Machine>, secure: bool) -> Result<Self> {
        let dir = tempfile::tempdir().context("make the registry's folder")?;
        let mut config = format!(
            "version: 0.1\nlog: {{ level: warn }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\n\
             http:\n  addr: '{ADDRESS}'\n",
            dir.path().join("data").display()
        );
        if secure {
            config += &protection(dir.path())?;
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).context("write the registry's configuration")?;
        let mut command = machine.command(tools::find("docker-registry")?);
        command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("start docker-registry")?;
        let registry = Self { process, machine: machine.clone(), dir, secure };
        let url = match secure {
            true => format!(
                "--cacert {} --user user:s3cret https://{ADDRESS}/v2/",
                registry.authority().display()
            ),
            false => format!("http://{ADDRESS}/v2/"),
        };
        poll::until_true("the registry answers", Duration::from_secs(20), || {
            machine.shell(&format!("curl -sS --fail --max-time 2 {url} 2>/dev/null")).is_ok()
        })?;
        Ok(registry)
    }

    /// Puts an image from an OCI archive (a tar) into the registry as `repository:tag`, with skopeo.
    pub fn push(&self, archive: &Path, repository: &str) -> Result<String> {
        let mut skopeo = self.machine.command(tools::find("skopeo")?);
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        if self.secure {
            skopeo.args(["--dest-creds", "user:s3cret"]);
        }
        skopeo
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{ADDRESS}/{repository}"));
        tools::run(skopeo)?.ok()?;
        Ok(format!("{ADDRESS}/{repository}"))
    }
}

/// Makes an authority, a certificate for the address and a file of users; gives what the configuration says of them.
fn protection(dir: &Path) -> Result<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let (ca_key, ca, key, cert) = (file("ca.key"), file("ca.crt"), file("server.key"), file("server.crt"));
    let make = |more: &[&str]| -> Result<()> {
        let mut openssl = std::process::Command::new(tools::find("openssl")?);
        openssl.args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-x509"]);
        openssl.args(["-days", "2"]).args(more);
        tools::run(openssl)?.ok().map(drop)
    };
    make(&["-keyout", &ca_key, "-out", &ca, "-subj", "/CN=authority of a test"])?;
    let server = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
    let signed = ["-keyout", &key, "-out", &cert, "-subj", "/CN=registry", "-CA", &ca, "-CAkey", &ca_key];
    make(&[&signed[..], &server].concat())?;
    let users = file("htpasswd");
    std::fs::write(&users, HTPASSWD).context("write the registry's users")?;
    Ok(format!(
        "  tls:\n    certificate: {cert}\n    key: {key}\nauth:\n  htpasswd:\n    realm: test\n    path: {users}\n"
    ))
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
