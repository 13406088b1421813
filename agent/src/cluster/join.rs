//! Joining: a certificate for the node, by a CertificateSigningRequest where it has none yet
//! (Kubernetes documentation, "TLS bootstrapping").

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::watcher;
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::json;

use super::{Access, Cluster, Pause};
use crate::durable;

/// Who signs the certificates with which nodes speak to the server.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Who signs those with which they serve their own API.
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long a request may stay undecided before another is made.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// A certificate and its key, in PEM.
pub(super) struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Cluster {
    /// Gets a way to the server, however long that takes.
    pub(super) async fn join(&self) -> Arc<Access> {
        let mut pause = Pause::new();
        loop {
            match self.try_join().await {
                Ok(access) => return Arc::new(access),
                Err(error) => {
                    tracing::error!("cannot join the cluster: {error:#}; trying again");
                    tokio::time::sleep(pause.take()).await;
                }
            }
        }
    }

    async fn try_join(&self) -> anyhow::Result<Access> {
        let path = &self.config.kubeconfig;
        let Some(bootstrap) = &self.config.bootstrap else { return Access::open(path).await };
        if path.exists() {
            match Access::open(path).await {
                Ok(access) if !access.has_expired() => return Ok(access),
                Ok(_) => {
                    tracing::warn!(kubeconfig = %path.display(), "the node's certificate has expired; asking for another");
                }
                // What the agent has written itself can be had again.
                Err(error) => tracing::warn!("{error:#}; asking for another"),
            }
        }
        let access = Access::open(bootstrap).await?;
        tracing::info!(server = access.server, "asking the API server for the node's certificate");
        let issued = self.request_client(access.client).await?;
        self.store(bootstrap, &issued).await;
        Access::open(path).await
    }

    /// Writes the node's kubeconfig, however long that takes: asking again would only have the server sign another certificate
    /// that a full disk does not take.
    pub(super) async fn store(&self, cluster_of: &Path, issued: &Issued) {
        let mut pause = Pause::new();
        while let Err(error) = write_kubeconfig(cluster_of, &self.config.kubeconfig, issued) {
            tracing::error!("cannot store the node's certificate: {error:#}; trying again");
            tokio::time::sleep(pause.take()).await;
        }
    }

    /// Asks for the certificate with which the node speaks to the server.
    pub(super) async fn request_client(&self, client: Client) -> anyhow::Result<Issued> {
        let mut params = CertificateParams::default();
        params.distinguished_name = self.subject();
        let usages = ["digital signature", "client auth"];
        request(client, CLIENT_SIGNER, params, &usages).await
    }

    /// Asks for the certificate with which the node serves its own API.
    pub(super) async fn request_serving(&self, client: Client) -> anyhow::Result<Issued> {
        let mut params = CertificateParams::default();
        params.distinguished_name = self.subject();
        params.subject_alt_names.push(SanType::DnsName(self.node.facts.name.clone().try_into()?));
        params.subject_alt_names.extend(self.node.facts.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        let usages = ["digital signature", "server auth"];
        request(client, SERVING_SIGNER, params, &usages).await
    }

    /// The name by which the cluster knows a node.
    fn subject(&self) -> DistinguishedName {
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "system:nodes");
        name.push(DnType::CommonName, format!("system:node:{}", self.node.facts.name));
        name
    }
}

/// Makes a key and a request, and waits for what becomes of it.
async fn request(
    client: Client,
    signer: &str,
    params: CertificateParams,
    usages: &[&str],
) -> anyhow::Result<Issued> {
    let key = KeyPair::generate().context("make a key")?;
    let pem = params.serialize_request(&key).context("make a certificate request")?.pem()?;
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made =
        api.create(&PostParams::default(), &object).await.context("create a CertificateSigningRequest")?;
    let name = made.metadata.name.unwrap_or_default();
    tracing::info!(
        name,
        signer,
        "made a CertificateSigningRequest; `kubectl certificate approve` approves it where no controller does"
    );
    let waiting = signed(api, &name);
    let certificate = tokio::time::timeout(PATIENCE, waiting)
        .await
        .map_err(|_| anyhow::anyhow!("nobody has approved the CertificateSigningRequest {name}"))??;
    Ok(Issued { certificate, key: key.serialize_pem() })
}

/// Waits until a request is signed; fails once it is denied.
async fn signed(api: Api<CertificateSigningRequest>, name: &str) -> anyhow::Result<String> {
    let stream = watcher::watch_object(api, name);
    futures::pin_mut!(stream);
    let mut pause = Pause::new();
    while let Some(seen) = stream.next().await {
        let request = match seen {
            Ok(Some(request)) => request,
            Ok(None) => continue,
            Err(error) => {
                tracing::debug!(%error, "cannot follow the CertificateSigningRequest; trying again");
                tokio::time::sleep(pause.take()).await;
                continue;
            }
        };
        let status = request.status.unwrap_or_default();
        let refused = |c: &&k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition| {
            matches!(c.type_.as_str(), "Denied" | "Failed")
        };
        if let Some(condition) = status.conditions.iter().flatten().find(refused) {
            let why = condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or_default();
            bail!("the CertificateSigningRequest {name} was {}: {why}", condition.type_.to_lowercase());
        }
        if let Some(certificate) = status.certificate.filter(|certificate| !certificate.0.is_empty()) {
            return String::from_utf8(certificate.0).context("the certificate is no PEM");
        }
    }
    bail!("the watch of the CertificateSigningRequest {name} has ended")
}

/// Writes the node's kubeconfig: the bootstrap one's cluster, and the certificate, which is inside of it, so that the two
/// change at once.
fn write_kubeconfig(cluster_of: &Path, path: &Path, issued: &Issued) -> anyhow::Result<()> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let from = kube::config::Kubeconfig::read_from(cluster_of)
        .with_context(|| format!("read the kubeconfig {}", cluster_of.display()))?;
    let context = from.current_context.clone().unwrap_or_default();
    let of_context =
        from.contexts.iter().find(|one| one.name == context).and_then(|one| one.context.as_ref());
    let named = of_context.map(|context| context.cluster.clone());
    let cluster = from.clusters.iter().find(|one| named.is_none() || Some(&one.name) == named.as_ref());
    let cluster = cluster.and_then(|one| one.cluster.clone()).with_context(|| {
        format!("the kubeconfig {}: its current-context has no cluster", cluster_of.display())
    })?;
    let text = serde_yaml::to_string(&json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "node", "user": {
            "client-certificate-data": STANDARD.encode(&issued.certificate),
            "client-key-data": STANDARD.encode(&issued.key),
        }}],
        "contexts": [{"name": "node", "context": {"cluster": "cluster", "user": "node"}}],
        "current-context": "node",
    }))?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make the folder {}", parent.display()))?;
    }
    durable::write(path, text.as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))
}
