//! Services: addresses and ports that lead to the pods behind them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Protocol;
use crate::error::Result;
use crate::record;

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

/// Name of their record.
const RECORD: &str = "services";

/// The Services as they were when they were last kept: they lead to their pods while the agent is being replaced.
pub(crate) fn load(state_dir: &Path) -> Result<Vec<Service>> {
    Ok(record::read(state_dir, RECORD)?.map_or_else(Vec::new, |read| {
        read.unwrap_or_else(|error| {
            let path = record::path(state_dir, RECORD);
            tracing::warn!(path = %path.display(), %error, "Services begin anew: their record cannot be read");
            Vec::new()
        })
    }))
}

/// Keeps them for the next agent.
pub(crate) fn keep(state_dir: &Path, services: &[Service]) -> Result<()> {
    record::write(state_dir, RECORD, services)
}

/// Removes the record.
pub(crate) fn forget(state_dir: &Path) -> Result<()> {
    record::remove(&record::path(state_dir, RECORD))
}
