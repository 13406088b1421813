//! The verbs of the pod network.

use crate::config::{Attachment, Config, PodNetwork, Stats};
use crate::error::{Error, Result};

/// The pod network of this node. Clones share it.
#[derive(Clone, Debug)]
pub struct Network {}

impl Network {
    /// Opens the network.
    pub async fn open(config: Config) -> Result<Self> {
        config.check()?;
        Err(Error::Closed)
    }
    /// Connects a pod.
    pub async fn attach(&self, _pod: &PodNetwork) -> Result<Attachment> {
        Err(Error::Closed)
    }
    /// Disconnects a pod.
    pub async fn detach(&self, _id: &str) -> Result<()> {
        Err(Error::Closed)
    }
    /// Frees what pods other than `live` hold; returns their ids.
    pub async fn gc(&self, _live: &[String]) -> Result<Vec<String>> {
        Err(Error::Closed)
    }
    /// Removes bridge, table and leases.
    pub async fn close_all(&self) -> Result<()> {
        Err(Error::Closed)
    }
    /// Counters of a pod's interface, by the name of the host's side.
    pub async fn stats(&self, _host_if: &str) -> Result<Stats> {
        Err(Error::Closed)
    }
}
