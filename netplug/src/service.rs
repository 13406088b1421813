//! Services: addresses and ports that lead to the pods behind them.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Protocol;
use crate::error::{Error, Result};

/// A Service with addresses of its own. (A headless one is only a name; the network has nothing to do with it.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace; with the name it decides who has an address that two claim.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its addresses, one per family at most.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// For how long after its last connection a client gets the same endpoint again; `None` is no affinity.
    pub affinity: Option<Duration>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port at the Service's addresses.
    pub port: u16,
    /// The port at every address of the node that leads there too.
    pub node_port: Option<u16>,
    /// Where packets go: one of these of the same family. None means that they are refused.
    pub endpoints: Vec<SocketAddr>,
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("services.json")
}

/// The Services as they were when they were last kept: they lead to their pods while the agent is being replaced.
pub(crate) fn load(state_dir: &Path) -> Result<Vec<Service>> {
    let path = file(state_dir);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("read", path, e)),
    };
    Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "Services begin anew: their record cannot be read");
        Vec::new()
    }))
}

/// Writes them beside their place and renames them into it. No fsync: after a crash of the machine the pods are others.
pub(crate) fn keep(state_dir: &Path, services: &[Service]) -> Result<()> {
    let path = file(state_dir);
    let text = serde_json::to_vec(services).map_err(|e| Error::file("encode", &path, io::Error::from(e)))?;
    let draft = state_dir.join(".services.tmp");
    fs::write(&draft, text).map_err(|e| Error::file("write", &draft, e))?;
    fs::rename(&draft, &path).map_err(|e| Error::file("rename into place", &path, e))
}

/// Removes the record.
pub(crate) fn forget(state_dir: &Path) -> Result<()> {
    let path = file(state_dir);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::file("remove", path, e)),
        _ => Ok(()),
    }
}
