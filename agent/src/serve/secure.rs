//! The API over TLS, for kubectl: opened only when it is asked for.

use berth_reconciler::status::time;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tokio::net::TcpListener;

use crate::api::Secure;
use crate::config::Config;
use crate::configs::{Configs, Object, Owner};
use crate::facts::NodeFacts;
use crate::pki::{self, Authority, Names};

/// What is needed to serve the API over TLS.
pub(super) struct Tls {
    /// Where connections come from.
    pub listener: Secure,
    /// Who signs the certificates of those that may use it.
    pub authority: Arc<Authority>,
    server: String,
}

/// Serves at `apiAddress`.
///
/// # Errors
/// When the certificate authority cannot be used.
pub(super) fn listen(listener: TcpListener, config: &Config, facts: &NodeFacts) -> anyhow::Result<Tls> {
    let dir = config.root.join("pki");
    let authority =
        Arc::new(Authority::open(&dir, &config.node_name).context("the API's certificate authority")?);
    let tls = pki::server_config(authority.clone(), names(config, facts))
        .context("the API's certificate (apiCertSANs)")?;
    let listener = Secure::new(listener, tls).context("serve at apiAddress")?;
    let server = format!("https://{}", reachable(listener.address(), facts));
    tracing::info!(server, "the API is served over TLS; `berth kubeconfig` lets kubectl in");
    Ok(Tls { listener, authority, server })
}

/// What clients may call this server: its addresses, its names, and what the owner says.
fn names(config: &Config, facts: &NodeFacts) -> Names {
    let mut names = Names {
        hosts: vec!["localhost".to_owned(), config.node_name.clone()],
        addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    };
    names.addresses.extend(facts.ips.iter().copied());
    names.addresses.extend(config.api_address.map(|address| address.ip()));
    for name in &config.api_cert_sans {
        match name.parse() {
            Ok(address) => names.addresses.push(address),
            Err(_) => names.hosts.push(name.clone()),
        }
    }
    names.addresses.retain(|address| !address.is_unspecified());
    names.addresses.sort_unstable();
    names.addresses.dedup();
    names.hosts.sort_unstable();
    names.hosts.dedup();
    names
}

/// Where clients find a listener: one on all addresses at the node's own.
fn reachable(listening: SocketAddr, facts: &NodeFacts) -> SocketAddr {
    let ip: IpAddr = match facts.ips.first() {
        Some(ip) if listening.ip().is_unspecified() => *ip,
        _ => listening.ip(),
    };
    SocketAddr::new(ip, listening.port())
}

impl Tls {
    /// Shows how the API is reached, in the form in which kubeadm tells it: the ConfigMap `cluster-info` of `kube-public`.
    pub(super) fn announce(&self, configs: &Configs) -> anyhow::Result<()> {
        let cluster = json!({
            "server": self.server,
            "certificate-authority-data": STANDARD.encode(self.authority.pem()),
        });
        let kubeconfig =
            json!({"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": cluster}]});
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some("cluster-info".to_owned()),
                namespace: Some("kube-public".to_owned()),
                uid: Some(uuid::Uuid::new_v4().to_string()),
                creation_timestamp: Some(time(jiff::Timestamp::now())),
                ..ObjectMeta::default()
            },
            data: Some([("kubeconfig".to_owned(), serde_yaml::to_string(&kubeconfig)?)].into()),
            ..ConfigMap::default()
        };
        configs.put(Owner::Agent, Object::ConfigMap(Arc::new(object)));
        Ok(())
    }
}
