//! The addresses that the agent serves at.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::config::Config;

/// What the agent listens at, as far as the settings ask for it. Who comes before there is an answer waits.
#[derive(Default)]
pub(super) struct Listeners {
    /// For monitoring.
    pub read_only: Option<TcpListener>,
    /// For kubectl.
    pub api: Option<TcpListener>,
    /// For the API server of a cluster.
    pub kubelet: Option<TcpListener>,
}

impl Listeners {
    /// Takes the addresses, but for those of the pods' bridges, which may not be there yet. One that somebody else has is the
    /// likeliest mistake in the settings, and nothing has been made by then that would be left behind.
    ///
    /// # Errors
    /// What is wrong with which of them, and the setting that it comes from.
    pub(super) async fn take(config: &Config) -> anyhow::Result<Self> {
        let network = config.network()?;
        let bridges = std::iter::once(&network).chain(&network.beside);
        let bridges: Vec<IpAddr> = bridges.flat_map(|one| one.gateways().map(|(ip, _)| ip)).collect();
        let mut all = Self::default();
        all.bind(config, |address| !bridges.contains(&address)).await?;
        Ok(all)
    }

    /// Takes the rest, once the pod network is there.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub(super) async fn take_rest(&mut self, config: &Config) -> anyhow::Result<()> {
        self.bind(config, |_| true).await
    }

    async fn bind(&mut self, config: &Config, wanted: impl Fn(IpAddr) -> bool) -> anyhow::Result<()> {
        let kubelet = config.cluster.as_ref().and_then(|cluster| cluster.server.address);
        let all: [(&mut Option<TcpListener>, Option<SocketAddr>, &str); 3] = [
            (&mut self.read_only, config.read_only, "--read-only-address, or none"),
            (&mut self.api, config.api_address, "--api-address"),
            (&mut self.kubelet, kubelet, "`port` in the config"),
        ];
        for (listener, address, setting) in all {
            if let Some(address) = address.filter(|address| listener.is_none() && wanted(address.ip())) {
                let bound = TcpListener::bind(address).await;
                *listener = Some(
                    bound.with_context(|| format!("listen on {address}; choose another with {setting}"))?,
                );
            }
        }
        Ok(())
    }
}
