//! What can go wrong, with operation, object and source.

use std::io;
use std::path::PathBuf;

use crate::config::Protocol;

/// Result of the operations of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on the pod network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work; nothing was changed.
    #[error("network configuration: {0}")]
    InvalidConfig(String),
    /// A pod id is used as a file name and this one cannot be.
    #[error("pod id {0:?} is not usable as a file name")]
    InvalidId(String),
    /// Every address of the pod network is in use or in quarantine.
    #[error("no free pod address in {cidr}: {leased} in use, {quarantined} in quarantine")]
    AddressesExhausted {
        /// The pod network.
        cidr: String,
        /// Addresses held by pods.
        leased: usize,
        /// Addresses released so recently that they are not given out again yet.
        quarantined: usize,
    },
    /// The pod asks for an address that it cannot have.
    #[error("address {address} cannot be had: {reason}")]
    AddressRefused {
        /// The address.
        address: std::net::IpAddr,
        /// Why not: who has it, or what is wrong with it.
        reason: String,
    },
    /// Another pod holds a host port that this one asks for.
    #[error("host port {port}/{protocol}{} is already used by pod {holder}", at(.host_ip))]
    HostPortConflict {
        /// The port on the host.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The host address asked for, if not every address.
        host_ip: Option<std::net::IpAddr>,
        /// `namespace/name` of the pod that holds it.
        holder: String,
    },
    /// A file operation failed.
    #[error("{operation} {}", .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A kernel setting below /proc/sys could not be made.
    #[error("set {} to {value}", .path.display())]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// The value wanted.
        value: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The network namespace of a pod cannot be entered (its process has gone, as a rule).
    #[error("enter network namespace {}", .path.display())]
    Namespace {
        /// The namespace file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A netlink request was refused.
    #[error("{operation} {object}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// On which link, address, table or chain.
        object: String,
        /// Why it was refused.
        source: io::Error,
    },
    /// The kernel lacks what policies need.
    #[error(
        "this kernel cannot enforce policies between pods: it has no nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE), or \
         its module is not there; take the setting back, or use another kernel"
    )]
    NoPolicies(#[source] io::Error),
    /// A link of the name that ours would have is somebody else's.
    #[error("network namespace of {owner} already has an interface {interface}")]
    InterfaceTaken {
        /// The host, or a pod by its `namespace/name`.
        owner: String,
        /// Name of the interface.
        interface: String,
    },
    /// The bridge name belongs to a link which is not a bridge.
    #[error("link {0} exists and is not a bridge")]
    NotABridge(String),
    /// The host has no link of that name.
    #[error("no link {0}")]
    NoSuchLink(String),
    /// The operating system gave no thread.
    #[error("start a thread for network namespace work")]
    Thread(#[source] io::Error),
    /// The network was closed by [`close_all`](crate::Network::close_all).
    #[error("the pod network is closed")]
    Closed,
}

fn at(host_ip: &Option<std::net::IpAddr>) -> String {
    host_ip.map(|ip| format!(" at {ip}")).unwrap_or_default()
}

impl Error {
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { operation, path: path.into(), source }
    }

    pub(crate) fn netlink(operation: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self::Netlink { operation, object: object.into(), source }
    }
}
