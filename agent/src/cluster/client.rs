//! The way to the API server: its address and authority from a kubeconfig, and the node's own certificate, which may be
//! exchanged while requests are under way.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::pki::{certified, validity};
use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use http::header::USER_AGENT;
use http::{HeaderValue, Request};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use kube::client::{Body, ConfigExt as _};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use secrecy::ExposeSecret as _;
use tower::{BoxError, Layer as _, ServiceExt as _};

/// How long the API server may take to begin an answer. What it sends after that, such as a watch, may go on for ever.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// How often a silent connection is asked whether anybody is there, and how long that may take: a server whose machine is
/// gone closes nothing.
const PING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(15));

/// Who calls, for the server's log.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("berth/", env!("CARGO_PKG_VERSION")));

type Transport = Hyper<HttpsConnector<HttpConnector>, Body>;

/// A way to the API server.
pub struct Access {
    /// To be used for requests. Clones share connections.
    pub client: Client,
    /// The address of the server, as the kubeconfig has it.
    pub server: String,
    identity: Arc<Identity>,
    tls: Tls,
    transport: Arc<RwLock<Transport>>,
}

/// What TLS is set up with, whoever the client is.
#[derive(Clone)]
struct Tls {
    roots: Arc<RootCertStore>,
    /// The server's name, where that is not the address's.
    server_name: Option<String>,
}

/// The certificate that the client shows; none for one that has a token.
#[derive(Debug, Default)]
struct Identity(RwLock<Option<Arc<CertifiedKey>>>);

impl Identity {
    fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }

    fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.get().filter(|key| key.key.choose_scheme(schemes).is_some())
    }

    fn has_certs(&self) -> bool {
        self.get().is_some()
    }
}

impl Access {
    /// The way that a kubeconfig describes.
    ///
    /// # Errors
    /// The file cannot be read or says something that cannot be done; the text names it and what to do.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let config = config(path).await?;
        if config.accept_invalid_certs {
            bail!(
                "the kubeconfig {shown}: insecure-skip-tls-verify would hand the node to whoever answers; \
                 set certificate-authority"
            );
        }
        if config.proxy_url.is_some() {
            bail!("the kubeconfig {shown}: proxy-url is not supported");
        }
        let identity = Arc::new(Identity::default());
        if let Some((certificate, key)) = pem_of(&config.auth_info, path)? {
            let key = certified(&certificate, &key).with_context(|| format!("the kubeconfig {shown}"))?;
            identity.set(key);
        }
        let tls = Tls { roots: Arc::new(roots(&config, path)?), server_name: config.tls_server_name.clone() };
        let transport = Arc::new(RwLock::new(transport(&tls, identity.clone())?));
        let client = client(&config, transport.clone()).with_context(|| format!("the kubeconfig {shown}"))?;
        let server = config.cluster_url.to_string();
        Ok(Self { client, server, identity, tls, transport })
    }

    /// Whom a kubeconfig trusts to sign the server's certificate; nobody for a server without TLS.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub async fn authorities(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let config = config(path).await?;
        let given = config.root_cert.unwrap_or_default();
        Ok(given.into_iter().map(CertificateDer::from).collect())
    }

    /// When the certificate that the client shows begins and ends to be good, in seconds since 1970; none without one.
    pub fn validity(&self) -> Option<(i64, i64)> {
        validity(&*self.identity.get()?)
    }

    /// Whether the certificate that the client shows is good no more, so that nobody believes it.
    pub fn has_expired(&self) -> bool {
        self.validity().is_some_and(|(_, end)| end <= Timestamp::now().as_second())
    }

    /// Shows another certificate from now on, on new connections: a server looks at it when one begins.
    ///
    /// # Errors
    /// The texts are not a certificate and its key in PEM.
    pub fn show(&self, certificate: &str, key: &str) -> anyhow::Result<()> {
        self.identity.set(certified(certificate.as_bytes(), key.as_bytes())?);
        let fresh = transport(&self.tls, self.identity.clone())?;
        // Requests that are under way keep their connection, and close it when they are done.
        *self.transport.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

async fn config(path: &Path) -> anyhow::Result<Config> {
    let shown = path.display();
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {shown}"))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("the kubeconfig {shown}"))
}

/// The client's certificate and key in PEM, from the kubeconfig itself or from files, relative to it.
fn pem_of(auth: &AuthInfo, kubeconfig: &Path) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let shown = kubeconfig.display();
    let read = |data: Option<&str>, file: Option<&String>, field: &str| -> anyhow::Result<Option<Vec<u8>>> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let decoded = STANDARD.decode(data.trim());
            return decoded
                .map(Some)
                .with_context(|| format!("the kubeconfig {shown}: {field}-data: no base64"));
        }
        let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
        let path: PathBuf = kubeconfig.parent().unwrap_or(Path::new("")).join(file);
        let text = std::fs::read(&path);
        text.map(Some).with_context(|| format!("the kubeconfig {shown}: {field}: read {}", path.display()))
    };
    let certificate = read(
        auth.client_certificate_data.as_deref(),
        auth.client_certificate.as_ref(),
        "client-certificate",
    )?;
    let key = read(
        auth.client_key_data.as_ref().map(|key| key.expose_secret()),
        auth.client_key.as_ref(),
        "client-key",
    )?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => bail!("the kubeconfig {shown}: client-certificate and client-key: one needs the other"),
    }
}

fn roots(config: &Config, path: &Path) -> anyhow::Result<RootCertStore> {
    let shown = path.display();
    let mut roots = RootCertStore::empty();
    let Some(given) = config.root_cert.as_ref().filter(|given| !given.is_empty()) else {
        if config.cluster_url.scheme_str() == Some("http") {
            return Ok(roots);
        }
        bail!("the kubeconfig {shown}: certificate-authority or certificate-authority-data is missing");
    };
    for certificate in given {
        roots
            .add(CertificateDer::from(certificate.clone()))
            .with_context(|| format!("the kubeconfig {shown}: certificate-authority"))?;
    }
    Ok(roots)
}

fn transport(tls: &Tls, identity: Arc<Identity>) -> anyhow::Result<Transport> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("set up TLS")?
        .with_root_certificates(tls.roots.clone())
        .with_client_cert_resolver(identity);
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT));
    http.set_nodelay(true);
    http.set_keepalive(Some(PING.0));
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
    let builder = match &tls.server_name {
        Some(name) => {
            let name = rustls::pki_types::ServerName::try_from(name.clone()).context("tls-server-name")?;
            builder.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name))
        }
        None => builder,
    };
    let connector = builder.enable_all_versions().wrap_connector(http);
    let mut client = Hyper::builder(TokioExecutor::new());
    client
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING.0)
        .http2_keep_alive_timeout(PING.1);
    Ok(client.build(connector))
}

fn client(config: &Config, transport: Arc<RwLock<Transport>>) -> anyhow::Result<Client> {
    let send = tower::service_fn(move |mut request: Request<Body>| {
        request.headers_mut().insert(USER_AGENT, AGENT);
        let client = transport.read().unwrap_or_else(PoisonError::into_inner).clone();
        async move {
            match tokio::time::timeout(ANSWER, client.request(request)).await {
                Ok(answer) => answer.map_err(BoxError::from),
                Err(_) => {
                    let text = format!("no answer from the API server within {} s", ANSWER.as_secs());
                    Err(BoxError::from(io::Error::new(io::ErrorKind::TimedOut, text)))
                }
            }
        }
        .boxed()
    });
    let authenticated = tower::util::option_layer(config.auth_layer()?).layer(send).map_err(BoxError::from);
    let based = config.base_uri_layer().layer(authenticated);
    Ok(Client::new(based, config.default_namespace.clone()))
}
